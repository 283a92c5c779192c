"""The `ppo` stage. A value with the meaning of a value of TRL's PPO has its name; docs/ppo.md defines each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.section import (
    ADDED,
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
from pipeline.config.sft import LoRAConfig
from pipeline.config.terms import ScoreConfig as ScoreConfig
from pipeline.config.terms import TermConfig
from pipeline.language import PPO

MOST_SAMPLES = 256
"""Samples per prompt from which a KL coefficient is solved, at most."""
SOLVABLE_KL = 5.5
"""Nats per response: log 256, rounded down. The KL of a policy that always gives one of so many samples."""
VLLM_CLIP = 2.0
"""The default of `importance_sampling_clip_max` with `sampler: vllm`: the bound of Yao et al. 2025."""

Estimator = Literal["gae", "reinforce", "rloo", "grpo"]
LossType = Literal["bnpo", "dapo", "dr_grpo", "grpo"]
Baseline = Literal["group", "batch", "running"]
Scaling = Literal["group", "batch", "none"]
Placement = Literal["reward", "loss"]
KLEstimator = Literal["k1", "k2", "k3"]


@dataclass(frozen=True, kw_only=True)
class Method:
    """What an advantage estimator needs, and the defaults of the paper it comes from.

    Attributes:
        label: the name of the method, and of the policies that it trains.
        critic: whether it needs a critic.
        grouped: whether it compares responses to the same prompt, so that `num_generations` must be at least 2.
        scale_rewards: the default of `ppo.scale_rewards`, for an estimator that treats a response as a single
            action; None: it gives each token its own advantage, and `ppo.normalize_advantages` applies.
        loss_type, kl_placement: the defaults of `ppo.loss_type` and `ppo.kl.placement`.
    """

    label: str
    critic: bool = False
    grouped: bool = False
    scale_rewards: Scaling | None = None
    loss_type: LossType = "bnpo"
    kl_placement: Placement = "reward"


METHODS: dict[Estimator, Method] = {
    "gae": Method(label=PPO, critic=True),
    "reinforce": Method(label="REINFORCE"),
    "rloo": Method(label="RLOO", grouped=True, scale_rewards="none", loss_type="dr_grpo"),
    "grpo": Method(label="GRPO", grouped=True, scale_rewards="group", loss_type="grpo", kl_placement="loss"),
}
"""By `ppo.advantage_estimator`. The estimators are in stages/ppo/estimators.py."""


def kl_goal(kind: str, target: float) -> float | None:
    """The KL that a controller of this kind aims for, nats per response; None with a fixed coefficient."""
    return None if kind == "fixed" else target


@section
class KLConfig:
    """The penalty on the KL divergence from the reference model, subtracted from the reward of every response token
    or added to the loss."""

    kind: Literal["fixed", "adaptive", "solved"] = "adaptive"
    """fixed: the coefficient stays at `init` (TRL's `kl_coef`). adaptive: the proportional controller of Ziegler et
    al. 2019, section 2.2, steers the KL towards `target`. solved: before training, the coefficient whose
    optimum has a KL of `target` is computed from scored samples of the SFT model (docs/ppo.md)."""
    init: NonNegative = 0.05
    """For `fixed` and `adaptive`: the KL coefficient beta at the start. With the adaptive controller a later round
    continues from the last value."""
    target: Positive = 6.0
    """For `adaptive` and `solved`: the KL to aim for, in nats per response. It is measured from the SFT model in
    every round, so it is a budget for all rounds together."""
    horizon: Count = 10_000
    """For `adaptive`: time constant of the controller, in episodes. A smaller value changes the coefficient
    faster."""
    num_prompts: Annotated[int, Field(ge=2)] = 128
    """For `solved`: training prompts to sample answers to."""
    num_generations: Annotated[int, Field(ge=4, le=MOST_SAMPLES)] = 32
    """For `solved`: samples per prompt. N samples resolve a KL well below log N; where they do not resolve
    `target`, more are drawn, up to 256."""
    placement: Placement | None = field(default=None, metadata=ADDED)
    """reward: `-beta` times the KL estimate of a token is part of the token's reward. loss: `beta` times the KL
    estimate is added to the token's policy loss. null: loss for `advantage_estimator: grpo`, otherwise reward. The
    two have different optima (docs/ppo.md); `kind: solved` is for reward."""
    estimator: KLEstimator | None = field(default=None, metadata=ADDED)
    """The estimate of a token's KL (docs/ppo.md). null: k1 in the reward, k3 in the loss. The reward takes k1 only;
    in the loss, k1 needs `use_bias_correction`."""
    use_bias_correction: bool = field(default=False, metadata=ADDED)
    """For `placement: loss`: multiply the KL estimate by the policy's probability ratio, so that its gradient is
    that of the KL of each token (TRL's `use_bias_correction_kl`). For k1 and k3."""

    @property
    def goal(self) -> float | None:
        """As `kl_goal`."""
        return kl_goal(self.kind, self.target)


@section
class AggregateConfig:
    """What PPO optimises: how the scores of a reward ensemble become one score, and what is added to it."""

    aggregate: Literal["mean", "min", "uncertainty"] = "mean"
    """mean; min: the lowest ("worst case"); uncertainty: the mean minus `uncertainty_coef` times the members'
    standard deviation (Coste et al. 2023, arXiv:2310.02743)."""
    uncertainty_coef: NonNegative = 1.0
    """For `uncertainty`: how many standard deviations are subtracted."""
    held_out: Natural = 0
    """How many of the ensemble's last members PPO does not use. `eval.reward_model: ensemble` judges with them."""
    terms: list[TermConfig] | None = field(default=None, metadata=ADDED)
    """Weighted terms whose sum is the reward (docs/rewards.md); null: the reward model alone."""

    @property
    def uses_run_model(self) -> bool:
        """Whether the run's own reward model scores, in training or as a held-out term."""
        return self.terms is None or any(term.run_model for term in self.terms)

    @property
    def trains_on_run_model(self) -> bool:
        return self.terms is None or any(term.run_model and term.trained for term in self.terms)


@section
class MonitorConfig:
    """Training monitors: who judges the policy besides its own reward, and when training stops early
    (docs/ppo.md)."""

    judge: LocalPath = "eval"
    """Who scores the answers at evaluation points. `eval`: the judge that `eval.judge` names. Another slot lexicon
    or its path. `member`: the ensemble's last member, which then takes no part in the reward. `reward`: the run's
    own reward model, if `ppo.reward_model` names another. The folder of a reward model. Or `none`."""
    stop: bool = True
    """Stop training when the judge's score falls while the reward model's score rises."""
    patience: Count = 2
    """Consecutive evaluation points that must show this before training stops."""
    significance: Annotated[float, Field(gt=0, lt=1)] = 0.05
    """Significance level of the tests over prompts that decide whether the judge's score has fallen."""


@section
class PPOConfig:
    """PPO with a KL penalty: batch sizes, learning rates, the losses' coefficients, and what watches the run."""

    lora: LoRAConfig | None = field(default_factory=LoRAConfig, metadata=ADDED)
    """Only for `sft: null`: the policy's adapter, which starts without effect on the base model; null: train every
    weight. After SFT, PPO trains what SFT trained."""
    seed: int | None = field(default=None, metadata=ADDED)
    """Seed of this stage alone, so that several policies can share one SFT and one reward model. null: the recipe's
    seed."""
    total_episodes: Count = 8192
    """Responses sampled in the whole stage, in each round."""
    batch_size: Count = 128
    """Episodes (sampled responses) per update."""
    num_generations: Count = 1
    """Responses sampled per prompt in a batch; must divide `batch_size`."""
    advantage_estimator: Estimator = "gae"
    """gae: generalised advantage estimation with a critic. The others need no critic: `lam`, `vf_coef` and
    `cliprange_value` are not used. reinforce: the return less a `baseline`. rloo: the reward of the whole response,
    KL penalty included, less the mean of the prompt's other responses. grpo: the reward of the whole response less
    the mean of the prompt's responses, divided by their standard deviation."""
    baseline: Baseline | None = field(default=None, metadata=ADDED)
    """For `reinforce`. group: the mean return of the prompt's responses. batch: that of the batch. running: that of
    all earlier batches; needs `normalize_advantages: false`. null: group, or batch with `num_generations: 1`."""
    scale_rewards: Scaling | None = field(default=None, metadata=ADDED)
    """For `rloo` and `grpo`: what advantages are divided by. group: the standard deviation of the rewards of the
    prompt's responses. batch: that of the batch. none: nothing (Dr. GRPO). null: group for `grpo`, none for
    `rloo`."""
    normalize_advantages: bool | None = field(default=None, metadata=ADDED)
    """For `gae` and `reinforce`: shift and scale advantages to mean 0 and variance 1 over all tokens of the batch.
    null: true."""
    loss_type: LossType | None = field(default=None, metadata=ADDED)
    """How the policy losses of tokens add up, with TRL's names. bnpo: mean over the tokens of the minibatch. dapo:
    the same with the mean number of tokens of the batch's minibatches. dr_grpo: sum over tokens, divided by the
    responses and by `response_length`. grpo: mean over a response's tokens, then over responses. null: grpo for
    `grpo`, dr_grpo for `rloo`, otherwise bnpo."""
    max_resamples: Natural = field(default=0, metadata=ADDED)
    """Dynamic sampling (DAPO): the responses to a prompt that all have the same reward teach nothing, so they are
    replaced by responses to another prompt, up to this many times per update; 0: never. Needs a baseline over the
    prompt's responses."""
    num_ppo_epochs: Count = 4
    """Passes over the episodes of each update."""
    num_mini_batches: Count = 4
    """Optimizer steps per pass. Must divide `batch_size`."""
    micro_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Sequences per forward and backward pass. null: a whole minibatch. auto: start with a whole minibatch, and
    halve whenever the GPU runs out of memory. Affects memory and speed, not results."""
    max_prompt_length: Count = 128
    """Maximum tokens of a prompt. Longer prompts are left out and counted."""
    response_length: Count = 64
    """Maximum tokens of a response."""
    temperature: Positive = 1.0
    """Sampling temperature. Log-probabilities are computed at the same temperature."""
    sampler: Literal["builtin", "vllm"] = field(default="builtin", metadata=ADDED)
    """The engine that samples responses in PPO (docs/performance.md). builtin: the weights that are trained.
    vllm: a copy of the base in vLLM, in the same process, which gets the policy's adapter before each batch. It
    needs LoRA, an unquantised base, a CUDA device and `pip install "tutelage[vllm]"`. It is untested on a GPU."""
    vllm_gpu_memory_utilization: Annotated[float, Field(gt=0, lt=1)] = field(default=0.3, metadata=RUNTIME)
    """For `sampler: vllm`: the share of the GPU's memory that vLLM takes while it samples, for its copy of the base
    and its cache. While the policy trains, that copy is in the host's memory."""
    learning_rate: Positive = 1e-5
    """Peak learning rate of the policy."""
    value_learning_rate: Positive | None = None
    """Peak learning rate of the value model (`value: adapter`), or of the value head (`value: trunk`); null: as
    `learning_rate`."""
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = "adamw"
    """8bit: bitsandbytes' AdamW, which stores the moments of tensors with at least 4,096 elements in a quarter of
    the memory. paged: on a CUDA device the moments move to system memory when device memory runs short. (For SFT
    and the reward model set `trainer.optim`.)"""
    lr_scheduler_type: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rates change after the warm-up: constant, or down to zero on a line or a half cosine."""
    warmup_updates: Natural = 0
    """Updates over which the learning rates rise linearly from zero."""
    adam_beta1: BelowOne = 0.9
    """AdamW's decay rate of the mean of gradients."""
    adam_beta2: BelowOne = 0.999
    """AdamW's decay rate of the mean of squared gradients."""
    adam_epsilon: Positive = 1e-8
    """AdamW's epsilon, added to the denominator."""
    weight_decay: NonNegative = 0.0
    """AdamW's decoupled weight decay."""
    max_grad_norm: Positive = 1.0
    """Gradients of each role are clipped to this norm."""
    gamma: Chance = 1.0
    """Discount factor of future rewards, per token."""
    lam: Annotated[float, Field(gt=0, le=1)] = 0.95
    """Lambda of generalised advantage estimation. Lower values trust the value model more: less variance, more
    bias."""
    cliprange: Positive = 0.2
    """Clip range of the policy's probability ratio: beyond 1 +- `cliprange` a token gives no further gradient."""
    cliprange_high: Positive | None = field(default=None, metadata=ADDED)
    """Upper clip range (DAPO's clip-higher, TRL's `epsilon_high`): the ratio is clipped above 1 + `cliprange_high`;
    null: `cliprange`."""
    cliprange_value: Positive = 0.2
    """Clip range of the value loss: how far a value may move from its value at sampling time."""
    dual_clip: Annotated[float, Field(gt=1)] | None = None
    """Bounds the policy loss of tokens with a negative advantage at this multiple of the advantage (dual-clip PPO,
    Ye et al. 2020); null: no bound."""
    importance_sampling_clip_max: Annotated[float, Field(ge=1)] | None = None
    """Corrects for the difference between sampling and training numerics in 16 bits: each token's policy loss is
    weighted by the ratio of its recomputed probability to its probability when it was sampled, at most this number.
    null: no weights, or with `sampler: vllm` 2.0. In float32 the weights of the built-in sampler are 1
    (docs/ppo.md)."""
    vf_coef: NonNegative = 0.1
    """Weight of the value loss with `value: trunk`. A separate value model has an optimizer of its own."""
    entropy_coef: NonNegative = 0.0
    """Weight of the entropy bonus in the policy loss."""
    whiten_rewards: bool = False
    """Divide rewards by their standard deviation (their mean stays) before advantages are computed."""
    target_kl: Positive | None = None
    """Ends the passes of an update once the approximate KL from the policy that sampled exceeds this, in nats per
    token; null: never. (Not the KL from the reference: that is `kl.target`.)"""
    critic_warmup_updates: Natural = 0
    """Number of first updates that train only the value model (`value: adapter`)."""
    ptx_coef: NonNegative = 0.0
    """Weight of the language-modelling loss on demonstrations (InstructGPT's PPO-ptx)."""
    missing_eos_penalty: NonNegative | None = None
    """Subtracted from the score of a response that does not end with a stop token; null: nothing."""
    kl: KLConfig = field(default_factory=KLConfig)
    """The KL penalty."""
    score: ScoreConfig = field(default_factory=ScoreConfig)
    """Normalisation and clipping of the score."""
    reward: AggregateConfig = field(default_factory=AggregateConfig)
    """How an ensemble's scores are combined, and further terms."""
    value: Literal["adapter", "trunk"] = "trunk"
    """trunk: a value head on the policy's hidden states. adapter: a separate value model that starts from the
    reward model; it learns a little more from the same number of episodes and takes about twice the time
    (docs/performance.md)."""
    reward_model: LocalPath | None = None
    """The reward model to use instead of the `reward` stage's: the folder of a reward artifact, or the folder or
    Hub id of a sequence classifier with one label. A classifier reads the conversation as text, in its own
    tokens. `eval` and `export` score answers with it, too. The `reward` stage still runs."""
    reward_model_revision: str | None = field(default=None, metadata=ADDED)
    """Commit of `reward_model`; required if that is a Hub id."""
    gradient_checkpointing: bool | Literal["auto"] = field(default=False, metadata=RUNTIME)
    """Recompute activations in the backward pass instead of keeping them: less memory, a third more training time.
    auto: on if the memory plan says that PPO would not fit otherwise (`hardware.memory`, or the GPU's own)."""
    logits_chunk_size: Count | None = field(default=None, metadata=RUNTIME)
    """Positions whose logits exist at the same time; null: as many as take 4 MB (256 MB on a GPU)."""
    rollout_batch_size: Count | Literal["auto"] | None = field(default=None, metadata=RUNTIME)
    """Responses sampled at the same time; null: all of an update; auto: as for `micro_batch_size`."""
    save_updates: Count = field(default=10, metadata=RUNTIME)
    """Updates between checkpoints."""
    eval_updates: Natural = 8
    """Updates between evaluation points, at which the policy answers held-out prompts and the independent judge
    scores the answers; 0: no evaluation points."""
    eval_prompts: Count = 64
    """Held-out prompts at an evaluation point, at most half of all held-out prompts. The `eval` stage does not use
    them."""
    checkpoint: Literal["best", "last"] = "best"
    """Checkpoint selection. best: the policy at the evaluation point that the judge marks highest, or the last one
    if there is no judge. last: the last one."""
    monitor: MonitorConfig = field(default_factory=MonitorConfig)
    """Training monitors and early stopping."""

    @property
    def critic(self) -> Literal["adapter", "trunk"] | None:
        """Where the value head is; None where the advantage estimator needs no critic."""
        return self.value if self.method.critic else None

    @property
    def importance_clip(self) -> float | None:
        """The largest importance weight of a token; None: there are no weights. vLLM's kernels round differently
        from the passes that train, so what it samples always gets weights."""
        if self.sampler == "vllm" and self.importance_sampling_clip_max is None:
            return VLLM_CLIP
        return self.importance_sampling_clip_max

    @property
    def method(self) -> Method:
        """What the advantage estimator needs."""
        return METHODS[self.advantage_estimator]

    @property
    def whitens(self) -> bool:
        """Whether advantages are normalised over all tokens of the batch."""
        return self.method.scale_rewards is None and self.normalize_advantages is not False

    @property
    def mean_of(self) -> Baseline:
        """What `reinforce` takes the mean of."""
        return self.baseline or ("group" if self.num_generations > 1 else "batch")

    @property
    def compares(self) -> bool:
        """Whether a prompt's responses with equal rewards have no advantage."""
        return self.method.grouped or (self.advantage_estimator == "reinforce" and self.mean_of == "group")

    @property
    def kl_loss(self) -> KLEstimator | None:
        """The KL estimator in the loss; None: the KL penalty is in the reward."""
        if (self.kl.placement or self.method.kl_placement) == "reward":
            return None
        return self.kl.estimator or "k3"
