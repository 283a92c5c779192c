"""Rankings without their texts, and a sample of them that fits into memory however many rankings there are."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from sys import intern

import numpy as np
from scipy.stats import rankdata

from data.schema import Ranking, prompt_key

MOST = 20_000
"""Rankings in a sample."""


@dataclass(frozen=True, slots=True)
class CompactRanking:
    """A ranking without its texts: what the measures need. Its completions are sorted by their texts.

    Attributes:
        prompt: the key of the prompt, 16 hex digits.
        item: identifies the prompt with the set of completions, 8 bytes.
        annotator: who ranked.
        ranks: K mid-ranks, 1 the best: ties share the mean of their places, [1, 2.5, 2.5]. Equal texts are a tie,
            whichever of them was ranked higher.
        lengths: characters of each completion.
        models: which system wrote each completion, if known.
        shown: the place where each completion was displayed, if known.
        seconds: how long it took, if known.
    """

    prompt: str
    item: bytes
    annotator: str
    ranks: tuple[float, ...]
    lengths: tuple[int, ...]
    models: tuple[str, ...] | None = None
    shown: tuple[int, ...] | None = None
    seconds: float | None = None

    @classmethod
    def of(cls, ranking: Ranking, key: str | None = None) -> CompactRanking:
        texts = ranking.completions
        order = sorted(range(len(texts)), key=lambda i: texts[i])
        key = prompt_key(ranking.prompt) if key is None else key
        digest = sha256(key.encode())
        for i in order:
            digest.update(b"\0" + texts[i].encode(errors="surrogatepass"))
        ranks = rankdata(_equal_texts_tied(ranking))
        models, shown = ranking.models, ranking.metadata.get("shown")
        seconds = ranking.metadata.get("seconds")
        return cls(
            prompt=key,
            item=digest.digest()[:8],
            annotator=intern(ranking.annotator),
            ranks=tuple(float(ranks[i]) for i in order),
            lengths=tuple(len(texts[i]) for i in order),
            models=tuple(intern(models[i]) for i in order) if models else None,
            shown=tuple(shown[i] for i in order) if isinstance(shown, list) and len(shown) == len(texts) else None,
            seconds=float(seconds) if isinstance(seconds, int | float) and seconds >= 0 else None,
        )

    def signs(self) -> np.ndarray:
        """Over all pairs i < j of completions (K(K-1)/2,): 1 where i is worse, -1 where it is better, 0 if tied."""
        r = np.asarray(self.ranks)
        first, second = np.triu_indices(len(r), k=1)
        return np.asarray(np.sign(r[first] - r[second]))


def _equal_texts_tied(ranking: Ranking) -> Sequence[float]:
    """The ranks, equal completions at the mean of theirs."""
    if len(set(ranking.completions)) == len(ranking.completions):
        return ranking.ranks
    by_text = defaultdict(list)
    for text, rank in zip(ranking.completions, ranking.ranks, strict=True):
        by_text[text].append(rank)
    return [sum(by_text[text]) / len(by_text[text]) for text in ranking.completions]


@dataclass
class RankingSample:
    """Counts over all rankings, and the rankings of a sample of the prompts (all prompts up to `most` rankings).

    A prompt is in the sample when its key, read as a number in [0, 1), is below `share`. The share starts at 1 and
    is halved whenever more than `most` rankings are kept. The sample therefore depends neither on the order of the
    rankings nor on a random generator, and holds all rankings of a prompt or none.

    Attributes:
        rankings, pairs, ties: of all rankings; pairs of completions, and how many of them are tied.
        annotators: rankings by annotator, of all.
        human: whether people made all of them.
    """

    most: int = MOST
    share: float = 1.0
    rankings: int = 0
    pairs: int = 0
    ties: int = 0
    human: bool = True
    annotators: Counter[str] = field(default_factory=Counter)
    kept: int = 0
    by_prompt: dict[str, list[CompactRanking]] = field(default_factory=lambda: defaultdict(list))

    def add(self, ranking: Ranking) -> None:
        k = len(ranking.ranks)
        self.rankings += 1
        self.pairs += k * (k - 1) // 2
        self.ties += sum(n * (n - 1) // 2 for n in Counter(ranking.ranks).values())
        self.human = self.human and ranking.human
        self.annotators[ranking.annotator] += 1
        key = prompt_key(ranking.prompt)
        if _uniform(key) >= self.share:
            return
        self.by_prompt[key].append(CompactRanking.of(ranking, key))
        self.kept += 1
        while self.kept > self.most:
            left_out = [prompt for prompt in self.by_prompt if _uniform(prompt) >= self.share / 2]
            if len(left_out) == len(self.by_prompt):  # a few prompts that were ranked very often
                return
            self.share /= 2
            for prompt in left_out:
                self.kept -= len(self.by_prompt.pop(prompt))

    def __iter__(self) -> Iterator[CompactRanking]:
        for rankings in self.by_prompt.values():
            yield from rankings


def sample_rankings(rankings: Iterable[Ranking], most: int = MOST) -> RankingSample:
    sample = RankingSample(most)
    for ranking in rankings:
        sample.add(ranking)
    return sample


def _uniform(key: str) -> float:
    return int(key, 16) / 2.0**64
