"""SFT, reward training and DPO in 16 bits: trainable weights are float32, losses match float32 up to rounding, and
resumed runs are bit-identical."""

import pytest
import tiny
import torch
from safetensors.torch import load_file
from torch import nn

from pipeline.config.dpo import DPOConfig
from pipeline.config.reward import RewardConfig
from pipeline.config.sft import SFTConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages import dpo, sft
from stages.reward import stage as reward_stage
from stages.scoring import reward_model
from stages.training import loss_scale
from stages.training.trainer import StageCallback

CASES = {
    "bf16": ("bfloat16", tiny.LORA),
    "fp16": ("float16", tiny.LORA),
    "full, bf16": ("bfloat16", None),
}
QUICK = {
    "per_device_train_batch_size": 4,
    "learning_rate": 3e-3,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]


def make_inputs(folder, dtype):
    folder.mkdir(exist_ok=True)
    return {
        "base": tiny.base_artifact(folder / "base", dtype=dtype),
        "data": tiny.data_artifact(folder / "data"),
        "rank": tiny.rank_artifact(folder / "rank"),
    }


def train_sft(inputs, out, ctx, lora, **trainer):
    out.mkdir()
    config = SFTConfig(lora=lora, max_length=40, packing=False, trainer=QUICK | trainer)
    return Artifact("sft", out, "sft"), sft.run(config, inputs, out, ctx)


def train_reward(inputs, out, ctx, lora):
    out.mkdir()
    config = RewardConfig(lora=lora, max_length=40, gate=None, trainer=QUICK)
    return Artifact("reward", out, "reward"), reward_stage.run(config, inputs, out, ctx)


def train_dpo(inputs, out, ctx, lora):
    out.mkdir()
    return Artifact("dpo", out, "dpo"), dpo.run(DPOConfig(max_length=40, trainer=QUICK), inputs, out, ctx)


def saved(artifact):
    return {path.name: load_file(path) for path in sorted(artifact.path.rglob("*model*.safetensors"))}


def losses(notes):
    return [values["loss"] for _, values in notes.logged if "loss" in values]


@pytest.fixture
def products(monkeypatch):
    """The dtypes of the outputs of the blocks' linear layers, in passes with gradients."""
    seen = set()
    call = nn.Linear.__call__

    def watched(self, *args, **kwargs):
        output = call(self, *args, **kwargs)
        if torch.is_grad_enabled() and self.out_features in (24, tiny.HIDDEN):
            seen.add(output.dtype)
        return output

    monkeypatch.setattr(nn.Linear, "__call__", watched)
    return seen


@pytest.mark.parametrize("train", [train_sft, train_reward, train_dpo])
def test_losses_match_float32_up_to_rounding(case, train, tmp_path, training_context, products):
    dtype, lora = case
    losses_by_dtype = {}
    for name in ("float32", dtype):
        inputs = make_inputs(tmp_path / name, name)
        if train is not train_sft:
            inputs["sft"] = tiny.policy_artifact(tmp_path / name / "sft", inputs["base"], lora=lora is not None)
        products.clear()
        ctx, notes = training_context(state=f"{name} state")
        artifact, _ = train(inputs, tmp_path / name / "out", ctx, lora)
        losses_by_dtype[name] = losses(notes)
        for tensors in saved(artifact).values():
            assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}
        if train is train_reward:  # loading verifies the scores
            reward_model.load_reward(artifact, inputs["base"], "cpu")
    assert getattr(torch, dtype) in products
    assert losses_by_dtype[dtype] == pytest.approx(losses_by_dtype["float32"], rel=0.05)
    assert losses_by_dtype[dtype] != losses_by_dtype["float32"]


def test_a_resumed_run_equals_an_uninterrupted_run(case, tmp_path, training_context, monkeypatch):
    """The loss scale is part of the checkpoint; in this test it changes at every second step."""
    monkeypatch.setattr(loss_scale.LossScale, "growth_interval", 2)
    dtype, lora = case
    inputs = make_inputs(tmp_path / "inputs", dtype)
    uninterrupted, _ = train_sft(inputs, tmp_path / "whole", training_context(state="whole state")[0], lora)
    on_step_end = StageCallback.on_step_end

    def stop(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == 3:
            raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(StageCallback, "on_step_end", stop)
        with pytest.raises(InterruptedError):
            train_sft(inputs, tmp_path / "cut", training_context(state="cut state")[0], lora)
    resumed, _ = train_sft(inputs, tmp_path / "resumed", training_context(state="cut state")[0], lora)
    expected = saved(uninterrupted)
    assert saved(resumed).keys() == expected.keys()
    for file, tensors in saved(resumed).items():
        assert all(torch.equal(tensor, expected[file][name]) for name, tensor in tensors.items()), file


def test_steps_that_overflow_are_skipped(tmp_path, training_context, monkeypatch):
    class Huge(loss_scale.LossScale):
        def __init__(self, active):
            super().__init__(active)
            self.value = 2.0**90

    monkeypatch.setattr("stages.training.batches.LossScale", Huge)
    inputs = make_inputs(tmp_path / "inputs", "float16")
    artifact, _ = train_sft(inputs, tmp_path / "out", training_context()[0], tiny.LORA)
    (tensors,) = saved(artifact).values()
    fresh = [tensor for name, tensor in tensors.items() if "lora_B" in name]
    assert fresh
    assert not any(tensor.any() for tensor in fresh), "no step may be taken"


def test_a_gradient_that_is_nan_at_any_scale_ends_the_stage(tmp_path, training_context, monkeypatch):
    class Low(loss_scale.LossScale):
        def __init__(self, active):
            super().__init__(active)
            self.value = 1.0

    monkeypatch.setattr("stages.training.batches.LossScale", Low)
    inputs = make_inputs(tmp_path / "inputs", "float16")
    compute = sft.DemonstrationTrainer.compute_loss
    monkeypatch.setattr(
        sft.DemonstrationTrainer, "compute_loss", lambda *args, **kwargs: compute(*args, **kwargs) * torch.nan
    )
    with pytest.raises(StageError, match="the gradient is nan at step 1"):
        train_sft(inputs, tmp_path / "out", training_context()[0], tiny.LORA)


def test_completions_share_a_prompt_in_16_bits(case, tmp_path, training_context):
    """Packed rows differ from unpacked rows by rounding only, so completions still share their prompt's pass."""
    dtype, lora = case
    inputs = make_inputs(tmp_path, dtype)
    inputs["sft"] = tiny.policy_artifact(tmp_path / "sft", inputs["base"], lora=lora is not None)
    ctx, notes = training_context()
    train_reward(inputs, tmp_path / "out", ctx, lora)
    assert not any("cannot share" in line for line in notes.lines)
