"""The `reward` stage: a scalar reward model from rankings of K answers."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.data import RankingTableConfig
from pipeline.config.section import RUNTIME, Chance, Count, LocalPath, Natural, NonNegative, field, section
from pipeline.config.sft import LoRAConfig


@section
class GateConfig:
    """What the reward model must show on held-out prompts before PPO trusts it; `--force` overrides."""

    min_accuracy: Chance = 0.55
    """Pairwise accuracy over held-out rankings, ties left out."""
    above_chance: bool = True
    """The 95 % interval of the accuracy must lie above one half."""
    above_length: bool = True
    """The 95 % interval of what the accuracy exceeds that of "the longer answer (in characters) is better" by must
    lie above zero."""
    above_bag_of_words: bool = False
    """true: the same against a logistic regression on the words of the answers, trained on the same pairs.
    false: the reward stage warns."""
    max_length_correlation: Chance = 0.9
    """Largest absolute Spearman correlation of score and completion length."""
    max_ece: Chance = 0.2
    """Largest expected calibration error of sigmoid(score difference) as a chance of being preferred."""
    min_score_spread: NonNegative = 0.02
    """Smallest mean standard deviation of the scores of a prompt's answers; below, all score alike."""
    min_ended_preferred: Chance = 0.25
    """Of held-out answers, the share that must score above themselves cut in half, which end without a stop
    token."""


@section
class PretrainOnConfig(RankingTableConfig):
    """Rankings of a weaker or larger kind to learn from first; docs/rankings/formats.md has the columns of each
    format."""

    trainer: dict[str, Any] = field(default_factory=dict)
    """As `reward.trainer`, for this phase alone."""


@section
class RewardConfig:
    model: LocalPath | None = None
    """An encoder (BERT and the like) to train as the reward model instead of the policy's backbone: a Hub id or a
    folder. It has a tokenizer of its own, and PPO scores with it through text."""
    revision: str | None = None
    """Commit of a Hub model; required for one."""
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    """null: train every weight. Without `model` it must agree with `sft.lora`: the roles share one backbone or none
    do."""
    init: Literal["sft", "base"] = "sft"
    """Where the reward adapter starts: as the SFT adapter's copy, with its `r`, `lora_alpha` and targets, or empty
    on the base."""
    objective: Literal["bradley_terry", "bradley_terry_pairs", "davidson", "plackett_luce", "regression"] = (
        "bradley_terry"
    )
    """Bradley-Terry over all pairs of a ranking, each weighted 1/C(K,2), from K forward passes; over every strict
    pair by itself, from two passes each (a batch is then counted in pairs); Davidson, which learns from ties too;
    Plackett-Luce with ties; or squared error to scores derived from `merits`. See docs/rankings/reward_model.md."""
    margin: NonNegative = 0.0
    """Bradley-Terry only: by how much the better of two answers should lead, in log-odds, for the mean
    difference of `merits` in a strict pair; in proportion for others (Llama 2's margin loss). 0: no margin."""
    merits: Literal["ranks", "ratings"] = "ranks"
    """What margins and the targets of `regression` derive from: places in the ranking, or the annotator's
    ratings (of a pairs table: its `margin`)."""
    annotator_weights: Literal["none", "reliability"] = "none"
    """Weight of a ranking in the loss: 1, or the reliability that the `rank` stage measured of its annotator."""
    center_rewards_coefficient: NonNegative = 0.0
    """Weight of the squared mean score of a prompt's answers, which pins the scores' offset."""
    pretrain_on: PretrainOnConfig | None = None
    """Rankings to train on first. What they say of held-out prompts is left out."""
    ensemble: Count = 1
    """Reward models, each an adapter and a head on the one backbone, trained one after another from seeds of their
    own: member i as a single one from `seed` + i. `ppo.reward.aggregate` says how their scores become one."""
    bootstrap: bool = False
    """Each member trains on prompts drawn with replacement, so that members differ more."""
    max_length: Count = 256
    """Tokens of prompt and completion; longer completions are left out of their rankings. What is left out is
    counted and printed."""
    golden: Natural = 16
    """Texts whose scores are stored with the model and verified whenever it is loaded."""
    gate: GateConfig | None = field(default_factory=GateConfig)
    """null: PPO trusts whatever comes out."""
    trainer: dict[str, Any] = field(default_factory=dict)
    """Values of `transformers.TrainingArguments`, by their own names; a batch is counted in prompts."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Prompts that go through the model at once; null: `trainer.per_device_train_batch_size`; auto: a whole
    optimizer step, and half as many whenever the GPU's memory runs out. Changes memory, not mathematics."""
    eval_batch_size: Count = field(default=64, metadata=RUNTIME)
    """Completions scored together."""
    pack_tokens: Natural = field(default=256, metadata=RUNTIME)
    """Completions of a prompt share one row of about this many tokens, so that the prompt is computed once; the
    gradients are the same. 0, and where the model cannot do it: a row each."""
    eval_points: Natural = field(default=4, metadata=RUNTIME)
    """Looks at the held-out rankings during training, evenly spaced."""
