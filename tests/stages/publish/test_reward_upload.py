"""The reward model on the Hub: its files, its card, and what it needs."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
import yaml
from hub_run import MODEL
from pipeline_fakes import FakeStages
from typer.testing import CliRunner

from pipeline.config.load import load_recipe
from pipeline.engine.plan import RunSummary
from pipeline.engine.runner import Runner
from pipeline.engine.stage import Silent
from pipeline.errors import RecipeError, StageError
from stages.__main__ import app
from stages.publish import uploads
from stages.publish.uploads import Upload

REWARD = "publish.reward=me/judge"
Finished = Callable[..., RunSummary]


@pytest.fixture
def trained(finished: Finished, stages: FakeStages, tmp_path: Path) -> Finished:
    """As `finished`, with a tiny base and a tiny reward model beside the files that the report reads."""
    fakes = dict(stages.does)

    def base(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        made = tiny.base_artifact(tmp_path / f"base-{ctx.seed}")
        shutil.copytree(made.path, out_dir, dirs_exist_ok=True)
        return {"parameters": 7}

    def reward(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        made = tiny.reward_artifact(
            tmp_path / f"reward-{ctx.seed}-{config.ensemble}", inputs["base"], members=config.ensemble
        )
        shutil.copytree(made.path, out_dir, dirs_exist_ok=True)
        return fakes["reward"](config, inputs, out_dir, ctx)  # type: ignore[no-any-return]

    stages.does |= {"base": base, "reward": reward}
    return finished


def planned(run: RunSummary) -> list[Upload]:
    return uploads.uploads(run, Silent.progress)


def header(upload: Upload) -> dict[str, Any]:
    return dict(yaml.safe_load(upload.card.split("---\n")[1]))


def test_the_reward_model_alone_needs_no_ppo(
    trained: Finished, stages: FakeStages, runner: Callable[..., Runner]
) -> None:
    made = runner(REWARD)
    made.run("reward")
    [upload] = planned(made.planner.summary())
    assert (upload.repository, upload.kind, upload.private) == ("me/judge", "model", True)
    assert {"config.json", "model.safetensors", "reward_model.json", "tokenizer.json"} <= set(upload.files)
    assert upload.left_out == ()
    assert "ppo" not in stages.calls


def test_beside_the_policy_there_are_two_models(trained: Finished) -> None:
    reward, policy = planned(trained(REWARD, MODEL))
    assert (reward.repository, policy.repository) == ("me/judge", "me/model")
    assert header(reward)["pipeline_tag"] == "text-classification"


def test_the_card_has_gate_accuracy_agreement_calibration_and_biases(trained: Finished) -> None:
    [upload] = planned(trained(REWARD))
    text = upload.card.replace("\N{NO-BREAK SPACE}", " ")
    for words in (
        "**The rankings were made by simulated annotators, not by people.**",
        "It passed the checks that PPO asks for",
        "1,506 held-out pairs (150 prompts)",
        "| this model | 71.2 % | 68.4 to 74.0 % |",
        "| two annotators agree | 73.1 % | 68.1 to 77.9 % |",
        "| the longer answer wins | 51.0 % |",
        "expected calibration error 0.033",
        "Brier score 0.175",
        "| 80 % | 75 % | 700 |",
        "Spearman correlation of score and characters of an answer +0.36; its accuracy minus that of length is "
        "+15 to +25 points",
        "93 % of held-out answers score higher than their own first half",
        "at most 256 tokens",
    ):
        assert words in text, words
    [entry] = header(upload)["model-index"]
    [metric] = entry["results"][0]["metrics"]
    assert (metric["type"], metric["value"]) == ("accuracy", 0.712)
    assert "95 % interval 0.684 to 0.74" in metric["name"]
    assert "careful" not in text, "annotators stay private"


def test_a_failed_gate_is_on_the_card(trained: Finished, stages: FakeStages) -> None:
    passing = stages.does["reward"]

    def failing(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        metrics = passing(config, inputs, out_dir, ctx)
        quality = json.loads((out_dir / "quality.json").read_text())
        (out_dir / "quality.json").write_text(json.dumps(quality | {"unfit": ["its accuracy is low"]}))
        return metrics

    stages.does["reward"] = failing
    [upload] = planned(trained(REWARD))
    assert "**It failed the checks that PPO asks for:**\n\n- its accuracy is low" in upload.card


def test_the_lines_of_the_card_give_the_stored_scores(
    trained: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(f"{REWARD} data.system=brief")
    [upload] = planned(run)
    folder = run.folder / "reward-model"
    [code] = re.findall(r"```python\n(.*?)```", upload.card, re.DOTALL)
    stored = json.loads((folder / "reward_model.json").read_text())["fingerprints"][3]
    asked, answer = (message["content"] for message in stored["messages"][1:])
    exec(code.replace('"me/judge"', repr(str(folder))).replace("What is 2 + 2?", asked), {})
    assert answer == "4"
    assert float(capsys.readouterr().out.splitlines()[-1]) == pytest.approx(stored["score"], abs=1e-4)


def test_an_ensemble_publishes_a_member(trained: Finished) -> None:
    with pytest.raises(RecipeError, match=r"publish\.reward_member: is required"):
        trained(REWARD, "reward.ensemble=2")
    with pytest.raises(RecipeError, match=r"must be less than reward\.ensemble"):
        trained(REWARD, "reward.ensemble=2 publish.reward_member=2")
    [upload] = planned(trained(REWARD, "reward.ensemble=2 publish.reward_member=1"))
    assert "It is member 1 of an ensemble of 2" in upload.card


@pytest.mark.parametrize(
    ("sets", "problem"),
    [
        ("publish.reward=judge", r"publish\.reward: must be owner/name"),
        ("publish.reward=me/x publish.model=me/x", r"publish\.reward: needs a repository of its own"),
        ("publish.reward=me/x base.quantization=nf4", r"publish\.reward: needs the adapter merged into its base"),
    ],
)
def test_what_cannot_be_published_is_refused_before_training(recipe_file: Path, sets: str, problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe("small.yaml", [sets])


def test_the_keys_of_other_recipes_do_not_change(recipe_file: Path) -> None:
    from pipeline.config.section import content

    assert not {"reward", "reward_member"} & set(content(load_recipe("small.yaml").recipe)["publish"])


def test_a_reward_model_that_changed_after_its_stage_is_refused(trained: Finished) -> None:
    run = trained(REWARD)
    file = run.need("reward").artifact.path / "head.safetensors"
    file.write_bytes(file.read_bytes()[::-1])
    with pytest.raises(StageError, match=r"the contents of head\.safetensors"):
        planned(run)


def test_export_reward_writes_a_folder_with_a_card(trained: Finished) -> None:
    trained()
    missing = CliRunner().invoke(app, ["export-reward", "--recipe", "small.yaml"])
    assert missing.exit_code == 2
    assert "export-reward needs a folder to write" in missing.stderr
    done = CliRunner().invoke(app, ["export-reward", "judge", "--recipe", "small.yaml", "--dtype", "bfloat16"])
    assert done.exit_code == 0, done.stderr
    assert "judge: README.md, chat_template.jinja, config.json, model.safetensors, reward_model.json" in done.output
    assert '"dtype": "bfloat16"' in Path("judge/config.json").read_text()
    assert 'from_pretrained("judge")' in Path("judge/README.md").read_text()
    ensemble = CliRunner().invoke(app, ["export-reward", "other", "--recipe", "small.yaml", "--member", "3"])
    assert ensemble.exit_code == 4
    assert "there is no member 3" in ensemble.stderr
