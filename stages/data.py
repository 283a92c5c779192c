"""The `data` stage: demonstrations, prompts and rankings, split by prompt group and checked.

1. Read or generate the demonstrations; read the extra prompts and the rankings. Rows are streamed; no table is held
   in memory.
2. Prepend the system message, and assign every prompt group to a split.
3. Check that every row is in the split of its prompt group, across tables.
4. Write demonstrations.jsonl, prompts.jsonl (each distinct prompt once, with its first row), rankings.jsonl and
   dropped.jsonl (for each table the first rows that were dropped or shortened, with row number, or line number in
   text files, and reason).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from data.held_out import EVALUATED, RANKED, too_few
from data.schema import Demonstration, Prompt, Ranking, as_line, prompt_key, write_jsonl
from data.splits import check_split, split_of_prompt
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.first_wins import FirstWins
from data.tables.messages import with_system
from data.tables.rankings import read_rankings
from data.tables.reading import Reading
from data.tables.repeats import repeats
from data.tables.sources import Dropped
from data.tables.spill import seen
from data.venues import task as venues
from pipeline.config.data import DataConfig, TaskConfig
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import DataError

Text = TypeVar("Text", Demonstration, Prompt, Ranking)


def run(config: DataConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes the artifact. Returns counts by split, counts of dropped rows, and statistics of the rankings.

    `dropped_demonstrations`, `dropped_prompts` and `dropped_rankings` count dropped rows, `dropped_completions` the
    answers dropped from rankings that stay. Each is the sum over its reasons, such as `dropped_rankings/empty
    prompt`. `first_wins` is the share of strict pairs whose first answer is better.
    """
    held_out = config.eval_fraction
    tables: dict[str, Any] = {
        "demonstrations": None if isinstance(config.demonstrations, TaskConfig) else config.demonstrations,
        "prompts": config.prompts,
        "rankings": config.rankings,
    }
    readings = {name: Reading(f"data.{name}", table) for name, table in tables.items()}
    dropped = {name: reading.dropped for name, reading in readings.items()}
    sizes: Counter[int] = Counter()
    annotators: set[str] = set()
    human = True
    own_system = 0  # rows that already have a system message
    pairs = FirstWins(config.rankings)
    with ExitStack() as opened:
        seen_prompts = opened.enter_context(seen())
        distinct = opened.enter_context((out_dir / "prompts.jsonl").open("w", encoding="utf-8"))
        prompts: Counter[str] = Counter()

        def passing(rows: Iterable[Text], table: str) -> Iterator[Text]:
            """Yields the rows to write, and writes each new prompt to prompts.jsonl."""
            nonlocal own_system
            with ctx.progress(f"reading {table}") as bar:
                dropped[table].on_read = lambda number: bar.advance(0, read=number)
                for read in readings[table].passing(rows, ctx.describe):
                    row = replace(read, prompt=with_system(read.prompt, config.system))
                    own_system += config.system is not None and row.prompt[0]["content"] != config.system
                    check_split(row, held_out)
                    if seen_prompts.first(prompt_key(row.prompt)):
                        distinct.write(as_line(_distinct(row, table)))
                        prompts[row.split] += 1
                    yield row
                    bar.advance()

        demonstrations = _write(
            out_dir / "demonstrations.jsonl",
            passing(_demonstrations(config, dropped["demonstrations"], ctx), "demonstrations"),
        )
        if config.prompts:
            extra = read_prompts(config.prompts, held_out, dropped["prompts"], ctx.say)
            for _ in passing(extra, "prompts"):
                pass
        rankings: Counter[str] = Counter()
        ranked: set[str] = set()  # held-out prompts with rankings
        if config.rankings:

            def counted(rows: Iterable[Ranking]) -> Iterator[Ranking]:
                nonlocal human
                for row in rows:
                    sizes[len(row.completions)] += 1
                    annotators.add(row.annotator)
                    human = human and row.human
                    pairs.add(row)
                    split = split_of_prompt(row.prompt, held_out)
                    if split == "eval":
                        ranked.add(prompt_key(row.prompt))
                    yield replace(row, split=split)

            reading = readings["rankings"]
            reading.repeats = opened.enter_context(repeats(reading.name, config.rankings, reading.profile))
            table = read_rankings(config.rankings, reading.dropped, ctx.say, reading.repeats)
            rankings = _write(out_dir / "rankings.jsonl", passing(counted(table), "rankings"))
    for line in chain(pairs.lines(), *(reading.lines() for reading in readings.values())):
        ctx.say(line)
    learned = None if config.demonstrations is None else demonstrations
    _check_sizes(learned, prompts, held_out, dropped["demonstrations"], ctx)
    for warning in (too_few(prompts["eval"], EVALUATED), config.rankings and too_few(len(ranked), RANKED)):
        if warning:
            ctx.say(f"warning: {warning}")
    if own_system:
        ctx.say(f"{own_system:,} rows keep their own system message instead of data.system")
    write_jsonl(out_dir / "dropped.jsonl", _places(dropped))
    metrics: Metrics = {
        **{f"source_{name}": table.path for name, table in tables.items() if table},
        **_by_split("demonstrations", demonstrations),
        **_by_split("prompts", prompts),
        **{f"read_{table}": rows.read for table, rows in dropped.items() if rows.read},
        **{f"dropped_{table}": rows.rows_out.total() for table, rows in dropped.items()},
        **_by_reason({table: rows.rows_out for table, rows in dropped.items()}),
    }
    if config.system is not None:
        metrics["own_system_message"] = own_system
    if config.rankings:
        completions = dropped["rankings"].completions_out
        metrics |= {
            **_by_split("rankings", rankings),
            "ranked_prompts_eval": len(ranked),
            "dropped_completions": completions.total(),
            **_by_reason({"completions": completions}),
            **pairs.metrics(),
            **{f"rankings_of_{k}": count for k, count in sorted(sizes.items())},
            "annotators": len(annotators),
            "human": human,
        }
    return metrics


