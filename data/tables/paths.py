"""Paths into the cells of a row, and templates of them.

`scores.relevance` is a key of an object, `reviews[0].text` of an item of a list (`[-1]`: the last), and
`reviews[*].text` of every item: a list. `outputs.*` is a list of all values of an object, which remembers their
keys. At every step a key may itself hold dots and brackets: the longest one that exists is taken. Text that spells
an object or a list in JSON or Python is parsed on the way, as CSV files hold them.

Null along a path makes an empty cell, and so does an item of an empty list. Everything else that is not there is an
error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from string import Formatter
from typing import Any

from data.tables.spelling import spelled
from data.tables.suggest import close, listed
from pipeline.errors import DataError, RecipeError

_BRACKETS = re.compile(r"\[([^\[\]]*)\]")


class Keyed(list[Any]):
    """The values of an object, in its order, with their keys."""

    def __init__(self, values: Iterable[Any], keys: Iterable[str]) -> None:
        super().__init__(values)
        self.keys = list(keys)


def root(name: str, columns: Container[str]) -> str | None:
    """The column in which a path starts: the longest of `columns` that the name begins with, at a dot or a bracket;
    the name itself where it is one of them. None where there is no such column."""
    return next((start for start in starts(name) if start in columns), None)


def starts(name: str) -> Iterator[str]:
    """The beginnings of a path at which a key may end, the longest first."""
    yield name
    for end in range(len(name) - 1, 0, -1):
        if name[end] in ".[":
            yield name[:end]


def follow(value: Any, rest: str, where: str, at: str, path: str = "") -> Any:
    """What lies at `rest` in a cell.

    Args:
        value: the cell.
        rest: the path in it: `[0].text`, `.relevance`; "" for the cell itself.
        where: the row.
        at: the path of the cell, for messages.
        path: the whole path, as the recipe writes it; by default `at` and `rest`.

    Raises `DataError` with the part of the path that is not there.
    """
    path = path or at + rest
    if not rest:
        return value
    value = _parsed(value)
    if value is None or (isinstance(value, str) and not value.strip()) or value != value:
        return None
    if isinstance(value, dict):
        return _in_object(value, rest, where, at, path)
    step = _BRACKETS.match(rest)
    if not isinstance(value, list):
        raise DataError(
            f"{path!r}: {at!r} holds {value!r:.60}, which has no {rest!r}",
            where=where,
            hint="a path leads into objects and lists (or JSON text of them): write an object in the cell, or name "
            "another column",
        )
    if step is not None and step[1] == "*":
        after = rest[step.end() :]
        return [follow(item, after, where, f"{at}[{place}]", path) for place, item in enumerate(value)]
    if step is None or not re.fullmatch(r"-?\d+", step[1]):
        raise DataError(
            f"{path!r}: {at!r} is a list, which has no {rest!r}",
            where=where,
            hint=f"write {at}[*]{rest if step is None else ''} for every item, or {at}[0] for the first",
        )
    if not value:
        return None
    number = int(step[1])
    if not -len(value) <= number < len(value):
        raise DataError(
            f"{path!r}: {at!r} has no item {number}: it holds {len(value)}, counted from 0",
            where=where,
            hint=f"add the item to the row, or write {at}[*] for a list of any length",
        )
    return follow(value[number], rest[step.end() :], where, f"{at}[{number}]", path)


def _in_object(value: dict[str, Any], rest: str, where: str, at: str, path: str) -> Any:
    key, after = _key(rest, value)
    if key in value:
        return follow(value[key], after, where, at + rest[: len(rest) - len(after)], path)
    if key == "*" and rest.startswith("."):
        values = [follow(item, after, where, f"{at}.{name}", path) for name, item in value.items()]
        return Keyed(values, map(str, value))
    near = close(key, map(str, value))
    what = f"{path!r}: {at!r} has no {key!r}" + (f"; did you mean {near!r}?" if near else "")
    if key == "*":
        hint = f"{at} is an object, not a list: write {at}.*{after} for all of its values"
    elif value:
        hint = f"its keys are {listed(list(map(str, value)), 30)}. Correct the path, or add {key} to the row (null "
        hint += "for an empty cell)"
    else:
        hint = f"the object is empty: add {key} to the row (null for an empty cell)"
    raise DataError(what, where=where, hint=hint)


def _key(rest: str, value: Mapping[str, Any]) -> tuple[str, str]:
    """The key with which a path begins, and what follows it: the longest key of the object, or up to the next dot
    or bracket."""
    if step := _BRACKETS.match(rest):
        return step[1].strip("\"'"), rest[step.end() :]
    names = list(starts(rest.removeprefix(".")))
    key = next((name for name in names if name in value), names[-1])
    return key, rest.removeprefix(".")[len(key) :]


def _parsed(value: Any) -> Any:
    """A cell, or the object or list that its text spells."""
    if isinstance(value, str) and value.lstrip().startswith(("{", "[")):
        inside = spelled(value.strip())
        return inside if isinstance(inside, dict | list) else value
    return value


def is_template(name: str) -> bool:
    return "{" in name


def fields_of(template: str) -> list[str]:
    """The paths in the braces of a template. Raises `RecipeError`."""
    return [field for _, field, _, _ in _parts(template) if field is not None]


def filled(template: str, cell: Callable[[str], Any]) -> str:
    """A template with the cells that it names; "" for an empty one. A line that holds nothing but empty cells is
    left out. Raises `RecipeError`, and as `cell`."""
    lines: list[str] = []
    line, fields, filled_in = "", 0, False  # `filled_in`: the line has other text than white space
    for literal, field, form, conversion in [*_parts(template), ("\n", None, None, None)]:
        for number, text in enumerate(literal.split("\n")):
            if number:
                if filled_in or not fields:
                    lines.append(line)
                line, fields, filled_in = "", 0, False
            line += text
            filled_in = filled_in or bool(text.strip())
        if field is None:
            continue
        fields += 1
        value = cell(field)
        if value is None:
            continue
        try:
            text = format(Formatter().convert_field(value, conversion), form or "")
        except (TypeError, ValueError) as error:
            raise _wrong(template, f"{{{field}}}: {error}") from None
        line += text
        filled_in = filled_in or bool(text.strip())
    return "\n".join(lines)


def _parts(template: str) -> list[tuple[str, str | None, str | None, Any]]:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise _wrong(template, str(error)) from None
    if any(field == "" for _, field, _, _ in parts):
        raise _wrong(template, "{} names no column")
    return parts


def _wrong(template: str, what: str) -> RecipeError:
    return RecipeError(
        f"the template {template!r} cannot be filled: {what}",
        hint="write columns in braces, {title}, and paths into them, {info.post}; {{ for a brace",
    )
