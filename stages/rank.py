"""The `rank` stage: given rankings are passed on; collected answers are ranked by simulated annotators.

Either way their agreement is measured, since it bounds what a reward model can be expected to learn.
"""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator, Mapping
from itertools import cycle, islice
from pathlib import Path

from data import venues
from data.agreement import agreement
from data.schema import Ranking, ranks_from_scores, write_jsonl
from pipeline.config.rank import RankConfig
from pipeline.errors import RecipeError
from pipeline.rounds import newest
from pipeline.stage import Artifact, Metrics, RunContext


def run(config: RankConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    """Writes rankings.jsonl and agreement.json."""
    path = out_dir / "rankings.jsonl"
    if config.source == "data":
        shutil.copyfile(inputs["data"].file("rankings.jsonl"), path)
    else:
        write_jsonl(path, simulate(config, newest(inputs, "collect"), ctx))
    rankings = _read(path)
    measured = agreement(rankings, seed=ctx.seed)
    (out_dir / "agreement.json").write_text(json.dumps(measured.to_json(), indent=1), encoding="utf-8")

    pairs = sum(len(r.pairs()) for r in rankings)
    all_pairs = sum(len(r.completions) * (len(r.completions) - 1) // 2 for r in rankings)
    return {
        "rankings": len(rankings),
        "pairs": pairs,
        "tie_share": 1 - pairs / all_pairs,
        "agreement": measured.pairwise.value,
        "agreement_low": measured.pairwise.low,
        "agreement_high": measured.pairwise.high,
        "agreement_pairs": measured.pairwise.pairs,
        "predicted_by_others": measured.by_others.value,
        "alpha": measured.alpha,
        "annotators": len({r.annotator for r in rankings}),
        "human": all(r.human for r in rankings),
    }


def simulate(config: RankConfig, collected: Artifact, ctx: RunContext) -> Iterator[Ranking]:
    """Has every prompt's answers ranked by `annotators_per_prompt` of the annotators, who take turns."""
    if not 1 <= config.annotators_per_prompt <= len(config.annotators):
        raise RecipeError(
            f"of {len(config.annotators)} annotators {config.annotators_per_prompt} are to rank each prompt",
            where=ctx.describe("rank.annotators_per_prompt"),
            mend="list more under rank.annotators, or lower rank.annotators_per_prompt",
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


def _read(path: Path) -> list[Ranking]:
    with path.open(encoding="utf-8") as lines:
        return [Ranking(**json.loads(line)) for line in lines]
