import json
import shutil

import pytest
import tiny
import torch
from safetensors.torch import load_file

from pipeline.config.ppo import AggregateConfig, KLConfig, PPOConfig, ScoreConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, StageError
from stages.models import checkpoint
from stages.models.adapters import load_policy
from stages.models.distributed import World
from stages.ppo import roles, stage
from stages.ppo.rewards import ScoreNormalizer
from stages.sampling.prompts import EncodedPrompt
from stages.scoring import reward_model

SMALL = {
    "value": "adapter",
    "total_episodes": 32,
    "batch_size": 8,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "response_length": 5,
    "learning_rate": 1e-2,
    "max_prompt_length": 30,
    "eval_updates": 2,
    "eval_prompts": 3,
    "save_updates": 2,
    "kl": KLConfig(kind="adaptive", init=0.05, target=1.0, horizon=100),
}


@pytest.fixture
def base(tmp_path):
    return tiny.base_artifact(tmp_path / "base")


def make_inputs(tmp_path, base, *, sft_lora=True, reward_lora=True):
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data"),
        "sft": tiny.policy_artifact(tmp_path / "sft", base, lora=sft_lora),
        "reward": tiny.reward_artifact(tmp_path / "reward", base, lora=reward_lora),
    }


@pytest.fixture
def inputs(tmp_path, base):
    return make_inputs(tmp_path, base)


def run(inputs, out, ctx, **values):
    out.mkdir()
    return Artifact("ppo", out, "ppo"), stage.run(PPOConfig(**(SMALL | values)), inputs, out, ctx)


def fingerprints(artifact):
    """The texts that are stored with a reward model, as prompts and responses, and their scores: (N,) or (N, M)."""
    rows = artifact.json("reward.json")["fingerprints"]
    prompts = [EncodedPrompt([], row["ids"][:1], "train") for row in rows]
    return (prompts, [row["ids"][1:] for row in rows]), torch.tensor([row["score"] for row in rows])


# --- Roles ---


@pytest.mark.parametrize(
    ("estimator", "lora"),
    [("reinforce", True), ("reinforce", False), ("rloo", True), ("grpo", True)],
)
def test_without_a_critic_no_value_head_is_made_or_written(tmp_path, base, estimator, lora, training_context):
    inputs = make_inputs(tmp_path, base, sft_lora=lora, reward_lora=lora)
    values = {"value": "trunk", "advantage_estimator": estimator, "num_generations": 2}
    bank, _ = roles.build(PPOConfig(**SMALL | values), inputs, tiny.codec(), "cpu")
    assert set(bank.heads) == {"reward"}
    assert set(bank.roles) == {"reference", "policy", "reward"}
    ctx, _ = training_context()
    policy, metrics = run(inputs, tmp_path / "out", ctx, **values)
    assert metrics["updates"] == 4
    assert not (policy.path / "value.safetensors").exists()
    assert load_policy(base, policy, "cpu") is not None


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_policy_starts_as_the_reference_and_value_as_the_reward_model(tmp_path, base, lora):
    made = make_inputs(tmp_path, base, sft_lora=lora, reward_lora=lora)
    bank, reward = roles.build(PPOConfig(**SMALL), made, tiny.codec(), "cpu")
    assert set(bank.roles) == set(tiny.ROLES)
    assert bank.trainable == {"policy", "value"}
    assert bank.checksum("policy") == bank.checksum("reference")
    assert bank.checksum("value") == bank.checksum("reward")
    assert bank.checksum("policy") != bank.checksum("value")
    texts, expected = fingerprints(made["reward"])
    assert reward(*texts).tolist() == pytest.approx(expected.tolist(), abs=1e-4)

    prompt = torch.tensor(tiny.rows(1, 6, 6))
    policy = load_policy(base, made["sft"], "cpu")
    with bank.active("policy") as actor, torch.no_grad():
        torch.testing.assert_close(actor.lm(prompt).logits, policy(prompt).logits)


@pytest.mark.parametrize(("sft_lora", "reward_lora"), [(True, False), (False, True)])
def test_a_reward_model_of_the_other_kind_is_scored_on_its_own(tmp_path, base, sft_lora, reward_lora):
    made = make_inputs(tmp_path, base, sft_lora=sft_lora, reward_lora=reward_lora)
    bank, reward = roles.build(PPOConfig(**SMALL), made, tiny.codec(), "cpu")
    assert "reward" not in bank.roles
    assert bank.trainable == {"policy", "value"}
    texts, expected = fingerprints(made["reward"])
    assert reward(*texts).tolist() == pytest.approx(expected.tolist(), abs=1e-4)


