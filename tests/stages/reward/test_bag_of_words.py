import random
import time
from itertools import pairwise

import numpy as np
import pytest
from scipy import optimize

from stages.reward import bag_of_words
from stages.reward.bag_of_words import fit, strict_pairs
from stages.reward.groups import Group, Order

GOOD, BAD = ["brief", "kind", "true"], ["rude", "vague", "wrong"]


def answers(rng, words, count):
    filler = [f"word{i}" for i in range(40)]
    return " ".join(rng.choices(filler, k=8) + rng.choices(words, k=count))


def learnable(count, seed=0):
    rng = random.Random(seed)
    return [(answers(rng, GOOD, 2), answers(rng, BAD, 2)) for _ in range(count)]


def test_it_learns_which_words_win():
    score = fit(learnable(200))
    better, worse = zip(*learnable(100, seed=1), strict=True)
    assert np.mean(score(better) > score(worse)) > 0.95
    assert score(["brief brief"]) > score(["rude rude"])
    np.testing.assert_array_equal(score([]), [])


def test_noise_is_not_learnt():
    rng = random.Random(2)
    pairs = [(answers(rng, GOOD + BAD, 2), answers(rng, GOOD + BAD, 2)) for _ in range(2000)]
    score = fit(pairs[:1000])
    better, worse = zip(*pairs[1000:], strict=True)
    assert np.mean(score(better) > score(worse)) == pytest.approx(0.5, abs=4 * 0.5 / np.sqrt(1000))


def test_the_weights_are_the_optimum_of_the_penalised_likelihood():
    """Against explicit tf-idf vectors and scipy: sum of -log sigmoid(w d) over pairs, plus 1/2 |w|^2."""
    pairs = learnable(60)
    texts = list(dict.fromkeys(text for pair in pairs for text in pair))
    terms = [[*words, *map(" ".join, pairwise(words))] for words in map(str.split, texts)]
    documents = {term: sum(term in found for found in terms) for term in {t for found in terms for t in found}}
    known = sorted(documents)
    idf = {term: np.log((1 + len(texts)) / (1 + documents[term])) + 1 for term in known}
    rows = np.array(
        [[(1 + np.log(f.count(t))) * idf[t] if t in f else 0.0 for t in known] for f in terms], dtype=float
    )
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    place = {text: i for i, text in enumerate(texts)}
    d = np.array([rows[place[better]] - rows[place[worse]] for better, worse in pairs])
    solved = optimize.minimize(
        lambda w: np.logaddexp(0, -d @ w).sum() + 0.5 * w @ w,
        np.zeros(len(known)),
        jac=lambda w: w - d.T @ (1 / (1 + np.exp(d @ w))),
        tol=1e-8,
    )
    np.testing.assert_allclose(fit(pairs)(texts), rows @ solved.x, atol=5e-4)


@pytest.mark.parametrize(
    "pairs",
    [[], [("", "  ")], [("one", "two")], [("same", "same")], [("a b", "b a")]],
    ids=["none", "empty", "one pair", "equal", "order only"],
)
def test_little_to_learn_from_is_no_error(pairs):
    assert np.isfinite(fit(pairs)(["one", "", "unseen words"])).all()


def test_what_it_never_saw_scores_nothing():
    score = fit(learnable(50))
    assert score(["entirely unseen"]) == score([""]) == 0


def test_characters_are_words_where_no_spaces_are_written():
    better, worse = "\u8fd9\u662f\u597d\u7684", "\u8fd9\u662f\u574f\u7684"
    score = fit([(better, worse), (better + "\u3002", worse + "\u3002")])
    assert score(["\u597d"]) > 0 > score(["\u574f"])


def groups(*rankings):
    made = {}
    for i, (texts, ranks) in enumerate(rankings):
        order = Order(list(range(len(texts))), ranks)
        made[f"{i:016x}"] = Group(1, {text: row for row, text in enumerate(texts)}, [[0]] * len(texts), [order])
    return made


def test_pairs_are_those_of_the_training_rankings():
    made = groups((["a", "b", "c"], [2, 1, 2]), (["d", "e"], [1, 2]))
    assert list(strict_pairs(made)) == [("b", "a"), ("b", "c"), ("d", "e")]
    assert list(strict_pairs(dict(reversed(made.items())))) == list(strict_pairs(made)), "whatever their order"


@pytest.mark.parametrize(("name", "most"), [("PAIRS", 5), ("CHARACTERS", 2 * 5)])
def test_pairs_are_capped(monkeypatch, name, most):
    monkeypatch.setattr(bag_of_words, name, most)
    made = groups(*((["a", "b"], [1, 2]) for _ in range(9)))
    assert len(list(strict_pairs(made))) == 5


def test_it_is_the_same_every_time():
    texts = ["brief", "word1 word2", "rude vague"]
    assert fit(learnable(80))(texts).tolist() == fit(learnable(80))(texts).tolist()


@pytest.mark.slow
def test_ten_thousand_pairs_take_seconds():
    rng = random.Random(0)
    words = [f"w{i}" for i in range(20_000)]
    pairs = [tuple(" ".join(rng.choices(words, k=60)) for _ in range(2)) for _ in range(10_000)]
    started = time.process_time()
    fit(pairs)
    assert time.process_time() - started < 30
