"""Evaluations: their judge, their prompts, the selected policy, the stop; and all of it after a kill."""

import published
import pytest
import tiny
import torch
from ppo_case import Rigged, count_of

from data.schema import prompt_key, write_jsonl
from pipeline.config.ppo import AggregateConfig, KLConfig, MonitorConfig, PPOConfig, ScoreConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.eval.prompts import unseen_prompts
from stages.models.adapters import load_actor
from stages.models.text import Codec
from stages.ppo import judges, roles, stage
from stages.ppo.rewards import RewardSignal
from stages.ppo.watch.evaluation import evaluation_prompts
from stages.sampling.decoding import generate
from stages.sampling.prompts import EncodedPrompt, load_prompts
from stages.scoring.judge import ScoringJudge
from stages.scoring.reward_model import RewardEnsemble
from stages.scoring.scorer import TokenScorer

LENGTH = 5
SMALL = {
    "value": "trunk",
    "total_episodes": 48,
    "batch_size": 8,
    "num_ppo_epochs": 2,
    "num_mini_batches": 2,
    "response_length": LENGTH,
    "learning_rate": 1e-2,
    "max_prompt_length": 30,
    "eval_updates": 1,
    "eval_prompts": 16,
    "save_updates": 3,
    "kl": KLConfig(kind="fixed", init=0.0),
}


@pytest.fixture
def base(tmp_path):
    return tiny.base_artifact(tmp_path / "base")


@pytest.fixture
def inputs(tmp_path, base):
    return make_inputs(tmp_path, base)


def make_inputs(tmp_path, base, *, lora=True):
    return {
        "base": base,
        "data": tiny.data_artifact(tmp_path / "data", train=12, held_out=32),
        "sft": tiny.policy_artifact(tmp_path / "sft", base, lora=lora),
        "reward": tiny.reward_artifact(tmp_path / "reward", base, lora=lora),
    }


def run(inputs, out, ctx, **values):
    out.mkdir()
    metrics = stage.run(PPOConfig(**(SMALL | values)), inputs, out, ctx)
    return Artifact("ppo", out, "ppo", metrics)


def judge_by(score):
    return ScoringJudge("a test’s", "score", Rigged(score))


@pytest.fixture
def judged(monkeypatch):
    """The reward model itself judges, times a sign: its mean score goes up and down along these short runs."""

    def use(sign=1.0):
        def build(config, inputs, codec, bank, device):
            scorer = TokenScorer(RewardEnsemble(bank, ["reward"]), codec, device, batch_size=64)
            return judge_by(lambda prompts, responses: sign * scorer(prompts, responses))

        monkeypatch.setattr(judges, "build", build)

    return use


@pytest.fixture
def overoptimised(monkeypatch):
    """A reward that says more at each call and a judge who says less, whatever the answers."""
    calls = {"score": 0, "judge": 0}
    build_roles = roles.build

    def rigged(*arguments):
        bank, reward = build_roles(*arguments)

        def score(prompts, responses):
            calls["score"] += 1
            return reward(prompts, responses) + calls["score"]

        return bank, RewardSignal(Rigged(score), AggregateConfig())

    def judge(prompts, responses):
        calls["judge"] += 1
        return torch.tensor([-calls["judge"] + 0.01 * i for i in range(len(prompts))])

    monkeypatch.setattr(roles, "build", rigged)
    monkeypatch.setattr(judges, "build", lambda *arguments: judge_by(judge))


def answers(inputs, artifact, seed=0, length=LENGTH, of=slice(16, 32)):
    """What an artifact's policy says to the point's prompts, from the point's random numbers, without the bank."""
    codec = tiny.codec()
    prompts, _ = load_prompts(inputs["data"], codec, "eval", 30)
    asked = [prompt.ids for prompt in prompts[of]]
    uniform = torch.rand((len(asked), length), generator=torch.Generator().manual_seed(seed))
    found = generate(
        load_actor(inputs["base"], artifact, "cpu"),
        asked,
        uniform,
        temperature=1.0,
        stop_ids=codec.stop_ids,
        pad_id=codec.pad_id,
        batch_size=16,
    )
    return [codec.decode(row) for row in found]


