"""The `ppo` stage. Names are TRL's historical ones where the meaning is; docs/ppo.md defines each."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import (
    RUNTIME,
    BelowOne,
    Chance,
    Count,
    LocalPath,
    Natural,
    NonNegative,
    Positive,
    field,
    section,
)


@section
class KLConfig:
    """The penalty on the KL divergence from the reference, paid on every response token."""

    kind: Literal["fixed", "adaptive"] = "adaptive"
    """adaptive: Ziegler et al. 2019's proportional controller towards `target`."""
    init: NonNegative = 0.05
    """The coefficient beta at the start; a later round goes on from the last (adaptive)."""
    target: Positive = 6.0
    """Wanted KL in nats a response (adaptive); from the SFT model in every round, so a budget for all of them."""
    horizon: Count = 10_000
    """Episodes over which the controller acts (adaptive)."""

    @property
    def goal(self) -> float | None:
        """The KL that is steered towards, nats per response; None with a fixed coefficient."""
        return self.target if self.kind == "adaptive" else None


@section
class ScoreConfig:
    """What happens to the reward model's score before it becomes the reward."""

    normalization: Literal["none", "reference", "running"] = "reference"
    """none; or subtract the mean and divide by the standard deviation: of the reference model's answers
    before training, or running over the batches seen so far."""
    clip: Positive | None = 5.0
    """Bound on the absolute normalised score; null: none."""


@section
class AggregateConfig:
    """How an ensemble's scores become one score."""

    aggregate: Literal["mean", "min", "uncertainty"] = "mean"
    """mean; the lowest ("worst case"); or the mean less `uncertainty_coef` times the members' standard deviation
    (Coste et al. 2023, arXiv:2310.02743)."""
    uncertainty_coef: NonNegative = 1.0
    """Standard deviations taken off (uncertainty)."""
    held_out: Natural = 0
    """The ensemble's last members that PPO leaves alone, so that `eval.reward_model: ensemble` can judge by
    them."""


@section
class GuardsConfig:
    """Who watches PPO besides its own reward, and when that stops it (docs/ppo.md)."""

    judge: LocalPath = "eval"
    """Who scores the looks: `eval`, as `eval.judge`; another slot lexicon or the path of one; `member`, an
    ensemble's last member, which then takes no part in the reward; `reward`, the run's own reward model where
    `ppo.reward_model` names another; the folder of a reward model; or `none`."""
    stop: bool = True
    """End training when the judge falls while the reward model's score rises."""
    patience: Count = 2
    """Looks in a row that must show it."""
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Level of the tests over prompts that say so."""


@section
class PPOConfig:
    total_episodes: Count = 8192
    """Responses sampled over the whole stage, in each round."""
    batch_size: Count = 128
    """Episodes an update (one rollout)."""
    num_generations: Count = 1
    """Responses sampled per prompt in a batch; must divide `batch_size`."""
    advantage_estimator: Literal["gae", "reinforce"] = "gae"
    """gae: generalised advantage estimation with a critic. reinforce: the return less its mean over the prompt's
    responses (with `num_generations: 1`, over the batch), without a critic: `lam`, `vf_coef` and `cliprange_value`
    are not used."""
    num_ppo_epochs: Count = 4
    """Passes over each rollout."""
    num_mini_batches: Count = 4
    """Optimizer steps in each pass; must divide `batch_size`."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Sequences in one forward and backward; null: a whole minibatch; auto: a whole minibatch, and half as many
    whenever the GPU's memory runs out. Changes memory, not mathematics."""
    max_prompt_length: Count = 128
    """Longer prompts are left out, and counted."""
    response_length: Count = 64
    """Longest response in tokens."""
    temperature: Positive = 1.0
    """Of sampling, and of every log-probability computed from it."""
    learning_rate: Positive = 1e-5
    value_learning_rate: Positive | None = None
    """Of a value role of its own (`value: adapter`); null: as `learning_rate`."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """8bit: bitsandbytes', whose moments of tensors of 4,096 numbers and more take a quarter of the memory. paged,
    on a CUDA device: they move to the system's memory when the device's runs short. (SFT, reward: `trainer.optim`.)
    """
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    warmup_updates: Natural = 0
    """Updates over which the learning rates rise from zero."""
    adam_beta1: BelowOne = 0.9
    adam_beta2: BelowOne = 0.999
    adam_epsilon: Positive = 1e-8
    weight_decay: NonNegative = 0.0
    max_grad_norm: Positive = 1.0
    """Of each role's gradient."""
    gamma: Chance = 1.0
    lam: Annotated[float, Field(gt=0, le=1)] = 0.95
    cliprange: Positive = 0.2
    cliprange_value: Positive = 0.2
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Lower bound c of the ratio-weighted loss for negative advantages (Ye et al. 2020); null: none."""
    importance_sampling_clip_max: Annotated[float, Field(ge=1)] | None = None
    """Weights each token's policy loss by how much more likely it is under the recomputed policy than it was when
    it was sampled, at most this number; null: no weights. Sampling and training round differently in 16 bits; in
    float32 the two are the same, and the weights are 1 (docs/ppo.md)."""
    vf_coef: NonNegative = 0.1
    """Weight of the value loss on a shared trunk; a value adapter has an optimizer of its own."""
    entropy_coef: NonNegative = 0.0
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation (the mean stays) before advantages are computed."""
    target_kl: Positive | None = None
    """Ends an update's epochs once the approximate KL from the behaviour policy passes it; null: never."""
    critic_warmup_updates: Natural = 0
    """First updates that train the value role only (`value: adapter`)."""
    ptx_coef: NonNegative = 0.0
    """Weight of the language-modelling loss on demonstrations (InstructGPT's PPO-ptx)."""
    missing_eos_penalty: NonNegative | None = None
    """Subtracted from the score of a response with no stop token; null: none."""
    kl: KLConfig = field(default_factory=KLConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    reward: AggregateConfig = field(default_factory=AggregateConfig)
    value: Literal["adapter", "trunk"] = "trunk"
    """trunk: a head on the policy's trunk; adapter: a role that starts from the reward model, which learns a little
    more from as many episodes and takes about twice the time for them (docs/performance.md)."""
    reward_model: LocalPath | None = None
    """A folder to score with instead of the `reward` stage's model: a reward artifact, or a sequence
    classifier with one label (scored through text when its tokenizer differs)."""
    gradient_checkpointing: bool | Literal["auto"] = field(default=False, metadata=RUNTIME)
    """Activations are computed again in the backward pass instead of kept: less memory, a third more time. auto:
    where the memory plan says that the device needs it (`hardware.memory`, or the GPU's own), else not."""
    logits_chunk_size: Count | None = field(default=None, metadata=RUNTIME)
    """Positions whose logits exist at the same time; null: as many as take 4 MB (256 MB on a GPU)."""
    rollout_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Sequences decoded together; null: the whole batch; auto: as for `micro_batch_size`."""
    save_updates: Count = field(default=10, metadata=RUNTIME)
    """Updates between checkpoints."""
    eval_updates: Natural = 8
    """Updates between looks at held-out prompts by the independent judge; 0: none."""
    eval_prompts: Count = 64
    """Held-out prompts in such a look, at most half of them all; `eval` leaves these out."""
    checkpoint: Literal["best", "last"] = "best"
    """Which policy is handed on: the one at the look that the judge rates highest, or the last; without a judge,
    the last."""
    guards: GuardsConfig = field(default_factory=GuardsConfig)

    @property
    def critic(self) -> Literal["adapter", "trunk"] | None:
        """Where the value head is; None where the advantage estimator needs no critic."""
        return self.value if self.advantage_estimator == "gae" else None
