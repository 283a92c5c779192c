"""Scores over HTTP are those of `tutelage score`, in vLLM's shapes."""

from __future__ import annotations

import pytest
import tiny
from served import Api, served_run, serving

from pipeline.engine.plan import RunSummary
from stages.score.model import Answers
from stages.score.source import from_run
from stages.serve.models import load_run

TEXTS = ["a red one.", "a", "no idea, sorry"]


def expected(run: RunSummary, prompt: str, texts: list[str]) -> list[float]:
    [scores] = from_run(run, "cpu").score([Answers(tiny.user(prompt), texts)])
    return scores.scores


def test_one_prompt_with_several_answers(api: Api, run: RunSummary) -> None:
    reply = api.post("/v1/score", text_1="what is a fox", text_2=TEXTS)
    assert reply.status == 200
    assert [row["score"] for row in reply.json["data"]] == pytest.approx(
        expected(run, "what is a fox", TEXTS), abs=1e-5
    )
    assert [(row["index"], row["object"]) for row in reply.json["data"]] == [(i, "score") for i in range(3)]
    assert reply.json["model"] == "reward"
    codec = api.served.codec
    tokens = sum(len(codec.prompt(tiny.user("what is a fox")) + codec.completion(text)) for text in TEXTS)
    assert reply.json["usage"] == {"prompt_tokens": tokens, "completion_tokens": 0, "total_tokens": tokens}
    documents = api.post(
        "/score", model="reward", queries="what is a fox", documents=TEXTS, encoding_format="float"
    )
    assert documents.json["data"] == reply.json["data"]


def test_several_prompts_with_an_answer_each(api: Api, run: RunSummary) -> None:
    prompts = ["ab", "what is a fox", "q"]
    reply = api.post("/v1/score", text_1=prompts, text_2=TEXTS)
    each = [expected(run, prompt, [text])[0] for prompt, text in zip(prompts, TEXTS, strict=True)]
    assert [row["score"] for row in reply.json["data"]] == pytest.approx(each, abs=1e-5)


def test_conversations_rendered_texts_and_tokens_have_the_same_score(api: Api, run: RunSummary) -> None:
    [score] = expected(run, "ab", ["cd"])
    codec = api.served.codec
    ids = codec.prompt(tiny.user("ab")) + codec.completion("cd")
    rendered = codec.tokenizer.decode(ids)
    messages = [*tiny.user("ab"), {"role": "assistant", "content": "cd"}]
    for body in (
        {"messages": messages},
        {"input": rendered},
        {"input": [rendered]},
        {"input": ids},
        {"input": [ids]},
    ):
        classified = api.post("/classify", model="reward", **body)
        assert classified.status == 200, classified.body
        [row] = classified.json["data"]
        assert row == {"index": 0, "label": "reward", "probs": [pytest.approx(score, abs=1e-5)], "num_classes": 1}
        [pooled] = api.post("/pooling", **body).json["data"]
        assert pooled == {"index": 0, "object": "pooling", "data": [pytest.approx(score, abs=1e-5)]}


def test_an_ensemble_is_combined_as_in_ppo(tmp_path, load) -> None:
    run = served_run(
        tmp_path / "runs", load("reward.ensemble=3 ppo.reward={held_out: 1, aggregate: min}"), members=3
    )
    with serving(load_run(run, ["sft"], "cpu")) as api:
        reply = api.post("/v1/score", text_1="ab", text_2=TEXTS).json
        assert [row["score"] for row in reply["data"]] == pytest.approx(expected(run, "ab", TEXTS), abs=1e-5)
        assert [model["id"] for model in api.get("/v1/models").json["data"]] == ["sft", "reward"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["a", "b", "c"]}, "2 prompts and text_2 3 answers"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "0 answers"),
        ("/v1/score", {"text_1": "a"}, "text_2 is missing"),
        ("/v1/score", {"text_1": "a", "text_2": "b" * 200}, "reads at most 128"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "use_activation": True}, "scores are raw"),
        ("/v1/score", {"text_1": "a", "text_2": "b", "model": "sft"}, "language model"),
        ("/classify", {}, "either input or messages"),
        ("/classify", {"input": "a", "messages": tiny.user("a")}, "either input or messages"),
        ("/classify", {"input": []}, "input needs texts"),
        ("/classify", {"input": [[10**7]]}, "input needs texts"),
        ("/classify", {"messages": tiny.user("a")}, "assistant's answer"),
        ("/pooling", {"input": "a", "task": "embed"}, "task"),
    ],
)
def test_wrong_requests_are_refused(api: Api, path: str, body: dict, words: str) -> None:
    reply = api.post(path, **body)
    assert reply.status == 400
    assert words in reply.error["message"]


def test_scores_are_computed_while_answers_are_generated(api: Api, run: RunSummary) -> None:
    from served import in_parallel

    asked = {"model": "ppo", "prompt": "ab", "temperature": 0, "max_tokens": 100}
    alone = api.post("/v1/completions", **asked).json["choices"]
    replies = in_parallel(
        lambda: api.post("/v1/completions", **asked).json["choices"],
        lambda: api.post("/v1/score", text_1="ab", text_2=TEXTS * 10).json["data"],
    )
    assert replies[0] == alone
    scores = [row["score"] for row in replies[1]]
    assert scores == pytest.approx(expected(run, "ab", TEXTS) * 10, abs=1e-5)


def test_without_a_reward_model_scores_are_404(run: RunSummary) -> None:
    stages = {name: stage for name, stage in run.stages.items() if name != "reward"}
    with serving(load_run(RunSummary(run.loaded, run.folder, stages), [], "cpu")) as api:
        reply = api.post("/v1/score", text_1="a", text_2="b")
        assert reply.status == 404
        assert "no reward model" in reply.error["message"]
        assert [model["id"] for model in api.get("/v1/models").json["data"]] == ["base", "sft", "ppo"]
