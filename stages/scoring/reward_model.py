"""The reward model on disk and in memory: a role on the policy's backbone, or a whole model, with a scalar head.

Its artifact: `reward.json` (base, fingerprints), `head.safetensors`, and `adapter/` or `model/`. The further
members of an ensemble are `head-1.safetensors` and `adapter-1/`, and so on. (An encoder's artifact:
stages/scoring/classifier.py.) Fingerprints are reference scores that are stored with a model: texts, and the score
that it gave each.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor, nn

from pipeline import invocation
from pipeline.engine.stage import Artifact
from pipeline.errors import StageError
from stages.models.adapters import (
    ADAPTER,
    MODEL,
    attach_adapter,
    causal_lm,
    is_adapter,
    load_full,
    save_adapter,
)
from stages.models.bank import ActorBank, Bank, FullBank
from stages.models.heads import ScalarHead, at_last_token
from stages.models.loading import load_backbone
from stages.models.microbatch import MicroBatch
from stages.models.precision import Deviation, computing, exact, working_dtype
from stages.models.text import Codec, pad

HEAD, SPEC = "head.safetensors", "reward.json"
ROLE = "reward"
"""Name of the adapter; further members' are `reward-1`, ..., and those of a criterion `reward_quality`, ..."""
CRITERION = "criterion"
"""Its key in `reward.json`, where rankings have several criteria."""
FINGERPRINTS = "fingerprints"
"""Their key in `reward.json`."""


