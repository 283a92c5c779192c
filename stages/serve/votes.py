"""Votes of the chat page, stored as rankings that a recipe can read (`data.rankings`)."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

from data.schema import Message, Ranking, as_line, ranks_from_scores
from pipeline.files import remove_incomplete_line

FILE = "chat-rankings.jsonl"


class Votes:
    """The file of votes in a run's folder: one `Ranking` per line, synced to the disk before a vote is confirmed.

    A vote has an id, so that one that is sent again is stored once.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE
        self._lock = threading.Lock()
        remove_incomplete_line(self.path)
        self._known = set(self._ids())

    def _ids(self) -> list[str]:
        if not self.path.is_file():
            return []
        with self.path.open(encoding="utf-8") as lines:
            return [json.loads(line)["metadata"]["vote"] for line in lines if line.strip()]

    def add(
        self,
        vote: str,
        prompt: list[Message],
        completions: Sequence[str],
        models: Sequence[str],
        ranks: Sequence[int],
        annotator: str,
        *,
        temperature: float,
        blind: bool,
    ) -> bool:
        """Stores a vote; returns False when it was stored before.

        Args:
            completions, models, ranks: in the order in which the answers were shown. Rank 1 is the best.
        """
        ranking = Ranking(
            prompt=prompt,
            completions=list(completions),
            ranks=ranks_from_scores([-rank for rank in ranks]),  # dense
            annotator=annotator,
            human=True,
            models=list(models),
            metadata={
                "vote": vote,
                "shown": list(range(len(completions))),
                "temperature": temperature,
                "blind": blind,
            },
        )
        with self._lock:
            if vote in self._known:
                return False
            remove_incomplete_line(self.path)
            with open(
                os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600), "a", encoding="utf-8"
            ) as file:
                file.write(as_line(ranking))
                file.flush()
                os.fsync(file.fileno())
            self._known.add(vote)
        return True
