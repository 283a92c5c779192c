"""The `data` stage: demonstrations, prompts and rankings, split by prompt group and checked.

1. Read or generate the demonstrations; read the extra prompts and the rankings. Rows are streamed; no table is held
   in memory.
2. Prepend the system message, and assign every prompt group to a split.
3. Check that every row is in the split of its prompt group, across tables.
4. Count duplicates, and drop them if the recipe says so (`data.duplicates`).
5. Write demonstrations.jsonl, prompts.jsonl (each distinct prompt once, with its first row), rankings.jsonl and
   dropped.jsonl (for each table the first rows that were dropped or shortened, with row number, or line number in
   text files, and reason); duplicates.jsonl has examples.
6. Look for held-out prompts in the training rows (`stages.contamination`).
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from data.contamination import conversation
from data.duplicates import HINTS, REASONS, Duplicates, NearAnswers, duplicates
from data.held_out import EVALUATED, RANKED, too_few
from data.schema import (
    Demonstration,
    Prompt,
    Ranking,
    Split,
    as_line,
    prompt_key,
    read_rankings_file,
    row_number,
    write_jsonl,
)
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
from pipeline.config.data import DataConfig, RankingTableConfig, TaskConfig, rankings_path
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import DataError
from stages import contamination, criteria

Text = TypeVar("Text", Demonstration, Prompt, Ranking)


def run(config: DataConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes the artifact. Returns counts by split, counts of dropped rows, and statistics of the rankings.

    `dropped_demonstrations`, `dropped_prompts` and `dropped_rankings` count dropped rows, `dropped_completions` the
    answers dropped from rankings that stay. Each is the sum over its reasons, such as `dropped_rankings/empty
    prompt`. `duplicate_<table>/<kind>` and `contaminated_<table>/<kind>` count rows that stay, of the kinds `exact`
    and `near`. `first_wins` is the share of strict pairs whose first answer is better.

    With several criteria, what is counted of rankings is counted for all of them together, and for each with its
    name before it: `quality/rankings_train`.
    """
    held_out = config.eval_fraction
    tables: dict[str, Any] = {
        "demonstrations": None if isinstance(config.demonstrations, TaskConfig) else config.demonstrations,
        "prompts": config.prompts,
    }
    rankings_of = {criterion: _name(criterion) for criterion in config.ranking_tables}  # -> the table's name below
    tables |= {rankings_of[criterion]: table for criterion, table in config.ranking_tables.items()}
    generated = frozenset() if tables["demonstrations"] else frozenset({"demonstrations"})
    readings = {name: Reading(f"data.{name}", table) for name, table in tables.items()}
    dropped = {name: reading.dropped for name, reading in readings.items()}
    statistics = Statistics(config)
    own_system = 0  # rows that already have a system message
    rows: dict[str, array[int]] = {"demonstrations": array("q"), "rankings": array("q")}
    near_answers = NearAnswers(config.duplicates)
    with ExitStack() as opened:
        seen_prompts = opened.enter_context(seen())
        repeated, repeated_prompts = (
            opened.enter_context(duplicates(config.duplicates, table)) for table in ("demonstrations", "prompts")
        )
        distinct = opened.enter_context((out_dir / "prompts.jsonl").open("w", encoding="utf-8"))
        prompts: Counter[str] = Counter()

        def drop(table: str, row: int, reason: str, hint: str) -> None:
            dropped[table].add(reason, row, hint)
            readings[table].kept -= 1

        def is_dropped(table: str, finder: Duplicates, row: int, split: Split, texts: Sequence[str]) -> bool:
            duplicate = None if table in generated else finder.find(row, split, texts)
            if duplicate is None or not finder.drops(duplicate):
                return False
            if table == finder.table:
                drop(table, row, REASONS[duplicate.kind], HINTS[duplicate.kind])
            return True

        def passing(read: Iterable[Text], table: str, source: str = "") -> Iterator[Text]:
            """Yields the rows to write, and writes each new prompt to prompts.jsonl. `source`: the name of the
            recipe's table, where it is not `table`, what the rows are."""
            nonlocal own_system
            source = source or table
            with ctx.progress(f"reading {source}") as bar:
                dropped[source].on_read = lambda number: bar.advance(0, read=number)
                for as_read in readings[source].passing(read, ctx.describe):
                    row = replace(as_read, prompt=with_system(as_read.prompt, config.system))
                    own_system += config.system is not None and row.prompt[0]["content"] != config.system
                    check_split(row, held_out)
                    number, text = row_number(row.where), conversation(row.prompt)
                    if isinstance(row, Demonstration) and is_dropped(
                        table, repeated, number, row.split, (text, row.completion)
                    ):
                        continue
                    if seen_prompts.first(prompt_key(row.prompt)) and not is_dropped(
                        table, repeated_prompts, number, row.split, (text,)
                    ):
                        distinct.write(as_line(_distinct(row, source)))
                        prompts[row.split] += 1
                    if table in rows:
                        rows[table].append(number)
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
        if config.rankings:

            def prepared(read: Iterable[Ranking], criterion: str | None, out: Dropped) -> Iterator[Ranking]:
                for row in read:
                    split = split_of_prompt(row.prompt, held_out)
                    ranking = replace(row, split=split, criterion=criterion)
                    kept = _without_near_answers(ranking, near_answers, out)
                    if kept is not None:
                        statistics.add(kept)
                        yield kept

            def ranked() -> Iterator[Ranking]:
                for criterion, table in config.ranking_tables.items():
                    reading = readings[rankings_of[criterion]]
                    reading.repeats = opened.enter_context(repeats(reading.name, table, reading.profile))
                    read = read_rankings(table, reading.dropped, ctx.say, reading.repeats)
                    yield from passing(
                        prepared(read, criterion, reading.dropped), "rankings", rankings_of[criterion]
                    )

            rankings = _write(out_dir / "rankings.jsonl", ranked())
            if config.criteria:
                criteria.write(out_dir, config.criteria)
        finders: list[NearAnswers | Duplicates] = [near_answers, repeated, repeated_prompts]
        write_jsonl(out_dir / "duplicates.jsonl", (example for finder in finders for example in finder.examples))
        duplicate: Metrics = {
            f"duplicate_{finder.table}/{kind}": count
            for finder in finders
            for kind, count in finder.kept().items()
            if count
        }
        repeated_lines = [line for finder in finders if (line := finder.describe())]

    counts = {"demonstrations": demonstrations, "prompts": prompts, "rankings": rankings}

    def dropped_row(table: str, row: int, kind: contamination.Kind, content: Mapping[str, Any]) -> None:
        counts[table][content["split"]] -= 1
        if table != "prompts" or content["table"] == "prompts":
            source = rankings_of[content.get("criterion")] if table == "rankings" else table
            drop(source, row, contamination.REASONS[kind], contamination.HINTS[kind])

    checks = contamination.check_tables(out_dir, config.contamination, rows, generated, ctx, dropped_row)
    if config.rankings and any(check.dropped and check.table == "rankings" for check in checks):
        statistics = Statistics(config)
        for ranking in read_rankings_file(out_dir / "rankings.jsonl"):
            statistics.add(ranking)
    for line in chain(statistics.lines(), *(reading.lines() for reading in readings.values()), repeated_lines):
        ctx.say(line)
    learned = None if config.demonstrations is None else demonstrations
    _check_sizes(learned, prompts, held_out, dropped["demonstrations"], ctx)
    for warning in (too_few(prompts["eval"], EVALUATED), *statistics.warnings()):
        if warning:
            ctx.say(f"warning: {warning}")
    if own_system:
        ctx.say(f"{own_system:,} rows keep their own system message instead of data.system")
    write_jsonl(out_dir / "dropped.jsonl", _places(dropped))
    by_criterion = {criterion: dropped[rankings_of[criterion]] for criterion in rankings_of}
    whole = {name: out for name, out in dropped.items() if name not in rankings_of.values()}
    whole["rankings"] = _together(by_criterion.values())
    metrics: Metrics = {
        **{f"source_{name}": table.path for name, table in tables.items() if table},
        **_by_split("demonstrations", demonstrations),
        **_by_split("prompts", prompts),
        **{f"read_{table}": out.read for table, out in whole.items() if out.read},
        **{f"dropped_{table}": out.rows_out.total() for table, out in whole.items()},
        **_by_reason({table: out.rows_out for table, out in whole.items()}),
        **duplicate,
        **{name: value for check in checks for name, value in check.metrics().items()},
    }
    if config.system is not None:
        metrics["own_system_message"] = own_system
    if config.rankings:
        metrics |= {**_by_split("rankings", rankings), **_left_out(whole["rankings"]), **statistics.all.metrics()}
        metrics |= criteria.prefixed(
            {
                name: {
                    "read_rankings": out.read,
                    "dropped_rankings": out.rows_out.total(),
                    **_by_reason({"rankings": out.rows_out}),
                    **_by_split("rankings", statistics.parts[name].splits),
                    **_left_out(out),
                    **statistics.parts[name].metrics(),
                }
                for name, out in by_criterion.items()
                if name is not None
            }
        )
    return metrics


