"""The columns of a table without rankings: demonstrations, prompts, or running text."""

from __future__ import annotations

from data.tables import suggest
from data.tables.guess.families import COMPLETION_WORDS, VERDICT_WORDS
from data.tables.guess.guess import (
    DEMONSTRATIONS,
    FORMATS_PAGE,
    PROMPTS,
    TEXT,
    Guess,
    Open,
    decided,
    finish,
    is_tree,
    no_column,
    quoted_names,
)
from data.tables.guess.orders import has_labels
from data.tables.guess.sample import Sample, named
from pipeline.errors import DataError


def demonstrations(sample: Sample) -> Guess:
    """The columns of a table of demonstrations. Raises `DataError` if none can be the prompt, or the answer."""
    guess = Guess(table=DEMONSTRATIONS)
    if any(is_tree(row.get("prompt")) for row in sample.rows):
        guess.columns["prompt"] = "prompt"
        guess.notes.append("trees of replies: the best reply to each message is the demonstration")
        return guess
    whole = [column for column in sample.columns if sample.holds_conversations(column, "assistant")]
    answers = [column for column in named("completion", sample.columns) if column not in whole] or [
        column
        for column in sample.texts(whole)
        if (words := set(suggest.words_of(column))) & COMPLETION_WORDS and not words & {"id", "ids"}
    ]
    if whole and not answers:
        guess.choose("messages", [column for column in whole if column in named("messages", whole)] or whole)
        guess.why["messages"] = "whole conversations that end with the assistant's turn"
        return finish(guess, sample)
    texts = sample.texts()
    guess.choose("prompt", [column for column in named("prompt", texts) if column not in answers])
    guess.choose("completion", [column for column in answers if column in texts and column not in guess.used()])
    for role, other in (("prompt", "completion"), ("completion", "prompt")):
        free = [column for column in texts if column not in guess.used()]
        rest = [column for column in free if any(" " in str(cell) for cell in sample.cells(column))] or free
        if not decided(guess, role) and other in guess.columns and rest:
            guess.choose_rest(role, rest)
    for role in ("prompt", "completion"):
        if not decided(guess, role):
            raise no_column(sample, role)
    for column in sample.columns:
        if (
            column not in guess.used()
            and set(suggest.words_of(column)) & VERDICT_WORDS
            and has_labels(sample, [column])
        ):
            labels = sorted({str(cell).strip() for cell in sample.cells(column)})
            guess.notes.append(
                f"column {column} has the values {suggest.listed(labels, 4)}: if they mark bad answers, only: "
                f"{{{quoted_names(column)}: VALUE}} reads the good ones alone"
            )
    return finish(guess, sample)


def prompts_or_text(sample: Sample) -> Guess:
    """A table with one column of text: prompts, running text, or one of the two. Raises `DataError` for others."""
    texts = sample.texts()
    prompts = [column for column in named("prompt", texts) if suggest.is_called("prompt", column)]
    prompts = prompts or [column for column in texts if sample.holds_conversations(column, "user")]
    running = [column for column in texts if suggest.is_called("text", column)]
    for table, role, columns in ((PROMPTS, "prompt", prompts), (TEXT, "text", running)):
        if len(columns) == 1:
            return finish(Guess(table=table, columns={role: columns[0]}), sample)
    if len(texts) != 1:
        raise DataError(
            "the table looks like neither rankings, nor demonstrations, nor prompts, nor text",
            where=sample.path,
            hint=f"its columns are {suggest.listed(sample.columns)}; {FORMATS_PAGE} has an example of each format",
        )
    [column] = texts
    guess = Guess(table=PROMPTS, columns={"prompt": column})
    choices = [
        f"{table}: {{path: {sample.path}, columns: {{{role}: {quoted_names(column)}}}}}"
        for table, role in ((PROMPTS, "prompt"), (TEXT, "text"))
    ]
    why = f"the only column of text, {column}, may hold prompts or running text"
    guess.open.append(Open(f"prompt or text: {column}", why, choices=tuple(choices)))
    return finish(guess, sample)
