"""Batches of prompts, and the processes' shares of them."""

from types import SimpleNamespace

import pytest
import torch

from stages.ppo.prompts import PromptQueue, Shares


def world(rank, size):
    return SimpleNamespace(rank=rank, size=size, mine=lambda count: torch.arange(rank, count, size))


def test_every_prompt_is_used_before_any_is_used_again_and_resumes():
    queue = PromptQueue("abcdefg", torch.Generator().manual_seed(0))
    assert sorted(queue.take(7)) == sorted("abcdefg")
    drawn = queue.take(3)
    state, random = queue.state_dict(), queue.generator.get_state()
    rest = queue.take(6)
    assert sorted(drawn + rest[:4]) == sorted("abcdefg")
    again = PromptQueue("abcdefg", torch.Generator())
    again.load_state_dict(state)
    again.generator.set_state(random)
    assert again.take(6) == rest


@pytest.mark.parametrize("size", [1, 2, 3])
@pytest.mark.parametrize("group_size", [1, 2, 4])
def test_shares_are_the_whole_batch_with_the_prompt_of_each_row(size, group_size):
    shares = [Shares(24, group_size, world(rank, size)) for rank in range(size)]
    assert sorted(row for share in shares for row in share.rows.tolist()) == list(range(24))
    prompts = [f"prompt {i}" for i in range(24 // group_size)]
    for share in shares:
        assert share.share.total == 24
        assert share.of(prompts) == [f"prompt {row // group_size}" for row in share.rows.tolist()]
        assert len(share.rows) == 24 // size, "equal shares, even if there are fewer prompts than processes"


@pytest.mark.parametrize("group_size", [1, 2])
def test_minibatches_cover_the_batch_once_whatever_the_processes(group_size):
    alone = Shares(12, group_size, world(0, 1))
    whole = [set(rows.tolist()) for rows in alone.mini_batches(3, torch.Generator().manual_seed(1))]
    assert sorted(row for rows in whole for row in rows) == list(range(12))
    parts = [Shares(12, group_size, world(rank, 2)) for rank in range(2)]
    for number, expected in enumerate(whole):
        rows = set()
        for part in parts:
            mine = list(part.mini_batches(3, torch.Generator().manual_seed(1)))[number]
            rows |= set(part.rows[mine].tolist())
        assert rows == expected
