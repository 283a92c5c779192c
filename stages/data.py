"""The `data` stage: demonstrations, prompts and rankings, split by prompt group and checked.

1. Read or generate the demonstrations; read the extra prompts and the rankings. Rows are streamed; no table is held
   in memory.
2. Prepend the system message, and assign every prompt group to a split.
3. Check that every row is in the split of its prompt group, across tables.
4. Count duplicates, and drop them if the recipe says so (`data.duplicates`).
5. Write demonstrations.jsonl, prompts.jsonl (each distinct prompt once, with its first row) and dropped.jsonl (for
   each table the first rows that were dropped or shortened, with row number, or line number in text files, and
   reason); duplicates.jsonl has examples. Where the recipe has them: rankings.jsonl, criteria.json
   (`stages.criteria`), eval_rankings.jsonl (`stages.transfer`) and excluded.jsonl (the groups of `data.exclude`).
6. Look for held-out prompts in the training rows (`stages.contamination`), and for those of eval_rankings.jsonl.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

from data.contamination import conversation
from data.duplicates import HINTS, REASONS, Duplicates, NearAnswers, duplicates
from data.exclusion import read_excluded
from data.held_out import EVALUATED, too_few
from data.schema import (
    Demonstration,
    MergedRanking,
    Prompt,
    Ranking,
    Split,
    as_line,
    prompt_key,
    row_number,
    write_jsonl,
)
from data.splits import check_split, split_of_prompt
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.messages import with_system
from data.tables.rankings import read_rankings
from data.tables.reading import Reading
from data.tables.repeats import repeats
from data.tables.sources import Dropped
from data.tables.spill import seen
from data.tables.summary import read_line
from data.venues import task as venues
from pipeline.config.data import DataConfig, RankingTableConfig, TaskConfig
from pipeline.config.table_files import shown
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import DataError
from stages import contamination, criteria
from stages.artifacts import EXCLUDED, MERGED, RANKINGS
from stages.ranking_counts import by_split, counts
from stages.transfer import FILE, EvalRankings

Text = TypeVar("Text", Demonstration, Prompt, Ranking)


def run(config: DataConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes the artifact. Returns counts by split, counts of dropped rows, and statistics of the rankings.

    `dropped_demonstrations`, `dropped_prompts` and `dropped_rankings` count dropped rows, `dropped_completions` the
    answers dropped from rankings that stay. Each is the sum over its reasons, such as `dropped_rankings/empty
    prompt`. `duplicate_<table>/<kind>` and `contaminated_<table>/<kind>` count rows that stay, of the kinds `exact`
    and `near`. The statistics of the rankings are those of `RankingSummary.metrics`.

    With several criteria, what is counted of rankings is counted for each with its name before it
    (`quality/rankings_train`), and what has a sum for all of them together.
    """
    held_out = config.eval_fraction
    tables: dict[str, Any] = {
        "demonstrations": None if isinstance(config.demonstrations, TaskConfig) else config.demonstrations,
        "prompts": config.prompts,
        **{criteria.table_name(criterion): table for criterion, table in config.ranking_tables.items()},
        "eval_rankings": config.eval_rankings,
    }
    generated = frozenset() if tables["demonstrations"] else frozenset({"demonstrations"})
    readings = {name: Reading(f"data.{name}", table) for name, table in tables.items()}
    dropped = {name: reading.dropped for name, reading in readings.items()}
    excluded = read_excluded(config.exclusions, ctx.describe, ctx.say)
    transfer = EvalRankings()
    own_system = 0  # rows that already have a system message
    rows: dict[str, array[int]] = {"demonstrations": array("q"), "rankings": array("q")}
    near_answers = NearAnswers(config.duplicates)
    merging = [criterion for criterion, table in config.ranking_tables.items() if table.consensus != "none"]
    if merging:
        rows[MERGED] = array("q")
        dropped |= {criteria.table_name(criterion, MERGED): Dropped() for criterion in merging}
    with ExitStack() as opened:
        seen_prompts = opened.enter_context(seen())
        counted = opened.enter_context(counts(config))
        repeated, repeated_prompts = (
            opened.enter_context(duplicates(config.duplicates, table)) for table in ("demonstrations", "prompts")
        )
        distinct = opened.enter_context((out_dir / "prompts.jsonl").open("w", encoding="utf-8"))
        prompts: Counter[str] = Counter()

        def drop(table: str, row: int, reason: str, hint: str) -> None:
            dropped[table].add(reason, row, hint)
            if table in readings:
                readings[table].kept -= 1

        def wanted(read: Iterable[Text], table: str) -> Iterator[Text]:
            return excluded.left(read, dropped[table])

        def rankings_of(table: str, source: RankingTableConfig) -> Iterator[Ranking]:
            reading = readings[table]
            reading.repeats = opened.enter_context(repeats(reading.name, source, reading.profile))
            return read_rankings(source, reading.dropped, ctx.say, reading.repeats)

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
                    is_merged = isinstance(as_read, MergedRanking)
                    readings[source].kept -= is_merged
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
                        rows[MERGED if is_merged else table].append(number)
                    yield row
                    bar.advance()

        demonstrations = _write(
            out_dir / "demonstrations.jsonl",
            passing(
                wanted(_demonstrations(config, dropped["demonstrations"], ctx), "demonstrations"), "demonstrations"
            ),
        )
        if config.prompts:
            extra = read_prompts(config.prompts, held_out, dropped["prompts"], ctx.say)
            for _ in passing(wanted(extra, "prompts"), "prompts"):
                pass
        if config.rankings:

            def prepared(read: Iterable[Ranking], criterion: str | None) -> Iterator[Ranking]:
                for row in wanted(read, criteria.table_name(criterion)):
                    split = split_of_prompt(row.prompt, held_out)
                    is_merged = isinstance(row, MergedRanking)
                    near = NearAnswers(config.duplicates) if is_merged else near_answers
                    out = dropped[criteria.table_name(criterion, MERGED if is_merged else "rankings")]
                    ranking = _without_near_answers(replace(row, split=split, criterion=criterion), near, out)
                    if ranking is not None:
                        counted.add(ranking)
                        yield ranking

            def ranked() -> Iterator[Ranking]:
                for criterion, table in config.ranking_tables.items():
                    name = criteria.table_name(criterion)
                    yield from passing(prepared(rankings_of(name, table), criterion), "rankings", name)

            single = ranked()
            if merging:
                single = opened.enter_context(_apart(single, out_dir / f"{MERGED}.jsonl"))
            _write(out_dir / RANKINGS, single)
            if config.criteria:
                criteria.write(out_dir, config.criteria)
        if config.eval_rankings:
            with ctx.progress("reading eval_rankings") as bar:
                dropped["eval_rankings"].on_read = lambda number: bar.advance(0, read=number)
                read = wanted(rankings_of("eval_rankings", config.eval_rankings), "eval_rankings")
                transfer.write(out_dir / FILE, readings["eval_rankings"].passing(read, ctx.describe), config.system)
        finders: list[NearAnswers | Duplicates] = [near_answers, repeated, repeated_prompts]
        write_jsonl(out_dir / "duplicates.jsonl", (example for finder in finders for example in finder.examples))
        duplicate: Metrics = {
            f"duplicate_{finder.table}/{kind}": count
            for finder in finders
            for kind, count in finder.kept().items()
            if count
        }
        repeated_lines = [line for finder in finders if (line := finder.describe())]

    by_table = {"demonstrations": demonstrations, "prompts": prompts}

    def dropped_row(table: str, row: int, kind: contamination.Kind, content: Mapping[str, Any]) -> None:
        if table in by_table:
            by_table[table][content["split"]] -= 1
        if table != "prompts" or content["table"] == "prompts":
            source = table if table in by_table else criteria.table_name(content.get("criterion"), table)
            drop(source, row, contamination.REASONS[kind], contamination.HINTS[kind])

    checks = contamination.check_tables(out_dir, config.contamination, rows, generated, ctx, dropped_row)
    if any(check.dropped and check.table in ("rankings", MERGED) for check in checks):
        with counts(config) as counted:
            counted.add_files(out_dir)
    for criterion, of_table in counted.tables.items():
        reading = readings[criteria.table_name(criterion)]
        ctx.say(read_line(reading.name, "rankings", reading.dropped, reading.kept))
        for line in of_table.figures.lines(reading.name, reading.repeats):
            ctx.say(line)
    for line in chain(*(reading.lines() for reading in readings.values()), repeated_lines):
        ctx.say(line)
    trained_on: Metrics = {}
    if config.eval_rankings:
        trained_on, warnings = transfer.trained_on(out_dir, config.contamination, generated)
        for line in warnings:
            ctx.say(line)
    if config.exclude is not None:
        write_jsonl(out_dir / EXCLUDED, ({"group": group} for group in sorted(excluded.groups)))
        ctx.say(
            f"data.exclude: {len(excluded.met):,} of its {len(excluded.groups):,} prompts occur in the tables, and "
            "are left out"
        )
    left = {criteria.table_name(criterion): of_table.total for criterion, of_table in counted.tables.items()}
    for table, count in (left | {"eval_rankings": transfer.count}).items():
        if tables[table] and not count:
            raise DataError(
                f"no ranking of data.{table} is left: {dropped[table].reasons()}",
                where=ctx.describe(f"data.{table}"),
                hint=dropped[table].hint(),
            )
    learned = None if config.demonstrations is None else demonstrations
    _check_sizes(learned, prompts, held_out, dropped["demonstrations"], ctx)
    for warning in (too_few(prompts["eval"], EVALUATED), *counted.warnings()):
        if warning:
            ctx.say(f"warning: {warning}")
    if own_system:
        ctx.say(f"{own_system:,} rows keep their own system message instead of data.system")
    write_jsonl(out_dir / "dropped.jsonl", _places(dropped))
    absent = ("rankings", MERGED) if config.eval_rankings else ("rankings", MERGED, "eval_rankings")
    whole = {table: out for table, out in dropped.items() if not table.startswith(absent)}
    for kind in ("rankings", MERGED) if merging else ("rankings",):
        whole[kind] = _together(out for table, out in dropped.items() if table.partition(".")[0] == kind)
    metrics: Metrics = {
        **{f"source_{name}": shown(table.path) for name, table in tables.items() if table},
        **by_split("demonstrations", demonstrations),
        **by_split("prompts", prompts),
        **_losses(whole),
        **duplicate,
        **{name: value for check in checks for name, value in check.metrics().items()},
    }
    if config.system is not None:
        metrics["own_system_message"] = own_system
    if config.exclude is not None:
        metrics |= {"excluded_prompts": len(excluded.groups), "excluded_prompts_met": len(excluded.met)}
    if config.eval_rankings:
        metrics |= {**transfer.metrics(), **trained_on}
    if config.rankings:
        metrics |= {**_shortened(whole["rankings"]), **counted.metrics()}
    for criterion in config.criteria:
        own = {kind: dropped[name] for kind in whole if (name := criteria.table_name(criterion, kind)) in dropped}
        of_criterion = _losses(own) | _shortened(own["rankings"]) | counted.tables[criterion].metrics()
        metrics |= criteria.prefixed({criterion: of_criterion})
    return metrics


