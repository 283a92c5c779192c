"""What comes before a prompt and has columns of its own: a system message (`columns: {system: ...}`) and earlier
turns (`columns: {history: ...}`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, TypeVar

from data.schema import Message
from data.tables.messages import MESSAGES, LeftOut, as_messages, turns
from data.tables.sources import Dropped, Row, as_text, is_empty
from data.tables.spelling import is_transcript, spelled
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.config.table_files import shown
from pipeline.errors import DataError, RecipeError

Config = TypeVar("Config", TableConfig, RankingTableConfig)


def reads_messages(columns: Mapping[str, Any], row: Row) -> bool:
    """Whether a demonstration is read from `messages`, and not from `prompt` and `completion`."""
    return "messages" in columns or ("messages" in row and not (columns.get("prompt") or columns.get("completion")))


def with_earlier_turns(
    config: Config, rows: Iterator[Row], dropped: Dropped, *, messages: bool = False
) -> tuple[Config, Iterator[Row]]:
    """The table with the columns that its reader looks up, and its rows, with the system message and earlier turns
    in the cell in which a row's conversation begins. Rows that cannot be used are counted in `dropped`.

    Args:
        messages: whether the table may have a column `messages`.

    Raises:
        RecipeError: `implicit_prompt` is set.
        DataError: a cell is malformed, or contradicts the conversation.
    """
    columns = config.columns
    if not columns.keys() & {"system", "history"}:
        return config, rows
    if isinstance(config, RankingTableConfig) and config.implicit_prompt:
        raise RecipeError(
            "`implicit_prompt` is set, and `columns` names what comes before the prompt",
            where=f"data.rankings.columns ({shown(config.path)})",
            hint="leave `system` and `history` out, or name a prompt column",
        )
    if columns.get("prompt") == "":
        config = replace(config, columns={**columns, "prompt": "prompt"})
    return config, _rows(columns, rows, dropped, messages)


def _rows(columns: Mapping[str, Any], rows: Iterable[Row], dropped: Dropped, messages: bool) -> Iterator[Row]:
    for row in rows:
        column = "messages" if messages and reads_messages(columns, row) else "prompt"
        name = str(columns.get(column, column))
        try:
            before = _before(columns, row)
            if not name:  # the conversation in the answers is the whole prompt
                yield row.with_cells({column: before})
            elif before and not row.has(name):
                yield row.with_cells({name: before})
            elif before and not is_empty(row[name]):
                conversation = turns(row[name], f"column {name!r}", row.where, "user")
                yield row.with_cells({name: _joined(before, conversation, row.where)})
            else:
                yield row
        except LeftOut as why:
            dropped.add(why.reason, row.number, why.hint)


def _before(columns: Mapping[str, Any], row: Row) -> list[Message]:
    """The system message and the earlier turns of a row, where the recipe names their columns."""
    system, history = columns.get("system"), columns.get("history")
    text = as_text(row[system], f"column {system!r}", row.where).strip() if system else ""
    messages: list[Message] = [{"role": "system", "content": text}] if text else []
    return _joined(
        messages, history_of(row[history], f"column {history!r}", row.where) if history else [], row.where
    )


def history_of(value: Any, what: str, where: str) -> list[Message]:
    """Earlier turns in a cell: a conversation, or a list of pairs, each with what the user and the assistant said.
    Text may spell either in JSON. Empty for an empty cell.

    Raises:
        LeftOut: the row cannot be used.
        DataError: the cell is malformed, or the turns do not end with the assistant's.
    """
    if is_empty(value):
        return []
    if isinstance(value, str) and not is_transcript(value):
        value = spelled(value.strip())
    if isinstance(value, list) and all(isinstance(item, list | tuple) for item in value):
        messages = [message for pair in value for message in _of_pair(pair, what, where)]
    elif isinstance(value, str):
        messages = turns(value, what, where, "user")
    elif value is None:
        raise _malformed(what, where)
    else:
        messages = as_messages(value, what, where)
    if messages and messages[-1]["role"] != "assistant":
        raise DataError(
            f"{what} ends with the turn of the {messages[-1]['role']}",
            where=where,
            hint="earlier turns end with the assistant's: the user's last turn belongs to the prompt",
        )
    return messages


def _of_pair(pair: list[Any] | tuple[Any, ...], what: str, where: str) -> list[Message]:
    if len(pair) != 2 or not all(isinstance(text, str) and text.strip() for text in pair):
        raise _malformed(what, where)
    return [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]


def _malformed(what: str, where: str) -> DataError:
    return DataError(
        f"{what} holds no earlier turns",
        where=where,
        hint=f'write [["what the user said", "what the assistant said"], ...], or {MESSAGES}; or empty the cell',
    )


def _joined(before: list[Message], conversation: list[Message], where: str) -> list[Message]:
    """What comes before a conversation, and the conversation; its system message comes first."""
    messages = [*before, *conversation]
    systems = list({m["content"].strip(): m for m in messages if m["role"] == "system"}.items())
    if len(systems) > 1:
        raise DataError(
            f"the row has two system messages: {systems[0][0]!r:.60}, {systems[1][0]!r:.60}",
            where=where,
            hint="correct the row, or leave `system` out of `columns`",
        )
    rest = [[m for m in part if m["role"] != "system"] for part in (before, conversation)]
    if all(rest) and rest[0][-1]["role"] == rest[1][0]["role"]:
        raise DataError(
            f"the history ends with the {rest[1][0]['role']}'s turn, and the prompt begins with another one",
            where=where,
            hint="correct the row: the user and the assistant take turns",
        )
    return [*(message for _, message in systems), *rest[0], *rest[1]]
