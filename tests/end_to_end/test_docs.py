"""Every command in README, docs/ and recipes/: of the project's own, make passes it on, the command line takes its
arguments, and the recipe that it names loads. What runs besides is in test_readme.py and test_tutorial.py; others
need hours, a network or other machines, and are checked no further than this."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer
from commands import PAGES, ROOT, commands, recorded

from pipeline.cli.app import target
from pipeline.config.load import load_recipe
from stages.__main__ import app

SHOWN = [(page, command) for page in PAGES for command in commands(page)]
FOREIGN = {
    "ssh": "needs another machine",
    "pre-commit": "a tool of git's, for contributors",
    "git": "needs the origin",
    "hf": "needs the Hub",
    "ollama": "a program of its own",
    "docker": "needs its daemon",
    "cd": "goes with ollama",
    "llama-cli": "a program of its own",
}
"""Programs that are not ours -> why their commands are not tried."""
COMMANDS: Any = typer.main.get_command(app)


def takes(arguments: Sequence[str]) -> dict[str, Any]:
    """The values that `tutelage` understands. Raises what it would complain with."""
    name, *rest = arguments
    context = COMMANDS.commands[name].make_context(name, list(rest))
    return dict(context.params)


def tutorial_recipe(folder: Path) -> Path:
    page = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    parts = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = folder / "recipe.yaml"
    file.write_text("\n".join(parts))
    return file


@pytest.mark.parametrize(
    ("page", "command"), SHOWN, ids=[f"{page.name}: {command[:60]}" for page, command in SHOWN]
)
def test_command_is_understood(page: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    program, *arguments = shlex.split(command.removeprefix(".venv/bin/"))
    if program in FOREIGN:
        return
    if program == "make" and arguments in (["help"], ["venv"]):
        return
    if program == "make":
        [[program, *arguments], *more] = recorded(command, tmp_path)
        if program in ("ruff", "mypy"):
            return
        assert not more
    if program == "torchrun" or (program == "python" and "stages" in arguments):
        program, arguments = "tutelage", arguments[arguments.index("stages") + 1 :]
    if program == "python":
        check_python(arguments)
        return
    assert program == "tutelage", f"{command}: give it a check, or a reason in FOREIGN"
    values = takes(arguments)
    if "recipe" in values:
        recipe = values["recipe"]
        if str(recipe) == "R":
            return
        if "stage" in values:
            _, recipe = target(values["stage"], recipe)
        path = tutorial_recipe(tmp_path) if str(recipe) == "my/recipe.yaml" else recipe
        sets = [text.replace("base.model=models/", "base.model=./models/") for text in values["sets"] or []]
        assert load_recipe(path, sets)  # what is not there is taken for a Hub id, unless it looks like a path


def check_python(arguments: Sequence[str]) -> None:
    arguments = [word for word in arguments if word != "-P"]
    if arguments[0] == "-c":
        compile(arguments[1], "shown", "exec")
    elif arguments[0] == "-m":
        assert arguments[1] in ("pytest", "pipeline.config.reference", "stages", "mutations")
    else:
        assert (ROOT / arguments[0]).is_file()
        text = (ROOT / arguments[0]).read_text(encoding="utf-8")
        for option in (word for word in arguments[1:] if word.startswith("--")):
            assert f'"{option}"' in text, option


def test_links_lead_somewhere() -> None:
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for link in re.findall(r"\]\((?!https?://|#)([^)#\s]+)", text):
            assert (page.parent / link).exists(), f"{page.name}: {link}"


@pytest.mark.parametrize("page", ["AGENTS.md", "CONTRIBUTING.md"])
def test_named_files_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:pipeline|data|ranking|stages|recipes|tests|benchmarks|docs)/[^` :(]*)`", text)
    assert len(named) > 10
    for path in named:
        before, options, after = re.fullmatch(r"([^{]*)(?:\{(.*)\}(.*))?", path).groups("")  # type: ignore[union-attr]
        for option in options.split(","):
            is_example = "audit" in path
            assert (ROOT / f"{before}{option}{after}").exists() != is_example, path


def test_metrics_in_the_faq_are_defined() -> None:
    defined = (ROOT / "docs/ppo.md").read_text(encoding="utf-8") + (ROOT / "docs/rankings.md").read_text("utf-8")
    page = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:objective|policy|val|response|loss|eval|time)/\w+|eval_\w+)`", page))
    assert len(named) > 10
    for name in named:
        assert f"`{name}`" in defined, name


def test_values_in_the_faq_exist() -> None:
    reference = (ROOT / "docs/recipes.md").read_text(encoding="utf-8")
    page = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    paths = set(re.findall(r"`((?:base|data|sft|reward|ppo|eval|rank|collect|export|publish)\.[\w.]+)[`=:]", page))
    assert len(paths) > 10
    for path in paths:
        section, _, name = path.rpartition(".")
        if section.endswith("trainer"):
            continue
        block = reference.partition(f"## `{section}`\n")[2].partition("\n## ")[0]
        assert f"| `{name}` |" in block, path
