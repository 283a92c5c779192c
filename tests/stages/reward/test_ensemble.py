import json

import numpy as np
import pytest
import tiny
import torch

from data.schema import write_jsonl
from pipeline.config.reward import PretrainOnConfig, RewardConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, StageError
from stages.reward import stage
from stages.reward.groups import TokenEncoder, group_rankings
from stages.scoring import reward_model

FAST = {"per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 3e-2}
TEXTS = tiny.rows(12, 3, 12, seed=7)


@pytest.fixture
def inputs(tmp_path):
    base = tiny.base_artifact(tmp_path / "base")
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
        "rank": tiny.rank_artifact(tmp_path / "rank"),
    }


def run(inputs, out, ctx, **values):
    config = RewardConfig(**({"lora": tiny.LORA, "max_length": 40, "trainer": FAST, "gate": None} | values))
    out.mkdir()
    metrics = stage.run(config, inputs, out, ctx)
    return Artifact("reward", out, "reward"), metrics


def members_of(artifact, inputs):
    model = reward_model.load_reward(artifact, inputs["base"], "cpu")
    return reward_model.score_rows(model.members, TEXTS, 4, "cpu").numpy()


def standard(scores):
    return (scores - scores.mean(-1, keepdims=True)) / scores.std(-1, keepdims=True)


@pytest.mark.parametrize("values", [{}, {"init": "base", "bootstrap": True}], ids=["sft", "base, bootstrap"])
def test_members_are_single_models_trained_apart(inputs, tmp_path, training_context, values):
    """Up to the common scale: a member's scores, standardised, are those of a single model from its seed."""
    ctx, notes = training_context(seed=5)
    artifact, metrics = run(inputs, tmp_path / "three", ctx, ensemble=3, **values)
    found = members_of(artifact, inputs)
    assert found.shape == (3, len(TEXTS))
    for member in range(3):
        alone, _ = run(
            inputs, tmp_path / f"alone {member}", training_context(5 + member, state=str(member))[0], **values
        )
        (expected,) = members_of(alone, inputs)
        np.testing.assert_allclose(standard(found[member]), standard(expected), atol=1e-3)
    assert np.abs(standard(found[0]) - standard(found[1])).max() > 0.05, "seeds make them differ"
    assert len(metrics["eval_member_accuracy"]) == 3
    assert metrics["eval_disagreement"] > 0
    steps = [step for step, _ in notes.logged]
    assert steps == sorted(steps), "one member's steps follow on the other's"
    assert {name for _, logged in notes.logged for name in logged} >= {"loss", "member-1/loss", "member-2/loss"}


def test_members_have_a_common_scale(inputs, tmp_path, training_context):
    artifact, _ = run(inputs, tmp_path / "out", training_context()[0], ensemble=2)
    model = reward_model.load_reward(artifact, inputs["base"], "cpu")
    own = group_rankings(stage._ranked([inputs["rank"]], "train"), TokenEncoder(tiny.codec()), 40)[0]
    rows = [row for group in own.values() for row in group.rows]
    scores = reward_model.score_rows(model.members, rows, 8, "cpu")
    np.testing.assert_allclose(scores.mean(1), scores.mean().expand(2), atol=1e-4)
    np.testing.assert_allclose(scores.std(1), scores.std(1).mean().expand(2), rtol=1e-4)
    mean = reward_model.score_rows(model, rows, 8, "cpu")
    np.testing.assert_allclose(mean, scores.mean(0), atol=1e-5)


def test_every_members_fingerprints_are_verified(inputs, tmp_path, training_context):
    artifact, _ = run(inputs, tmp_path / "out", training_context()[0], ensemble=2)
    assert all(len(row["score"]) == 2 for row in artifact.json("reward.json")["fingerprints"])
    head = reward_model.ScalarHead.load(artifact.file("head-1.safetensors"))
    with torch.no_grad():
        head.bias += 0.5
    head.save(artifact.file("head-1.safetensors"))
    with pytest.raises(StageError, match=r"off by 0\.5"):
        reward_model.load_reward(artifact, inputs["base"], "cpu")


def test_one_member_is_as_simple_as_ever(inputs, tmp_path, training_context):
    artifact, metrics = run(inputs, tmp_path / "out", training_context()[0])
    names = sorted(
        path.relative_to(artifact.path).as_posix() for path in artifact.path.rglob("*") if path.is_file()
    )
    adapter = ["adapter/adapter_config.json", "adapter/adapter_model.safetensors"]
    assert names == [*adapter, "head.safetensors", "quality.json", "reward.json"]
    assert isinstance(artifact.json("reward.json")["fingerprints"][0]["score"], float)
    assert "eval_disagreement" not in metrics


# --- Interruptions ---


def cut_after(notes, lines):
    """Makes the metrics log raise after so many lines with a loss."""

    class Killed(Exception):
        pass

    log, left = notes.log, [lines]

    def die(step, **values):
        log(step, **values)
        left[0] -= any(name.endswith("loss") for name in values)
        if not left[0]:
            raise Killed

    notes.log = die
    return Killed


