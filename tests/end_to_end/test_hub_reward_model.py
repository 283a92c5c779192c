"""`ppo.reward_model` on the Hub: at a revision, from the cache without a network, and checked before training."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import hub_client
import pytest
import tiny
import torch
from hub_server import Hub, Repository, serving
from repository import ROOT
from transformers import BertConfig, BertForSequenceClassification

REVISION = Repository("models", False, commits=[{}]).sha
SCORE = f"""
import sys
sys.path.insert(0, {str(ROOT / "tests/support")!r})
from pathlib import Path
import tiny
from stages.scoring.load import load_scorer
from stages.sampling.prompts import EncodedPrompt
codec = tiny.codec()
scorer = load_scorer("me/judge", {{}}, codec, "cpu", revision={REVISION!r})
print(float(scorer([EncodedPrompt(tiny.user("ab"), [], "train")], [codec.completion("cd")])[0]))
"""
RECIPE = """\
name: small
device: cpu
base: {pretrain: {corpus: {task: venues, size: 10}}}
data: {demonstrations: {task: venues, size: 10}}
rank: {source: simulated, annotators: [{name: ann}, {name: bob}]}
"""


def classifier(folder: Path, labels: int = 1) -> Path:
    tokenizer = tiny.tokenizer(None)
    torch.manual_seed(labels)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=48, pad_token_id=tiny.PAD, num_labels=labels,
    )  # fmt: skip
    BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    with serving() as server:
        for name, labels in (("me/judge", 1), ("me/labels", 2)):
            folder = classifier(tmp_path / name, labels)
            files: dict[str, bytes | str] = {file.name: file.read_bytes() for file in folder.iterdir()}
            server.repositories["models", name] = Repository("models", False, files, commits=[{}])
        yield server


def run(hub: Hub, home: Path, *sets: str) -> tuple[int, str]:
    values = [part for text in sets for part in ("--set", text)]
    recipe = home.parent / "small.yaml"
    recipe.write_text(RECIPE)
    process = hub_client.start(
        hub,
        home,
        "-P",
        "-m",
        "stages",
        "run",
        "--recipe",
        str(recipe),
        "--runs",
        str(home.parent / "runs"),
        *values,
    )
    output, _ = process.communicate(timeout=300)
    return process.returncode, " ".join(output.split())


def test_it_scores_as_the_same_model_in_a_folder_and_without_a_network_once_it_is_cached(
    hub: Hub, tmp_path: Path
) -> None:
    from stages.sampling.prompts import EncodedPrompt
    from stages.scoring.load import load_scorer

    codec = tiny.codec()
    local = load_scorer(tmp_path / "me/judge", {}, codec, "cpu")
    expected = float(local([EncodedPrompt(tiny.user("ab"), [], "train")], [codec.completion("cd")])[0])
    online = float(hub_client.python(hub, tmp_path / "here", SCORE).splitlines()[-1])
    assert online == pytest.approx(expected, abs=1e-5)
    assert any(REVISION in path for path in hub.sent("GET"))
    hub.repositories.clear()
    hub.url = "http://127.0.0.1:9"  # nothing listens there
    offline = float(hub_client.python(hub, tmp_path / "here", SCORE).splitlines()[-1])
    assert offline == online


def test_what_is_wrong_with_it_is_found_before_anything_runs(hub: Hub, tmp_path: Path) -> None:
    revision = f"ppo.reward_model_revision={REVISION}"
    code, output = run(hub, tmp_path / "here", "ppo.reward_model=me/labels", revision)
    assert code != 0
    assert "me/labels does not give one score: its config.json says 2 labels" in output
    assert "--set #1" in output
    code, output = run(hub, tmp_path / "here", "ppo.reward_model=me/nothing", revision)
    assert code != 0
    assert f"cannot fetch me/nothing at {REVISION}" in output
    hub.url = "http://127.0.0.1:9"
    code, output = run(hub, tmp_path / "there", "ppo.reward_model=me/judge", revision)
    assert code != 0
    assert "no network: me/judge is not in the Hub's cache on this machine" in output
    assert "Traceback" not in output
    assert not list((tmp_path / "runs").glob("small/*/*"))
