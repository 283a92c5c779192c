"""Stages that only record their inputs, and a display that records its output."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config.section import content
from pipeline.engine.progress import Display


@dataclasses.dataclass
class FakeStages:
    """Stages that record their calls. `does[name]` replaces the function of a stage."""

    calls: list[str] = dataclasses.field(default_factory=list)
    does: dict[str, Callable[..., dict[str, Any]]] = dataclasses.field(default_factory=dict)

    def function(self, name: str) -> Callable[..., dict[str, Any]]:
        def run(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
            self.calls.append(name)
            return self.does.get(name, write_all)(config, inputs, out_dir, ctx)

        return run


def write_all(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
    received = {"config": content(config), "seed": ctx.seed}
    received["inputs"] = {name: artifact.fingerprint for name, artifact in inputs.items()}
    (out_dir / "given.json").write_text(json.dumps(received))
    return {"inputs": len(inputs)}


def write_rankings(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
    """Writes one simulated ranking of a prompt that depends on the seed."""
    ranking = {"prompt": [{"role": "user", "content": f"p{ctx.seed}"}], "completions": ["x", "y"], "ranks": [1, 2]}
    row = {**ranking, "annotator": "ann", "human": False, "split": "train"}
    (out_dir / "rankings.jsonl").write_text(json.dumps(row) + "\n")
    return {"human": False}


class Lines(Display):
    """A display that records its output."""

    def __init__(self) -> None:
        self.stream = StringIO()
        super().__init__(Console(file=self.stream, width=200))

    @property
    def text(self) -> str:
        return self.stream.getvalue()
