"""RAFT: n answers of the SFT model, the best by PPO's reward, and training on these."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from safetensors.torch import load_file

from pipeline.config.load import LoadedRecipe
from pipeline.config.ppo import AggregateConfig
from pipeline.config.raft import RAFTStageConfig
from pipeline.config.sft import LoRAConfig
from pipeline.config.terms import LengthConfig, ScoreConfig, TermConfig
from pipeline.engine import registry
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages import raft
from stages.models import checkpoint
from stages.models.adapters import load_actor, load_policy
from stages.models.text import IGNORED
from stages.ppo.signal import reward_signal
from stages.sampling.episodes import response_logprobs
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.load import load_scorer

FAST = {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2}
NAME = "adapter/adapter_model.safetensors"
N = 4


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Artifact]:
    base = tiny.base_artifact(tmp_path / "base")
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "reward": tiny.reward_artifact(tmp_path / "reward", base),
    }


def config(**values: Any) -> RAFTStageConfig:
    trainer = FAST | values.pop("trainer", {})
    plain: dict[str, Any] = {
        "best_of_n": N, "max_prompt_length": 20, "response_length": 6, "reward": AggregateConfig(),
        "score": ScoreConfig(), "missing_eos_penalty": None, "reward_model": None, "reward_model_revision": None,
        "trainer": trainer,
    }  # fmt: skip
    return RAFTStageConfig(**(plain | values))


def run(inputs: dict[str, Artifact], out: Path, ctx: Any, **values: Any) -> tuple[Artifact, dict[str, Any]]:
    out.mkdir()
    metrics = raft.run(config(**values), inputs, out, ctx)
    return Artifact("raft", out, "raft", metrics), metrics


def prompts(inputs: dict[str, Artifact]) -> list[EncodedPrompt]:
    codec = tiny.codec()
    rows = [row["prompt"] for row in inputs["data"].jsonl("prompts.jsonl") if row["split"] == "train"]
    return [EncodedPrompt(row, codec.prompt(row), "train") for row in rows]


def test_it_trains_on_the_answer_that_the_reward_model_scores_highest(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    ctx, notes = training_context()
    made, metrics = run(inputs, tmp_path / "out", ctx)
    answers = list(checkpoint.load(ctx.state_dir / "answers-0.pt")["answers"])
    assert [len(row) for row in answers] == 12 * [N]
    scorer = load_scorer(inputs["reward"], inputs, tiny.codec(), "cpu")
    by_prompt = {json.dumps(prompt.messages): prompt for prompt in prompts(inputs)}
    selected = list(made.jsonl("selected.jsonl"))
    assert len(selected) == 12
    for row, theirs in zip(selected, answers, strict=True):
        prompt = by_prompt[json.dumps(row["prompt"])]
        scores = scorer(N * [prompt], theirs).tolist()
        assert row["completion"] == tiny.codec().decode(theirs[scores.index(max(scores))])
    assert metrics["answers"] == 12 * N
    assert metrics["kl_bound"] == pytest.approx(math.log(4) - 3 / 4)
    assert metrics["reward_selected"] > metrics["reward"] == pytest.approx(0, abs=1e-5)
    assert notes.lines[0] == (
        "raft: the best of 4 answers to each of 12 prompts (48 samples). That policy has a KL of at most 0.64 nats "
        "per response."
    )


def test_labels_are_on_the_sampled_ids(inputs: dict[str, Artifact]) -> None:
    prompt = prompts(inputs)[0]
    (row,) = raft.as_dataset([prompt], [[7, 8, tiny.EOS]])
    assert row["input_ids"] == [*prompt.ids, 7, 8, tiny.EOS]
    assert row["labels"] == [IGNORED] * len(prompt.ids) + [7, 8, tiny.EOS]


def test_terms_are_normalised_weighted_and_added_before_the_best_is_selected(inputs: dict[str, Artifact]) -> None:
    """By hand, in Python: (length score - mean) / std, weight 2, against a pattern, weight -1, and a penalty."""
    terms = [
        TermConfig(name="short", weight=2.0, length=LengthConfig(target=1), score=ScoreConfig()),
        TermConfig(name="a", weight=-1.0, pattern="a"),
        TermConfig(name="seen", held_out=True, pattern="b"),
    ]
    values = config(reward=AggregateConfig(terms=terms), missing_eos_penalty=0.5)
    a, b = (tiny.codec().encode(letter)[0] for letter in "ab")
    answers = [[[a, tiny.EOS], [b, b, tiny.EOS]], [[b, b, b], [a, b, a, tiny.EOS]]]
    asked, flat = prompts(inputs)[:2], [ids for rows in answers for ids in rows]
    signal = reward_signal(values, inputs, tiny.codec(), "cpu")
    scores = signal([prompt for prompt in asked for _ in range(2)], flat)
    ended = torch.tensor([ids[-1] == tiny.EOS for ids in flat])
    rewards = raft.combined(signal, values, scores, ended).view(2, 2)

    lengths = [-abs(len(ids) - 1.0) for ids in flat]
    mean = sum(lengths) / 4
    std = (sum((value - mean) ** 2 for value in lengths) / 4) ** 0.5
    expected = [
        2 * (value - mean) / std - (a in ids) - 0.5 * (ids[-1] != tiny.EOS)
        for value, ids in zip(lengths, flat, strict=True)
    ]
    torch.testing.assert_close(rewards.flatten(), torch.tensor(expected))
    best = [0 if expected[0] >= expected[1] else 1, 0 if expected[2] >= expected[3] else 1]
    assert raft.select(rewards) == best


def test_of_equal_rewards_the_first_is_selected_and_no_difference_is_an_error(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    assert raft.select(torch.tensor([[0.0, 2.0, 2.0], [1.0, 1.0, 0.0]])) == [1, 0]
    same = AggregateConfig(terms=[TermConfig(name="none", pattern="Q{9}")])
    with pytest.raises(StageError, match="gives all answers to a prompt the same score"):
        run(inputs, tmp_path / "out", training_context()[0], reward=same)


def test_it_learns_the_selected_answers_and_nothing_else_changes(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    before = {p: p.read_bytes() for artifact in inputs.values() for p in artifact.path.rglob("*") if p.is_file()}
    ctx, notes = training_context()
    made, metrics = run(inputs, tmp_path / "out", ctx, trainer={"num_train_epochs": 8})
    losses = [values["loss"] for _, values in notes.logged if "loss" in values]
    assert losses[-1] < losses[0]
    assert {path: path.read_bytes() for path in before} == before
    codec = tiny.codec()
    rows = list(made.jsonl("selected.jsonl"))
    asked = [codec.prompt(row["prompt"]) for row in rows]
    answers = [codec.encode(row["completion"]) for row in rows]
    ours, theirs = (
        response_logprobs(
            load_actor(inputs["base"], policy, "cpu"), asked, answers, codec.stop_ids, codec.pad_id,
            temperature=1.0, batch_size=8,
        )[0].sum()
        for policy in (made, inputs["sft"])
    )  # fmt: skip
    assert ours > theirs + 1
    assert sorted(path.name for path in made.path.rglob("*") if path.is_file()) == [
        "adapter_config.json", "adapter_model.safetensors", "selected.jsonl",
    ]  # fmt: skip
    assert metrics["train_loss"] > 0


class Killed(Exception):
    pass


@pytest.mark.parametrize(("bar", "at"), [("raft: sampling", 30), ("raft", 5)], ids=["sampling", "training"])
def test_resume_equals_no_interruption(
    inputs: dict[str, Artifact],
    tmp_path: Path,
    training_context: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    bar: str,
    at: int,
) -> None:
    monkeypatch.setattr(raft, "PROMPTS_PER_PART", 5)
    values = {"trainer": {"num_train_epochs": 2, "save_steps": 2}, "batch_size": 4}
    ctx, _ = training_context(state="whole")
    whole, metrics = run(inputs, tmp_path / "whole out", ctx, **values)
    ctx, notes = training_context(state="cut")
    advance = notes.advance

    def die(count: int = 1, **numbers: float) -> None:
        advance(count, **numbers)
        if notes.bars.get(bar, 0) >= at:
            raise Killed

    notes.advance = die
    with pytest.raises(Killed):
        run(inputs, tmp_path / "cut out", ctx, **values)
    parts = {path.name: path.stat().st_mtime_ns for path in ctx.state_dir.glob("answers-*.pt")}
    assert len(parts) == (1 if at == 30 else 3)
    ctx, notes = training_context(state="cut")
    resumed, again = run(inputs, tmp_path / "resumed out", ctx, **values)
    assert resumed.file(NAME).read_bytes() == whole.file(NAME).read_bytes()
    assert resumed.file("selected.jsonl").read_bytes() == whole.file("selected.jsonl").read_bytes()
    assert again == metrics
    assert {name: (ctx.state_dir / name).stat().st_mtime_ns for name in parts} == parts, "sampled only once"


@pytest.mark.parametrize("lora", [LoRAConfig(r=3, lora_alpha=6), None], ids=["lora", "full"])
def test_without_sft_it_samples_and_starts_from_the_base_model(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any], lora: LoRAConfig | None
) -> None:
    del inputs["sft"]
    ctx, _ = training_context()
    made, _ = run(inputs, tmp_path / "out", ctx, lora=lora, trainer={"learning_rate": 1e-8, "max_steps": 1})
    ids = torch.tensor(tiny.rows(1, 6, 6))
    logits = [load_policy(inputs["base"], policy, "cpu")(ids).logits for policy in (None, made)]
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    assert (made.path / ("model" if lora is None else "adapter")).is_dir()


@pytest.mark.parametrize("quantization", ["nf4", {"qat": "int3-g32", "activations": "none"}], ids=["nf4", "qat"])
def test_it_starts_at_the_sft_policy_of_a_quantised_base(
    tmp_path: Path, training_context: Callable[..., Any], quantization: Any
) -> None:
    """With a learning rate of nearly nothing the first loss is that of the SFT policy as it answers: trl may not
    cast its adapter, and the sum of weight and adapter is rounded."""
    base = tiny.base_artifact(tmp_path / "base", quantization=quantization)
    inputs = {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "reward": tiny.reward_artifact(tmp_path / "reward", base),
    }
    ctx, notes = training_context()
    trainer = {"max_steps": 1, "per_device_train_batch_size": 12, "learning_rate": 1e-9}
    made, _ = run(inputs, tmp_path / "out", ctx, trainer=trainer)
    stored, before = load_file(made.file(NAME)), load_file(inputs["sft"].file(NAME))
    for name, tensor in before.items():
        torch.testing.assert_close(stored[name], tensor, rtol=0, atol=1e-7)
    selected = json.loads(json.dumps(list(made.jsonl("selected.jsonl"))))
    answers = checkpoint.load(ctx.state_dir / "answers-0.pt")["answers"]
    codec = tiny.codec()
    ids = [
        next(row for row in theirs if codec.decode(row) == chosen["completion"])
        for theirs, chosen in zip(answers, selected, strict=True)
    ]
    logps, counts = response_logprobs(
        load_actor(base, inputs["sft"], "cpu"), [codec.prompt(row["prompt"]) for row in selected], ids,
        codec.stop_ids, codec.pad_id, temperature=1.0, batch_size=12,
    )  # fmt: skip
    (loss,) = [values["loss"] for _, values in notes.logged if "loss" in values]
    assert loss == pytest.approx(-float(logps.sum() / counts.sum()), rel=2e-3)


def test_an_unfit_reward_model_is_refused(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    (inputs["reward"].path / "quality.json").write_text(json.dumps({"unfit": ["its scores follow length"]}))
    with pytest.raises(StageError, match="its scores follow length"):
        run(inputs, tmp_path / "out", training_context()[0])
    _, metrics = run(inputs, tmp_path / "forced", replace(training_context()[0], force=True))
    assert metrics["forced_past_gate"] == ["its scores follow length"]


def test_it_is_planned_where_the_recipe_asks_for_it_and_follows_the_reward_of_ppo(
    load: Callable[..., LoadedRecipe],
) -> None:
    def needs(*sets: str) -> dict[str, tuple[str, ...]]:
        return {spec.name: of for spec, of in registry.planned(load(*sets).recipe)}

    assert "raft" not in needs()
    assert "raft" not in needs("raft.enabled=false raft.best_of_n=4")
    assert needs("raft.enabled=true")["raft"] == ("base", "data", "sft", "reward")
    assert needs("raft.best_of_n=4")["eval"][-1] == "raft"
    later = needs("raft.enabled=true rounds=2")
    assert later["raft"] == ("base", "data", "sft", "reward-2")
    assert "raft" in later["eval"]

    spec = registry.STAGES["raft"]
    plain = spec.keyed(load("raft.enabled=true").recipe)
    assert spec.keyed(load("raft.enabled=true raft.batch_size=3 ppo.learning_rate=1e-3").recipe) == plain
    for value in ("raft.best_of_n=4", "ppo.score.clip=1", "ppo.missing_eos_penalty=1", "ppo.reward.held_out=0"):
        assert (spec.keyed(load(f"raft.enabled=true {value}").recipe) == plain) == ("held_out" in value)
