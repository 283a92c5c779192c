import json
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch

from data.schema import Ranking, prompt_key
from pipeline.config.reward import GateConfig, RewardConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, StageError
from stages.models.adapters import new_adapter
from stages.models.heads import ScalarHead
from stages.reward import stage, training
from stages.reward.groups import Order, TokenEncoder, collate, group_rankings
from stages.scoring import reward_model


def ranking(prompt, completions, ranks, annotator="ann"):
    return Ranking(tiny.user(prompt), completions, ranks, annotator, human=False)


# --- Grouping ---


def test_rankings_of_a_prompt_share_a_group_and_equal_completions_a_row():
    codec = tiny.codec()
    rankings = [
        ranking("p", ["aa", "bb", "cc"], [1, 2, 3]),
        ranking("q", ["aa", "dd"], [2, 1]),
        ranking("p", ["cc", "aa"], [1, 2], "bob"),
    ]
    groups, left_out = group_rankings(rankings, TokenEncoder(codec), max_length=20)
    p, q = (groups[prompt_key(tiny.user(name))] for name in "pq")
    assert (len(groups), left_out.long_answers, left_out.total) == (2, set(), 0)
    assert p.rows == [codec.prompt(tiny.user("p")) + codec.completion(text) for text in ("aa", "bb", "cc")]
    assert p.orders == [Order([0, 1, 2], [1, 2, 3]), Order([2, 0], [1, 2])]
    assert q.orders == [Order([0, 1], [2, 1])]


def test_a_completion_that_two_systems_gave_is_not_ranked_against_itself():
    encoder = TokenEncoder(tiny.codec())
    groups, _ = group_rankings([ranking("p", ["aa", "aa", "bb"], [1, 3, 2])], encoder, 20)
    (group,) = groups.values()
    assert group.orders == [Order([0, 1], [1, 2])]
    assert not group_rankings([ranking("p", ["aa", "aa"], [1, 2])], encoder, 20)[0]


def test_completions_that_are_too_long_leave_their_rankings():
    codec = tiny.codec()
    rankings = [ranking("p", ["a", "b" * 30, "c"], [1, 2, 3]), ranking("p", ["b" * 30, "c"], [1, 2])]
    groups, left_out = group_rankings(rankings, TokenEncoder(codec), max_length=10)
    (group,) = groups.values()
    assert (len(left_out.long_answers), len(group.rows)) == (1, 2)
    assert group.orders == [Order([0, 1], [1, 3])]


def test_a_batch_holds_whole_prompts():
    codec = tiny.codec()
    groups, _ = group_rankings(
        [ranking("p", ["aaa", "b"], [1, 2]), ranking("q", ["cc", "d", "e"], [2, 1, 1])], TokenEncoder(codec), 20
    )
    batch = collate(list(groups.values()), codec.pad_id)
    rows = [row for group in groups.values() for row in group.rows]
    assert batch["rows"]["lengths_B"].tolist() == [len(row) for row in rows]
    for ids, row in zip(batch["rows"]["ids_BL"].tolist(), rows, strict=True):
        assert ids == row + [codec.pad_id] * (len(ids) - len(row))
    assert batch["orders"] == [Order([0, 1], [1, 2]), Order([2, 3, 4], [2, 1, 1])]
    assert batch["spans"] == [(0, 2), (2, 5)]


def test_loss_is_the_weighted_mean_over_rankings():
    scores = torch.tensor([1.0, 0.0, 2.0, -1.0, 3.0])
    orders = [Order([0, 1], [1, 2], weight=1.5), Order([2, 3, 4], [2, 1, 1], weight=0.5)]
    objective = training.objective_of(RewardConfig(), [])
    loss, accuracy = training.ranking_loss(scores, orders, objective)
    softplus = lambda x: float(np.log1p(np.exp(x)))  # noqa: E731
    # The first: 0 before 1, one pair. The second: 3 before 2 and 4 before 2, of three pairs.
    assert loss.item() == pytest.approx((1.5 * softplus(-1) + 0.5 * (softplus(3) + softplus(-1)) / 3) / 2, rel=1e-5)
    assert accuracy.item() == pytest.approx(2 / 3)


# --- The model ---


