"""Commands in messages have the user's form and values, and work when they are pasted."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import recorded

from pipeline import invocation
from pipeline.invocation import WITHOUT_RECIPE, WITHOUT_RUNS, Invocation
from stages.__main__ import app

SETS = ("ppo.kl.target=8", "rank.app.annotators=[ana,ben] base.model='a b' sft.x=$HOME")
COMMANDS: Any = typer.main.get_command(app)


def parsed(arguments: list[str]) -> dict[str, Any]:
    name, *rest = arguments
    context = COMMANDS.commands[name].make_context(name, list(rest))
    return {"name": name, **{key: value for key, value in context.params.items() if value not in (None, ())}}


def test_values_that_were_not_given_are_left_out() -> None:
    assert Invocation().command("run", "eval") == "tutelage run eval"
    assert Invocation(make=True).command("run", "eval") == "make eval"
    assert Invocation(make=True).command("run") == "make run"
    assert Invocation(sets=["", " "]).command("plan") == "tutelage plan"


def test_flags_and_later_rounds_go_where_make_takes_them() -> None:
    assert Invocation(make=True).command("run", "--force") == "make run ARGS=--force"
    assert Invocation(make=True).command("run", "ppo-2", "--fresh") == "make ppo-2 ARGS=--fresh"
    assert Invocation(make=True).command("chat", "sft", "ppo") == "make chat ARGS='sft ppo'"


def test_again_repeats_the_command_with_a_flag() -> None:
    given = Invocation(name="run", stage="ppo", flags=("--fresh",), processes=2, recipe="r.yaml")
    assert given.again("--force") == "tutelage run ppo --fresh --force --recipe r.yaml --nproc 2"
    made = Invocation(name="round", processes=2, make=True)
    assert made.again("--force") == "make round NPROC=2 ARGS=--force"


@pytest.mark.parametrize("name", sorted(COMMANDS.commands))
def test_both_forms_of_every_command_give_the_same_values(name: str, tmp_path: Path) -> None:
    arguments = {
        "annotate": ["in.jsonl", "--out", "out.jsonl", "--annotators", "ana"],
        "compare": ["runs/a", "runs/b"],
        "evaluate-reward": ["pairs.jsonl"],
        "export-rankings": ["folder"],
        "export-reward": ["folder"],
        "inspect": ["votes.csv"],
        "run": ["ppo-2", "--fresh"],
        "score": ["answers.jsonl", "--out", "scored.jsonl"],
    }.get(name, [])
    values = {"recipe": "my recipes/r.yaml", "sets": SETS, "runs": "/tmp/some runs"}
    command = Invocation(**values).command(name, *arguments)
    made = Invocation(**values, make=True).command(name, *arguments)
    program, *words = shlex.split(command)
    [[stub, *recorded_words]] = recorded(made, tmp_path)
    assert (program, stub) == ("tutelage", "tutelage")
    read = parsed(words)
    assert read == parsed(recorded_words)
    if name not in WITHOUT_RECIPE:
        assert str(read["recipe"]) == "my recipes/r.yaml"
        assert list(read["sets"]) == [" ".join(SETS)]
    assert name in WITHOUT_RUNS or str(read["runs"]) == "/tmp/some runs"


def test_a_program_that_is_not_on_path_is_named_by_its_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / ".venv/bin/tutelage"
    program.parent.mkdir(parents=True)
    program.touch(0o755)
    monkeypatch.setattr("sys.argv", [str(program)])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "")
    invocation.begin("run")
    assert invocation.command("plan") == ".venv/bin/tutelage plan"
    monkeypatch.setenv("PATH", str(program.parent))
    invocation.begin("run")
    assert invocation.command("plan") == "tutelage plan"


def test_the_makefile_marks_its_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(invocation.MAKE, "1")
    invocation.begin("run")
    invocation.remember(running="reward")
    assert invocation.stage_again("--fresh") == "make reward ARGS=--fresh"
