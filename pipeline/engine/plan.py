"""What would run and why: keys, reasons, and the finished stages of a recipe."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pipeline import invocation
from pipeline.config import fit, term_rules
from pipeline.config.fit import ModelProfile
from pipeline.config.load import LoadedRecipe, flatten
from pipeline.config.paths import missing
from pipeline.config.section import content
from pipeline.engine import manifest, registry, reuse
from pipeline.engine.fingerprint import Fingerprints
from pipeline.engine.manifest import InputRecord, LocalRecord, Manifest
from pipeline.engine.registry import StageSpec
from pipeline.engine.rounds import by_round, parse, step_name
from pipeline.engine.stage import Artifact
from pipeline.errors import RecipeError, StageError
from pipeline.files import canonical, write_atomic
from pipeline.machine import code_commit, package_versions
from pipeline.wording import listing

Action = Literal["skip", "reuse", "run", "resume", "wait"]

KEY_DIGITS = 12
POINTER = "current.json"
NEW = "no earlier result"
"""The reason to run a stage that never ran."""


@dataclass(frozen=True)
class StageRun:
    """A finished stage: its folder (`out/`, `metrics.jsonl`, `manifest.json`) and its manifest."""

    folder: Path
    manifest: Manifest

    @property
    def artifact(self) -> Artifact:
        return manifest.artifact(self.folder, self.manifest)


@dataclass(frozen=True)
class StagePlan:
    """What would happen to a stage.

    Attributes:
        action: skip (up to date), reuse (another recipe's run of the same key), run, resume (from an interrupted
            run's state), or wait (an input runs first, and whether this stage must run depends on the input's new
            content).
        reason: why.
        note: what else the user should know.
        key, folder: None when it waits.
        inputs, local_files: what goes into the key and the manifest.
        finished: the stage's run, if it is up to date; another recipe's to reuse.
    """

    spec: StageSpec
    action: Action
    reason: str
    note: str = ""
    key: str | None = None
    folder: Path | None = None
    inputs: Mapping[str, InputRecord] | None = None
    local_files: Mapping[str, LocalRecord] | None = None
    finished: StageRun | None = None


@dataclass(frozen=True)
class RunSummary:
    """A recipe and its finished stages, for the report, the Hub and chat.

    Attributes:
        loaded: the recipe and where its values came from.
        folder: runs/<recipe name>.
        stages: finished runs by stage name, in order.
    """

    loaded: LoadedRecipe
    folder: Path
    stages: Mapping[str, StageRun]

    def newest(self, stage: str) -> StageRun | None:
        """A stage's run in the last finished round."""
        return next(reversed(by_round(self.stages, stage).values()), None)

    def need(self, name: str) -> StageRun:
        """A finished step. The bare name of a repeated stage means the recipe's last round, "ppo-1" the first.
        Raises `StageError` when it is not finished under the recipe's present values."""
        repeats = name in registry.STAGES and registry.STAGES[name].repeats
        stage = step_name(name, self.loaded.recipe.rounds) if repeats else step_name(*parse(name))
        if stage not in self.stages:
            raise StageError(
                f"{stage} is not finished under these recipe values",
                where=str(self.folder),
                hint=f"run `{invocation.command('run', stage)}`",
            )
        return self.stages[stage]


