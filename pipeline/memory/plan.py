"""The memory plan of a recipe: each stage's peak by component, compared with the device's memory."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

from pipeline.config.hardware import size_in_bytes
from pipeline.config.recipe import Recipe
from pipeline.files import readable_bytes
from pipeline.memory import phases
from pipeline.memory.architecture import BYTES, Architecture
from pipeline.memory.components import PlannedModel
from pipeline.memory.phases import Moment
from pipeline.memory.sources import architecture_of

LIBRARIES = {"cpu": 570e6, "cuda": 550e6, "mps": 570e6}
"""Bytes of the interpreter with torch, transformers, trl and peft imported. On a GPU: its context and the workspace
of kernels, a commonly reported size that is not measured here."""
FIRST_USE = {"cpu": 30e6, "cuda": 0.0, "mps": 30e6}
"""Bytes that the libraries add at their first use: threads, compiled kernels, tables."""
FRAGMENTATION = {"cpu": 0.03, "cuda": 0.05, "mps": 0.05}
"""Share of temporary memory that is lost between the allocator's blocks."""
TEMPORARY = ("gradients", "activations", "logits", "cache")


@dataclass(frozen=True)
class StagePeak:
    """The phase of a stage with the highest peak.

    Attributes:
        phases: bytes by component, for each of the stage's phases.
        phase: the name of the phase with the highest peak.
    """

    phases: Mapping[str, Moment]
    phase: str

    @property
    def components(self) -> Moment:
        return dict(self.phases[self.phase])

    @property
    def total(self) -> float:
        """Bytes including the libraries': of the process on a CPU, of the GPU's memory on a GPU."""
        return sum(self.components.values())

    @property
    def allocated(self) -> float:
        """Bytes without the libraries': what a GPU's allocator, or the growth of the process, shows."""
        return self.total - self.components["libraries"]

    def describe(self) -> str:
        return ", ".join(f"{name} {readable_bytes(size)}" for name, size in self.components.items() if size >= 1)


@dataclass(frozen=True)
class MemoryPlan:
    """The memory that a recipe needs on a device.

    Attributes:
        stages: the peak of each stage that holds the model.
        limit: bytes of the device's memory; None: not known.
        limit_from: where the limit comes from.
        model: the model that was planned for.
        micro: rows per pass, by stage.
        processes: how many processes share the run. Numbers are for each of them.
    """

    stages: Mapping[str, StagePeak]
    limit: float | None
    limit_from: str
    model: PlannedModel
    micro: Mapping[str, int]
    processes: int = 1

    def too_large(self, names: Any = None) -> list[str]:
        """The stages (of `names`, if given) that need more than the limit."""
        if self.limit is None:
            return []
        return [n for n, peak in self.stages.items() if peak.total > self.limit and (names is None or n in names)]

    def record(self, stage: str) -> dict[str, Any]:
        """A stage's entry for its manifest."""
        if stage not in self.stages:
            return {}
        peak = self.stages[stage]
        return {
            "peak_bytes": round(peak.total),
            "allocated_bytes": round(peak.allocated),
            "phase": peak.phase,
            "components": {name: round(size) for name, size in peak.components.items() if size >= 1},
            "limit_bytes": None if self.limit is None else round(self.limit),
            "fits": self.limit is None or peak.total <= self.limit,
        }


