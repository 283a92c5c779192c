"""The whole stage on artifacts of random weights: every format is written, read back and measured."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import small
import torch
from repository import ROOT
from transformers import AutoModelForCausalLM, AutoTokenizer

from pipeline.config.export import ExportConfig
from pipeline.engine.stage import RunContext
from pipeline.errors import StageError
from stages.export import checkpoints, gguf_file, stage
from stages.models.adapters import causal_lm, load_policy
from stages.models.quantization import grids, qat

IDS = torch.arange(5, 25)[None]
Export = Callable[..., tuple[dict[str, Any], Path, dict[str, Any]]]


@pytest.fixture
def export(tmp_path: Path, training_context: Callable[..., tuple[RunContext, Any]]) -> Export:
    """Runs the stage; returns export.json by format, its folder and the inputs."""

    def run(
        formats: list[str] | None, quantization: Any = "none", base_dtype: str = "float32", **values: Any
    ) -> Any:
        inputs = small.artifacts(tmp_path / "inputs", quantization, base_dtype)
        ctx, notes = training_context()
        out = tmp_path / "out"
        out.mkdir()
        metrics = stage.run(ExportConfig(formats=formats, num_prompts=4, **values), inputs, out, ctx)
        written = json.loads((out / "export.json").read_text())
        rows = {row["format"]: row for row in written["formats"]}
        assert metrics["formats"] == ", ".join(rows)
        assert notes.advanced >= 2 * len(rows) + 1
        return rows | {"policy": written["policy"]}, out, inputs

    return run


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


def test_merged_safetensors_are_the_policy(export: Export) -> None:
    rows, out, inputs = export(None)
    assert set(rows) == {"safetensors", "policy"}
    assert rows["safetensors"]["change"] == "none"
    assert rows["safetensors"]["kl"] < 1e-6
    assert rows["safetensors"]["score"] == pytest.approx(rows["policy"]["score"], rel=1e-5)
    assert "model.safetensors" in rows["safetensors"]["files"]
    model = AutoModelForCausalLM.from_pretrained(out).eval()
    torch.testing.assert_close(
        logits(model), logits(load_policy(inputs["base"], inputs["ppo"], "cpu")), rtol=1e-5, atol=1e-5
    )
    assert AutoTokenizer.from_pretrained(out).chat_template


def test_every_stop_token_of_the_base_is_exported(
    tmp_path: Path, training_context: Callable[..., tuple[RunContext, Any]]
) -> None:
    """The list of a published model does not become shorter, nor do its named chat templates go."""
    inputs = small.artifacts(tmp_path / "inputs")
    base = inputs["base"]
    spec = base.json("base.json") | {"stop_ids": [0, 2, 7]}
    (base.path / "base.json").write_text(json.dumps(spec))
    tokenizer = AutoTokenizer.from_pretrained(base.path / "tokenizer")
    named = {"default": tokenizer.chat_template, "rag": "{{ messages[0].content }}"}
    tokenizer.chat_template = named
    tokenizer.save_pretrained(base.path / "tokenizer")
    out = tmp_path / "out"
    out.mkdir()
    formats = ["safetensors", "adapter", "gguf_f32"]
    stage.run(ExportConfig(formats=formats, num_prompts=4), inputs, out, training_context()[0])
    for folder in (out, out / "adapter/base"):
        assert json.loads((folder / "generation_config.json").read_text())["eos_token_id"] == [0, 2, 7]
    for folder in (out, out / "adapter"):
        assert AutoTokenizer.from_pretrained(folder).chat_template == named
    modelfile = (out / "gguf_f32/Modelfile").read_text()
    assert re.findall(r'PARAMETER stop "(.*)"', modelfile)[:2] == ["<|endoftext|>", "<|im_start|>"]


def test_gguf_in_every_type_loses_less_the_more_bits_it_has(export: Export) -> None:
    rows, out, _ = export(["gguf_q4_0", "gguf_q8_0", "gguf_f16", "gguf_f32"])
    kls = [rows[f"gguf_{kind}"]["kl"] for kind in ("f32", "f16", "q8_0", "q4_0")]
    assert kls == sorted(kls)
    assert kls[0] < 1e-6
    assert kls[1] < 1e-4
    assert 1e-4 < kls[3] < 5
    assert rows["gguf_q4_0"]["change"] == "quantised after training"
    assert rows["gguf_f16"]["change"] == "rounded to 16 bits"
    sizes = [rows[f"gguf_{kind}"]["bytes"] for kind in ("q4_0", "q8_0", "f16", "f32")]
    assert sizes == sorted(sizes)
    assert (out / "gguf_q4_0/Modelfile").read_text().startswith("FROM ./model-q4_0.gguf\n")
    assert not (out / "model.safetensors").exists()


def test_16_bits_are_measured_as_what_they_are(export: Export) -> None:
    rows, out, _ = export(["safetensors"], dtype="bfloat16")
    assert rows["safetensors"]["change"] == "rounded to 16 bits"
    assert 1e-6 < rows["safetensors"]["kl"] < 0.1
    assert AutoModelForCausalLM.from_pretrained(out, dtype="auto").dtype == torch.bfloat16


def test_a_file_in_float32_of_a_policy_in_16_bits_differs_by_the_policys_rounding(export: Export) -> None:
    rows, _, _ = export(["safetensors"], base_dtype="bfloat16")
    assert rows["safetensors"]["change"] == "none"
    assert 1e-7 < rows["safetensors"]["kl_per_token"] < 0.05


@pytest.mark.parametrize(
    ("computed", "kl", "passes"),
    [
        (torch.float32, 1e-5, True),
        (torch.float32, 7e-3, False),
        (torch.bfloat16, 7e-3, True),  # SmolLM2-135M
        (torch.bfloat16, 0.2, False),
    ],
)
def test_a_file_must_be_the_policy_but_for_rounding(computed: torch.dtype, kl: float, passes: bool) -> None:
    refused = contextlib.nullcontext() if passes else pytest.raises(StageError, match="is not the policy")
    with refused:
        stage._check("safetensors", ExportConfig(), "none", {"kl_per_token": kl}, computed)


def test_an_adapter_trained_on_nf4_stays_beside_its_base(export: Export) -> None:
    rows, out, inputs = export(None, "nf4")
    assert set(rows) == {"adapter", "policy"}
    assert rows["adapter"]["kl"] < 1e-5
    assert rows["adapter"]["score"] == pytest.approx(rows["policy"]["score"], rel=1e-4)
    assert (out / "adapter/adapter/adapter_model.safetensors").exists()
    base = AutoModelForCausalLM.from_pretrained(out / "adapter/base")
    assert base.is_quantized
    model = checkpoints.reload_adapter(out / "adapter", inputs["base"], "cpu")
    assert torch.equal(logits(model), logits(load_policy(inputs["base"], inputs["ppo"], "cpu")))


@pytest.mark.slow
def test_a_merge_with_an_nf4_base_is_asked_for_and_its_cost_recorded(export: Export) -> None:
    rows, _, _ = export(["adapter", "nf4", "safetensors"], "nf4", merge_quantized=True)
    assert rows["adapter"]["kl"] < 1e-5
    assert rows["nf4"]["change"] == "merged with its nf4 base and quantised again"
    assert rows["safetensors"]["change"] == "merged with its nf4 base"
    assert rows["nf4"]["kl"] > 100 * rows["safetensors"]["kl"]
    assert rows["nf4"]["perplexity"] != rows["policy"]["perplexity"]


@pytest.mark.parametrize("grid", ["q4_0", pytest.param("q8_0", marks=pytest.mark.slow)])
def test_the_grid_trained_is_the_grid_exported(grid: str, export: Export) -> None:
    """The weights that the policy computes with are those of the GGUF file, bit for bit."""
    name = f"gguf_{grid}"
    rows, out, inputs = export([name, "gguf_f32", "safetensors"], {"qat": grid, "activations": "none"})
    policy = load_policy(inputs["base"], inputs["ppo"], "cpu")
    used = {
        layer: module.get_base_layer() if hasattr(module, "get_base_layer") else module
        for layer, module in causal_lm(policy).named_modules()
        if layer.endswith("_proj")
    }
    read = gguf_file.reload(out / name / f"model-{grid}.gguf", "cpu").state_dict()
    plain = AutoModelForCausalLM.from_pretrained(out).state_dict()
    assert len(used) == 14
    for layer, module in used.items():
        fake = getattr(module, qat.MARK).weight()
        assert torch.equal(read[f"{layer}.weight"], fake), layer
        assert torch.equal(plain[f"{layer}.weight"], fake), layer
        assert not torch.equal(fake, module.weight)
    assert rows[name]["change"] == "on the grid it was trained on"
    assert rows[name]["kl"] < 1e-4, "all that differs is that embeddings have 16 bits"
    assert rows["gguf_f32"]["kl"] < 1e-6
    assert rows["safetensors"]["kl"] < 1e-6


@pytest.mark.slow
def test_nf4_trained_is_nf4_exported(export: Export) -> None:
    rows, out, inputs = export(["nf4", "gguf_q4_0"], {"qat": "nf4", "activations": "none"})
    assert rows["nf4"]["change"] == "on the grid it was trained on"
    assert rows["nf4"]["kl"] < 1e-6
    assert rows["gguf_q4_0"]["kl"] > 1e-4
    plain = AutoModelForCausalLM.from_pretrained(out / "nf4").dequantize().state_dict()
    policy = load_policy(inputs["base"], inputs["ppo"], "cpu")
    down = causal_lm(policy).model.layers[0].mlp.down_proj
    expected = getattr(down.get_base_layer(), qat.MARK).weight()
    assert torch.equal(plain["model.layers.0.mlp.down_proj.weight"], expected)


@pytest.mark.parametrize("bits", [3, *(pytest.param(bits, marks=pytest.mark.slow) for bits in (2, 4))])
def test_torchao_checkpoints_reload_in_plain_transformers(bits: int, export: Export) -> None:
    pytest.importorskip("torchao")
    own, grid = f"torchao_int{bits}", f"int{bits}-g32"
    rows, out, inputs = export([own, "torchao_int8"], {"qat": grid, "activations": "none"})
    assert rows[own]["change"] == "on the grid it was trained on"
    assert rows[own]["kl"] < 1e-6
    assert rows["torchao_int8"]["change"] == "quantised after training"
    read = AutoModelForCausalLM.from_pretrained(out / own).model.layers[0].mlp.down_proj.weight
    policy = load_policy(inputs["base"], inputs["ppo"], "cpu")
    latent = getattr(causal_lm(policy).model.layers[0].mlp.down_proj.get_base_layer(), qat.MARK).latent()
    assert torch.equal(read.dequantize(), grids.onto(grid, latent))


def test_rows_that_a_format_cannot_hold_are_refused(codec: Any) -> None:
    model = small.small_lm(codec.tokenizer, intermediate_size=96)
    checkpoints.check(model, "torchao_int4")
    with pytest.raises(StageError, match=r"blocks of 64 weights, but rows of .*down_proj have 96"):
        checkpoints.check(model, "nf4")


def test_torchao_is_asked_for_before_anything_is_written(
    export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(checkpoints.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StageError, match="not installed") as refused:
        export(["torchao_int4", "gguf_f32"])
    assert "tutelage[torchao]" in str(refused.value)
    assert not list((tmp_path / "out").iterdir())


BLOCKS = re.findall(r"```python\n(# (\w+).*?)```", (ROOT / "docs/export.md").read_text(encoding="utf-8"), re.DOTALL)
FRESH = """
import json, sys, torch