class CurrentRuns:
    """`current.json`: which runs belong to the recipe's present values. `summary` finds them there even after a
    local file that a stage read has changed or gone.

    Args:
        folder: runs/<recipe name>.
        digest: of the recipe's values; a file written under other values counts as none.
    """

    def __init__(self, folder: Path, digest: str) -> None:
        self.folder, self.digest = folder, digest

    def read(self) -> dict[str, StageRun]:
        """The recorded runs, as far as they still exist."""
        try:
            pointer = json.loads((self.folder / POINTER).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        if pointer["values"] != self.digest:
            return {}
        runs = {}
        for stage, name in pointer["stages"].items():
            record = manifest.read(self.folder / stage / name)
            if record:
                runs[stage] = StageRun(self.folder / stage / name, record)
        return runs

    def write(self, done: Mapping[str, StageRun], order: Sequence[str]) -> bool:
        """Records these runs. Stages that were not asked for stay recorded while their inputs are the same. Returns
        whether the record changed."""
        current = dict(done)
        for stage, run in self.read().items():
            spec, inputs = registry.STAGES[parse(stage)[0]], run.manifest.inputs.items()
            if stage not in done and all(
                name in current and record.same(InputRecord.of(current[name].manifest, spec.reads_of(name)))
                for name, record in inputs
            ):
                current[stage] = run
        ordered = {stage: current[stage].folder.name for stage in order if stage in current}
        text = json.dumps({"values": self.digest, "stages": ordered}, indent=2) + "\n"
        path = self.folder / POINTER
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return False
        self.folder.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text)
        return True


