"""What a submitted form says, checked: its fields go by position on the screen, an `Answer` by completion."""

from __future__ import annotations

import math
import re
from urllib.parse import parse_qs

from ranking.campaign import Campaign
from ranking.store import Answer, Task

LONGEST_TEXT = 2000
"""Characters of a note or a reason."""

CHOICES = {"first": (1, 2), "tie": (1, 1), "second": (2, 1)}
"""Of two answers: which is better."""


class BadForm(Exception):
    """Says to the annotator what is missing."""


class Form:
    """The fields of a urlencoded body. Raises `BadForm` when it is none."""

    def __init__(self, body: bytes) -> None:
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=2000)
        except ValueError:
            raise BadForm("What was sent is not a form.") from None
        self._fields = fields

    def text(self, name: str) -> str:
        return self._fields.get(name, [""])[-1].strip()

    def texts(self, name: str) -> list[str]:
        return self._fields.get(name, [])

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from low to high, None where the field is empty."""
        text = self.text(name)
        if not text:
            return None
        if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not low <= int(text) <= high:
            raise BadForm(f"“{text[:20]}” is not a whole number from {low} to {high}.")
        return int(text)

    def submission(self) -> str:
        """The id under which this is sent, and sent again."""
        found = self.text("submission")
        if not re.fullmatch(r"[\w-]{16,64}", found, re.ASCII):
            raise BadForm("The form has no valid submission id: open the item again.")
        return found


def answer(form: Form, task: Task, campaign: Campaign) -> Answer:
    """Raises `BadForm`."""
    k = len(task.shown)
    place = {completion: position for position, completion in enumerate(task.shown)}
    positions = [place[completion] for completion in range(k)]
    labels = [[label for label in campaign.labels if label in form.texts(f"label-{p}")] for p in positions]
    ratings = [form.whole(f"rating-{p}", 1, 7) for p in positions] if campaign.ratings else []
    all_bad = form.text("all_bad") == "1"
    skipped = form.text("action") == "skip"
    reason = form.text("flag_reason")[:LONGEST_TEXT]
    ranks: list[int] | None = None
    if all_bad and not skipped:
        ranks = [1] * k
    elif not skipped:
        ranks = _ranks(form, positions)
    return Answer(
        ranks=ranks,
        all_bad=all_bad and not skipped,
        ratings=ratings if any(r is not None for r in ratings) else None,
        labels=labels if any(labels) else None,
        flag=reason if form.text("flag") == "1" or reason else None,
        note=form.text("note")[:LONGEST_TEXT],
        seconds=_seconds(form.text("seconds")),
        moves=form.whole("moves", 0, 999_999),
    )


def _ranks(form: Form, positions: list[int]) -> list[int]:
    """Dense, whatever numbers were given."""
    k = len(positions)
    if k == 2 and (choice := form.text("choice")):
        if choice not in CHOICES:
            raise BadForm("Say which answer is better, or that they are about equal.")
        return [CHOICES[choice][p] for p in positions]
    given = [form.whole(f"rank-{p}", 1, k) for p in positions]
    if None in given:
        raise BadForm(
            "Say which answer is better, or that they are about equal."
            if k == 2
            else f"Give each answer a rank from 1, the best, to {k}. Equal numbers are ties."
        )
    levels = sorted({rank for rank in given if rank is not None})
    return [levels.index(rank) + 1 for rank in given if rank is not None]


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return round(seconds, 1) if math.isfinite(seconds) and 0 <= seconds < 1e6 else None
