"""A few responses and what policy and reference say of them: stored with a policy, reproduced where it is loaded.

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
from pipeline.errors import StageError
from pipeline.stage import Artifact
from stages.models.bank import Bank
from stages.models.text import Codec
from stages.ppo.experience import score_tokens
from stages.ppo.trainer import PPOTrainer
from stages.ppo.trajectory import Episodes

FILE = "golden.json"
ROLES = ("policy", "reference")


def write(trainer: PPOTrainer, prompts: Sequence[Sequence[int]], seed: int, out_dir: Path) -> None:
    """Writes, from rank 0, the policy's responses to `prompts`, and each role's log-prob of each of them, in nats.
    The processes of a sharded bank all take part."""
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand((len(prompts), trainer.config.response_length), generator=generator)
    episodes = trainer.respond(prompts, uniform)
    lengths = episodes.response_lengths_B.tolist()
    found = {
        "prompts": [list(prompt) for prompt in prompts],
        "responses": [row[:n] for row, n in zip(episodes.responses_BT.tolist(), lengths, strict=True)],
        **{role: _logprobs(trainer.bank, role, episodes, trainer.config).tolist() for role in ROLES},
    }
    if trainer.world.rank == 0:
        (out_dir / FILE).write_text(json.dumps(found) + "\n", encoding="utf-8")


def verify(policy: Artifact, bank: Bank, config: PPOConfig, codec: Codec, device: str, tolerance: float) -> float:
    """Computes the stored log-probs again; returns the largest deviation, in nats a token. Raises `StageError` when
    it is above `tolerance`: the bank's policy or reference is not what the policy was trained as and against."""
    found = policy.json(FILE)
    if not found["prompts"]:
        return 0.0
    episodes = Episodes.build(found["prompts"], found["responses"], codec.stop_ids, codec.pad_id, device)
    lengths = episodes.response_lengths_B
    worst = 0.0
    for role in ROLES:
        off = (_logprobs(bank, role, episodes, config) - torch.tensor(found[role])).abs() / lengths
        if not off.max() <= tolerance:
            raise StageError(
                f"the {role} does not say what was stored with {policy.stage}: off by {float(off.max()):.3g} nats "
                "a token",
                where=str(policy.path),
                mend=f"the files or the base changed since: run `tutelage run {policy.stage} --fresh`",
            )
        worst = max(worst, float(off.max()))
    return worst


def _logprobs(bank: Bank, role: str, episodes: Episodes, config: PPOConfig) -> Tensor:
    logp, _, _ = score_tokens(bank, role, episodes, config)
    return logp.sum(1).cpu()
