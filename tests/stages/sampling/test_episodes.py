import numpy as np
import pytest
import tiny
import torch

from pipeline.config.ppo import PPOConfig
from stages.models import actor as actors
from stages.ppo.experience import score_tokens, value_tokens
from stages.sampling import episodes as trajectory
from stages.sampling.decoding import Record, generate
from stages.sampling.episodes import Episodes, response_mask

STOPS = {tiny.EOS, 9}


@pytest.mark.parametrize(
    ("response", "length", "expected"),
    [
        pytest.param([5, 6, 1, 7, 8], 5, [1, 1, 1, 0, 0], id="up to and including the first stop"),
        pytest.param([5, 6, 1, 9, 1], 5, [1, 1, 1, 0, 0], id="later stops do not count"),
        pytest.param([9, 6, 1, 7, 8], 5, [1, 0, 0, 0, 0], id="any id of the set, at once"),
        pytest.param([5, 6, 7, 8, 5], 5, [1, 1, 1, 1, 1], id="no stop: to the end"),
        pytest.param([5, 6, 0, 0, 0], 2, [1, 1, 0, 0, 0], id="never past the length"),
        pytest.param([5, 6, 9, 9, 9], 2, [1, 1, 0, 0, 0], id="padding may look like a stop"),
        pytest.param([0, 0, 1, 0, 0], 3, [1, 1, 1, 0, 0], id="pad ids that were sampled count"),
    ],
)
def test_response_mask(response, length, expected):
    mask = response_mask(torch.tensor([response]), torch.tensor([length]), STOPS)
    assert mask.long().tolist() == [expected]


PROMPTS = tiny.rows(6, 1, 7, seed=1)
RESPONSES = [
    [20, 21, 22, tiny.EOS],
    [20],
    [21, 9],
    [20, 21, 22, 23, 24, 25],
    [tiny.EOS],
    [22, 20, 9, 30, 31],  # goes on past its stop token
]
KEPT = [4, 1, 2, 6, 1, 3]


@pytest.fixture
def episodes():
    return Episodes.build(PROMPTS, RESPONSES, STOPS, tiny.PAD)


def test_build(episodes):
    assert len(episodes) == 6
    assert episodes.mask_BT.sum(1).tolist() == KEPT
    assert episodes.prompt_lengths_B.tolist() == [len(p) for p in PROMPTS]
    for row, (prompt, response, kept) in enumerate(zip(PROMPTS, RESPONSES, KEPT, strict=True)):
        sequence = prompt + response[:kept]
        assert episodes.lengths_B[row] == len(sequence)
        padding = [tiny.PAD] * (episodes.ids_BL.shape[1] - len(sequence))
        assert episodes.ids_BL[row].tolist() == sequence + padding


def test_ended(episodes):
    assert episodes.ended(STOPS).tolist() == [True, False, True, False, True, True]
    assert episodes.ended({9}).tolist() == [False, False, True, False, False, True]


def test_hidden_states_and_targets_against_a_naive_loop(episodes):
    """A token at position i of a sequence is predicted by what stands at i - 1."""
    length = episodes.ids_BL.shape[1]
    hidden = torch.arange(6.0 * length).view(6, length, 1)
    states, targets, places = [], [], []
    for row in range(6):
        for t in range(KEPT[row]):
            position = len(PROMPTS[row]) + t
            states.append(hidden[row, position - 1, 0].item())
            targets.append(episodes.ids_BL[row, position].item())
            places.append((row, t))
    assert episodes.predicting_hidden(hidden)[:, 0].tolist() == states
    assert episodes.targets().tolist() == targets
    scattered = episodes.scatter(torch.arange(1.0, len(states) + 1))
    expected = torch.zeros(6, 6)
    for i, (row, t) in enumerate(places):
        expected[row, t] = i + 1
    assert torch.equal(scattered, expected)


def test_select_keeps_each_episode(episodes):
    rows = torch.tensor([4, 1, 2])
    some = episodes.select(rows)
    assert some.ids_BL.shape[1] == int(episodes.lengths_B[rows].max())
    assert some.mask_BT.shape[1] == episodes.mask_BT.shape[1]
    for new, old in enumerate(rows.tolist()):
        length = int(episodes.lengths_B[old])
        assert some.ids_BL[new, :length].tolist() == episodes.ids_BL[old, :length].tolist()
        assert torch.equal(some.mask_BT[new], episodes.mask_BT[old])
    assert some.ended(STOPS).tolist() == episodes.ended(STOPS)[rows].tolist()


@pytest.mark.parametrize("size", [None, 1, 2, 4, 5, 100])
@pytest.mark.parametrize("rows", [[0, 1, 2, 3, 4, 5], [5, 2, 3], [1]])
def test_micro_batches_cover_every_row_once(episodes, size, rows):
    seen = []
    for part, some in episodes.micro_batches(torch.tensor(rows), size):
        assert 1 <= len(part) <= (size or 6)
        assert torch.equal(some.lengths_B, episodes.lengths_B[part])
        seen += part.tolist()
    assert sorted(seen) == sorted(rows)
    lengths = episodes.lengths_B[seen].tolist()
    assert lengths == sorted(lengths), "those of like length together"


