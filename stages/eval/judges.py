"""The judges of `eval`, and the proxy: the reward model that PPO optimised, which is read beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.config.evaluate import EvalConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.text import Codec
from stages.scoring.judge import ScoringJudge
from stages.scoring.load import as_artifact, held_out_members, load_scorer, optimised_members
from stages.scoring.reward_model import SPEC
from stages.scoring.scorer import Scorer
from stages.scoring.slots import SlotScorer

WHERE = "eval.reward_model"


def scoring_judges(
    config: EvalConfig,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    device: str,
    say: Callable[[str], None] = lambda text: None,
) -> list[ScoringJudge]:
    """The judges that the recipe asks for and that score answers one by one. The frontier and the extremes use the
    first."""
    judges = []
    if config.judge != "none":
        judges.append(ScoringJudge(config.judge, "faults an answer", SlotScorer(config.judge, codec)))
    if config.reward_model is not None:
        name = "held-out ensemble member" if config.reward_model == "ensemble" else "held-out reward model"
        judges.append(ScoringJudge(name, "score", _held_out(config.reward_model, inputs, codec, device, say)))
    return judges


def _held_out(
    model: str, inputs: Mapping[str, Artifact], codec: Codec, device: str, say: Callable[[str], None]
) -> Scorer:
    if model == "ensemble":
        members = held_out_members(newest(inputs, "ppo").metrics["held_out_members"])
        reward = newest(inputs, "reward")
        return load_scorer(reward, inputs, codec, device, members=members, where=WHERE, say=say)
    if as_artifact(model) and newest(inputs, "reward").file(SPEC).read_bytes() == (Path(model) / SPEC).read_bytes():
        raise StageError(
            "the judge is the very reward model that PPO was trained with",
            where=model,
            hint="point eval.reward_model at another one, trained on other rankings or with another seed",
        )
    return load_scorer(model, inputs, codec, device, where=WHERE, say=say)


def load_proxy(
    inputs: Mapping[str, Artifact], codec: Codec, device: str, say: Callable[[str], None] = lambda text: None
) -> Scorer:
    """The model of the newest `reward` stage, without the members that were held out from PPO."""
    members = optimised_members(newest(inputs, "ppo").metrics.get("held_out_members", 0))
    return load_scorer(newest(inputs, "reward"), inputs, codec, device, members=members, say=say)