class Planner:
    """Plans a recipe's stages.

    Args:
        loaded: the recipe.
        runs: the folder of all runs.
        fresh: stages to run again even if they are up to date.
    """

    def __init__(self, loaded: LoadedRecipe, runs: Path, fresh: Iterable[str] = ()) -> None:
        self.loaded = loaded
        self.recipe = loaded.recipe
        self.folder = runs / loaded.recipe.name
        self.fresh = set(fresh)
        self._fingerprints = Fingerprints(runs / ".fingerprints.json")

    def plan(self, until: str | None = None) -> list[StagePlan]:
        """Every stage of the recipe in order, or with `until` that stage and those it needs. Cheap: reads manifests
        only."""
        done: dict[str, StageRun] = {}
        steps = []
        for spec, needs in self.stages(until):
            step = self.consider(spec, needs, done)
            if step.finished:
                done[spec.name] = step.finished
            steps.append(step)
        self._fingerprints.save()
        return steps

    def stages(self, until: str | None) -> list[tuple[StageSpec, tuple[str, ...]]]:
        if until is not None:
            steps = registry.steps(self.recipe)
            if until not in steps and until not in registry.STAGES:
                raise RecipeError(f"there is no stage called {until}", hint=f"the stages are {', '.join(steps)}")
            if until not in steps:
                decides, when = registry.STAGES[until].exists
                raise RecipeError(
                    f"this recipe has no {until} stage",
                    where=self.loaded.place(decides),
                    hint=f"it exists {when}",
                )
        return registry.planned(self.recipe, until)

    def consider(self, spec: StageSpec, needs: Sequence[str], done: Mapping[str, StageRun]) -> StagePlan:
        """What would happen to one stage.

        Args:
            needs: the steps that it needs.
            done: the finished steps so far.
        """
        local_files = self._local_files(spec)
        inputs = {need: InputRecord.of(done[need].manifest, spec.reads_of(need)) for need in needs if need in done}
        waits = [need for need in needs if need not in done]
        if waits:
            first, changes = f"after {listing(waits)}", self._changes(spec, inputs, local_files)
            if not changes:
                first += f", if {'their results change' if len(waits) > 1 else 'its result changes'}"
            return StagePlan(spec, "wait", "; ".join([*(change for change in changes if change != NEW), first]))

        key, folder = self._place(spec, {name: record.decisive for name, record in inputs.items()}, local_files)
        if not _has_run(folder):
            # Before stages declared what they read, all files of their inputs entered the key.
            earlier = self._place(spec, {name: record.fingerprint for name, record in inputs.items()}, local_files)
            if _has_run(earlier[1]):
                key, folder = earlier

        def step(action: Action, reason: str, note: str = "", finished: StageRun | None = None) -> StagePlan:
            return StagePlan(spec, action, reason, note, key, folder, inputs, local_files, finished)

        if spec.name in self.fresh:
            return step("run", "--fresh")
        record = manifest.read(folder)
        if record:
            manifest.verify(folder, record, self.hint(spec.name))
            reason = "; ".join([f"up to date (key {key[:KEY_DIGITS]})", *_unread(spec, record, inputs)])
            return step("skip", reason, self._since(record), StageRun(folder, record))
        if not spec.private(self.recipe) and (elsewhere := reuse.find(folder, key)):
            return step("reuse", f"the same as {elsewhere[0]}", finished=StageRun(*elsewhere))
        if interrupted := _interrupted(folder):
            return step("resume", f"resumes: interrupted at {interrupted:%Y-%m-%d %H:%M:%S}")
        changes = self._changes(spec, inputs, local_files)
        if changes == [NEW] and not spec.private(self.recipe):
            changes += self._nearly_the_same(spec, inputs, local_files)
        return step("run", "; ".join(changes) or "its inputs changed")

    def _place(
        self, spec: StageSpec, inputs: Mapping[str, str], local_files: Mapping[str, LocalRecord]
    ) -> tuple[str, Path]:
        """The key and the folder of a stage's run.

        Args:
            inputs: fingerprint of each input.
        """
        key = manifest.stage_key(
            spec.name,
            spec.version,
            spec.keyed(self.recipe),
            self.recipe.seed,
            inputs,
            {name: record.fingerprint for name, record in local_files.items()},
        )
        return key, self.folder / spec.name / key[:KEY_DIGITS]

    def check_model(self, base: StageRun | None) -> None:
        """Raises `RecipeError` when the recipe asks the model for something that it cannot do. Before the `base`
        stage is finished, only part of that can be checked."""
        profile = None if base is None else ModelProfile.read(base.artifact.path)
        misfits = fit.foreseen(self.recipe) if profile is None else fit.problems(self.recipe, profile)
        if problems := [*misfits, *fit.scorers(self.recipe), *term_rules.problems(self.recipe)]:
            raise self.loaded.refusal(problems)

    def hint(self, stage: str) -> str:
        """The advice for a damaged artifact."""
        return f"run the stage again: `{invocation.command('run', stage, '--fresh')}`"

    def latest(self, stage: str) -> StageRun | None:
        """The stage's run that finished last, under any values."""
        return next(reversed(self.history(stage)), None)

    def history(self, stage: str) -> list[StageRun]:
        """The stage's finished runs under any values, in the order in which they finished."""
        runs = []
        for file in (self.folder / stage).glob(f"*/{manifest.FILE}"):
            try:
                record = manifest.read(file.parent)
            except StageError:
                continue  # a damaged manifest matters only to a run that needs it
            if record:
                runs.append(StageRun(file.parent, record))
        return sorted(runs, key=lambda run: run.manifest.finished)

    def summary(self) -> RunSummary:
        """The finished stages under the recipe's values: those of the last run, or if there was none, those that
        are up to date."""
        if recorded := self._current.read():
            for stage, run in recorded.items():
                manifest.verify(run.folder, run.manifest, self.hint(stage))
            return RunSummary(self.loaded, self.folder, recorded)
        finished = {
            step.spec.name: step.finished for step in self.plan() if step.action == "skip" and step.finished
        }
        return RunSummary(self.loaded, self.folder, finished)

    def point(self, done: Mapping[str, StageRun]) -> bool:
        """Records which runs belong to the recipe's values (see `CurrentRuns.write`)."""
        return self._current.write(done, list(registry.steps(self.recipe)))

    @cached_property
    def _current(self) -> CurrentRuns:
        return CurrentRuns(self.folder, hashlib.sha256(canonical(content(self.recipe)).encode()).hexdigest())

    def _local_files(self, spec: StageSpec) -> dict[str, LocalRecord]:
        records = {}
        for dotted, path in spec.files(self.recipe).items():
            if not path.exists():
                what, hint = missing(dotted, path)
                raise RecipeError(what, where=self.loaded.place(dotted), hint=hint)
            records[dotted] = LocalRecord(path=str(path), fingerprint=self._fingerprints(path))
        return records

    def _changes(
        self, spec: StageSpec, inputs: Mapping[str, InputRecord], local_files: Mapping[str, LocalRecord]
    ) -> list[str]:
        """What differs from the stage's latest run."""
        latest = self.latest(spec.name)
        if latest is None:
            return [NEW]
        return self._differences(spec, latest.manifest, inputs, local_files)

    def _nearly_the_same(
        self, spec: StageSpec, inputs: Mapping[str, InputRecord], local_files: Mapping[str, LocalRecord]
    ) -> Iterator[str]:
        """Why no run of another recipe is used: the newest one that differs in a single value, if there is one."""
        for record in reuse.runs_of(self.folder, spec.name):
            differences = self._differences(spec, record, inputs, local_files)
            differences += [
                f"{dotted} is another file"
                for dotted, file in local_files.items()
                if dotted not in record.local_files
                or (
                    record.local_files[dotted].path != file.path
                    and record.local_files[dotted].fingerprint != file.fingerprint
                )
            ]
            if len(differences) == 1 and not differences[0].startswith("input "):
                yield f"the run of {record.recipe} differs: {differences[0].removeprefix('changed: ')}"
                return

    def _differences(
        self,
        spec: StageSpec,
        was: Manifest,
        inputs: Mapping[str, InputRecord],
        local_files: Mapping[str, LocalRecord],
    ) -> list[str]:
        """What differs from a run."""
        changes = []
        if was.version != spec.version:
            changes.append(f"stage version {was.version} -> {spec.version}")
        now = {"seed": self.recipe.seed, spec.section: spec.keyed(self.recipe)}
        config = _difference({"seed": was.seed, spec.section: was.keyed}, now)
        if config:
            changes += [f"changed: {config[0]}", *config[1:]]
        changes += [
            f"input {name} changed"
            for name, record in inputs.items()
            if name not in was.inputs or not was.inputs[name].same(record)
        ]
        changes += [
            f"the contents of {dotted} changed ({record.path})"
            for dotted, record in local_files.items()
            if dotted in was.local_files
            and was.local_files[dotted].path == record.path
            and was.local_files[dotted].fingerprint != record.fingerprint
        ]
        return changes

    @cached_property
    def _versions(self) -> dict[str, str]:
        return {**package_versions(), "code": (code_commit() or "")[:KEY_DIGITS]}

    def _since(self, record: Manifest) -> str:
        """Which code and packages have changed since a run; they are not part of its key."""
        was = {**record.packages, "code": (record.code.get("commit") or "")[:KEY_DIGITS]}
        changed = [
            f"{name} {was[name]} -> {version}"
            for name, version in self._versions.items()
            if was.get(name) and version and was[name] != version
        ]
        if not changed:
            return ""
        return f"not rerun although code or packages have changed: {', '.join(changed)}"


