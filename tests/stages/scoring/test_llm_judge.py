"""The LLM judge, asked over HTTP: a local server stands in for the endpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from chat_endpoint import Endpoint, chat, serving

from pipeline.config.evaluate import LLMJudgeConfig
from pipeline.errors import StageError
from stages.scoring.endpoint import REPLIES as VERDICTS
from stages.scoring.judge import Pair
from stages.scoring.llm_judge import LLMJudge, verdict

USER = [{"role": "user", "content": "Describe it."}]


def longer(body: dict[str, Any]) -> tuple[int, Any]:
    """Prefers the longer answer, wherever it stands."""
    first, second = answers(body)
    letter = "C" if len(first) == len(second) else "A" if len(first) > len(second) else "B"
    return 200, chat(f"Both try, [[B]] less so. [[{letter}]]")


def answers(body: dict[str, Any]) -> tuple[str, str]:
    found = re.search(r"<A>\n(.*)\n</A>\n<B>\n(.*)\n</B>", body["messages"][1]["content"], re.DOTALL)
    assert found is not None
    return found[1], found[2]


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    with serving(longer) as server:
        yield server


@pytest.fixture
def judge(endpoint: Endpoint, tmp_path: Path) -> Callable[..., LLMJudge]:
    def make(**values: Any) -> LLMJudge:
        config = LLMJudgeConfig(**({"base_url": endpoint.url, "model": "judge-1"} | values))
        return LLMJudge(config, tmp_path, pause=0.001)

    return make


@pytest.fixture
def bar(training_context: Callable[..., Any]) -> Any:
    ctx, notes = training_context()
    return lambda: (ctx.progress("judge"), notes)


PAIRS = [Pair(USER, "a much longer one", "short"), Pair(USER, "x", "longer"), Pair(USER, "same", "size")]


def test_the_better_wins_in_both_orders(endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any) -> None:
    progress, notes = bar()
    found = judge(criteria="Which is longer?").compare(PAIRS, progress)
    assert found.wins == [1.0, 0.0, 0.5]
    assert (found.disagreed, found.unreadable) == (0, 0)
    assert notes.advanced == len(endpoint.asked) == 6
    path, headers, body = endpoint.asked[0]
    assert path == "/v1/chat/completions"
    assert "Authorization" not in headers
    assert (body["model"], body["temperature"], body["max_tokens"]) == ("judge-1", 0, 512)
    assert "Which is longer?" in body["messages"][0]["content"]
    assert "Describe it." in body["messages"][1]["content"]
    shown = {answers(body) for _, _, body in endpoint.asked}
    assert {("same", "size"), ("size", "same"), ("x", "longer"), ("longer", "x")} < shown


def test_a_judge_that_loves_a_position_gives_ties_and_is_found_out(
    endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any
) -> None:
    endpoint.reply = lambda body: (200, chat("[[A]]"))
    found = judge().compare(PAIRS, bar()[0])
    assert found.wins == [0.5] * 3
    assert found.disagreed == 3


def test_a_preference_in_one_order_and_a_tie_in_the_other_is_a_tie(
    endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any
) -> None:
    endpoint.reply = lambda body: (200, chat("[[A]]" if answers(body)[0] == "x" else "[[C]]"))
    found = judge().compare(PAIRS[1:2], bar()[0])
    assert (found.wins, found.disagreed, found.unreadable) == ([0.5], 1, 0)


def test_what_holds_no_verdict_is_a_tie_and_counted(
    endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any
) -> None:
    endpoint.reply = lambda body: (200, chat("I would rather not say."))
    found = judge().compare(PAIRS[:1], bar()[0])
    assert (found.wins, found.disagreed, found.unreadable) == ([0.5], 0, 2)


def test_nothing_is_asked_twice(endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any) -> None:
    first = judge().compare([*PAIRS, PAIRS[0]], bar()[0])
    assert len(endpoint.asked) == 6  # the pair that came twice, too
    progress, notes = bar()
    assert notes.advanced == 8
    again = judge().compare([*PAIRS, PAIRS[0]], progress)
    assert again == first
    assert notes.advanced == 16
    assert len(endpoint.asked) == 6
    judge(model="judge-2").compare(PAIRS[:1], bar()[0])
    judge(parameters={}).compare(PAIRS[:1], bar()[0])
    judge(criteria="Another question.").compare(PAIRS[:1], bar()[0])
    assert len(endpoint.asked) == 12


def test_an_interruption_keeps_what_was_said(
    endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any, tmp_path: Path
) -> None:
    def breaks(body: dict[str, Any]) -> tuple[int, Any]:
        return longer(body) if len(endpoint.asked) < 4 else (401, "no\nmore")

    endpoint.reply = breaks
    with pytest.raises(StageError, match=r"HTTP 401 Unauthorized: no more") as error:
        judge(concurrency=1).compare(PAIRS, bar()[0])
    assert "its replies so far are kept" in error.value.hint
    kept = tmp_path / VERDICTS
    assert len(kept.read_text().splitlines()) == 3
    with kept.open("a") as out:
        out.write('{"key": "half')  # as a kill leaves it
    endpoint.reply = longer
    before = len(endpoint.asked)
    assert judge().compare(PAIRS, bar()[0]).wins == [1.0, 0.0, 0.5]
    assert len(endpoint.asked) == before + 3
    assert all(json.loads(line)["model"] == "judge-1" for line in kept.read_text().splitlines())


@pytest.mark.parametrize("status", [429, 503, 500])
def test_what_may_pass_is_tried_again(
    endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any, status: int
) -> None:
    def busy(body: dict[str, Any]) -> tuple[int, Any]:
        return (status, "busy") if len(endpoint.asked) <= 2 else longer(body)

    endpoint.reply, endpoint.headers = busy, {"Retry-After": "0"}
    assert judge(concurrency=1).compare(PAIRS[:1], bar()[0]).wins == [1.0]
    assert len(endpoint.asked) == 4


def test_what_does_not_pass_ends_with_the_reason(
    endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any
) -> None:
    endpoint.reply = lambda body: (503, "overloaded")
    with pytest.raises(StageError, match=r"HTTP 503 .*overloaded \(3 times\)"):
        judge(retries=2, concurrency=1).compare(PAIRS[:1], bar()[0])
    assert len(endpoint.asked) == 3
    endpoint.reply = lambda body: (200, "<html>hello</html>")
    with pytest.raises(StageError, match="no chat completion"):
        judge(concurrency=1).compare(PAIRS[:1], bar()[0])
    assert len(endpoint.asked) == 4
    with pytest.raises(StageError, match="does not answer"):
        judge(base_url="http://127.0.0.1:1/v1", retries=0).compare(PAIRS[:1], bar()[0])


def test_the_key_comes_from_the_environment_and_goes_nowhere_else(
    endpoint: Endpoint, judge: Callable[..., LLMJudge], bar: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("JUDGE_KEY", "secret-key")
    judge(api_key_env="JUDGE_KEY").compare(PAIRS[:1], bar()[0])
    assert endpoint.asked[0][1]["Authorization"] == "Bearer secret-key"
    assert "secret-key" not in (tmp_path / VERDICTS).read_text()
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(StageError, match="JUDGE_KEY is not set"):
        judge(api_key_env="JUDGE_KEY")


def test_the_last_verdict_of_a_reply_counts() -> None:
    assert verdict("[[A]] at first sight, but [[ B ]]") == "B"
    assert verdict("[A]") is None