def _name(criterion: str | None) -> str:
    """The name of a table of rankings in metrics and dropped.jsonl: its path below `data`."""
    return rankings_path(criterion).removeprefix("data.")


def _together(parts: Iterable[Dropped]) -> Dropped:
    """The counts of several tables."""
    whole = Dropped()
    for out in parts:
        whole.read += out.read
        whole.rows_out += out.rows_out
        whole.completions_out += out.completions_out
    return whole


def _left_out(dropped: Dropped) -> Metrics:
    """What is left out of rankings that stay."""
    completions = dropped.completions_out
    return {"dropped_completions": completions.total(), **_by_reason({"completions": completions})}


class Statistics:
    """Counts of all rankings that are written and, with several criteria, of those of each."""

    def __init__(self, config: DataConfig) -> None:
        tables = config.ranking_tables
        self.all = RankingStatistics(tables.get(None))
        self.parts = {
            name: RankingStatistics(table, rankings_path(name))
            for name, table in tables.items()
            if name is not None
        }
        self.there = bool(tables)

    def add(self, row: Ranking) -> None:
        self.all.add(row)
        if row.criterion is not None:
            self.parts[row.criterion].add(row)

    def lines(self) -> Iterator[str]:
        for part in (self.all, *self.parts.values()):
            yield from part.pairs.lines()

    def warnings(self) -> Iterator[str]:
        """Warnings about too few held-out prompts with rankings."""
        if self.there and not self.parts:
            yield too_few(len(self.all.ranked), RANKED)
        for name, part in self.parts.items():
            if warning := too_few(len(part.ranked), RANKED):
                yield f"{name}: {warning}"


