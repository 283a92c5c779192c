"""The contract between the runner and the stages.

A stage is a function `run(config, inputs, out_dir, ctx) -> metrics`:

- `config`: its section of the recipe (a frozen dataclass from `pipeline.config`);
- `inputs`: finished artifacts by step name, exactly those its spec in `stages.registry` names; of stages that
  repeat in rounds, `pipeline.engine.rounds.newest` and `by_round` find them;
- `out_dir`: an empty folder; what is written there becomes the artifact's content;
- `ctx`: everything else a stage may use: seed, device, `state_dir` for checkpoints, metrics, progress.

It returns a flat dict of numbers and strings for the manifest. It reads no globals and computes no paths of
its own. When it is interrupted, `state_dir` is kept and the next run of the same key finds it there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pipeline.errors import StageError

RANKINGS_DATABASE = "rankings.sqlite"
"""What people ranked, in a recipe's folder. Nothing in the pipeline removes it."""

Metrics = dict[str, Any]
"""What a stage returns for its manifest: JSON values by metric name."""


@dataclass(frozen=True)
class Artifact:
    """A stage's finished output: a folder and the manifest that vouches for it.

    `fingerprint` is the SHA-256 over the relative names and contents of all files under `path`; equal
    fingerprints mean equal content, wherever and whenever it was made.
    """

    stage: str
    path: Path
    fingerprint: str
    metrics: Metrics = field(default_factory=dict)

    def file(self, name: str) -> Path:
        """The path of one of the artifact's files. Raises `StageError` when it is not there."""
        path = self.path / name
        if not path.exists():
            raise StageError(
                f"the {self.stage} artifact has no {name}",
                where=str(self.path),
                hint=f"run `tutelage run {self.stage} --fresh` to make it again",
            )
        return path

    def json(self, name: str) -> Any:
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def jsonl(self, name: str) -> Iterator[dict[str, Any]]:
        with self.file(name).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)


class Progress(Protocol):
    """A running display of one loop."""

    def advance(self, steps: int = 1, **numbers: float) -> None:
        """`steps` more are done; `numbers` are the few that matter now (reward, KL, ...)."""


class MetricsLog(Protocol):
    """The stage's `metrics.jsonl`, and whatever `report_to` names besides."""

    def log(self, step: int, **values: Any) -> None: ...

    def truncate(self, step: int) -> None:
        """Forget the lines after `step`: a resumed run writes them again."""


@dataclass(frozen=True)
class RunContext:
    """What a stage may use besides its config and inputs.

    Attributes:
        seed: the recipe's seed, another in each later round; a stage derives every generator from it.
        device: a torch device name, resolved ("cpu", "cuda", "mps").
        sharded: whether several processes share the stage and divide what a full fine-tune trains among them.
        state_dir: for checkpoints; survives an interruption, is removed once the stage is finished.
        metrics: the stage's metrics log.
        progress: opens a progress display: `with ctx.progress("ppo", total=64) as bar: bar.advance()`.
        say: prints one plain line to the user.
        recipe_dir: runs/<recipe>, for what belongs to no key: work of people that a stage takes in over time. Only
            its own files there are a stage's to touch; neither `--fresh` nor `tutelage clean` removes them.
        force: the user insists; a stage records it in its metrics where it mattered.
        describe: dotted recipe path -> "file:line" or flag that set it, for error messages.
    """

    seed: int
    device: str
    state_dir: Path
    metrics: MetricsLog
    progress: Callable[..., AbstractContextManager[Progress]]
    say: Callable[[str], None]
    recipe_dir: Path
    sharded: bool = False
    force: bool = False
    describe: Callable[[str], str] = lambda path: path


class StageFunction(Protocol):
    def __call__(self, config: Any, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics: ...
