"""Held-out prompts in what is trained on: how often, examples, and training rows to drop.

The `data` stage checks the rows that it has written; `base` and `reward` check what else they train on, with the
same definition (`data.contamination`), which contamination.json hands to them.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from data import exclusion
from data.contamination import HeldOutTexts, conversation
from data.overlaps import EXAMPLES, SHOWN, Kind, start
from data.schema import Message
from data.splits import group_of
from pipeline.config.data import ContaminationConfig
from pipeline.engine.stage import Artifact, Metrics, RunContext
from stages.artifacts import MERGED, excluded_groups
from stages.left_out import LeftOut

FILE = "contamination.json"
REASONS: dict[Kind, str] = {"exact": "contains a held-out prompt", "near": "nearly contains a held-out prompt"}
"""Why a row is left out, by kind."""
HINTS: dict[Kind, str] = {kind: f"data.contamination.{kind}: report keeps them" for kind in REASONS}
KEY = "contaminated_"
"""Prefix of the metrics that count contaminated rows that stay."""


@dataclass
class Contamination:
    """Contaminated rows of one table.

    Attributes:
        table: what they are, in metrics and messages.
        kept, dropped: number of rows by kind.
        examples: the first of them.
    """

    table: str
    config: ContaminationConfig
    held_out: HeldOutTexts
    kept: Counter[Kind] = field(default_factory=Counter)
    dropped: Counter[Kind] = field(default_factory=Counter)
    examples: list[dict[str, Any]] = field(default_factory=list)

    def find(self, row: int, text: str, prompt: str) -> Kind | None:
        """Counts a training row whose text contains a held-out prompt, or whose prompt is one. Returns the kind if
        the row is to be dropped."""
        occurrence = self.held_out.find(text, prompt)
        if occurrence is None or getattr(self.config, occurrence.kind) == "ignore":
            return None
        if len(self.examples) < EXAMPLES:
            self.examples.append(
                {
                    "table": self.table,
                    "row": row,
                    "kind": occurrence.kind,
                    "share": round(occurrence.share, 3),
                    "held_out": occurrence.held_out[:SHOWN],
                    "text": text[:SHOWN],
                }
            )
        if getattr(self.config, occurrence.kind) == "drop":
            self.dropped[occurrence.kind] += 1
            return occurrence.kind
        self.kept[occurrence.kind] += 1
        return None

    def metrics(self) -> Metrics:
        """`contaminated_<table>/exact` and `/near`: rows that stay, where there are any."""
        return {f"{KEY}{self.table}/{kind}": count for kind, count in sorted(self.kept.items()) if count}

    def warning(self) -> str:
        """A line about rows that stay; empty where there are none."""
        kinds = [kind for kind in REASONS if self.kept[kind]]
        if not kinds:
            return ""
        counts = {"exact": "{:,} contain a held-out prompt", "near": "{:,} nearly contain one"}
        first = self.examples[0]
        keys = " and ".join(f"data.contamination.{kind}" for kind in kinds)
        return (
            f"warning: of the {named(self.table)} that are trained on, "
            f"{' and '.join(counts[kind].format(self.kept[kind]) for kind in kinds)} (row {first['row']}: "
            f"{start(first['held_out'])!r}). To drop them, set {keys}: drop"
        )


def named(table: str) -> str:
    """A table in a message."""
    return "merged rankings" if table == MERGED else table


def counts(metrics: Mapping[str, Any]) -> Iterator[tuple[str, Kind, int]]:
    """Table, kind and number of the contaminated rows that a finished stage has kept."""
    for name, count in metrics.items():
        table, _, kind = name.removeprefix(KEY).rpartition("/")
        if name.startswith(KEY) and kind in REASONS:
            yield table, kind, count


def text_of(prompt: Sequence[Message], answers: Iterable[str]) -> tuple[str, str]:
    """All text of a row, and its prompt alone."""
    of_prompt = conversation(prompt)
    return "\n".join([of_prompt, *answers]), of_prompt


def held_out_prompts(data: Artifact, config: ContaminationConfig, generated: Collection[str]) -> HeldOutTexts:
    """The held-out prompts of a `data` artifact, except those that come first from the `generated` tables."""
    held_out = HeldOutTexts(config.threshold, near=config.near != "ignore")
    for row in data.jsonl("prompts.jsonl"):
        if row["split"] == "eval" and row.get("table") not in generated:
            held_out.add(conversation(row["prompt"]))
    return held_out


def check_tables(
    folder: Path,
    config: ContaminationConfig,
    rows: Mapping[str, Sequence[int]],
    generated: frozenset[str],
    ctx: RunContext,
    on_drop: Callable[[str, int, Kind, Mapping[str, Any]], None],
) -> list[Contamination]:
    """Checks the training rows of the `data` stage's files, and writes contamination.json. Files are rewritten
    without the rows that the config drops.

    Args:
        folder: with demonstrations.jsonl, prompts.jsonl and perhaps rankings.jsonl and merged_rankings.jsonl.
        rows: the number in its source of each line of the files other than prompts.jsonl.
        generated: tables whose rows are generated, which are not compared.
        on_drop: called with table, row number, kind and content of each row that is dropped.
    """
    drops = "drop" in (config.exact, config.near)
    ignored = config.exact == config.near == "ignore"
    written = Artifact("data", folder, "")
    held_out = HeldOutTexts(config.threshold) if ignored else held_out_prompts(written, config, generated)
    checks = []
    for table in ("demonstrations", "prompts", "rankings", MERGED):
        path = folder / f"{table}.jsonl"
        if not len(held_out) or table in generated or not path.is_file():
            continue
        check = Contamination(table, config, held_out)
        with ctx.progress(f"looking for held-out prompts in {table}") as bar, ExitStack() as opened:
            left = folder / f"{table}.jsonl.part"
            out = opened.enter_context(left.open("w", encoding="utf-8")) if drops else None
            lines = opened.enter_context(path.open(encoding="utf-8"))
            for place, line in enumerate(lines):
                bar.advance()
                row = json.loads(line)
                number = rows[table][place] if table in rows else row["row"]
                compared = row["split"] == "train" and row.get("table") not in generated
                kind = check.find(number, *text_of(row["prompt"], _answers(row))) if compared else None
                if kind is not None:
                    on_drop(table, number, kind, row)
                elif out is not None:
                    out.write(line)
        if drops:
            left.replace(path)
        checks.append(check)
        if warning := check.warning():
            ctx.say(warning)
    content = {
        "definition": asdict(config),
        "generated": sorted(generated),
        "examples": [example for check in checks for example in check.examples],
    }
    (folder / FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return checks


def of_data(data: Artifact, table: str, **changes: Any) -> Contamination:
    """A check of another table against the held-out prompts of a `data` artifact, by its recipe's definition and
    `changes` of it."""
    content = data.json(FILE)
    config = ContaminationConfig(**(content["definition"] | changes))
    return Contamination(table, config, held_out_prompts(data, config, content["generated"]))


def check_corpus(
    documents: Iterable[tuple[str, ...]], data: Artifact, ctx: RunContext
) -> tuple[list[tuple[str, ...]], Metrics]:
    """The documents of a corpus (`data.tables.corpus`) to pretrain on, and counts of the others.

    A pair of prompt and completion is treated as the recipe's other tables are. Running text in which a held-out
    prompt, or the completion of a held-out demonstration, occurs in full is always left out, and so are pairs whose
    prompt `data.exclude` lists.
    """
    pairs, running = of_data(data, "documents"), of_data(data, "documents", exact="drop")
    for row in data.jsonl("demonstrations.jsonl"):
        if row["split"] == "eval":
            running.held_out.add(row["completion"])
    excluded = excluded_groups(data)
    hints = {REASONS["near"]: HINTS["near"], exclusion.REASON: exclusion.HINT}
    left_out = LeftOut("documents", "corpus_", "base.pretrain.corpus", None, hints=hints)
    kept = []
    with ctx.progress("reading base.pretrain.corpus") as bar:
        for number, document in enumerate(documents, 1):
            *prompts, text = document
            check = pairs if prompts else running
            messages = [{"role": "user", "content": prompt} for prompt in prompts]
            left_out.read += 1
            bar.advance()
            if messages and group_of(messages) in excluded:
                left_out.counts[exclusion.REASON] += 1
                continue
            kind = check.find(number, *text_of(messages, [text]))
            if kind is None:
                kept.append(document)
            else:
                left_out.counts[REASONS[kind]] += 1
    left_out.report(ctx.say)
    if not kept:
        raise left_out.error(ctx.describe, "base.pretrain.corpus", "add documents to the corpus")
    for check in (pairs, running):
        if warning := check.warning():
            ctx.say(warning)
    return kept, {**left_out.metrics(), **(pairs.metrics() or running.metrics())}


def _answers(row: Mapping[str, Any]) -> Sequence[str]:
    return row.get("completions") or [row.get("completion", "")]
