"""Scores of texts are those that PPO gives to the same responses."""

import json
import shutil

import numpy as np
import pytest
import tiny
import torch
from reward_runs import RewardRun, reward_run

from pipeline.config.ppo import AggregateConfig
from pipeline.engine import manifest
from pipeline.engine.plan import RunSummary, StageRun
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError, RecipeError, StageError
from stages.models.text import load_codec
from stages.ppo.rewards import RewardSignal
from stages.sampling.prompts import EncodedPrompt
from stages.score import source
from stages.score.model import Answers
from stages.scoring.load import load_scorer

ROWS = [
    Answers(tiny.user("what is a fox"), ["a red one.", "a", "no idea, sorry"], "t:1"),
    Answers([*tiny.user("ab"), {"role": "assistant", "content": "cd"}, *tiny.user("ef")], ["gh"], "t:2"),
]


def ppo_scores(run, aggregation, system=None):
    """Scores of ROWS by the reward signal of PPO, with the ids that PPO would sample."""
    codec = load_codec(run.base)
    scorer = load_scorer(run.reward, {"base": run.base}, codec, "cpu")
    prompts, responses = [], []
    for row in ROWS:
        messages = [*([{"role": "system", "content": system}] if system else []), *row.prompt]
        for text in row.completions:
            prompts.append(EncodedPrompt(messages, codec.prompt(messages), "train"))
            responses.append([*codec.tokenizer.encode(text, add_special_tokens=False), codec.end_id])
    return RewardSignal(scorer, aggregation)(prompts, responses).tolist(), scorer.members(prompts, responses)


@pytest.mark.parametrize("template", ["plain", "chatml"])
@pytest.mark.parametrize("values", [{}, {"lora": False}, {"members": 3}], ids=["lora", "full", "ensemble"])
def test_scores_are_those_of_ppo(tmp_path, template, values) -> None:
    run = reward_run(tmp_path, template=template, **values)
    loaded = source.from_place(str(run.reward.path), None, "cpu")
    scored = loaded.score(ROWS)
    expected, members = ppo_scores(run, AggregateConfig())
    assert [score for row in scored for score in row.scores] == pytest.approx(expected, abs=1e-5)
    assert np.std(expected) > 0.05
    assert [row.ranks[row.scores.index(max(row.scores))] for row in scored] == [1, 1]
    if len(members) == 1:
        assert [row.stds for row in scored] == [None, None]
    else:
        stds = members.numpy().std(axis=0)
        assert [std for row in scored for std in row.stds] == pytest.approx(stds, abs=1e-5)


@pytest.mark.parametrize("aggregate", ["min", "uncertainty"])
def test_members_are_combined_as_in_ppo(tmp_path, aggregate) -> None:
    run = reward_run(tmp_path, members=3)
    loaded = source.from_place(str(run.reward.path), None, "cpu", aggregate=aggregate)
    expected, _ = ppo_scores(run, AggregateConfig(aggregate=aggregate))
    assert [score for row in loaded.score(ROWS) for score in row.scores] == pytest.approx(expected, abs=1e-5)


def test_the_system_message_of_the_data_is_put_before_prompts_without_one(tmp_path) -> None:
    run = reward_run(tmp_path, system="be brief")
    loaded = source.from_place(str(run.reward.path.parent), None, "cpu")
    expected, _ = ppo_scores(run, AggregateConfig(), "be brief")
    assert [score for row in loaded.score(ROWS) for score in row.scores] == pytest.approx(expected, abs=1e-5)
    own = Answers([{"role": "system", "content": "be brief"}, *ROWS[0].prompt], ROWS[0].completions)
    assert loaded.score([own])[0].scores == pytest.approx(expected[:3], abs=1e-5)


def test_a_recipe_scores_with_the_members_that_its_ppo_optimises(tmp_path, load) -> None:
    run = reward_run(tmp_path / "runs", members=3)
    loaded = load("reward.ensemble=3 ppo.reward={held_out: 1, aggregate: min} data.system=brief")
    stages = {
        name: StageRun(artifact.path.parent, manifest.read(artifact.path.parent))
        for name, artifact in (("base", run.base), ("reward", run.reward))
    }
    summary = RunSummary(loaded, tmp_path / "runs/small", stages)
    scorer = source.from_run(summary, "cpu")
    assert scorer.size == 2
    _, members = ppo_scores(run, AggregateConfig(), "brief")
    scores = [score for row in scorer.score(ROWS) for score in row.scores]
    assert scores == pytest.approx(members[:2].min(0).values.tolist(), abs=1e-5)
    mean = source.from_run(summary, "cpu", aggregate="mean").score(ROWS)
    assert [score for row in mean for score in row.scores] == pytest.approx(members[:2].mean(0).tolist(), abs=1e-5)


