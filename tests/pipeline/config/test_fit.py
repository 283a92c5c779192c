"""What a recipe asks of its model that the model cannot do is refused before anything is trained."""

from __future__ import annotations

import dataclasses
import json
import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pipeline_fakes import FakeStages, write_all
from typer.testing import CliRunner

from pipeline.config import checkpoint, fit
from pipeline.config.fit import ModelProfile
from pipeline.config.load import LoadedRecipe, load_recipe
from pipeline.engine.runner import Runner
from pipeline.errors import RecipeError, StageError
from stages.__main__ import app

MakeRunner = Callable[..., Runner]
LINEAR = [f"model.layers.{i}.self_attn.{name}" for i in range(2) for name in ("q_proj", "v_proj", "o_proj")]
PROFILE = ModelProfile(
    context=128,
    linear=[*LINEAR, "lm_head"],
    other={"model.embed_tokens": "Embedding", "model.layers.0.self_attn": "Attention", "model.norm": "RMSNorm"},
    output="lm_head",
    tied=True,
    unsupported=["o_proj"],
    formats={"gguf_q8_0": "a gpt2 model is not written as GGUF"},
)
FITS = "sft.max_length=128 reward.max_length=128 ppo.max_prompt_length=64 collect.max_prompt_length=64"
FITS += " eval.max_prompt_length=64 sft.lora.target_modules=[q_proj] reward.lora.target_modules=[q_proj]"


def recipe(folder: Path, sets: str = "", model: str = "some/model") -> LoadedRecipe:
    path = folder / "r.yaml"
    path.write_text(
        "name: r\n"
        f"base: {{model: {model}, revision: abc}}\n"
        "data: {demonstrations: {task: venues, size: 10}}\n"
        "rank: {source: simulated, annotators: [{name: ana}, {name: ben}]}\n"
    )
    return load_recipe(path, [FITS, *([sets] if sets else [])])


def problems(folder: Path, sets: str = "", profile: ModelProfile = PROFILE) -> dict[str, str]:
    return dict(fit.problems(recipe(folder, sets).recipe, profile))


def test_a_recipe_that_fits_is_not_refused(tmp_path: Path) -> None:
    assert problems(tmp_path) == {}


def test_a_system_message_that_the_chat_template_refuses_is_refused(tmp_path: Path) -> None:
    profile = dataclasses.replace(PROFILE, no_system="System role not supported")
    assert problems(tmp_path, profile=profile) == {}
    given = "data.system='Be kind.'"
    assert problems(tmp_path, given) == {}
    assert "System role not supported" in problems(tmp_path, given, profile)["data.system"]
    assert problems(tmp_path, f"{given} base.fold_turns=true", profile) == {}


@pytest.mark.parametrize(
    ("sets", "path", "words"),
    [
        ("sft.max_length=129", "sft.max_length", ["129", "128 tokens", "Lower it to 128"]),
        ("reward.max_length=4096", "reward.max_length", ["4096", "128 tokens"]),
        ("dpo.max_length=129", "dpo.max_length", ["129"]),
        ("ppo.response_length=65", "ppo.response_length", ["64 + 65", "128 tokens", "by 1"]),
        ("eval.response_length=99", "eval.response_length", ["64 + 99", "by 35"]),
        ("collect.max_prompt_length=70", "collect.response_length", ["70 + 64", "by 6"]),
    ],
)
def test_lengths_past_the_context_are_refused(sets: str, path: str, words: list[str], tmp_path: Path) -> None:
    found = problems(tmp_path, sets)
    assert list(found) == [path]
    assert all(word in found[path] for word in words), found


@pytest.mark.parametrize("sets", ["sft.max_length=9999", "ppo.response_length=9999", "dpo.max_length=9999"])
def test_without_a_known_context_no_length_is_refused(sets: str, tmp_path: Path) -> None:
    profile = ModelProfile(linear=LINEAR)
    values = "dpo.max_length=1 " + sets if "dpo" not in sets else sets
    assert problems(tmp_path, values, profile) == {}


def test_stages_that_the_recipe_does_not_have_are_skipped(tmp_path: Path) -> None:
    table = "data.rankings={path: hub://a/b@c, format: pairs}"
    assert problems(tmp_path, f"rank.source=data {table} collect.response_length=9999") == {}
    assert problems(tmp_path, "dpo={enabled: false, max_length: 9999}") == {}
    assert problems(tmp_path, "reward.model=an/encoder reward.revision=a reward.max_length=9999") == {}


