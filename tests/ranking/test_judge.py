"""People compare two models: from the eval artifact's answers to what the report reads."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from test_serve import Terminal, ranks_all

from pipeline.config.rank import AppConfig
from pipeline.engine.stage import Artifact
from ranking import serve
from ranking.judge import judge
from stages.report.human import judged_file


def test_a_comparison_is_blind_and_written_where_the_report_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "LINGER", 0.2)
    folder = tmp_path / "eval"
    folder.mkdir()
    with (folder / "answers.jsonl").open("w") as file:
        for i in range(6):
            prompt = [{"role": "user", "content": f"q{i}"}]
            ours = "fair" if i == 5 else "bad" if i < 4 else "worst"  # the client prefers the first in the alphabet
            answers = {"base": "x", "sft": f"fair answer to {i}", "ppo": f"{ours} answer to {i}"}
            file.write(json.dumps({"prompt": prompt, "answers": answers}) + "\n")
    made = SimpleNamespace(
        artifact=Artifact("eval", folder, "f" * 64), manifest=SimpleNamespace(fingerprint="f" * 64)
    )
    recipe = SimpleNamespace(seed=0, eval=SimpleNamespace(bootstrap=200))
    run: Any = SimpleNamespace(folder=tmp_path, need=lambda stage: made, loaded=SimpleNamespace(recipe=recipe))
    pages: list[str] = []

    def looks(terminal: Terminal) -> None:
        pages.append(terminal.links["ana"].get().text)
        ranks_all("ana")(terminal)

    terminal = Terminal(looks, ranks_all("ben"))
    config = AppConfig(annotators=["ana", "ben"], overlap=2, labels=[], port=0)
    found = judge(
        run, config, prompts=None, say=terminal.say, progress=terminal.progress, database="rankings.sqlite"
    )
    assert found["win_rate"]["value"] == pytest.approx((4 + 0 + 0.5) / 6)
    assert (found["prompts"], found["identical"], found["judges"], found["judgements"]) == (6, 1, 2, 10)
    assert found["agreement"]["value"] == 1.0
    assert json.loads(judged_file(tmp_path, "f" * 64).read_text()) == found
    assert "Which answer is better?" in pages[0]
    for name in ("ppo", "sft", "PPO", "SFT"):
        assert name not in pages[0].replace(terminal.links["ana"].base, "")
    assert any("ppo wins 75.0 % against sft" in line for line in terminal.lines)
