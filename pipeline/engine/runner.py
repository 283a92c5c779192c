"""Runs what the plan says: one stage after another, each under its lock, finished by its manifest."""

from __future__ import annotations

import gc
import shutil
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from pipeline import machine
from pipeline.config.load import LoadedRecipe
from pipeline.config.section import content
from pipeline.device import resolve
from pipeline.engine import manifest
from pipeline.engine.boundary import ERROR, translate
from pipeline.engine.lock import locked
from pipeline.engine.manifest import Manifest
from pipeline.engine.metrics import MetricsFile, open_trackers
from pipeline.engine.plan import Planner, StagePlan, StageRun
from pipeline.engine.processes import Ranks
from pipeline.engine.progress import Display
from pipeline.engine.registry import steps
from pipeline.engine.stage import Artifact, RunContext
from pipeline.errors import Interrupted, RecipeError, StageError
from pipeline.files import jsonable, readable_seconds
from pipeline.memory.forecast import Forecast


class Runner:
    """Runs a recipe's stages.

    Args:
        loaded: the recipe.
        runs: the folder of all runs.
        display: where progress is shown.
        fresh: stages to make again even when they are up to date.
        force: passed to the stages, which record it where it mattered.
        wait: for another process that works on the same stage, instead of refusing.
        ranks: the processes that share the run. Only rank 0 calls `run`, the others `follow`.

    Attributes:
        planner: plans the same recipe.
        moved: after `run`, whether the recipe's artifacts are others than they were before.
    """

    def __init__(
        self,
        loaded: LoadedRecipe,
        runs: Path,
        *,
        display: Display | None = None,
        fresh: Iterable[str] = (),
        force: bool = False,
        wait: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        self.planner = Planner(loaded, runs, fresh)
        self._loaded, self._recipe = loaded, loaded.recipe
        self._display = display or Display(Console())
        self._forecast: Forecast | None = None
        self._force, self._wait, self._ranks = force, wait, ranks or Ranks()
        self.moved = False

    def run(self, until: str | None = None) -> list[StagePlan]:
        """Runs every stage that is not up to date, up to `until`. Returns what was planned for each when its
        turn came: a stage whose rerun inputs came out the same is skipped after all."""
        done: dict[str, StageRun] = {}
        steps = []
        with terminate_as_interrupt():
            planned = self.planner.plan(
                until
            )  # every missing file and damaged artifact is found before anything runs
            self.planner.check_model(next((step.finished for step in planned if step.spec.name == "base"), None))
            try:
                self._forecast = Forecast.of(self._loaded, self.planner.latest("data"))
                self._forecast.check({step.spec.section for step in planned if not step.finished}, self._force)
                self._recipe = self._forecast.recipe
                if self._forecast.is_tight:
                    machine.return_memory()
                for spec, needs in self.planner.stages(until):
                    step = self.planner.consider(spec, needs, done)
                    if step.finished:  # a kill may have come between the manifest and the end of its state
                        shutil.rmtree(step.finished.folder / "state", ignore_errors=True)
                    done[spec.name] = step.finished or self._execute(step, done)
                    steps.append(step)
                    if spec.name == "base":
                        self.planner.check_model(done["base"])
            finally:
                self.moved = self.planner.point(done)
        return steps

    def _execute(self, step: StagePlan, done: Mapping[str, StageRun]) -> StageRun:
        assert step.folder is not None
        name, say = step.spec.name, self._display.say
        with locked(step.folder, wait=self._wait, say=say):
            found = None if name in self.planner.fresh else manifest.read(step.folder)
            if found:
                say(f"{name}: another process has finished it")
                return StageRun(step.folder, found)
            say(f"{name}: {step.reason}")
            try:
                made = self._make(step, step.folder, done)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted during {name}",
                    where=str(step.folder),
                    hint="its state is kept: run the same command again to go on",
                ) from None
            except Exception as error:
                problem = translate(error, name, step.folder)
                if problem is None or problem is error:
                    raise
                raise problem from error
            finally:
                self._display.close()
            self.planner.fresh.discard(name)
            say(f"{name}: finished in {readable_seconds(made.manifest.seconds)}")
            return made

    def _make(self, step: StagePlan, folder: Path, done: Mapping[str, StageRun]) -> StageRun:
        assert step.key is not None
        assert step.inputs is not None
        assert step.local_files is not None
        spec, resumes = step.spec, step.action == "resume"
        config = spec.config(self._recipe)
        _prepare(folder, keep_state=resumes)
        trackers = open_trackers(self._recipe.report_to, folder, self._recipe.name, f"{spec.name}-{folder.name}")
        with closing(MetricsFile(folder / "metrics.jsonl", trackers)) as metrics_file:
            ctx = RunContext(
                seed=spec.seed(self._recipe),
                device=self._device,
                state_dir=folder / "state",
                metrics=metrics_file,
                progress=lambda what, *counts, **more: self._display.open(
                    what.replace(spec.section, spec.name, 1), *counts, **more
                ),
                say=self._display.say,
                recipe_dir=self.planner.folder,
                sharded=spec.parallel and self._sharded,
                force=self._force,
                describe=self._loaded.describe,
            )
            run = spec.load()
            inputs = {name: done[name].artifact for name in step.inputs}
            started, clock = datetime.now(UTC), time.monotonic()
            shared = spec.parallel and self._ranks.size > 1
            with machine.PeakMemory() as peak, ExitStack() as stack:
                if shared:
                    folders = {name: str(done[name].folder.absolute()) for name in inputs}
                    self._ranks.announce(
                        {
                            "stage": spec.name,
                            "folder": str(folder.absolute()),
                            "inputs": folders,
                            "config": content(config),
                            "seed": spec.seed(self._recipe),
                        }
                    )
                    stack.enter_context(self._ranks.together(spec.name, self._device))
                metrics = run(config, inputs, folder / "out", ctx)
        files = manifest.record_files(folder / "out")
        made = Manifest(
            recipe=self._recipe.name,
            stage=spec.name,
            version=spec.version,
            key=step.key,
            fingerprint=manifest.artifact_fingerprint(files),
            simulated=metrics.get("human") is False or any(done[name].manifest.simulated for name in inputs),
            seed=self._recipe.seed,
            config=asdict(config),
            keyed=spec.keyed(self._recipe),
            provenance={
                path: where
                for path, where in self._loaded.provenance.items()
                if path == "seed" or path.partition(".")[0] == spec.section
            },
            inputs=dict(step.inputs),
            local_files=dict(step.local_files),
            files=files,
            metrics=jsonable(metrics),
            forced=self._force,
            device=self._device,
            processes=self._ranks.size if shared else 1,
            started=started.isoformat(timespec="seconds"),
            finished=datetime.now(UTC).isoformat(timespec="milliseconds"),
            seconds=round(time.monotonic() - clock, 3),
            resumed=resumes,
            memory=peak.report(),
            predicted=self._forecast.record(spec.section) if self._forecast else {},
            code=machine.code_state(),
            packages=machine.package_versions(),
            hardware=machine.hardware(),
        )
        manifest.write(folder, made)
        shutil.rmtree(folder / "state", ignore_errors=True)
        _free_memory()
        return StageRun(folder, made)

    def follow(self) -> None:
        """Takes part in the parallel stages that rank 0 announces, silently, until there is no more."""
        with terminate_as_interrupt():
            try:
                self._recipe = Forecast.of(self._loaded).recipe
                for task in self._ranks.tasks():
                    self._take_part(task)
            except KeyboardInterrupt:
                raise Interrupted("interrupted") from None

    def _take_part(self, task: Mapping[str, Any]) -> None:
        spec, folder = steps(self._recipe)[task["stage"]], Path(task["folder"])
        inputs: dict[str, Artifact] = {}
        for name, path in task["inputs"].items():
            made = manifest.read(Path(path))
            if made is None:
                raise StageError(
                    f"process {self._ranks.rank} does not see the {name} artifact",
                    where=path,
                    hint="all machines must see the same files under the same path",
                )
            inputs[name] = manifest.artifact(Path(path), made)
        config = spec.config(self._recipe)
        if task["config"] != content(config) or task["seed"] != spec.seed(self._recipe):
            raise StageError(
                f"process {self._ranks.rank} has read another recipe than process 0",
                hint="start all of them with the same arguments and files",
            )
        ctx = RunContext(
            seed=spec.seed(self._recipe),
            device=self._device,
            state_dir=folder / "state",
            metrics=Silent(),
            progress=Silent.progress,
            say=lambda text: None,
            recipe_dir=self.planner.folder,
            sharded=self._sharded,
            force=self._force,
            describe=self._loaded.describe,
        )
        with self._ranks.together(spec.name, self._device):
            spec.load()(config, inputs, folder / "out", ctx)
        _free_memory()

    @cached_property
    def _device(self) -> str:
        return resolve(self._loaded)

    @cached_property
    def _sharded(self) -> bool:
        wanted = self._recipe.sharding == "full"
        if wanted and self._ranks.size == 1:
            self._display.say("sharding: full has no effect on one process: start several with --nproc")
        if wanted and self._device == "mps":
            raise RecipeError(
                "sharding: full is not supported on mps",
                where=self._loaded.describe("sharding"),
                hint="set it to none, or choose another device",
            )
        return wanted and self._ranks.size > 1


class Silent:
    """The metrics log and progress display of a process that is not rank 0."""

    def log(self, step: int, **values: Any) -> None: ...

    def truncate(self, step: int) -> None: ...

    def advance(self, steps: int = 1, **numbers: float) -> None: ...

    @staticmethod
    @contextmanager
    def progress(description: str, total: int | None = None, *, done: int = 0) -> Iterator[Silent]:
        yield Silent()


def _prepare(folder: Path, *, keep_state: bool) -> None:
    """Empties what an earlier run of the key left behind, all but its state when it is to go on."""
    for file in (manifest.FILE, ERROR):
        (folder / file).unlink(missing_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    for unfinished in folder.glob(".*"):  # what a killed process was about to put in place
        unfinished.unlink()
    if not keep_state:
        shutil.rmtree(folder / "state", ignore_errors=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    (folder / "out").mkdir()
    (folder / "state").mkdir(exist_ok=True)


def _free_memory() -> None:
    """So that a stage's peak is its own, not its predecessor's garbage."""
    gc.collect()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """A polite kill ends a run as Ctrl-C does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
