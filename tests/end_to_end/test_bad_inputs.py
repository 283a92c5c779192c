"""Bad inputs on the command line: one clear message, a non-zero exit code, no traceback, artifacts untouched."""

from __future__ import annotations

import errno
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_run import ROOT, SMALL, runner
from transformers import LlamaConfig, LlamaForSequenceClassification
from typer.testing import CliRunner

from pipeline.engine import manifest
from stages.__main__ import app

QUICKSTART = ROOT / "recipes/quickstart.yaml"
Spoil = Callable[[Path, Path, pytest.MonkeyPatch], list[str]]
"""(runs, a scratch folder, monkeypatch) -> extra arguments of `tutelage run`."""


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run finished up to the reward model."""
    runs = tmp_path_factory.mktemp("finished")
    runner(runs).run("reward")
    return runs


def unknown_key(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["-s", "ppo.num_ppo_epoch=2"]


def wrong_type(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["-s", "ppo.batch_size=many"]


def missing_file(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return ["-s", f"data.demonstrations.path={scratch / 'gone.csv'}", *table(scratch, "", format="pairs")]


def table(scratch: Path, text: str, **values: Any) -> list[str]:
    """Arguments that read a ranking table with this text."""
    file = scratch / "rankings.csv"
    file.write_text(text)
    rankings = {"path": str(file), "format": "wide", **values}
    return ["-s", "rank.source=data", "-s", f"'data.rankings={json.dumps(rankings)}'"]


def malformed_row(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    text = "prompt,a,b,ra,rb\nname[x],one,two,1,2\nname[y],one,two,1\n"
    columns = {"completions": ["a", "b"], "ratings": ["ra", "rb"]}
    return table(scratch, text, columns=columns)


def single_answer(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    text = "prompt,completion,rating\nname[x],one,1\nname[y],one,2\n"
    return table(scratch, text, format="long")


def empty_data(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    return table(scratch, "prompt,a,b,ra,rb\n", columns={"completions": ["a", "b"], "ratings": ["ra", "rb"]})


def pad_is_eos(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    base = runner(runs).planner.summary().stages["base"].artifact
    from stages.models.loading import load_tokenizer

    tokenizer = load_tokenizer(base)
    tokenizer.pad_token = tokenizer.eos_token
    tokenizer.save_pretrained(scratch / "classifier")
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_labels=1, pad_token_id=tokenizer.eos_token_id,
    )  # fmt: skip
    LlamaForSequenceClassification(config).save_pretrained(scratch / "classifier")
    return ["-s", f"ppo.reward_model={scratch / 'classifier'}"]


def other_base(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    reward = runner(runs).planner.summary().stages["reward"].artifact.path
    folder = scratch / "reward"
    folder.mkdir()
    for file in reward.rglob("*"):
        if file.is_file():
            target = folder / file.relative_to(reward)
            target.parent.mkdir(exist_ok=True)
            target.write_bytes(file.read_bytes())
    spec = json.loads((folder / "reward.json").read_text())
    (folder / "reward.json").write_text(json.dumps(spec | {"base": "0" * 64}))
    return ["-s", f"ppo.reward_model={folder}"]


def truncated_checkpoint(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    model = runner(runs).planner.summary().stages["base"].artifact.path / "model"
    folder = scratch / "model"
    folder.mkdir()
    for file in model.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = model.parent / "tokenizer"
    for file in tokenizer.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    return ["-s", f"base.model={folder}"]


def full_disk(runs: Path, scratch: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(manifest, "write_atomic", refuse)
    return []


CASES: list[tuple[Spoil, int, list[str]]] = [
    (unknown_key, 2, ["ppo.num_ppo_epoch", "num_ppo_epochs"]),
    (wrong_type, 2, ["ppo.batch_size", "--set"]),
    (missing_file, 2, ["gone.csv", "data.demonstrations.path"]),
    (malformed_row, 3, ["rankings.csv", "3"]),
    (single_answer, 3, ["rankings.csv", "2"]),
    (empty_data, 3, ["rankings.csv", "row"]),
    (pad_is_eos, 4, ["pad token", "ppo.reward_model"]),
    (other_base, 4, ["another base model"]),
    (truncated_checkpoint, 4, ["cannot be loaded", "model"]),
    (full_disk, 4, ["disk is full"]),
]


@pytest.mark.parametrize(("spoil", "code", "words"), CASES, ids=[case[0].__name__ for case in CASES])
def test_a_bad_input_gives_one_clear_error(
    spoil: Spoil, code: int, words: list[str], finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extra = spoil(finished, tmp_path, monkeypatch)
    before = contents(finished)
    command = ["run", "ppo", "-r", str(QUICKSTART), "-s", SMALL, "-s", "device=cpu", *extra]
    result = CliRunner().invoke(app, [*command, "--runs", str(finished)], catch_exceptions=True)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    for word in words:
        assert word in result.stderr, result.stderr
    assert result.stderr.count("hint:") <= 1
    after = contents(finished)
    assert {path: after.get(path) for path in before} == before, "an earlier artifact was touched"
    assert not set(after) - set(before), "a partial artifact counts as finished"


def contents(runs: Path) -> dict[str, str]:
    """Hashes of all files of finished artifacts."""
    return {
        str(file.relative_to(runs)): hashlib.sha256(file.read_bytes()).hexdigest()
        for manifest_file in runs.glob("*/*/*/manifest.json")
        for file in [manifest_file, *manifest_file.parent.joinpath("out").rglob("*")]
        if file.is_file()
    }
