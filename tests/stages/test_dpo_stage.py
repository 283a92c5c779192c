from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file

from data.schema import Ranking, read_rankings_file, write_jsonl
from pipeline.config.dpo import DPOConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError
from stages import dpo
from stages.models.adapters import load_policy
from stages.reward.groups import Order

FAST = {"per_device_train_batch_size": 4, "logging_steps": 1, "learning_rate": 1e-2}
NAME = "adapter/adapter_model.safetensors"


@pytest.fixture(params=[True])
def lora(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture
def inputs(tmp_path: Path, lora: bool) -> dict[str, Artifact]:
    base = tiny.base_artifact(tmp_path / "base")
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base, lora=lora),
        "rank": tiny.rank_artifact(tmp_path / "rank"),
    }


def run(inputs: dict[str, Artifact], out: Path, ctx: Any, **values: Any) -> tuple[Artifact, dict[str, Any]]:
    out.mkdir()
    trainer = FAST | values.pop("trainer", {})
    config = DPOConfig(**({"max_length": 60, "trainer": trainer} | values))
    return Artifact("dpo", out, "dpo"), dpo.run(config, inputs, out, ctx)


def logp(model: Any, prompt: list[int], answer: list[int]) -> float:
    """Of an answer, read alone, by the model's own forward."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        logps = torch.log_softmax(model(ids).logits[0].double(), -1)
    places = range(len(prompt) - 1, ids.shape[1] - 1)
    return sum(float(logps[i, int(ids[0, i + 1])]) for i in places)


def pairs_of(inputs: dict[str, Artifact], split: str) -> list[tuple[list[int], list[int], list[int]]]:
    """(prompt, better, worse), straight from the rankings."""
    codec = tiny.codec()
    return [
        (
            codec.prompt(ranking.prompt),
            codec.completion(ranking.completions[i]),
            codec.completion(ranking.completions[j]),
        )
        for ranking in read_rankings_file(inputs["rank"].file("rankings.jsonl"))
        if ranking.split == split
        for i, j in ranking.pairs()
    ]


def test_pairs_are_the_strict_ones_of_the_rankings(inputs: dict[str, Artifact]) -> None:
    for split in ("train", "eval"):
        found, left_out = dpo.read_pairs(inputs, tiny.codec(), DPOConfig(max_length=60), split)
        assert sorted((p.prompt, p.chosen, p.rejected) for p in found) == sorted(pairs_of(inputs, split))
        assert left_out.total == 0
    longest = max(len(prompt) + max(len(a), len(b)) for prompt, a, b in pairs_of(inputs, "train"))
    fewer, left_out = dpo.read_pairs(inputs, tiny.codec(), DPOConfig(max_length=longest - 1), "train")
    assert len(fewer) < len(pairs_of(inputs, "train"))
    assert left_out.too_long


def test_which_pairs_of_a_ranking() -> None:
    order = Order([5, 6, 7], [2, 1, 2])
    assert set(dpo.strict_pairs(order, "all")) == {(6, 5), (6, 7)}
    assert list(dpo.strict_pairs(order, "extremes")) == [(6, 5)]
    assert list(dpo.strict_pairs(Order([0, 1], [1, 1]), "extremes")) == []


def weigh(inputs: dict[str, Artifact], weights: Sequence[float]) -> list[float]:
    """Gives the rankings weights in turn. Returns that of each training pair, with a mean over training rankings of
    1."""
    path = inputs["rank"].file("rankings.jsonl")
    rankings = [
        replace(ranking, metadata={"weight": weights[number % len(weights)]})
        for number, ranking in enumerate(read_rankings_file(path))
    ]
    write_jsonl(path, rankings)
    train = [ranking for ranking in rankings if ranking.split == "train"]
    mean = sum(ranking.weight for ranking in train) / len(train)
    return [ranking.weight / mean for ranking in train for _ in ranking.pairs()]


@pytest.mark.parametrize("weights", [[1.0], [5.0], [0.5, 2.0, 7.0]], ids=str)
@pytest.mark.parametrize("micro", [None, 1, 5])
def test_the_first_loss_and_the_first_step_are_those_of_the_paper(
    inputs: dict[str, Artifact],
    tmp_path: Path,
    training_context: Callable[..., Any],
    micro: int | None,
    weights: list[float],
) -> None:
    """Rafailov et al. 2023, equations 7 and (its gradient) below: the policy starts as its reference, so the loss
    is log 2 and the first gradient half of beta times that of the log-ratio, however the batch is divided. Both are
    means over pairs, weighted as their rankings are."""
    weight = weigh(inputs, weights)
    count = len(pairs_of(inputs, "train"))
    ctx, notes = training_context(state=f"state {micro}")
    trainer = {
        "max_steps": 1, "per_device_train_batch_size": count, "optim": "sgd", "learning_rate": 0.5,
        "lr_scheduler_type": "constant", "warmup_steps": 0, "max_grad_norm": 0.0, "weight_decay": 0.0,
    }  # fmt: skip
    made, metrics = run(inputs, tmp_path / f"out {micro}", ctx, beta=0.3, trainer=trainer, micro_batch_size=micro)
    assert metrics["train_loss"] == pytest.approx(np.log(2) * np.mean(weight), abs=1e-5)
    first = next(values for _, values in notes.logged if "loss" in values)
    assert first["rewards/margins"] == pytest.approx(0, abs=1e-5)

    policy = dpo.trainable_policy(inputs["base"], inputs["sft"], None, "cpu")
    before = {n: p.detach().clone() for n, p in policy.named_parameters() if p.requires_grad}
    total = torch.tensor(0.0)
    for (prompt, better, worse), scale in zip(pairs_of(inputs, "train"), weight, strict=True):
        for answer, sign in ((better, scale), (worse, -scale)):
            ids = torch.tensor([[*prompt, *answer]])
            logps = torch.log_softmax(policy(ids).logits[0, len(prompt) - 1 : -1], -1)
            total = total + sign * logps.gather(1, torch.tensor(answer)[:, None]).sum()
    (-0.5 * 0.3 * total / count).backward()
    after = load_file(made.file(NAME))
    gradients = {n: p.grad for n, p in policy.named_parameters() if p.requires_grad}
    assert len(gradients) == len(after)
    for name, gradient in gradients.items():
        stored = after[name.replace(".default.", ".")]
        assert gradient is not None
        torch.testing.assert_close(stored, before[name] - 0.5 * gradient, rtol=1e-4, atol=1e-5)
        assert gradient.any()


@pytest.mark.parametrize("lora", [True, False], indirect=True, ids=["lora", "full"])
def test_it_learns_and_is_measured_on_held_out_pairs(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any], lora: bool
) -> None:
    ctx, notes = training_context()
    values = {"num_train_epochs": 8, "learning_rate": 3e-2 if lora else 3e-3}
    before = {p: p.read_bytes() for artifact in inputs.values() for p in artifact.path.rglob("*") if p.is_file()}
    made, metrics = run(inputs, tmp_path / "out", ctx, beta=0.2, trainer=values)
    losses = [values["loss"] for _, values in notes.logged if "loss" in values]
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["pairs"] == len(pairs_of(inputs, "train"))
    assert metrics["prompts"] == 8

    reference = load_policy(inputs["base"], inputs["sft"], "cpu")
    policy = load_policy(inputs["base"], made, "cpu")
    margins = []
    for prompt, better, worse in pairs_of(inputs, "eval"):
        ours = logp(policy, prompt, better) - logp(policy, prompt, worse)
        theirs = logp(reference, prompt, better) - logp(reference, prompt, worse)
        margins.append(0.2 * (ours - theirs))
    assert metrics["eval_pairs"] == len(margins)
    assert metrics["eval_loss"] == pytest.approx(float(np.mean(np.log1p(np.exp(-np.array(margins))))), rel=1e-3)
    assert metrics["eval_accuracy"] == pytest.approx(float(np.mean(np.array(margins) > 0)))
    assert metrics["eval_accuracy"] > 0.8
    assert metrics["eval_accuracy_low"] <= metrics["eval_accuracy"] <= metrics["eval_accuracy_high"]
    assert {path: path.read_bytes() for path in before} == before
    if lora:
        assert sorted(path.name for path in made.path.rglob("*") if path.is_file()) == [
            "adapter_config.json", "adapter_model.safetensors",
        ]  # fmt: skip
        state = load_file(made.file(NAME))
        assert all(tensor.dtype == torch.float32 for tensor in state.values())
        assert not any(".ref." in name for name in state)


class Killed(Exception):
    pass


def test_resume_equals_no_interruption(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    values = {"trainer": {"max_steps": 6, "save_steps": 2, "logging_steps": 3}}
    ctx, undisturbed = training_context(state="whole")
    whole, metrics = run(inputs, tmp_path / "whole out", ctx, **values)

    ctx, notes = training_context(state="cut")
    advance = notes.advance

    def die(count: int = 1, **numbers: float) -> None:
        advance(count, **numbers)
        if notes.bars["dpo"] == 5:
            raise Killed

    notes.advance = die
    with pytest.raises(Killed):
        run(inputs, tmp_path / "cut out", ctx, **values)
    ctx, notes = training_context(state="cut")
    resumed, again = run(inputs, tmp_path / "resumed out", ctx, **values)
    assert notes.lines == ["resuming from step 4"]
    assert resumed.file(NAME).read_bytes() == whole.file(NAME).read_bytes()
    assert again == metrics
    assert notes.logged[0] == undisturbed.logged[1]  # the means over steps 4 to 6, one of them before the kill


def test_rankings_without_a_strict_pair_are_refused(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    rows = [Ranking(tiny.user("a"), ["b", "c"], [1, 1], annotator="ann", human=False)]
    write_jsonl(inputs["rank"].path / "rankings.jsonl", rows)
    with pytest.raises(DataError, match="dpo: 1 of 1 training rankings left out: all answers tied"):
        run(inputs, tmp_path / "out", training_context()[0])


def test_what_is_too_long_is_counted_and_the_key_named(
    inputs: dict[str, Artifact], tmp_path: Path, training_context: Callable[..., Any]
) -> None:
    long = Ranking(tiny.user("a"), ["b" * 80, "c"], [1, 2], annotator="ann", human=False)
    rows = list(read_rankings_file(inputs["rank"].file("rankings.jsonl")))
    write_jsonl(inputs["rank"].path / "rankings.jsonl", [*rows, long])
    ctx, notes = training_context()
    _, metrics = run(inputs, tmp_path / "out", ctx, trainer=FAST | {"max_steps": 1})
    assert metrics["dropped_rankings"] == metrics["dropped_rankings/longer than max_length"] == 1
    assert metrics["longest_rankings"] == 83
    assert metrics["read_rankings"] == 1 + sum(row.split == "train" for row in rows)
    held_out = sum(row.split == "eval" for row in rows)
    (line,) = [line for line in notes.lines if "left out" in line]
    assert line == (
        f"dpo: 1 of {len(rows) - held_out + 1} training rankings left out: prompt and answer longer than "
        f"dpo.max_length = 60 tokens (the longest has 83). 88 keeps all; "
        f"{100 / metrics['read_rankings']:.1f} % are lost."
    )
    write_jsonl(inputs["rank"].path / "rankings.jsonl", [long])
    with pytest.raises(
        DataError, match=r"1 of 1 training rankings left out: prompt and answer longer than dpo.max_length = 60"
    ) as raised:
        run(inputs, tmp_path / "none", training_context(state="none state")[0])
    assert (raised.value.where, raised.value.hint) == ("dpo.max_length", "raise dpo.max_length to 88")


def test_rankings_of_all_rounds_count(inputs: dict[str, Artifact]) -> None:
    once, _ = dpo.read_pairs(inputs, tiny.codec(), DPOConfig(max_length=60), "train")
    twice, _ = dpo.read_pairs(inputs | {"rank-2": inputs["rank"]}, tiny.codec(), DPOConfig(max_length=60), "train")
    assert len(twice) == 2 * len(once)
    assert json.dumps([pair.chosen for pair in twice]).count("[") == 2 * len(once) + 1
