"""The exported files as they were measured after writing: rows for the report, and a table for the model card."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.engine.plan import RunSummary
from pipeline.files import readable_bytes
from pipeline.language import recorded, translate
from pipeline.wording import DASH, fixed, number, percent, sentences, span
from stages.export.artifact import ExportedFile, ExportResult, Measured

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
    "Weights",
    "Size",
    "KL from the policy",
    "Same top-1 token",
    "Perplexity",
    "Reward",
    "Fact errors",
)


@dataclass(frozen=True)
class Row:
    """A file's cells under `HEADER`. `interval` belongs to the fact errors."""

    cells: tuple[str, ...]
    interval: str = ""


def read(run: RunSummary) -> ExportResult | None:
    """What the `export` stage measured; None if it is not finished."""
    export = run.newest("export")
    return None if export is None else ExportResult.read(export.artifact)


def rows(export: ExportResult | None) -> list[Row]:
    """The trained policy, then each file."""
    if export is None:
        return []
    return [_row(export.policy), *(_row(file) for file in export.formats)]


def _row(measured: Measured) -> Row:
    if isinstance(measured, ExportedFile):
        first = (
            translate(LABELS[measured.format]),
            recorded(measured.change) if measured.change != "none" else translate("as trained"),
            readable_bytes(measured.bytes),
            small(measured.kl),
            percent(measured.top_1, 1),
        )
    else:
        first = (translate("The policy itself"), translate("as trained"), DASH, DASH, DASH)
    interval = ""
    if measured.slot_error_low is not None and measured.slot_error_high is not None:
        interval = span(measured.slot_error_low, measured.slot_error_high, 1)
    return Row(
        (
            *first,
            DASH if measured.perplexity is None else number(measured.perplexity, 4),
            fixed(measured.score),
            percent(measured.slot_error_rate, 1),
        ),
        interval,
    )


def small(kl: float) -> str:
    """A KL in nats. Below a thousandth only the bound is given."""
    return "< 0.001" if kl < 0.001 else fixed(kl, 3)


def explanation(export: ExportResult) -> str:
    """What the columns mean."""
    text = translate(
        "Each file was read back as users read it, and measured on {prompts:,} held-out prompts. KL, in nats per "
        "response, is of the file from the trained policy, exact over the next token along the policy’s own "
        "answers. Perplexity is on held-out demonstrations. Reward and fact errors are of answers sampled from the "
        "file, with the same random numbers for every file.",
        prompts=export.prompts,
    )
    if not export.judge:
        return text
    return sentences(text, translate("Fact errors are counted by the judge {judge}.", judge=export.judge))


def markdown(export: ExportResult | None) -> str:
    """The table as a section of a model card; empty if nothing was measured."""
    if export is None:
        return ""
    body = [
        " | ".join([*row.cells[:-1], f"{row.cells[-1]} ({row.interval})" if row.interval else row.cells[-1]])
        for row in rows(export)
    ]
    head = f"| {' | '.join(HEADER)} |\n|{'---|' * len(HEADER)}"
    return f"## Files\n\n{explanation(export)}\n\n{head}\n" + "\n".join(f"| {line} |" for line in body)
