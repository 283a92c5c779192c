"""The recipe: one section a stage, and the rules that cross sections."""

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
from pipeline.config.rank import RankConfig
from pipeline.config.reward import RewardConfig
from pipeline.config.section import RUNTIME, Count, field, section
from pipeline.config.sft import SFTConfig

Tracker = Literal["tensorboard", "trackio", "wandb", "mlflow", "aim", "clearml", "comet_ml", "dvclive", "swanlab"]


@section
class Recipe:
    name: Annotated[str, Field(max_length=80, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Names the folder under runs/."""
    seed: int = 0
    """Every generator of every stage derives from it."""
    rounds: Count = 1
    """How often collect, rank, reward and ppo run, each time from the newest policy and on all rankings so far."""
    device: Literal["auto", "cpu", "cuda", "mps"] = field(default="auto", metadata=RUNTIME)
    threads: Count | None = field(default=None, metadata=RUNTIME)
    """CPU threads; null: torch's choice. Another number may change the last bits, so it is recorded."""
    sharding: Literal["none", "full"] = field(default="none", metadata=RUNTIME)
    """none: each of several processes holds all of every model; full: each keeps a part of what a full fine-tune
    (`lora: null`) holds: weights, gradients and optimizer moments (as FSDP and ZeRO-3; docs/distributed.md)."""
    report_to: list[Tracker] = field(default_factory=list, metadata=RUNTIME)
    """Where metrics go besides metrics.jsonl: the trackers of accelerate, each with the package that it needs."""
    hardware: HardwareConfig = field(default_factory=HardwareConfig, metadata=RUNTIME)
    """What the run is planned for (docs/memory.md)."""
    base: BaseConfig
    data: DataConfig
    sft: SFTConfig = field(default_factory=SFTConfig)
    collect: CollectConfig = field(default_factory=CollectConfig)
    rank: RankConfig = field(default_factory=RankConfig)
    reward: RewardConfig = field(default_factory=RewardConfig)
    ppo: PPOConfig = field(default_factory=PPOConfig)
    dpo: DPOConfig | None = None
    """A baseline to PPO; null: none."""
    eval: EvalConfig = field(default_factory=EvalConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    publish: PublishConfig = field(default_factory=PublishConfig)
