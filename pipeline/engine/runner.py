"""Runs what the plan says: one stage after another, each under its lock, each finished by its manifest."""

from __future__ import annotations

import gc
import re
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from types import FrameType
from typing import Any

from rich.console import Console

from pipeline import hub_models, invocation, machine
from pipeline.config import sampler, term_rules
from pipeline.config.load import LoadedRecipe
from pipeline.config.section import content
from pipeline.device import resolve
from pipeline.engine import manifest, reuse
from pipeline.engine.boundary import ERROR, translate
from pipeline.engine.durations import Durations
from pipeline.engine.lock import locked
from pipeline.engine.manifest import InputRecord
from pipeline.engine.metrics import MetricsFile, open_trackers
from pipeline.engine.plan import Planner, StagePlan, StageRun
from pipeline.engine.processes import Processes
from pipeline.engine.progress import Display
from pipeline.engine.recording import Outcome, assemble
from pipeline.engine.registry import StageSpec, steps
from pipeline.engine.stage import Artifact, RunContext, Silent
from pipeline.errors import Interrupted, RecipeError, StageError
from pipeline.files import readable_seconds
from pipeline.memory.forecast import Forecast
from pipeline.memory.plan import planned_device


class Runner:
    """Runs a recipe's stages.

    Args:
        loaded: the recipe.
        runs: the folder of all runs.
        display: where progress is shown.
        fresh: stages to run again even if they are up to date.
        force: passed to the stages, which record it where it mattered.
        wait: whether to wait for another process that works on the same stage; otherwise that is an error.
        processes: the processes that share the run. Only the first calls `run`; the others call `follow`.

    Attributes:
        planner: plans the same recipe.
        moved: after `run`, whether the recipe now points to other artifacts than before.
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
        processes: Processes | None = None,
    ) -> None:
        self.planner = Planner(loaded, runs, fresh)
        self._loaded, self._recipe = loaded, loaded.recipe
        self._display = display or Display(Console())
        self._forecast: Forecast | None = None
        self._force, self._wait, self._processes = force, wait, processes or Processes()
        self.moved = False

    def run(self, until: str | None = None) -> list[StagePlan]:
        """Runs every stage that is not up to date, up to `until`. Returns what was planned for each stage when its
        turn came: a stage is skipped after all if its rerun inputs came out unchanged."""
        done: dict[str, StageRun] = {}
        considered = []
        with terminate_as_interrupt():
            # Planning everything first reports a missing file or a damaged artifact before anything runs.
            planned = self.planner.plan(until)
            self._forecast = foresee(self.planner, planned, self._force, self._processes.size)
            try:
                self._recipe = self._forecast.recipe
                if self._forecast.is_tight:
                    machine.return_memory()
                for number, (spec, needs) in enumerate(self.planner.stages(until), 1):
                    step = self.planner.consider(spec, needs, done)
                    if (
                        step.action == "skip" and step.finished
                    ):  # a kill may have come between writing the manifest and removing the state
                        shutil.rmtree(step.finished.folder / "state", ignore_errors=True)
                    if not step.finished:
                        later = [other.spec.name for other in planned[number:] if not other.finished]
                        durations = Durations(self.planner, self._forecast.flops, self._device)
                        self._display.time_left = _countdown(durations, step, later)
                    if step.action == "reuse":
                        done[spec.name] = self._reuse(step)
                    else:
                        done[spec.name] = step.finished or self._execute(step, done, f"{number} of {len(planned)}")
                    considered.append(step)
                    if spec.name == "base":
                        self.planner.check_model(done["base"])
            finally:
                self.moved = self.planner.point(done)
        return considered

    def _execute(self, step: StagePlan, done: Mapping[str, StageRun], position: str) -> StageRun:
        assert step.folder is not None
        name, say = step.spec.name, self._display.say
        or_wait = f"wait for it to end, or run `{invocation.again('--wait')}`, which waits"
        with locked(step.folder, wait=self._wait, say=say, hint=or_wait):
            invocation.remember(running=name)
            by_another = None if name in self.planner.fresh else manifest.read(step.folder)
            if by_another:
                say(f"{name}: another process has finished it")
                return StageRun(step.folder, by_another)
            left = self._display.left()
            say(f"stage {position}: {name}, running ({step.reason}){f'; {left}' if left else ''}")
            try:
                stage_run = self._make(step, step.folder, done)
            except KeyboardInterrupt:
                raise Interrupted(
                    f"interrupted during {name}",
                    where=str(step.folder),
                    hint="its state is kept: run the same command again to continue",
                ) from None
            except Exception as error:
                problem = translate(error, name, step.folder)
                if problem is None or problem is error:
                    raise
                raise problem from error
            finally:
                self._display.close()
            self.planner.fresh.discard(name)
            say(f"{name}: finished in {readable_seconds(stage_run.manifest.seconds)}")
            return stage_run

    def _reuse(self, step: StagePlan) -> StageRun:
        """Takes another recipe's run into this recipe's folder."""
        assert step.folder is not None
        assert step.finished is not None
        name, source = step.spec.name, step.finished
        or_wait = f"wait for it to end, or run `{invocation.again('--wait')}`, which waits"
        with locked(step.folder, wait=self._wait, say=self._display.say, hint=or_wait):
            by_another = manifest.read(step.folder)
            if by_another is None:
                self._display.say(f"{name}: {step.reason}, which is used")
                _prepare(step.folder, keep_state=False)
                hint = f"run the stage here: `{invocation.command('run', name, '--fresh')}`"
                reuse.adopt(source.folder, source.manifest, step.folder, hint)
            shutil.rmtree(step.folder / "state", ignore_errors=True)
        return StageRun(step.folder, source.manifest)

    def _make(self, step: StagePlan, folder: Path, done: Mapping[str, StageRun]) -> StageRun:
        assert step.inputs is not None
        spec, resumes = step.spec, step.action == "resume"
        config, seed = spec.config(self._recipe), spec.seed(self._recipe)
        _prepare(folder, keep_state=resumes)
        trackers = open_trackers(self._recipe.report_to, folder, self._recipe.name, f"{spec.name}-{folder.name}")
        with closing(MetricsFile(folder / "metrics.jsonl", trackers)) as metrics_file:
            ctx = self._context(
                spec,
                folder,
                metrics=metrics_file,
                progress=lambda what, *counts, **more: self._display.open(
                    re.sub(rf"^{spec.section}\b", spec.name, what), *counts, **more
                ),
                say=self._display.say,
                sharded=spec.parallel and self._sharded,
            )
            run = spec.load()
            inputs = {
                name: spec.view(name, done[name].artifact, record.decisive) for name, record in step.inputs.items()
            }
            started = datetime.now(UTC)
            shared = spec.parallel and self._processes.size > 1
            with machine.PeakMemory() as peak, ExitStack() as stack:
                if shared:
                    folders = {name: str(done[name].folder.absolute()) for name in inputs}
                    task = {"stage": spec.name, "folder": str(folder.absolute()), "inputs": folders}
                    self._processes.announce({**task, "config": content(config), "seed": seed})
                    stack.enter_context(self._processes.together(spec.name, self._device))
                metrics = run(config, inputs, folder / "out", ctx)
        files = manifest.record_files(folder / "out")
        outcome = Outcome(
            metrics=metrics,
            files=files,
            simulated_input=any(done[name].manifest.simulated for name in inputs),
            forced=self._force,
            device=self._device,
            processes=self._processes.size if shared else 1,
            started=started,
            seconds=metrics_file.seconds,
            resumed=resumes,
            memory=peak.report(),
            predicted=self._forecast.record(spec.section) if self._forecast else {},
        )
        record = assemble(step, self._loaded, self._recipe, outcome)
        manifest.write(folder, record)
        shutil.rmtree(folder / "state", ignore_errors=True)
        _free_memory()
        peak.settle()
        return StageRun(folder, record)

    def _context(self, spec: StageSpec, folder: Path, **more: Any) -> RunContext:
        return RunContext(
            seed=spec.seed(self._recipe),
            device=self._device,
            state_dir=folder / "state",
            recipe_dir=self.planner.folder,
            force=self._force,
            describe=self._loaded.describe,
            offload=self._recipe.sharding == "offload",
            **more,
        )

    def follow(self) -> None:
        """Joins the parallel stages that the first process announces, silently, until there are no more."""
        with terminate_as_interrupt():
            try:
                self._recipe = Forecast.of(self._loaded, processes=self._processes.size).recipe
                for task in self._processes.tasks():
                    self._join(task)
            except KeyboardInterrupt:
                raise Interrupted("interrupted") from None

    def _join(self, task: Mapping[str, Any]) -> None:
        spec, folder = steps(self._recipe)[task["stage"]], Path(task["folder"])
        invocation.remember(running=spec.name)
        inputs = _announced_inputs(spec, task["inputs"], self._processes.rank)
        config = spec.config(self._recipe)
        if task["config"] != content(config) or task["seed"] != spec.seed(self._recipe):
            raise StageError(
                f"process {self._processes.rank} has read a different recipe from process 0",
                hint="start all of them with the same arguments and files",
            )
        ctx = self._context(
            spec,
            folder,
            metrics=Silent(),
            progress=Silent.progress,
            say=lambda text: None,
            sharded=self._sharded,
        )
        with self._processes.together(spec.name, self._device):
            spec.load()(config, inputs, folder / "out", ctx)
        _free_memory()

    @cached_property
    def _device(self) -> str:
        return resolve(self._loaded)

    @cached_property
    def _sharded(self) -> bool:
        kind = self._recipe.sharding
        wanted = kind != "none"
        if wanted and self._processes.size == 1:
            self._display.say(f"sharding: {kind} has no effect on one process: start several with --nproc")
        if wanted and self._device == "mps":
            raise RecipeError(
                f"sharding: {kind} is not supported on mps",
                where=self._loaded.place("sharding"),
                hint="set it to none, or choose another device",
            )
        return wanted and self._processes.size > 1


def _countdown(durations: Durations, step: StagePlan, later: Sequence[str]) -> Callable[[], float | None]:
    """A function that gives the seconds left for a stage that starts now and the later ones. It gives None where
    that is not known: for a stage without an earlier run or one that resumes, and once a stage takes longer than
    expected."""
    started = time.monotonic()
    own = durations.seconds(step.spec.name) if step.action == "run" else None
    rest = durations.total(later)

    def left() -> float | None:
        if own is None or rest is None:
            return None
        remains = own - (time.monotonic() - started)
        return remains + rest if remains >= 0 else None

    return left


def foresee(planner: Planner, planned: Sequence[StagePlan], force: bool, processes: int = 1) -> Forecast:
    """Refuses before anything runs what would fail later: raises `RecipeError` for what the model cannot do, and
    `StageError` for models that cannot be fetched and, unless `force`, for what does not fit into memory."""
    if not all(step.finished for step in planned):
        for path, fetched in hub_models.scorers(planner.recipe).items():
            hub_models.fetch(*fetched, planner.loaded.place(path))
    rates = any(step.spec.section in ("ppo", "eval") and not step.finished for step in planned)
    if rates and (problems := list(term_rules.unset_keys(planner.recipe))):
        raise planner.loaded.refusal(problems)
    if any(step.spec.section == "ppo" and not step.finished for step in planned):
        device = planned_device(planner.recipe)
        if problems := list(sampler.unavailable(planner.recipe, device, processes)):
            raise planner.loaded.refusal(problems)
    planner.check_model(next((step.finished for step in planned if step.spec.name == "base"), None))
    forecast = Forecast.of(planner.loaded, planner.latest("data"), processes)
    if forecast.no_network and any(step.spec.name == "base" and not step.finished for step in planned):
        raise forecast.no_network
    forecast.check({step.spec.section for step in planned if not step.finished}, force)
    return forecast


def _announced_inputs(spec: StageSpec, folders: Mapping[str, str], rank: int) -> dict[str, Artifact]:
    """The artifacts in the folders that the first process announced. Raises `StageError` where one is missing."""
    inputs = {}
    for name, path in folders.items():
        record = manifest.read(Path(path))
        if record is None:
            raise StageError(
                f"process {rank} does not see the {name} artifact",
                where=path,
                hint="all machines must see the same files under the same path",
            )
        read = InputRecord.of(record, spec.reads_of(name))
        inputs[name] = spec.view(name, manifest.artifact(Path(path), record), read.decisive)
    return inputs


def _prepare(folder: Path, *, keep_state: bool) -> None:
    """Removes what an earlier run of the same key left behind; keeps its state if the stage resumes."""
    for file in (manifest.FILE, ERROR):
        (folder / file).unlink(missing_ok=True)
    shutil.rmtree(folder / "out", ignore_errors=True)
    for unfinished in folder.glob(".*"):  # temporary files of a process that was killed
        unfinished.unlink()
    if not keep_state:
        shutil.rmtree(folder / "state", ignore_errors=True)
        shutil.rmtree(folder / "tensorboard", ignore_errors=True)
        (folder / "metrics.jsonl").unlink(missing_ok=True)
    (folder / "out").mkdir()
    (folder / "state").mkdir(exist_ok=True)


def _free_memory() -> None:
    """Keeps one stage's garbage out of the next one's peak memory."""
    gc.collect()
    machine.trim_memory()
    torch = sys.modules.get("torch")
    if torch and torch.cuda.is_available():
        torch.cuda.empty_cache()


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM interrupts a run as Ctrl-C does."""
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