def _together(parts: Iterable[Dropped]) -> Dropped:
    """The counts of several tables."""
    whole = Dropped()
    for out in parts:
        whole.read += out.read
        whole.rows_out += out.rows_out
        whole.completions_out += out.completions_out
    return whole


def _losses(dropped: Mapping[str, Dropped]) -> Metrics:
    """Rows read and left out, by table."""
    return {
        **{f"read_{table}": out.read for table, out in dropped.items() if out.read},
        **{f"dropped_{table}": out.rows_out.total() for table, out in dropped.items()},
        **_by_reason({table: out.rows_out for table, out in dropped.items()}),
    }


def _shortened(dropped: Dropped) -> Metrics:
    """What is left out of rankings that stay."""
    completions = dropped.completions_out
    return {"dropped_completions": completions.total(), **_by_reason({"completions": completions})}


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


@contextmanager
def _apart(rankings: Iterable[Ranking], path: Path) -> Iterator[Iterator[Ranking]]:
    """The rankings of single annotators. Merged ones are written to `path`."""
    with path.open("w", encoding="utf-8") as out:

        def single() -> Iterator[Ranking]:
            for ranking in rankings:
                if isinstance(ranking, MergedRanking):
                    out.write(as_line(replace(ranking, where="")))
                else:
                    yield ranking

        yield single()


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
