"""Text that spells something else: a transcript, lists and messages in JSON or Python, or several numbers."""

from __future__ import annotations

import ast
import io
import json
import re
import tokenize
from itertools import pairwise
from typing import Any

from data.schema import Message
from pipeline.errors import DataError

ROLES = {
    "system": "system",
    "user": "user",
    "assistant": "assistant",
    "prompter": "user",
    "human": "user",
    "gpt": "assistant",
}
"""The roles that are understood; OASST calls the user a prompter, and ShareGPT the two human and gpt."""
MESSAGE_KEYS = (("role", "content"), ("from", "value"))
"""The keys of a message: its role and its content."""

_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_SPEAKER = r"(Human|Assistant):"
SPEAKER_FIRST = re.compile(rf"\s*{_SPEAKER}")
_SYSTEM = re.compile(r"\s*System:")
_SYSTEM_FIRST = re.compile(r"\s*System:.*?\n\s*Human:", re.DOTALL)
_AFTER_BLANK_LINE = re.compile(rf"(?:\A\s*|\n[^\S\n]*\n\s*){_SPEAKER}")
_AT_LINE_START = re.compile(rf"(?:\A\s*|\n\s*){_SPEAKER}")
_ANSWER_AT_LINE_START = re.compile(r"\n\s*Assistant:")
ANSWER_CUE = re.compile(r"\n\s*Assistant:\s*\Z")
_SPELLED_MESSAGE = re.compile(r"""\[?\s*\{\s*['"](?:role|content)['"]\s*:\s*['"]""")


def is_transcript(value: Any) -> bool:
    """Whether a cell is a conversation as one text: it begins with `Human:` or `Assistant:`, perhaps after a
    `System:` part, and the assistant has a turn; or it begins with a blank line and `Human:`, as in HH-RLHF."""
    if not isinstance(value, str):
        return False
    begin = SPEAKER_FIRST.match(value)
    if begin is None:
        return bool(_SYSTEM_FIRST.match(value) and _ANSWER_AT_LINE_START.search(value))
    if begin[1] == "Assistant" or value.startswith("\n\nHuman:"):
        return True
    return bool(_ANSWER_AT_LINE_START.search(value))


def from_transcript(text: str) -> list[Message]:
    """The turns of a transcript, cut after blank lines, or at line starts where that leaves an answer inside a
    user's turn. Consecutive turns of one speaker are joined. Text before the first speaker is the system's, or the
    user's where the assistant speaks first."""
    messages = _cut(text, _AFTER_BLANK_LINE)
    if any(m["role"] != "assistant" and _ANSWER_AT_LINE_START.search("\n" + m["content"]) for m in messages):
        return _cut(text, _AT_LINE_START)
    return messages


def _cut(whole: str, marks: re.Pattern[str]) -> list[Message]:
    lead, *parts = marks.split(whole)
    messages: list[Message] = []
    if lead.strip():
        role = "system" if parts and parts[0] == "Human" else "user"
        text = _SYSTEM.sub("", lead, count=1) if role == "system" else lead
        messages.append({"role": role, "content": text.strip()})
    for speaker, turn in zip(parts[::2], parts[1::2], strict=True):
        role = _SPEAKERS[speaker]
        if messages and messages[-1]["role"] == role:
            messages[-1]["content"] = f"{messages[-1]['content']}\n\n{turn.strip()}".strip()
        else:
            messages.append({"role": role, "content": turn.strip()})
    return messages


def spelled(text: str) -> Any:
    """The JSON or Python value that a text spells; None for other text."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        value = ast.literal_eval(text)
        tokens = [token.type for token in tokenize.generate_tokens(io.StringIO(text).readline)]
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError, tokenize.TokenError):
        return None
    # Python joins adjacent strings: ['a' 'b'], which is how NumPy prints two, would become one.
    kinds = [kind for kind in tokens if kind != tokenize.NL]
    return None if (tokenize.STRING, tokenize.STRING) in pairwise(kinds) else value


def spelled_messages(text: str, what: str, where: str) -> Any:
    """The messages that a text spells in JSON or Python; None for other text. Raises `DataError` when it begins
    like messages and cannot be parsed."""
    stripped = text.strip()
    if not stripped.startswith(("[", "{")):
        return None
    value = spelled(stripped) if stripped.endswith(("]", "}")) else None
    items: list[Any] = value if isinstance(value, list) else [value]
    for role, content in MESSAGE_KEYS:
        if items and all(isinstance(item, dict) and {role, content} <= item.keys() for item in items):
            known = isinstance(items[0][role], str) and items[0][role] in ROLES
            return value if known or (value is items and role == "role") else None
    if value is None and _SPELLED_MESSAGE.match(stripped) and "role" in stripped and "content" in stripped:
        raise DataError(
            f"{what} looks like messages written as text, but is neither JSON nor Python: {stripped!r:.60}",
            where=where,
            hint="write the table as JSONL or Parquet, where a cell can be a list, or the cell as JSON",
        )
    return None


def spelled_texts(value: Any) -> list[str] | None:
    """The texts of a cell that spells a list of texts and nulls, as in Kaggle's lmsys tables; None otherwise."""
    if not isinstance(value, str) or not re.match(r"""\s*\[\s*(['"]|null\b|None\b)""", value):
        return None
    items = spelled(value.strip())
    if not isinstance(items, list) or not all(item is None or isinstance(item, str) for item in items):
        return None
    return [item or "" for item in items]


def numbers_in(cell: Any) -> list[str] | None:
    """The numbers of a text such as `2|1|3`, `2;1;3`, `2,1,3` or `2 1 3`; None for another cell."""
    if not isinstance(cell, str):
        return None
    mark = next((mark for mark in "|;," if mark in cell), None)
    parts = [part.strip() for part in cell.split(mark)]
    return parts if len(parts) > 1 and all(re.fullmatch(r"[+-]?\d+(\.\d+)?", part) for part in parts) else None