def test_a_value_head_on_the_trunk_brings_no_value_role(inputs):
    bank, _ = roles.build(PPOConfig(**(SMALL | {"value": "trunk"})), inputs, tiny.codec(), "cpu")
    assert set(bank.roles) == {"reference", "policy", "reward"}
    assert set(bank.heads) == {"policy", "reward"}
    assert bank.trainable == {"policy"}


def test_the_value_head_starts_in_units_of_normalised_scores(inputs):
    config = PPOConfig(**SMALL)
    bank, _ = roles.build(config, inputs, tiny.codec(), "cpu")
    normalizer = ScoreNormalizer(ScoreConfig(), World())
    normalizer.observe(torch.tensor([1.0, 2.0, 6.0]))
    roles.start_value(bank, config, normalizer)
    ids = torch.tensor(tiny.rows(2, 6, 6))
    with bank.active("reward") as actor:
        raw = actor.scalar(actor.hidden(ids))
    with bank.active("value") as actor:
        torch.testing.assert_close(actor.scalar(actor.hidden(ids)), (raw - 3) / (14 / 3) ** 0.5)


def test_a_reward_model_of_another_base_is_refused(tmp_path, inputs):
    spec = inputs["reward"].json("reward.json")
    (inputs["reward"].path / "reward.json").write_text(json.dumps(spec | {"base": "another"}))
    with pytest.raises(StageError, match="another base model"):
        roles.build(PPOConfig(**SMALL), inputs, tiny.codec(), "cpu")


def test_a_reward_model_that_changed_is_refused(inputs):
    head = reward_model.ScalarHead.load(inputs["reward"].file("head.safetensors"))
    with torch.no_grad():
        head.bias += 1
    head.save(inputs["reward"].file("head.safetensors"))
    with pytest.raises(StageError, match="does not give the scores it was stored with"):
        roles.build(PPOConfig(**SMALL), inputs, tiny.codec(), "cpu")


@pytest.mark.parametrize("kind", ["mean", "min", "uncertainty"])
def test_an_ensembles_members_are_roles_of_the_bank(tmp_path, inputs, base, kind):
    inputs["reward"] = tiny.reward_artifact(tmp_path / "three", base, members=3)
    config = PPOConfig(**SMALL, reward=AggregateConfig(aggregate=kind))
    bank, reward = roles.build(config, inputs, tiny.codec(), "cpu")
    assert set(bank.roles) == {*tiny.ROLES, "reward-1", "reward-2"}
    assert bank.trainable == {"policy", "value"}
    assert bank.checksum("value") == bank.checksum("reward")
    texts, scores = fingerprints(inputs["reward"])
    members = scores.T
    spread = members.std(0, unbiased=False)
    expected = {"mean": members.mean(0), "min": members.amin(0), "uncertainty": members.mean(0) - spread}[kind]
    torch.testing.assert_close(reward(*texts), expected, atol=1e-4, rtol=1e-4)


def test_an_ensemble_beside_a_fully_trained_policy_stands_on_its_own(tmp_path, base):
    made = make_inputs(tmp_path, base, sft_lora=False)
    made["reward"] = tiny.reward_artifact(tmp_path / "two", base, members=2)
    bank, reward = roles.build(PPOConfig(**SMALL), made, tiny.codec(), "cpu")
    assert set(bank.roles) == {"reference", "policy", "value"}
    texts, scores = fingerprints(made["reward"])
    torch.testing.assert_close(reward(*texts), scores.mean(1), atol=1e-4, rtol=1e-4)


def test_one_member_has_no_minimum(inputs):
    config = PPOConfig(**SMALL, reward=AggregateConfig(aggregate="min"))
    with pytest.raises(StageError, match="the reward model has one member"):
        roles.build(config, inputs, tiny.codec(), "cpu")


