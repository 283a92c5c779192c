"""A few responses and their tokens' log-probs under policy and reference: stored with a policy, reproduced where
it is loaded.

In the first round the policy starts as the reference's copy, and the first batch shows that their KL is zero. A
later round's policy starts elsewhere; that it starts where the round before ended, and against the same reference,
is shown by the log-probs that were stored there.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

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
    """Writes, from rank 0, the policy's responses to `prompts`, and each role's log-prob of each of their tokens,
    in nats. The processes of a sharded bank all take part."""
    episodes = trainer.respond(prompts, seed)
    lengths = episodes.response_lengths_B.tolist()
    found = {
        "prompts": [list(prompt.ids) for prompt in prompts],
        "responses": episodes.responses,
        **{
            role: [row[:n] for row, n in zip(logp_BT.tolist(), lengths, strict=True)]
            for role, logp_BT in ((role, _logprobs(trainer.bank, role, episodes, trainer.config)) for role in ROLES)
        },
    }
    if trainer.world.rank == 0:
        (out_dir / FILE).write_text(json.dumps(found) + "\n", encoding="utf-8")


def verify(policy: Artifact, bank: Bank, config: PPOConfig, codec: Codec, device: str, exact: bool) -> float:
    """Computes the stored log-probs again; returns the largest deviation, in nats. Raises `StageError` when
    rounding does not explain it: the bank's policy or reference is not what the policy was trained as and against.

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
                f"the {role} does not give the log-probs that {policy.stage} stored, nats per token: {deviation}",
                where=str(policy.path),
                hint=f"the files or the base changed since: run `tutelage run {policy.stage} --fresh`",
            )
        worst = max(worst, deviation.largest)
    return worst


def _logprobs(bank: Bank, role: str, episodes: Episodes, config: PPOConfig) -> Tensor:
    """(B, T) on the CPU."""
    return score_tokens(bank, role, episodes, config).logp_BT.cpu()