# --- Which policy ---


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_the_best_points_policy_is_selected(tmp_path, base, training_context, judged, lora):
    judged()
    made = make_inputs(tmp_path, base, lora=lora)
    values = {"monitor": MonitorConfig(stop=False), **({} if lora else {"learning_rate": 3e-3})}
    best = run(made, tmp_path / "best", training_context()[0], **values)
    evaluations = list(best.jsonl("evaluations.jsonl"))
    marks = [point["judge"] for point in evaluations]
    assert 0 < marks.index(max(marks)) < len(evaluations) - 1, "the case is one where the best is neither end"
    chosen = evaluations[marks.index(max(marks))]
    assert answers(made, best) == chosen["responses"] != evaluations[-1]["responses"]
    assert best.metrics["selected_update"] == chosen["update"]
    assert best.metrics["updates"] == 6
    assert [best.metrics[f"final_{name}"] for name in ("kl", "judge")] == [chosen["kl"], chosen["judge"]]


def test_the_last_policy_is_selected_on_request(inputs, tmp_path, training_context, judged):
    judged(-1.0)
    artifact = run(inputs, tmp_path / "out", training_context()[0], checkpoint="last", total_episodes=16)
    assert answers(inputs, artifact) == list(artifact.jsonl("evaluations.jsonl"))[-1]["responses"]
    assert artifact.metrics["selected_update"] == 2


def test_the_starting_policy_is_selected_when_none_is_better(inputs, tmp_path, training_context, overoptimised):
    artifact = run(inputs, tmp_path / "out", training_context()[0], total_episodes=16)
    assert artifact.metrics["selected_update"] == 0
    assert artifact.metrics["final_kl"] == pytest.approx(0, abs=1e-6)
    assert answers(inputs, artifact) == answers(inputs, inputs["sft"])


def test_without_a_judge_the_last_policy_is_selected_with_a_message(inputs, tmp_path, training_context):
    ctx, notes = training_context()
    artifact = run(inputs, tmp_path / "out", ctx, total_episodes=16)
    evaluations = list(artifact.jsonl("evaluations.jsonl"))
    assert "judge" not in evaluations[0]
    assert answers(inputs, artifact) == evaluations[-1]["responses"]
    assert artifact.metrics["judge"] == "none"
    assert any("so the last policy is kept" in line for line in notes.lines)


def test_a_later_round_starts_at_the_selected_points_kl_coefficient(inputs, tmp_path, training_context, judged):
    judged()
    kl = KLConfig(kind="adaptive", init=0.01, target=0.1, horizon=20)
    monitor = MonitorConfig(stop=False)
    artifact = run(inputs, tmp_path / "out", training_context()[0], kl=kl, monitor=monitor)
    evaluations = {point["update"]: point for point in artifact.jsonl("evaluations.jsonl")}
    chosen = evaluations[artifact.metrics["selected_update"]]
    assert artifact.metrics["kl_coef"] == chosen["kl_coef"] != evaluations[6]["kl_coef"]


# --- The stop ---


def test_it_stops_when_the_judge_falls_while_the_score_rises(inputs, tmp_path, training_context, overoptimised):
    ctx, notes = training_context()
    artifact = run(inputs, tmp_path / "out", ctx)
    evaluations = list(artifact.jsonl("evaluations.jsonl"))
    assert artifact.metrics["updates"] == artifact.metrics["stopped_at"] == evaluations[-1]["update"] == 2
    assert artifact.metrics["planned_updates"] == 6
    assert artifact.metrics["episodes"] == 16
    assert artifact.metrics["selected_update"] == 0
    events = {event["rule"]: event for event in artifact.jsonl("alerts.jsonl")}
    assert events["judge-falls"]["update"] < events["stopped"]["update"] == evaluations[-1]["update"]
    said = [line for line in notes.lines if "stopped: since update 0 the judge’s score fell" in line]
    assert len(said) == 1


