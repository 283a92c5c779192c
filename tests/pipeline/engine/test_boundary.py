"""What a user can cause is an error with a hint; what only a bug can cause keeps its traceback."""

from __future__ import annotations

import errno
import json
import os
import resource
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
import pytest
from huggingface_hub.errors import HFValidationError
from pipeline_fakes import FakeStages, write_all
from repository import ROOT
from typer.testing import CliRunner

from pipeline.engine.boundary import disk_is_full, translate
from pipeline.engine.runner import Runner
from pipeline.errors import DataError, StageError
from stages.__main__ import app

MakeRunner = Callable[..., Runner]


def full(number: int = errno.ENOSPC) -> OSError:
    return OSError(number, os.strerror(number))


def wrapped(inner: Exception) -> Exception:
    """As a library raises an exception of its own over the system's."""
    try:
        try:
            raise inner
        except Exception:
            raise RuntimeError("could not save") from None
    except RuntimeError as error:
        return error


SAYINGS = [
    "Error while serializing: I/O error: File too large (os error 27)",  # safetensors
    "No space left on device (os error 28)",  # tokenizers, as a plain Exception
    "[enforce fail at inline_container.cc:664] . unexpected pos 64 vs 0",  # torch.save
    "PytorchStreamWriter failed writing file data/1: file write failed",
    "[Errno 28] Error writing bytes to file. Detail: [errno 28] No space left on device",  # pyarrow
    "4096 requested and 128 written",  # numpy.ndarray.tofile
    "Disk quota exceeded (os error 122)",
]


@pytest.mark.parametrize(
    "error",
    [
        *(full(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)),
        *(Exception(text) for text in SAYINGS),
        sqlite3.OperationalError("database or disk is full"),
        wrapped(full()),
        ExceptionGroup("writers", [ValueError("x"), full()]),
    ],
    ids=str,
)
def test_a_full_disk_is_recognised_through_every_library(error: Exception) -> None:
    problem = translate(error, "sft")
    assert isinstance(problem, StageError)
    assert problem.what == "the disk is full: sft could not write its files"


@pytest.mark.parametrize("error", [ValueError("the file is too large"), FileNotFoundError("x"), KeyError("a")])
def test_other_errors_are_not_a_full_disk(error: Exception) -> None:
    assert not disk_is_full(error)


def test_a_users_own_words_do_not_make_a_disk_full() -> None:
    error = DataError("row 3 says: No space left on device")
    assert translate(error, "data") is error


def write_limited(body: str, folder: Path, limit: int = 4096) -> subprocess.CompletedProcess[str]:
    """Runs Python whose files may not grow past a limit, as `ulimit -f` does; prints what `body` raises."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    program = (
        "from pipeline.engine.boundary import disk_is_full\n"
        f"try:\n    {body}\nexcept BaseException as error:\n    print(disk_is_full(error), type(error).__name__)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=folder, preexec_fn=limited, check=False
    )


@pytest.mark.parametrize(
    "body",
    [
        "open('x', 'w').write('a' * 100000)",
        "import numpy; numpy.zeros(100000).tofile('x')",
        "import torch; torch.save(torch.zeros(100000), 'x')",
        "import torch, safetensors.torch as s; s.save_file({'a': torch.zeros(100000)}, 'x')",
        "import pyarrow as a, pyarrow.feather as f; f.write_feather(a.table({'a': list(range(90000))}), 'x')",
    ],
    ids=["python", "numpy", "torch", "safetensors", "pyarrow"],
)
def test_failed_writes_of_libraries_are_recognised(
    body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    result = write_limited(body, tmp_path)
    assert result.stdout.startswith("True"), result


def raises(error: Exception) -> Callable[..., dict[str, Any]]:
    def run(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        (ctx.state_dir / "step").write_text("1")
        raise error

    return run


def syntax_error() -> jinja2.TemplateError:
    with pytest.raises(jinja2.TemplateError) as caught:
        jinja2.Environment().from_string("{% for m in messages %}")
    return caught.value


def json_error() -> ValueError:
    with pytest.raises(json.JSONDecodeError) as caught:
        json.loads("{")
    return caught.value


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (syntax_error(), ["chat template", "Unexpected end of template"]),
        (ImportError("Loading this needs optimum"), ["package", "optimum"]),
        (PermissionError(errno.EACCES, "Permission denied", "/x/y"), ["Permission denied", "/x/y"]),
        (json_error(), ["Expecting property name"]),
        (HFValidationError("Repo id must be in the form"), ["Hub", "Repo id"]),
        (MemoryError(), ["out of memory"]),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ["out of memory", "2 GiB"]),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_librarys_error_is_one_of_ours_and_its_traceback_is_kept(
    error: Exception, words: list[str], runner: MakeRunner, stages: FakeStages
) -> None:
    stages.does["sft"] = raises(error)
    with pytest.raises(StageError) as caught:
        runner().run()
    for word in ["sft", *words]:
        assert word in str(caught.value)
    assert caught.value.hint
    assert caught.value.__cause__ is error
    [log] = runner().planner.folder.glob("sft/*/error.txt")
    assert type(error).__name__ in log.read_text()
    assert str(log) in caught.value.where
    del stages.does["sft"]
    runner().run()
    assert not log.exists()


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), KeyError("bug"), RuntimeError("bug"), np.exceptions.AxisError("x")]
)
def test_a_bug_keeps_its_traceback(error: Exception, runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["sft"] = raises(error)
    with pytest.raises(type(error)) as caught:
        runner().run()
    assert caught.value is error


def test_a_full_disk_keeps_the_state_and_the_stage_continues(runner: MakeRunner, stages: FakeStages) -> None:
    stages.does["sft"] = raises(Exception(SAYINGS[0]))
    with pytest.raises(StageError, match="the disk is full: sft") as caught:
        runner().run()
    assert "continues where it stopped" in caught.value.hint
    resumed = []

    def go_on(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        resumed.append((ctx.state_dir / "step").read_text())
        return write_all(config, inputs, out_dir, ctx)

    stages.does["sft"] = go_on
    runner().run()
    assert resumed == ["1"]


def test_a_loop_that_a_failure_leaves_open_is_closed(
    runner: MakeRunner, stages: FakeStages, capsys: pytest.CaptureFixture[str]
) -> None:
    """A loop that no `with` ends would print its last line when Python ends, or fail to."""
    loops = []

    def leaves_open(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        loops.append(ctx.progress("sft", total=4))
        loops[0].__enter__().advance()
        raise full()

    stages.does["sft"] = leaves_open
    with pytest.raises(StageError, match="disk is full"):
        runner().run()
    said = capsys.readouterr().out
    loops.clear()
    assert capsys.readouterr().out == ""
    assert said.count("sft  1/4") <= 1


def test_other_commands_have_no_traceback_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipeline.cli import inspect

    def refuse(*_: Any, **__: Any) -> None:
        raise full()

    monkeypatch.setattr(inspect, "load_recipe", refuse)
    result = CliRunner().invoke(app, ["show", "-r", str(tmp_path / "x.yaml")])
    assert result.exit_code == 4
    assert "the disk is full: tutelage show" in result.stderr
