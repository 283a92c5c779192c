"""Clients that people use: the openai package, and lm_eval's local-completions."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import tiny
import torch
from served import Api

pytestmark = pytest.mark.slow


@pytest.fixture
def client(api: Api) -> Any:
    openai = pytest.importorskip("openai", reason="the openai package is not installed")
    with openai.OpenAI(base_url=f"{api.address}/v1", api_key="unused", max_retries=0) as client:
        yield client


def test_openai_chat(api: Api, client: Any) -> None:
    asked = {"model": "ppo", "messages": tiny.user("fox"), "temperature": 0, "max_completion_tokens": 16}
    whole = client.chat.completions.create(**asked, n=2, logprobs=True, top_logprobs=2)
    expected = api.chat("fox", temperature=0, max_tokens=16).json["choices"][0]["message"]["content"]
    assert [choice.message.content for choice in whole.choices] == [expected, expected]
    assert len(whole.choices[0].logprobs.content) == whole.usage.completion_tokens / 2
    chunks = list(client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True}))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == expected
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens / 2


def test_openai_completions_and_models(api: Api, client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["base", "sft", "ppo", "reward"]
    asked = {"model": "sft", "prompt": ["abc", "fox"], "temperature": 0, "max_tokens": 8}
    whole = client.completions.create(**asked, logprobs=1, echo=True)
    plain = [
        choice["text"]
        for choice in api.complete(["abc", "fox"], "sft", temperature=0, max_tokens=8).json["choices"]
    ]
    assert [choice.text for choice in whole.choices] == ["abc" + plain[0], "fox" + plain[1]]
    texts = ["", ""]
    for chunk in client.completions.create(**asked, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].text
    assert texts == plain


def test_openai_errors(client: Any) -> None:
    import openai

    with pytest.raises(openai.NotFoundError, match="there is no model"):
        client.chat.completions.create(model="none", messages=tiny.user("a"))
    with pytest.raises(openai.BadRequestError) as refused:
        client.completions.create(model="ppo", prompt="a" * 500)
    assert refused.value.code == "context_length_exceeded"


def log_likelihood(api: Api, context: str, continuation: str) -> tuple[float, bool]:
    """The SFT model's log-likelihood of a continuation, and whether it is the greedy one. Call it in the engine's
    thread, which may still hold the role of the last reply."""
    tokenizer, model = api.served.codec.tokenizer, api.served.models["sft"]
    ids, start = tokenizer(context + continuation)["input_ids"], len(tokenizer(context)["input_ids"])
    with model.bank.active(model.role) as actor:
        logprobs = actor.lm(input_ids=torch.tensor([ids])).logits[0, start - 1 : -1].log_softmax(-1)
    chosen = torch.tensor(ids[start:])
    return float(logprobs.gather(1, chosen[:, None]).sum()), bool((logprobs.argmax(-1) == chosen).all())


def test_lm_eval_local_completions(api: Api, tmp_path: Any) -> None:
    pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install 'lm-eval[api]'")
    from lm_eval.api.instance import Instance
    from lm_eval.models.openai_completions import LocalCompletionsAPI

    api.served.codec.tokenizer.save_pretrained(tmp_path)
    model = LocalCompletionsAPI(
        base_url=f"{api.address}/v1/completions",
        model="sft",
        tokenizer=str(tmp_path),
        tokenizer_backend="huggingface",
        num_concurrent=2,
        batch_size=2,
    )

    def instances(kind: str, arguments: list[Any]) -> list[Any]:
        return [Instance(kind, {}, pair, i) for i, pair in enumerate(arguments)]

    pairs = [("a fox", " is red"), ("the pub", " is blue"), ("a", "b")]
    expected = [api.engine.run(partial(log_likelihood, api, *pair)).result() for pair in pairs]
    scored = model.loglikelihood(instances("loglikelihood", pairs), disable_tqdm=True)
    assert [logprob for logprob, _ in scored] == pytest.approx([logprob for logprob, _ in expected], abs=1e-3)
    assert [is_greedy for _, is_greedy in scored] == [is_greedy for _, is_greedy in expected]
    written = model.generate_until(
        instances("generate_until", [("a fox", {"until": ["\n\n"], "max_gen_toks": 8, "temperature": 0})]),
        disable_tqdm=True,
    )
    assert written == [
        api.complete("a fox", "sft", temperature=0, max_tokens=8, stop=["\n\n"]).json["choices"][0]["text"]
    ]