def test_a_recipe_with_another_reward_model_scores_with_it(tmp_path, load) -> None:
    run, other = reward_run(tmp_path / "runs"), tmp_path / "other"
    tiny.reward_artifact(other, run.base, seed=9)
    stages = {"base": StageRun(run.base.path.parent, manifest.read(run.base.path.parent))}
    summary = RunSummary(load(f"ppo.reward_model={other}"), tmp_path / "runs/small", stages)
    scores = [score for row in source.from_run(summary, "cpu").score(ROWS) for score in row.scores]
    expected, _ = ppo_scores(RewardRun(run.base, Artifact("reward", other, "")), AggregateConfig())
    assert scores == pytest.approx(expected, abs=1e-5)
    with pytest.raises(StageError, match="reward is not finished"):
        source.from_run(RunSummary(load(), tmp_path / "runs/small", stages), "cpu")


def test_ranks_are_dense_and_batches_do_not_change_scores(tmp_path) -> None:
    run = reward_run(tmp_path)
    twice = Answers(tiny.user("q"), ["b", "aa", "b"])
    seen: list[int] = []
    loaded = source.from_place(str(run.reward.path), None, "cpu", batch_size=2)
    small = loaded.score([twice, *ROWS], seen.append)
    assert sum(seen) == 7
    assert max(seen) == 2
    assert sorted(small[0].ranks) in ([1, 1, 2], [1, 2, 2])
    assert small[0].ranks[0] == small[0].ranks[2]
    whole = source.from_place(str(run.reward.path), None, "cpu").score([twice, *ROWS])
    for a, b in zip(small, whole, strict=True):
        assert a.scores == pytest.approx(b.scores, abs=1e-5)


def test_a_text_that_is_too_long_is_refused_with_its_row(tmp_path) -> None:
    loaded = source.from_place(str(reward_run(tmp_path).reward.path), None, "cpu")
    assert loaded.longest == 128
    with pytest.raises(DataError, match=r"have 1\d\d tokens .* reads at most 128") as caught:
        loaded.score([ROWS[0], Answers(tiny.user("a" * 60), ["b" * 80], "t:9")])
    assert caught.value.where == "t:9"


def test_fingerprints_are_checked(tmp_path) -> None:
    run = reward_run(tmp_path)
    spec = run.reward.json("reward.json")
    spec["fingerprints"][0]["score"] += 1
    (run.reward.path / "reward.json").write_text(json.dumps(spec))
    with pytest.raises(StageError, match="does not give the scores it was stored with"):
        source.from_place(str(run.reward.path), None, "cpu")


def test_an_artifact_without_its_base_says_how_to_export_it(tmp_path) -> None:
    run = reward_run(tmp_path / "runs")
    shutil.copytree(run.reward.path, tmp_path / "copy")
    with pytest.raises(StageError, match="its base is not in the same folder of runs") as caught:
        source.from_place(str(tmp_path / "copy"), None, "cpu")
    assert "export-reward" in caught.value.hint


def test_a_misspelt_folder_and_a_hub_id_without_revision_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my/model").mkdir(parents=True)
    with pytest.raises(RecipeError, match="has no revision"):
        source.from_place("me/judge", None, "cpu")
    with pytest.raises(RecipeError, match=r"there is no folder \./my/modle") as caught:
        source.from_place("./my/modle", None, "cpu")
    assert "my/model" in caught.value.hint


def test_a_classifier_without_a_policy_reads_with_its_own_template(tmp_path) -> None:
    from transformers import LlamaConfig, LlamaForSequenceClassification

    torch.manual_seed(0)
    config = tiny.lm().config.to_dict() | {"num_labels": 1}
    model = LlamaForSequenceClassification(LlamaConfig(**config)).eval()
    model.save_pretrained(tmp_path / "judge")
    tokenizer = tiny.tokenizer("chatml")
    tokenizer.save_pretrained(tmp_path / "judge")
    scored = source.from_place(str(tmp_path / "judge"), None, "cpu").score(ROWS)
    for row, of_row in zip(ROWS, scored, strict=True):
        for text, score in zip(row.completions, of_row.scores, strict=True):
            talk = [*row.prompt, {"role": "assistant", "content": text}]
            ids = tokenizer.apply_chat_template(talk, return_tensors="pt", return_dict=True)["input_ids"]
            with torch.no_grad():
                assert score == pytest.approx(float(model(input_ids=ids).logits), abs=1e-5)
