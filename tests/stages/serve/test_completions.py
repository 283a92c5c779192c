"""Answers over HTTP are those of the models."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
import tiny
import torch
from served import Api, in_parallel, serving, streamed

from pipeline.engine.plan import RunSummary
from stages.models.adapters import load_actor
from stages.sampling.sampler import SamplingParams, sampler_of

MODELS = ("base", "sft", "ppo")


def greedy(run: RunSummary, name: str, ids: list[int], tokens: int, stop_ids: Any) -> list[int]:
    """The most likely answer, by the sampler of the stages on the model alone."""
    base = run.need("base").artifact
    actor = load_actor(base, None if name == "base" else run.need(name).artifact, "cpu")
    params = SamplingParams(max_new_tokens=tokens, stop_ids=stop_ids, temperature=0)
    return sampler_of(tiny.codec()).sample(actor, [ids], params, 0).responses[0]


@pytest.mark.parametrize("name", MODELS)
def test_a_greedy_answer_is_that_of_the_model_alone(api: Api, run: RunSummary, name: str) -> None:
    codec = api.served.codec
    ids = codec.prompt(tiny.user("fox"))
    expected = greedy(run, name, ids, 20, codec.stop_ids)
    [choice] = api.chat("fox", name, temperature=0, max_tokens=20).json["choices"]
    assert choice["message"] == {"role": "assistant", "content": codec.decode(expected), "refusal": None}
    assert choice["finish_reason"] == ("stop" if expected[-1] in codec.stop_ids else "length")


def test_the_models_answer_differently(api: Api) -> None:
    texts = {api.complete("a fox", name, temperature=0).json["choices"][0]["text"] for name in MODELS}
    assert len(texts) == 3


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions"])
def test_a_stream_has_the_text_of_the_whole_answer(api: Api, path: str) -> None:
    body = {"model": "sft", "temperature": 0, "max_tokens": 24, "n": 2}
    body |= {"prompt": "abc"} if path == "/v1/completions" else {"messages": tiny.user("abc")}
    whole = api.post(path, **body).json
    events = api.stream(path, **body, stream_options={"include_usage": True})
    texts = {c["index"]: c["text"] if "text" in c else c["message"]["content"] for c in whole["choices"]}
    assert streamed(events) == texts
    assert any(texts.values())
    assert events[-1]["choices"] == []
    assert events[-1]["usage"] == whole["usage"]
    assert all(event["usage"] is None for event in events[:-1])
    finishes = [c["finish_reason"] for event in events for c in event["choices"] if c["finish_reason"]]
    assert sorted(finishes) == sorted(c["finish_reason"] for c in whole["choices"])
    assert len({event["id"] for event in events}) == 1
    if path == "/v1/chat/completions":
        assert [e["choices"][0]["delta"].get("role") for e in events[:2]] == ["assistant", "assistant"]


def test_a_seed_repeats_an_answer_whatever_else_is_decoded(api: Api) -> None:
    def ask(seed: int) -> list[str]:
        choices = api.complete("ab", temperature=1.5, max_tokens=16, seed=seed, n=3).json["choices"]
        assert [choice["index"] for choice in choices] == [0, 1, 2]
        return [choice["text"] for choice in choices]

    alone = ask(5)
    assert len(set(alone)) == 3, "the choices of a prompt differ"
    assert in_parallel(*(lambda seed=seed: ask(seed) for seed in (5, 6, 5)))[::2] == [alone, alone]
    assert ask(6) != alone


def test_several_prompts_are_answered_in_order(api: Api) -> None:
    texts = ["a", "bcd efg", "fox"]
    single = [api.complete(text, temperature=0).json["choices"][0]["text"] for text in texts]
    both = api.complete(texts, temperature=0, n=2).json
    assert [choice["text"] for choice in both["choices"]] == [text for text in single for _ in range(2)]
    assert both["usage"]["prompt_tokens"] == sum(map(len, texts))
    ids = [api.served.codec.encode(text) for text in texts]
    assert [c["text"] for c in api.complete(ids, temperature=0).json["choices"]] == single
    assert api.complete(ids[1], temperature=0).json["choices"][0]["text"] == single[1]


def test_concurrent_streams_are_not_mixed_up(api: Api) -> None:
    asked = [(name, text) for name in MODELS for text in ("fox", "a", "the pub", "zz")]

    def body(name: str, text: str) -> dict[str, Any]:
        return {"model": name, "prompt": text, "temperature": 0, "max_tokens": 30}

    alone = [
        api.complete(text, name, temperature=0, max_tokens=30).json["choices"][0]["text"] for name, text in asked
    ]
    together = in_parallel(
        *(lambda one=one: streamed(api.stream("/v1/completions", **body(*one)))[0] for one in asked)
    )
    assert together == alone
    assert len(set(alone)) > 8


def test_a_stop_string_ends_the_answer_and_is_not_part_of_it(api: Api) -> None:
    body = {"temperature": 0, "max_tokens": 24}
    full = api.complete("abc", "base", **body).json["choices"][0]["text"]
    stop = full[5:8]
    at = full.index(stop)
    for stops in (stop, ["nowhere", stop]):
        reply = api.complete("abc", "base", stop=stops, logprobs=0, **body).json
        [choice] = reply["choices"]
        assert choice["text"] == full[:at]
        assert choice["finish_reason"] == "stop"
        assert "".join(choice["logprobs"]["tokens"]) == full[:at]
        assert reply["usage"]["completion_tokens"] == at + len(stop), "decoding ends there"
        events = api.stream("/v1/completions", model="base", prompt="abc", stop=stops, logprobs=0, **body)
        assert streamed(events)[0] == full[:at]
        logs = [choice["logprobs"]["tokens"] for event in events for choice in event["choices"]]
        assert "".join(token for tokens in logs for token in tokens) == full[:at]


@torch.no_grad()
def logprobs_of(run: RunSummary, name: str, ids: list[int]) -> torch.Tensor:
    """(L, V): log-probs after each token, by a forward pass of the model alone."""
    base = run.need("base").artifact
    actor = load_actor(base, None if name == "base" else run.need(name).artifact, "cpu")
    return actor.lm(input_ids=torch.tensor([ids])).logits[0].float().log_softmax(-1)


@pytest.mark.parametrize("name", MODELS)
def test_logprobs_are_those_of_a_forward_pass(api: Api, run: RunSummary, name: str) -> None:
    tokenizer = api.served.codec.tokenizer
    prompt = tokenizer("a fox")["input_ids"]
    body = {"temperature": 0.7, "seed": 3, "max_tokens": 12, "logprobs": 3}
    [choice] = api.complete("a fox", name, echo=True, **body).json["choices"]
    logs = choice["logprobs"]
    ids = tokenizer.convert_tokens_to_ids(logs["tokens"])
    assert ids[: len(prompt)] == prompt
    expected = logprobs_of(run, name, ids)
    assert logs["token_logprobs"][0] is None
    assert logs["top_logprobs"][0] is None
    for place in range(1, len(ids)):
        row = expected[place - 1]
        assert logs["token_logprobs"][place] == pytest.approx(float(row[ids[place]]), abs=1e-4)
        top = logs["top_logprobs"][place]
        values, best = row.topk(3)
        for value, token in zip(values.tolist(), best.tolist(), strict=True):
            assert top[tokenizer.decode([token])] == pytest.approx(value, abs=1e-4)
        assert len(top) == len({*best.tolist(), ids[place]})
    # Offsets point at each token's text, which special tokens do not have.
    for token, offset in zip(logs["tokens"], logs["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token) or token in tiny.SPECIAL
    assert choice["text"].startswith("a fox")


def test_chat_logprobs_have_one_entry_per_token(api: Api) -> None:
    reply = api.chat("abc", temperature=0, max_tokens=10, logprobs=True, top_logprobs=2).json
    [choice] = reply["choices"]
    content = choice["logprobs"]["content"]
    assert len(content) == reply["usage"]["completion_tokens"]
    for entry in content:
        assert [top["logprob"] for top in entry["top_logprobs"]] == sorted(
            (top["logprob"] for top in entry["top_logprobs"]), reverse=True
        )
        assert entry["top_logprobs"][0]["token"] == entry["token"], "at temperature 0"
        assert bytes(entry["bytes"]).decode() == entry["token"]
    bare = api.chat("abc", temperature=0, max_tokens=10, logprobs=True).json["choices"][0]["logprobs"]["content"]
    assert [(e["token"], e["top_logprobs"]) for e in bare] == [(e["token"], []) for e in content]
    assert api.chat("abc", max_tokens=2).json["choices"][0]["logprobs"] is None


@pytest.mark.parametrize("tokens", [0, 1])
def test_a_prompt_can_be_scored_as_lm_eval_does(api: Api, run: RunSummary, tokens: int) -> None:
    ids = [api.served.codec.encode(text) for text in ("a fox", "the pub is")]
    body = {"temperature": 0, "max_tokens": tokens, "logprobs": 1, "echo": True, "seed": 1234}
    reply = api.complete(ids, "sft", **body).json
    for choice, row in zip(reply["choices"], ids, strict=True):
        logs = choice["logprobs"]["token_logprobs"]
        assert len(logs) == len(row) + tokens
        expected = logprobs_of(run, "sft", row)
        assert logs[1 : len(row)] == pytest.approx(
            [float(expected[i, token]) for i, token in enumerate(row[1:])], abs=1e-4
        )
        assert choice["finish_reason"] == "length" or tokens == 1
    assert reply["usage"]["completion_tokens"] == 2 * tokens
    if not tokens:
        assert reply["choices"][0]["text"] == "a fox"


def test_an_echo_comes_before_the_answer_in_a_stream_too(api: Api) -> None:
    body = {"model": "ppo", "prompt": "abc", "temperature": 0, "max_tokens": 4, "echo": True}
    text = api.post("/v1/completions", **body).json["choices"][0]["text"]
    assert text.startswith("abc")
    assert streamed(api.stream("/v1/completions", **body))[0] == text


def test_top_p_and_top_k_of_one_token_are_greedy(api: Api) -> None:
    expected = api.complete("ab", temperature=0).json["choices"][0]["text"]
    for limit in ({"top_k": 1}, {"top_p": 1e-6}):
        assert api.complete("ab", temperature=1.8, **limit).json["choices"][0]["text"] == expected
    assert api.complete("ab", temperature=1.8, top_k=-1, seed=1).json["choices"][0]["text"] != expected


def test_content_parts_and_developer_messages(api: Api) -> None:
    plain = api.chat("abcd", temperature=0).json["choices"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "ab"}, {"type": "text", "text": "cd"}]}]
    assert api.chat(messages=parts, temperature=0).json["choices"] == plain
    system = [{"role": "system", "content": "be brief"}, *tiny.user("ab")]
    developer = [{"role": "developer", "content": "be brief"}, *tiny.user("ab")]
    answers = [api.chat(messages=messages, temperature=0).json["choices"] for messages in (system, developer)]
    assert answers[0] == answers[1]


def test_without_a_limit_chat_fills_the_context(api: Api) -> None:
    assert api.served.limit == 128
    prompt = len(api.served.codec.prompt(tiny.user("ab")))
    replies = [api.chat("ab", name, seed=seed, temperature=1.0).json for name in MODELS for seed in range(4)]
    for reply in replies:
        [choice] = reply["choices"]
        if choice["finish_reason"] == "length":
            assert reply["usage"]["total_tokens"] == 128
        assert reply["usage"]["prompt_tokens"] == prompt
    assert api.complete("ab", "base", temperature=0).json["usage"]["completion_tokens"] <= 16


def wait_until(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_disconnects_frees_its_row(api: Api, stream: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.serve import decoding

    draw = decoding.draw

    drawn: list[int] = []

    def slow(*arguments: Any) -> list[int]:
        time.sleep(0.05)
        drawn.append(5)  # never a stop token
        return [5 for _ in draw(*arguments)]

    monkeypatch.setattr(decoding, "draw", slow)
    connection = api.connect()
    body = {"model": "ppo", "prompt": "ab", "max_tokens": 120, "stream": stream}
    connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
    wait_until(lambda: api.engine.running == 1)
    if stream:
        assert connection.getresponse().read(6) == b"data: "
    connection.sock.close() if connection.sock else connection.close()
    connection.close()
    wait_until(lambda: api.engine.running == 0)
    assert len(drawn) < 100, "it ends long before its 120 tokens"


def test_a_full_queue_answers_429_and_recovers(served: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from stages.serve import decoding

    draw = decoding.draw
    monkeypatch.setattr(decoding, "draw", lambda *a: (time.sleep(0.02), draw(*a))[1])
    with serving(served, batch=1, queue=2) as api:
        replies = in_parallel(*(lambda i=i: api.complete("ab", max_tokens=20, seed=i) for i in range(8)))
        statuses = sorted(reply.status for reply in replies)
        assert statuses.count(200) >= 3
        assert set(statuses) == {200, 429}
        refused = next(reply for reply in replies if reply.status == 429)
        assert refused.error["code"] == "rate_limit_exceeded"
        assert refused.headers["retry-after"] == "1"
        assert api.complete("ab").status == 200
        too_many = api.complete(["a", "b", "c"])
        assert too_many.status == 400
        assert "at most 2" in too_many.error["message"]


def test_a_failure_reaches_the_client_without_a_traceback_and_the_server_goes_on(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stages.serve import decoding

    def fail(*_: Any) -> None:
        raise RuntimeError("secret detail")

    with monkeypatch.context() as patch:
        patch.setattr(decoding, "draw", fail)
        reply = api.complete("ab")
        assert reply.status == 500
        assert "secret" not in reply.error["message"]
        streaming = api.complete("ab", stream=True)
        assert "internal_error" in streaming.body.decode()
        patch.setattr(decoding, "draw", lambda *_: (_ for _ in ()).throw(MemoryError()))
        assert api.complete("ab").status == 503
    assert api.complete("ab").status == 200
    wait_until(lambda: api.engine.running == 0)
