from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import tiny
import torch

from data.schema import Ranking
from pipeline.config.reward import RewardConfig
from pipeline.errors import DataError, StageError
from stages.models.adapters import new_adapter
from stages.models.heads import ScalarHead
from stages.models.precision import Deviation
from stages.reward import training
from stages.reward.groups import (
    Group,
    Order,
    TokenEncoder,
    as_pairs,
    collate,
    group_rankings,
    mean_gap,
    orders_of,
    tie_share,
)
from stages.reward.packing import pack
from stages.scoring import reward_model
from stages.scoring.reward_model import RewardModel


def ranking(prompt, completions, ranks, annotator="ann", ratings=None):
    return Ranking(tiny.user(prompt), completions, ranks, annotator, human=False, ratings=ratings)


def grouped(*rankings, **values):
    groups, _ = group_rankings(rankings, TokenEncoder(tiny.codec()), 40, **values)
    return list(groups.values())


RANKINGS = (
    ranking("what", ["aaa", "b", "cc"], [1, 2, 2], ratings=[9.0, 4.0, 4.0]),
    ranking("what", ["cc", "dddd"], [2, 1], "bob", ratings=[1.0, 7.0]),
    ranking("q", ["e", "ffff", "gg", "h", "iii"], [1, 2, 3, 4, 5], "bob", ratings=[5.0, 4.0, 3.0, 2.0, 1.0]),
)


def test_weights_have_a_mean_of_one_over_rankings():
    groups = grouped(*RANKINGS, weights={"ann": 0.2, "bob": 0.8, "absent": 5.0})
    assert [order.weight for group in groups for order in group.orders] == pytest.approx([1 / 3, 4 / 3, 4 / 3])


def weighed(*weights):
    return [replace(given, metadata={"weight": w}) for given, w in zip(RANKINGS, weights, strict=True)]


def test_weights_of_rankings_have_a_mean_of_one_and_multiply_those_of_annotators():
    groups = grouped(*weighed(0.5, 1.0, 3.0))
    assert [order.weight for group in groups for order in group.orders] == pytest.approx([1 / 3, 2 / 3, 2])
    groups = grouped(*weighed(0.5, 1.0, 3.0), weights={"ann": 2.0, "bob": 1.0})
    assert [order.weight for group in groups for order in group.orders] == pytest.approx([3 / 5, 3 / 5, 9 / 5])


@pytest.mark.parametrize("weight", [1, 1.0, 4.0])
def test_equal_weights_are_no_weights_bit_for_bit(weight):
    assert grouped(*weighed(weight, weight, weight)) == grouped(*RANKINGS)


def test_the_loss_is_the_weighted_mean_of_the_rankings_losses():
    objective = training.objective_of(RewardConfig(), [])
    batch = collate(grouped(*weighed(0.5, 1.0, 3.0)), 0)
    scores = torch.linspace(-1, 2, len(batch["rows"]["ids_BL"]))
    loss, _ = training.ranking_loss(scores, batch["orders"], objective)
    each = [
        float(training.ranking_loss(scores, [replace(order, weight=1.0)], objective)[0])
        for order in batch["orders"]
    ]
    assert float(loss) == pytest.approx(np.average(each, weights=[0.5, 1.0, 3.0]), rel=1e-5)


def test_an_annotator_without_a_weight_is_an_error():
    with pytest.raises(StageError, match="no reliability of annotator 'bob'"):
        grouped(*RANKINGS, weights={"ann": 1.0})
    with pytest.raises(StageError, match="weight above 0"):
        grouped(*RANKINGS, weights={"ann": 0.0, "bob": 0.0})


def test_pairs_are_groups_of_their_own():
    what, _ = grouped(*RANKINGS)
    a, b, c, d = what.rows
    found = [(pair.rows, pair.orders) for pair in as_pairs([what])]
    assert found == [
        ([a, b], [Order([0, 1], [1, 2], [9.0, 4.0])]),
        ([a, c], [Order([0, 1], [1, 2], [9.0, 4.0])]),
        ([d, c], [Order([0, 1], [1, 2], [7.0, 1.0])]),
    ]


def test_shares_and_gaps():
    groups = grouped(*RANKINGS)
    assert tie_share(groups) == pytest.approx(1 / 14)
    gaps = [5, 5, 6, *(j - i for i in range(5) for j in range(i + 1, 5))]
    assert mean_gap(groups, "ratings") == pytest.approx(np.mean(gaps))
    assert mean_gap(groups, "ranks") == pytest.approx(np.mean([1, 1, 1, *gaps[3:]]))


# --- Objectives, as the recipe names them ---


def loss(scores, order, groups=(), **values):
    return training.objective_of(RewardConfig(**values), groups)(torch.tensor(scores), order).item()


def softplus(x):
    return np.log1p(np.exp(x))


def test_margins_are_in_log_odds_for_the_mean_gap():
    """Gaps of 2 and 6, mean 4: with reward.margin 0.5 the margins are 0.25 and 0.75."""
    orders = [Order([0, 1], [1, 2], [5.0, 3.0]), Order([0, 1], [1, 2], [9.0, 3.0])]
    groups = [Group(1, orders=orders)]
    for order, margin in zip(orders, (0.25, 0.75), strict=True):
        found = loss([1.0, 0.4], order, groups, margin=0.5, merits="ratings")
        assert found == pytest.approx(softplus(-(0.6 - margin)), rel=1e-5)
    assert loss([1.0, 0.4], orders[0], groups, margin=0.5) == pytest.approx(softplus(-0.1), rel=1e-5)  # by ranks
    assert loss([1.0, 0.4], orders[0], groups) == pytest.approx(softplus(-0.6), rel=1e-5)


