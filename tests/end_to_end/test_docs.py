"""Commands, links, paths and names in README, docs/ and recipes/ are valid.

Every command parses, with or without make, and the recipe it names loads. test_readme.py and test_tutorial.py run
commands. The others need hours, a network or other machines, so they are not run.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from commands import PAGES, ROOT, commands, recorded

from pipeline.cli.app import target
from pipeline.config.formats import known_formats
from pipeline.config.load import load_recipe
from pipeline.config.reward import RewardConfig
from stages.__main__ import app
from stages.ppo.watch.alerts import ALIKE, FALLS, RULES, STOPPED

SHOWN = [(page, command) for page in PAGES for command in commands(page)]
FOREIGN = {
    "ssh": "needs another machine",
    "pre-commit": "a git tool for contributors",
    "git": "needs the origin",
    "hf": "needs the Hub",
    "ollama": "an external program",
    "docker": "needs its daemon",
    "cd": "goes with ollama",
    "llama-cli": "an external program",
}
"""External programs -> why their commands are not checked."""
COMMANDS: Any = typer.main.get_command(app)


def parsed(arguments: Sequence[str]) -> dict[str, Any]:
    """The parsed arguments of `tutelage`. Raises click's error if they do not parse."""
    name, *rest = arguments
    context = COMMANDS.commands[name].make_context(name, list(rest))
    return dict(context.params)


def tutorial_recipe(folder: Path) -> Path:
    """A recipe as the tutorial's reader has it: some base and tables, and the section that the page adds.
    test_tutorial.py runs the one that `init` writes."""
    page = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
    parts = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    file = folder / "recipe.yaml"
    data = "{demonstrations: {path: a.csv}, rankings: {path: b.csv, format: long}}"
    start = f"name: my\nbase: {{model: ./base}}\ndata: {data}"
    file.write_text("\n".join([start, *parts]))
    return file


@pytest.mark.parametrize(
    ("page", "command"), SHOWN, ids=[f"{page.name}: {command[:60]}" for page, command in SHOWN]
)
def test_documented_commands_parse(
    page: Path, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    if program in ("torchrun", "accelerate", "python") and "stages" in arguments:
        program, arguments = "tutelage", arguments[arguments.index("stages") + 1 :]
    if program == "python":
        check_python(arguments)
        return
    assert program == "tutelage", f"{command}: add a check, or a reason in FOREIGN"
    values = parsed(arguments)
    if "recipe" in values:
        recipe = values["recipe"]
        if str(recipe) == "R":
            return
        if "stage" in values:
            _, recipe = target(values["stage"], recipe)
        path = tutorial_recipe(tmp_path) if str(recipe) == "my/recipe.yaml" else recipe
        sets = [text.replace("base.model=models/", "base.model=./models/") for text in values["sets"] or []]
        assert load_recipe(path, sets)  # a missing model counts as a Hub id unless it is a path


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


def anchors(page: Path) -> set[str]:
    """GitHub's anchors of the page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_resolve(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for link, anchor in re.findall(r"\]\((?!https?://)([^)#\s]*)(?:#([^)\s]+))?\)", text):
        file = page.parent / link if link else page
        assert file.exists(), link
        if anchor:
            assert anchor in anchors(file), f"{link}#{anchor}"


SOURCES = sorted(
    file
    for folder in ("pipeline", "data", "ranking", "stages", "benchmarks", "tests", "recipes", "docs")
    for file in (ROOT / folder).rglob("*")
    if file.suffix in (".py", ".yaml", ".md", ".html")
)
FOLDERS = "pipeline|data|ranking|stages|benchmarks|tests|recipes|docs"
"""Paths in backticks that start with one of these must exist."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_paths_in_the_docs_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for path in re.findall(rf"`((?:{FOLDERS})/[\w/.-]+\.(?:py|md|yaml|css|html)|[\w.-]+(?:/[\w.-]+)+\.py)`", text):
        if "audit" not in path:  # the example in CONTRIBUTING.md
            assert (ROOT / path).is_file(), path


def test_documentation_pages_named_in_code_exist() -> None:
    named = {
        (path, str(file.relative_to(ROOT)))
        for file in [*SOURCES, *ROOT.glob("*.md"), ROOT / "Makefile"]
        # docs/hub/ is a path on huggingface.co.
        for path in re.findall(r"\bdocs/(?!hub/)[\w/-]+\.md\b", file.read_text(encoding="utf-8"))
    }
    assert len(named) > 30
    assert not [(path, file) for path, file in sorted(named) if not (ROOT / path).is_file()]


def test_the_index_lists_every_page_once() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    pages = [str(page.relative_to(ROOT / "docs")) for page in sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        assert index.count(f"]({page})") == (page != "README.md"), page


@pytest.mark.parametrize("page", ["AGENTS.md", "CONTRIBUTING.md"])
def test_paths_in_contributor_docs_exist(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    named = re.findall(r"`((?:pipeline|data|ranking|stages|recipes|tests|benchmarks|docs)/[^` :(]*)`", text)
    assert len(named) > 10
    for path in named:
        before, options, after = re.fullmatch(r"([^{]*)(?:\{(.*)\}(.*))?", path).groups("")  # type: ignore[union-attr]
        for option in options.split(","):
            is_example = "audit" in path
            assert (ROOT / f"{before}{option}{after}").exists() != is_example, path


def test_faq_metrics_are_defined() -> None:
    pages = [ROOT / "docs/ppo.md", *(ROOT / "docs/rankings").glob("*.md")]
    defined = "".join(page.read_text(encoding="utf-8") for page in pages)
    page = (ROOT / "docs/faq.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:objective|policy|val|response|loss|eval|time)/\w+|eval_\w+)`", page))
    assert len(named) > 10
    for name in named:
        assert f"`{name}`" in defined, name


def test_faq_recipe_values_exist() -> None:
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


def named_in_tables(page: str) -> set[str]:
    """The names in backticks in the first column of a page's tables."""
    text = (ROOT / page).read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_every_alert_is_documented() -> None:
    alerts = {rule.name for rule in (*RULES, ALIKE, FALLS, STOPPED)}
    rules = (
        (ROOT / "docs/ppo.md")
        .read_text(encoding="utf-8")
        .partition("| rule | holds when |")[2]
        .partition("\n\n")[0]
    )
    described = {name for row in rules.splitlines()[2:] for name in re.findall(r"`([a-z-]+)`", row.split("|")[1])}
    assert described == alerts


def test_every_format_and_objective_is_documented() -> None:
    formats = set(known_formats())
    objectives = set(get_args(get_type_hints(RewardConfig)["objective"]))
    page = ROOT / "docs/rankings/formats.md"
    assert formats <= anchors(page)
    assert formats == set(re.findall(r"^\| \[`(\w+)`\]", page.read_text("utf-8"), re.MULTILINE))
    assert objectives <= named_in_tables("docs/rankings/reward_model.md")