@pytest.fixture
def model():
    lm = new_adapter(tiny.lm(0), tiny.LORA, "reward")
    return reward_model.RewardModel(lm, ScalarHead(tiny.HIDDEN))


def test_state_holds_only_what_learns(model):
    state = model.state_dict()
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert set(state) == learns
    assert {"head.weight", "head.bias"} < learns
    assert all("lora_" in name or name.startswith("head.") for name in learns)


@pytest.mark.parametrize("batch_size", [1, 2, 10])
def test_scores_are_read_at_each_rows_last_token(model, batch_size):
    rows = tiny.rows(5, 1, 8)
    scores = reward_model.score_rows(model.eval(), rows, batch_size, "cpu")
    for row, score in zip(rows, scores.tolist(), strict=True):
        with torch.no_grad():
            hidden = model.lm.get_base_model().model(torch.tensor([row])).last_hidden_state
        expected = hidden[0, -1] @ model.head.weight[0] + model.head.bias[0]
        assert score == pytest.approx(expected.item(), abs=1e-5)


# --- The stage ---

FAST = {"per_device_train_batch_size": 2, "logging_steps": 1, "learning_rate": 3e-2}


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
    trainer = FAST | values.pop("trainer", {})
    config = RewardConfig(**({"lora": tiny.LORA, "max_length": 40, "trainer": trainer} | values))
    out.mkdir()
    metrics = stage.run(config, inputs, out, ctx)
    return Artifact("reward", out, "reward"), metrics


def scorer(artifact, base):
    from peft import PeftModel

    from stages.models.loading import load_backbone

    lm = PeftModel.from_pretrained(load_backbone(base, "cpu"), artifact.file("adapter"))
    return reward_model.RewardModel(lm, ScalarHead.load(artifact.file(reward_model.HEAD))).eval()


@pytest.mark.parametrize("objective", ["bradley_terry", "plackett_luce"])
def test_it_learns_what_the_rankings_say(inputs, tmp_path, training_context, objective):
    ctx, notes = training_context()
    artifact, metrics = run(inputs, tmp_path / "out", ctx, objective=objective, trainer={"num_train_epochs": 12})
    losses = [values["loss"] for _, values in notes.logged if "loss" in values]
    assert losses[-1] < 0.5 * losses[0]
    assert metrics["eval_accuracy"] > 0.7
    assert (metrics["prompts"], metrics["rankings"]) == (8, 8)
    assert metrics["unfit"] == artifact.json("quality.json")["unfit"]
    # 16 prompts that are checked; steps; rankings that are read; 24 texts for the bag of words; the 4 held-out
    # prompts at each of 4 evaluations; 12 held-out answers, whole and cut in half; the 4 held-out rankings, for the
    # accuracy and for the agreement.
    assert notes.advanced == 16 + 48 + 12 + 24 + 4 * 4 + 2 * 12 + 2 * 4
    reward_model.verify(artifact, scorer(artifact, inputs["base"]), "cpu")
    reward_model.check_base(artifact, inputs["base"])


def test_another_base_is_refused(inputs, tmp_path, training_context):
    artifact, _ = run(inputs, tmp_path / "out", training_context()[0], trainer={"max_steps": 1})
    other = tiny.base_artifact(tmp_path / "other", seed=5)
    with pytest.raises(StageError, match="another base model"):
        reward_model.check_base(artifact, other)
    with pytest.raises(StageError, match="does not give the scores it was stored with"):
        reward_model.verify(artifact, scorer(artifact, other), "cpu")


def test_a_changed_head_is_noticed(inputs, tmp_path, training_context):
    artifact, _ = run(inputs, tmp_path / "out", training_context()[0], trainer={"max_steps": 1})
    model = scorer(artifact, inputs["base"])
    assert reward_model.verify(artifact, model, "cpu") < 1e-4
    with torch.no_grad():
        model.head.bias += 0.05
    with pytest.raises(StageError, match=r"off by 0\.05"):
        reward_model.verify(artifact, model, "cpu")
    torch.nn.init.constant_(model.head.weight, float("nan"))
    with pytest.raises(StageError, match="NaN or infinite"):
        reward_model.verify(artifact, model, "cpu")


