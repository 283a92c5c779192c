"""Looks at held-out prompts along a run: answers, score, KL, and what the judge says. The best policy is kept.

The prompts are the last of the held-out split in the order of a hash, and `eval` leaves them out: a checkpoint that
was chosen on the prompts it is then reported on would look better than it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.engine.stage import RunContext
from stages.ppo.checkpoint import load, save
from stages.ppo.experience import score_tokens
from stages.ppo.kl import k1
from stages.ppo.trainer import PPOTrainer
from stages.ppo.watch import selection as choice
from stages.ppo.watch.selection import Fall
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.judge import ScoringJudge


def look_prompts(held_out: Sequence[EncodedPrompt], count: int) -> list[EncodedPrompt]:
    """The last `count`, or the last half where these are fewer."""
    return list(held_out[len(held_out) - min(count, len(held_out) // 2) :])


class Looks:
    """Takes the looks.

    Attributes:
        taken: all it knows, besides the weights of the best look in `ctx.state_dir`.
        fall: how far the judge has fallen at the newest look while the score rose.
        stop: whether the guard ends training here; the same on every process.
    """

    def __init__(
        self, trainer: PPOTrainer, prompts: Sequence[EncodedPrompt], judge: ScoringJudge | None, ctx: RunContext
    ) -> None:
        self.trainer, self.config, self.prompts, self.judge = trainer, trainer.config, prompts, judge
        self.folder, self.seed = ctx.state_dir, ctx.seed
        self.taken: list[dict[str, Any]] = []
        self.fall: Fall | None = None
        self.stop = False

    @property
    def due(self) -> bool:
        """Whether the present update is one to look at."""
        every, update = self.config.eval_updates if self.prompts else 0, self.trainer.update
        return bool(every) and (update % every == 0 or update == self.trainer.updates)

    @torch.no_grad()
    def take(self) -> dict[str, float]:
        """Looks at the policy as it is, from the same random numbers each time. Returns the look's metrics."""
        trainer = self.trainer
        episodes = trainer.respond(self.prompts, self.seed)
        responses = episodes.responses
        scores = trainer.reward(self.prompts, responses)
        logp, ref_logp = (
            score_tokens(trainer.bank, role, episodes, self.config, micro=trainer.micro).logp_BT.cpu()
            for role in ("policy", "reference")
        )
        kl = torch.where(episodes.mask_BT.cpu(), k1(logp, ref_logp), 0.0).sum(1)
        lengths = episodes.response_lengths_B
        look: dict[str, Any] = {
            "update": trainer.update,
            "kl": float(kl.mean()),
            "kl_coef": trainer.kl.value,
            "score": float(scores.mean()),
            "length": float(lengths.float().mean()),
            "kls": kl.tolist(),
            "scores": scores.tolist(),
            "prompts": [prompt.messages for prompt in self.prompts],
            "responses": [trainer.codec.decode(response) for response in responses],
        }
        if self.judge is not None:
            judged = self.judge.scores(self.prompts, responses)
            look |= {"judge": sum(judged) / len(judged), "judged": judged}
        self.taken.append(look)
        self._conclude()
        best = trainer.world.first(self.chosen == len(self.taken) - 1)
        if best and (trainer.world.rank == 0 or trainer.bank.sharded):
            weights = self._roles()
            if trainer.world.rank == 0:
                save(self._weights(look), weights)
        return {f"eval/{name}": look[name] for name in ("kl", "score", "length", "judge") if name in look}

    @property
    def chosen(self) -> int | None:
        """Index of the look whose policy is to be handed on; None for the policy as it ends."""
        return choice.chosen(self.taken, self.config.checkpoint)

    def restore(self, taken: list[dict[str, Any]]) -> None:
        """Goes on after these looks."""
        self.taken = taken
        self._conclude()

    def _conclude(self) -> None:
        guards, now = self.config.guards, len(self.taken) - 1
        self.fall = choice.fallen(self.taken, now, guards.significance) if self.taken else None
        over = guards.stop and choice.overoptimised(
            self.taken, significance=guards.significance, patience=guards.patience
        )
        self.stop = bool(self.trainer.world.first(bool(over)))  # one process decides for all

    def prune(self) -> None:
        """Removes the weights that no checkpoint needs: all but the best look's."""
        kept = None if self.chosen is None else self._weights(self.taken[self.chosen])
        for path in self.folder.glob("best-*.pt"):
            if path != kept:
                path.unlink()

    def hand_on(self) -> dict[str, Any] | None:
        """Puts the chosen look's weights into the bank of the process that writes, of a sharded bank into all.
        Returns that look, or the last one; None without looks."""
        world = self.trainer.world
        chosen = int(world.first(-1 if self.chosen is None else self.chosen))
        if chosen < 0:
            return self.taken[-1] if self.taken else None
        look = self.taken[chosen]
        if look["update"] != self.trainer.update and (world.rank == 0 or self.trainer.bank.sharded):
            for role, tensors in load(self._weights(look)).items():
                self.trainer.bank.load_state_of(role, tensors)
        return look

    def _roles(self) -> dict[str, Any]:
        bank = self.trainer.bank
        return {role: bank.state_of(role) for role in sorted(bank.trainable)}

    def _weights(self, look: dict[str, Any]) -> Path:
        return self.folder / f"best-{look['update']}.pt"
