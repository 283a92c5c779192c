"""Tolerances for rounding, and errors that they must not hide."""

import json

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, get_peft_model

from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.bank import ActorBank
from stages.models.heads import ScalarHead
from stages.models.precision import ROUGH, Deviation, compute_in, computing, exact, working_dtype
from stages.scoring import reward_model
from stages.scoring.reward_model import RewardEnsemble, RewardModel

TEXTS = tiny.rows(32, 4, 24, seed=5)


def test_a_deviation_by_its_definition():
    rng = np.random.default_rng(0)
    expected = rng.normal(3, 2, size=50)
    actual = expected + rng.normal(0, 0.1, size=50)
    deviation = Deviation.between(torch.tensor(actual), torch.tensor(expected))
    assert deviation.largest == pytest.approx(np.abs(actual - expected).max())
    assert deviation.relative == pytest.approx(np.sqrt(((actual - expected) ** 2).mean()) / expected.std())


def test_the_limits_of_rounding():
    assert Deviation.between(torch.ones(0), torch.ones(0)).is_rounding(True)
    assert Deviation(9e-4, 9.0).is_rounding(True), "in float32 the largest difference counts"
    assert not Deviation(2e-3, 0.0).is_rounding(True)
    assert Deviation(2e-3, 0.0).is_rounding(True, unit=5.0)
    assert Deviation(5.0, 0.08).is_rounding(False), "in 16 bits the root mean square does"
    assert not Deviation(0.0, 0.1).is_rounding(False)
    for exactly in (True, False):
        broken = Deviation.between(torch.tensor([1.0, torch.nan, 2.0]), torch.tensor([1.0, 1.5, 2.0]))
        assert not broken.is_rounding(exactly)


def test_values_that_lie_close_together_are_compared_relative_to_their_magnitude():
    """Rounding errors scale with the magnitude of the values, however close together they lie."""
    scores = torch.tensor([100.0, 100.1, 99.9, 100.05])
    assert Deviation.between(scores.bfloat16(), scores).is_rounding(False)
    assert not Deviation.between(1.1 * scores, scores).is_rounding(False)
    assert Deviation.between(torch.zeros(3), torch.zeros(3)).is_rounding(False)


def test_autocast_applies_only_to_models_that_request_it():
    model, x = tiny.lm(), torch.ones(1)
    with computing(model):
        assert working_dtype(x) == torch.float32
    assert exact(model)
    compute_in(model, torch.bfloat16)
    with computing(model):
        assert working_dtype(x) == torch.bfloat16
    assert working_dtype(x) == torch.float32
    assert not exact(model)
    assert not exact(RewardModel(model, tiny.head()))


def test_a_scalar_head_stays_in_float32_under_autocast():
    head, hidden = tiny.head(), torch.randn(5, tiny.HIDDEN)
    head.requires_grad_(False)
    expected = hidden.double().numpy() @ head.weight.double().numpy()[0] + float(head.bias)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(hidden).dtype == torch.float32
        np.testing.assert_allclose(head(hidden), expected, rtol=1e-5, atol=1e-6)


# --- A reward model in 16 bits ---


def trained(seed=0):
    """A model with two properties of trained models: a few dimensions of the residual stream are many times larger
    than the others, and embeddings differ in size."""
    model = tiny.lm(seed, hidden_size=64, intermediate_size=128, initializer_range=0.1, num_hidden_layers=4)
    with torch.no_grad():
        outliers = [3, 40]
        model.get_input_embeddings().weight[:, outliers] *= 30
        for layer in model.model.layers:
            layer.mlp.down_proj.weight[outliers] *= 10
        model.model.norm.weight[outliers] *= 0.1
    return model


def reward_of(dtype, seed=0):
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", task_type="CAUSAL_LM")
    lm = get_peft_model(trained().to(dtype), config, adapter_name="reward")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if "lora_" in name:
                parameter.data = 0.1 * torch.randn(parameter.shape, generator=generator)
    torch.manual_seed(7)
    return lm.eval(), ScalarHead(64)


def stored(lm, head, folder):
    """An artifact as the reward stage writes it: scores from the library's own forward, all texts at once."""
    rows = reward_model.fingerprints_of(RewardModel(lm, head).eval(), TEXTS, "cpu")
    (folder / "reward.json").write_text(json.dumps({"fingerprints": rows}))
    return Artifact("reward", folder, "")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_verification_accepts_rounding_and_rejects_another_model(dtype, tmp_path, monkeypatch):
    lm, head = reward_of(dtype)
    artifact = stored(lm, head, tmp_path)
    ensemble = RewardEnsemble(ActorBank(lm, {"reward": head}, ()), ["reward"])
    # In PPO's own passes, and in batches of another shape.
    score_rows = reward_model.score_rows
    monkeypatch.setattr(reward_model, "score_rows", lambda s, rows, size, device: score_rows(s, rows, 3, device))
    deviation = reward_model.verify(artifact, ensemble, "cpu")
    assert deviation > 1e-4, "the case must round"
    scores = torch.tensor([row["score"] for row in artifact.json("reward.json")["fingerprints"]])
    again = score_rows(ensemble.members, TEXTS, 3, "cpu")[0]
    assert Deviation.between(again, scores).relative < ROUGH / 2, "there must be room for other hardware"

    head.rescale_(0.0, 1 / 1.1)
    with pytest.raises(StageError, match="does not give the scores it was stored with: off by"):
        reward_model.verify(artifact, ensemble, "cpu")
    head.rescale_(0.0, 1.1)
    reward_model.verify(artifact, ensemble, "cpu")

    other, _ = reward_of(dtype, seed=1)
    with pytest.raises(StageError, match="does not give the scores it was stored with"):
        reward_model.verify(artifact, RewardEnsemble(ActorBank(other, {"reward": head}, ()), ["reward"]), "cpu")
    torch.nn.init.constant_(head.weight, torch.nan)
    with pytest.raises(StageError, match="NaN or infinite"):
        reward_model.verify(artifact, ensemble, "cpu")


def test_one_member_of_an_ensemble_cannot_hide_behind_the_others(tmp_path):
    bank = tiny.lora_bank(distinct=True, dtype=torch.bfloat16)
    bank.heads["reference"] = tiny.head(9)
    ensemble = RewardEnsemble(bank, ["reward", "reference"])
    rows = reward_model.fingerprints_of(ensemble, TEXTS, "cpu")
    (tmp_path / "reward.json").write_text(json.dumps({"fingerprints": rows}))
    artifact = Artifact("reward", tmp_path, "")
    reward_model.verify(artifact, ensemble, "cpu")
    bank.heads["reference"].rescale_(0.0, 1 / 1.15)
    with pytest.raises(StageError, match="off by"):
        reward_model.verify(artifact, ensemble, "cpu")
