import random

import pytest

from data.annotators.sample import CompactRanking, sample_rankings
from data.schema import Ranking, prompt_key


def ranking(prompt, annotator="ann", ranks=(1, 2), texts=("x", "yy"), **more):
    return Ranking([{"role": "user", "content": prompt}], list(texts), list(ranks), annotator, True, **more)


def test_completions_are_sorted():
    a = ranking(
        "p", ranks=[1, 2, 2], texts=["c", "aa", "bbb"], models=["m", "n", "o"], metadata={"shown": [2, 0, 1]}
    )
    b = ranking("p", ranks=[3, 1, 2], texts=["bbb", "c", "aa"])
    first, second = CompactRanking.of(a), CompactRanking.of(b)
    assert first.item == second.item
    assert first.ranks == (2.5, 2.5, 1.0)
    assert (first.lengths, first.models, first.shown) == ((2, 3, 1), ("n", "o", "m"), (0, 1, 2))
    assert second.ranks == (2.0, 3.0, 1.0)
    assert CompactRanking.of(ranking("q", texts=["c", "aa", "bbb"], ranks=[1, 2, 3])).item != first.item
    assert CompactRanking.of(ranking("p", texts=["c", "aa"])).item != first.item


@pytest.mark.parametrize("metadata", [{"shown": [0]}, {"shown": None}, {"seconds": -1}, {"seconds": "long"}, {}])
def test_invalid_metadata_is_ignored(metadata):
    compact = CompactRanking.of(ranking("p", metadata=metadata))
    assert (compact.shown, compact.seconds) == (None, None)


def many(prompts, each=3):
    return [ranking(f"p{i}", f"w{j}", ranks=(1, 1 + (i + j) % 2)) for i in range(prompts) for j in range(each)]


def test_few_rankings_are_not_sampled():
    rankings = many(50)
    sample = sample_rankings(rankings, most=150)
    assert (sample.kept, sample.share, sample.rankings) == (150, 1.0, 150)
    assert len(list(sample)) == 150
    assert sample.annotators == {"w0": 50, "w1": 50, "w2": 50}
    assert sample.pairs == 150
    assert sample.ties == sum(len(r.pairs()) == 0 for r in rankings)


def test_many_rankings_are_sampled_by_prompt_in_any_order():
    rankings = many(1000)
    sample = sample_rankings(rankings, most=500)
    assert 200 <= sample.kept <= 500
    assert sample.rankings == 3000
    below = {r.prompt[0]["content"] for r in rankings if int(prompt_key(r.prompt), 16) / 2**64 < sample.share}
    assert sample.by_prompt.keys() == {prompt_key([{"role": "user", "content": text}]) for text in below}
    assert sample.kept == 3 * len(below)
    assert sample.share in (1 / 8, 1 / 16)
    random.Random(0).shuffle(rankings)
    other = sample_rankings(rankings, most=500)
    assert (other.share, other.by_prompt.keys()) == (sample.share, sample.by_prompt.keys())
    assert (other.pairs, other.ties) == (sample.pairs, sample.ties)


def test_a_single_prompt_is_kept_even_if_it_exceeds_the_limit():
    assert sample_rankings(many(1, each=50), most=10).kept == 50
