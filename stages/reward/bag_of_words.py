"""A baseline for reward models: logistic regression on the words of the answers.

It does not see the prompt. A reward model that is no better on held-out pairs has learnt nothing beyond word
weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np

from data.words import words_and_punctuation
from stages.reward.groups import Group

WordScorer = Callable[[Sequence[str]], np.ndarray]
"""Texts -> scores (N,)."""

PAIRS = 20_000
"""Upper limit on training pairs."""
CHARACTERS = 20_000_000
"""Upper limit on the characters of training pairs."""
FEATURES = 2**18
"""Hash buckets for words and word bigrams."""


def strict_pairs(groups: Mapping[str, Group]) -> Iterator[tuple[str, str]]:
    """(better, worse) answers of the rankings, up to `PAIRS` and `CHARACTERS`, in the order of prompt keys. Keys
    are hashes, so a truncated sequence is a random sample."""
    pairs = characters = 0
    for key in sorted(groups):
        texts = list(groups[key].completions)
        for order in groups[key].orders:
            for i, better in enumerate(order.rows):
                for j, worse in enumerate(order.rows):
                    if order.ranks[i] < order.ranks[j]:
                        pairs += 1
                        characters += len(texts[better]) + len(texts[worse])
                        if pairs > PAIRS or characters > CHARACTERS:
                            return
                        yield texts[better], texts[worse]


def distinct(pairs: Sequence[tuple[str, str]]) -> dict[str, int]:
    """Maps the distinct texts of pairs to indices."""
    return {text: place for place, text in enumerate(dict.fromkeys(text for pair in pairs for text in pair))}


def fit(pairs: Sequence[tuple[str, str]], advance: Callable[[], None] = lambda: None) -> WordScorer:
    """Fits a Bradley-Terry model on words: maximises the likelihood sigmoid(score of better - score of worse) of
    `pairs` of (better, worse) texts.

    Features are the words (`data.words`) and punctuation marks of the training texts, and bigrams of both, hashed,
    weighted by (1 + log tf) idf and scaled to an L2 norm of 1. The loss is the sum over pairs plus 1/2 |w|^2,
    without an intercept; the fit is deterministic.
    Without features all scores are 0. `advance` is called for each of the `distinct` texts.
    """
    from scipy import sparse
    from sklearn.feature_extraction.text import HashingVectorizer, TfidfTransformer
    from sklearn.linear_model import LogisticRegression

    hashing = HashingVectorizer(analyzer=_features, n_features=FEATURES, alternate_sign=False, norm=None)
    texts = distinct(pairs)

    def passing() -> Iterator[str]:
        for text in texts:
            yield text
            advance()

    counts = hashing.transform(passing() if texts else [""])
    features = np.unique(counts.indices)
    if not len(features):
        return lambda texts: np.zeros(len(texts))
    weighting = TfidfTransformer(sublinear_tf=True)
    rows = weighting.fit_transform(counts[:, features])
    better, worse = (rows[[texts[pair[side]] for pair in pairs]] for side in (0, 1))
    # Each pair in both orders at half the weight: the same optimum, and always two classes for scikit-learn.
    both = np.repeat([1, -1], len(pairs))
    model = LogisticRegression(C=0.5, fit_intercept=False, max_iter=1000, tol=1e-6)
    model.fit(sparse.vstack([better - worse, worse - better], format="csr"), both)
    weights = model.coef_[0]

    def score(texts: Sequence[str]) -> np.ndarray:
        if not len(texts):
            return np.zeros(0)
        return np.asarray(weighting.transform(hashing.transform(texts)[:, features]) @ weights)

    return score


def _features(text: str) -> Iterator[str]:
    tokens = words_and_punctuation(text.lower())
    yield from tokens
    yield from (f"{a} {b}" for a, b in pairwise(tokens))
