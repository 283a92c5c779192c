"""Fingerprints: responses and their tokens' log-probs under policy and reference, stored with a policy and verified
when it is loaded.

In the first round the policy starts as a copy of the reference, so the first batch checks that their KL is zero. A
later round starts from the previous policy; fingerprints check that both it and the reference are unchanged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline import invocation
from pipeline.config.ppo import PPOConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.bank import Bank
from stages.models.precision import Deviation
from stages.models.text import Codec
from stages.ppo.experience import score_tokens
from stages.ppo.trainer import PPOTrainer
from stages.sampling.episodes import Episodes
from stages.sampling.prompts import EncodedPrompt

FILE = "fingerprints.json"
ROLES = ("policy", "reference")


def write(trainer: PPOTrainer, prompts: Sequence[EncodedPrompt], seed: int, out_dir: Path) -> None:
    """Writes, from rank 0, the policy's responses to `prompts` and their tokens' log-probs under each role, nats.
    All processes of a sharded bank must call it."""
    episodes = trainer.respond(prompts, seed)
    lengths = episodes.response_lengths_B.tolist()
    content = {
        "prompts": [list(prompt.ids) for prompt in prompts],
        "responses": episodes.responses,
        **{
            role: [row[:n] for row, n in zip(logp_BT.tolist(), lengths, strict=True)]
            for role, logp_BT in ((role, _logprobs(trainer.bank, role, episodes, trainer.config)) for role in ROLES)
        },
    }
    if trainer.world.rank == 0:
        (out_dir / FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")


def verify(policy: Artifact, bank: Bank, config: PPOConfig, codec: Codec, device: str, exact: bool) -> float:
    """Recomputes the stored log-probs and returns the largest deviation, in nats. Raises `StageError` if it exceeds
    rounding error: the bank's policy or reference then differs from that of the stored run.

    Args:
        exact: whether the bank computes exactly (`stages.models.precision`).
    """
    stored = policy.json(FILE)
    if not stored["prompts"]:
        return 0.0
    episodes = Episodes.build(stored["prompts"], stored["responses"], codec.stop_ids, codec.pad_id, device)
    mask = episodes.mask_BT.cpu()
    worst = 0.0
    for role in ROLES:
        expected = torch.tensor([logp for row in stored[role] for logp in row])
        deviation = Deviation.between(_logprobs(bank, role, episodes, config)[mask], expected)
        if not deviation.is_rounding(exact):
            raise StageError(
                f"the {role} does not reproduce the log-probs that {policy.stage} stored, "
                f"nats per token: {deviation}",
                where=str(policy.path),
                hint=(
                    "its files or the base have changed: "
                    f"run `{invocation.command('run', policy.stage, '--fresh')}`"
                ),
            )
        worst = max(worst, deviation.largest)
    return worst


def _logprobs(bank: Bank, role: str, episodes: Episodes, config: PPOConfig) -> Tensor:
    """(B, T) on the CPU."""
    return score_tokens(bank, role, episodes, config).logp_BT.cpu()