@pytest.mark.parametrize("lines", [2, 5, 6])
def test_resume_is_exact_wherever_it_was_cut(inputs, tmp_path, training_context, lines):
    """Two members of four steps each, a checkpoint every second step."""
    values = {"ensemble": 2, "trainer": FAST | {"save_steps": 2}}
    whole, _ = run(inputs, tmp_path / "whole out", training_context(state="whole")[0], **values)
    ctx, notes = training_context(state="cut")
    with pytest.raises(cut_after(notes, lines)):
        run(inputs, tmp_path / "cut out", ctx, **values)
    ctx, notes = training_context(state="cut")
    resumed, _ = run(inputs, tmp_path / "resumed", ctx, **values)
    trained = {name.rpartition("/")[0] for _, logged in notes.logged for name in logged if name.endswith("loss")}
    assert ("" in trained) == (lines < 5), "a finished member is not trained again"
    for name in ("head", "head-1"):
        file = f"{name}.safetensors"
        assert resumed.file(file).read_bytes() == whole.file(file).read_bytes()


# --- Learning from other rankings first ---


def weaker(path, prompts):
    """Pairs in which the answer with more z's is better."""
    rows = [
        {"prompt": prompt, "chosen": f"{'z' * (1 + i % 3)}a", "rejected": "a"} for i, prompt in enumerate(prompts)
    ]
    write_jsonl(path, rows)
    return PretrainOnConfig(path=str(path), format="pairs", human=False, trainer=FAST)


def held_out_prompts(inputs):
    rows = inputs["data"].jsonl("prompts.jsonl")
    return [row["prompt"][0]["content"] for row in rows if row["split"] == "eval"]


def test_pretraining_comes_first_and_leaves_held_out_prompts_alone(inputs, tmp_path, training_context):
    held_out = [
        row["prompt"][0]["content"] for row in inputs["data"].jsonl("prompts.jsonl") if row["split"] == "eval"
    ]
    source = weaker(tmp_path / "more.jsonl", ["one", "two", "three", "four", *held_out])
    ctx, notes = training_context()
    # With a learning rate of nothing afterwards, what was learnt comes from the weaker rankings.
    artifact, metrics = run(
        inputs,
        tmp_path / "out",
        ctx,
        pretrain_on=PretrainOnConfig(
            path=source.path, format="pairs", human=False, trainer=FAST | {"num_train_epochs": 20}
        ),
        trainer=FAST | {"learning_rate": 0.0},
    )
    assert metrics["pretraining_rankings"] == 4
    assert metrics["human"] is False, "nothing that learnt from simulated rankings is called human"
    losses = [logged["pretrain/loss"] for _, logged in notes.logged if "pretrain/loss" in logged]
    assert losses[-1] < 0.5 * losses[0]
    first_own = min(step for step, logged in notes.logged if "loss" in logged)
    assert first_own > max(step for step, logged in notes.logged if "pretrain/loss" in logged)
    codec = tiny.codec()
    rows = [codec.prompt(tiny.user("five")) + codec.completion(text) for text in ("zzza", "a")]
    model = reward_model.load_reward(artifact, inputs["base"], "cpu")
    better, worse = reward_model.score_rows(model, rows, 2, "cpu").tolist()
    assert better > worse


def test_nothing_left_to_pretrain_on(inputs, tmp_path, training_context):
    held_out = [
        row["prompt"][0]["content"] for row in inputs["data"].jsonl("prompts.jsonl") if row["split"] == "eval"
    ]
    with pytest.raises(
        DataError, match=r"every ranking of reward\.pretrain_on is of an excluded or held-out prompt"
    ):
        run(
            inputs,
            tmp_path / "out",
            training_context()[0],
            pretrain_on=weaker(tmp_path / "more.jsonl", held_out),
        )


# --- Weights ---


def test_reliability_is_asked_of_the_rank_stage(inputs, tmp_path, training_context):
    """All weight on one of two annotators: as if the other had ranked nothing."""
    agreement = inputs["rank"].path / "agreement.json"
    agreement.write_text(json.dumps({"alpha": None}))
    with pytest.raises(StageError, match="no reliability of annotators"):
        run(inputs, tmp_path / "none", training_context()[0], annotator_weights="reliability")
    weights = {"annotator 0": 0.5, "annotator 1": 0.0}
    agreement.write_text(json.dumps({"weights": weights}))
    trainer = FAST | {"per_device_train_batch_size": 8, "num_train_epochs": 2}
    weighted, _ = run(
        inputs,
        tmp_path / "weighted",
        training_context(state="w")[0],
        annotator_weights="reliability",
        trainer=trainer,
    )
    rows = [
        row | ({"ranks": [1] * len(row["ranks"])} if row["annotator"] == "annotator 1" else {})
        for row in inputs["rank"].jsonl("rankings.jsonl")
        if row["split"] == "train"
    ]
    write_jsonl(inputs["rank"].path / "rankings.jsonl", rows)
    # Ties cost Bradley-Terry nothing; the other's rankings weigh twice, which only scales the gradient, and Adam
    # does not mind.
    alone, _ = run(inputs, tmp_path / "alone", training_context(state="a")[0], trainer=trainer)
    np.testing.assert_allclose(members_of(weighted, inputs), members_of(alone, inputs), atol=2e-2)
