"""`data.eval_rankings`: rankings of another source, on which the reward model is evaluated and never trained.

The `data` stage reads them into a file of their own, and counts their prompts that occur in training text; the
`reward` stage evaluates the model on all of them.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from data.contamination import HeldOutTexts, conversation
from data.overlaps import Kind, start
from data.schema import Message, Ranking, as_line, prompt_key, read_rankings_file
from data.tables.messages import with_system
from pipeline.config.data import ContaminationConfig
from pipeline.engine.stage import Artifact, Metrics
from stages.artifacts import MERGED
from stages.contamination import named, text_of

NAME = "eval_rankings"
FILE = f"{NAME}.jsonl"
"""The rankings, in the `data` artifact."""
TABLES = ("demonstrations", "prompts", "rankings", MERGED)


def read(data: Artifact) -> Iterator[Ranking]:
    """The rankings of `data.eval_rankings`; none where the recipe has no such table."""
    if data.has(FILE):
        yield from read_rankings_file(data.file(FILE))


@dataclass
class EvalRankings:
    """Counts of the rankings that are written."""

    count: int = 0
    human: bool = True
    annotators: set[str] = field(default_factory=set)
    prompts: dict[str, list[Message]] = field(default_factory=dict)

    def write(self, path: Path, rankings: Iterable[Ranking], system: str | None) -> None:
        """Writes and counts the rankings, all of them as held-out ones. `system` is the recipe's system message."""
        with path.open("w", encoding="utf-8") as out:
            for as_read in rankings:
                prompt = with_system(as_read.prompt, system)
                out.write(as_line(replace(as_read, prompt=prompt, split="eval", where="")))
                self.count += 1
                self.human = self.human and as_read.human
                self.annotators.add(as_read.annotator)
                self.prompts[prompt_key(prompt)] = prompt

    def metrics(self) -> Metrics:
        """`eval_rankings` is the number of rankings; the others describe them."""
        return {
            NAME: self.count,
            f"{NAME}_prompts": len(self.prompts),
            f"{NAME}_annotators": len(self.annotators),
            f"{NAME}_human": self.human,
        }

    def trained_on(
        self, folder: Path, config: ContaminationConfig, generated: Collection[str]
    ) -> tuple[Metrics, list[str]]:
        """How many of the prompts occur in what is trained on, by table and kind (`data.contamination`), as
        `eval_rankings_in_<table>/<kind>`, and warnings.

        Args:
            folder: with the tables as the `data` stage has written them.
            config: its threshold, and the kinds that it ignores.
            generated: tables whose rows are generated, which are not compared.
        """
        index = HeldOutTexts(config.threshold, near=config.near != "ignore")
        if config.exact != "ignore" or config.near != "ignore":
            for prompt in self.prompts.values():
                index.add(conversation(prompt))
        metrics: Metrics = {}
        lines = []
        for table in TABLES:
            path = folder / f"{table}.jsonl"
            if not len(index) or table in generated or not path.is_file():
                continue
            found: dict[Kind, set[str]] = defaultdict(set)
            for text, alone in _training_texts(path, table):
                occurrence = index.find(text, alone)
                if occurrence is not None and getattr(config, occurrence.kind) != "ignore":
                    found[occurrence.kind].add(occurrence.held_out)
            found["near"] -= found["exact"]
            counts = {kind: len(texts) for kind, texts in sorted(found.items()) if texts}
            metrics |= {f"{NAME}_in_{table}/{kind}": count for kind, count in counts.items()}
            if counts:
                words = {"exact": "{:,} occur", "near": "{:,} nearly occur"}
                first = min(next(texts for texts in (found["exact"], found["near"]) if texts))
                found_in = " and ".join(words[kind].format(count) for kind, count in counts.items())
                lines.append(
                    f"warning: of the {len(self.prompts):,} prompts of data.eval_rankings, {found_in} in the "
                    f"{named(table)} that are trained on (such as {start(first)!r}). Accuracy on them is no "
                    "transfer: remove them from either table"
                )
        return metrics, lines


def _training_texts(path: Path, table: str) -> Iterator[tuple[str, str]]:
    """The text of each training row of a table, and its prompt alone; prompts.jsonl has those of all tables."""
    with path.open(encoding="utf-8") as rows:
        for line in rows:
            row = json.loads(line)
            if row["split"] == "train" and row.get("table", table) == table:
                yield text_of(row["prompt"], row.get("completions") or [row.get("completion", "")])
