"""Decoding in slots gives the responses of plain decoding, and its step can be captured."""

from collections import deque
from functools import partial

import pytest
import tiny
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from stages.models.actor import Actor
from stages.models.fast.slots import PlainSlots
from stages.models.precision import compute_in
from stages.sampling import decoding, slots
from stages.sampling.decoding import Record, generate, sample
from stages.sampling.slots import SlotDecoder, Task

STOPS = {tiny.EOS, *range(9, 45, 6)}
LENGTH = 14
PROMPTS = tiny.rows(11, 1, 9, seed=3)
UNIFORM = torch.rand((len(PROMPTS), LENGTH), generator=torch.Generator().manual_seed(2))


@pytest.fixture(scope="module")
def actor():
    return Actor(tiny.lm(3))


def in_batches(actor, record=None):
    return generate(actor, PROMPTS, UNIFORM, temperature=0.8, stop_ids=STOPS, pad_id=tiny.PAD, record=record)


class Wanted:
    """Has the responses of all prompts decoded in slots. `done` holds the numbers of finished prompts."""

    def __init__(self, actor, rows, record=None, stops=STOPS):
        def note(row, t, logits, probs, token, *, hidden, where):
            if record is not None:
                values = actor.scalar(hidden) if actor.has_head else None
                record.note(row, t, logits.float() / 0.8, probs, token, values, where)

        self.done, self.output = [], torch.full(UNIFORM.shape, -1)
        self.queue = deque(range(len(PROMPTS)))
        task = Task(
            PROMPTS,
            UNIFORM,
            partial(sample, temperature=0.8),
            note,
            torch.tensor(sorted(stops)),
            self.output,
            tiny.PAD,
            self.done.append,
        )
        self.decoder = SlotDecoder(actor, task, rows)

    @torch.no_grad()
    def responses(self):
        self.decoder.run(self.queue)
        assert sum(self.done) == len(PROMPTS)
        assert not self.queue
        return [[i for i in row if i >= 0] for row in self.output.tolist()]


@pytest.mark.parametrize("rows", [1, 2, 5, len(PROMPTS)])
@pytest.mark.parametrize("every", [1, 4, 16])
def test_responses_equal_those_of_batches(rows, every, actor, monkeypatch):
    monkeypatch.setattr(slots, "CHECK_EVERY", every)
    monkeypatch.setattr(slots, "SIZES", (1, 3, 8))
    expected = in_batches(actor)
    lengths = {len(response) for response in expected}
    assert len(lengths) > 3
    assert LENGTH in lengths
    assert Wanted(actor, rows).responses() == expected


def test_the_record_equals_that_of_batches(monkeypatch):
    monkeypatch.setattr(slots, "CHECK_EVERY", 3)
    bank = tiny.lora_bank(value="trunk", distinct=True)
    expected, record = (Record.empty(UNIFORM.shape, "cpu") for _ in range(2))
    with bank.active("policy", decode=True) as policy:
        responses = in_batches(policy, expected)
        assert Wanted(policy, 3, record).responses() == responses
    for name in ("logp_BT", "entropy_BT", "values_BT"):
        for i, response in enumerate(responses):
            actual, wanted = (getattr(r, name)[i, : len(response)] for r in (record, expected))
            torch.testing.assert_close(actual, wanted, atol=2e-5, rtol=0, msg=name)


def captured(step, device):
    """Traces the step into a graph of operations on the tensors that it uses now, as a CUDA graph does."""
    graph = []

    def replay():
        if not graph:
            graph.append(make_fx(lambda: step())())
        with torch.autocast("cpu", enabled=False):  # the casts are in the graph
            graph[0]()

    return replay


@pytest.mark.parametrize("kind", ["float32", "lora", "autocast"])
def test_a_captured_step_can_be_replayed(kind, actor, monkeypatch):
    """Nothing that changes from step to step is outside of tensors, and no tensor moves."""
    monkeypatch.setattr(slots, "CHECK_EVERY", 2)
    monkeypatch.setattr(slots, "SIZES", (1, 3, 8))
    if kind == "autocast":
        lm = tiny.lm(3)
        compute_in(lm, torch.bfloat16)
        actor = Actor(lm)
    bank = tiny.lora_bank(distinct=True)
    with bank.active("policy", decode=True) as policy:
        used = policy if kind == "lora" else actor
        expected = Wanted(used, 4).responses()
        made = []
        monkeypatch.setattr(slots, "Replayed", lambda step, device: made.append(1) or captured(step, device))
        assert Wanted(used, 4).responses() == expected
    assert len(made) > 2, "the rows must move to fewer slots"


def test_slots_of_finished_rows_take_the_next_prompts(actor, monkeypatch):
    monkeypatch.setattr(slots, "CHECK_EVERY", 1)
    started = []
    wanted = Wanted(actor, 4)
    start = PlainSlots.start
    monkeypatch.setattr(
        PlainSlots, "start", lambda self, free, *rest: started.append(list(free)) or start(self, free, *rest)
    )
    wanted.responses()
    assert started[0] == [0, 1, 2, 3]
    assert sum(map(len, started)) == len(PROMPTS)
    assert all(len(free) < 4 for free in started[1:])


def test_without_stop_tokens_no_step_is_wasted(actor, monkeypatch):
    steps = []
    monkeypatch.setattr(slots, "Replayed", lambda step, device: lambda: steps.append(1) or step())
    responses = Wanted(actor, len(PROMPTS), stops={tiny.VOCABULARY + 5}).responses()
    assert {len(response) for response in responses} == {LENGTH}
    assert len(steps) == LENGTH


def test_prompts_without_a_response_return_to_the_queue(actor, monkeypatch):
    monkeypatch.setattr(slots, "CHECK_EVERY", 1)
    wanted = Wanted(actor, 3)
    following = PlainSlots.next
    calls = []

    def fail(*arguments):
        calls.append(1)
        if len(calls) == 12:
            raise RuntimeError
        return following(*arguments)

    monkeypatch.setattr(PlainSlots, "next", fail)
    with pytest.raises(RuntimeError):
        wanted.responses()
    finished = sum(wanted.done)
    assert 0 < finished < len(PROMPTS)
    assert sorted(wanted.queue) == sorted(set(range(len(PROMPTS))) - _complete(wanted, actor, finished))


def _complete(wanted, actor, count):
    responses = in_batches(actor)
    have = [[i for i in row if i >= 0] for row in wanted.output.tolist()]
    complete = {i for i, response in enumerate(responses) if have[i] == response and i not in wanted.queue}
    assert len(complete) == count
    return complete


def test_running_out_of_memory_halves_the_slots(actor, monkeypatch):
    sizes = []

    class Limited(SlotDecoder):
        def run(self, queue):
            sizes.append(self._rows)
            if self._rows > 3:
                raise torch.OutOfMemoryError("CUDA out of memory")
            super().run(queue)

    expected = in_batches(actor)
    monkeypatch.setattr(decoding, "SlotDecoder", Limited)
    monkeypatch.setattr(decoding, "uses_slots", lambda *_: True)
    assert in_batches(actor) == expected
    assert sizes == [11, 5, 2]
