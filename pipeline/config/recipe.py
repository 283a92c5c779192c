"""The recipe: one section per stage, and values that belong to none. Rules across sections are in rules.py."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from pipeline.config.base import BaseConfig
from pipeline.config.collect import CollectConfig
from pipeline.config.data import DataConfig
from pipeline.config.dpo import DPOConfig
from pipeline.config.evaluate import EvalConfig
from pipeline.config.export import ExportConfig, PublishConfig
from pipeline.config.hardware import HardwareConfig
from pipeline.config.ppo import PPOConfig
from pipeline.config.raft import RAFTConfig
from pipeline.config.rank import RankConfig
from pipeline.config.report import ReportConfig
from pipeline.config.reward import RewardConfig
from pipeline.config.section import ADDED, RUNTIME, Count, field, section
from pipeline.config.sft import LoRAConfig, SFTConfig

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow", "aim", "clearml", "comet_ml", "dvclive", "swanlab"]


@section
class Recipe:
    """Everything that decides a run: one section per stage, and the values below."""

    name: Annotated[str, Field(max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the recipe's folder under runs/."""
    seed: int = 0
    """Seed from which every random generator of every stage derives."""
    rounds: Count = 1
    """How often collect, rank, reward and ppo run. Each round starts from the newest policy and learns from all
    rankings so far."""
    device: Literal["auto", "cpu", "cuda", "mps"] = field(default="auto", metadata=RUNTIME)
    """Device to run on; auto: cuda if there is a GPU, else mps, else cpu."""
    threads: Count | None = field(default=None, metadata=RUNTIME)
    """CPU threads; null: torch decides. The number is recorded, because another one may change the last bits of
    results."""
    sharding: Literal["none", "full", "offload"] = field(default="none", metadata=RUNTIME)
    """How several processes divide the models. none: each process holds every model whole. full: each process keeps
    a part of all weights, gradients and optimizer moments, with LoRA too (PyTorch's FSDP2; docs/distributed.md).
    offload: the same, and the parts are in host memory."""
    report_to: list[Tracker] = field(default_factory=list, metadata=RUNTIME)
    """Trackers of accelerate that get the metrics besides metrics.jsonl. Each needs its own package."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig, metadata=RUNTIME)
    """The machine that the run is planned for (docs/memory.md)."""
    base: BaseConfig
    """The base model: loaded, or pretrained here."""
    data: DataConfig
    """Demonstrations, prompts and rankings."""
    sft: SFTConfig | None = field(default_factory=SFTConfig)
    """Supervised fine-tuning on the demonstrations. null: there is no SFT stage, and the reward model, PPO and its
    baselines start from the base model, which is then the reference (docs/instruct_models.md)."""
    collect: CollectConfig = field(default_factory=CollectConfig)
    """Sampling the answers that annotators rank."""
    rank: RankConfig = field(default_factory=RankConfig)
    """Who ranks the answers."""
    reward: RewardConfig = field(default_factory=RewardConfig)
    """The reward model, and the gate that it must pass."""
    ppo: PPOConfig = field(default_factory=PPOConfig)
    """PPO with a KL penalty against the reward model."""
    dpo: DPOConfig | None = None
    """DPO on the same rankings, a baseline for PPO; null: none."""
    raft: RAFTConfig | None = field(default=None, metadata=ADDED)
    """Fine-tuning on the best of n answers by the same reward, a baseline for PPO; null: none."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    """Evaluation of every model by independent judges."""
    export: ExportConfig = field(default_factory=ExportConfig)
    """The files that the policy is written to."""
    publish: PublishConfig = field(default_factory=PublishConfig)
    """What is uploaded to the Hugging Face Hub."""
    report: ReportConfig = field(default_factory=ReportConfig, metadata=RUNTIME)
    """The report of the run."""

    @property
    def policy_loras(self) -> dict[str, LoRAConfig | None]:
        """Dotted path -> an adapter that policies are trained with, or None: every weight. The first is PPO's."""
        if self.sft is not None:
            return {"sft.lora": self.sft.lora}
        baselines = {"dpo": self.dpo, "raft": self.raft}
        trained = {
            f"{name}.lora": section.lora for name, section in baselines.items() if section and section.enabled
        }
        return {"ppo.lora": self.ppo.lora, **trained}

    @property
    def policy_lora(self) -> LoRAConfig | None:
        """PPO's adapter; None: every weight is trained."""
        return next(iter(self.policy_loras.values()))
