"""`~` is the home folder in every path: of a recipe, of `extends`, of the command line, of variables."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.config.load import load_recipe
from pipeline.config.rules import is_hub_id
from pipeline.engine import registry
from stages.__main__ import app

RECIPE = """
name: r
base: {model: ~/model, chat_template: ~/chat.jinja}
data:
  demonstrations: {path: ~/d.jsonl}
  prompts: {path: "~/p.jsonl"}
  rankings: {path: ~/folder, format: pairs}
reward: {model: ~/encoder, rubric: ~/rubric.yaml, pretrain_on: {path: ~/more.csv, format: pairs}}
ppo: {reward_model: ~/reward, monitor: {judge: ~/guard.yaml}}
eval: {judge: ~/judge.yaml, reward_model: ~/other, text: {path: ~/text.jsonl}}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    (folder / "r.yaml").write_text(RECIPE)
    return folder


def test_in_every_path_of_a_recipe(home):
    recipe = load_recipe("~/r.yaml").recipe
    found = {name: path for spec in registry.STAGES.values() for name, path in spec.files(recipe).items()}
    expected = {
        "base.model": "model",
        "base.chat_template": "chat.jinja",
        "data.demonstrations.path": "d.jsonl",
        "data.prompts.path": "p.jsonl",
        "data.rankings.path": "folder",
        "reward.model": "encoder",
        "reward.pretrain_on.path": "more.csv",
        "reward.rubric": "rubric.yaml",
        "ppo.reward_model": "reward",
        "ppo.monitor.judge": "guard.yaml",
        "eval.judge": "judge.yaml",
        "eval.reward_model": "other",
        "eval.text.path": "text.jsonl",
    }
    assert found == {name: home / file for name, file in expected.items()}
    assert not is_hub_id(recipe.base.model)
    assert load_recipe("~/r.yaml", ["base.model=~/m"]).recipe.base.model == str(home / "m")


def test_every_path_that_a_stage_reads_is_tested_above():
    paths = {name for spec in registry.STAGES.values() for name in spec.paths or {}}
    assert {name for name in paths if f"{name.rpartition('.')[2]}: " not in RECIPE} == set()


def test_in_extends(home, tmp_path):
    (tmp_path / "child.yaml").write_text("extends: ~/r.yaml\nname: child\n")
    assert load_recipe(tmp_path / "child.yaml").recipe.name == "child"


def test_on_the_command_line_and_in_variables(home, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (home / "small.yaml").write_text(
        "name: small\nbase: {pretrain: {corpus: {task: venues, size: 10}}}\n"
        "data: {demonstrations: {task: venues, size: 10}}\nrank: {source: app, app: {annotators: [a, b]}}\n"
    )
    for arguments, variables in (
        (["--runs=~/kept"], {}),
        ([], {"TUTELAGE_RUNS": "~/kept"}),
    ):
        result = CliRunner().invoke(app, ["status", "--recipe=~/small.yaml", *arguments], env=variables)
        assert result.exit_code == 0, result.output
    assert not Path("~").exists()