@pytest.mark.slow
def test_a_policy_that_learns_to_please_a_bad_reward_is_stopped_and_taken_back(
    inputs, tmp_path, training_context, monkeypatch
):
    """The reward counts a letter; the judge wants it once. So the policy gets better and then worse, and the
    selected policy is better than the last one on prompts that no point used."""
    updates = 80  # the stop came before update 40 on some CPUs, and later on others, which round differently
    letter = tiny.codec().tokenizer.convert_tokens_to_ids("a")
    build, count = roles.build, count_of(letter)
    reward = RewardSignal(Rigged(count), AggregateConfig())
    monkeypatch.setattr(roles, "build", lambda *arguments: (build(*arguments)[0], reward))

    def mark(counts):
        return [1.0 - abs(n - 1) for n in counts]

    judge = judge_by(lambda prompts, responses: torch.tensor(mark(count(prompts, responses).tolist())))
    monkeypatch.setattr(judges, "build", lambda *arguments: judge)
    values = {
        "total_episodes": 64 * updates,
        "batch_size": 64,
        "num_ppo_epochs": 4,
        "response_length": 8,
        "eval_updates": 2,
        "score": ScoreConfig(normalization="running", clip=None),
    }
    # Sixteen prompts see little: at the usual level it would take a longer run.
    monitored = {"monitor": MonitorConfig(significance=0.3)}
    guarded = run(inputs, tmp_path / "guarded", training_context()[0], **values, **monitored)
    unmonitored = {"checkpoint": "last", "monitor": MonitorConfig(stop=False)}
    last = run(inputs, tmp_path / "last", training_context(state="l")[0], **values, **unmonitored)
    assert guarded.metrics["stopped_at"] < updates
    assert 0 < guarded.metrics["selected_update"] < guarded.metrics["stopped_at"]

    def quality(artifact):
        seeds = range(1, 9)
        texts = [t for seed in seeds for t in answers(inputs, artifact, length=8, of=slice(0, 16), seed=seed)]
        return sum(mark(text.count("a") for text in texts)) / len(texts)

    assert quality(guarded) > quality(last) + 0.2


# --- Kill and resume ---


class Killed(BaseException):
    pass


@pytest.mark.parametrize("value", ["adapter", "trunk"])
def test_the_selection_survives_a_kill_to_the_bit(inputs, tmp_path, training_context, judged, value):
    """At any update: before, at and after the best point, with and without a checkpoint since."""
    judged()
    values = {"value": value, "monitor": MonitorConfig(stop=False)}
    whole = run(inputs, tmp_path / "whole", training_context(state="whole state")[0], **values)
    best = whole.metrics["selected_update"]
    assert 0 < best < 6
    for kill in sorted({1, best + 1, 5}):
        ctx, notes = training_context(state=f"killed {kill}")
        log = notes.log

        def die(step, kill=kill, log=log, **numbers):
            if step == kill:
                raise Killed
            log(step, **numbers)

        notes.log = die
        with pytest.raises(Killed):
            run(inputs, tmp_path / f"cut {kill}", ctx, **values)
        resumed = run(inputs, tmp_path / f"resumed {kill}", training_context(state=f"killed {kill}")[0], **values)
        for file in sorted(path for path in whole.path.rglob("*") if path.is_file()):
            name = file.relative_to(whole.path)
            assert (resumed.path / name).read_bytes() == file.read_bytes(), (kill, name)
        assert resumed.metrics["selected_update"] == best


def test_a_stop_is_not_forgotten(inputs, tmp_path, training_context, overoptimised):
    values = {"save_updates": 1}
    whole = run(inputs, tmp_path / "whole", training_context()[0], **values)
    again = run(inputs, tmp_path / "again", training_context()[0], **values)  # from the checkpoint at the stop
    assert again.metrics["stopped_at"] == whole.metrics["stopped_at"]
    assert again.file("evaluations.jsonl").read_bytes() == whole.file("evaluations.jsonl").read_bytes()


def test_only_the_best_points_weights_stay_on_disk(inputs, tmp_path, training_context, judged):
    judged()
    ctx, _ = training_context()
    artifact = run(inputs, tmp_path / "out", ctx, save_updates=1, total_episodes=24)
    kept = [path.name for path in ctx.state_dir.glob("best-*")]
    assert kept == [f"best-{artifact.metrics['selected_update']}.pt"]


# --- Who judges ---


