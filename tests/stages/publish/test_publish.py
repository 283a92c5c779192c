"""A small run, published to a Hub on this machine and loaded again as anybody would: by the card's own lines."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from small_run import ROOT, SMALL, runner

sys.path.insert(0, str(ROOT / "tests/stages/publish"))
from hub_client import publish, python
from hub_server import Hub, Repository, serving

VALUES = ("publish.model=me/model publish.rankings=me/rankings publish.private=false", "device=cpu", SMALL)
COMPARE = """
import json
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
loaded = AutoModelForCausalLM.from_pretrained("me/model").state_dict()
made = load_file("{folder}/model.safetensors")
print(json.dumps([bool((loaded[name] == weight).all()) for name, weight in made.items()]))
"""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    runner(folder).run()
    return folder


@pytest.fixture(params=["lfs", "xet"])
def hub(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Hub]:
    with serving(tmp_path / "cas" if request.param == "xet" else None) as made:
        yield made


@pytest.mark.slow
def test_what_was_published_loads_by_the_lines_of_its_card(
    runs: Path, hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TUTELAGE_RUNS", str(runs))
    summary = runner(runs, VALUES[0]).planner.summary()
    exported = summary.need("export").artifact.path
    if hub.xet:
        hub.will_get(*(path for path in exported.rglob("*") if path.suffix in (".safetensors", ".gguf")))
    recipe = str(ROOT / "recipes/quickstart.yaml")
    if hub.xet:  # what is drawn and packed while publishing has no hash beforehand
        code, printed = publish(hub, tmp_path / "here", *VALUES, recipe=recipe, arguments=("--dry-run",))
        hub.will_get(*(summary.folder / "rankings").rglob("*.parquet"))
        hub.will_get(_picture(runs, tmp_path))
    code, printed = publish(hub, tmp_path / "here", *VALUES, recipe=recipe)
    assert code == 0, printed
    assert bool(hub.sent("PUT")) == (hub.xet is None)
    assert not hub.xet or any(hub.xet.rglob("*"))

    there = tmp_path / "there"
    model, rankings = hub.repositories["models", "me/model"], hub.repositories["datasets", "me/rankings"]
    same = json.loads(python(hub, there, COMPARE.format(folder=exported)).splitlines()[-1])
    assert same
    assert all(same)

    [lines] = re.findall(r"```python\n(.*?)```", card(model), re.DOTALL)
    assert len([line for line in lines.splitlines() if line and "import" not in line]) == 5
    assert python(hub, there, lines).strip()

    [lines] = re.findall(r"```python\n(.*?)```", card(rankings), re.DOTALL)
    show = "\nprint(__import__('json').dumps({name: part.num_rows for name, part in rankings.items()}))"
    counts = json.loads(python(hub, there, lines + show).splitlines()[-1])
    given = [row["split"] for row in summary.need("rank").artifact.jsonl("rankings.jsonl")]
    assert counts == {split: given.count(split) for split in ("train", "eval")}


def card(repository: Repository) -> str:
    text = repository.files["README.md"]
    assert isinstance(text, bytes)
    return text.decode()


def _picture(runs: Path, tmp_path: Path) -> Path:
    from stages.publish import curves

    made = curves.training(runner(runs, VALUES[0]).planner.summary())
    assert made
    file = tmp_path / "training.png"
    file.write_bytes(made)
    return file