def _demonstrations(config: DataConfig, dropped: Dropped, ctx: RunContext) -> Iterable[Demonstration]:
    source = config.demonstrations
    if source is None:
        return ()
    if isinstance(source, TaskConfig):
        return venues.demonstrations(source, ctx.seed, config.eval_fraction)
    return read_demonstrations(source, config.eval_fraction, dropped, ctx.say)


def _write(path: Path, rows: Iterable[Demonstration | Ranking]) -> Counter[str]:
    """Writes the rows. Returns their number by split."""
    counts: Counter[str] = Counter()
    with path.open("w", encoding="utf-8") as out:
        for row in rows:
            # Without `where`: the artifact's content must not depend on the path of its source.
            out.write(as_line(replace(row, where="")))
            counts[row.split] += 1
    return counts


def _by_reason(dropped: Mapping[str, Counter[str]]) -> dict[str, int]:
    return {
        f"dropped_{name}/{reason}": count
        for name, counts in dropped.items()
        for reason, count in sorted(counts.items())
        if count
    }


def _distinct(row: Demonstration | Prompt | Ranking, table: str) -> dict[str, Any]:
    """A line of prompts.jsonl. Its `row` is the number of the first row with this prompt, 0 for generated data."""
    numbers = re.findall(r"\d+", row.where)
    return {
        "prompt": row.prompt,
        "split": row.split,
        "table": table,
        "row": int(numbers[-1]) if numbers else 0,
    }


def _places(dropped: Mapping[str, Dropped]) -> Iterator[dict[str, str | int]]:
    """Lines of dropped.jsonl. They omit the table's path, so that moving the file does not change the artifact."""
    for table, rows in dropped.items():
        for row, reason in rows.places:
            yield {"table": table, "row": row, "reason": reason}


def _check_sizes(
    demonstrations: Counter[str] | None,
    prompts: Counter[str],
    held_out: float,
    dropped: Dropped,
    ctx: RunContext,
) -> None:
    """`demonstrations` is None where the recipe has none."""
    if demonstrations is not None and not demonstrations.total():
        raise DataError(
            f"no demonstration is left: {dropped.reasons()}",
            where=ctx.describe("data.demonstrations"),
            hint=dropped.hint() or "add demonstrations with non-empty prompts and completions",
        )
    rows, name = (prompts, "prompts") if demonstrations is None else (demonstrations, "demonstrations")
    if not rows["train"]:
        reasons = f"; left out: {dropped.reasons()}" if dropped.counts else ""
        raise DataError(
            f"all {rows.total()} {name} are held out, none is left to train on{reasons}",
            where="data.eval_fraction",
            hint=f"add {name}, or lower data.eval_fraction",
        )
    if held_out > 0 and not prompts["eval"]:
        raise DataError(
            f"none of the {prompts.total()} prompts is held out at data.eval_fraction {held_out:g}",
            where="data.eval_fraction",
            hint="add prompts, or raise data.eval_fraction",
        )


def _by_split(table: str, counts: Mapping[str, int]) -> dict[str, int]:
    return {f"{table}_{split}": counts.get(split, 0) for split in ("train", "eval")}
