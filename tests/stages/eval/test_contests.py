from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import tiny

from pipeline.config.evaluate import EvalConfig, LLMJudgeConfig
from pipeline.engine.stage import RunContext
from stages.eval.answers import Answers
from stages.eval.contests import contests, extremes
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.judge import Pair, PairJudge, Verdicts

PROMPTS = [EncodedPrompt(tiny.user(text), [1], "eval") for text in "abcd"]


def answers(*texts: str, weights: Sequence[float] = (1.0,)) -> Answers:
    rows = [list(text.split("|")) for text in texts]
    return Answers([[[1]] * len(row) for row in rows], rows, np.tile(np.array(weights), (len(rows), 1)))


class Longer(PairJudge):
    """In the place of an LLM judge: the longer of two answers wins."""

    name = "longer"

    def __init__(self) -> None:
        self.pairs: list[list[Pair]] = []

    def compare(self, pairs: Sequence[Pair], progress: Any) -> Verdicts:
        self.pairs.append(list(pairs))
        gains = [float(np.sign(len(pair.ours) - len(pair.theirs))) for pair in pairs]
        return Verdicts([0.5 * (1 + gain) for gain in gains], disagreed=1, unreadable=0)


@pytest.fixture
def given() -> dict[str, Answers]:
    return {
        "base": answers("1", "2", "3", "4"),
        "sft": answers("1", "22", "333", "4444"),
        "ppo": answers("111", "222", "333", "4"),
        "dpo": answers("1", "2", "3", "4"),
        "raft": answers("1", "22", "333", "4444"),
        "best_of_n": answers("1|111", "2|2222", "3|33", "4|44", weights=(0.25, 0.75)),
    }


def test_the_llm_judge_is_asked_about_what_the_recipe_names(
    given: dict[str, Answers], context: Callable[..., RunContext]
) -> None:
    judge = Longer()
    asked = LLMJudgeConfig(base_url="http://x", model="longer", against=["sft", "best_of_n"], num_prompts=3)
    config = EvalConfig(bootstrap=50, llm_judge=asked)
    rows, verdicts = contests(PROMPTS, given, {}, judge, config, context())
    assert [(row["ours"], row["theirs"], row["value"]) for row in rows] == [
        ("ppo", "sft", pytest.approx(2.5 / 3)),
        ("ppo", "best_of_n", pytest.approx(1.5 / 3)),
        ("dpo", "sft", pytest.approx(0.5 / 3)),
        ("raft", "sft", 0.5),
    ]
    assert [pair.theirs for pair in judge.pairs[1]] == ["111", "2222", "33"]  # what best-of-n picks most often
    assert (rows[0]["ties"], rows[0]["disagreed"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert verdicts is not None
    assert verdicts.wins == [1.0, 1.0, 0.5]
    found = extremes(PROMPTS[:3], given, {}, verdicts, [2], 10)
    assert found is not None
    assert [row["prompt"] for row in found["improved"]] == ["a", "b"]
    assert found["damaged"] == []


def test_scoring_judges_compare_every_baseline_that_was_evaluated(
    given: dict[str, Answers], context: Callable[..., RunContext]
) -> None:
    scores = {"j": {name: np.array([[float(len(t)) for t in r] for r in a.texts]) for name, a in given.items()}}
    rows, _ = contests(PROMPTS, given, scores, None, EvalConfig(bootstrap=50), context())
    rates = {(row["ours"], row["theirs"]): row["value"] for row in rows}
    assert rates["ppo", "sft"] == pytest.approx((1 + 1 + 0.5 + 0) / 4)
    # ppo's 3, 3, 3 and 1 against the 1|3, 1|4, 1|2 and 1|2 that best-of-n gives by 1 to 3.
    expected = (0.25 + 0.75 / 2) + 0.25 + 1 + 0.25 / 2
    assert rates["ppo", "best_of_n"] == pytest.approx(expected / 4)
    assert len(rates) == 8
    found = extremes(PROMPTS, given, scores, None, [2], 1)
    assert found is not None
    assert [(row["prompt"], row["gain"], row["ppo"]) for row in found["improved"]] == [("a", 2.0, "111")]
    assert [(row["prompt"], row["gain"]) for row in found["damaged"]] == [("d", -3.0)]
    assert (found["share_improved"], found["share_damaged"]) == (0.5, 0.25)
    assert extremes(PROMPTS, given, {}, None, [2], 1) is None
