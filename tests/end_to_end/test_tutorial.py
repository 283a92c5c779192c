"""All commands of docs/tutorial.md run in order, on small tables in its format and a tiny model."""

from __future__ import annotations

import csv
import re
import sys
from pathlib import Path

import pytest
from commands import ROOT, commands, recorded
from small_run import runner
from test_readme import let_people_rank
from typer.testing import CliRunner

from stages.__main__ import app

sys.path.insert(0, str(ROOT / "tests/stages/publish"))
from hub_client import start
from hub_server import serving

PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
TINY = (
    "base.check_tokens=4 sft.trainer.max_steps=4 reward.trainer.max_steps=4 reward.gate=null "
    "ppo.total_episodes=32 ppo.batch_size=16 ppo.response_length=16 eval.num_prompts=8 eval.response_length=16 "
    "eval.bootstrap=50 device=cpu"
)


def write_tables(folder: Path) -> None:
    """The tutorial's tables, extended to the number of rows that a run needs."""
    demonstrations, rankings = re.findall(r"```csv\n(.*?)```", PAGE, re.DOTALL)
    (folder / "my").mkdir()
    with (folder / "my/demonstrations.csv").open("w") as file:
        file.write(demonstrations)
        csv.writer(file).writerows([f"Where is room {i}?", f"Room {i} is on floor {i % 7}."] for i in range(60))
    with (folder / "my/rankings.csv").open("w") as file:
        file.write(rankings)
        csv.writer(file).writerows(
            [f"Where is room {i}?", f"Floor {i % 7}.", f"Room {i} is on floor {i % 7}.", "No idea.", *places, who]
            for i in range(40)
            for who, places in (("ana", [2, 1, 3]), ("ben", [1 + i % 2, 2 - i % 2, 3]))
        )


def add_section(recipe: Path) -> None:
    """Adds the section that the page asks to add to the recipe that `init` wrote."""
    [section] = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    with recipe.open("a") as file:
        file.write(f"\n{section}")


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner(tmp_path / "models").run("export")  # a tiny model in place of a downloaded one
    model = runner(tmp_path / "models").planner.summary().need("export").artifact.path
    write_tables(tmp_path)
    recipe = tmp_path / "my/recipe.yaml"
    monkeypatch.chdir(tmp_path)
    let_people_rank(monkeypatch)
    outputs = []
    with serving() as hub:
        for command in commands(ROOT / "docs/tutorial.md"):
            [[program, *arguments]] = recorded(command, tmp_path)
            assert program == "tutelage"
            extra = ["-s", TINY, *(["--port", "0"] if "judge" in arguments else [])]
            if arguments[0] == "init":
                extra = ["--base", str(model)]  # the last one counts
            if arguments[0] == "publish" and "publish:" not in recipe.read_text():
                add_section(recipe)
            if "publish" in arguments and "--dry-run" not in arguments:
                process = start(hub, tmp_path / "home", "-P", "-m", "stages", *arguments, "--yes", *extra)
                output, code = process.communicate(timeout=300)[0], process.returncode
            else:
                result = CliRunner().invoke(app, [*arguments, *extra], input="Where is room 3?\n\n")
                output, code = result.output, result.exit_code
            assert code == 0, f"{command}\n{output}"
            outputs.append(output)
        assert {name for _, name in hub.repositories} == {"me/my-assistant", "me/my-rankings"}
        assert len(hub.collections) == 1
        card = hub.repositories["datasets", "me/my-rankings"].files["README.md"]
    assert isinstance(card, bytes)
    assert b"two annotators agree on a strict pair" in card
    assert not re.search(rb"\bana\b|\bben\b", card), "annotators are published as pseudonyms"
    assert any("2 people compared the answers" in output for output in outputs)