def test_no_gradient_reaches_an_ensembles_members(tmp_path, inputs, base, training_context):
    inputs["reward"] = tiny.reward_artifact(tmp_path / "two", base, members=2)
    built = []
    build = roles.build

    def remember(*arguments):
        built.append(build(*arguments))
        return built[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(roles, "build", remember)
        ctx, notes = training_context()
        _, metrics = run(inputs, tmp_path / "out", ctx)
    assert metrics["updates"] == 4
    bank, _ = built[0]
    fresh, _ = build(PPOConfig(**SMALL), inputs, tiny.codec(), "cpu")
    for role in ("reward", "reward-1"):
        assert all(p.grad is None and not p.requires_grad for p in bank.parameters_of(role))
        assert bank.checksum(role) == fresh.checksum(role)
    assert bank.checksum("value") != fresh.checksum("value")
    logged = [values["objective/scores_disagreement"] for _, values in notes.logged]
    assert len(logged) == 4
    assert all(value > 0 for value in logged)


# --- The stage ---


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_it_makes_a_policy_that_can_be_loaded(tmp_path, base, training_context, lora):
    made = make_inputs(tmp_path, base, sft_lora=lora, reward_lora=lora)
    ctx, notes = training_context()
    artifact, metrics = run(made, tmp_path / "out", ctx)
    assert (metrics["updates"], metrics["episodes"], metrics["prompts"]) == (4, 32, 12)
    assert [step for step, _ in notes.logged] == [1, 2, 3, 4]
    assert notes.bars["ppo"] == 4
    evaluations = list(artifact.jsonl("evaluations.jsonl"))
    assert [point["update"] for point in evaluations] == [0, 2, 4]
    assert evaluations[0]["kl"] == 0.0
    assert abs(evaluations[-1]["kl"]) == abs(metrics["final_kl"]) > 1e-4
    assert all(
        len(point["responses"]) == len(point["prompts"]) == 2 for point in evaluations
    )  # half of the four held out
    prompt = torch.tensor(tiny.rows(1, 6, 6))
    with torch.no_grad():
        before = load_policy(base, made["sft"], "cpu")(prompt).logits
        after = load_policy(base, artifact, "cpu")(prompt).logits
    assert (before - after).abs().max() > 0.01
    assert load_file(artifact.file("value.safetensors"))["head.weight"].shape == (1, tiny.HIDDEN)


class Killed(Exception):
    pass


def run_killed(inputs, out, training_context, **values):
    """A run of the state `cut` that is killed in its third update."""
    ctx, notes = training_context(state="cut")
    log = notes.log

    def die(step, **numbers):
        if step == 3:
            raise Killed
        log(step, **numbers)

    notes.log = die
    with pytest.raises(Killed):
        run(inputs, out, ctx, **values)


@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_resume_is_exact(inputs, tmp_path, training_context, value):
    """Killed in its third update, after the checkpoint of the second, and a run that was not: the same."""
    values = {"value": value, "score": ScoreConfig(normalization="running"), "ptx_coef": 0.1}
    ctx, notes = training_context(state="whole")
    whole, _ = run(inputs, tmp_path / "whole out", ctx, **values)
    expected = notes.logged

    run_killed(inputs, tmp_path / "cut out", training_context, **values)

    ctx, notes = training_context(state="cut")
    resumed, _ = run(inputs, tmp_path / "resumed out", ctx, **values)
    assert "resuming from update 2 of 4" in notes.lines
    assert notes.truncated == [2]
    for name in ("adapter/adapter_model.safetensors", "value.safetensors", "evaluations.jsonl"):
        assert resumed.file(name).read_bytes() == whole.file(name).read_bytes(), name
    for (step, ours), (other, theirs) in zip(notes.logged, expected[2:], strict=True):
        assert step == other
        for name, number in theirs.items():
            if "second" not in name and name != "mfu" and not name.startswith("time/"):
                assert ours[name] == number, (step, name)


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None], ids=["empty", "rubbish", "truncated"])
def test_a_damaged_checkpoint_is_refused(inputs, tmp_path, training_context, content):
    ctx, _ = training_context()
    run(inputs, tmp_path / "out", ctx)
    path = ctx.state_dir / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:2000] if content is None else content)
    with pytest.raises(StageError, match="the checkpoint is damaged"):
        run(inputs, tmp_path / "again", ctx)


