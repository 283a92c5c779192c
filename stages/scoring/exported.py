"""`reward_model.json`: what an exported reward model says about itself beyond its config.json.

Plain libraries ignore the file. It holds fingerprints (conversations, their ids and scores), a constant that a
classifier's head cannot hold, and how texts become ids.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from transformers.utils.hub import cached_file

from data.schema import Message
from pipeline.engine.stage import parse
from stages.models.loading import readable_checkpoint
from stages.models.text import Codec

FILE = "reward_model.json"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The settings of a policy's `Codec` that its tokenizer does not hold, as `base.json` records them."""

    date: str
    control_tokens: str
    fold_turns: bool
    stop_ids: Sequence[int]

    def codec(self, tokenizer: Any) -> Codec:
        return Codec(
            tokenizer,
            stop_ids=self.stop_ids,
            date=self.date,
            control_tokens=self.control_tokens,
            fold_turns=self.fold_turns,
        )


@dataclass(frozen=True, kw_only=True)
class Fingerprint:
    """A conversation that ends with the assistant's turn, its ids and its score."""

    messages: Sequence[Message]
    ids: Sequence[int]
    score: float


@dataclass(frozen=True, kw_only=True)
class ExportedReward:
    """`reward_model.json`.

    Attributes:
        offset: the score is the classifier's logit plus this: decoder classifiers have a head without bias.
        system: a system message that every training prompt began with; None if there was none.
        max_length: the most tokens of prompt and completion in training; None if that is not known.
        member: which member of an ensemble it is; None if there was only one.
        reading: how conversations become ids; None for an encoder with a template of its own.
        fingerprints: scores include `offset`.
    """

    offset: float = 0.0
    system: str | None = None
    max_length: int | None = None
    member: int | None = None
    reading: Reading | None = None
    fingerprints: Sequence[Fingerprint] = field(default_factory=tuple)

    def write(self, folder: Path) -> None:
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / FILE).write_text(text + "\n", encoding="utf-8")

    def as_stored(self) -> list[dict[str, Any]]:
        """The fingerprints as `stages.scoring.reward_model.verify_scores` takes them."""
        return [{"ids": list(row.ids), "score": row.score} for row in self.fingerprints]


def read(source: str | Path, revision: str | None = None) -> ExportedReward | None:
    """The file of an exported reward model in a folder or, at a revision, on the Hub; None if there is none."""
    with readable_checkpoint(source, FILE):
        path = cached_file(
            str(source),
            FILE,
            revision=revision or "main",
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,  # a cached model may never have been asked for the file
        )
    if path is None:
        return None
    return parse(ExportedReward, json.loads(Path(path).read_text(encoding="utf-8")), str(path))