def test_a_share_of_no_rows_counts_for_nothing(episodes):
    """A process may have none of a minibatch's rows and must still take part in its step."""
    ((part, some),) = episodes.micro_batches(torch.arange(0), None)
    assert len(part) == len(some) == 1
    assert not some.mask_BT.any()
    bank = tiny.lora_bank()
    with bank.active("policy", train=True) as actor:
        hidden = actor.hidden(some.ids_BL)
        logp, entropy = trajectory.logprobs(actor, some, hidden, temperature=1.0, chunk_size=4)
        assert logp.shape == entropy.shape == some.mask_BT.shape
        logp.sum().backward()
    assert not any(p.grad.any() for p in bank.parameters() if p.grad is not None)


CONFIG = PPOConfig(temperature=0.7, logits_chunk_size=4)


@pytest.mark.parametrize("micro_batch_size", [None, 1, 2, 4])
def test_log_probs_and_values_one_token_at_a_time(episodes, micro_batch_size):
    bank = tiny.lora_bank(distinct=True)
    config = PPOConfig(temperature=0.7, logits_chunk_size=4, micro_batch_size=micro_batch_size)
    scored = score_tokens(bank, "policy", episodes, config, entropy=True)
    values = value_tokens(bank, "value", episodes, config)
    assert not scored.values_BT.any()
    expected = [torch.zeros(6, 6) for _ in range(3)]
    for row in range(6):
        for t in range(KEPT[row]):
            before = torch.tensor([PROMPTS[row] + RESPONSES[row][:t]])
            with bank.active("policy") as actor:
                logits = actor.lm(before).logits[0, -1].double().numpy() / 0.7
            p = np.exp(logits) / np.exp(logits).sum()
            expected[0][row, t] = float(np.log(p[RESPONSES[row][t]]))
            expected[1][row, t] = float(-(p * np.log(p)).sum())
            with bank.active("value") as actor:
                expected[2][row, t] = actor.scalar(actor.hidden(before))[0, -1]
    for name, found, wanted in zip(
        ("log-probs", "entropies", "values"), (scored.logp_BT, scored.entropy_BT, values), expected, strict=True
    ):
        np.testing.assert_allclose(found, wanted, atol=1e-4, err_msg=name)


def test_values_on_the_policys_trunk(episodes):
    bank = tiny.lora_bank(value="trunk")
    values = score_tokens(bank, "policy", episodes, CONFIG, with_values=True).values_BT
    for row in range(6):
        with bank.active("policy") as actor:
            alone = actor.scalar(actor.hidden(torch.tensor([PROMPTS[row] + RESPONSES[row][: KEPT[row]]])))[0]
        start = len(PROMPTS[row]) - 1
        expected = alone[start : start + KEPT[row]]
        np.testing.assert_allclose(values[row, : KEPT[row]], expected, atol=1e-5)
        assert not values[row, KEPT[row] :].any()


@pytest.mark.parametrize("plain", [True, False], ids=["plain", "library"])
@pytest.mark.parametrize("batch_size", [None, 4])
@pytest.mark.parametrize("kind", tiny.BANKS)
def test_the_rollouts_record_is_what_a_pass_over_the_sequences_says(kind, batch_size, plain, monkeypatch):
    """From cached, left-padded decoding with merged adapters that drops finished rows, and from one right-padded
    pass: log-probs, entropies and values."""
    if not plain:
        monkeypatch.setattr(actors, "plain_decoder", lambda model, up_to: None)
    bank = tiny.BANKS[kind](value="trunk")
    stops = {*STOPS, *range(7, 40, 4)}
    uniform = torch.rand((6, 10), generator=torch.Generator().manual_seed(4))
    record = Record.empty((6, 10), "cpu")
    values = {"temperature": 0.7, "stop_ids": stops, "pad_id": tiny.PAD, "batch_size": batch_size}
    with bank.active("policy", decode=True) as actor:
        responses = generate(actor, PROMPTS, uniform, record=record, **values)
    episodes = Episodes.build(PROMPTS, responses, stops, tiny.PAD)
    assert len({len(r) for r in responses}) > 2, "the case must hold responses that stop"
    scored = score_tokens(bank, "policy", episodes, CONFIG, entropy=True, with_values=True)
    found = scored.logp_BT, scored.entropy_BT, scored.values_BT
    mask = episodes.mask_BT
    for ours, noted in zip(found, (record.logp_BT, record.entropy_BT, record.values_BT), strict=True):
        assert ours[mask].abs().min() > 0
        np.testing.assert_allclose(noted[:, : mask.shape[1]][mask], ours[mask], atol=2e-5)
