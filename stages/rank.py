"""The `rank` stage: copies existing rankings, or has people or simulated annotators rank the collected answers.
Rankings by several criteria are separated (stages/criteria.py), and measured apart.

It measures the agreement of the annotators, which bounds the accuracy of a reward model; each annotator's
consistency, biases and weight; and the strength of each model that wrote answers (data/annotators/measures.py).
Large sets of rankings are measured on a sample of the prompts.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from itertools import cycle, islice
from pathlib import Path

from data.annotators.measures import measure_annotators, steps
from data.schema import Ranking, as_line, prompt_key, ranks_from_scores, read_rankings_file, write_jsonl
from data.tables.first_wins import FirstWins
from data.tables.summary import RankingSummary, summary
from data.venues import task as venues
from pipeline.config.rank import RankConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import RANKINGS_DATABASE, Artifact, Metrics, RunContext
from pipeline.errors import DataError, RecipeError, StageError
from pipeline.files import jsonable
from stages import criteria
from stages.artifacts import AGREEMENT, MERGED, RANKINGS, merged_file
from stages.left_out import LeftOut

ALL_THE_SAME, NOT_RANKED = "all answers are the same", "not ranked"


def run(config: RankConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes rankings.jsonl, agreement.json and, if the `data` stage merged annotators, merged_rankings.jsonl; with
    several criteria, a folder with these for each."""
    path = out_dir / RANKINGS
    if config.source == "data":
        data = inputs["data"]
        if names := criteria.criteria_of(data):
            return _by_criterion(names, data, out_dir, ctx)
        shutil.copyfile(data.file(RANKINGS), path)
        if consensus := merged_file(data):
            shutil.copyfile(consensus, out_dir / f"{MERGED}.jsonl")
        return _measure(path, data.path, _first_wins(data.metrics), ctx)[1]
    unranked: LeftOut | None = None
    if config.source == "app":
        ranked, unranked = ask(config, newest(inputs, "collect"), ctx)
        write_jsonl(path, ranked)
        unranked.report(ctx.say)
    else:
        write_jsonl(path, simulate(config, newest(inputs, "collect"), ctx))
    _, metrics = _measure(path, path.parent, FirstWins(""), ctx)
    return metrics | (unranked.metrics() if unranked else {})


def _by_criterion(names: Sequence[str], data: Artifact, out_dir: Path, ctx: RunContext) -> Metrics:
    for name in names:
        (out_dir / name).mkdir()
    _divide(data.file(RANKINGS), {name: out_dir / name / RANKINGS for name in names})
    if consensus := merged_file(data):
        merging = [name for name in names if f"{name}/{MERGED}_train" in data.metrics]
        _divide(consensus, {name: out_dir / name / f"{MERGED}.jsonl" for name in merging})
    criteria.write(out_dir, names)
    figures, parts = {}, {}
    for name in names:
        ctx.say(f"criterion {name}:")
        first = _first_wins(data.metrics, name)
        figures[name], parts[name] = _measure(out_dir / name / RANKINGS, data.path, first, ctx)
    merged = sum(metrics.get(MERGED, 0) for metrics in parts.values())
    return {
        "rankings": sum(own.rankings for own in figures.values()),
        "annotators": len(set().union(*(own.sample.annotators for own in figures.values()))),
        "human": all(metrics["human"] for metrics in parts.values()),
        **({MERGED: merged} if merged else {}),
        **criteria.prefixed(parts),
    }


def _divide(source: Path, files: Mapping[str, Path]) -> None:
    """Writes the rankings in a file to a file for each criterion."""
    with ExitStack() as opened:
        out = {name: opened.enter_context(path.open("w", encoding="utf-8")) for name, path in files.items()}
        for ranking in read_rankings_file(source):
            out[str(ranking.criterion)].write(as_line(ranking))


