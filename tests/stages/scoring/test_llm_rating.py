"""Ratings by a language model behind an endpoint, as a term of the reward."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny
from chat_endpoint import Endpoint, chat, serving

from pipeline.config.terms import RatingConfig
from pipeline.errors import StageError
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.llm_rating import RatingScorer, rating

CODEC = tiny.codec()
PROMPTS = [EncodedPrompt(tiny.user(f"question {i}"), [5], "train") for i in range(3)]
TEXTS = ["a", "bbb", "nothing"]
WHERE = "ppo.reward.terms[1].llm_judge"


def by_length(body: dict[str, Any]) -> tuple[int, Any]:
    answer = re.search(r"<answer>\n(.*)\n</answer>", body["messages"][1]["content"], re.DOTALL)
    assert answer is not None
    text = answer[1]
    return 200, chat("I cannot say." if text == "nothing" else f"Not [[9]] but [[{len(text)}]]")


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(by_length) as server:
        yield server


@pytest.fixture
def scorer(endpoint: Endpoint, tmp_path: Path) -> Callable[..., RatingScorer]:
    def make(**values: Any) -> RatingScorer:
        config = RatingConfig(**({"base_url": endpoint.url, "model": "judge-1"} | values))
        return RatingScorer(config, tmp_path, CODEC, "helpful", WHERE, pause=0.001)

    return make


def rate(scorer: RatingScorer, texts: list[str] = TEXTS) -> list[float]:
    responses = [CODEC.completion(text) for text in texts]
    rows: list[float] = scorer.members(PROMPTS[: len(texts)], responses)[0].tolist()
    return rows


def test_each_response_gets_the_last_rating_of_the_reply(
    endpoint: Endpoint, scorer: Callable[..., RatingScorer]
) -> None:
    first, second, unreadable = rate(scorer(criteria="Is it long?"))
    assert (first, second) == (1, 3)
    assert unreadable != unreadable
    bodies = [body for _, _, body in endpoint.asked]
    assert len(bodies) == 3
    assert all("Is it long?" in body["messages"][0]["content"] for body in bodies)
    assert any("question 1" in body["messages"][1]["content"] for body in bodies)


def test_a_response_is_never_rated_twice(endpoint: Endpoint, scorer: Callable[..., RatingScorer]) -> None:
    rate(scorer())
    again = scorer()
    rate(again, ["a", "bbb"])
    assert len(endpoint.asked) == 3
    # Another process has asked since this one started.
    rate(scorer(), ["a", "cc"])
    rate(again, ["a", "cc"])
    assert len(endpoint.asked) == 4
    responses = [CODEC.completion("dd")] * 3
    again.members([PROMPTS[0]] * 3, responses)
    assert len(endpoint.asked) == 5


def test_the_limit_of_requests_stops_before_it_is_exceeded(
    endpoint: Endpoint, scorer: Callable[..., RatingScorer]
) -> None:
    limited = scorer(max_requests=4)
    rate(limited)
    with pytest.raises(StageError, match="5 requests to judge-1 are needed, and at most 4 may be sent") as error:
        rate(limited, ["x", "yy"])
    assert error.value.where == f"{WHERE}.max_requests"
    assert len(endpoint.asked) == 3
    rate(limited)  # from the cache


def test_a_refusal_names_the_term(endpoint: Endpoint, scorer: Callable[..., RatingScorer]) -> None:
    endpoint.reply = lambda body: (401, "no")
    with pytest.raises(StageError, match="HTTP 401") as error:
        rate(scorer())
    assert f"correct {WHERE}.base_url" in error.value.hint
    assert "remove the term" in error.value.hint


def test_an_unset_key_is_named(scorer: Callable[..., RatingScorer], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(StageError, match="MY_KEY is not set") as error:
        scorer(api_key_env="MY_KEY")
    assert error.value.where == f"{WHERE}.api_key_env"


@pytest.mark.parametrize(
    ("reply", "number"),
    [
        ("[[7]]", 7.0),
        ("[[ 2.5 ]] then [[10]]", 10.0),
        ("[[0]] [[11]]", None),
        ("seven", None),
        ("[[4]] [[11]]", 4.0),
    ],
)
def test_the_rating_of_a_reply(reply: str, number: float | None) -> None:
    assert rating(reply) == number