found = {}
for code, name in json.load(open("blocks.json")):
    names = {}
    exec(code, names)
    model = names["model"].eval()
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False  # on some CPUs bitsandbytes rounds activations to bfloat16
    with torch.no_grad():
        found[name] = model(torch.arange(5, 25)[None]).logits[0].tolist()
    if "tokenizer" in names:
        assert names["tokenizer"]("the blue fox")["input_ids"] == json.load(open("ids.json"))
json.dump(found, open("found.json", "w"))
"""


@pytest.mark.slow
def test_the_lines_of_the_docs_read_every_file_in_a_process_of_their_own(export: Export, tmp_path: Path) -> None:
    assert {name for _, name in BLOCKS} == {"safetensors", "nf4", "adapter", "gguf_q4_0"}
    rows, out, inputs = export(["safetensors", "adapter", "nf4", "gguf_q4_0"])
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    out.rename(folder / "export")
    (folder / "blocks.json").write_text(json.dumps(BLOCKS))
    (folder / "ids.json").write_text(json.dumps(small.bpe()("the blue fox")["input_ids"]))
    subprocess.run([sys.executable, "-c", FRESH], cwd=folder, check=True, timeout=300)
    found = json.loads((folder / "found.json").read_text())
    policy = logits(load_policy(inputs["base"], inputs["ppo"], "cpu"))[0]
    for name, theirs in found.items():
        off = float((torch.tensor(theirs) - policy).abs().mean() / policy.std())
        assert off < 1e-5 if rows[name]["change"] == "none" else 1e-3 < off < 0.5, name
