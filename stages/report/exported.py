"""The exported files, each as it was measured after it was written: rows for the report, a table for the card."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pipeline.engine.plan import RunSummary
from pipeline.files import readable_bytes
from pipeline.wording import DASH, fixed, number, percent, span

FILE = "export.json"
LABELS = {
    "safetensors": "safetensors, merged",
    "adapter": "adapter beside its base",
    "nf4": "NF4, bitsandbytes",
    **{f"torchao_int{bits}": f"int{bits} in groups of 32, torchao" for bits in (2, 3, 4, 8)},
    "gguf_f32": "GGUF F32",
    "gguf_f16": "GGUF F16",
    "gguf_q8_0": "GGUF Q8_0",
    "gguf_q4_0": "GGUF Q4_0",
}
HEADER = (
    "",
    "What was done to it",
    "Size",
    "KL from the policy",
    "Same first choice",
    "Perplexity",
    "Reward",
    "Fact errors",
)


@dataclass(frozen=True)
class Row:
    """A file's cells under `HEADER`. `interval` belongs to the fact errors."""

    cells: tuple[str, ...]
    interval: str = ""


def read(run: RunSummary) -> dict[str, Any] | None:
    """What the `export` stage measured; None when it has not."""
    export = run.newest("export")
    if export is None or not (export.artifact.path / FILE).exists():
        return None
    measured: dict[str, Any] = export.artifact.json(FILE)
    return measured


def rows(export: dict[str, Any] | None) -> list[Row]:
    """The trained policy, then each file."""
    if export is None:
        return []
    trained = {"format": None, "change": "as trained", **export["policy"]}
    return [_row(found) for found in (trained, *export["formats"])]


def _row(found: dict[str, Any]) -> Row:
    is_file = found["format"] is not None
    interval = ""
    if found.get("slot_error_rate") is not None:
        interval = span(found["slot_error_low"], found["slot_error_high"], 1)
    return Row(
        (
            LABELS[found["format"]] if is_file else "The policy itself",
            found["change"] if found["change"] != "none" else "nothing",
            readable_bytes(found["bytes"]) if is_file else DASH,
            small(found["kl"]) if is_file else DASH,
            percent(found["top_1"], 1) if is_file else DASH,
            DASH if found["perplexity"] is None else number(found["perplexity"], 4),
            fixed(found["score"]),
            percent(found.get("slot_error_rate"), 1),
        ),
        interval,
    )


def small(kl: float) -> str:
    """Nats; below a thousandth only that it is so."""
    return "< 0.001" if kl < 0.001 else fixed(kl, 3)


def explanation(export: dict[str, Any]) -> str:
    """What the columns are, in one sentence each."""
    judge = f" The judge of facts is {export['judge']}." if export["judge"] else ""
    return (
        f"Each file was read back as its users read it and measured on {export['prompts']:,} held-out prompts. KL "
        "is in nats a response, of the file from the policy that was trained, exact over the next token along the "
        "policy's own answers; perplexity is of held-out demonstrations; reward and fact errors are of answers "
        f"that the file sampled, from the same random numbers.{judge}"
    )


def markdown(export: dict[str, Any] | None) -> str:
    """The table as a section of a model card; empty when nothing was measured."""
    if export is None:
        return ""
    body = [
        " | ".join([*row.cells[:-1], f"{row.cells[-1]} ({row.interval})" if row.interval else row.cells[-1]])
        for row in rows(export)
    ]
    head = f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}"
    return f"## Files\n\n{explanation(export)}\n\n{head}\n" + "\n".join(f"| {line} |" for line in body)