def test_gradient_checkpointing_changes_nothing(inputs, tmp_path, training_context):
    states = []
    for on in (False, True):
        ctx, _ = training_context(state=f"checkpointing {on}")
        artifact, _ = run(inputs, tmp_path / f"out {on}", ctx, gradient_checkpointing=on, total_episodes=8)
        states.append(load_file(artifact.file("adapter") / "adapter_model.safetensors"))
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-4, atol=1e-5)


def test_an_unfit_reward_model_is_refused_unless_forced(inputs, tmp_path, training_context):
    reasons = ["its accuracy is that of a coin"]
    inputs["reward"].file("quality.json").write_text(json.dumps({"unfit": reasons}))
    with pytest.raises(StageError, match="unfit for PPO: its accuracy is that of a coin"):
        run(inputs, tmp_path / "out", training_context()[0])
    _, metrics = run(inputs, tmp_path / "forced", training_context(state="f", force=True)[0], total_episodes=8)
    assert metrics["forced_past_gate"] == reasons


def test_prompts_that_are_all_too_long(inputs, tmp_path, training_context):
    with pytest.raises(
        DataError, match=r"ppo: 12 of 12 training prompts left out: longer than ppo\.max_prompt_length = 1 "
    ):
        run(inputs, tmp_path / "out", training_context()[0], max_prompt_length=1)


def test_a_full_disk_leaves_the_old_checkpoint(inputs, tmp_path, training_context, monkeypatch):
    ctx, _ = training_context()
    run(inputs, tmp_path / "out", ctx, total_episodes=8)
    path = ctx.state_dir / "checkpoint.pt"
    old = path.read_bytes()

    def full(state, out):
        out.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StageError, match="No space left on device"):
        checkpoint.save(path, {})
    assert path.read_bytes() == old


# --- A later round ---


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_later_round_goes_on_from_the_newest_policy_against_the_same_reference(
    tmp_path, base, training_context, lora
):
    made = make_inputs(tmp_path, base, sft_lora=lora, reward_lora=lora)
    first, metrics = run(made, tmp_path / "first", training_context()[0])
    first = Artifact("ppo", first.path, "ppo", metrics)
    later = made | {"ppo": first, "reward-2": tiny.reward_artifact(tmp_path / "reward 2", base, lora=lora, seed=8)}
    del later["reward"]
    bank, _ = roles.build(PPOConfig(**SMALL), later, tiny.codec(), "cpu")
    prompt = torch.tensor(tiny.rows(1, 6, 6))
    for role, artifact in (("policy", first), ("reference", made["sft"])):
        alone = load_policy(base, artifact, "cpu")
        with bank.active(role) as actor, torch.no_grad():
            torch.testing.assert_close(actor.lm(prompt).logits, alone(prompt).logits)
    assert bank.checksum("value") == bank.checksum("reward")

    ctx, notes = training_context(state="second")
    second, metrics = run(later, tmp_path / "second out", ctx)
    evaluations = list(second.jsonl("evaluations.jsonl"))
    assert evaluations[0]["kl"] == pytest.approx(list(first.jsonl("evaluations.jsonl"))[-1]["kl"], abs=1e-5)
    assert notes.logged[0][1]["objective/kl_coef"] == first.metrics["kl_coef"] != SMALL["kl"].init
    third = later | {"ppo-2": Artifact("ppo-2", second.path, "ppo", metrics)}
    bank, _ = roles.build(PPOConfig(**SMALL), third, tiny.codec(), "cpu")
    with bank.active("policy") as actor, torch.no_grad():
        alone = load_policy(base, second, "cpu")
        torch.testing.assert_close(actor.lm(prompt).logits, alone(prompt).logits)


def later_inputs(inputs, tmp_path, training_context):
    first, metrics = run(inputs, tmp_path / "first", training_context()[0])
    return inputs | {"ppo": Artifact("ppo", first.path, "ppo", metrics)}


def test_a_fixed_price_of_kl_stays_that_of_the_recipe(inputs, tmp_path, training_context):
    later = later_inputs(inputs, tmp_path, training_context)
    ctx, notes = training_context(state="second")
    run(later, tmp_path / "second out", ctx, kl=KLConfig(kind="fixed", init=0.07), total_episodes=8)
    assert notes.logged[0][1]["objective/kl_coef"] == 0.07


SOLVED = KLConfig(kind="solved", target=0.05, num_prompts=4, num_generations=16)


