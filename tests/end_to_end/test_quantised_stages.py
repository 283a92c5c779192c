"""SFT and reward training on a quantised base and with quantisation-aware training: reloaded models give the same
outputs, and resumed runs are bit-identical."""

import pytest
import tiny
import torch
from safetensors.torch import load_file

from pipeline.config.reward import RewardConfig
from pipeline.config.sft import SFTConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages import sft
from stages.models.adapters import load_actor
from stages.reward import stage as reward_stage
from stages.scoring import reward_model

KINDS = {"nf4": "nf4", "qat": {"qat": "int3-g32", "activations": "none"}}
QUICK = {
    "per_device_train_batch_size": 4,
    "learning_rate": 1e-2,
    "max_steps": 4,
    "save_steps": 2,
    "logging_steps": 1,
}
IDS = torch.tensor(tiny.rows(2, 8, 8))


class Interrupted(Exception):
    pass


@pytest.fixture(params=KINDS)
def inputs(request, tmp_path):
    return {
        "base": tiny.base_artifact(tmp_path / "base", quantization=KINDS[request.param]),
        "data": tiny.data_artifact(tmp_path / "data"),
        "rank": tiny.rank_artifact(tmp_path / "rank"),
    }


def stop_after(monkeypatch, steps):
    """Raises Interrupted after a Trainer's step number `steps`."""
    from stages.training.trainer import StageCallback

    on_step_end = StageCallback.on_step_end

    def stop(self, args, state, control, **kwargs):
        on_step_end(self, args, state, control, **kwargs)
        if state.global_step == steps:
            raise Interrupted

    monkeypatch.setattr(StageCallback, "on_step_end", stop)


def files(folder):
    return {path.name: load_file(path) for path in sorted(folder.rglob("*.safetensors"))}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for file in expected:
        assert all(torch.equal(actual[file][name], tensor) for name, tensor in expected[file].items()), file


def train_sft(inputs, out, ctx, **trainer):
    out.mkdir(exist_ok=True)
    config = SFTConfig(lora=tiny.LORA, max_length=40, packing=False, trainer=QUICK | trainer)
    metrics = sft.run(config, inputs, out, ctx)
    return Artifact("sft", out, "sft"), metrics


def test_sft_resumes_bit_identically_and_reloads(inputs, tmp_path, training_context, monkeypatch):
    uninterrupted, metrics = train_sft(inputs, tmp_path / "whole", training_context(state="one")[0])
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            train_sft(inputs, tmp_path / "cut", training_context(state="two")[0])
    resumed, _ = train_sft(inputs, tmp_path / "cut", training_context(state="two")[0])
    expected = files(uninterrupted.path)
    assert_same(files(resumed.path), expected)
    tensors = [tensor for file in expected.values() for tensor in file.values()]
    assert all(tensor.dtype == torch.float32 for tensor in tensors)
    # The Trainer's last eval loss is that of the reloaded policy.
    policy = load_actor(inputs["base"], uninterrupted, "cpu")
    losses = []
    with torch.no_grad():
        for row in sft.encode_demonstrations(inputs["data"], tiny.codec(), "eval", 40)[0]:
            ids, labels = torch.tensor([row["input_ids"]]), torch.tensor(row["labels"])[1:]
            logp = torch.log_softmax(policy.project(policy.hidden(ids)[0, :-1]), -1)
            has_label = labels >= 0
            losses.append(-logp[has_label].gather(1, labels[has_label, None])[:, 0])
    assert float(torch.cat(losses).mean()) == pytest.approx(metrics["eval_loss"], rel=1e-4)


def test_a_reward_model_resumes_bit_identically_and_reloads_with_its_scores(
    inputs, tmp_path, training_context, monkeypatch
):
    inputs = inputs | {"sft": tiny.policy_artifact(tmp_path / "sft", inputs["base"])}
    config = RewardConfig(lora=tiny.LORA, max_length=64, gate=None, trainer=QUICK)

    def run(name, state):
        out = tmp_path / name
        out.mkdir(exist_ok=True)
        reward_stage.run(config, inputs, out, training_context(state=state)[0])
        return Artifact("reward", out, "reward")

    uninterrupted = run("whole", "one")
    with monkeypatch.context() as patch:
        stop_after(patch, 3)
        with pytest.raises(Interrupted):
            run("cut", "two")
    assert_same(files(run("cut", "two").path), files(uninterrupted.path))
    # Loading checks the fingerprints. Check that there are some, and how close they are.
    assert len(uninterrupted.json(reward_model.SPEC)["fingerprints"]) > 0
    loaded = reward_model.load_reward(uninterrupted, inputs["base"], "cpu")
    assert reward_model.verify(uninterrupted, loaded, "cpu") < 1e-4


def test_sft_with_8_bit_optimizer_state(inputs, tmp_path, training_context):
    artifact, metrics = train_sft(inputs, tmp_path / "out", training_context()[0], optim="adamw_8bit")
    assert metrics["train_loss"] > 0
    assert files(artifact.path)


def test_weights_whose_rows_do_not_fill_nf4_blocks_are_refused(tmp_path):
    tiny.lm(0, hidden_size=32).save_pretrained(tmp_path / "model")
    from stages.models.loading import load_causal_lm

    with pytest.raises(StageError, match="nf4 stores rows in blocks of 64"):
        load_causal_lm(str(tmp_path / "model"), "cpu", dtype="float32", quantization="nf4")
