"""The `rank` stage: copies existing rankings, or has people or simulated annotators rank the collected answers.

It measures the agreement of the annotators, which bounds the accuracy of a reward model; each annotator's
consistency, biases and weight; and the strength of each model that wrote answers (data/annotators/measures.py).
Large sets of rankings are measured on a sample of the prompts.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path

from data.annotators.measures import measure_annotators, steps
from data.schema import Ranking, prompt_key, ranks_from_scores, read_rankings_file, write_jsonl
from data.tables.first_wins import FirstWins
from data.tables.summary import summary
from data.venues import task as venues
from pipeline.config.rank import RankConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import RANKINGS_DATABASE, Artifact, Metrics, RunContext
from pipeline.errors import DataError, RecipeError, StageError
from pipeline.files import jsonable
from stages.artifacts import MERGED, merged_file
from stages.left_out import LeftOut

ALL_THE_SAME, NOT_RANKED = "all answers are the same", "not ranked"


def run(config: RankConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes rankings.jsonl, agreement.json and, if the `data` stage merged annotators, merged_rankings.jsonl."""
    path = out_dir / "rankings.jsonl"
    unranked: LeftOut | None = None
    merged: list[bool] = []  # whether people made each
    if config.source == "data":
        shutil.copyfile(inputs["data"].file("rankings.jsonl"), path)
        if consensus := merged_file(inputs["data"]):
            copied = shutil.copyfile(consensus, out_dir / f"{MERGED}.jsonl")
            merged = [ranking.human for ranking in read_rankings_file(copied)]
    elif config.source == "app":
        ranked, unranked = ask(config, newest(inputs, "collect"), ctx)
        write_jsonl(path, ranked)
        unranked.report(ctx.say)
    else:
        write_jsonl(path, simulate(config, newest(inputs, "collect"), ctx))
    with summary(_first_wins(config, inputs)) as figures, ctx.progress("reading rankings") as bar:
        for ranking in read_rankings_file(path):
            figures.add(ranking)
            bar.advance()
    sample = figures.sample
    if not sample.rankings and not merged:
        raise DataError(
            "rank: there are no rankings",
            where=str(path.parent if config.source != "data" else inputs["data"].path),
            hint="look in the data stage’s dropped.jsonl for the reasons, or set rank.source",
        )
    for line in figures.lines("rank"):
        ctx.say(line)
    ctx.say(f"measuring {sample.kept} of {sample.rankings} rankings")
    with ctx.progress("rank: measures", total=steps(sample)) as bar:
        measured = measure_annotators(sample, seed=ctx.seed, advance=bar.advance)
    text = json.dumps(jsonable(measured), indent=1, ensure_ascii=False)
    (out_dir / "agreement.json").write_text(text, encoding="utf-8")
    agreed = measured["pairwise"]
    return {
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
        **({"merged_rankings": len(merged)} if merged else {}),
        **(unranked.metrics() if unranked else {}),
    }


def _first_wins(config: RankConfig, inputs: Mapping[str, Artifact]) -> FirstWins:
    """Counts first answers where the rankings are from a table whose order says nothing about who wins."""
    metrics = inputs["data"].metrics if config.source == "data" else {}
    return FirstWins(metrics["source_rankings"] if "first_wins" in metrics else "")


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
