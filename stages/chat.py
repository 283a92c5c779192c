"""Chat in the terminal with one or more models of a run, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from pipeline.engine.plan import RunSummary
from stages.models.adapters import load_actor
from stages.models.text import load_codec
from stages.sampling.sampler import SamplingParams, sampler_of


def chat(
    summary: RunSummary,
    models: Sequence[str],
    *,
    device: str,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 128,
) -> None:
    """Reads lines, and prints the answer of each of `models` (base, sft or ppo).

    Each model has a separate conversation. `/clear` resets them; an empty line or end of input quits.

    Args:
        summary: the recipe's finished stages.
        temperature, top_k, top_p, max_new_tokens: as in `SamplingParams`.

    Raises `StageError` if a model's stage is not finished.
    """
    base = summary.need("base").artifact
    codec = load_codec(base)
    sampler = sampler_of(codec)
    params = SamplingParams(
        max_new_tokens=max_new_tokens,
        stop_ids=codec.stop_ids,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    actors = {
        name: load_actor(base, None if name == "base" else summary.need(name).artifact, device) for name in models
    }
    console = Console(highlight=False)
    console.print("An empty line quits, /clear resets the conversation.", style="dim")
    histories: dict[str, list[dict[str, str]]] = {name: [] for name in models}
    while True:
        try:
            line = console.input("[bold]you[/bold]> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if not line:
            return
        if line == "/clear":
            histories = {name: [] for name in models}
            continue
        panels = []
        for name, actor in actors.items():
            histories[name].append({"role": "user", "content": line})
            episodes = sampler.sample(actor, [codec.prompt(histories[name])], params, torch.default_generator)
            answer = codec.decode(episodes.responses[0])
            histories[name].append({"role": "assistant", "content": answer})
            panels.append(Panel(Text(answer), title=name))
        console.print(Columns(panels, equal=True, expand=True))