def test_no_fingerprints(inputs, tmp_path, training_context):
    artifact, _ = run(inputs, tmp_path / "out", training_context()[0], fingerprints=0, trainer={"max_steps": 1})
    assert artifact.json("reward.json")["fingerprints"] == []
    assert reward_model.verify(artifact, scorer(artifact, inputs["base"]), "cpu") == 0.0


def test_it_starts_as_the_sft_adapters_copy(inputs, tmp_path, training_context):
    """With a learning rate of nothing, the adapter is the SFT model's."""
    from safetensors.torch import load_file

    artifact, _ = run(
        inputs, tmp_path / "out", training_context()[0], trainer={"max_steps": 1, "learning_rate": 0.0}
    )
    ours, theirs = (load_file(a.file("adapter") / "adapter_model.safetensors") for a in (artifact, inputs["sft"]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_adapters_of_other_shapes_are_refused(inputs, tmp_path, training_context):
    with pytest.raises(StageError, match="LoRA shapes differ"):
        run(inputs, tmp_path / "out", training_context()[0], lora=replace(tiny.LORA, r=3))


def test_every_weight_may_be_trained(inputs, tmp_path, training_context):
    inputs["sft"] = tiny.policy_artifact(tmp_path / "full", inputs["base"], lora=False)
    artifact, metrics = run(
        inputs,
        tmp_path / "out",
        training_context()[0],
        lora=None,
        trainer={"max_steps": 2, "learning_rate": 1e-3},
    )
    from stages.models.adapters import load_full

    model = reward_model.RewardModel(
        load_full(inputs["base"], artifact, "cpu"), ScalarHead.load(artifact.file("head.safetensors"))
    )
    assert reward_model.verify(artifact, model, "cpu") < 1e-4
    assert metrics["trainable_parameters"] == sum(p.numel() for p in model.parameters())


def test_rankings_that_order_nothing_are_refused(inputs, tmp_path, training_context):
    rows = list(inputs["rank"].jsonl("rankings.jsonl"))
    path = inputs["rank"].file("rankings.jsonl")
    path.write_text("".join(json.dumps(row | {"ranks": [1] * len(row["ranks"])}) + "\n" for row in rows))
    with pytest.raises(DataError, match="training rankings left out: all answers tied"):
        run(inputs, tmp_path / "out", training_context()[0])


def test_the_ceiling_is_the_agreement_on_the_held_out_prompts(inputs, tmp_path, training_context):
    """Two annotators agree on every training prompt and on no held-out one. Without overlap there it is unknown."""
    rows = list(inputs["rank"].jsonl("rankings.jsonl"))
    path = inputs["rank"].file("rankings.jsonl")

    def second(row):
        ranks = row["ranks"] if row["split"] == "train" else [4 - rank for rank in row["ranks"]]
        return row | {"annotator": "second", "ranks": ranks}

    held_out = [row for row in rows if row["split"] == "eval"]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *map(second, rows)]))
    artifact, metrics = run(inputs, tmp_path / "out", training_context()[0], trainer={"max_steps": 1})
    assert (metrics["eval_agreement"], metrics["eval_agreement_pairs"]) == (0.0, 3 * len(held_out))
    assert (metrics["eval_agreement_low"], metrics["eval_agreement_high"]) == (0.0, 0.0)
    only_training = [second(row) for row in rows if row["split"] == "train"]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, *only_training]))
    artifact, metrics = run(
        inputs, tmp_path / "unknown", training_context(state="other")[0], trainer={"max_steps": 1}
    )
    assert (metrics["eval_agreement"], metrics["eval_agreement_pairs"]) == (None, 0)
    assert artifact.json("quality.json")["metrics"]["eval_agreement"] is None


def test_a_reward_model_that_is_no_better_than_words_says_so(inputs, tmp_path, training_context):
    """Rankings by a word, and a model that never learns."""
    rows = list(inputs["rank"].jsonl("rankings.jsonl"))
    path = inputs["rank"].file("rankings.jsonl")
    words = [row | {"completions": ["zz ab", "ab", "cd"], "ranks": [1, 2, 2]} for row in rows]
    path.write_text("".join(json.dumps(row) + "\n" for row in words))
    ctx, notes = training_context()
    artifact, metrics = run(
        inputs, tmp_path / "out", ctx, init="base", trainer={"max_steps": 1, "learning_rate": 0}
    )
    assert metrics["eval_bag_of_words_accuracy"] == 1.0
    (warning,) = metrics["warnings"]
    assert artifact.json("quality.json")["warnings"] == [warning]
    assert f"warning about the reward model: {warning}" in notes.lines
    assert not any("words" in reason for reason in metrics["unfit"])
    ctx, notes = training_context(state="other")
    gate = GateConfig(above_bag_of_words=True)
    _, metrics = run(
        inputs, tmp_path / "strict", ctx, init="base", gate=gate, trainer={"max_steps": 1, "learning_rate": 0}
    )
    assert metrics["warnings"] == []
    assert any("reward.gate.above_bag_of_words" in reason for reason in metrics["unfit"])