def _measure(path: Path, where: Path, first: FirstWins, ctx: RunContext) -> tuple[RankingSummary, Metrics]:
    """Measures the rankings in a file, and writes agreement.json beside it.

    Args:
        path: the rankings by single annotators. Those that merge annotators are beside it, if there are any.
        where: where rankings should come from, for the error if there are none.
        first: counts first answers in the order of the table.
    """
    consensus = path.parent / f"{MERGED}.jsonl"
    merged = [ranking.human for ranking in read_rankings_file(consensus)] if consensus.is_file() else []
    with summary(first) as figures, ctx.progress("reading rankings") as bar:
        for ranking in read_rankings_file(path):
            figures.add(ranking)
            bar.advance()
    sample = figures.sample
    if not sample.rankings and not merged:
        raise DataError(
            "rank: there are no rankings",
            where=str(where),
            hint="look in the data stage’s dropped.jsonl for the reasons, or set rank.source",
        )
    for line in figures.lines("rank"):
        ctx.say(line)
    ctx.say(f"measuring {sample.kept} of {sample.rankings} rankings")
    with ctx.progress("rank: measures", total=steps(sample)) as bar:
        measured = measure_annotators(sample, seed=ctx.seed, advance=bar.advance)
    text = json.dumps(jsonable(measured), indent=1, ensure_ascii=False)
    (path.parent / AGREEMENT).write_text(text, encoding="utf-8")
    agreed = measured["pairwise"]
    return figures, {
        **figures.metrics(),
        "rankings": sample.rankings,
        "agreement": agreed["value"],
        "agreement_low": agreed["low"],
        "agreement_high": agreed["high"],
        "agreement_pairs": agreed["pairs"],
        "predicted_by_others": measured["by_others"]["value"],
        "alpha": measured["alpha"],
        "tau": measured["tau"]["value"],
        "self_consistency": measured["self_consistency"]["value"],
        "first_shown": measured["first_shown"]["value"],
        "longer": measured["longer"]["value"],
        "measured_on": sample.kept,
        "human": sample.human and all(merged),
        **({MERGED: len(merged)} if merged else {}),
    }


def _first_wins(data: Metrics, criterion: str | None = None) -> FirstWins:
    """Counts first answers where the rankings are from a table whose order says nothing about who wins.

    Args:
        data: the metrics of the `data` stage.
    """
    prefix = "" if criterion is None else f"{criterion}/"
    return FirstWins(data[f"source_{criteria.table_name(criterion)}"] if f"{prefix}first_wins" in data else "")


def ask(config: RankConfig, collected: Artifact, ctx: RunContext) -> tuple[list[Ranking], LeftOut]:
    """Serves the ranking web page until people have ranked all answers or the admin ends the campaign.

    Earlier rankings of the same answers are included. Returns the rankings, and the prompts without one.

    Raises `StageError` if there is no ranking.
    """
    from ranking.campaign import Campaign
    from ranking.export import rankings
    from ranking.items import collected as sources
    from ranking.serve import collect_rankings

    answers = sources(collected.jsonl("answers.jsonl"))
    campaign = Campaign.of("rank", answers, config.app, ctx.recipe_dir.name)
    (ctx.state_dir / "asked").touch()  # marks a stopped run as one to resume
    database = ctx.recipe_dir / RANKINGS_DATABASE
    store = collect_rankings(database, campaign, config.app, say=ctx.say)
    try:
        ranked = list(rankings(store, campaign))
    finally:
        store.close()
    if not ranked:
        raise StageError(
            "there are no rankings: all items were skipped",
            where=str(database),
            hint="add annotators to rank.app.annotators, or rank the skipped items",
        )
    prompts = {prompt_key(ranking.prompt) for ranking in ranked}
    unranked = LeftOut("prompts", "collected_", "rank.app", None, hints={NOT_RANKED: "rank them on the page"})
    for source in campaign.sources:
        unranked.read += 1
        if source.item is None:
            unranked.counts[ALL_THE_SAME] += 1
        elif prompt_key(source.prompt) not in prompts:
            unranked.counts[NOT_RANKED] += 1
    return ranked, unranked


def simulate(config: RankConfig, collected: Artifact, ctx: RunContext) -> Iterator[Ranking]:
    """Simulates rankings: `annotators_per_prompt` of the annotators, in rotation, rank each prompt's answers.

    Raises `RecipeError` if `annotators_per_prompt` is out of range.
    """
    if not 1 <= config.annotators_per_prompt <= len(config.annotators):
        raise RecipeError(
            f"rank.annotators_per_prompt must be from 1 to {len(config.annotators)}, the number of annotators, "
            f"got {config.annotators_per_prompt}",
            where=ctx.describe("rank.annotators_per_prompt"),
            hint="add annotators to rank.annotators, or lower rank.annotators_per_prompt",
        )
    rng = random.Random(f"rank {ctx.seed}")
    annotators = list(config.annotators)
    rng.shuffle(annotators)
    turns = cycle(annotators)
    for row in collected.jsonl("answers.jsonl"):
        for annotator in islice(turns, config.annotators_per_prompt):
            utilities = venues.annotate(annotator, row["prompt"], row["completions"], rng)
            yield Ranking(
                prompt=row["prompt"],
                completions=row["completions"],
                ranks=ranks_from_scores(utilities, tie=annotator.tie),
                annotator=annotator.name,
                human=False,
                ratings=utilities,
                split=row["split"],
            )
