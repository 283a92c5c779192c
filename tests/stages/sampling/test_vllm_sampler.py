"""PPO with vLLM as its sampler, against a stand-in (tests/support/fake_vllm.py). vLLM itself needs a GPU."""

import copy
import os

import fake_vllm
import ppo_case
import pytest
import tiny
import torch
from peft import PeftModel

from pipeline.config.ppo import KLConfig, PPOConfig
from pipeline.config.terms import ScoreConfig
from pipeline.errors import StageError
from stages.models.adapters import load_policy
from stages.ppo import checks, stage
from stages.ppo.experience import score_tokens
from stages.sampling.sampler import SamplingParams, Share
from stages.sampling.vllm import VLLMSampler, start

STOPS = ppo_case.STOPS
PROMPTS = tiny.rows(6, 1, 7, seed=3)
PARAMS = SamplingParams(max_new_tokens=7, stop_ids=STOPS - {tiny.EOS}, temperature=0.8)
CONFIG = PPOConfig(sampler="vllm", max_prompt_length=8, response_length=7, batch_size=8, temperature=0.8)


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    for name in (
        "VLLM_ENABLE_V1_MULTIPROCESSING",
        "VLLM_NO_USAGE_STATS",
        "VLLM_LOGGING_LEVEL",
        "PYTORCH_ALLOC_CONF",
    ):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    fake_vllm.install(monkeypatch)


@pytest.fixture
def make_bank(tmp_path):
    """A bank, and the folder of its base."""

    def make(**values):
        base = tmp_path / "base"
        if not base.exists():
            tiny.base_artifact(base, seed=2)
        return tiny.lora_bank(**({"value": "trunk", "seed": 2, "distinct": True} | values))

    return make


@pytest.fixture
def base(tmp_path, make_bank):
    make_bank()
    return tiny.Artifact("base", tmp_path / "base", "base")


def sampled(sampler, bank, role="policy", seed=5, prompts=PROMPTS, **values):
    with bank.active(role, decode=sampler.native) as actor:
        return sampler.sample(actor, prompts, PARAMS, seed, **values)


def sampler_for(bank, base, config=CONFIG):
    return VLLMSampler(start(config, base, bank, "cpu", 3), bank, tiny.PAD)


def test_the_engine_is_started_as_the_recipe_says(base, make_bank, monkeypatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True,max_split_size_mb:64")
    values = {"rollout_batch_size": 5, "vllm_gpu_memory_utilization": 0.45}
    engine = start(PPOConfig(**vars(CONFIG) | values), base, make_bank(), "cpu", 3)
    assert (engine.seed, engine.utilization, engine.dtype) == (3, 0.45, "float32")
    assert engine.arguments.max_model_len == 8 + 7
    assert engine.arguments.max_num_seqs == 5
    assert engine.arguments.max_lora_rank == 8, "the next rank that vLLM supports"
    assert engine.asleep, "until the first batch"
    assert os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] == "0"
    assert os.environ["PYTORCH_ALLOC_CONF"] == "max_split_size_mb:64", (
        "its sleep mode supports no expandable segments"
    )


@pytest.mark.parametrize("role", ["policy", "reference"])
def test_log_probs_are_those_of_the_active_role_at_the_temperature(base, make_bank, role):
    bank = make_bank()
    episodes = sampled(sampler_for(bank, base), bank, role, record=True)
    assert len({len(response) for response in episodes.responses}) > 1, "some stop early"
    for response in episodes.responses:
        assert len(response) == 7 or response[-1] in PARAMS.stop_ids
        assert not PARAMS.stop_ids & set(response[:-1])
    expected = score_tokens(bank, role, episodes, PPOConfig(temperature=0.8)).logp_BT
    recorded = torch.where(episodes.mask_BT, episodes.sampled.logp_BT[:, : expected.shape[1]], 0.0)
    torch.testing.assert_close(recorded, expected, atol=1e-4, rtol=0)
    assert (recorded[episodes.mask_BT] < 0).all()