def _unread(spec: StageSpec, record: Manifest, inputs: Mapping[str, InputRecord]) -> list[str]:
    """Inputs that have changed since a run that is up to date, in files that the stage does not read."""
    return [
        f"{name} changed, but not the files that {spec.section} reads"
        for name, now in inputs.items()
        if name in record.inputs and record.inputs[name].fingerprint != now.fingerprint
    ]


def _has_run(folder: Path) -> bool:
    """Whether there is a finished run, or the state of an interrupted one."""
    return (folder / manifest.FILE).exists() or _interrupted(folder) is not None


def _interrupted(folder: Path) -> datetime | None:
    """When an unfinished run last wrote its state, or None when it left none."""
    state = folder / "state"
    times = [path.stat().st_mtime for path in state.iterdir()] if state.is_dir() else []
    return datetime.fromtimestamp(max(times)) if times else None


def _difference(was: Any, now: Any, most: int = 4) -> list[str]:
    """The dotted paths whose values differ, as "path old -> new"."""
    old, new = flatten(was), flatten(now)
    absent = object()
    changed = [path for path in {**old, **new} if old.get(path, absent) != new.get(path, absent)]
    lines = [f"{path} {_shown(old, path)} -> {_shown(new, path)}" for path in changed[:most]]
    return lines + ([f"and {len(changed) - most} more"] if len(changed) > most else [])


def _shown(values: Mapping[str, Any], path: str) -> str:
    return json.dumps(values[path], ensure_ascii=False) if path in values else "(absent)"
