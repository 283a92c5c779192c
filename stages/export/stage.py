"""The `export` stage: the trained policy in the formats that `export.formats` names, each read back and measured.

What it makes: merged safetensors at the top, where `from_pretrained` and the Hub look; every other format in a
folder of its own name, with the tokenizer; and `export.json`, what each file says beside what the policy itself
says. What is measured is the file, read as its users read it: by plain transformers, a GGUF file dequantised.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.config.export import ExportConfig
from pipeline.errors import StageError
from pipeline.rounds import newest
from pipeline.stage import Artifact, Metrics, RunContext
from stages.export import checkpoints, gguf_file
from stages.export.measure import Measures, Yardstick
from stages.export.modelfile import modelfile
from stages.models import qat
from stages.models.actor import Actor
from stages.models.adapters import causal_lm, load_actor
from stages.models.loading import load_tokenizer
from stages.models.text import Codec

GRIDS: dict[str, str] = {
    "nf4": "nf4",
    "torchao_int4": "int4-g32",
    "gguf_q8_0": "q8_0",
    "gguf_q4_0": "q4_0",
}
"""Format -> the grid of quantisation-aware training that it stores bit for bit."""

ON_GRID, ROUNDED = "on the grid it was trained on", "rounded to 16 bits"

TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05, "float16": 0.01}
"""Largest KL from the policy, nats a token, of a model that is only stored in another precision, not quantised."""


def run(config: ExportConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base, policy = inputs["base"], newest(inputs, "ppo")
    quantization = base.json("base.json")["quantization"]
    held = quantization if isinstance(quantization, str) else "none"
    trained_on = quantization if isinstance(quantization, dict) else {"qat": None, "activations": "none"}
    formats = chosen(config, held)
    codec = Codec(load_tokenizer(base))
    with ctx.progress("export", total=2 * len(formats) + 1) as bar:
        for _ in write(formats, config, inputs, trained_on["qat"], codec, out_dir, ctx):
            bar.advance()
        yardstick = Yardstick.of(config, inputs, codec, ctx)
        actor = load_actor(base, policy, ctx.device)
        answers = yardstick.answers(actor)
        trained = yardstick.measure(actor, answers)
        bar.advance()
        rows = []
        for name in formats:
            model = reload(name, base, out_dir, ctx.device)
            other = Actor(causal_lm(model))
            found = yardstick.divergence(actor, other, answers) | yardstick.measure(other, yardstick.answers(other))
            done = change(name, config, held, trained_on["qat"])
            if trained_on["activations"] == "none":
                _check(name, config, done, found)
            rows.append({"format": name, "change": done, **_files(name, out_dir), **found})
            bar.advance(kl=found["kl"])
            del model, other
    judge = inputs["eval"].json("eval.json")["judge"]
    result = {
        "prompts": len(yardstick.prompts),
        "judge": None if judge is None else Path(judge).name,
        "kl": "KL(policy || file), exact over the next token along the policy's sampled answers",
        "base_quantization": quantization,
        "policy": trained,
        "formats": rows,
    }
    (out_dir / "export.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return _flat(rows, trained)


def chosen(config: ExportConfig, held: str) -> list[str]:
    """The formats to write for a base that is held so: what is not merged silently is its adapter."""
    if config.formats is not None:
        return list(config.formats)
    return ["safetensors"] if held == "none" else ["adapter"]


def change(name: str, config: ExportConfig, held: str, grid: str | None) -> str:
    """What a format does to the model that was trained, in words; `none` when the file is that model.

    Args:
        held: `nf4` or `int8` when the base was so in training, else `none`.
        grid: of quantisation-aware training.
    """
    if name == "adapter":
        return "none"
    quantised = name in checkpoints.BLOCKS or name in ("gguf_q8_0", "gguf_q4_0")
    if held != "none":
        return f"merged with its {held} base{' and quantised again' if quantised else ''}"
    if quantised:
        return ON_GRID if grid is not None and GRIDS.get(name) == grid else "quantised after training"
    rounded = name == "gguf_f16" or (name == "safetensors" and config.dtype != "float32")
    return ROUNDED if rounded else "none"


def write(
    formats: Sequence[str],
    config: ExportConfig,
    inputs: Mapping[str, Artifact],
    grid: str | None,
    codec: Codec,
    out_dir: Path,
    ctx: RunContext,
) -> Iterator[str]:
    """Writes the formats, naming each when it is there. Raises `StageError` when one cannot hold this model.

    After quantisation-aware training a format that stores its grid is made from the weights before rounding, as the
    training rounded them; every other from the rounded weights, which are the model that was trained.
    """
    base, policy = inputs["base"], newest(inputs, "ppo")
    if "adapter" in formats:
        folder = folder_of("adapter", out_dir)
        folder.mkdir()
        checkpoints.save_adapter_beside_base(base, policy, folder, ctx.device)
        codec.tokenizer.save_pretrained(folder)
        yield "adapter"
    merged = [name for name in formats if name != "adapter"]
    if not merged:
        return
    model = checkpoints.merged_policy(base, policy, ctx.device)
    model.generation_config.eos_token_id = sorted(codec.stop_ids)
    model.generation_config.pad_token_id = codec.pad_id
    for name in merged:
        if name in checkpoints.BLOCKS:
            checkpoints.check(model, name)
        elif name.startswith("gguf"):
            gguf_file.check(model)
    temperature = inputs["eval"].json("eval.json")["settings"]["temperature"]
    on_grid = [name for name in merged if grid is not None and GRIDS.get(name) == grid]
    # safetensors last, since the model may then be rounded.
    others = sorted(set(merged) - set(on_grid), key=lambda name: (name == "safetensors", formats.index(name)))
    for group in (on_grid, others):
        if group is others:
            qat.settle(model)
        source = ctx.state_dir / ("rounded" if group is others else "latent")
        if any(name in checkpoints.BLOCKS for name in group):
            model.save_pretrained(source)
        for name in group:
            _write(name, config, model, source, codec, temperature, out_dir, ctx)
            yield name


def _write(
    name: str,
    config: ExportConfig,
    model: Any,
    source: Path,
    codec: Codec,
    temperature: float,
    out_dir: Path,
    ctx: RunContext,
) -> None:
    """One format of the merged model, which lies as a float32 checkpoint in `source`, where that is needed."""
    folder = folder_of(name, out_dir)
    folder.mkdir(exist_ok=True)
    if name.startswith("gguf"):
        path, kind = gguf_path(name, out_dir), name.removeprefix("gguf_")
        with ctx.progress(name, total=sum(1 for _ in gguf_file.tensors(model))) as bar:
            gguf_file.write(model, codec, path, kind, name=ctx.recipe_dir.name, on_tensor=bar.advance)
        (folder / "Modelfile").write_text(modelfile(codec, path.name, temperature), encoding="utf-8")
        return
    if name == "nf4":
        checkpoints.save_nf4(source, folder, config.dtype, ctx.device)
    elif name in checkpoints.TORCHAO:
        checkpoints.save_torchao(source, folder, name, config.dtype, ctx.device)
    else:
        model.to(getattr(torch, config.dtype)).save_pretrained(folder)
    codec.tokenizer.save_pretrained(folder)


def folder_of(name: str, out_dir: Path) -> Path:
    """Where a format lies: safetensors at the top, every other in a folder of its name."""
    return out_dir if name == "safetensors" else out_dir / name


def gguf_path(name: str, out_dir: Path) -> Path:
    return folder_of(name, out_dir) / f"model-{name.removeprefix('gguf_')}.gguf"


def reload(name: str, base: Artifact, out_dir: Path, device: str) -> Any:
    """A written format as its users load it."""
    if name == "adapter":
        return checkpoints.reload_adapter(folder_of(name, out_dir), base, device)
    if name.startswith("gguf"):
        return gguf_file.reload(gguf_path(name, out_dir), device)
    return checkpoints.reload(folder_of(name, out_dir), device)


def _check(name: str, config: ExportConfig, done: str, found: Measures) -> None:
    """A file that is the policy, by `change`, must say what the policy says but for rounding, or `StageError`."""
    if done not in ("none", ROUNDED, ON_GRID):
        return
    precision = "float16" if name in ("gguf_f16", "gguf_q8_0", "gguf_q4_0") else config.dtype
    if name in ("adapter", "gguf_f32"):
        precision = "float32"
    if not found["kl_per_token"] <= TOLERANCE[precision]:
        raise StageError(
            f"the {name} file is not the policy: KL {found['kl_per_token']:.3g} nats a token",
            mend="export in float32 (export.dtype), or report this",
        )


def _files(name: str, out_dir: Path) -> dict[str, Any]:
    """Names and bytes of a format's files; at the top, of those that are in no folder."""
    folder = folder_of(name, out_dir)
    files = folder.iterdir() if folder == out_dir else folder.rglob("*")
    sizes = {file.relative_to(out_dir).as_posix(): file.stat().st_size for file in files if file.is_file()}
    return {"files": sorted(sizes), "bytes": sum(sizes.values())}


def _flat(rows: list[dict[str, Any]], trained: Measures) -> Metrics:
    flat: Metrics = {
        "formats": ", ".join(row["format"] for row in rows),
        "bytes": sum(row["bytes"] for row in rows),
    }
    flat |= {f"policy/{key}": value for key, value in trained.items() if value is not None}
    for row in rows:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
        flat |= {f"{row['format']}/{key}": value for key, value in numbers.items()}
    return flat
