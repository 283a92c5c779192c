"""Loads a YAML file and `--set` flags into a checked `Recipe`, or raises one error that lists every problem."""

from __future__ import annotations

import difflib
import json
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import merge, rules, shipped, trainer
from pipeline.config.data import TableConfig, TaskConfig
from pipeline.config.recipe import Recipe
from pipeline.errors import RecipeError

DEFAULT = "default"


@dataclass(frozen=True)
class LoadedRecipe:
    """A checked recipe, and where each of its values was set.

    Attributes:
        recipe: the values.
        path: the file.
        sets: the `--set` flags, as the user wrote them.
        provenance: dotted path -> "file:line" or "--set #n", for every value and section that is not a default.
    """

    recipe: Recipe
    path: Path
    sets: tuple[str, ...]
    provenance: Mapping[str, str]

    def describe(self, path: str) -> str:
        """Where the value at a dotted path was set."""
        return self.provenance.get(path, DEFAULT)

    def values(self) -> dict[str, Any]:
        """Every value by dotted path, defaults included."""
        return flatten(asdict(self.recipe))

    def refusal(self, problems: Sequence[rules.Problem]) -> RecipeError:
        """One error for all problems, each with the place where the value was set."""
        return _error(merge.shown(self.path), problems, self.provenance)


RENAMED = {"guards": "monitor", "golden": "fingerprints"}
"""Keys of earlier versions, and their names now."""


def load_recipe(path: Path | str, sets: Sequence[str] = ()) -> LoadedRecipe:
    """Reads, merges and checks a recipe, a file or the name of a shipped one. Raises `RecipeError`."""
    path = shipped.locate(Path(path).expanduser())
    root = merge.read(path, _RIVALS)
    for layer in merge.assignments(sets):
        root = merge.overlay(root, layer, _RIVALS)
    provenance, data = merge.provenance(root), merge.plain(root)

    problems = list(_trainer_problems(data))
    try:
        recipe = TypeAdapter(Recipe).validate_json(json.dumps(data))
    except ValidationError as error:
        problems += _schema_problems(error.errors(include_url=False), data)
    else:
        problems += rules.conflicts(recipe)
        if not problems:
            return LoadedRecipe(recipe, path, tuple(sets), provenance)
    raise _error(merge.shown(path), problems, provenance)


def flatten(values: Any, path: str = "") -> dict[str, Any]:
    """Nested JSON values by dotted path. Empty sections and lists of scalars are values themselves."""
    items: Iterable[tuple[str | int, Any]] = ()
    if isinstance(values, dict):
        items = values.items()
    elif isinstance(values, list) and any(isinstance(item, dict) for item in values):
        items = enumerate(values)
    flat: dict[str, Any] = {}
    for key, value in items:
        flat |= flatten(value, merge.join(path, key))
    return flat or {path: values}


def _names(section: Any) -> frozenset[str]:
    return frozenset(field.name for field in fields(section))


def _rivals() -> dict[str, frozenset[str]]:
    rivals = {
        "base.model": frozenset({"base.pretrain"}),
        "base.pretrain": frozenset({"base.model", "base.revision", "base.architecture"}),
    }
    for source in ("data.demonstrations", "base.pretrain.corpus"):
        for key, others in (("task", _names(TableConfig)), ("path", _names(TaskConfig))):
            rivals[f"{source}.{key}"] = frozenset(f"{source}.{name}" for name in others)
    return rivals


_RIVALS = _rivals()
"""A child recipe that sets `base.model` drops its parent's `base.pretrain`; one that sets a file drops the task;
..."""


def _trainer_problems(data: Mapping[str, Any]) -> Iterator[rules.Problem]:
    for path in trainer.SECTIONS:
        values: Any = data
        for key in path.split("."):
            values = values.get(key) if isinstance(values, dict) else None
        if isinstance(values, dict):
            for name, message, valid in trainer.problems(path, values):
                yield f"{path}.{name}", message + (_nearest(name, valid) if valid else "")


