"""Talk to the models of a run, one or two side by side, from the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from stages.models.adapters import load_actor
from stages.models.text import load_codec
from stages.sampling.sampler import generate


def chat(
    summary: Any, models: Sequence[str], *, device: str, temperature: float = 1.0, max_new_tokens: int = 128
) -> None:
    """Reads lines until end of input, answers with each of `models` (base, sft or ppo).

    Each model keeps a conversation of its own. `/clear` forgets it; an empty line or end of input leaves.

    Args:
        summary: the runner's summary of a recipe; raises `StageError` for a stage that is not finished.
        temperature: 0 takes the most likely token.
        max_new_tokens: longest answer in tokens.
    """
    base = summary.need("base").artifact
    codec = load_codec(base)
    speakers = {
        name: load_actor(base, None if name == "base" else summary.need(name).artifact, device) for name in models
    }
    console = Console(highlight=False)
    console.print("An empty line leaves, /clear starts anew.", style="dim")
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
        for name, actor in speakers.items():
            histories[name].append({"role": "user", "content": line})
            ids = codec.prompt(histories[name])
            [response] = generate(
                actor,
                [ids],
                torch.rand((1, max_new_tokens)),
                temperature=temperature,
                stop_ids=codec.stop_ids,
                pad_id=codec.pad_id,
            )
            answer = codec.decode(response)
            histories[name].append({"role": "assistant", "content": answer})
            panels.append(Panel(Text(answer), title=name))
        console.print(Columns(panels, equal=True, expand=True))