def test_ratings_are_needed_where_they_are_asked_for():
    order = Order([0, 1], [1, 2])
    with pytest.raises(DataError, match="has no ratings"):
        loss([1.0, 0.4], order, objective="regression", merits="ratings")


def test_davidson_takes_its_nu_from_the_share_of_ties():
    orders = [Order([0, 1], [1, 1]), Order([0, 1], [1, 2]), Order([0, 1], [2, 1]), Order([0, 1], [1, 2])]
    found = loss([0.0, 0.0], orders[0], [Group(1, orders=orders)], objective="davidson")
    assert found == pytest.approx(-np.log(0.25), rel=1e-5)


@pytest.mark.parametrize(("merits", "targets"), [("ranks", [np.log(3), -np.log(3)]), ("ratings", [1.0, -1.0])])
def test_regression_targets(merits, targets):
    found = loss([0.3, 0.1], Order([0, 1], [1, 2], [8.0, 3.0]), objective="regression", merits=merits)
    assert found == pytest.approx(np.mean([(0.1 - targets[0]) ** 2, (-0.1 - targets[1]) ** 2]), rel=1e-5)


# --- Several completions in one row ---


@pytest.fixture(params=["llama", "gpt2"])
def model(request):
    """A Llama with adapters, and a GPT-2, with learned positions, whose every weight learns."""
    lm = new_adapter(tiny.lm(0), tiny.LORA, "reward") if request.param == "llama" else tiny.gpt2(0)
    torch.manual_seed(1)
    made = RewardModel(lm, ScalarHead(tiny.HIDDEN))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lora_" in name:
                parameter.copy_(0.3 * torch.randn_like(parameter))
    return made.eval()


@pytest.mark.parametrize("budget", [1, 12, 18, 1000])
def test_packed_rows_have_the_same_scores_and_gradients(model, budget):
    groups = grouped(*RANKINGS)
    learns = [p for n, p in model.named_parameters() if p.requires_grad and "lm_head" not in n]
    weights = torch.randn(9, generator=torch.Generator().manual_seed(0))
    plain = model(**collate(groups, 0)["rows"])
    expected = torch.autograd.grad((weights * plain).sum(), learns)
    packed = pack(groups, 0, budget)
    scores = model(**packed)
    np.testing.assert_allclose(scores.detach(), plain.detach(), atol=1e-5)
    for ours, theirs in zip(torch.autograd.grad((weights * scores).sum(), learns), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * float(theirs.abs().max() + 1))


def can_pack(model):
    said = []
    packs = training.can_pack(model, grouped(*RANKINGS), 0, SimpleNamespace(device="cpu", say=said.append))
    return packs, said


@torch.no_grad()
def test_rounding_in_16_bits_does_not_rule_packing_out(model, monkeypatch):
    groups = grouped(*RANKINGS)
    model.lm.to(torch.bfloat16)
    exact = RewardModel._packed

    def rounded(self, ids_BL, **packed):
        """The same states, as another order of sums rounds them: not every CPU has kernels that do."""
        states = exact(self, ids_BL, **packed)
        noise = torch.rand(states.shape, generator=torch.Generator().manual_seed(0)) - 0.5
        return (states.float() * (1 + 2**-7 * noise)).to(states.dtype)

    monkeypatch.setattr(RewardModel, "_packed", rounded)
    plain, packed = collate(groups, 0)["rows"], pack(groups, 0, 1000)
    states = model.last_states(**plain).float()
    # An untrained head may read what hardly differs between completions.
    direction = torch.linalg.svd(states - states.mean(0))[2][-1:]
    model.head.weight.copy_(direction)
    model.head.bias.copy_(-(direction @ states.mean(0)))
    difference = Deviation.between(model(**packed), model(**plain))
    assert not difference.is_rounding(False)
    assert can_pack(model) == (True, [])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_that_sees_other_completions_rules_packing_out(model, dtype, monkeypatch):
    model.lm.to(dtype)
    assert can_pack(model) == (True, [])

    def causal(segments_BL, dtype):
        return reward_model_mask(torch.zeros_like(segments_BL), dtype)

    reward_model_mask = reward_model.packed_attention_mask
    monkeypatch.setattr(reward_model, "packed_attention_mask", causal)
    packs, said = can_pack(model)
    assert not packs
    assert "cannot be packed" in said[0]


def test_a_packed_row_holds_what_fits():
    groups = grouped(*RANKINGS)
    prompts = [group.prompt_length for group in groups]
    assert len(pack(groups, 0, 1)["ids_BL"]) == 9, "never less than one completion"
    assert len(pack(groups, 0, 1000)["ids_BL"]) == 2
    longest = max(len(row) for group in groups for row in group.rows)
    assert pack(groups, 0, longest)["ids_BL"].shape[1] <= longest
    whole = pack(groups, 0, 1000)
    real = (whole["segments_BL"] >= 0).sum().item()
    assert real == sum(
        n + sum(len(row) - n for row in group.rows) for n, group in zip(prompts, groups, strict=True)
    )


def test_orders_point_into_all_completions_of_the_batch():
    batch = orders_of(grouped(*RANKINGS))
    assert [order.rows for order in batch["orders"]] == [[0, 1, 2], [2, 3], [4, 5, 6, 7, 8]]
    assert batch["spans"] == [(0, 4), (4, 9)]


def test_a_score_that_is_not_finite_stops_the_held_out_curve(model, training_context):
    ctx, _ = training_context()
    with torch.no_grad():
        model.head.weight.fill_(float("nan"))
    curve = training.HeldOutCurve(
        ctx, RewardConfig(), grouped(*RANKINGS), lambda batch: collate(batch, 0), "reward"
    )
    with pytest.raises(StageError, match="NaN or infinite"):
        curve._accuracy(model)