def test_a_solved_coefficient_is_printed_and_written_with_its_table(inputs, tmp_path, training_context):
    ctx, notes = training_context()
    policy, metrics = run(inputs, tmp_path / "out", ctx, kl=SOLVED)
    written = policy.json("optimum.json")
    assert written["target"]["kl"] == 0.05
    assert metrics["kl_coef"] == written["target"]["beta"] == notes.logged[-1][1]["objective/kl_coef"]
    assert notes.bars["ppo: samples for the KL coefficient"] == written["num_prompts"] * written["num_generations"]
    assert any(line.startswith("ppo: KL coefficient ") for line in notes.lines)
    assert any(line.endswith("<- kl.target") for line in notes.lines)


def test_a_resumed_run_does_not_solve_again(inputs, tmp_path, training_context):
    whole, _ = run(inputs, tmp_path / "whole out", training_context(state="whole")[0], kl=SOLVED)
    run_killed(inputs, tmp_path / "cut out", training_context, kl=SOLVED)
    ctx, notes = training_context(state="cut")
    resumed, _ = run(inputs, tmp_path / "resumed out", ctx, kl=SOLVED)
    assert "ppo: samples for the KL coefficient" not in notes.bars
    for name in ("optimum.json", "adapter/adapter_model.safetensors", "evaluations.jsonl"):
        assert resumed.file(name).read_bytes() == whole.file(name).read_bytes(), name


def test_a_later_round_solves_its_coefficient_anew(inputs, tmp_path, training_context):
    later = later_inputs(inputs, tmp_path, training_context)
    ctx, notes = training_context(state="second")
    second, _ = run(later, tmp_path / "second out", ctx, kl=SOLVED, total_episodes=8)
    assert notes.logged[0][1]["objective/kl_coef"] == second.json("optimum.json")["target"]["beta"]
    assert notes.logged[0][1]["objective/kl_coef"] != later["ppo"].metrics["kl_coef"]


@pytest.mark.parametrize("wrong", ["policy", "reference"])
def test_a_policy_or_reference_that_is_not_the_stored_one_is_refused(
    inputs, tmp_path, training_context, base, wrong
):
    """The policy as SFT left it, whose KL would be zero again; or another SFT model as the reference."""
    later = later_inputs(inputs, tmp_path, training_context)
    if wrong == "policy":
        for file in inputs["sft"].file("adapter").iterdir():
            shutil.copy(file, later["ppo"].file("adapter") / file.name)
    else:
        later["sft"] = tiny.policy_artifact(tmp_path / "other sft", base, seed=9)
    with pytest.raises(StageError, match=f"the {wrong} does not reproduce the log-probs that ppo stored") as caught:
        run(later, tmp_path / "second out", training_context(state="second")[0])
    assert "tutelage run ppo --fresh" in caught.value.hint


def test_the_stored_responses_are_the_policys_and_their_logprobs_too(inputs, tmp_path, base, training_context):
    """Token by token, by a model of its own, not through the bank."""
    artifact, _ = run(inputs, tmp_path / "out", training_context()[0])
    found = artifact.json("fingerprints.json")
    assert len(found["prompts"]) == len(found["responses"]) == 8
    for role, source in (("policy", artifact), ("reference", inputs["sft"])):
        model = load_policy(base, source, "cpu")
        for prompt, response, expected in zip(found["prompts"], found["responses"], found[role], strict=True):
            with torch.no_grad():
                logp = model(torch.tensor([prompt + response])).logits[0].log_softmax(-1)
            tokens = [float(logp[len(prompt) + i - 1, token]) for i, token in enumerate(response)]
            assert tokens == pytest.approx(expected, abs=1e-4)
    assert found["policy"] != found["reference"]


def test_resume_is_exact_in_a_later_round(inputs, tmp_path, training_context):
    later = later_inputs(inputs, tmp_path, training_context)
    whole, _ = run(later, tmp_path / "whole out", training_context(state="whole")[0])
    run_killed(later, tmp_path / "cut out", training_context)
    resumed, _ = run(later, tmp_path / "resumed out", training_context(state="cut")[0])
    for name in (
        "adapter/adapter_model.safetensors",
        "value.safetensors",
        "evaluations.jsonl",
        "fingerprints.json",
    ):
        assert resumed.file(name).read_bytes() == whole.file(name).read_bytes(), name
