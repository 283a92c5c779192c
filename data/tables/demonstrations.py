"""Demonstrations and prompts from a table."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from data.schema import Demonstration, Message, Prompt
from data.splits import split_of_prompt
from data.tables.columns import Columns
from data.tables.earlier import reads_messages, with_earlier_turns
from data.tables.formats import FORMATS
from data.tables.layout import arranged
from data.tables.messages import Forms, LeftOut, exchange
from data.tables.sources import Dropped, Row, read_table
from pipeline.config.data import PromptTableConfig, RankingTableConfig, TableConfig
from pipeline.config.formats import text_table
from pipeline.config.table_files import shown
from pipeline.errors import DataError, RecipeError


def read_demonstrations(
    config: TableConfig,
    eval_fraction: float,
    dropped: Dropped,
    say: Callable[[str], None] | None = None,
    rows: Iterable[Row] | None = None,
) -> Iterator[Demonstration]:
    """Prompts with their completions: columns `prompt` and `completion`, or `messages` with both; or trees of
    ranked replies (OASST), with the best reply to each message.

    Rows with an empty prompt or completion, or whose conversation cannot be used, are counted in `dropped`.
    `rows` are the table's, where they were read before.
    """
    forms = Forms()
    config, read = _rows("data.demonstrations", config, dropped, say, rows)
    for row in read:
        try:
            pairs = list(_prompts_and_completions(row, config, forms, dropped))
        except LeftOut as why:
            dropped.add(why.reason, row.number, why.hint)
            continue
        for prompt, completion in pairs:
            if not prompt:
                dropped.add("empty prompt", row.number)
            elif not completion.strip():
                dropped.add("empty completion", row.number)
            else:
                yield Demonstration(prompt, completion, split_of_prompt(prompt, eval_fraction), row.where)
    forms.tell(shown(config.path), say)


def read_prompts(
    config: TableConfig,
    eval_fraction: float,
    dropped: Dropped,
    say: Callable[[str], None] | None = None,
    rows: Iterable[Row] | None = None,
    name: str = "data.prompts",
) -> Iterator[Prompt]:
    """Prompts without completions: column `prompt`, text or messages. `rows` as in `read_demonstrations`; `name` is
    the table's dotted path in the recipe."""
    forms, any_prompt = Forms(), False
    kept = config.metadata if isinstance(config, PromptTableConfig) else []
    config, read = _rows(name, config, dropped, say, rows)
    column = config.columns.get("prompt", "prompt")
    for row in read:
        try:
            prompt, _ = _exchange(row, config, column, [], forms)
        except LeftOut as why:
            dropped.add(why.reason, row.number, why.hint)
            continue
        if prompt:
            any_prompt = True
            metadata = {name: _json_value(row[name]) for name in kept}
            yield Prompt(prompt, split_of_prompt(prompt, eval_fraction), row.where, metadata)
        else:
            dropped.add("empty prompt", row.number)
    if not any_prompt:
        raise DataError(
            f"no prompt is left: {dropped.reasons()}",
            where=shown(config.path),
            hint=dropped.hint() or "write prompts as text, or as conversations that end with the user's turn",
        )
    forms.tell(shown(config.path), say)


def _json_value(value: Any) -> Any:
    """A cell as JSON; as text where JSON has no such value, such as a date."""
    return json.loads(json.dumps(value, default=str))


def _rows(
    table: str,
    config: TableConfig,
    dropped: Dropped,
    say: Callable[[str], None] | None,
    rows: Iterable[Row] | None,
) -> tuple[TableConfig, Iterator[Row]]:
    """The rows, counted, and the table with the columns to look up in them (`data.tables.layout`)."""
    form = text_table(table)
    for column, what, hint in form.problems(config.columns):
        raise RecipeError(what, where=f"{table}.columns.{column} ({shown(config.path)})", hint=hint)
    counted = dropped.counting(read_table(config, say) if rows is None else rows)
    config, read = arranged(config, counted, dropped)
    return with_earlier_turns(config, read, dropped, messages=table == "data.demonstrations")


def _exchange(
    row: Row, config: TableConfig, prompt: str | None, completions: Sequence[str], forms: Forms
) -> tuple[list[Message], list[str]]:
    cell = None if prompt is None else row[prompt]
    answers = [(f"column {name!r}", row[name]) for name in completions]
    prompt_and_texts = exchange(cell, answers, row.where, text_lists=config.text_lists, what=f"column {prompt!r}")
    forms.add((cell, *(value for _, value in answers)))
    return prompt_and_texts


def _prompts_and_completions(
    row: Row, config: TableConfig, forms: Forms, dropped: Dropped
) -> Iterator[tuple[list[Message], str]]:
    """One pair per row; of a tree, one per message with ranked replies."""
    if not isinstance(row.get("prompt"), dict):
        yield _prompt_and_completion(row, config, forms)
        return
    tree = FORMATS["tree"]
    table = RankingTableConfig(path=row.where, format=tree.name)
    for candidates in tree.read(iter([row]), Columns(table, tree)):
        ranked = [answer for answer in candidates.answers if answer.score is not None]
        if ranked:
            yield candidates.prompt, max(ranked, key=lambda answer: answer.score or 0.0).text
        elif candidates.left_out or candidates.answers:
            dropped.add(candidates.left_out or "no ranked reply", row.number)


def _prompt_and_completion(row: Row, config: TableConfig, forms: Forms) -> tuple[list[Message], str]:
    """Where a row has `messages` and also a `prompt` or `completion`, they must agree."""
    columns = config.columns
    prompt, completion = columns.get("prompt", "prompt"), columns.get("completion", "completion")
    if reads_messages(columns, row):
        stated = "messages" in columns
        beside = prompt if not stated and row.has(prompt) else None
        answers = [
            columns.get("messages", "messages"),
            *([] if stated or not row.has(completion) else [completion]),
        ]
        conversation, texts = _exchange(row, config, beside, answers, forms)
        if len({text.strip() for text in texts}) > 1:
            raise DataError(
                f"columns {' and '.join(map(repr, answers))} hold different answers",
                where=row.where,
                hint="name the right one under `columns`: messages, or prompt and completion",
            )
        return conversation, texts[0]
    named = prompt if row.has(prompt) or "prompt" in columns else None
    before, [text] = _exchange(row, config, named, [completion], forms)
    if not before and not row.has(prompt):
        row[prompt]  # raises: no cell holds a prompt
    return before, text
