"""The contract between the runner and the stages.

A stage is a function `run(config, inputs, out_dir, ctx) -> metrics`:

- `config`: its section of the recipe (a frozen dataclass from `pipeline.config`);
- `inputs`: finished artifacts by step name, exactly those that its spec in `stages.registry` lists, and of each the
  files that the spec says it reads. For stages that repeat in rounds, `newest` and `by_round` of
  `pipeline.engine.rounds` select among them;
- `out_dir`: an empty folder; the files written there become the artifact;
- `ctx`: everything else a stage may use: seed, device, `state_dir` for checkpoints, metrics, progress.

It returns a flat dict of numbers and strings for the manifest. It reads no globals and computes no paths of its
own. When it is interrupted, `state_dir` is kept, and the next run of the same key finds it there.

A stage whose files others read has dataclasses for them in an `artifact.py` of its package (stages that are one
module: in stages/artifacts.py). They read through `Artifact.rows` and `parse`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline import invocation
from pipeline.errors import StageError

T = TypeVar("T")

_ADAPTERS: dict[type[Any], TypeAdapter[Any]] = {}

RANKINGS_DATABASE = "rankings.sqlite"
"""The database of people's rankings, in a recipe's folder. Nothing in the pipeline removes it."""

Metrics = dict[str, Any]
"""What a stage returns for its manifest: JSON values by metric name."""


@dataclass(frozen=True)
class Artifact:
    """A stage's finished output: a folder of files.

    `fingerprint` is the SHA-256 over the relative names and contents of all files under `path`. Equal fingerprints
    mean equal content. `declared` are patterns of the files that the stage that gets the artifact may read (see
    `matches`), and the fingerprint is then of those that decide its result; None: it may read all.
    """

    stage: str
    path: Path
    fingerprint: str
    metrics: Metrics = field(default_factory=dict)
    declared: tuple[str, ...] | None = None

    def has(self, name: str) -> bool:
        """Whether there is such a file or folder. Raises `AssertionError` as `file`."""
        if self.declared is not None and not matches(name, self.declared):
            raise AssertionError(
                f"a stage reads {name} of its input {self.stage}, and its StageSpec does not say so"
            )
        return (self.path / name).exists()

    def file(self, name: str) -> Path:
        """The path of one of the artifact's files. Raises `StageError` when it does not exist, and `AssertionError`
        when the stage has not declared that it reads it: its key would not notice a change."""
        exists, path = self.has(name), self.path / name
        if not exists:
            raise StageError(
                f"the {self.stage} artifact has no {name}",
                where=str(self.path),
                hint=f"run the stage again: `{invocation.command('run', self.stage, '--fresh')}`",
            )
        return path

    def json(self, name: str) -> Any:
        return json.loads(self.file(name).read_text(encoding="utf-8"))

    def jsonl(self, name: str) -> Iterator[dict[str, Any]]:
        with self.file(name).open(encoding="utf-8") as lines:
            for line in lines:
                yield json.loads(line)

    def rows(self, name: str, kind: type[T]) -> Iterator[T]:
        """The lines of a JSONL file as dataclasses (see `parse`)."""
        where = str(self.path / name)
        return (parse(kind, row, where) for row in self.jsonl(name))


def matches(name: str, patterns: Collection[str]) -> bool:
    """Whether a file of an artifact is among those that patterns name, such as `("*", "!notes.json")`: those of a
    pattern (`fnmatch`) but not of one that starts with "!", which refuses files in folders too. A folder stands for
    all other files in it."""
    top, *_ = parts = name.split("/")
    refused = [pattern[1:] for pattern in patterns if pattern.startswith("!")]
    wanted = [pattern for pattern in patterns if not pattern.startswith("!")]
    return any(fnmatchcase(top, p) for p in wanted) and not any(
        fnmatchcase(part, p) for part in parts for p in refused
    )


def parse(kind: type[T], content: Mapping[str, Any], where: str) -> T:
    """JSON values as a dataclass. Keys that it has no field for are ignored.

    Args:
        where: the file, for the error.

    Raises `StageError` when a value is missing or of another type.
    """
    try:
        if kind not in _ADAPTERS:
            _ADAPTERS[kind] = TypeAdapter(kind)
        value: T = _ADAPTERS[kind].validate_python(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        path = ".".join(str(part) for part in first["loc"])
        raise StageError(
            f"{path}: {first['msg']} (for {kind.__name__})",
            where=where,
            hint=f"the file was written by another version, or edited: run `{_fresh(where)}`",
        ) from None
    return value


def _fresh(where: str) -> str:
    """The command that writes a file of an artifact again: it lies in <stage>/<key>/out/."""
    parts = Path(where).parts
    stage = parts[parts.index("out") - 2] if "out" in parts[2:] else ""
    return invocation.command("run", *([stage] if stage else []), "--fresh")


class Progress(Protocol):
    """A running display of one loop."""

    def advance(self, steps: int = 1, **numbers: float) -> None:
        """Adds `steps` finished steps and shows `numbers` beside the bar (reward, KL, ...)."""


class MetricsLog(Protocol):
    """The stage's `metrics.jsonl`, and the trackers that `report_to` names."""

    def log(self, step: int, **values: Any) -> None: ...

    def truncate(self, step: int) -> None:
        """Removes the lines after `step`, which a resumed run writes again."""


class Silent:
    """A metrics log and a progress display that show nothing, as of every process but the first."""

    def log(self, step: int, **values: Any) -> None: ...

    def truncate(self, step: int) -> None: ...

    def advance(self, steps: int = 1, **numbers: float) -> None: ...

    @staticmethod
    @contextmanager
    def progress(description: str, total: int | None = None, *, done: int = 0) -> Iterator[Silent]:
        yield Silent()


@dataclass(frozen=True)
class RunContext:
    """What a stage may use besides its config and inputs.

    Attributes:
        seed: the recipe's seed; later rounds have others. A stage derives every random generator from it.
        device: a torch device name, resolved ("cpu", "cuda", "mps").
        sharded: whether several processes share the stage and divide the models' weights (docs/distributed.md).
        offload: whether divided weights are kept in host memory.
        state_dir: for checkpoints. Survives an interruption and is removed once the stage is finished.
        metrics: the stage's metrics log.
        progress: opens a progress display: `with ctx.progress("ppo", total=64) as bar: bar.advance()`.
        say: prints one plain line to the user.
        recipe_dir: runs/<recipe>, for files that belong to no key, such as people's rankings. A stage touches only
            its own files there; neither `--fresh` nor `tutelage clean` removes them.
        force: whether the user gave --force. A stage records in its metrics where that mattered.
        describe: dotted recipe path -> the "file:line" or flag that set it, for error messages.
    """

    seed: int
    device: str
    state_dir: Path
    metrics: MetricsLog
    progress: Callable[..., AbstractContextManager[Progress]]
    say: Callable[[str], None]
    recipe_dir: Path
    sharded: bool = False
    offload: bool = False
    force: bool = False
    describe: Callable[[str], str] = lambda path: path


class StageFunction(Protocol):
    def __call__(self, config: Any, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics: ...
