"""The reward model on disk and in memory: a role on the policy's backbone, or a whole model, with a scalar head.

Its artifact: `reward.json` (base, golden scores), `head.safetensors`, and `adapter/` or `model/`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from pipeline.errors import StageError
from pipeline.stage import Artifact
from stages.models.adapters import ADAPTER, MODEL, causal_lm, is_adapter, load_full, save_adapter
from stages.models.bank import Actor
from stages.models.heads import ScalarHead, at_last_token
from stages.models.loading import load_backbone, readable_checkpoint
from stages.models.text import Codec, pad

HEAD, SPEC = "head.safetensors", "reward.json"


class RewardModel(nn.Module):
    """A causal LM's trunk and a head that reads the last token, trainable as one module."""

    def __init__(self, lm: Any, head: ScalarHead) -> None:
        super().__init__()
        self.lm, self.head = lm, head

    @property
    def config(self) -> Any:
        return self.lm.config

    def forward(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Right-padded rows and their real lengths -> scores (B,). The head reads each row's last real token."""
        hidden = causal_lm(self.lm).get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state
        return self.head(at_last_token(hidden, lengths_B))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """What learns: a checkpoint needs no copy of a frozen backbone, nor tied weights twice."""
        state = super().state_dict(*args, **kwargs)
        return {name: state[name] for name, p in self.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The inverse of `state_dict`: the frozen backbone is not missed, whatever else is an error."""
        if state_dict.keys() != self.state_dict().keys():
            raise StageError(
                "the checkpoint of the reward model has other parameters than the model",
                mend="start the stage afresh, with --fresh",
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)._replace(missing_keys=[])


def by_length(rows: Sequence[Sequence[int]], batch_size: int) -> Iterator[list[int]]:
    """Indices of rows in batches, those of like length together."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        yield order[start : start + batch_size]


@torch.no_grad()
def score_rows(score: Any, rows: Sequence[Sequence[int]], batch_size: int, device: str | torch.device) -> Tensor:
    """Scores (N,) on the CPU. `score(ids_BL, lengths_B)` is a `RewardModel` or `actor_scorer(...)`."""
    scores = torch.zeros(len(rows))
    for batch in by_length(rows, batch_size):
        ids, mask = pad([rows[i] for i in batch], 0, left=False)
        scores[batch] = score(ids.to(device), mask.sum(1).to(device)).float().cpu()
    return scores


def actor_scorer(actor: Actor) -> Any:
    """A role of a bank as `score(ids_BL, lengths_B) -> (B,)`."""
    return lambda ids, lengths: actor.scalar(at_last_token(actor.hidden(ids), lengths))


def save(
    model: RewardModel, out_dir: Path, base: Artifact, codec: Codec, golden: list[dict[str, Any]], lora: bool
) -> None:
    """Writes the artifact. `golden` rows hold `ids` and `score`, to be reproduced by `verify`."""
    if lora:
        save_adapter(model.lm, "default", out_dir)
    else:
        model.lm.save_pretrained(out_dir / MODEL)
    model.head.save(out_dir / HEAD)
    spec = {"base": base.fingerprint, "vocabulary": len(codec.tokenizer), "golden": golden}
    (out_dir / SPEC).write_text(json.dumps(spec) + "\n", encoding="utf-8")


def check_base(reward: Artifact, base: Artifact) -> None:
    """Raises `StageError` when a reward model was trained on another base than the policy's."""
    if reward.json(SPEC)["base"] != base.fingerprint:
        raise StageError(
            "the reward model was trained on another base model than the policy's",
            where=str(reward.path),
            mend="train a reward model on this base, or point ppo.reward_model at a sequence classifier",
        )


def load_reward(reward: Artifact, base: Artifact, device: str) -> RewardModel:
    """The reward model of an artifact on its own, checked against its base and its golden scores."""
    check_base(reward, base)
    lm: Any
    if is_adapter(reward):
        with readable_checkpoint(reward.path):
            lm = PeftModel.from_pretrained(load_backbone(base, device), reward.file(ADAPTER))
    else:
        lm = load_full(reward.file(MODEL), device)
    model = RewardModel(lm, ScalarHead.load(reward.file(HEAD)).to(device)).eval()
    verify(reward, model, device)
    return model


def verify(reward: Artifact, score: Any, device: str | torch.device) -> float:
    """Scores the golden texts again; returns the largest deviation, raises `StageError` when it is not small."""
    golden = reward.json(SPEC)["golden"]
    if not golden:
        return 0.0
    scores = score_rows(score, [row["ids"] for row in golden], len(golden), device)
    expected = torch.tensor([row["score"] for row in golden])
    deviation = float((scores - expected).abs().max())
    tolerance = 1e-3 if str(device) == "cpu" else 0.1
    if not deviation <= tolerance * max(1.0, float(expected.abs().max())):
        raise StageError(
            f"the reward model does not give the scores it was stored with: off by {deviation:.3g}",
            where=str(reward.path),
            mend="the files or the base changed since; train the reward model again",
        )
    return deviation
