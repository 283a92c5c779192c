"""People compare two models: from the eval artifact's answers to the file that the report reads."""

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


def test_a_comparison_is_blind_and_written_for_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LINGER", 0.2)
    folder = tmp_path / "eval"
    folder.mkdir()
    with (folder / "answers.jsonl").open("w") as file:
        for i in range(6):
            prompt = [{"role": "user", "content": f"q{i}"}]
            # The client prefers the alphabetically first answer.
            ppo_word = "fair" if i == 5 else "bad" if i < 4 else "worst"
            answers = {"base": "x", "sft": f"fair answer to {i}", "ppo": f"{ppo_word} answer to {i}"}
            file.write(json.dumps({"prompt": prompt, "answers": answers}) + "\n")
    eval_run = SimpleNamespace(
        artifact=Artifact("eval", folder, "f" * 64), manifest=SimpleNamespace(fingerprint="f" * 64)
    )
    recipe = SimpleNamespace(seed=0, eval=SimpleNamespace(bootstrap=200))
    run: Any = SimpleNamespace(folder=tmp_path, need=lambda stage: eval_run, loaded=SimpleNamespace(recipe=recipe))
    pages: list[str] = []

    def view_and_rank(terminal: Terminal) -> None:
        pages.append(terminal.links["ana"].get().text)
        ranks_all("ana")(terminal)

    terminal = Terminal(view_and_rank, ranks_all("ben"))
    config = AppConfig(annotators=["ana", "ben"], overlap=2, labels=[], port=0, linger_minutes=0)
    summary = judge(run, config, prompts=None, say=terminal.say, database="rankings.sqlite")
    assert summary["win_rate"]["value"] == pytest.approx((4 + 0 + 0.5) / 6)
    assert (summary["prompts"], summary["identical"], summary["judges"], summary["judgements"]) == (6, 1, 2, 10)
    assert summary["agreement"]["value"] == 1.0
    assert json.loads(judged_file(tmp_path, "f" * 64).read_text()) == summary
    assert "Which answer is better?" in pages[0]
    for name in ("ppo", "sft", "PPO", "SFT"):
        assert name not in pages[0].replace(terminal.links["ana"].base, "")
    assert any("ppo wins 75.0 % against sft" in line for line in terminal.lines)
    assert terminal.lines[0].startswith("warning: only 6 held-out prompts to compare: results on fewer than 30")
