"""A finished run that has every section of the report: baselines, over-optimisation, alerts, exported files."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fake_run import HOSTILE, FakeRun, agreement, evaluation, interval, model
from pipeline_fakes import FakeStages, write_all

from pipeline.engine.runner import Runner


def win(judge: str, ours: str, theirs: str, value: float, **more: Any) -> dict[str, Any]:
    sides = {"judge": judge, "ours": ours, "theirs": theirs}
    return sides | interval(value, value - 0.04, value + 0.04, ties=0.3, prompts=256, **more)


def fit(peak: float | None, high: float | None, *, set_in: bool) -> dict[str, Any]:
    return {
        "reason": None,
        "form": "d (alpha - beta log d)",
        "alpha": interval(0.7, 0.6, 0.8),
        "beta": interval(0.5, 0.4, 0.6),
        "peak_kl": interval(peak, 0.9, high),  # type: ignore[arg-type]
        "farthest": 4.0,
        "set_in": set_in,
        "share": 0.99 if set_in else 0.6,
        "lost": 0.21,
        "curve": [[0.0, 0.0], [2.0, 0.8], [4.0, 0.6]],
    }


def full_evaluation() -> dict[str, Any]:
    """The content of eval.json with two judges, best-of-n, DPO, the frontier and the extremes."""
    looks = [
        {"update": u, "kl": interval(kl, kl, kl), "proxy": interval(p, p, p), "gold": interval(g, g, g)}
        for u, kl, p, g in ((0, 0.0, 0.0, 0.0), (8, 4.0, 1.2, 0.6), (16, 2.0, 0.9, 0.8))
    ]
    content = evaluation() | {
        "judges": [{"name": "venues", "unit": "faults an answer"}],
        "wins": [
            win("venues", "ppo", "sft", 0.71),
            win("venues", "ppo", "best_of_n", 0.45),
            win("venues", "ppo", "dpo", 0.5),
            win("venues", "ppo", "raft", 0.55),
            win("venues", "dpo", "sft", 0.6),
            win("venues", "raft", "sft", 0.66),
            win(HOSTILE, "ppo", "sft", 0.6, disagreed=0.25, unreadable=3),
        ],
        "frontier": {
            "judge": "venues", "round": 1, "prompts": 64, "points": looks, "fit": fit(1.8, 2.5, set_in=True),
        },
        "best_of_n": {
            "samples": 16,
            "n": 16,
            "reaches": 1.835,
            "rows": [
                {"n": n, "kl": kl, "proxy": interval(kl, 0, 2), "gold": interval(kl, 0, 2)}
                for n, kl in ((1, 0.0), (16, 1.835))
            ],
            "fit": {"reason": "1 evaluation points are away from the reference, and the form needs 4"},
        },
        "optimum": {
            "samples": 16,
            "reach": 2.1,
            "points": [{"kl": kl, "gain": interval(kl, kl - 0.1, kl + 0.1)} for kl in (0.0, 1.0, 2.1)],
            "share": interval(0.82, 0.77, 0.87),
        },
        "points": {name: {"kl": 1.9, "gold": interval(0.8, 0.7, 0.9)} for name in ("ppo", "dpo", "raft")},
        "extremes": {
            "judge": "venues",
            "improved": [{"prompt": "name[A]", "gain": 3.0, "sft": HOSTILE, "ppo": "A is fine."}],
            "damaged": [],
            "share_improved": 0.57,
            "share_damaged": 0.0,
        },
    }  # fmt: skip
    content["models"] |= {
        "dpo": model(0.08, kl=2.5, kl_low=2.2, kl_high=2.8),
        "raft": model(0.06, kl=1.2, kl_low=1.1, kl_high=1.3, n=16),
        "best_of_n": model(0.035, kl=1.835, n=16, nll=None),
    }
    return content


ALERT = {
    "rule": "length-grows",
    "update": 4,
    "last": 9,
    "updates": 6,
    "symptom": "responses take 33 tokens, <b>19</b> at first",
    "cause": "the reward model takes longer for better",
    "hint": "add rankings",
}
MEASURED = {
    "score": 2.7, "perplexity": 1.48, "slot_error_rate": 0.05, "slot_error_low": 0.04, "slot_error_high": 0.06,
}  # fmt: skip
EXPORT: dict[str, Any] = {
    "prompts": 64,
    "judge": "venues",
    "policy": MEASURED,
    "formats": [
        {"format": "safetensors", "change": "none", "bytes": 2_000_000, "kl": 0.0, "top_1": 1.0, **MEASURED},
        {"format": "gguf_q4_0", "change": "quantised after training", "bytes": 300_000, "kl": 0.12, "top_1": 0.987}
        | MEASURED,
    ],
}


class FullRun(FakeRun):
    """As `FakeRun`, with DPO, RAFT, training monitors, annotators and an export."""

    def __init__(self, stages: FakeStages, runner: Callable[..., Runner]) -> None:
        super().__init__(stages, runner)
        self.evaluation, self.agreement = full_evaluation(), agreement()
        self.dropped = [{"table": "rankings", "row": row, "reason": "missing rating"} for row in range(3, 43)]
        stages.does |= {
            "collect": lambda *stage: write_all(*stage) | {"answers": 3464, "prompts": 866},
            "dpo": lambda *stage: write_all(*stage) | {"pairs": 4000, "prompts": 800},
            "raft": self._raft,
            "export": self._export,
        }

    def __call__(self, until: str | None = None, *sets: str) -> Any:
        return super().__call__(until, "dpo.enabled=true raft.enabled=true", *sets)

    def _ppo(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        metrics = super()._ppo(config, inputs, out, ctx)
        points = [point | {"prompts": [], "responses": [], "judge": -0.1} for point in self.evaluation["along"]]
        (out / "evaluations.jsonl").write_text("".join(json.dumps(point) + "\n" for point in points))
        (out / "alerts.jsonl").write_text(json.dumps(ALERT) + "\n")
        return metrics | {"judge": "venues", "selected_update": 8}

    def _raft(self, *stage: Any) -> dict[str, Any]:
        counts = {"answers": 16 * 512, "prompts": 512, "best_of_n": 16, "kl_bound": 1.835}
        return write_all(*stage) | counts

    def _export(self, config: Any, inputs: Any, out: Path, ctx: Any) -> dict[str, Any]:
        (out / "export.json").write_text(json.dumps(EXPORT))
        return write_all(config, inputs, out, ctx) | {"formats": "safetensors, gguf_q4_0", "bytes": 2_300_000}
