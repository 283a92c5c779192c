"""`tutelage serve`: what it refuses, what it prints, and how it ends."""

from __future__ import annotations

import http.client
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tiny
from pipeline_fakes import FakeStages
from repository import ROOT
from typer.testing import CliRunner

from pipeline.errors import Interrupted, RecipeError, StageError
from ranking import web
from stages.__main__ import app
from stages.serve import run as running
from stages.serve.access import KEY
from stages.serve.models import Served


def invoke(line: str) -> Any:
    return CliRunner().invoke(app, line.split())


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("serve --revision abc", "belong to --model"),
        ("serve sft --model x", "both name models"),
        ("serve --model ./gone", "there is no folder ./gone"),
        ("serve --model me/model", "has no revision"),
        ("serve pppo -r small.yaml", "there is no model called pppo"),
        ("serve -r small.yaml", "base is not finished"),
        ("serve --port 70000", "65535"),
    ],
)
def test_wrong_calls_are_refused(recipe_file: Path, stages: FakeStages, line: str, words: str) -> None:
    result = invoke(line)
    assert result.exit_code in (2, 4)
    assert words in result.output
    assert "Traceback" not in result.output


def test_the_command_serves_what_is_finished(
    recipe_file: Path, stages: FakeStages, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Any] = []
    monkeypatch.setattr(
        "stages.serve.models.load_run",
        lambda summary, names, device, **values: calls.append((names, device, values)),
    )
    monkeypatch.setattr("stages.serve.run.serve", lambda served, **values: calls.append(values))
    assert invoke("run sft -r small.yaml").exit_code == 0
    result = invoke("serve sft -r small.yaml --port 0 --batch 4 --max-length 64")
    assert result.exit_code == 0, result.output
    (names, device, values), options = calls
    assert (names, device, values) == (["sft"], "cpu", {"max_length": 64, "criterion": None})
    options.pop("say")
    assert options == {"host": "127.0.0.1", "port": 0, "batch": 4, "queue": 256}


@pytest.mark.parametrize("key", ["", " ", "a b", "k\u00e9y", "a\n"])
def test_an_unusable_key_is_refused(monkeypatch: pytest.MonkeyPatch, served: Served, key: str) -> None:
    monkeypatch.setenv(KEY, key)
    monkeypatch.setattr(running, "_wait", interrupt)
    with pytest.raises(RecipeError, match=KEY):
        running.serve(served, host="127.0.0.1", port=0, batch=1, queue=1, say=print)


def test_a_port_that_is_taken_is_refused(served: Served) -> None:
    with web.listening("127.0.0.1", 0, host_hint="", port_hint="") as listener:
        listener.listen()
        with pytest.raises(StageError, match="cannot be served") as caught:
            running.serve(served, host="127.0.0.1", port=listener.getsockname()[1], batch=1, queue=1, say=print)
    assert "--port" in caught.value.hint


def interrupt() -> None:
    raise KeyboardInterrupt


def test_a_server_that_others_reach_warns(monkeypatch: pytest.MonkeyPatch, served: Served) -> None:
    def said(host: str) -> str:
        lines: list[str] = []

        with monkeypatch.context() as patch:
            patch.setattr(running, "_wait", interrupt)
            with pytest.raises(Interrupted, match="the server was stopped"):
                running.serve(served, host=host, port=0, batch=1, queue=1, say=lines.append)
        return "\n".join(lines)

    assert "warning" not in said("127.0.0.1")
    assert "whoever reaches" in said("0.0.0.0")
    monkeypatch.setenv(KEY, "s3cret")
    assert "warning" not in said("0.0.0.0")
    assert "s3cret" not in said("0.0.0.0")


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_lets_answers_finish_and_exits_with_130(tmp_path: Path, number: int) -> None:
    folder = tmp_path / "model"
    tiny.lm(max_position_embeddings=2048).save_pretrained(folder)
    tiny.tokenizer("chatml").save_pretrained(folder)
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "stages", "serve", "--model", str(folder), "--port", "0", "--device", "cpu"],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        port = 0
        for line in process.stdout:
            if found := re.search(r"base URL: http://127\.0\.0\.1:(\d+)/v1", line):
                port = int(found[1])
                break
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        body = {"model": "model", "prompt": "ab", "max_tokens": 600, "stream": True, "top_k": 40, "seed": 1}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        assert response.read(6) == b"data: "
        process.send_signal(number)
        assert response.read().endswith(b"data: [DONE]\n\n"), "the answer is finished"
        connection.close()
        assert process.wait(timeout=60) == 130
        assert process.stderr is not None
        errors = process.stderr.read()
        assert "the server was stopped" in errors
        assert "Traceback" not in errors
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            if stream:
                stream.close()
