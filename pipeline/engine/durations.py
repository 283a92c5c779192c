"""How long stages will take, from earlier runs of the same stages on this device."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from pipeline.engine.plan import Planner
from pipeline.engine.rounds import parse


@dataclass(frozen=True)
class Durations:
    """Estimates durations.

    Attributes:
        planner: knows the earlier runs.
        flops: operations of each stage (`Forecast.flops`), as far as they can be counted.
        device: the stages will run on; runs on other devices are ignored.
    """

    planner: Planner
    flops: Mapping[str, float]
    device: str

    def seconds(self, step: str) -> float | None:
        """Of one step, such as `ppo-2`: its last uninterrupted run, or another round's, times the ratio of the
        operations. None if there was no such run, and for a stage in which people rank."""
        stage = parse(step)[0]
        if stage == "rank" and self.planner.recipe.rank.source == "app":
            return None
        for name in dict.fromkeys((step, stage)):
            for run in reversed(self.planner.history(name)):
                record = run.manifest
                if record.resumed or record.device != self.device:
                    continue
                before, now = record.predicted.get("flops"), self.flops.get(stage)
                return record.seconds * (now / before if before and now else 1.0)
        return None

    def total(self, steps: Iterable[str]) -> float | None:
        """Of these steps together. None if one of them is not known: a sum without it would be wrong."""
        seconds = [self.seconds(step) for step in steps]
        known = [value for value in seconds if value is not None]
        return sum(known) if len(known) == len(seconds) else None