def _schema_problems(errors: Iterable[ErrorDetails], data: Any) -> Iterator[rules.Problem]:
    messages_at: dict[str, list[str]] = {}
    for error in errors:
        if error["type"] == "literal_error" and isinstance(error["input"], dict):
            continue  # for a section that may also be a word, the problem inside the section is the useful message
        path = _path(error, data)
        messages_at.setdefault(path, []).append(_message(error))
    for path, messages in messages_at.items():
        yield path, ", or ".join(dict.fromkeys(messages))


def _path(error: ErrorDetails, data: Any) -> str:
    """The dotted path of an error, without the names of union members that pydantic puts into it."""
    path, location = "", error["loc"]
    for position, key in enumerate(location):
        is_there = key in data if isinstance(data, dict) else isinstance(data, list) and isinstance(key, int)
        if is_there:
            data = data[key]
        elif not (error["type"] == "missing" and position == len(location) - 1):
            continue
        path = merge.join(path, key)
    return path


def _message(error: ErrorDetails) -> str:
    kind, value = error["type"], error["input"]
    if kind == "missing":
        return "is required"
    if kind == "unexpected_keyword_argument":
        name = str(error["loc"][-1])
        if name in RENAMED:
            return f"unknown key; it is now called {RENAMED[name]}"
        return "unknown key" + _nearest(name, _valid_names(error["loc"][:-1]))
    if kind == "dataclass_type":
        # Where other types are allowed too, the keys show which section is meant.
        names = sorted(_valid_names(error["loc"])) if str(error["loc"][-1]).endswith("Config") else []
        keys = f" ({', '.join(names)})" if names else ""
        return f"must be a section of keys{keys}, got {_short(value)}"
    if kind == "string_pattern_mismatch":
        return f"may contain letters, digits, dots, dashes and underscores only, got {_short(value)}"
    expected = error["msg"].replace("Input should be", "must be")
    hint = " (put it in quotes)" if kind == "string_type" and isinstance(value, int | float) else ""
    nearest = _nearest(str(value), error["ctx"]["valid"], "values") if kind == "unknown_name" else ""
    return f"{expected}, got {_short(value)}{hint}{nearest}"


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _nearest(name: str, valid: Iterable[str], what: str = "keys") -> str:
    valid = sorted(valid)
    near = difflib.get_close_matches(name, valid, n=1)
    if near:
        return f"; did you mean {near[0]}?"
    return f"; valid {what} are {', '.join(valid)}" if len(valid) <= 12 else ""


def _valid_names(location: Sequence[str | int]) -> set[str]:
    """The field names of the section at a location in `Recipe`."""
    sections: list[Any] = [Recipe]
    for key in location:
        if key in ("a table", "the built-in task"):
            wanted = TableConfig if key == "a table" else TaskConfig
            sections = [section for section in sections if section is wanted]
        elif named := [section for section in sections if section.__name__ == key]:
            sections = named  # a member of a union
        elif isinstance(key, str):
            hints = [typing.get_type_hints(section) for section in sections]
            sections = [section for hint in hints if key in hint for section in _sections_in(hint[key])]
    return set().union(*(_names(section) for section in sections))


def _sections_in(annotation: Any) -> list[Any]:
    if is_dataclass(annotation):
        return [annotation]
    return [section for part in typing.get_args(annotation) for section in _sections_in(part)]


def _error(path: str, problems: Sequence[rules.Problem], provenance: Mapping[str, str]) -> RecipeError:
    def where(dotted: str) -> str:
        while dotted and dotted not in provenance:
            dotted = dotted[: max(dotted.rfind("."), dotted.rfind("["), 0)]
        return provenance.get(dotted, path)

    if len(problems) == 1:
        [(dotted, message)] = problems
        return RecipeError(f"{dotted}: {message}" if dotted else message, where=where(dotted))
    lines = [f"  {dotted} ({where(dotted)}): {message}" for dotted, message in problems]
    return RecipeError("\n".join([f"{len(problems)} problems in {path}", *lines]))
