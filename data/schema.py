"""The three native data types, and their JSON form in the artifacts' JSONL files.

A prompt is a conversation: a list of `{"role": ..., "content": ...}` messages that ends with the user's turn.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from pipeline.errors import DataError

Message = dict[str, str]
Split = Literal["train", "eval"]


def prompt_key(prompt: Sequence[Message]) -> str:
    """Identifies a prompt by content (16 hex digits): equal conversations have equal keys."""
    text = json.dumps([[m["role"], m["content"]] for m in prompt], ensure_ascii=False)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def same_text(text: str) -> str:
    """What equal answers share: the text in Unicode's composed form (NFC), without white space around it."""
    return unicodedata.normalize("NFC", text).strip()


def row_number(where: str) -> int:
    """The number of a row in its table, from the place that its reader gives it; 0 for generated data."""
    numbers = re.findall(r"\d+", where)
    return int(numbers[-1]) if numbers else 0


@dataclass(frozen=True)
class Prompt:
    """A prompt without a completion.

    Attributes:
        where: here and below, the file and row that it came from, for messages.
        metadata: columns of its row that reward functions get, JSON values by name.
    """

    prompt: list[Message]
    split: Split = "train"
    where: str = field(default="", compare=False)
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Demonstration:
    prompt: list[Message]
    completion: str
    split: Split = "train"
    where: str = field(default="", compare=False)


@dataclass(frozen=True)
class Ranking:
    """K answers to one prompt, ordered by one annotator.

    Attributes:
        prompt: the conversation that was answered.
        completions: the K >= 2 answers, as shown.
        ranks: one per completion, 1 is best; equal ranks are ties.
        annotator: who ranked, a pseudonym.
        human: whether the annotator is a person. Simulated rankings are never called human.
        ratings: the scores that the ranks derive from, if there were any.
        criterion: what the answers were compared by, where a recipe has rankings by several criteria.
        models: which system wrote each answer, if known.
        split: set by prompt group.
        metadata: other facts about the ranking, JSON values by name: `seconds` it took, `shown` (the displayed
            position of each completion, from 0), `repeat` (whether the annotator had ranked this before), `weight`
            (above 0; 1 where there is none).
        where: the file and row it came from, for messages.
    """

    prompt: list[Message]
    completions: list[str]
    ranks: list[int]
    annotator: str
    human: bool
    ratings: list[float] | None = None
    models: list[str] | None = None
    split: Split = "train"
    metadata: dict[str, Any] = field(default_factory=dict)
    where: str = field(default="", compare=False)
    criterion: str | None = None

    def __post_init__(self) -> None:
        k = len(self.completions)
        if k < 2:
            raise DataError(
                f"a ranking needs at least 2 completions, got {k}",
                where=self.where,
                hint="remove the row, or give it more completions",
            )
        for name in ("ranks", "ratings", "models"):
            values = getattr(self, name)
            if values is not None and len(values) != k:
                raise DataError(
                    f"a ranking of {k} completions has {len(values)} {name}",
                    where=self.where,
                    hint=f"write one of {name} per completion",
                )
        if any(rank < 1 for rank in self.ranks):
            raise DataError(
                f"ranks must be at least 1, got {min(self.ranks)}",
                where=self.where,
                hint="number the ranks from 1, the best",
            )

    @property
    def weight(self) -> float:
        """Its weight in means and in the reward model's loss."""
        return float(self.metadata.get("weight", 1.0))

    def only(self, places: Sequence[int]) -> Ranking:
        """The ranking of the completions at `places`. Their ranks are dense, from 1."""
        ranks = ranks_from_scores([-self.ranks[place] for place in places])
        kept: dict[str, Any] = {
            name: [values[place] for place in places]
            for name in ("completions", "ratings", "models")
            if (values := getattr(self, name)) is not None
        }
        metadata = {
            name: [value[place] for place in places] if name == "shown" else value
            for name, value in self.metadata.items()
        }
        return replace(self, ranks=ranks, metadata=metadata, **kept)

    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) index pairs, without ties."""
        n = range(len(self.ranks))
        return [(i, j) for i in n for j in n if self.ranks[i] < self.ranks[j]]


@dataclass(frozen=True)
class MergedRanking(Ranking):
    """The consensus of a prompt's annotators (`data.tables.consensus`). It is learned from in their place, and is
    none of the rankings that are counted or compared."""


def ranks_from_scores(scores: Sequence[float], tie: float = 0.0) -> list[int]:
    """Dense ranks (1 is best) of scores (higher is better). Neighbours at most `tie` apart are equal."""
    order = sorted(range(len(scores)), key=lambda i: -scores[i])
    ranks = [0] * len(scores)
    rank = 1
    for position, i in enumerate(order):
        if position and scores[order[position - 1]] - scores[i] > tie:
            rank += 1
        ranks[i] = rank
    return ranks


def as_line(row: Any) -> str:
    """A dataclass or a dict as a line of JSON. A ranking without a criterion has no such key."""
    content = row if isinstance(row, dict) else asdict(row)
    if isinstance(row, Ranking) and row.criterion is None:
        del content["criterion"]
    return json.dumps(content, ensure_ascii=False) + "\n"


def read_rankings_file(path: Path) -> Iterator[Ranking]:
    """The rankings of an artifact's `rankings.jsonl`, one at a time."""
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            yield Ranking(**json.loads(line))


def write_jsonl(path: Path, rows: Iterable[Any]) -> int:
    """Writes dataclasses or dicts, one per line; returns how many."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            out.write(as_line(row))
            count += 1
    return count