class RankingStatistics:
    """Counts of the rankings that are written. `ranked`: the held-out prompts with rankings."""

    def __init__(self, table: RankingTableConfig | None, name: str = "data.rankings") -> None:
        self.pairs = FirstWins(table, name)
        self.splits: Counter[str] = Counter()
        self.sizes: Counter[int] = Counter()
        self.annotators: set[str] = set()
        self.ranked: set[str] = set()
        self.human = True

    def add(self, row: Ranking) -> None:
        self.splits[row.split] += 1
        self.sizes[len(row.completions)] += 1
        self.annotators.add(row.annotator)
        self.human = self.human and row.human
        self.pairs.add(row)
        if row.split == "eval":
            self.ranked.add(prompt_key(row.prompt))

    def metrics(self) -> Metrics:
        return {
            "ranked_prompts_eval": len(self.ranked),
            **self.pairs.metrics(),
            **{f"rankings_of_{k}": count for k, count in sorted(self.sizes.items())},
            "annotators": len(self.annotators),
            "human": self.human,
        }


def _without_near_answers(row: Ranking, answers: NearAnswers, dropped: Dropped) -> Ranking | None:
    """The ranking without the near-duplicate answers that the recipe drops; None if fewer than two are left."""
    places = answers.find(row_number(row.where), row.split, row.completions)
    if not places:
        return row
    kept = [place for place in range(len(row.completions)) if place not in places]
    dropped.add_completions([REASONS["near"]] * len(places), row_number(row.where), kept=len(kept) >= 2)
    dropped.hints.setdefault(REASONS["near"], HINTS["near"])
    if len(kept) < 2:
        dropped.add("fewer than 2 completions left", row_number(row.where))
        return None
    return row.only(kept)


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
    line = {"prompt": row.prompt, "split": row.split, "table": table, "row": row_number(row.where)}
    return line | ({"metadata": row.metadata} if isinstance(row, Prompt) and row.metadata else {})


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
