"""What the config dataclasses of a recipe share: they are frozen, keyword-only and strict, and refuse unknown
keys."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import dataclass_transform

__all__ = [
    "ADDED",
    "LATER",
    "RUNTIME",
    "BelowOne",
    "Chance",
    "Count",
    "LocalPath",
    "Natural",
    "NonNegative",
    "Positive",
    "TablePath",
    "content",
    "field",
    "section",
    "trainer_values",
]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def section(cls: type[T]) -> type[T]:
    """A frozen dataclass that pydantic validates strictly: no unknown keys, no `true` for 1, no "3" for 3."""
    frozen = dataclass(frozen=True, kw_only=True)(cls)
    frozen.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        strict=True, extra="forbid", allow_inf_nan=False
    )
    return frozen


RUNTIME: dict[str, Any] = {"runtime": True}
"""Metadata of a field that changes how a stage runs but not what it makes. It is left out of the stage's key."""

LATER: dict[str, Any] = {"later": True}
"""Metadata of a field that only rounds after the first read. It is left out of the first round's key."""

ADDED: dict[str, Any] = {"added": True}
"""Metadata of a field that earlier versions did not have, whose default is what they did. With its default it is
left out of the stage's key, so that their runs stay up to date."""

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""Text that may name a local file or folder. A leading `~` stands for the home folder."""
TablePath = LocalPath | Annotated[list[LocalPath], Field(min_length=1)]
"""Where the rows of a table are: one place or several (`pipeline.config.table_files`)."""


def trainer_values(owner: str, defaults: Mapping[str, Any]) -> Any:
    """A `trainer:` field: values of a Hugging Face config class, by the names they have there.

    Args:
        owner: the class whose names it holds, such as "trl.SFTConfig".
        defaults: values that the stage sets where the recipe does not.
    """
    return field(default_factory=dict, metadata={"trainer": owner, "trainer_defaults": defaults})


def content(value: Any, *, later: bool = True) -> Any:
    """A section as JSON values without its runtime fields and `ADDED` fields that have their default, at any depth:
    what a stage's key is made from. Without `later`, the fields that only later rounds read are left out too."""
    if is_dataclass(value):
        left_out = {"runtime"} if later else {"runtime", "later"}
        kept = (
            f.name
            for f in fields(value)
            if not any(f.metadata.get(mark) for mark in left_out)
            and not (f.metadata.get("added") and getattr(value, f.name) == _default(f))
        )
        return {name: content(getattr(value, name), later=later) for name in kept}
    if isinstance(value, list | tuple):
        return [content(item, later=later) for item in value]
    if isinstance(value, dict):
        return {key: content(item, later=later) for key, item in value.items()}
    return value


def _default(field: Any) -> Any:
    """The default of a dataclass's field that has one."""
    return field.default if field.default_factory is MISSING else field.default_factory()
