"""Step 3 of docs/ppo.md: which roles pass over the batch again before an update's first optimizer step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import ppo_case
import pytest
import tiny
import torch
from torch import Tensor

from stages.models.actor import Actor
from stages.models.fast.packing import Packing
from stages.ppo.trainer import PPOTrainer

NOTED: dict[str, Callable[..., Any]] = {"float32": tiny.lora_bank, "full, float32": tiny.full_bank}
RECOMPUTED: dict[str, Callable[..., Any]] = {
    "bfloat16": lambda **values: tiny.lora_bank(dtype=torch.bfloat16, **values),
    "float16": lambda **values: tiny.lora_bank(dtype=torch.float16, **values),
    "full, bfloat16": lambda **values: tiny.full_bank(compute=torch.bfloat16, **values),
    "8-bit activations": lambda **values: tiny.lora_bank(
        quantization={"qat": "q8_0", "activations": "int8"}, **values
    ),
}
EPISODES = int(ppo_case.CONFIG["batch_size"])  # type: ignore[call-overload]


def full_passes(trainer: PPOTrainer, monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, str]]:
    """(Role, "train" or "read") -> sequences that went through a full forward pass in one update."""
    passes: Counter[tuple[str, str]] = Counter()
    hidden = Actor.hidden

    def counted(actor: Actor, ids_BL: Tensor, packing: Packing | None = None) -> Tensor:
        passes[str(trainer.bank._role), "train" if torch.is_grad_enabled() else "read"] += len(ids_BL)
        return hidden(actor, ids_BL, packing)

    monkeypatch.setattr(Actor, "hidden", counted)
    trainer.step()
    return passes


@pytest.mark.parametrize("value", ["trunk", "adapter"])
@pytest.mark.parametrize("precision", [*NOTED, *RECOMPUTED])
def test_log_probs_noted_while_sampling_are_reused_in_float32_only(
    precision: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    bank = (NOTED | RECOMPUTED)[precision](value=value, seed=2)
    passes = full_passes(ppo_case.make(bank=bank, value=value), monkeypatch)
    assert passes["policy", "read"] == (0 if precision in NOTED else EPISODES)
    assert passes["reference", "read"] == EPISODES
    assert passes["value", "read"] == (EPISODES if value == "adapter" else 0)
    assert passes["policy", "train"] == EPISODES * int(ppo_case.CONFIG["num_ppo_epochs"])  # type: ignore[call-overload]


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_reused_numbers_are_those_of_a_full_pass(kind: str) -> None:
    """The same updates, with the record of sampling and without it."""
    reused, recomputed = (ppo_case.make(kind, value="trunk") for _ in range(2))
    recomputed.exact = False
    for _ in range(2):
        reused.step()
        recomputed.step()
    ppo_case.assert_close(ppo_case.weights(reused), ppo_case.weights(recomputed), tolerance=2e-5)
