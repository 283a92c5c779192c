"""Rules about `ppo.sampler: vllm`. What it cannot work with is refused before anything runs."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.config import sampler
from pipeline.config.load import LoadedRecipe
from pipeline.config.ppo import PPOConfig
from pipeline.config.section import content
from pipeline.engine.plan import Planner
from pipeline.engine.runner import foresee
from pipeline.errors import RecipeError
from pipeline.memory.forecast import Forecast
from pipeline.memory.plan import predict

Load = Callable[..., LoadedRecipe]

VLLM = "ppo.sampler=vllm"


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        (f"{VLLM} base.quantization=nf4", "this base is nf4"),
        (f"{VLLM} base.quantization=int8", "this base is int8"),
        (f"{VLLM} base.quantization={{qat: q4_0}}", "this base is trained on a grid"),
        (f"{VLLM} sft.lora=null reward.lora=null", "sft.lora is null: every weight is trained"),
        (f"{VLLM} sft.lora.r=600", "rank 512 at most, and the policy's has 600"),
        (f"{VLLM} ppo.temperature=2.5", "ppo.temperature: must be 0.01 to 2 with sampler: vllm, got 2.5"),
        (f"{VLLM} ppo.temperature=0.005", "ppo.temperature: must be 0.01 to 2"),
        (f"{VLLM} ppo.rollout_batch_size=auto", "ppo.rollout_batch_size: auto halves"),
        (f"{VLLM} sharding=full", "vllm runs in one process, and sharding is for several"),
        ("ppo.sampler=sglang", "ppo.sampler"),
        ("ppo.vllm_gpu_memory_utilization=0.0", "ppo.vllm_gpu_memory_utilization"),
        ("ppo.vllm_gpu_memory_utilization=1.0", "ppo.vllm_gpu_memory_utilization"),
    ],
)
def test_recipes_that_vllm_cannot_sample_for_are_refused(load: Load, sets: str, message: str) -> None:
    with pytest.raises(RecipeError, match=r"\S") as error:
        load(sets)
    assert message in str(error.value)


def test_the_importance_weights_are_on_by_default_with_vllm(load: Load) -> None:
    assert load(VLLM).recipe.ppo.importance_clip == 2.0
    assert load(f"{VLLM} ppo.importance_sampling_clip_max=5").recipe.ppo.importance_clip == 5
    assert load("").recipe.ppo.importance_clip is None


def test_the_key_names_the_sampler_and_not_its_memory() -> None:
    builtin, vllm = content(PPOConfig()), content(PPOConfig(sampler="vllm", vllm_gpu_memory_utilization=0.6))
    assert vllm == builtin | {"sampler": "vllm"}
    assert "sampler" not in builtin, "runs of earlier versions stay up to date"


@pytest.mark.parametrize(
    ("device", "installed", "processes", "message"),
    [
        ("cpu", True, 1, "vllm needs a CUDA device, and this run uses cpu"),
        ("mps", True, 1, "vllm needs a CUDA device, and this run uses mps"),
        ("cuda", False, 1, 'pip install "tutelage[vllm]"'),
        ("cuda", True, 2, "and 2 share this run"),
        ("cuda", True, 1, None),
    ],
)
def test_machines_without_what_vllm_needs_are_refused(
    load: Load, monkeypatch: Any, device: str, installed: bool, processes: int, message: str | None
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: SimpleNamespace() if installed else None)
    found = [what for _, what in sampler.unavailable(load(VLLM).recipe, device, processes)]
    assert len(found) == (message is not None)
    assert message is None or message in found[0]
    assert not list(sampler.unavailable(load("").recipe, "cpu", 2))


def test_a_run_is_refused_before_its_first_stage(load: Load, tmp_path: Any) -> None:
    loaded = load(f"{VLLM} device=cpu")
    planner = Planner(loaded, tmp_path / "runs")
    with pytest.raises(RecipeError, match="vllm needs a CUDA device"):
        foresee(planner, planner.plan(None), force=True)
    upstream = planner.plan("reward")
    foresee(planner, upstream, force=True)


def test_the_memory_plan_reserves_vllms_share(load: Load) -> None:
    sets = f"{VLLM} device=cuda base.dtype=bfloat16 ppo.vllm_gpu_memory_utilization=0.4 hardware.memory=8GB"
    vllm = predict(load(sets).recipe).stages["ppo"]
    builtin = predict(load("device=cuda base.dtype=bfloat16 hardware.memory=8GB").recipe).stages["ppo"]
    assert vllm.phases["rollout"]["vllm"] == pytest.approx(3.2e9)
    assert "vllm" not in vllm.phases["train"], "it sleeps"
    assert vllm.phases["train"] == builtin.phases["train"]
    unknown = predict(load(f"{VLLM} device=cuda base.dtype=bfloat16").recipe, limit=None).stages["ppo"]
    assert 0 < unknown.phases["rollout"]["vllm"] < 1e9, "a copy of the tiny model and the cache of a batch"


def test_too_small_a_share_is_refused(load: Load) -> None:
    sets = f"{VLLM} device=cuda ppo.vllm_gpu_memory_utilization=0.01 hardware.memory=50MB"
    forecast = Forecast.of(load(sets))
    with pytest.raises(RecipeError, match="is too little: vLLM needs"):
        forecast.check({"ppo"}, force=True)
    forecast.check({"reward"}, force=True)