def fingerprints(artifact):
    """The texts that are stored with a reward model, as prompts and responses, and their scores."""
    rows = artifact.json("reward.json")["fingerprints"]
    prompts = [EncodedPrompt([], row["ids"][:1], "train") for row in rows]
    return (prompts, [row["ids"][1:] for row in rows]), torch.tensor([row["score"] for row in rows])


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
def test_a_member_that_judges_takes_no_part_in_the_reward(tmp_path, base, lora):
    made = make_inputs(tmp_path, base, lora=lora)
    made["reward"] = tiny.reward_artifact(tmp_path / "three", base, members=3)
    config = PPOConfig(
        **SMALL, monitor=MonitorConfig(judge="member"), reward=AggregateConfig(aggregate="min", held_out=1)
    )  # the lowest of two
    bank, reward = roles.build(config, made, tiny.codec(), "cpu")
    judge = judges.build(config, made, tiny.codec(), bank, "cpu")
    texts, scores = fingerprints(made["reward"])
    close = {"atol": 1e-4, "rtol": 1e-4}
    torch.testing.assert_close(reward(*texts), scores[:, :2].min(1).values, **close)
    torch.testing.assert_close(torch.tensor(judge.scores(*texts)), scores[:, 2], **close)


def test_one_member_cannot_do_both(inputs):
    config = PPOConfig(**SMALL, monitor=MonitorConfig(judge="member"))
    bank, _ = roles.build(config, inputs, tiny.codec(), "cpu")
    with pytest.raises(StageError, match="the reward model has one member"):
        judges.build(config, inputs, tiny.codec(), bank, "cpu")


def test_a_folder_is_a_reward_model(tmp_path, inputs, base):
    other = tiny.reward_artifact(tmp_path / "other", base, seed=11)
    config = PPOConfig(**SMALL, monitor=MonitorConfig(judge=str(other.path)))
    judge = judges.build(config, inputs, tiny.codec(), None, "cpu")
    texts, scores = fingerprints(other)
    torch.testing.assert_close(torch.tensor(judge.scores(*texts)), scores, atol=1e-4, rtol=1e-4)


def test_the_mean_score_of_a_lexicon_is_the_negative_slot_error_rate():
    codec = Codec(published.byte_level())
    judge = judges.build(PPOConfig(monitor=MonitorConfig(judge="venues")), {}, codec, None, "cpu")
    facts = ["name[Blue Fox], kind[pub]", "name[Silver Mill], kind[pub], area[harbour]"]
    prompts = [EncodedPrompt(tiny.user(text), [], "eval") for text in facts]
    texts = ["Blue Fox is a pub.", "Silver Mill is a pub."]
    marks = judge.scores(prompts, [codec.completion(text) for text in texts])
    assert marks[0] == 0
    assert sum(marks) / 2 == pytest.approx(-1 / 5), "one missing of five given facts"


# --- Which prompts ---


def test_held_out_prompts_come_in_an_order_of_their_own(inputs, tmp_path):
    """Tables are sorted: the last of them would be looked at, and the first evaluated."""
    rows = sorted(inputs["data"].jsonl("prompts.jsonl"), key=lambda row: row["prompt"][-1]["content"])
    found = []
    for name, table in (("up", rows), ("down", rows[::-1])):
        (tmp_path / name).mkdir()
        write_jsonl(tmp_path / name / "prompts.jsonl", table)
        data = Artifact("data", tmp_path / name, name)
        prompts, _ = load_prompts(data, tiny.codec(), "eval", 30)
        found.append([prompt.messages[-1]["content"] for prompt in prompts])
    assert found[0] == found[1]
    assert len(found[0]) > 20
    assert sorted(found[0]) not in (found[0], found[0][::-1])


def test_eval_leaves_out_the_prompts_of_evaluation_points(inputs, tmp_path, training_context):
    artifact = run(inputs, tmp_path / "out", training_context()[0], total_episodes=8)
    held_out, _ = load_prompts(inputs["data"], tiny.codec(), "eval", 30)
    looked_at = {prompt_key(prompt) for prompt in next(iter(artifact.jsonl("evaluations.jsonl")))["prompts"]}
    assert looked_at == {prompt_key(prompt.messages) for prompt in held_out[16:]}
    left, _ = unseen_prompts(inputs | {"ppo": artifact}, tiny.codec(), 30)
    assert [prompt.ids for prompt in left] == [prompt.ids for prompt in held_out[:16]]


@pytest.mark.parametrize(("held_out", "count", "expected"), [(10, 3, 3), (10, 9, 5), (1, 4, 0), (0, 4, 0)])
def test_a_look_takes_at_most_half_of_the_held_out_prompts(held_out, count, expected):
    prompts = list(range(held_out))
    assert evaluation_prompts(prompts, count) == prompts[held_out - expected :]
