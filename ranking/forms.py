"""Reads and checks a submitted form. Its fields go by position on the screen, an `Assessment` by completion."""

from __future__ import annotations

import math
import re
from urllib.parse import parse_qs

from ranking.campaign import Campaign
from ranking.language import Refusal
from ranking.store import Assessment, Task

LONGEST_TEXT = 2000
"""Characters of a note or a reason."""

CHOICES = {"first": (1, 2), "tie": (1, 1), "second": (2, 1)}
"""Of two answers: the ranks for each choice."""


class BadForm(Refusal):
    """The form is wrong."""


class Form:
    """The fields of a urlencoded body. Raises `BadForm` for any other body."""

    def __init__(self, body: bytes) -> None:
        try:
            fields = parse_qs(body.decode(), keep_blank_values=True, strict_parsing=bool(body), max_num_fields=2000)
        except ValueError:
            raise BadForm("This is not a form of this page. Open the item again and send it once more.") from None
        self._fields = fields

    def text(self, name: str) -> str:
        return self._fields.get(name, [""])[-1].strip()

    def texts(self, name: str) -> list[str]:
        return self._fields.get(name, [])

    def whole(self, name: str, low: int, high: int) -> int | None:
        """A whole number from low to high; None where the field is empty."""
        text = self.text(name)
        if not text:
            return None
        if not re.fullmatch(r"\d{1,6}", text, re.ASCII) or not low <= int(text) <= high:
            raise BadForm(
                "“%(value)s” must be a whole number from %(low)s to %(high)s.", value=text[:20], low=low, high=high
            )
        return int(text)

    def submission(self) -> str:
        """The id of the submission: sending it again stores nothing new."""
        name = self.text("submission")
        if not re.fullmatch(r"[\w-]{16,64}", name, re.ASCII):
            raise BadForm("The form has no valid submission id. Open the item again.")
        return name


def read_assessment(form: Form, task: Task, campaign: Campaign) -> Assessment:
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
    return Assessment(
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
    """Dense ranks from any numbers."""
    k = len(positions)
    if k == 2 and (choice := form.text("choice")):
        if choice not in CHOICES:
            raise BadForm("Choose which answer is better, or that they are about equal.")
        return [CHOICES[choice][p] for p in positions]
    numbers = [form.whole(f"rank-{p}", 1, k) for p in positions]
    if None in numbers:
        if k == 2:
            raise BadForm("Choose which answer is better, or that they are about equal.")
        raise BadForm("Give each answer a rank from 1, the best, to %(last)s. Equal numbers are ties.", last=k)
    levels = sorted({rank for rank in numbers if rank is not None})
    return [levels.index(rank) + 1 for rank in numbers if rank is not None]


def _seconds(text: str) -> float | None:
    try:
        seconds = float(text)
    except ValueError:
        return None
    return round(seconds, 1) if math.isfinite(seconds) and 0 <= seconds < 1e6 else None
