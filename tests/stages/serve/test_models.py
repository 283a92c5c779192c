"""What is loaded: a run's adapters on one backbone, full models, quantised bases, and models from elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from served import served_run, serving
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from pipeline.errors import RecipeError, StageError
from stages.models.adapters import load_actor
from stages.models.text import load_codec
from stages.sampling.sampler import SamplingParams, sampler_of
from stages.serve.models import Served, load_place, load_run


def greedy(run: Any, name: str, text: str, tokens: int) -> str:
    base = run.need("base").artifact
    codec = load_codec(base)
    actor = load_actor(base, None if name == "base" else run.need(name).artifact, "cpu")
    params = SamplingParams(max_new_tokens=tokens, stop_ids=codec.stop_ids, temperature=0)
    return codec.decode(sampler_of(codec).sample(actor, [codec.prompt(tiny.user(text))], params, 0).responses[0])


def check_answers(run: Any, served: Served) -> None:
    with serving(served) as api:
        for name in served.models:
            [choice] = api.chat("fox", name, temperature=0, max_tokens=12).json["choices"]
            assert choice["message"]["content"] == greedy(run, name, "fox", 12), name
        assert api.post("/v1/score", text_1="a", text_2="b").status == 200


def test_adapters_share_one_backbone_with_the_reward_model(served: Served) -> None:
    banks = {id(model.bank) for model in served.models.values()}
    assert served.reward is not None
    assert banks == {id(served.reward.scorer.model.bank)}  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "values",
    [{"lora": False}, {"quantization": "nf4"}, {"quantization": {"qat": "nf4", "activations": "none"}}],
    ids=["full", "nf4", "qat"],
)
def test_other_kinds_of_models_answer_as_in_the_stages(tmp_path, load, values) -> None:
    run = served_run(tmp_path / "runs", load(), **values)
    check_answers(run, load_run(run, [], "cpu"))


def test_the_system_message_of_the_data_is_put_in_front(tmp_path, load) -> None:
    run = served_run(tmp_path / "runs", load("data.system=brief"))
    with serving(load_run(run, ["ppo"], "cpu")) as api:
        codec = api.served.codec
        messages = [{"role": "system", "content": "brief"}, *tiny.user("fox")]
        reply = api.chat("fox", temperature=0).json
        assert reply["usage"]["prompt_tokens"] == len(codec.prompt(messages))
        assert api.chat(messages=messages, temperature=0).json["choices"] == reply["choices"]


def test_models_are_selected_and_the_length_is_limited(run: Any) -> None:
    served = load_run(run, ["ppo"], "cpu", max_length=40)
    assert served.names == ["ppo", "reward"]
    assert served.limit == 40
    with serving(served) as api:
        assert api.complete("a" * 30, max_tokens=11).error["code"] == "context_length_exceeded"
        assert api.chat("ab", "sft").status == 404


@pytest.mark.parametrize("kind", ["float32", "nf4 on disk", "nf4 when loaded"])
def test_a_merged_model_in_a_folder_is_served(tmp_path, kind: str) -> None:
    folder = tmp_path / "my-model"
    plain = tiny.quantised_lm("none")
    plain.generation_config.eos_token_id = [tiny.EOS, tiny.IM_END]
    plain.save_pretrained(folder)
    if kind == "nf4 on disk":
        config = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32
        )
        packed: Any = AutoModelForCausalLM.from_pretrained(
            folder, quantization_config=config, dtype=torch.float32, device_map={"": "cpu"}
        )
        packed.save_pretrained(folder)
        assert "quantization_config" in (folder / "config.json").read_text()
    tokenizer = tiny.tokenizer("chatml")
    tokenizer.save_pretrained(folder)
    served = load_place(str(folder), None, "cpu", quantization="nf4" if kind == "nf4 when loaded" else "none")
    assert served.names == ["my-model"]
    assert {tiny.EOS, tiny.IM_END} <= set(served.codec.stop_ids)
    layer = served.models["my-model"].bank.models["my-model"].model.layers[0].mlp.up_proj  # type: ignore[union-attr]
    assert (type(layer).__name__ == "Linear4bit") == (kind != "float32")
    with serving(served) as api:
        [choice] = api.complete("abc", "my-model", temperature=0, max_tokens=8, logprobs=0, echo=True).json[
            "choices"
        ]
        ids = tokenizer.convert_tokens_to_ids(choice["logprobs"]["tokens"])
        with torch.no_grad():
            if kind == "float32":
                own = AutoModelForCausalLM.from_pretrained(folder).eval()
            else:
                own = served.models["my-model"].bank.models["my-model"]  # type: ignore[union-attr]
            logprobs = own(input_ids=torch.tensor([ids])).logits[0].log_softmax(-1)
        expected = [float(logprobs[i, token]) for i, token in enumerate(ids[1:])]
        assert choice["logprobs"]["token_logprobs"][1:] == pytest.approx(expected, abs=1e-4)
        assert ids[3:] == logprobs.argmax(-1)[2:-1].tolist()
        assert api.chat("ab", "my-model", max_tokens=3).status == 200
        assert api.post("/page/vote", **VOTE).error["message"].startswith("votes are stored beside a run")


VOTE = {
    "prompt": tiny.user("a"),
    "completions": ["b", "c"],
    "models": ["my-model", "my-model"],
    "ranks": [1, 2],
    "annotator": "me",
    "vote": "12345678",
    "temperature": 1.0,
    "blind": True,
}


def test_wrong_places_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my/model").mkdir(parents=True)
    with pytest.raises(RecipeError, match=r"there is no folder \./my/modle") as caught:
        load_place("./my/modle", None, "cpu")
    assert "my/model" in caught.value.hint
    with pytest.raises(RecipeError, match="has no revision"):
        load_place("me/model", None, "cpu")
    with pytest.raises(StageError):
        load_place("my/model", None, "cpu")