def predict(
    recipe: Recipe,
    architecture: Architecture | None = None,
    *,
    device: str | None = None,
    limit: float | None = None,
    processes: int = 1,
) -> MemoryPlan:
    """Plans every stage of a recipe. Raises `RecipeError` when the model's architecture cannot be read.

    Args:
        architecture: the model's; None: read it (`pipeline.memory.sources`).
        device: cpu, cuda or mps; None: the recipe's, or this machine's.
        limit: bytes of the device's memory; None: as the recipe or the GPU says.
        processes: how many processes share the run.
    """
    architecture = architecture or architecture_of(recipe.base)
    device = device or planned_device(recipe)
    room, where = (limit, "given") if limit is not None else device_memory(recipe, device)
    dtype = recipe.base.dtype
    size = (2 if device == "cuda" and computes_in_bfloat16() else 4) if dtype == "auto" else BYTES[dtype]
    held = recipe.base.quantization
    model = PlannedModel(architecture, device, size, held if isinstance(held, str) else "qat", recipe.policy_lora)
    wanted = phases.micro_batches(recipe, processes)

    def plan(recipe: Recipe, micro: dict[str, int]) -> dict[str, StagePeak]:
        stages = phases.stages(recipe, model, micro, processes, room)
        return {stage: _peak(moments, device) for stage, moments in stages.items()}

    # Automatic micro-batches halve until they fit; `resolve` decides about checkpointing after that.
    automatic = {
        "sft": recipe.sft is not None and recipe.sft.micro_batch_size == "auto",
        "reward": recipe.reward.micro_batch_size == "auto",
        "ppo": recipe.ppo.micro_batch_size == "auto",
        "dpo": recipe.dpo is not None and recipe.dpo.micro_batch_size == "auto",
        "raft": recipe.raft is not None and recipe.raft.micro_batch_size == "auto",
    }
    checkpointing = recipe.ppo.gradient_checkpointing
    recipe = replace(recipe, ppo=replace(recipe.ppo, gradient_checkpointing=checkpointing is True))
    peaks = plan(recipe, wanted)
    while room is not None and device == "cuda":
        smaller = [
            stage for stage, auto in automatic.items()
            if auto and stage in peaks and peaks[stage].total > room and wanted[stage] > 1
        ]  # fmt: skip
        if not smaller:
            break
        wanted |= {stage: wanted[stage] // 2 for stage in smaller}
        peaks = plan(recipe, wanted)
    return MemoryPlan(peaks, room, where, model, wanted, processes)


def resolve(recipe: Recipe, plan: MemoryPlan | None) -> Recipe:
    """The recipe with `ppo.gradient_checkpointing: auto` decided: on if PPO would not fit without it."""
    if recipe.ppo.gradient_checkpointing != "auto":
        return recipe
    needed = plan is not None and "ppo" in plan.too_large()
    return replace(recipe, ppo=replace(recipe.ppo, gradient_checkpointing=needed))


def _peak(moments: Mapping[str, Moment], device: str) -> StagePeak:
    whole = {name: _with_overhead(moment, device) for name, moment in moments.items()}
    return StagePeak(whole, max(whole, key=lambda name: sum(whole[name].values())))


def _with_overhead(moment: Moment, device: str) -> Moment:
    temporary = sum(size for name, size in moment.items() if name in TEMPORARY)
    return {
        **moment,
        "first use": FIRST_USE[device],
        "fragmentation": FRAGMENTATION[device] * temporary,
        "libraries": LIBRARIES[device],
    }


# --- The device -------------------------------------------------------------------------------------------------


def planned_device(recipe: Recipe) -> str:
    """The recipe's device; `auto` means a GPU if this machine has one."""
    if recipe.device != "auto":
        return recipe.device
    return "cuda" if gpu_memory() is not None else "cpu"


def device_memory(recipe: Recipe, device: str) -> tuple[float | None, str]:
    """Bytes of the device's memory, and where the number comes from. For a CPU only the recipe can set it."""
    if recipe.hardware.memory is not None:
        return size_in_bytes(recipe.hardware.memory), "hardware.memory"
    if device == "cuda" and (size := gpu_memory()) is not None:
        return size, "the GPU"
    return None, ""


BFLOAT16_FROM = (8, 0)
"""The lowest compute capability of NVIDIA GPUs with instructions for bfloat16 (Ampere)."""


def computes_in_bfloat16() -> bool:
    """Whether this machine's first GPU computes in bfloat16 natively. Without a GPU, the one that is planned for is
    assumed to."""
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    capability = _ask_driver("compute_cap")
    return capability is None or tuple(map(int, capability.split("."))) >= BFLOAT16_FROM


@cache
def gpu_memory() -> float | None:
    """Bytes of memory of this machine's first GPU, from torch if that is loaded, else from nvidia-smi. None without
    a GPU."""
    torch = sys.modules.get("torch")
    if torch is not None:
        return float(torch.cuda.get_device_properties(0).total_memory) if torch.cuda.is_available() else None
    mebibytes = _ask_driver("memory.total")
    return None if mebibytes is None else float(mebibytes) * 2**20


@cache
def _ask_driver(what: str) -> str | None:
    """A number that nvidia-smi reports for the first GPU, as text. None without a GPU."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    command = [tool, f"--query-gpu={what}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
        match = re.fullmatch(r"[\d.]+", done.stdout.splitlines()[0].strip()) if done.returncode == 0 else None
        return match.group() if match else None
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return None
