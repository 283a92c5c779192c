"""The table in docs/memory.md of which model fits on which card. `python -m pipeline.memory.cards` rewrites it.

Each model of recipes/models/ is planned for each card of recipes/hardware/gpu-*.yaml. Where the card's recipe does
not fit, the changes that `advice` proposes are applied. Needs neither a network nor a GPU.
"""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

from pipeline.config import shipped
from pipeline.config.load import load_recipe
from pipeline.config.recipe import Recipe
from pipeline.files import readable_bytes
from pipeline.memory.advice import propose, with_values
from pipeline.memory.plan import MemoryPlan, predict, resolve

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs/memory.md"
BEGIN, END = "<!-- cards -->\n", "<!-- /cards -->\n"

WORK = """\
name: cards
data: {demonstrations: {path: demonstrations.jsonl}, rankings: {path: pairs.jsonl, format: pairs}}
rank: {source: data}
sft: {max_length: 512}
reward: {max_length: 512, pack_tokens: 512}
ppo: {max_prompt_length: 256, response_length: 128, batch_size: 64}
eval: {max_prompt_length: 256, response_length: 128}
"""
"""The task that is planned: prompts of 256 tokens, responses of 128, LoRA with r = 16, a value head on the
trunk."""


def table() -> str:
    """The table as Markdown: one row per model, one column per card."""
    cards = sorted(
        (shipped.FOLDER / "hardware").glob("gpu-*.yaml"), key=lambda file: int(re.sub(r"\D", "", file.stem))
    )
    models = sorted((shipped.FOLDER / "models").glob("*.yaml"), key=_size)
    lines = [
        "| | " + " | ".join(card.stem for card in cards) + " |",
        "| --- |" + " --- |" * len(cards),
        *(f"| {model.stem} | " + " | ".join(_cell(model, card) for card in cards) + " |" for model in models),
    ]
    return "\n".join(lines) + "\n"


def _load(model: Path, card: Path | None = None) -> Recipe:
    with tempfile.TemporaryDirectory() as folder:
        recipe = Path(folder) / "cards.yaml"
        parts = ", ".join(str(part) for part in (model, card) if part)
        recipe.write_text(f"extends: [{parts}]\n{WORK}")
        return load_recipe(recipe).recipe


def _size(model: Path) -> int:
    return predict(_load(model), device="cuda").model.architecture.parameters


def _cell(model: Path, card: Path) -> str:
    """The peak, its stage, and the settings that make it fit; or the smallest need, if nothing fits."""
    recipe = _load(model, card)
    plan = predict(recipe)
    for proposal in propose(resolve(recipe, plan), plan):
        recipe = with_values(recipe, proposal.values)
    recipe = resolve(recipe, predict(recipe))
    plan = predict(recipe)
    stage, need = _largest(plan)
    held = "nf4" if recipe.base.quantization == "nf4" else "16 bits"
    if large := plan.too_large():
        return f"**no**: {', '.join(large)} (with {held}, {readable_bytes(need)})"
    shorter = [
        f"{name} {getattr(getattr(recipe, name), value)} tokens"
        for name, value in (("sft", "max_length"), ("reward", "max_length"), ("ppo", "response_length"))
        if getattr(getattr(recipe, name), value) < getattr(getattr(_load(model), name), value)
    ]
    needs = [
        held,
        f"micro-batches {plan.micro['sft']}/{plan.micro['reward']}/{plan.micro['ppo']}",
        *(["checkpointing"] if recipe.ppo.gradient_checkpointing else []),
        *(["export.dtype bfloat16"] if recipe.export.dtype == "bfloat16" else []),
        *shorter,
    ]
    return f"{readable_bytes(need)} in {stage}: {', '.join(needs)}"


def _largest(plan: MemoryPlan) -> tuple[str, float]:
    stage = max(plan.stages, key=lambda name: plan.stages[name].total)
    return stage, plan.stages[stage].total


def page(text: str) -> str:
    """The page with the table written anew."""
    before, rest = text.split(BEGIN)
    return before + BEGIN + table() + END + rest.split(END)[1]


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
