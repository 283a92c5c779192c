"""Every command in README.md and docs/overview.md runs on a small model; the README's first screen is correct."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from commands import commands, recorded
from small_run import ROOT, SMALL, runner
from typer.testing import CliRunner

from pipeline.config.load import load_recipe
from ranking import serve
from ranking.assignment import next_task
from ranking.campaign import Campaign
from ranking.store import Assessment, Store
from stages.__main__ import app

README = ROOT / "README.md"
COMMANDS = list(dict.fromkeys([*commands(README), *commands(ROOT / "docs/overview.md")]))
TINY = f"{SMALL} ppo.checkpoint=last dpo.max_length=128"
"""With few evaluation points the best checkpoint may be PPO's initial policy, which leaves nothing to compare."""

SHORTER = (
    "sft.max_length=128 reward.max_length=128 dpo.max_length=128 ppo.max_prompt_length=96 "
    "eval.max_prompt_length=96 raft.max_prompt_length=96"
)
"""Lengths that fit the default recipe's model, which has a shorter context than a downloaded model."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The runs folder of a finished run, and the printed output."""
    folder = tmp_path_factory.mktemp("runs")
    result = CliRunner().invoke(app, ["run", "quickstart", "-s", f"{TINY} device=cpu", "--runs", str(folder)])
    assert result.exit_code == 0, result.output
    return folder, result.output


@pytest.fixture(scope="module")
def runs(finished: tuple[Path, str]) -> Path:
    return finished[0]


def restaurants(folder: Path) -> list[str]:
    """Arguments that replace the files that recipes/e2e-human.yaml downloads by small ones."""
    demonstrations, rankings = folder / "demonstrations.csv", folder / "rankings.csv"
    names = [f"Place {number}" for number in range(60)]
    demonstrations.write_text(
        "mr,ref\n" + "".join(f'"name[{name}], food[Thai]",{name} serves Thai food.\n' for name in names)
    )
    header = ["mr", *(f"{kind}{i}" for kind in ("ref", "quality", "sys") for i in range(1, 6)), "_worker_id"]
    texts = ["serves Thai food", "serves food", "is a place", "is cheap", "serves Greek food"]
    rows = [
        [f'"name[{name}], food[Thai]"', *(f"{name} {text}." for text in texts), *"54321", *"abcde", worker]
        for name in names[:30]
        for worker in ("w1", "w2")
    ]
    rankings.write_text("\n".join(",".join(row) for row in [header, *rows]) + "\n")
    return [
        "-s", f"base.pretrain.corpus.path={demonstrations} data.demonstrations.path={demonstrations}",
        "-s", f"data.rankings.path={rankings} base.pretrain.num_attention_heads=2 ppo.micro_batch_size=null",
    ]  # fmt: skip


def test_the_readme_names_the_main_commands() -> None:
    assert {"make run", "make test"} <= set(commands(README))


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").split()) < 900


def test_people_are_asked_to_rank_about_twenty_prompts() -> None:
    [command] = [command for command in COMMANDS if "rank.source=app" in command]
    collect = load_recipe("quickstart", [shlex.split(command)[-1].removeprefix("SET=")]).recipe.collect
    assert (collect.num_prompts or 0) + (collect.eval_prompts or 0) == 20


def test_images_are_small() -> None:
    shown = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", README.read_text(encoding="utf-8"))
    assert len(shown) == 2
    for image in shown:
        assert (ROOT / image).stat().st_size < 200_000, image


def test_the_readme_shows_what_the_program_prints(finished: tuple[Path, str]) -> None:
    """The README shows a full run and this is a small one, so numbers and the verdict differ."""
    [shown] = re.findall(
        r"`make run` ends after .* with:\n\n```\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL
    )
    verdict, report = shown.splitlines()
    sentence = re.search(r"\. By the independent judge .* on (?=\d)", verdict)
    assert sentence
    assert sentence.group() in finished[1]
    assert report == "report: runs/quickstart/report.html"
    assert f"\nreport: {finished[0]}/quickstart/report.html" in finished[1]