@pytest.mark.parametrize("objective", ["bradley_terry", "plackett_luce"])
def test_batches_of_nothing_but_ties(inputs, tmp_path, training_context, objective):
    """Such a batch teaches nothing, and neither stops training nor spoils what is logged."""
    rows = list(inputs["rank"].jsonl("rankings.jsonl"))
    path = inputs["rank"].file("rankings.jsonl")
    tied = [row | ({"ranks": [1] * len(row["ranks"])} if i % 4 else {}) for i, row in enumerate(rows)]
    path.write_text("".join(json.dumps(row) + "\n" for row in tied))
    ctx, notes = training_context()
    run(inputs, tmp_path / "out", ctx, objective=objective, trainer={"per_device_train_batch_size": 1})
    accuracies = [values["accuracy"] for _, values in notes.logged if "accuracy" in values]
    assert len(accuracies) == 2, "of the two batches that hold a preference"
    assert all(0 <= accuracy <= 1 for accuracy in accuracies)


def test_resume_is_exact(inputs, tmp_path, training_context):
    """Interrupted after its checkpoint at step 2, against not at all."""

    class Killed(Exception):
        pass

    trainer = {"max_steps": 4, "save_steps": 2}
    ctx, _ = training_context(state="whole")
    whole, _ = run(inputs, tmp_path / "whole out", ctx, trainer=trainer)

    ctx, notes = training_context(state="cut")
    log = notes.log

    def die(step, **values):
        log(step, **values)
        if step == 3:
            raise Killed

    notes.log = die
    with pytest.raises(Killed):
        run(inputs, tmp_path / "cut out", ctx, trainer=trainer)
    ctx, notes = training_context(state="cut")
    resumed, _ = run(inputs, tmp_path / "resumed out", ctx, trainer=trainer)
    assert notes.lines[0] == "resuming from step 2"
    assert notes.truncated == [2]
    for name in ("head.safetensors", "adapter/adapter_model.safetensors"):
        assert resumed.file(name).read_bytes() == whole.file(name).read_bytes(), name


@pytest.mark.parametrize("damage", ["missing", "extra"])
def test_a_state_of_another_model_is_refused(model, damage):
    state = model.state_dict()
    if damage == "missing":
        state.pop("head.bias")
    else:
        state["more"] = torch.zeros(1)
    with pytest.raises(StageError, match="other parameters"):
        model.load_state_dict(state, strict=False)


# --- Rounds ---


def test_later_rounds_train_and_measure_on_the_rankings_of_all(tmp_path, training_context):
    base = tiny.base_artifact(tmp_path / "base")
    inputs = {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base),
    }
    inputs["rank"] = tiny.rank_artifact(tmp_path / "rank", train=6, held_out=2)
    config = RewardConfig(lora=tiny.LORA, trainer={"max_steps": 1}, max_length=40)

    def run(name, inputs):
        (tmp_path / name).mkdir()
        return stage.run(config, inputs, tmp_path / name, training_context(state=f"{name} state")[0])

    one = run("one", inputs)
    second = tiny.rank_artifact(tmp_path / "rank 2", train=5, held_out=3)
    # Its prompts are others than the first round's.
    text = second.file("rankings.jsonl").read_text()
    second.file("rankings.jsonl").write_text(text.replace('"content": "', '"content": "x'))
    two = run("two", inputs | {"rank-2": second})
    assert (one["rankings"], two["rankings"]) == (6, 11)
    assert (one["prompts"], two["prompts"]) == (6, 11)
    assert (one["eval_prompts"], two["eval_prompts"]) == (2, 5)
