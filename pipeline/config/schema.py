"""Messages for values that do not fit a recipe's dataclasses: what is expected, what there is, and how to write
it."""

from __future__ import annotations

import difflib
import json
import re
import typing
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

from pydantic_core import ErrorDetails

from pipeline.config import hardware
from pipeline.config.data import CriteriaConfig, RankingTableConfig, TableConfig, TaskConfig
from pipeline.config.recipe import Recipe

RENAMED = {"guards": "monitor", "golden": "fingerprints"}
"""Keys of earlier versions, and their names now."""
ALIASES = {
    "gpu": "cuda",
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "4bit": "nf4",
    "8bit": "int8",
    "human": "app",
    "people": "app",
    "file": "data",
}
"""Common names of values -> ours."""
TYPES = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "string": "text",
    "array": "a list",
    "dictionary": "a section of keys",
}
"""pydantic's names of types -> ours."""
KINDS = {
    "a table": TableConfig,
    "the built-in task": TaskConfig,
    "a table of rankings": RankingTableConfig,
    "several criteria": CriteriaConfig,
}
"""The members of unions that are told apart by a key, by the names that errors have for them."""
SUFFIXES = {"k": 1e3, "m": 1e6, "%": 0.01}


def message(errors: Sequence[ErrorDetails]) -> str:
    """What is wrong with one value. A value that may have several types has one error for each of them."""
    parts = [_parts(error) for error in errors]
    first, *others = dict.fromkeys(text for text, _ in parts)
    expected = ", or ".join([first, *(text.removeprefix("must be ") for text in others)])
    hints = list(dict.fromkeys(hint for _, hint in parts if hint))
    if errors[0]["type"] in ("missing", "unexpected_keyword_argument"):
        return expected + "".join(hints[:1])
    return f"{expected}, got {_short(errors[0]['input'])}" + "".join(hints[:1])


def _parts(error: ErrorDetails) -> tuple[str, str]:
    """What is expected, and a hint with the punctuation before it."""
    kind, value, context = error["type"], error["input"], error.get("ctx", {})
    expected = error["msg"].replace("Input should be", "must be")
    for theirs, ours in TYPES.items():
        expected = expected.replace(f"a valid {theirs}", ours)
    if kind == "missing":
        return "is required", ""
    if kind == "unexpected_keyword_argument":
        name = str(error["loc"][-1])
        if name in RENAMED:
            return "unknown key", f"; it is now called {RENAMED[name]}"
        return "unknown key", nearest(name, valid_names(error["loc"][:-1]))
    if kind == "dataclass_type":
        # Where other types are allowed too, the keys show which section is meant.
        names = sorted(valid_names(error["loc"]))
        if str(error["loc"][-1]).endswith("Config"):
            return f"must be a section of keys ({', '.join(names)})", ""
        return "must be a section of keys", f"; its keys are {', '.join(names[:4])}{', ...' * (len(names) > 4)}"
    if kind == "string_pattern_mismatch":
        if context["pattern"] == hardware.SIZE:
            return "must be a size such as 16GB or 15.5GiB", ""
        return "may contain letters, digits, dots, dashes and underscores only", _plain_name(value)
    if kind == "literal_error":
        return expected, _near_literal(str(value), context["expected"])
    if kind == "unknown_name":
        return expected, nearest(str(value), context["valid"], "values")
    if kind == "string_type" and isinstance(value, int | float):
        return expected, " (put it in quotes)"
    if kind.startswith(("int_", "float_")):
        return expected, _number(value, whole=kind.startswith("int_"))
    if kind in ("less_than", "less_than_equal") and 1 < float(value) <= 100 and set(context.values()) == {1}:
        return expected, f"; write {value} % as {float(value) / 100:g}"
    return expected, ""


def _number(value: Any, *, whole: bool) -> str:
    """How to write a number that was written with a unit, a percent sign or a comma."""
    if isinstance(value, float) and whole:
        return f"; write {value:.0f}" if value.is_integer() else ""
    if not isinstance(value, str):
        return ""
    if re.fullmatch(r"[^,=]*,\s*[\w.]+=.*", value):
        return "; separate assignments with spaces, not with commas"
    match = re.fullmatch(r"([+-]?[\d.,]+)\s*(\S*)", value)
    if match is None:
        return ""
    digits, unit = match[1], match[2].lower()
    digits = re.sub(r",(?=\d{3}(\D|$))", "", digits) if whole else digits.replace(",", ".")
    try:
        number = float(digits) * SUFFIXES.get(unit, 1.0)
    except ValueError:
        return ""
    if whole and not number.is_integer():
        return ""
    written = f"{number:.0f}" if number.is_integer() else f"{number:g}"
    unit = "" if unit in SUFFIXES or not unit else ", without a unit"
    return f"; write {written}{unit}"


def _plain_name(value: Any) -> str:
    plain = re.sub(r"[^\w.-]+", "-", str(value)).strip("-.")
    return f"; write {plain}" if plain else ""


def _near_literal(value: str, expected: str) -> str:
    words = re.findall(r"'([^']+)'", expected)
    alias = ALIASES.get(value.lower())
    if alias in words:
        return f"; write {alias}"
    near = difflib.get_close_matches(value.lower(), words, n=1)
    return f"; did you mean {near[0]}?" if near else ""


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def names_of(section: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(section))


def nearest(name: str, valid: Iterable[str], what: str = "keys") -> str:
    """A hint with the valid name that is most like this one, or all of them if they are few."""
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; valid {what} are {', '.join(valid)}" if len(valid) <= 12 else ""


def valid_names(location: Sequence[str | int]) -> set[str]:
    """The field names of the section at a location in `Recipe`."""
    sections: list[Any] = [Recipe]
    by_name = False  # whether the next key is a name that the user chose
    for key in location:
        if by_name:
            by_name = False
        elif key in KINDS:
            sections = [section for section in sections if section is KINDS[str(key)]]
        elif named := [section for section in sections if section.__name__ == key]:
            sections = named  # a member of a union
        elif isinstance(key, str):
            hints = [hint[key] for section in sections if key in (hint := typing.get_type_hints(section))]
            sections = [section for hint in hints for section in _sections_in(hint)]
            by_name = any(typing.get_origin(hint) is dict for hint in hints)
    return set().union(*(names_of(section) for section in sections))


def _sections_in(annotation: Any) -> list[Any]:
    if is_dataclass(annotation):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]
