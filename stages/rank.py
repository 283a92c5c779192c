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
from data.annotators.sample import RankingSample
from data.schema import Ranking, as_line, prompt_key, ranks_from_scores, read_rankings_file, write_jsonl
from data.venues import task as venues
from pipeline.config.rank import RankConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import RANKINGS_DATABASE, Artifact, Metrics, RunContext
from pipeline.errors import DataError, RecipeError, StageError
from pipeline.files import jsonable
from stages import criteria
from stages.artifacts import AGREEMENT, RANKINGS
from stages.left_out import LeftOut

ALL_THE_SAME, NOT_RANKED = "all answers are the same", "not ranked"


def run(config: RankConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes rankings.jsonl and agreement.json; with several criteria, a folder with both for each."""
    path = out_dir / RANKINGS
    names = criteria.criteria_of(inputs["data"]) if config.source == "data" else []
    if names:
        return _by_criterion(names, inputs["data"], out_dir, ctx)
    unranked: LeftOut | None = None
    if config.source == "data":
        shutil.copyfile(inputs["data"].file(RANKINGS), path)
    elif config.source == "app":
        ranked, unranked = ask(config, newest(inputs, "collect"), ctx)
        write_jsonl(path, ranked)
        unranked.report(ctx.say)
    else:
        write_jsonl(path, simulate(config, newest(inputs, "collect"), ctx))
    where = path.parent if config.source != "data" else inputs["data"].path
    _, metrics = _measure(path, where, ctx)
    return metrics | (unranked.metrics() if unranked else {})


def _by_criterion(names: Sequence[str], data: Artifact, out_dir: Path, ctx: RunContext) -> Metrics:
    with ExitStack() as opened:
        files = {}
        for name in names:
            (out_dir / name).mkdir()
            files[name] = opened.enter_context((out_dir / name / RANKINGS).open("w", encoding="utf-8"))
        for ranking in read_rankings_file(data.file(RANKINGS)):
            files[str(ranking.criterion)].write(as_line(ranking))
    criteria.write(out_dir, names)
    samples, parts = {}, {}
    for name in names:
        ctx.say(f"criterion {name}:")
        samples[name], parts[name] = _measure(out_dir / name / RANKINGS, data.path, ctx)
    return {
        "rankings": sum(sample.rankings for sample in samples.values()),
        "annotators": len(set().union(*(sample.annotators for sample in samples.values()))),
        "human": all(sample.human for sample in samples.values()),
        **criteria.prefixed(parts),
    }


def _measure(path: Path, where: Path, ctx: RunContext) -> tuple[RankingSample, Metrics]:
    """Measures the rankings in a file, and writes agreement.json beside it.

    Args:
        where: where rankings should come from, for the error if there are none.
    """
    sample = RankingSample()
    with ctx.progress("reading rankings") as bar:
        for ranking in read_rankings_file(path):
            sample.add(ranking)
            bar.advance()
    if not sample.rankings:
        raise DataError(
            "rank: there are no rankings",
            where=str(where),
            hint="look in the data stage’s dropped.jsonl for the reasons, or set rank.source",
        )
    ctx.say(f"measuring {sample.kept} of {sample.rankings} rankings")
    with ctx.progress("rank: measures", total=steps(sample)) as bar:
        measured = measure_annotators(sample, seed=ctx.seed, advance=bar.advance)
    text = json.dumps(jsonable(measured), indent=1, ensure_ascii=False)
    (path.parent / AGREEMENT).write_text(text, encoding="utf-8")
    agreed = measured["pairwise"]
    return sample, {
        "rankings": sample.rankings,
        "pairs": sample.pairs - sample.ties,
        "tie_share": sample.ties / sample.pairs,
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
        "annotators": len(sample.annotators),
        "human": sample.human,
    }


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