class ScoringModule(nn.Module):
    """A module that scores right-padded rows and can be trained on rankings. Subclasses define `forward`."""

    def members(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """As an ensemble of one: scores (1, B)."""
        return self(ids_BL, lengths_B)[None]

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Trainable parameters only: a checkpoint needs no copy of a frozen backbone, nor tied weights twice."""
        state = super().state_dict(*args, **kwargs)
        return {name: state[name] for name, p in self.named_parameters() if p.requires_grad}

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """The inverse of `state_dict`: the frozen backbone may be absent, any other difference is an error."""
        if state_dict.keys() != self.state_dict().keys():
            raise StageError(
                "the checkpoint of the reward model has other parameters than the model",
                hint=f"start the stage again: `{invocation.stage_again('--fresh')}`",
            )
        return super().load_state_dict(state_dict, strict=False, assign=assign)._replace(missing_keys=[])


class RewardModel(ScoringModule):
    """A causal LM's trunk and a head that reads the last token, trainable as one module."""

    def __init__(self, lm: Any, head: ScalarHead) -> None:
        super().__init__()
        self.lm, self.head = lm, head

    @property
    def config(self) -> Any:
        return self.lm.config

    def activation_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Called by a Trainer."""
        self.lm.activation_checkpointing_enable(*args, **kwargs)

    def forward(self, ids_BL: Tensor, lengths_B: Tensor | None = None, **packed: Tensor) -> Tensor:
        """Right-padded rows and their real lengths -> scores (B,). The head reads each row's last real token.

        Or rows as `stages.reward.packing.pack` makes them -> the scores (N,) of all their completions.
        """
        return self.head(self.last_states(ids_BL, lengths_B, **packed))

    def last_states(self, ids_BL: Tensor, lengths_B: Tensor | None = None, **packed: Tensor) -> Tensor:
        """What the head reads for the rows of `forward`: hidden states (B, H), or (N, H) of packed rows."""
        if lengths_B is None:
            return self._packed(ids_BL, **packed)
        with computing(self.lm):
            hidden = causal_lm(self.lm).get_decoder()(input_ids=ids_BL, use_cache=False).last_hidden_state
        return at_last_token(hidden, lengths_B)

    def _packed(self, ids_BL: Tensor, positions_BL: Tensor, segments_BL: Tensor, ends_N: Tensor) -> Tensor:
        lm = causal_lm(self.lm)
        with computing(lm):
            hidden = lm.get_decoder()(
                input_ids=ids_BL,
                position_ids=positions_BL,
                attention_mask=packed_attention_mask(segments_BL, working_dtype(lm.get_input_embeddings().weight)),
                use_cache=False,
            ).last_hidden_state
        return hidden.flatten(0, 1)[ends_N]


def packed_attention_mask(segments_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """The additive mask (B, 1, L, L) of packed rows: a position attends to the prompt and to its own completion,
    and to nothing on its right."""
    query, key = segments_BL[:, :, None], segments_BL[:, None, :]
    length = segments_BL.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=segments_BL.device).tril()
    allowed = causal & ((key == 0) | (key == query))
    mask = torch.zeros(allowed.shape, dtype=dtype, device=segments_BL.device)
    return mask.masked_fill(~allowed, torch.finfo(dtype).min)[:, None]


class RewardEnsemble:
    """M reward roles of one bank, frozen. Their heads were put on a common scale when they were trained.

    Args:
        bank: holds an adapter and a scalar head for each of `roles`.
    """

    def __init__(self, bank: Bank, roles: Sequence[str]) -> None:
        self.bank, self.roles = bank, tuple(roles)

    def members(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """Right-padded rows and their real lengths -> each member's scores (M, B)."""
        scores = []
        for role in self.roles:
            with self.bank.active(role) as actor:
                scores.append(actor.scalar(at_last_token(actor.hidden(ids_BL), lengths_B)))
        return torch.stack(scores)

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Inside it, roles that are sharded have all of their weights on every process (`Bank.whole`)."""
        with contextlib.ExitStack() as stack:
            for role in self.roles:
                stack.enter_context(self.bank.whole(role))
            yield

    def __call__(self, ids_BL: Tensor, lengths_B: Tensor) -> Tensor:
        """The members' mean (B,)."""
        return self.members(ids_BL, lengths_B).mean(0)

    @torch.no_grad()
    def share_scale_(self, scores_MN: Tensor) -> None:
        """Gives all members the same mean and standard deviation on the completions that they gave `scores_MN`: the
        averages of their own. In place, in the heads."""
        means, stds = scores_MN.mean(1), scores_MN.std(1, unbiased=False).clamp(min=1e-6)
        for role, mean, std in zip(self.roles, means.tolist(), stds.tolist(), strict=True):
            head: Any = self.bank.heads[role]
            head.rescale_(mean, std / float(stds.mean()))
            head.bias += float(means.mean())


def numbered(name: str, member: int) -> str:
    """The name of a member's role, file or folder; the first member has the plain name."""
    if member == 0:
        return name
    stem, dot, suffix = name.partition(".")
    return f"{stem}-{member}{dot}{suffix}"


def check_finite(scores: Tensor, where: str = "reward model") -> None:
    """Raises `StageError` when a score is NaN or infinite. `where`: what the error names."""
    if broken := int((~scores.isfinite()).sum()):
        raise StageError(
            f"the reward model gives {broken} of {scores.numel()} texts a score that is NaN or infinite",
            where=where,
            hint="train or choose another reward model; if it computes in float16, hold it in float32 or bfloat16",
        )


@torch.no_grad()
def score_rows(
    score: Any,
    rows: Sequence[Sequence[int]],
    batch_size: int | MicroBatch,
    device: str | torch.device,
    on_batch: Callable[[int], None] = lambda rows: None,
    where: str = "reward model",
) -> Tensor:
    """Scores (N,) on the CPU, float32. `score(ids_BL, lengths_B)` is any reward model; its `members` gives (M, N).
    The host waits for the device once, at the end. Raises `StageError` when a score is not finite: everything
    learnt from it would be NaN.

    Args:
        batch_size: rows scored at once, fewer once memory has run out.
        on_batch: called with the number of rows of each batch.
        where: what the error names.
    """
    if not rows:
        return torch.zeros(0)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))  # rows of similar length need little padding
    lengths_N = torch.tensor([len(rows[i]) for i in order], device=device)
    batches: list[Tensor] = []

    def work(part: range) -> None:
        ids, _ = pad([rows[order[k]] for k in part], 0, left=False)
        batches.append(score(ids.to(device), lengths_N[part.start : part.stop]).float())
        on_batch(len(part))

    MicroBatch.of(batch_size).each(range(len(order)), work)
    sorted_N = torch.cat(batches, -1).cpu()
    scores = torch.empty_like(sorted_N)
    scores[..., order] = sorted_N
    check_finite(scores, where)
    return scores


def save(
    model: RewardEnsemble,
    out_dir: Path,
    base: Artifact,
    codec: Codec,
    fingerprints: list[dict[str, Any]],
    criterion: str | None = None,
) -> None:
    """Writes the artifact. Fingerprints hold `ids` and `score` (an ensemble's: a list), which `verify`
    reproduces."""
    bank: Any = model.bank
    for member, role in enumerate(model.roles):
        if isinstance(bank, ActorBank):
            save_adapter(bank.model, role, out_dir, numbered(ADAPTER, member))
        else:
            bank.models[role].save_pretrained(out_dir / MODEL)
        bank.heads[role].save(out_dir / numbered(HEAD, member))
    spec = {"base": base.fingerprint, "vocabulary": len(codec.tokenizer), FINGERPRINTS: fingerprints}
    spec |= {} if criterion is None else {CRITERION: criterion}
    (out_dir / SPEC).write_text(json.dumps(spec) + "\n", encoding="utf-8")


