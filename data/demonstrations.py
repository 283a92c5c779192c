"""Demonstrations and prompts from a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from data import formats
from data.columns import Columns
from data.messages import as_completion, as_prompt
from data.schema import Demonstration, Message, Prompt
from data.sources import Dropped, Row, read_table
from data.splits import split_of_prompt
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import RecipeError

COLUMNS = ("prompt", "completion", "messages", "text")


def read_demonstrations(
    config: TableConfig, eval_fraction: float, dropped: Dropped, say: Callable[[str], None] | None = None
) -> Iterator[Demonstration]:
    """Prompts with their completions: columns `prompt` and `completion`, or `messages` with both; or trees of
    ranked replies (OASST), of which the best reply to each message is taken.

    Rows with an empty prompt or completion are left out and noted in `dropped`.
    """
    for row, columns in _rows(config, dropped, say):
        for prompt, completion in _prompts_and_completions(row, columns):
            if not prompt:
                dropped.add("empty prompt", row.number)
            elif not completion.strip():
                dropped.add("empty completion", row.number)
            else:
                yield Demonstration(prompt, completion, split_of_prompt(prompt, eval_fraction), row.where)


def read_prompts(
    config: TableConfig, eval_fraction: float, dropped: Dropped, say: Callable[[str], None] | None = None
) -> Iterator[Prompt]:
    """Prompts alone: column `prompt`, text or messages."""
    for row, columns in _rows(config, dropped, say):
        column = columns.get("prompt", "prompt")
        prompt = as_prompt(row[column], f"column {column!r}", row.where)
        if prompt:
            yield Prompt(prompt, split_of_prompt(prompt, eval_fraction), row.where)
        else:
            dropped.add("empty prompt", row.number)


def _rows(
    config: TableConfig, dropped: Dropped, say: Callable[[str], None] | None
) -> Iterator[tuple[Row, dict[str, str]]]:
    unknown = config.columns.keys() - set(COLUMNS)
    if unknown:
        raise RecipeError(
            f"a table has no use for a column called {min(unknown)!r}",
            where=f"columns of {config.path}",
            mend=f"on the left stands our name ({', '.join(COLUMNS)}), on the right the table's",
        )
    for row in dropped.counting(read_table(config, say)):
        yield row, config.columns


def _prompts_and_completions(row: Row, columns: dict[str, str]) -> Iterator[tuple[list[Message], str]]:
    """One pair a row; as many as a tree has messages with ranked replies."""
    if not isinstance(row.get("prompt"), dict):
        yield _prompt_and_completion(row, columns)
        return
    tree = RankingTableConfig(path=row.where, format="tree")
    for candidates in formats.tree(iter([row]), Columns(tree)):
        ranked = [answer for answer in candidates.answers if answer.score is not None]
        if ranked:
            yield candidates.prompt, max(ranked, key=lambda answer: answer.score or 0.0).text


def _prompt_and_completion(row: Row, columns: dict[str, str]) -> tuple[list[Message], str]:
    if "messages" in columns or ("messages" in row and "prompt" not in columns):
        column = columns.get("messages", "messages")
        return as_completion(row[column], f"column {column!r}", row.where)
    prompt, completion = columns.get("prompt", "prompt"), columns.get("completion", "completion")
    before, text = as_completion(row[completion], f"column {completion!r}", row.where)
    return before or as_prompt(row[prompt], f"column {prompt!r}", row.where), text
