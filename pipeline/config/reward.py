"""The `reward` stage: a scalar reward model from rankings of K answers."""

from __future__ import annotations

from typing import Any, Literal

from pipeline.config.data import RankingTableConfig
from pipeline.config.section import (
    RUNTIME,
    Chance,
    Count,
    LocalPath,
    Natural,
    NonNegative,
    field,
    section,
    trainer_values,
)
from pipeline.config.sft import LoRAConfig

REWARD_TRAINER = {"learning_rate": 1e-4, "num_train_epochs": 1, "per_device_train_batch_size": 16}
"""Defaults of `reward.trainer` and `reward.pretrain_on.trainer`."""


@section
class GateConfig:
    """What the reward model must show on held-out prompts before PPO may use it. `--force` overrides the gate."""

    min_accuracy: Chance = 0.55
    """Minimum pairwise accuracy on held-out rankings, without ties."""
    above_chance: bool = True
    """The 95 % interval of the accuracy must lie above 0.5."""
    above_length: bool = True
    """The accuracy must exceed that of the rule "the answer with more characters is better": the 95 % interval of
    the difference must lie above zero."""
    above_bag_of_words: bool = False
    """true: the accuracy must exceed that of a logistic regression on the words of the answers, trained on the same
    pairs, in the same sense. false: the reward stage only warns."""
    max_length_correlation: Chance = 0.9
    """Maximum absolute Spearman correlation between score and length of a completion."""
    max_ece: Chance = 0.2
    """Maximum expected calibration error, with sigmoid(score difference) as the predicted probability that an
    answer is preferred."""
    min_score_spread: NonNegative = 0.02
    """Minimum standard deviation of the scores of a prompt's answers, averaged over prompts. A lower value means
    that all answers score alike."""
    min_ended_preferred: Chance = 0.25
    """Minimum share of held-out answers that must score higher than their own first half, which has no stop
    token."""


@section
class PretrainOnConfig(RankingTableConfig):
    """Other rankings to train on first, such as a large public data set. docs/rankings/formats.md has each format's
    columns."""

    trainer: dict[str, Any] = trainer_values("transformers.TrainingArguments", REWARD_TRAINER)
    """As `reward.trainer`, for this phase only."""


@section
class RewardConfig:
    """The reward model: what it is built on, its loss, and how it is trained."""

    model: LocalPath | None = None
    """An encoder (such as BERT) to train as the reward model instead of the policy's backbone: a Hub id or a
    folder. It has its own tokenizer, so PPO passes it decoded text. null: the reward model is an adapter and a head
    on the policy's backbone."""
    revision: str | None = None
    """Commit of `model`; required if that is a Hub id."""
    lora: LoRAConfig | None = field(default_factory=LoRAConfig)
    """The adapter to train; null: train every weight. Unless `model` is set, both this and `sft.lora` must be
    sections or both null, because the roles share one backbone or none."""
    init: Literal["sft", "base"] = "sft"
    """Where the reward adapter starts. sft: as a copy of the SFT adapter, with the same `r`, `lora_alpha` and
    targets. base: as a new adapter on the base model."""
    objective: Literal["bradley_terry", "bradley_terry_pairs", "davidson", "plackett_luce", "regression"] = (
        "bradley_terry"
    )
    """The loss (docs/rankings/reward_model.md). bradley_terry: all pairs of a ranking, each weighted 1/C(K,2), from
    K forward passes. bradley_terry_pairs: every strict pair on its own, from two forward passes; batch sizes then
    count pairs. davidson: learns from ties too. plackett_luce: the whole ranking, with ties. regression: squared
    error to targets derived from `merits`."""
    margin: NonNegative = 0.0
    """Bradley-Terry only: how far the better answer's score should lead, in log-odds, for a pair whose difference
    of `merits` is the average one; other pairs in proportion (Llama 2's margin loss). 0: no margin."""
    merits: Literal["ranks", "ratings"] = "ranks"
    """What margins and regression targets are derived from: the places in the ranking, or the annotator's ratings
    (for a pairs table, its `margin` column)."""
    annotator_weights: Literal["none", "reliability"] = "none"
    """Weight of a ranking in the loss. none: 1. reliability: the reliability of its annotator, as the `rank` stage
    measured it."""
    hard_negatives: Natural = 0
    """How many swapped answers to add per training prompt, where prompts are meaning representations
    (`attribute[value], ...`): copies of ranked answers in which one value is that of another training prompt, each
    ranked below its original. They are not rankings of people, and are counted apart."""
    center_rewards_coefficient: NonNegative = 0.0
    """Weight of a loss on the squared mean score of a prompt's answers, which keeps scores centred on zero."""
    pretrain_on: PretrainOnConfig | None = None
    """Rankings to train on first; null: none. Those of held-out prompts are left out."""
    ensemble: Count = 1
    """Number of reward models, each an adapter and a head on the shared backbone. They are trained one after
    another: member i equals a single reward model trained with `seed` + i. `ppo.reward.aggregate` combines their
    scores."""
    bootstrap: bool = False
    """Train each ensemble member on prompts drawn with replacement, so that members differ more."""
    max_length: Count = 256
    """Maximum tokens of prompt and completion together. Longer completions are left out of their rankings; how many
    is counted and printed."""
    fingerprints: Natural = 16
    """Number of texts whose scores are stored with the model as fingerprints and verified whenever it is loaded."""
    rubric: LocalPath = "eval"
    """The slot lexicon that counts faults, for the held-out accuracy by kind of fault; it enters neither training
    nor the gate. eval: the one that `eval.judge` names, if it names one. Otherwise `venues` or `e2e`, the path of
    another lexicon, or `none`."""
    gate: GateConfig | None = field(default_factory=GateConfig)
    """Requirements before PPO may use the model; null: none."""
    trainer: dict[str, Any] = trainer_values("transformers.TrainingArguments", REWARD_TRAINER)
    """Values of `transformers.TrainingArguments`, by their own names. Batch sizes count prompts."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Prompts per forward and backward pass. null: `trainer.per_device_train_batch_size`. auto: start with all
    prompts of an optimizer step, and halve whenever the GPU runs out of memory. Affects memory and speed, not
    results."""
    eval_batch_size: Count = field(default=64, metadata=RUNTIME)
    """Completions per forward pass when scores are measured."""
    pack_tokens: Natural = field(default=256, metadata=RUNTIME)
    """Completions of one prompt share a row of about this many tokens, so that the prompt is computed once;
    gradients are the same. 0: one row per completion, which is also used where the model does not support
    sharing."""
    eval_points: Natural = field(default=4, metadata=RUNTIME)
    """Evaluation points on the held-out rankings during training, evenly spaced."""