def test_only_the_recipes_stop_tokens_end_a_response(base, make_bank):
    """The model's own EOS is not among them here, although its config names it."""
    bank = make_bank()
    sampler, params = sampler_for(bank, base), SamplingParams(max_new_tokens=7, stop_ids={5}, temperature=2.0)
    with bank.active("policy") as actor:
        responses = [r for seed in range(12) for r in sampler.sample(actor, PROMPTS, params, seed).responses]
    assert any(tiny.EOS in response[:-1] for response in responses)


def test_a_seed_decides_whatever_shares_the_batch(base, make_bank):
    bank = make_bank()
    sampler = sampler_for(bank, base)
    first, again, other = (sampled(sampler, bank, seed=seed).responses for seed in (5, 5, 6))
    assert first == again != other
    generator = torch.Generator().manual_seed(5)
    assert sampled(sampler, bank, seed=generator).responses == first
    assert sampled(sampler, bank, seed=generator).responses != first, "the generator is advanced"
    rows = torch.tensor([1, 4])
    part = sampled(sampler, bank, prompts=[PROMPTS[1], PROMPTS[4]], share=Share(rows, len(PROMPTS)))
    assert part.responses == [first[1], first[4]]


def test_each_batch_is_sampled_from_the_adapter_as_it_is_then(base, make_bank):
    bank = make_bank()
    sampler = sampler_for(bank, base)
    before = sampled(sampler, bank, record=True)
    with torch.no_grad():
        for parameter in bank.parameters_of("policy"):
            parameter.mul_(1.5)
    after = sampled(sampler, bank, record=True)
    expected = score_tokens(bank, "policy", after, PPOConfig(temperature=0.8)).logp_BT
    recorded = torch.where(after.mask_BT, after.sampled.logp_BT[:, : expected.shape[1]], 0.0)
    torch.testing.assert_close(recorded, expected, atol=1e-4, rtol=0)
    assert before.responses != after.responses


def test_the_engine_sleeps_outside_of_sampling(base, make_bank, monkeypatch):
    bank = make_bank()
    sampler = sampler_for(bank, base)
    [engine] = fake_vllm.LLM.instances
    done = []
    sampled(sampler, bank, on_batch=done.append)
    assert done == [len(PROMPTS)]
    assert engine.calls == ["sleep", "wake_up", "generate", "sleep"]

    def fail(*_, **__):
        raise RuntimeError("out of blocks")

    monkeypatch.setattr(engine, "generate", fail)
    with pytest.raises(RuntimeError, match="out of blocks"):
        sampled(sampler, bank)
    assert engine.asleep


def test_what_vllm_would_change_is_refused(base, make_bank):
    bank = make_bank()
    sampler = sampler_for(bank, base)
    with bank.active("policy") as actor:
        with pytest.raises(ValueError, match=r"at least 0\.01"):
            sampler.sample(actor, PROMPTS, SamplingParams(max_new_tokens=2, stop_ids=STOPS, temperature=0.001), 0)
        truncated = SamplingParams(max_new_tokens=2, stop_ids=STOPS, top_k=3)
        with pytest.raises(ValueError, match="top_k"):
            sampler.sample(actor, PROMPTS, truncated, 0, record=True)


def test_an_engine_that_cannot_load_the_base_is_an_error_with_a_hint(base, make_bank, monkeypatch):
    def fail(*_, **__):
        raise ValueError("Free memory on device is less than desired\nmore")

    monkeypatch.setattr(fake_vllm.LLM, "__init__", fail)
    with pytest.raises(StageError, match="vLLM cannot load the base: Free memory on device") as error:
        start(CONFIG, base, make_bank(), "cpu", 0)
    assert "ppo.sampler to builtin" in error.value.hint


# --- PPO ---

TRAINING = {"sampler": "vllm", "value": "trunk", "max_prompt_length": 8}


def trainer_of(base, make_bank, scorer=ppo_case.varied, **values):
    values = TRAINING | values
    bank = make_bank(distinct=False)
    sampler = sampler_for(bank, base, PPOConfig(**(ppo_case.CONFIG | values)))
    return ppo_case.make(bank=bank, engine=sampler, scorer=scorer, **values)


