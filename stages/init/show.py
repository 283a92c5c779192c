"""Shows how a table is understood: its mapping, and its first rows as the readers return them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from data.annotators.agreement import agreement
from data.schema import Demonstration, Message, Prompt, Ranking
from data.tables.columns import ANONYMOUS
from data.tables.guess.guess import Guess
from data.tables.guess.section import flow
from data.tables.suggest import count_of

ROWS = 3
WIDTH = 88
"""Characters of a text that are shown."""


def mapping(guess: Guess) -> Iterator[str]:
    """The columns by our names, why, and those that are not used."""
    for ours, value in guess.columns.items():
        theirs = short(value if isinstance(value, str) else ", ".join(value))
        why = f"  ({guess.why[ours]})" if ours in guess.why else ""
        yield f"  {ours:13} {theirs}{why}"
    for name, value in guess.values.items():
        why = f"  ({guess.why[name]})" if name in guess.why else ""
        yield f"  {name:13} {short(flow(value))}{why}"
    if guess.unused:
        yield f"  {'not used':13} {', '.join(guess.unused)}"
    for note in guess.notes:
        yield f"  note: {note}"
    for item in guess.open:
        yield f"  open: {item.why}" + (". One of:" if item.choices else "")
        yield from (f"    {line}" for line in item.choices)


def demonstrations(rows: Sequence[Demonstration]) -> Iterator[str]:
    """The first demonstrations."""
    for row in rows[:ROWS]:
        yield f"    prompt  {prompt_text(row.prompt)}"
        yield f"    answer  {short(row.completion)}"


def rankings(rows: Sequence[Ranking]) -> Iterator[str]:
    """The first ranking of each of the first prompts, with its answers from best to worst."""
    first = {repr(row.prompt): row for row in reversed(rows)}
    for row in [row for row in rows if row is first[repr(row.prompt)]][:ROWS]:
        who = "" if row.annotator == ANONYMOUS else f"   (ranked by {row.annotator})"
        yield f"    prompt  {prompt_text(row.prompt)}{who}"
        for rank, place in sorted((rank, place) for place, rank in enumerate(row.ranks)):
            yield f"      {rank}. {short(row.completions[place])}"


def rows(parsed: Sequence[Any]) -> Iterator[str]:
    """The first of what the rows of a table become: rankings, demonstrations, prompts or texts."""
    for item in parsed[:ROWS]:
        if isinstance(item, Ranking):
            yield from rankings([item])
        elif isinstance(item, Demonstration):
            yield from demonstrations([item])
        elif isinstance(item, Prompt):
            yield f"    prompt  {prompt_text(item.prompt)}"
        else:
            yield f"    text    {short(' '.join(item))}"


def ranked(rows: Sequence[Ranking]) -> str:
    """How many rankings there are, of how many answers, by whom."""
    counts = sorted({len(row.completions) for row in rows})
    answers = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    prompts = len({repr(row.prompt) for row in rows})
    annotators = {row.annotator for row in rows} - {ANONYMOUS}
    people = f", by {len(annotators)} annotator" + "s" * (len(annotators) > 1) if annotators else ""
    return f"{len(rows):,} rankings of {answers} answers to {prompts:,} prompts{people}"


def overlap(rows: Sequence[Ranking], names_annotators: bool) -> str:
    """How far annotators agree, or why that is not known."""
    if not names_annotators:
        return "no column names who ranked: their agreement, the ceiling for a reward model, cannot be measured"
    pairs = agreement(list(rows)).pairwise
    if pairs.value is None:
        return "no two annotators ranked the same answers: how far they agree cannot be measured"
    return f"annotators agree on {pairs.value:.0%} of {pairs.pairs:,} pairs that both ordered"


def prompt_text(prompt: Sequence[Message]) -> str:
    """The last turn, and how many are before it."""
    before = f"({count_of(len(prompt) - 1, 'turns')} before) " if len(prompt) > 1 else ""
    return before + short(prompt[-1]["content"])


def short(text: str) -> str:
    """One line of a text."""
    line = " ".join(text.split())
    return line if len(line) <= WIDTH else f"{line[: WIDTH - 3]}..."
