from __future__ import annotations

import dataclasses
import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.config.load import LoadedRecipe
from pipeline.engine import fingerprint, manifest
from pipeline.engine.fingerprint import Fingerprints
from pipeline.engine.manifest import Manifest
from pipeline.errors import StageError


def make(folder: Path, **values: Any) -> Manifest:
    (folder / "out/sub").mkdir(parents=True, exist_ok=True)
    (folder / "out/a.txt").write_text("aaaa")
    (folder / "out/sub/b.bin").write_bytes(b"\x00\x01")
    files = manifest.record_files(folder / "out")
    made: dict[str, Any] = {
        "recipe": "small",
        "stage": "sft",
        "version": 1,
        "key": "k",
        "fingerprint": manifest.artifact_fingerprint(files),
        "simulated": False,
        "seed": 0,
        "config": {},
        "keyed": {},
        "provenance": {},
        "inputs": {},
        "local_files": {},
        "files": files,
        "metrics": {"loss": 0.5},
        "forced": False,
        "device": "cpu",
        "started": "",
        "finished": "",
        "seconds": 1.0,
        "resumed": False,
    }
    return Manifest(**{**made, **values})


def test_a_manifest_reads_back_as_it_was_written(tmp_path: Path) -> None:
    made = make(tmp_path)
    manifest.write(tmp_path, made)
    assert manifest.read(tmp_path) == made
    assert set(made.files) == {"a.txt", "sub/b.bin"}
    assert made.files["a.txt"].size == 4


def test_no_manifest_is_not_finished(tmp_path: Path) -> None:
    assert manifest.read(tmp_path) is None


@pytest.mark.parametrize("text", ["", "{", '{"stage": "sft"}'])
def test_a_damaged_manifest_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / manifest.FILE).write_text(text)
    with pytest.raises(StageError, match="cannot be parsed"):
        manifest.read(tmp_path)


def test_metrics_that_json_cannot_hold_are_null(tmp_path: Path) -> None:
    manifest.write(tmp_path, make(tmp_path, metrics={"nan": float("nan"), "inf": [float("inf"), 1]}))
    read = manifest.read(tmp_path)
    assert read is not None
    assert read.metrics == {"nan": None, "inf": [None, 1]}


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_no_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    made = make(tmp_path)
    before = sorted(tmp_path.rglob("*"))

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StageError, match="No space left on device"):
        manifest.write(tmp_path, made)
    assert sorted(tmp_path.rglob("*")) == before


def test_verify_accepts_an_intact_artifact(tmp_path: Path) -> None:
    manifest.verify(tmp_path, make(tmp_path), "hint", contents=True)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / "out/sub/b.bin").unlink()
    with pytest.raises(StageError, match=r"sub/b.bin is missing") as error:
        manifest.verify(tmp_path, made, "make it again")
    assert error.value.hint == "make it again"


def test_a_truncated_file_is_named_with_both_sizes(tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / "out/a.txt").write_text("a")
    with pytest.raises(StageError, match=r"a.txt has 1 bytes, not 4"):
        manifest.verify(tmp_path, made, "")


def test_changed_contents_are_found_on_request(tmp_path: Path) -> None:
    made = make(tmp_path)
    (tmp_path / "out/a.txt").write_text("aaab")
    manifest.verify(tmp_path, made, "")
    with pytest.raises(StageError, match=r"contents of a.txt"):
        manifest.verify(tmp_path, made, "", contents=True)


def test_a_manifest_that_contradicts_itself_is_damaged(tmp_path: Path) -> None:
    made = dataclasses.replace(make(tmp_path), fingerprint="0" * 64)
    with pytest.raises(StageError, match="its fingerprint does not match its files"):
        manifest.verify(tmp_path, made, "")


def key(load: Callable[..., LoadedRecipe], *sets: str, **values: Any) -> str:
    recipe = load(*sets).recipe
    arguments: dict[str, Any] = {
        "stage": "ppo",
        "version": 1,
        "config": recipe.ppo,
        "seed": recipe.seed,
        "inputs": {"sft": "f1"},
        "local_files": {},
    }
    return manifest.stage_key(**{**arguments, **values})


def test_the_key_depends_on_everything_that_decides_the_result(load: Callable[..., LoadedRecipe]) -> None:
    keys = [
        key(load),
        key(load, stage="eval"),
        key(load, version=2),
        key(load, "ppo.kl.target=8"),
        key(load, "seed=1"),
        key(load, inputs={"sft": "f2"}),
        key(load, inputs={"base": "f1"}),
        key(load, local_files={"ppo.reward_model": "f"}),
    ]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(
    "given",
    ["threads=2", "ppo.micro_batch_size=8", "ppo.save_updates=3", "eval.bootstrap=5", "ppo.kl.target=6.0"],
)
def test_the_key_does_not_depend_on_the_rest(load: Callable[..., LoadedRecipe], given: str) -> None:
    assert key(load, given) == key(load)


def test_a_folder_fingerprint_is_about_names_and_contents_only(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder, names in ((one, ("x", "y")), (two, ("y", "x"))):
        folder.mkdir()
        for name in names:
            (folder / name).write_text(f"contents of {name}")
    hashes = Fingerprints(tmp_path / "cache.json")
    assert hashes(one) == hashes(two)
    (two / "x").rename(two / "z")
    assert hashes(one) != hashes(two)


def test_an_unchanged_file_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reads: list[Path] = []

    def counting(path: Path) -> str:
        reads.append(path)
        return f"hash of {path.read_text()}"

    monkeypatch.setattr(fingerprint, "file_sha256", counting)
    file, cache = tmp_path / "model.bin", tmp_path / "runs/cache.json"
    file.write_text("one")
    first = Fingerprints(cache)
    assert first(file) == first(file) == "hash of one"
    first.save()
    assert Fingerprints(cache)(file) == "hash of one"
    assert len(reads) == 1
    file.write_text("two")
    os.utime(file, ns=(1, 1))
    assert Fingerprints(cache)(file) == "hash of two"


def test_a_broken_cache_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "cache.json").write_text("{")
    (tmp_path / "file").write_text("x")
    assert Fingerprints(tmp_path / "cache.json")(tmp_path / "file") == fingerprint.file_sha256(tmp_path / "file")