def test_what_vllm_does_not_give_comes_from_a_pass(base, make_bank, monkeypatch):
    """Values and entropies; the log-probs too, so that the ratio is 1. Its own log-probs give the weights."""
    checked = []

    def compare(data, check=checks.same_sampler):
        check(data)
        expected = score_tokens(
            trainer.bank, "policy", data.episodes, trainer.config, entropy=True, with_values=True
        )
        torch.testing.assert_close(data.logp_BT, expected.logp_BT)
        torch.testing.assert_close(data.values_BT, expected.values_BT)
        assert (expected.values_BT[data.episodes.mask_BT] != 0).all()
        mean = float(expected.entropy_BT.sum()) / data.tokens
        assert data.metrics["objective/entropy"] == pytest.approx(mean, rel=1e-4)
        weights = data.weights_BT[data.episodes.mask_BT]
        torch.testing.assert_close(weights, torch.ones_like(weights), atol=1e-3, rtol=0)
        checked.append(data)

    monkeypatch.setattr(checks, "same_sampler", compare)
    trainer = trainer_of(base, make_bank, temperature=0.9)
    assert trainer.step()["sampling/kl_k3"] < 1e-6
    assert checked


def upper_half(prompts, responses):
    """The share of tokens in the upper half of the vocabulary."""
    return torch.tensor([sum(token > tiny.VOCABULARY // 2 for token in r) / len(r) for r in responses])


def test_rewards_rise(base, make_bank):
    trainer = trainer_of(
        base, make_bank, scorer=upper_half, total_episodes=80, learning_rate=1e-2,
        kl=KLConfig(kind="fixed", init=0.0), score=ScoreConfig(normalization="running", clip=None),
    )  # fmt: skip
    scores = [trainer.step()["objective/scores"] for _ in range(10)]
    assert sum(scores[-3:]) / 3 > sum(scores[:3]) / 3 + 0.1


def test_a_resumed_run_equals_an_uninterrupted_one(base, make_bank):
    uninterrupted = trainer_of(base, make_bank)
    uninterrupted.step()
    state = copy.deepcopy(uninterrupted.state_dict())
    expected = uninterrupted.step()
    resumed = trainer_of(base, make_bank)
    resumed.load_state_dict(state)
    actual = resumed.step()
    assert actual["objective/kl"] == expected["objective/kl"]
    assert resumed.bank.checksum("policy") == uninterrupted.bank.checksum("policy")


def test_an_adapter_that_is_not_applied_is_noticed(base, make_bank, monkeypatch):
    trainer = trainer_of(base, make_bank)

    def without(engine, request):
        model = engine._model
        return model.get_base_model() if isinstance(model, PeftModel) else model

    monkeypatch.setattr(fake_vllm.LLM, "_with", without)
    with pytest.raises(StageError, match="the sampler's log-probs are not the policy's"):
        trainer.step()


def test_the_stage_trains_with_vllm(tmp_path, base, training_context):
    inputs = {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "reward": tiny.reward_artifact(tmp_path / "reward", base),
    }
    config = PPOConfig(
        sampler="vllm", total_episodes=16, batch_size=8, num_mini_batches=2, response_length=5, eval_updates=1,
        eval_prompts=3, max_prompt_length=30, kl=KLConfig(kind="fixed", init=0.05),
    )  # fmt: skip
    (tmp_path / "out").mkdir()
    ctx, _ = training_context()
    metrics = stage.run(config, inputs, tmp_path / "out", ctx)
    assert metrics["updates"] == 2
    assert (tmp_path / "out/evaluations.jsonl").read_text(encoding="utf-8").count("\n") == 3
    [engine] = fake_vllm.LLM.instances
    assert engine.calls.count("generate") >= 5, "two updates, three evaluations"
    assert load_policy(base, tiny.Artifact("ppo", tmp_path / "out", "ppo"), "cpu") is not None
