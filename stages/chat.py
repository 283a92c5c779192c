"""Chat in the terminal with one or more models of a run, side by side."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Sequence

from rich.columns import Columns
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from data.tables.messages import with_system
from pipeline import invocation
from pipeline.engine import registry
from pipeline.engine.plan import RunSummary
from pipeline.engine.rounds import parse, step_name
from pipeline.errors import StageError
from pipeline.wording import listing

SPEAKERS = ("base", "sft", "ppo", "dpo", "raft")
"""The stages whose result is a language model."""
QUIT = ("", "exit", "quit", "/exit", "/quit")
HELP = "Enter sends, /clear starts over, exit or an empty line quits, /help shows this."


def choose_models(summary: RunSummary, names: Sequence[str]) -> list[str]:
    """Checks names of models, such as `ppo` (of the last round) and `ppo-1`, before anything is loaded.

    Raises `StageError` with the known names if one is unknown, or with the finished ones if one is not finished.
    """
    steps = _speakers(summary)
    finished = [name for name in steps if name in summary.stages]
    for name in names:
        if step_name(*parse(name)) not in steps:
            near = difflib.get_close_matches(name, steps, n=1)
            raise StageError(
                f"there is no model called {name}",
                hint=f"{f'did you mean {near[0]}? ' if near else ''}this recipe's models are {listing(steps)}",
            )
        try:
            summary.need(name)
        except StageError as error:
            if finished:
                error.hint += f", or chat with a finished model: `{invocation.command('chat', *finished)}`"
            raise
    return list(names)


def _speakers(summary: RunSummary) -> list[str]:
    return [name for name in registry.steps(summary.loaded.recipe) if parse(name)[0] in SPEAKERS]


def finished_models(summary: RunSummary) -> list[str]:
    """The names of the run's finished models, in the order of training. In a run of several rounds, `ppo` is the
    policy of the last one, and `ppo-1` that of the first. Raises `StageError` when none is finished."""
    finished = [name for name in _speakers(summary) if name in summary.stages]
    if not finished:
        summary.need("base")
    rounds = summary.loaded.recipe.rounds
    names = []
    for name in finished:
        stage, number = parse(name)
        repeats = registry.STAGES[stage].repeats and rounds > 1
        names.append(stage if not repeats or number == rounds else f"{stage}-{number}")
    return names


def notice(count: int) -> str:
    """What the user is told about the first turns of a conversation that were left out."""
    return f"the first {count} turns no longer fit into the context and are left out"


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
    """Loads `models` (see `choose_models`), reads lines, and prints each model's answer. Each model has a separate
    conversation.

    Args:
        summary: the recipe's finished stages.
        temperature, top_k, top_p, max_new_tokens: as in `SamplingParams`.
    """
    console = Console(highlight=False)
    # Importing torch takes as long as loading a small model.
    console.print(f"loading {listing(list(models))} ...", style="dim")
    import torch

    from pipeline.config.checkpoint import context_length
    from stages.models.adapters import load_actor
    from stages.models.text import load_codec
    from stages.sampling.history import fitted
    from stages.sampling.sampler import SamplingParams, sampler_of

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

    lengths = [n for a in actors.values() for n in (a.passes.longest, context_length(a.lm.config.to_dict()))]
    known = [int(length) for length in lengths if length is not None and length != float("inf")]
    limit = min(known) - max_new_tokens if known else None
    system = summary.loaded.recipe.data.system

    def fit(history: list[dict[str, str]]) -> tuple[list[dict[str, str]], int] | None:
        kept, left_out = fitted(with_system(history, system), codec.prompt, limit)
        return None if limit is not None and len(codec.prompt(kept)) > limit else (kept, left_out)

    def answer(name: str, history: list[dict[str, str]]) -> str:
        episodes = sampler.sample(actors[name], [codec.prompt(history)], params, torch.default_generator)
        return codec.decode(episodes.responses[0])

    converse(console, models, answer, fit)


def converse(
    console: Console,
    models: Sequence[str],
    answer: Callable[[str, list[dict[str, str]]], str],
    fit: Callable[[list[dict[str, str]]], tuple[list[dict[str, str]], int] | None] = lambda history: (history, 0),
) -> None:
    """The conversation: until the user quits, reads a line and prints `answer(model, history)` of each model.

    Args:
        fit: returns the part of a conversation that fits into the context, and how many of its first turns were
            left out; None if the last turn alone does not fit.
    """
    console.print(HELP, style="dim")
    histories: dict[str, list[dict[str, str]]] = {name: [] for name in models}
    left_out: dict[str, int] = {}
    while True:
        try:
            line = console.input("[bold]you[/bold]> ").strip()
        except (EOFError, KeyboardInterrupt):
            console.print()
            return
        if line in QUIT:
            return
        if line == "/clear":
            histories, left_out = {name: [] for name in models}, {}
            console.print("new conversation", style="dim")
            continue
        if line == "/help":
            console.print(HELP, style="dim")
            continue
        if line.startswith("/") and " " not in line:
            console.print(f"there is no {line}. {HELP}", style="dim")
            continue
        panels = []
        for name, history in histories.items():
            history.append({"role": "user", "content": line})
            fitting = fit(list(history))
            if fitting is None:
                history.pop()
                console.print(f"{name}: this message alone is longer than the context", style="dim")
                continue
            kept, count = fitting
            if count > left_out.get(name, 0):
                left_out[name] = count
                console.print(f"{name}: {notice(count)}", style="dim")
            history.append({"role": "assistant", "content": answer(name, kept)})
            panels.append(Panel(Text(history[-1]["content"]), title=name))
        console.print(Columns(panels, equal=True, expand=True))
