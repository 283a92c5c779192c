"""PPO on a CUDA device: quantised and 16-bit updates, running out of memory, and host synchronisations.

What must hold on every device is in tests/invariants/test_on_device.py."""

from __future__ import annotations

import math

import ppo_case
import pytest
import tiny
import torch

from stages.models.microbatch import MicroBatch


@pytest.mark.parametrize("quantization", ["none", "nf4", "int8", {"qat": "q4_0"}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_updates_pass_the_trainers_checks(quantization: str | dict[str, str], dtype: torch.dtype) -> None:
    """The ratio is one at each update's first step, KL is zero at the start, and frozen roles do not change."""
    bank = tiny.lora_bank(value="trunk", seed=2, quantization=quantization, device="cuda")
    if quantization == "none" or isinstance(quantization, dict):
        for name, parameter in bank.model.named_parameters():
            if "lora_" not in name:
                parameter.data = parameter.data.to(dtype)
    trainer = ppo_case.make(bank=bank, value="trunk", device="cuda", gamma=1.0)
    for _ in range(2):
        metrics = trainer.step()
        assert all(math.isfinite(number) for number in metrics.values())
    trainer.frozen.check()


def test_running_out_of_memory_halves_the_micro_batch() -> None:
    torch.cuda.set_per_process_memory_fraction(0.05)
    try:
        room = torch.cuda.get_device_properties(0).total_memory // 80
        done: list[int] = []

        def work(rows: list[int]) -> None:
            torch.empty(len(rows) * room, device="cuda", dtype=torch.uint8)
            done.extend(rows)

        micro = MicroBatch(16, "a pass")
        micro.each(list(range(16)), work)
        assert done == list(range(16))
        assert micro.size is not None
        assert micro.size <= 4
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)


def test_the_host_does_not_wait_inside_a_micro_batch() -> None:
    trainer = ppo_case.make(device="cuda", value="trunk")
    trainer.step()
    data = ppo_case.make(device="cuda", value="trunk").sample(ppo_case.PROMPTS[:8])
    with trainer.bank.active("policy", train=True) as actor:
        parts = [part for _, part in data.micro_batches(torch.arange(8), 4)]
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
        try:
            for part in parts:
                actor.scalar(part.predicting_hidden(actor.hidden(part.ids_BL))).sum().backward()
        finally:
            torch.cuda.set_sync_debug_mode("default")