def criterion_of(reward: Artifact) -> str | None:
    """The criterion of a reward artifact, where it is one of several."""
    criterion: str | None = reward.json(SPEC).get(CRITERION)
    return criterion


def roles(reward: Artifact) -> list[str]:
    """The roles of an artifact's members: `reward`, and `reward-1`, ... of an ensemble. Those of a criterion have
    its name, so that a bank can hold the reward models of several."""
    criterion = criterion_of(reward)
    role = ROLE if criterion is None else f"{ROLE}_{criterion}"
    return [numbered(role, member) for member in range(1 + len(list(reward.path.glob(f"{ADAPTER}-*"))))]


def load_members(reward: Artifact, model: PeftModel, device: str) -> dict[str, ScalarHead]:
    """Loads every member's adapter into a peft model, where it is missing. Returns their heads by role."""
    heads = {}
    for member, name in enumerate(roles(reward)):
        if name not in model.peft_config:
            attach_adapter(model, reward.file(numbered(ADAPTER, member)), name)
        heads[name] = ScalarHead.load(reward.file(numbered(HEAD, member))).to(device)
    return heads


def check_base(reward: Artifact, base: Artifact) -> None:
    """Raises `StageError` when a reward model was trained on another base than the policy's."""
    if reward.json(SPEC)["base"] != base.fingerprint:
        raise StageError(
            "the reward model was trained on another base model than the policy's",
            where=str(reward.path),
            hint="train a reward model on this base, or point ppo.reward_model at a sequence classifier",
        )


def load_reward(reward: Artifact, base: Artifact, device: str) -> RewardEnsemble:
    """The reward model of an artifact on a bank of its own, checked against its base and its fingerprints."""
    check_base(reward, base)
    bank: Bank
    if is_adapter(reward):
        lm = attach_adapter(load_backbone(base, device), reward.file(ADAPTER), roles(reward)[0])
        heads = load_members(reward, lm, device)
        bank = ActorBank(lm.to(device), heads, ())
    else:
        heads = {ROLE: ScalarHead.load(reward.file(HEAD)).to(device)}
        bank = FullBank({ROLE: load_full(base, reward, device)}, heads, ())
    model = RewardEnsemble(bank, list(heads))
    verify(reward, model, device)
    return model


def fingerprints_of(model: Any, rows: Sequence[list[int]], device: str | torch.device) -> list[dict[str, Any]]:
    """Rows with the score that the model gives each, or with the scores of an ensemble's members: what `verify`
    reproduces."""
    if not rows:
        return []
    scores = score_rows(model.members, rows, len(rows), device).T.tolist()
    return [
        {"ids": row, "score": members if len(members) > 1 else members[0]}
        for row, members in zip(rows, scores, strict=True)
    ]


def verify(reward: Artifact, model: Any, device: str | torch.device) -> float:
    """Scores the stored texts again, by every member; returns the largest deviation, in units of the score. Raises
    `StageError` when rounding does not explain it (`stages.models.precision`)."""
    return verify_scores(reward.json(SPEC)[FINGERPRINTS], model, device, where=str(reward.path))


def verify_scores(stored: Sequence[dict[str, Any]], model: Any, device: str | torch.device, *, where: str) -> float:
    """As `verify`, for fingerprints from any file.

    Args:
        where: the model's place, for the error.
    """
    if not stored:
        return 0.0
    scores = score_rows(model.members, [row["ids"] for row in stored], len(stored), device).T
    expected = torch.tensor([row["score"] for row in stored]).reshape(scores.shape)
    # A GPU may compute float32 products in TF32.
    strict = str(device) == "cpu" and exact(getattr(model, "bank", model))
    unit = max(1.0, float(expected.abs().max()))
    members = [Deviation.between(*columns) for columns in zip(scores.T, expected.T, strict=True)]
    for deviation in members:
        if not deviation.is_rounding(strict, unit):
            raise StageError(
                f"the reward model does not give the scores it was stored with: {deviation}",
                where=where,
                hint="the files or the base changed since; train the reward model again",
            )
    return max(deviation.largest for deviation in members)