def write_answers(folder: Path) -> None:
    """The tables that the documented commands name."""
    answers = {"prompt": "name[Blue Fox], kind[pub]", "completions": ["Blue Fox is a pub.", "It is a pub."]}
    (folder / "answers.jsonl").write_text(json.dumps(answers), encoding="utf-8")
    question = {
        "id": "1",
        "prompt": answers["prompt"],
        "chosen": ["Blue Fox is a pub."],
        "rejected": ["It is a pub.", "It is blue.", "No."],
        "subset": "Factuality",
        "num_correct": 1,
    }
    (folder / "reward-bench-2.jsonl").write_text(json.dumps(question), encoding="utf-8")


@pytest.mark.parametrize("command", [c for c in COMMANDS if c.startswith(("make ", "tutelage "))])
def test_documented_command_runs(command: str, runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if command == "make help":
        shown = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
        for stage in ("base", "data", "sft", "collect", "rank", "reward", "ppo", "eval", "export", "publish"):
            assert re.search(rf"^\s+(.* )?{stage}\b", shown, re.MULTILINE), stage
        return
    if command == 'make compare ARGS="runs/a runs/b"':
        return  # test_compare_has_a_target
    if command.startswith("make "):
        [[program, *arguments]] = recorded(command, tmp_path)
    else:
        program, *arguments = shlex.split(command.replace("my/recipe.yaml", "quickstart"))
    if program == "python":
        assert arguments[:2] == ["-m", "pytest"]
        return
    monkeypatch.chdir(ROOT)
    extra = ["-s", TINY, "--runs", str(runs)]
    if {"score", "evaluate-reward", "export-reward"} & set(arguments):
        write_answers(tmp_path)
        files = [part for part in arguments if part.endswith(".jsonl") or part == "my-reward-model"]
        arguments = [str(tmp_path / part) if part in files else part for part in arguments]
    if "show" in arguments:
        extra = ["-s", TINY]
    if "e2e-human" in command:
        extra += restaurants(tmp_path)
    if "smollm2" in command:
        extra += [*restaurants(tmp_path), "-s", f"base.model={tiny_model(runs)} base.revision=null", "-s", SHORTER]
    if "app" in command or "judge" in command:
        let_people_rank(monkeypatch)
        extra += ["--port", "0"] if "judge" in command else ["-s", "rank.app.port=0"]
    if "serve" in arguments:
        interrupt_the_server(monkeypatch)
        extra += ["--port", "0"]
    result = CliRunner().invoke(app, [*arguments, *extra], input="name[Blue Fox], kind[pub]\n\n")
    assert result.exit_code == (130 if "serve" in arguments else 0), result.output
    if "judge" in command:
        assert "2 people compared the answers to 12 held-out prompts blind" in result.output


def let_people_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ranks every item, in place of the people who use the served page."""

    def rank_all(store: Store, campaign: Campaign, *arguments: Any) -> None:
        for name in campaign.annotators:
            while task := next_task(store, campaign, name):
                store.submit(task.id, f"{task.id:016}", Assessment(ranks=list(range(1, len(task.shown) + 1))))

    monkeypatch.setattr(serve, "_watch", rank_all)
    monkeypatch.setattr(serve, "_await_corrections", lambda *arguments: True)
    monkeypatch.setattr(serve, "LINGER", 0.0)


def interrupt_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C as soon as it serves."""

    def interrupt() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("stages.serve.run._wait", interrupt)


def tiny_model(runs: Path) -> Path:
    """The default recipe's exported model, in place of a downloaded one."""
    return runner(runs, TINY).planner.summary().stages["export"].artifact.path


@pytest.mark.parametrize(("target", "words"), [("ppo-2", ["run", "ppo-2"]), ("round", ["round"])])
def test_rounds_have_targets(target: str, words: list[str], tmp_path: Path) -> None:
    [[program, *arguments]] = recorded(f'make {target} SET="rounds=2"', tmp_path)
    assert program == "tutelage"
    assert arguments[: len(words)] == words
    assert "rounds=2" in arguments


def test_compare_has_a_target(tmp_path: Path) -> None:
    [[program, *arguments]] = recorded('make compare ARGS="runs/a runs/b"', tmp_path)
    assert [program, *arguments] == ["tutelage", "compare", "runs/a", "runs/b"]
