import random

import pytest

from data.annotators.sample import CompactRanking, sample_rankings
from data.schema import Ranking, prompt_key


def ranking(prompt, annotator="ann", ranks=(1, 2), texts=("x", "yy"), **more):
    return Ranking([{"role": "user", "content": prompt}], list(texts), list(ranks), annotator, True, **more)


def test_completions_are_put_in_one_order():
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


@pytest.mark.parametrize("noted", [{"shown": [0]}, {"shown": None}, {"seconds": -1}, {"seconds": "long"}, {}])
def test_what_was_noted_badly_is_not_known(noted):
    one = CompactRanking.of(ranking("p", metadata=noted))
    assert (one.shown, one.seconds) == (None, None)


def many(prompts, each=3):
    return [ranking(f"p{i}", f"w{j}", ranks=(1, 1 + (i + j) % 2)) for i in range(prompts) for j in range(each)]


def test_few_rankings_are_all_kept():
    rankings = many(50)
    made = sample_rankings(rankings, most=150)
    assert (made.kept, made.share, made.rankings) == (150, 1.0, 150)
    assert len(list(made)) == 150
    assert made.annotators == {"w0": 50, "w1": 50, "w2": 50}
    assert made.pairs == 150
    assert made.ties == sum(len(r.pairs()) == 0 for r in rankings)


def test_many_are_sampled_by_prompt_whatever_their_order():
    rankings = many(1000)
    made = sample_rankings(rankings, most=500)
    assert 200 <= made.kept <= 500
    assert made.rankings == 3000
    below = {r.prompt[0]["content"] for r in rankings if int(prompt_key(r.prompt), 16) / 2**64 < made.share}
    assert made.by_prompt.keys() == {prompt_key([{"role": "user", "content": text}]) for text in below}
    assert made.kept == 3 * len(below)
    assert made.share in (1 / 8, 1 / 16)
    random.Random(0).shuffle(rankings)
    other = sample_rankings(rankings, most=500)
    assert (other.share, other.by_prompt.keys()) == (made.share, made.by_prompt.keys())
    assert (other.pairs, other.ties) == (made.pairs, made.ties)


def test_a_prompt_that_is_ranked_very_often_is_kept():
    assert sample_rankings(many(1, each=50), most=10).kept == 50
