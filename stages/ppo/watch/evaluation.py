"""Evaluation points: at intervals the policy answers held-out prompts, and a judge scores the answers.

The prompts are the last of the held-out split in hash order. The `eval` stage excludes them: results on the prompts
that selected the checkpoint would be biased upwards.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from pathlib import Path
from typing import Any

import torch

from pipeline.engine.stage import RunContext
from stages.models.checkpoint import load, remove_parts, save
from stages.ppo.experience import score_tokens
from stages.ppo.kl import k1
from stages.ppo.trainer import PPOTrainer
from stages.ppo.watch import selection
from stages.ppo.watch.selection import Regression
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.judge import ScoringJudge


def evaluation_prompts(held_out: Sequence[EncodedPrompt], count: int) -> list[EncodedPrompt]:
    """The last `count` prompts, but at most half of them."""
    return list(held_out[len(held_out) - min(count, len(held_out) // 2) :])


class Evaluations:
    """The evaluation points of a run, checkpoint selection and early stopping.

    Attributes:
        points: one dict per point. With the weights of the best point in `ctx.state_dir`, they are the whole state.
        regression: the fall of the judge's score at the newest point while the reward model's score rose, or None.
        stop: whether training stops here; the same on every process.
    """

    def __init__(
        self, trainer: PPOTrainer, prompts: Sequence[EncodedPrompt], judge: ScoringJudge | None, ctx: RunContext
    ) -> None:
        self.trainer, self.config, self.prompts, self.judge = trainer, trainer.config, prompts, judge
        self.folder, self.seed = ctx.state_dir, ctx.seed
        self.points: list[dict[str, Any]] = []
        self.regression: Regression | None = None
        self.stop = False

    @property
    def due(self) -> bool:
        """Whether the policy is evaluated at the current update."""
        every, update = self.config.eval_updates if self.prompts else 0, self.trainer.update
        return bool(every) and (update % every == 0 or update == self.trainer.updates)

    @torch.no_grad()
    def evaluate(self) -> dict[str, float]:
        """Evaluates the current policy, with the same random numbers each time. Returns metrics."""
        trainer = self.trainer
        episodes = trainer.respond(self.prompts, self.seed)
        responses = episodes.responses
        raw = trainer.reward.everywhere(self.prompts, responses, trainer.world)
        scores = trainer.normalizer.shown(raw)
        logp, ref_logp = (
            score_tokens(trainer.bank, role, episodes, self.config, micro=trainer.micro).logp_BT.cpu()
            for role in ("policy", "reference")
        )
        kl = torch.where(episodes.mask_BT.cpu(), k1(logp, ref_logp), 0.0).sum(1)
        lengths = episodes.response_lengths_B
        point: dict[str, Any] = {
            "update": trainer.update,
            "kl": float(kl.mean()),
            "kl_coef": trainer.kl.value,
            "score": float(scores.mean()),
            "length": float(lengths.float().mean()),
            "kls": kl.tolist(),
            "scores": scores.tolist(),
            "prompts": [prompt.messages for prompt in self.prompts],
            "responses": [trainer.codec.decode(response) for response in responses],
            "response_ids": responses,
        }
        if raw.ndim > 1:
            point["terms"] = {
                name: [None if value != value else value for value in row]
                for name, row in zip(trainer.normalizer.state_dict(), raw.tolist(), strict=True)
            }
        if self.judge is not None:
            judged = self.judge.scores(self.prompts, responses)
            point |= {"judge": sum(judged) / len(judged), "judged": judged}
        self.points.append(point)
        self._rescale()
        self._conclude()
        best = trainer.world.first(self.selected == len(self.points) - 1)
        if best and (trainer.world.rank == 0 or trainer.bank.mesh):
            save(self._weights(point), self._roles())
        return {f"eval/{name}": point[name] for name in ("kl", "score", "length", "judge") if name in point}

    @property
    def selected(self) -> int | None:
        """Index of the point whose policy is the stage's result; None for the policy of the last update."""
        return selection.selected(self.points, self.config.checkpoint)

    def restore(self, points: list[dict[str, Any]]) -> None:
        """Restores the points of a checkpoint."""
        self.points = points
        self._conclude()

    def _conclude(self) -> None:
        monitor, now = self.config.monitor, len(self.points) - 1
        self.regression = selection.regression(self.points, now, monitor.significance) if self.points else None
        over = monitor.stop and selection.overoptimised(
            self.points, significance=monitor.significance, patience=monitor.patience
        )
        self.stop = bool(self.trainer.world.first(bool(over)))  # one process decides for all

    def _rescale(self) -> None:
        """Puts the scores of all points on the present scale, which moves where a term is normalised by running
        statistics. Without terms, points have raw scores."""
        for point in self.points:
            if "terms" in point:
                raw = torch.tensor([[nan if v is None else v for v in row] for row in point["terms"].values()])
                scores = self.trainer.normalizer.shown(raw)
                point |= {"score": float(scores.mean()), "scores": scores.tolist()}

    def prune(self) -> None:
        """Removes the weights of all points but the best one."""
        best = None if self.selected is None else self._weights(self.points[self.selected])
        for path in self.folder.glob("best-*.pt"):
            if path != best:
                path.unlink()
                remove_parts(path)

    def select(self) -> dict[str, Any] | None:
        """Loads the selected point's weights into the bank, on rank 0 or, for a sharded bank, on every process.
        Returns that point, or the last one if none is selected; None without evaluations."""
        self._rescale()
        world, mesh = self.trainer.world, self.trainer.bank.mesh
        chosen = int(world.first(-1 if self.selected is None else self.selected))
        if chosen < 0:
            return self.points[-1] if self.points else None
        point = self.points[chosen]
        if point["update"] != self.trainer.update and (world.rank == 0 or mesh):
            for role, tensors in load(self._weights(point), mesh).items():
                self.trainer.bank.load_state_of(role, tensors)
        return point

    def _roles(self) -> dict[str, Any]:
        bank = self.trainer.bank
        return {role: bank.state_of(role) for role in sorted(bank.trainable)}

    def _weights(self, point: dict[str, Any]) -> Path:
        return self.folder / f"best-{point['update']}.pt"
