"""Loads a YAML file and `--set` flags into a checked `Recipe`, or raises one error that lists every problem."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from pipeline.config import criteria, merge, rules, run_base, schema, shipped, trainer
from pipeline.config.data import RankingTableConfig, TableConfig, TaskConfig
from pipeline.config.recipe import Recipe
from pipeline.config.schema import names_of
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

    def place(self, path: str) -> str:
        """The same for an error message: of a default, the recipe that could set it."""
        return (
            self.provenance.get(path)
            or self.provenance.get(path.partition("[")[0])
            or f"{merge.shown(self.path)}, which does not set {path}"
        )

    def values(self) -> dict[str, Any]:
        """Every value by dotted path, defaults included."""
        return flatten(asdict(self.recipe))

    def refusal(self, problems: Sequence[rules.Problem]) -> RecipeError:
        """One error for all problems, each with the place where the value was set."""
        return _error(merge.shown(self.path), problems, self.provenance)


def load_recipe(path: Path | str, sets: Sequence[str] = ()) -> LoadedRecipe:
    """Reads, merges and checks a recipe, a file or the name of a shipped one. Raises `RecipeError`."""
    path = shipped.locate(Path(path).expanduser())
    root = merge.read(path, _RIVALS)
    for layer in merge.assignments(sets):
        root = merge.overlay(root, layer, _RIVALS)
    provenance, data = merge.provenance(root), merge.plain(root)

    problems = [*_trainer_problems(data), *run_base.fill(data, provenance)]
    try:
        recipe = TypeAdapter(Recipe).validate_json(json.dumps(data))
    except ValidationError as error:
        problems += _schema_problems(error.errors(include_url=False), data)
    else:
        recipe = criteria.with_terms(recipe)
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


def _rivals() -> dict[str, frozenset[str]]:
    rivals = {
        "base.model": frozenset({"base.pretrain"}),
        "base.pretrain": frozenset({"base.model", "base.revision", "base.architecture"}),
    }
    for source in ("data.demonstrations", "base.pretrain.corpus"):
        for key, others in (("task", names_of(TableConfig)), ("path", names_of(TaskConfig))):
            rivals[f"{source}.{key}"] = frozenset(f"{source}.{name}" for name in others)
    rivals["data.rankings.path"] = frozenset({"data.rankings.criteria"})
    rivals["data.rankings.criteria"] = frozenset(f"data.rankings.{name}" for name in names_of(RankingTableConfig))
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
                yield f"{path}.{name}", message + (schema.nearest(name, valid) if valid else "")


def _schema_problems(errors: Iterable[ErrorDetails], data: Any) -> Iterator[rules.Problem]:
    at: dict[str, list[ErrorDetails]] = {}
    for error in errors:
        if error["type"] == "literal_error" and isinstance(error["input"], dict):
            continue  # for a section that may also be a word, the problem inside the section is the useful message
        at.setdefault(_path(error, data), []).append(error)
    for path, same in at.items():
        yield path, schema.message(same)


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
