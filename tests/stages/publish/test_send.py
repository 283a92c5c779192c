"""Publishing over HTTP, to a Hub on this machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hub_client import publish, start
from hub_run import MODEL, write_model
from hub_server import Hub, serving
from pipeline_fakes import FakeStages
from typer.testing import CliRunner

from pipeline.engine.plan import RunSummary
from stages.__main__ import app

Finished = Callable[..., RunSummary]
RANKINGS = "publish.rankings=me/rankings"


@pytest.fixture
def hub() -> Iterator[Hub]:
    with serving() as made:
        yield made


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


def three_large_files(*given: Any) -> dict[str, Any]:
    """An `export` stage with as many files as an interruption needs."""
    write_model(*given)
    for name, size in (("model-Q4_0.gguf", 40_000), ("model-Q8_0.gguf", 80_000)):
        (given[2] / name).write_bytes(b"GGUF\0" + bytes([size % 251]) * size)
    return {}


def sha(run: RunSummary, name: str) -> str:
    return hashlib.sha256((run.need("export").artifact.path / name).read_bytes()).hexdigest()


def test_model_rankings_and_collection_arrive(finished: Finished, hub: Hub, home: Path) -> None:
    values = (MODEL, RANKINGS, "publish.collection='Small things' publish.license=apache-2.0")
    finished(*values)
    code, printed = publish(hub, home, *values)
    assert code == 0, printed
    model, rankings = hub.repositories["models", "me/model"], hub.repositories["datasets", "me/rankings"]
    assert model.private
    assert rankings.private
    assert sorted(model.files) == ["README.md", "config.json", "model.safetensors", "training.png"]
    assert sorted(rankings.files) == ["README.md", "data/train-00000-of-00001.parquet"]
    assert hub.stored[str(model.files["model.safetensors"])] == bytes(range(256)) * 8
    assert model.files["config.json"] == b"{}\n"
    assert len(model.commits) == len(rankings.commits) == 1
    [collection] = hub.collections.values()
    assert (collection["title"], collection["private"]) == ("Small things", True)
    assert [(item["type"], item["id"]) for item in collection["items"]] == [
        ("dataset", "me/rankings"), ("model", "me/model"),
    ]  # fmt: skip
    assert f"published: {hub.url}/me/model/commit/" in printed


def test_nothing_is_uploaded_without_consent(finished: Finished, hub: Hub, home: Path) -> None:
    finished(MODEL)
    arguments = ("-P", "-m", "stages", "publish", "--recipe", "small.yaml", "--set", MODEL)
    client = start(hub, home, *arguments)  # its input is no terminal
    output, _ = client.communicate(timeout=60)
    assert client.returncode == 2, output
    assert "2 kB  model.safetensors" in output, "what would be uploaded"
    assert "there is no terminal to ask on" in output
    assert "--yes" in output
    client = start(hub, home, *arguments, token=None)
    output, _ = client.communicate(timeout=60)
    assert client.returncode == 4, output
    assert output.count("hint:") == 1
    assert "run `hf auth login`, or set HF_TOKEN" in output
    assert hub.received == []


def test_publish_asks_before_it_uploads(
    finished: Finished, hub: Hub, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []
    monkeypatch.setattr("stages.publish.send.check_login", lambda repository: None)
    monkeypatch.setattr("stages.publish.send.send", lambda upload, *_: sent.append(upload.repository))
    monkeypatch.setattr("stages.commands.interactive", lambda: True)
    finished(MODEL)
    arguments = ["publish", "--recipe", "small.yaml", "--set", MODEL]
    declined = CliRunner().invoke(app, arguments, input="n\n")
    assert declined.exit_code == 1
    assert "Upload?" in declined.output
    assert sent == []
    agreed = CliRunner().invoke(app, arguments, input="y\n")
    assert agreed.exit_code == 0, agreed.output
    assert sent == ["me/model"]
    assert CliRunner().invoke(app, [*arguments, "--verbose", "--dry-run"]).output.count("# model") == 1


def test_a_killed_upload_continues(finished: Finished, stages: FakeStages, hub: Hub, home: Path) -> None:
    stages.does["export"] = three_large_files
    run = finished(MODEL)
    small, large = sha(run, "model-Q4_0.gguf"), sha(run, "model-Q8_0.gguf")
    tries: list[str] = []

    def interrupt(oid: str) -> str | None:
        tries.append(oid)
        if oid == small and tries.count(small) == 1:
            return "drop"  # the network's fault: the client tries again by itself
        return "hold" if oid == large else None

    hub.interrupt = interrupt
    client = start(hub, home, "-P", "-m", "stages", "publish", "--yes", "--recipe", "small.yaml", "--set", MODEL)
    assert hub.holding.wait(timeout=60), client.communicate(timeout=10)
    client.kill()
    client.communicate()
    assert hub.repositories["models", "me/model"].files == {}, "nothing is visible before all of it is"
    assert tries.count(small) == 2
    assert large not in hub.stored
    arrived = set(hub.stored)
    assert small in arrived

    hub.interrupt = lambda oid: None
    before = len(hub.sent("PUT"))
    code, printed = publish(hub, home, MODEL)
    assert code == 0, printed
    assert hub.sent("PUT")[before:] == [f"/lfs/{large}"], "what had arrived is not sent again"
    files = hub.repositories["models", "me/model"].files
    assert (
        hub.stored[str(files["model-Q8_0.gguf"])]
        == (run.need("export").artifact.path / "model-Q8_0.gguf").read_bytes()
    )


@pytest.mark.slow
def test_where_nothing_changed_nothing_is_sent(finished: Finished, hub: Hub, home: Path) -> None:
    finished(MODEL, RANKINGS)
    for _ in range(2):
        code, printed = publish(hub, home, MODEL, RANKINGS)
        assert code == 0, printed
    assert len(hub.sent("PUT")) == len(hub.stored)
    assert [len(repository.commits) for repository in hub.repositories.values()] == [1, 1]


@pytest.mark.slow
def test_what_an_earlier_upload_left_is_removed(finished: Finished, hub: Hub, home: Path) -> None:
    finished(MODEL)
    assert publish(hub, home, MODEL)[0] == 0
    files = hub.repositories["models", "me/model"].files
    files |= {"model-00002-of-00002.safetensors": b"", "adapter_config.json": b"{}", "notes.md": b"mine"}
    code, printed = publish(hub, home, MODEL)
    assert code == 0, printed
    assert "removing adapter_config.json, which an earlier upload left" in printed
    left = set(hub.repositories["models", "me/model"].files)
    assert left == {"README.md", "config.json", "model.safetensors", "training.png", "notes.md"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("values", "token", "message"),
    [
        pytest.param("", None, "hf auth login", id="nobody"),
        pytest.param("", "hf_wrong", "hf auth login", id="wrong token"),
        pytest.param("publish.license=openmdw-1.1", "", "the Hub refused the card", id="metadata"),
    ],
)
def test_a_refusal_is_one_message(
    finished: Finished, hub: Hub, home: Path, values: str, token: str | None, message: str
) -> None:
    finished(MODEL, values)
    options = {} if token == "" else {"token": token}
    code, printed = publish(hub, home, MODEL, values, **options)
    assert (code, "Traceback" in printed) == (4, False), printed
    assert message in printed
    assert not any(repository.files for repository in hub.repositories.values())
    assert hub.sent("PUT") == []


@pytest.mark.slow
def test_a_public_repository_gets_no_private_upload(finished: Finished, hub: Hub, home: Path) -> None:
    finished(MODEL)
    assert publish(hub, home, MODEL, "publish.private=false")[0] == 0
    code, printed = publish(hub, home, MODEL)
    assert code == 4
    assert "is already public" in printed


def test_planted_things_stay_here(finished: Finished, stages: FakeStages, hub: Hub, home: Path) -> None:
    def export(*given: Any) -> dict[str, Any]:
        write_model(*given)
        planted = {"a": 1, "from": f"{Path.cwd()}/base", "k": "hf_" + "a1" * 15}
        (given[2] / "tokenizer_config.json").write_text(json.dumps(planted, indent=1))
        return {}

    stages.does["export"] = export
    finished(MODEL)
    code, printed = publish(hub, home, MODEL)
    assert code == 4
    assert "tokenizer_config.json:3 (a path of this machine)" in printed
    assert "tokenizer_config.json:4 (a Hugging Face token)" in printed
    assert hub.received == []


@pytest.mark.slow
def test_a_dry_run_asks_nobody(finished: Finished, hub: Hub, home: Path) -> None:
    finished(MODEL, RANKINGS)
    process = start(
        hub, home, "-P", "-m", "stages", "publish", "--dry-run", "-r", "small.yaml", "-s", MODEL, "-s", RANKINGS
    )
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    assert hub.received == []
    for line in (
        "private dataset me/rankings",
        "private model me/model",
        "2 kB  model.safetensors",
        "--verbose prints the cards",
    ):
        assert line in output
    assert "# model" not in output, "the card is long"
    assert len(output.splitlines()) < 20


@pytest.mark.slow
def test_an_unreachable_hub_is_reported(finished: Finished, home: Path) -> None:
    finished(MODEL)
    with serving() as hub:
        pass
    code, printed = publish(hub, home, MODEL)
    assert (code, "Traceback" in printed) == (4, False), printed
    assert f"no network: {hub.url} cannot be reached" in printed
    assert printed.count("cannot be reached") == 1
    assert "files that have arrived are not sent again" in printed
