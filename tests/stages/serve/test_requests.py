"""What is wrong with a request is said in OpenAI's shape, with a status that clients understand."""

from __future__ import annotations

import json
from typing import Any

import pytest
import tiny
from served import Api, serving

from stages.serve.models import Served

CHAT, TEXT, SCORE = "/v1/chat/completions", "/v1/completions", "/v1/score"


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff\xfe", b"null", b"[]", b'"text"', b"[" * 100_000, b'{"model": NaN}', b"1" * 10_000],
    ids=["empty", "cut", "not UTF-8", "null", "a list", "text", "nested", "NaN", "a long number"],
)
@pytest.mark.parametrize("path", [CHAT, TEXT, SCORE, "/classify", "/pooling", "/page/fit", "/page/vote"])
def test_garbage_is_refused(api: Api, path: str, body: bytes) -> None:
    reply = api.request("POST", path, body, Content_Type="application/json")
    assert reply.status == 400
    assert reply.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("changes", "param", "words"),
    [
        ({"temperature": -1}, "temperature", "greater than or equal to 0"),
        ({"temperature": "hot"}, "temperature", "valid number"),
        ({"temperature": True}, "temperature", "valid number"),
        ({"top_p": 0}, "top_p", "greater than 0"),
        ({"n": 0}, "n", "greater than or equal to 1"),
        ({"n": 129}, "n", "less than or equal to 128"),
        ({"max_tokens": -1}, "max_tokens", "greater than or equal to 0"),
        ({"max_tokens": 0}, "max_tokens", "at least 1"),
        ({"max_tokens": 2.5}, "max_tokens", "valid integer"),
        ({"seed": 2**70}, "seed", ""),
        ({"stop": ["a"] * 33}, "stop", ""),
        ({"stop": [1]}, "stop", ""),
        ({"temprature": 1}, "temprature", "unknown parameter"),
        ({"frequency_penalty": 0.5}, "frequency_penalty", "not supported"),
        ({"tools": [{"type": "function"}]}, "tools", "not supported"),
        ({"response_format": {"type": "json_object"}}, "response_format", "not supported"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "less than or equal to 20"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "needs stream"),
        ({"messages": []}, "messages", "at least 1"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages", ""),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages", ""),
        ({"messages": [{"role": "user"}]}, "messages", "required"),
        ({"messages": tiny.user("\ud800")}, "messages", "Unicode"),
        ({"messages": None}, "messages", ""),
        ({"model": None}, "model", "valid string"),
    ],
    ids=lambda value: json.dumps(value)[:40] if isinstance(value, dict) else "",
)
def test_wrong_parameters_are_named(api: Api, changes: dict[str, Any], param: str, words: str) -> None:
    reply = api.chat(**{"max_tokens": 2, **changes})
    assert reply.status == 400
    assert reply.error["param"] == param
    assert words in reply.error["message"]


def test_parameters_that_change_nothing_are_accepted(api: Api) -> None:
    plain = api.chat("ab", temperature=0, max_tokens=5).json["choices"]
    neutral = {
        "frequency_penalty": 0,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "tools": None,
        "response_format": {"type": "text"},
        "user": "me",
        "store": False,
        "metadata": {"a": "b"},
        "top_p": 1,
        "seed": None,
        "stop": None,
        "n": 1,
        "stream": False,
    }
    assert api.chat("ab", temperature=0, max_completion_tokens=5, **neutral).json["choices"] == plain


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ([], "empty"),
        ("", "no tokens"),
        ([""], "no tokens"),
        ([[]], "no tokens"),
        ([10**9], "vocabulary"),
        ([-1], "vocabulary"),
        (["a", 1], ""),
        ({"a": 1}, ""),
        ("\ud800", "Unicode"),
    ],
)
def test_wrong_prompts_are_refused(api: Api, prompt: Any, words: str) -> None:
    reply = api.complete(prompt)
    assert reply.status == 400
    assert reply.error["param"] == "prompt"
    assert words in reply.error["message"]


def test_a_prompt_that_is_too_long_is_refused_with_the_limit(api: Api) -> None:
    for reply in (api.chat("a" * 200), api.complete("a" * 200), api.complete("a" * 120, max_tokens=9)):
        assert reply.status == 400
        assert reply.error["code"] == "context_length_exceeded"
        assert "maximum context length is 128 tokens" in reply.error["message"]
    assert "129: 120 in the prompt and 9 for the answer" in reply.error["message"]
    assert api.complete("a" * 120, max_tokens=8).status == 200
    assert api.complete("a" * 128, max_tokens=0, echo=True, logprobs=0).status == 200
    assert api.complete("a" * 128, max_tokens=1).status == 400


def test_unknown_models_and_paths_are_404(api: Api) -> None:
    reply = api.chat(model="gpt-4")
    assert reply.status == 404
    assert reply.error["code"] == "model_not_found"
    assert "base, sft and ppo" in reply.error["message"]
    assert api.chat(model="reward").error["message"].endswith("/v1/score")
    assert api.get("/v1/models/none").error["code"] == "model_not_found"
    assert api.get("/v2/none").status == 404
    assert "/v2/none" in api.get("/v2/none").error["message"]
    wrong_method = api.get(CHAT)
    assert wrong_method.status == 405
    assert "does not take GET" in wrong_method.error["message"]


def test_a_request_that_is_too_large_is_refused(api: Api) -> None:
    reply = api.request("POST", TEXT, b"x" * (9 * 2**20), Content_Type="application/json")
    assert reply.status == 413


def test_models_and_health(api: Api) -> None:
    listed = api.get("/v1/models").json
    assert listed["object"] == "list"
    assert [model["id"] for model in listed["data"]] == ["base", "sft", "ppo", "reward"]
    assert {model["max_model_len"] for model in listed["data"]} == {128}
    assert api.get("/v1/models/sft").json == listed["data"][1]
    assert api.get("/health").json == {"status": "ok", "running": 0, "waiting": 0}


def test_every_response_has_the_security_headers(api: Api) -> None:
    for reply in (api.get("/health"), api.get("/"), api.get("/none"), api.chat(model="none")):
        assert reply.headers["content-security-policy"].startswith("default-src 'none'; script-src 'self'")
        assert reply.headers["x-content-type-options"] == "nosniff"


def test_other_sites_and_other_names_are_refused(api: Api) -> None:
    body = json.dumps({"model": "ppo", "prompt": "a"}).encode()
    cross = api.request("POST", TEXT, body, Sec_Fetch_Site="cross-site")
    assert cross.status == 403
    assert cross.error["code"] == "cross_site"
    assert api.request("POST", TEXT, body, Sec_Fetch_Site="same-origin").status == 200
    assert api.get("/v1/models", Host="evil.example").status == 400
    assert api.get("/v1/models", Host="localhost:8000").status == 200


def test_with_a_key_requests_need_it(served: Served) -> None:
    with serving(served, key="s3cret") as api:
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "s3cret"}):
            reply = api.get("/v1/models", **headers)
            assert reply.status == 401
            assert reply.error["code"] == "invalid_api_key"
            assert reply.headers["www-authenticate"] == "Bearer"
        assert api.get("/page/settings").status == 401
        assert api.get("/v1/models", Authorization="Bearer s3cret").status == 200
        assert api.get("/v1/models", Authorization="Bearer s3cret", Host="models.example").status == 200
        assert [api.get(path).status for path in ("/", "/health", "/static/chat.js")] == [200, 200, 200]
