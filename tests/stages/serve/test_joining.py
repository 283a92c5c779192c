"""Rows that join a running decoding get the hidden states that they have alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import tiny
import torch

from stages.models.fast.plain import PlainDecoder
from stages.models.passes import OwnPass
from stages.models.text import pad

PASSES: dict[str, Any] = {
    "plain": lambda: PlainDecoder(tiny.lm()),
    "cached": lambda: OwnPass(tiny.lm()),
    "learned positions": lambda: OwnPass(tiny.gpt2()),
    "full": lambda: OwnPass(tiny.lm(), "full"),
}


def start(row_pass: Any, prompts: Sequence[Sequence[int]], room: int) -> tuple[Any, torch.Tensor]:
    steps = row_pass.decode(*pad(prompts, tiny.PAD, left=True), room)
    return steps, steps.start()


@torch.no_grad()
@pytest.mark.parametrize("kind", PASSES)
def test_rows_that_join_and_leave_have_the_states_of_a_full_pass(kind: str) -> None:
    row_pass = PASSES[kind]()
    rows = tiny.rows(5, 30, 30, seed=4)
    lengths = [4, 9, 12, 3, 7]

    def check(live: list[int], hidden: torch.Tensor) -> None:
        for place, i in enumerate(live):
            expected = row_pass.hidden(torch.tensor([rows[i][: lengths[i]]]))[0, -1]
            assert torch.allclose(hidden[place], expected, atol=1e-4), (kind, i, lengths[i])

    def step(live: list[int]) -> torch.Tensor:
        token = torch.tensor([rows[i][lengths[i]] for i in live])
        for i in live:
            lengths[i] += 1
        hidden = steps.next(token)
        check(live, hidden)
        return hidden

    live = [0, 1]
    steps, hidden = start(row_pass, [rows[i][: lengths[i]] for i in live], 3)
    check(live, hidden)
    step(live)
    step(live)
    # Longer and shorter rows join, with less room than they need at first.
    other, joined = start(row_pass, [rows[i][: lengths[i]] for i in (2, 3)], 2)
    assert steps.join([other], 2)
    live += [2, 3]
    check([2, 3], joined)
    step(live)
    step(live)
    assert steps.join([], 4), "more room"
    step(live)
    # The longest row leaves, and another comes.
    steps.keep(torch.tensor([0, 1, 3]))
    live = [0, 1, 3]
    other, _ = start(row_pass, [rows[4][: lengths[4]]], 1)
    assert steps.join([other], 4)
    live.append(4)
    for _ in range(4):
        step(live)


@torch.no_grad()
def test_room_that_was_never_written_does_not_reach_a_result() -> None:
    """Allocated memory may hold NaN, which a mask does not remove."""
    decoder = PlainDecoder(tiny.lm())
    allocate = decoder.new_cache

    def poisoned(rows: int, length: int) -> Any:
        cache = allocate(rows, length)
        for tensor in (*cache.keys, *cache.values):
            tensor.fill_(torch.nan)
        return cache

    decoder.new_cache = poisoned  # type: ignore[method-assign]
    rows = tiny.rows(2, 12, 12)
    steps, _ = start(decoder, [rows[0][:10]], 2)
    other, _ = start(decoder, [rows[1][:3]], 2)
    assert steps.join([other], 2)
    hidden = steps.next(torch.tensor([rows[0][10], rows[1][3]]))
    assert torch.allclose(hidden[1], decoder.hidden(torch.tensor([rows[1][:4]]))[0, -1], atol=1e-4)


@torch.no_grad()
def test_sliding_windows_are_not_joined() -> None:
    from transformers import MistralConfig, MistralForCausalLM

    torch.manual_seed(0)
    values = {"vocab_size": tiny.VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "sliding_window": 4, "pad_token_id": 0}
    lm = MistralForCausalLM(MistralConfig(**values, **heads, eos_token_id=1)).eval()
    row_pass = OwnPass(lm)
    rows = tiny.rows(2, 12, 12)
    steps, _ = start(row_pass, [rows[0][:10]], 2)
    other, _ = start(row_pass, [rows[1][:3]], 2)
    assert not steps.join([other], 2)
    hidden = steps.next(torch.tensor([rows[0][10]]))
    assert torch.allclose(hidden[0], row_pass.hidden(torch.tensor([rows[0][:11]]))[0, -1], atol=1e-4)
