"""Scores that are counted: patterns and lengths."""

import pytest
import tiny
from trl.rewards import get_soft_overlong_punishment

from stages.sampling.prompts import EncodedPrompt
from stages.scoring.measures import LengthScorer, OverlongScorer, PatternScorer

CODEC = tiny.codec()
PROMPT = EncodedPrompt(tiny.user("q"), [5], "train")


def test_a_pattern_scores_1_where_it_matches_in_the_text():
    scorer = PatternScorer(r"b\d$", CODEC, "digit")
    texts = ["ab1", "b1a", "abc", "1b2"]
    done = []
    scorer.on_batch = done.append
    scores = scorer([PROMPT] * 4, [CODEC.completion(text) for text in texts])
    assert scores.tolist() == [1, 0, 0, 1]
    assert done == [4]


def test_length_falls_linearly_on_both_sides_of_the_target():
    scorer = LengthScorer(10, 4, "length")
    lengths = (10, 6, 14, 8, 1)
    assert scorer([PROMPT] * 5, [[7] * n for n in lengths]).tolist() == [0, -1, -1, -0.5, -2.25]


@pytest.mark.parametrize(("limit", "cache"), [(20, 5), (16, 15), (9, 1)])
def test_the_overlong_penalty_is_trls(limit, cache):
    responses = [[7] * n for n in range(1, 30)]
    expected = get_soft_overlong_punishment(limit, cache)(completion_ids=responses)
    scorer = OverlongScorer(limit, cache, "overlong")
    assert scorer([PROMPT] * 29, responses).tolist() == pytest.approx(expected, abs=1e-6)
    assert min(expected) == -1
    assert 0 in expected
