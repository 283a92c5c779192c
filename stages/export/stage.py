"""The `export` stage: writes the trained policy in the formats of `export.formats`, and evaluates each file.

Writes the files (`stages/export/formats.py`) and `export.json`, the metrics of each file and of the policy itself.
Each file is loaded as a user would load it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from pipeline.config.export import ExportConfig
from pipeline.engine.rounds import newest
from pipeline.engine.stage import Artifact, Metrics, RunContext
from pipeline.errors import StageError
from stages.eval.artifact import Evaluation
from stages.export.artifact import FILE
from stages.export.formats import GRIDS, QUANTISED, Files
from stages.export.measure import Measures, ReferenceMetrics
from stages.models.actor import Actor
from stages.models.adapters import causal_lm, load_actor
from stages.models.loading import dtype_of
from stages.models.precision import precision_of
from stages.models.text import load_codec

ON_GRID, ROUNDED = "on the grid it was trained on", "rounded to 16 bits"

TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest KL from the policy, nats per token, of a file that stores it without quantisation, by the coarser of the
precisions that policy and file compute in."""


def run(config: ExportConfig, inputs: Mapping[str, Artifact], out_dir: Path, ctx: RunContext) -> Metrics:
    base, policy = inputs["base"], newest(inputs, "ppo")
    quantization = base.json("base.json")["quantization"]
    base_format = quantization if isinstance(quantization, str) else "none"
    trained_on = quantization if isinstance(quantization, dict) else {"qat": None, "activations": "none"}
    formats = chosen(config, base_format)
    codec = load_codec(base)
    evaluation = Evaluation.read(inputs["eval"])
    assert evaluation.settings is not None
    with ctx.progress("export", total=2 * len(formats) + 1) as bar:
        files = Files(
            out_dir,
            ctx.state_dir,
            codec,
            config.dtype,
            ctx.device,
            temperature=evaluation.settings.temperature,
            name=ctx.recipe_dir.name,
            progress=ctx.progress,
        )
        for _ in files.write(formats, base, policy, trained_on["qat"]):
            bar.advance()
        reference = ReferenceMetrics.of(config, inputs, codec, ctx)
        actor = load_actor(base, policy, ctx.device)
        computed = precision_of(actor.lm)
        with ctx.progress("export: the policy", total=reference.steps(compared=False)) as measuring:
            answers = reference.answers(actor, measuring.advance)
            trained = reference.measure(actor, answers, measuring.advance)
        bar.advance()
        rows = []
        for name in formats:
            model = files.reload(name, base)
            other = Actor(causal_lm(model))
            with ctx.progress(f"export: {name}", total=reference.steps(compared=True)) as measuring:
                metrics = reference.divergence(actor, other, answers, measuring.advance)
                metrics |= reference.measure(other, reference.answers(other, measuring.advance), measuring.advance)
            difference = change(name, config, base_format, trained_on["qat"])
            if trained_on["activations"] == "none":
                _check(name, config, difference, metrics, computed)
            sizes = files.sizes(name)
            rows.append(
                {
                    "format": name,
                    "change": difference,
                    "files": sorted(sizes),
                    "bytes": sum(sizes.values()),
                    **metrics,
                }
            )
            bar.advance(kl=metrics["kl"])
            del model, other
    result = {
        "prompts": len(reference.prompts),
        "judge": None if evaluation.judge is None else Path(evaluation.judge).name,
        "kl": "KL(policy || file), exact over the next token along the policy's sampled answers",
        "base_quantization": quantization,
        "policy": trained,
        "formats": rows,
    }
    (out_dir / FILE).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return _flat(rows, trained)


def chosen(config: ExportConfig, base_format: str) -> list[str]:
    """The formats to write. The default for a quantised base is the adapter: merging would change the policy."""
    if config.formats is not None:
        return list(config.formats)
    return ["safetensors"] if base_format == "none" else ["adapter"]


def change(name: str, config: ExportConfig, base_format: str, grid: str | None) -> str:
    """How a format changes the trained model, in words; `none` if the file stores it exactly.

    Args:
        base_format: `nf4` or `int8` if the base was quantised so in training, else `none`.
        grid: the grid of quantisation-aware training, if any.
    """
    if name == "adapter":
        return "none"
    if base_format != "none":
        return f"merged with its {base_format} base{' and quantised again' if name in QUANTISED else ''}"
    if name in QUANTISED:
        return ON_GRID if grid is not None and GRIDS.get(name) == grid else "quantised after training"
    rounded = name == "gguf_f16" or (name == "safetensors" and config.dtype != "float32")
    return ROUNDED if rounded else "none"


def _check(name: str, config: ExportConfig, difference: str, metrics: Measures, computed: torch.dtype) -> None:
    """Raises `StageError` if a file that should equal the policy, by `change`, differs by more than rounding.

    Args:
        computed: the precision that the policy computes in.
    """
    if difference not in ("none", ROUNDED, ON_GRID):
        return
    stored = "float16" if name.startswith("gguf") else config.dtype
    if name in ("adapter", "gguf_f32"):
        stored = "float32"
    tolerance = max(TOLERANCE[computed], TOLERANCE[dtype_of(stored, "cpu")])
    if not metrics["kl_per_token"] <= tolerance:
        raise StageError(
            f"the {name} file is not the policy: KL {metrics['kl_per_token']:.3g} nats per token, more than "
            f"the {tolerance:g} that rounding explains",
            hint="set export.dtype: float32; if that does not help, report this with the recipe",
        )


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