@pytest.mark.parametrize(
    ("targets", "words"),
    [
        ("[query_key_value]", ["no module is called 'query_key_value'", "q_proj, v_proj"]),
        ("[q_proj, Wqkv]", ["no module is called 'Wqkv'"]),
        ("[q_prog]", ["did you mean q_proj?"]),
        ("[]", ["names no module"]),
        ("q_proj", ["no module is called 'q_proj'", "a pattern for whole names"]),
        ("'.*mlp.*'", ["no module is called"]),
        ("'.*[qv_proj'", ["not a regular expression"]),
        ("'.*'", ["not a linear layer"]),
        ("[self_attn]", ["model.layers.0.self_attn, which is not a linear layer (Attention)"]),
        ("[embed_tokens]", ["Embedding"]),
        ("[norm]", ["RMSNorm"]),
        ("[q_proj, lm_head]", ["lm_head, the output layer", "shared with the embedding"]),
        ("[o_proj]", ["o_proj, which peft does not adapt", "'q_proj', 'v_proj'"]),
        ("all-linear", ["matches o_proj", "'q_proj', 'v_proj'"]),
    ],
)
@pytest.mark.parametrize("role", ["sft", "reward"])
def test_lora_targets_that_cannot_be_adapted_are_refused(
    targets: str, words: list[str], role: str, tmp_path: Path
) -> None:
    found = problems(tmp_path, f"{role}.lora.target_modules={targets} reward.init=base")
    assert list(found) == [f"{role}.lora.target_modules"]
    assert all(word in found[f"{role}.lora.target_modules"] for word in words), found


@pytest.mark.parametrize(
    "targets", ["[q_proj, v_proj]", "[self_attn.q_proj]", r"'.*\.[qv]_proj'", "[layers.1.self_attn.q_proj]"]
)
def test_lora_targets_that_name_linear_layers_are_not(targets: str, tmp_path: Path) -> None:
    assert problems(tmp_path, f"sft.lora.target_modules={targets} reward.init=base") == {}


def test_an_untied_output_layer_is_not_adapted_either(tmp_path: Path) -> None:
    """trl reads its weight, past an adapter."""
    untied = ModelProfile(linear=[*LINEAR, "lm_head"], output="lm_head", tied=False)
    found = problems(tmp_path, "sft.lora.target_modules=[q_proj,lm_head] reward.init=base", untied)
    assert "lm_head, the output layer" in found["sft.lora.target_modules"]
    assert "embedding" not in found["sft.lora.target_modules"]


def test_a_reward_adapter_that_starts_as_sfts_copy_has_its_layers(tmp_path: Path) -> None:
    profile = ModelProfile(linear=LINEAR)
    other = "reward.lora.target_modules=[v_proj]"
    assert list(problems(tmp_path, other, profile)) == ["reward.lora.target_modules"]
    assert problems(tmp_path, f"{other} reward.init=base", profile) == {}
    same = r"reward.lora.target_modules='.*\.q_proj'"
    assert problems(tmp_path, same, profile) == {}
    for name in ("r", "lora_alpha"):
        with pytest.raises(RecipeError, match=f"reward.lora.{name}: must be that of sft.lora"):
            recipe(tmp_path, f"sft.lora.{name}=8")
        recipe(tmp_path, f"sft.lora.{name}=8 reward.init=base")


@pytest.mark.parametrize("path", ["ppo.reward_model", "eval.reward_model", "ppo.monitor.judge"])
def test_a_folder_that_gives_no_score_is_refused_before_anything_runs(path: str, tmp_path: Path) -> None:
    one = {"id2label": {"0": "LABEL_0"}}
    for name, config, words in (
        ("lm", {"model_type": "llama"}, "2 labels"),
        ("three", {"id2label": {"0": "a", "1": "b", "2": "c"}}, "3 labels"),
        ("awq", one | {"quantization_config": {"quant_method": "awq"}}, "awq"),
        ("good", one, None),
        ("artifact", {}, None),
    ):
        folder = local(tmp_path / name, config)
        if name == "artifact":
            (tmp_path / name / "reward.json").write_text("{}")
        found = dict(fit.scorers(recipe(tmp_path, f"{path}={folder}").recipe))
        assert list(found) == ([path] if words else [])
        assert words is None or words in found[path]


def safetensors(folder: Path, **tensors: tuple[str, bytes]) -> None:
    header, data = {}, b""
    for name, (kind, numbers) in tensors.items():
        header[name.replace("_", ".")] = {"dtype": kind, "data_offsets": [len(data), len(data) + len(numbers)]}
        data += numbers
    text = json.dumps({"__metadata__": {"format": "pt"}, **header}).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + data)


