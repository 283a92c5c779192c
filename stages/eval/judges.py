"""The judges of `eval`, and the proxy: the reward model that PPO optimised, which is read beside them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.config.evaluate import EvalConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.criteria import criteria_of, part
from stages.models.text import Codec
from stages.ppo.terms import CombinedScorer
from stages.scoring.judge import ScoringJudge
from stages.scoring.load import as_artifact, held_out_members, load_scorer, optimised, optimised_members
from stages.scoring.reward_model import SPEC
from stages.scoring.scorer import Scorer
from stages.scoring.slots import SlotScorer
from stages.scoring.terms import FUNCTIONS, Loading, WrittenTerms
from stages.scoring.terms import paths as term_paths

WHERE = "eval.reward_model"


def scoring_judges(
    config: EvalConfig,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    device: str,
    say: Callable[[str], None] = lambda text: None,
    folder: Path = Path(),
) -> list[ScoringJudge]:
    """The judges that the recipe asks for and that score answers one by one, then the terms that PPO did not train
    on. The frontier and the extremes use the first.

    Args:
        folder: the recipe's, for the replies of language models.
    """
    judges = []
    if config.judge != "none":
        judges.append(ScoringJudge(config.judge, "faults an answer", SlotScorer(config.judge, codec)))
    if config.reward_model is not None:
        name = "held-out ensemble member" if config.reward_model == "ensemble" else "held-out reward model"
        judges.append(ScoringJudge(name, "score", _held_out(config.reward_model, inputs, codec, device, say)))
    written = WrittenTerms.read(newest(inputs, "ppo"))
    if written is not None:
        loading = _loading(written, inputs, codec, device, folder, say)
        for term, path in zip(written.terms, term_paths(written.terms), strict=True):
            if not term.trained:
                judges.append(ScoringJudge(term.name, "score", loading.scorer(term, path)))
    return judges


def _loading(
    written: WrittenTerms,
    inputs: Mapping[str, Artifact],
    codec: Codec,
    device: str,
    folder: Path,
    say: Callable[[str], None],
) -> Loading:
    return Loading(
        inputs=inputs,
        codec=codec,
        device=device,
        replies=folder,
        held_out=written.reward.held_out,
        copies=newest(inputs, "ppo").path / FUNCTIONS,
        say=say,
    )


def _held_out(
    model: str, inputs: Mapping[str, Artifact], codec: Codec, device: str, say: Callable[[str], None]
) -> Scorer:
    if model == "ensemble":
        members = held_out_members(newest(inputs, "ppo").metrics["held_out_members"])
        reward = newest(inputs, "reward")
        return load_scorer(reward, inputs, codec, device, members=members, where=WHERE, say=say)
    if as_artifact(model) and any(_same(own.path, Path(model)) for own in _trained_with(inputs)):
        raise StageError(
            "the judge is the very reward model that PPO was trained with",
            where=model,
            hint="point eval.reward_model at another one, trained on other rankings or with another seed",
        )
    return load_scorer(model, inputs, codec, device, where=WHERE, say=say)


def _trained_with(inputs: Mapping[str, Artifact]) -> list[Artifact]:
    """The reward artifacts that PPO optimised: with several criteria, those of the terms that it was trained on."""
    reward, written = newest(inputs, "reward"), WrittenTerms.read(newest(inputs, "ppo"))
    if written is not None and criteria_of(reward):
        return [part(reward, str(term.criterion)) for term in written.terms if term.run_model and term.trained]
    artifact = as_artifact(optimised(inputs)[0])
    return [] if artifact is None else [artifact]


def _same(ours: Path, theirs: Path) -> bool:
    return (ours / SPEC).read_bytes() == (theirs / SPEC).read_bytes()


def load_proxy(
    inputs: Mapping[str, Artifact],
    codec: Codec,
    device: str,
    say: Callable[[str], None] = lambda text: None,
    folder: Path = Path(),
) -> Scorer:
    """The sum of terms that the newest `ppo` stage optimised or, without terms, its reward model without the
    members that were held out. Arguments as of `scoring_judges`."""
    written = WrittenTerms.read(newest(inputs, "ppo"))
    if written is not None:
        loading = _loading(written, inputs, codec, device, folder, say)
        named = zip(written.terms, term_paths(written.terms), strict=True)
        return CombinedScorer([loading.scorer(term, path) for term, path in named if term.trained], written)
    members = optimised_members(newest(inputs, "ppo").metrics.get("held_out_members", 0))
    source, revision = optimised(inputs)
    return load_scorer(source, inputs, codec, device, members=members, revision=revision, say=say)
