from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from typing import Any

import pytest
from pipeline_fakes import FakeStages
from repository import ROOT
from rich.console import Console

from pipeline.engine.runner import Runner
from pipeline.errors import StageError
from stages.chat import HELP, choose_models, converse, finished_models

Make = Callable[..., Runner]
WORDS = dict[str, list[list[str]]]


def talk(*lines: str, width: int = 80, **options: Any) -> tuple[str, WORDS]:
    """What is printed, and the conversations that each model was asked to answer."""
    pending, stream, asked = list(lines), StringIO(), {"sft": [], "ppo": []}
    console = Console(file=stream, width=width)

    def read(*_: object, **__: object) -> str:
        if not pending:
            raise EOFError
        return pending.pop(0)

    console.input = read  # type: ignore[method-assign]

    def answer(name: str, history: list[dict[str, str]]) -> str:
        asked[name].append([message["content"] for message in history])
        return f"{name} answers {len(history)}"

    converse(console, list(asked), answer, **options)
    assert not pending, "it read every line"
    return stream.getvalue(), asked


def test_each_model_has_its_own_conversation() -> None:
    shown, asked = talk("one", "two")
    assert asked["sft"] == [["one"], ["one", "sft answers 1", "two"]]
    assert asked["ppo"] == [["one"], ["one", "ppo answers 1", "two"]]
    assert "ppo answers 3" in shown
    assert max(map(len, shown.splitlines())) <= 80


@pytest.mark.parametrize("word", ["", "exit", "quit", "/exit", "/quit", " /exit "])
def test_words_that_quit_do_not_go_to_the_model(word: str) -> None:
    assert talk(word)[1] == {"sft": [], "ppo": []}


def test_a_new_conversation_help_and_an_unknown_command() -> None:
    shown, asked = talk("one", "/clear", "two", "/help", "/halp", "/tmp is a folder")
    assert asked["sft"] == [["one"], ["two"], ["two", "sft answers 1", "/tmp is a folder"]]
    assert "new conversation" in shown
    assert shown.replace("\n", " ").count(HELP[:40]) == 3, "at the start, on request, and after an unknown command"
    assert "there is no /halp" in shown


def test_turns_that_no_longer_fit_are_left_out_visibly() -> None:
    def fit(history: list[dict[str, str]]) -> tuple[list[dict[str, str]], int] | None:
        return None if len(history[-1]["content"]) > 9 else (history[-3:], max(0, len(history) - 3))

    shown, asked = talk("one", "two", "three", "longer than that", "four", "/clear", "five", fit=fit)
    assert asked["sft"][2:4] == [["two", "sft answers 3", "three"], ["three", "sft answers 3", "four"]]
    assert asked["sft"][4] == ["five"]
    assert shown.count("sft: the first 2 turns no longer fit") == 1
    assert shown.count("sft: the first 4 turns no longer fit") == 1
    assert shown.count("ppo: this message alone is longer than the context") == 1


def test_unknown_and_unfinished_models_are_refused_with_the_known_ones(runner: Make, stages: FakeStages) -> None:
    runner().run("sft")
    summary = runner().planner.summary()
    assert choose_models(summary, ["sft", "base"]) == ["sft", "base"]
    with pytest.raises(StageError, match="there is no model called pppo") as unknown:
        choose_models(summary, ["sft", "pppo"])
    assert unknown.value.hint == "did you mean ppo? this recipe's models are base, sft and ppo"
    with pytest.raises(StageError, match="no model called reward"):
        choose_models(summary, ["reward"])
    with pytest.raises(StageError, match="ppo is not finished") as unfinished:
        choose_models(summary, ["ppo"])
    assert "chat base sft" in unfinished.value.hint


def test_models_of_several_rounds(runner: Make, stages: FakeStages) -> None:
    runner("rounds=2").run()
    summary = runner("rounds=2").planner.summary()
    assert choose_models(summary, ["ppo", "ppo-1", "ppo-2"]) == ["ppo", "ppo-1", "ppo-2"]
    with pytest.raises(StageError, match="no model called ppo-3"):
        choose_models(summary, ["ppo-3"])


def test_all_finished_models_are_served_by_name(runner: Make, stages: FakeStages) -> None:
    runner().run("sft")
    assert finished_models(runner().planner.summary()) == ["base", "sft"]
    runner("rounds=2").run()
    summary = runner("rounds=2").planner.summary()
    assert finished_models(summary) == ["base", "sft", "ppo-1", "ppo"]
    assert choose_models(summary, finished_models(summary))
    with pytest.raises(StageError, match="base is not finished"):
        finished_models(runner("seed=5").planner.summary())


def test_names_are_checked_before_torch_is_imported() -> None:
    code = "import sys, stages.chat; raise SystemExit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