FINITE = {"F32": struct.pack("<2f", 3e38, -1e-40), "BF16": b"\x7f\x7f\x80\x80", "F16": b"\xff\x7b\x00\x00"}
BROKEN = {
    "F64": struct.pack("<2d", 1.0, math.inf),
    "F32": struct.pack("<2f", 1.0, math.nan),
    "BF16": b"\x00\x00\x80\xff",
    "F16": b"\x00\x00\x00\x7c",
}


@pytest.mark.parametrize("path", ["ppo.reward_model", "eval.reward_model", "ppo.monitor.judge"])
def test_a_broken_or_missing_score_head_is_refused_before_anything_runs(path: str, tmp_path: Path) -> None:
    folder = local(tmp_path / "classifier", {"id2label": {"0": "LABEL_0"}})
    body = {"model_norm_weight": ("F32", BROKEN["F32"])}  # what is no head is not read

    def refused() -> str:
        return dict(fit.scorers(recipe(tmp_path, f"{path}={folder}").recipe)).get(path, "")

    for kind, numbers in FINITE.items():
        safetensors(tmp_path / "classifier", **body, score_weight=(kind, numbers))
        assert not refused()
    for kind, numbers in BROKEN.items():
        safetensors(tmp_path / "classifier", **body, classifier_out_proj_bias=(kind, numbers))
        assert "NaN or infinite (classifier.out.proj.bias)" in refused()
    safetensors(tmp_path / "classifier", **body, lm_head_weight=("F32", FINITE["F32"]))
    assert "no trained score head" in refused()
    (tmp_path / "classifier" / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(StageError, match="not a safetensors file"):
        refused()


def test_a_reward_encoder_that_is_too_short_is_refused_before_anything_runs(tmp_path: Path) -> None:
    folder = local(tmp_path / "encoder", {"max_position_embeddings": 100})
    found = dict(fit.scorers(recipe(tmp_path, f"reward.model={folder}").recipe))
    assert list(found) == ["reward.max_length"]
    assert "128 is more than the 100 tokens that reward.model can read" in found["reward.max_length"]
    assert not list(fit.scorers(recipe(tmp_path, f"reward.model={folder} reward.max_length=100").recipe))


def test_a_format_that_cannot_hold_the_model_is_refused(tmp_path: Path) -> None:
    found = problems(tmp_path, "export.formats=[safetensors,gguf_q8_0]")
    assert found == {
        "export.formats": "gguf_q8_0 cannot be written: a gpt2 model is not written as GGUF. Remove it"
    }


def test_a_format_whose_library_is_missing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = "export.formats=[torchao_int4]"
    monkeypatch.setattr(fit.importlib.util, "find_spec", lambda name: object())
    assert problems(tmp_path, sets) == {}
    monkeypatch.setattr(fit.importlib.util, "find_spec", lambda name: None)
    assert "pip install" in problems(tmp_path, sets)["export.formats"]


def test_a_profile_is_read_as_it_was_written(tmp_path: Path) -> None:
    assert ModelProfile.read(tmp_path) is None
    PROFILE.write(tmp_path)
    assert ModelProfile.read(tmp_path) == PROFILE


@pytest.mark.parametrize(
    ("config", "context"),
    [
        ({"max_position_embeddings": 64}, 64),
        ({"n_positions": 1024}, 1024),
        ({"max_seq_len": 2048}, 2048),
        ({"text_config": {"max_position_embeddings": 64}, "max_position_embeddings": 7}, 64),
        ({"max_position_embeddings": 64, "rope_scaling": {"type": "linear", "factor": 4.0}}, 256),
        ({"max_position_embeddings": 64, "rope_scaling": {"rope_type": "dynamic", "factor": 2}}, 128),
        (
            {
                "max_position_embeddings": 64,
                "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
            },
            128,
        ),
        (
            {
                "max_position_embeddings": 131072,
                "rope_parameters": {"rope_type": "llama3", "factor": 8, "original_max_position_embeddings": 8192},
            },
            131072,
        ),
        ({"model_type": "mamba"}, None),
    ],
)
def test_the_context_length_is_read_from_a_config(config: dict[str, Any], context: int | None) -> None:
    assert checkpoint.context_length(config) == context


def local(folder: Path, config: dict[str, Any], name: str = "config.json") -> str:
    folder.mkdir()
    (folder / name).write_text(json.dumps(config))
    return str(folder)


REFUSED = {
    "adapter": (
        {"peft_type": "LORA", "base_model_name_or_path": "a/b"},
        ["LORA adapter for a/b", "merge_and_unload"],
    ),
    "bnb": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}, ["4 bits", "nf4"]),
    "bnb8": ({"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}, ["8 bits", "int8"]),
    "gptq": ({"quantization_config": {"quant_method": "gptq"}}, ["gptq", "unquantised"]),
    "awq": ({"quantization_config": {"quant_method": "awq"}}, ["awq"]),
    "fp8": ({"quantization_config": {"quant_method": "fp8"}}, ["fp8"]),
    "encoder-decoder": ({"is_encoder_decoder": True, "model_type": "bart"}, ["encoder-decoder (bart)"]),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_local_checkpoint_that_cannot_be_trained_is_refused_by_plan(case: str, tmp_path: Path) -> None:
    config, words = REFUSED[case]
    local(tmp_path / "m", config, "adapter_config.json" if case == "adapter" else "config.json")
    loaded = recipe(tmp_path, model=str(tmp_path / "m"))
    result = CliRunner().invoke(app, ["plan", "-r", str(loaded.path), "-s", FITS, "--runs", str(tmp_path / "runs")])
    assert result.exit_code == 2, result.output
    for word in ["base.model", "r.yaml:2", *words]:
        assert word in result.stderr


def test_plan_refuses_lengths_by_a_local_config(tmp_path: Path) -> None:
    local(tmp_path / "m", {"model_type": "gpt2", "n_positions": 32})
    found = dict(fit.foreseen(recipe(tmp_path, model=str(tmp_path / "m")).recipe))
    sampled = {f"{stage}.response_length" for stage in ("collect", "ppo", "eval")}
    assert set(found) == {"sft.max_length", "reward.max_length", *sampled}


def test_a_config_that_is_no_json_is_an_error_with_a_file(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m/config.json").write_text("{")
    with pytest.raises(StageError, match=r"config\.json cannot be read") as caught:
        list(fit.foreseen(recipe(tmp_path, model=str(tmp_path / "m")).recipe))
    assert caught.value.where == str(tmp_path / "m/config.json")


def pretrained(folder: Path, sets: str) -> dict[str, str]:
    path = folder / "p.yaml"
    path.write_text(
        "name: p\nbase: {pretrain: {corpus: {task: venues, size: 10}, held_out: 0.2}}\n"
        "data: {demonstrations: {task: venues, size: 10}, eval_fraction: 0.2}\n"
        "rank: {source: simulated, annotators: [{name: ana}, {name: ben}]}\n"
    )
    return dict(fit.foreseen(load_recipe(path, [sets] if sets else []).recipe))


@pytest.mark.parametrize(
    ("sets", "path"),
    [
        ("sft.max_length=257", "sft.max_length"),
        ("sft.lora.target_modules=[c_attn]", "sft.lora.target_modules"),
        ("sft.lora.target_modules=[lm_head] reward.init=base", "sft.lora.target_modules"),
        ("base.pretrain.intermediate_size=100 export.formats=[nf4]", "export.formats"),
        ("base.pretrain.intermediate_size=96 base.quantization=nf4", "base.quantization"),
        ("base.pretrain.intermediate_size=100 base.quantization={qat: q4_0}", "base.quantization"),
    ],
)
def test_a_model_is_not_pretrained_for_a_recipe_that_does_not_fit_it(sets: str, path: str, tmp_path: Path) -> None:
    assert list(pretrained(tmp_path, sets)) == [path]
    assert pretrained(tmp_path, "") == {}


def test_what_only_the_loaded_model_tells_is_refused_after_base(runner: MakeRunner, stages: FakeStages) -> None:
    """And again by the next command, without another base."""

    def base(config: Any, inputs: Any, out_dir: Path, ctx: Any) -> dict[str, Any]:
        ModelProfile(context=4096, linear=["h.0.c_attn"]).write(out_dir)
        return write_all(config, inputs, out_dir, ctx)

    stages.does["base"] = base
    # With its dimensions in the recipe the model is not looked up on the Hub.
    sizes = "{vocab_size: 9, hidden_size: 8, intermediate_size: 8, num_hidden_layers: 1, num_attention_heads: 2, "
    architecture = f"base.architecture={sizes}num_key_value_heads: 2}}"
    model = f"base.model=some/model base.revision=abc '{architecture}' sft.lora.target_modules=[c_attn]"
    values = f"{model} reward.lora.target_modules=[c_fc]"
    for _ in range(2):
        with pytest.raises(
            RecipeError, match=r"reward\.lora\.target_modules: no module is called 'c_fc'"
        ) as caught:
            runner(values).run()
        assert caught.value.what.startswith("reward.lora.target_modules: ")
        assert caught.value.where.startswith("--set #")
    assert stages.calls == ["base"]
    runner(f"{model} reward.lora.target_modules=[c_attn]").run("sft")
    assert stages.calls == ["base", "data", "sft"]
