"""What every config dataclass of a recipe shares: frozen, keyword-only, strict, no unknown keys."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, ConfigDict, Field
from typing_extensions import dataclass_transform

__all__ = [
    "LATER",
    "RUNTIME",
    "BelowOne",
    "Chance",
    "Count",
    "LocalPath",
    "Natural",
    "NonNegative",
    "Positive",
    "content",
    "field",
    "section",
]

T = TypeVar("T")


@dataclass_transform(frozen_default=True, kw_only_default=True, field_specifiers=(field,))
def section(cls: type[T]) -> type[T]:
    """A frozen dataclass that pydantic validates strictly: no unknown keys, no `true` for 1, no "3" for 3."""
    made = dataclass(frozen=True, kw_only=True)(cls)
    made.__pydantic_config__ = ConfigDict(  # type: ignore[attr-defined]
        strict=True, extra="forbid", allow_inf_nan=False
    )
    return made


RUNTIME: dict[str, Any] = {"runtime": True}
"""Metadata of a field that changes how a stage runs, not what it makes: left out of the stage's key."""

LATER: dict[str, Any] = {"later": True}
"""Metadata of a field that only rounds after the first read: left out of a first round's key."""

Count = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0)]
Chance = Annotated[float, Field(ge=0, le=1)]
BelowOne = Annotated[float, Field(ge=0, lt=1)]
LocalPath = Annotated[str, AfterValidator(os.path.expanduser)]
"""Text that may name a local file or folder: `~` at its start is the home folder."""


def content(value: Any, *, later: bool = True) -> Any:
    """A section as JSON values, less the runtime fields at any depth: what a stage's key is made from. Without
    `later`, less the fields that only later rounds read as well."""
    if is_dataclass(value):
        left_out = {"runtime"} if later else {"runtime", "later"}
        kept = (f.name for f in fields(value) if not any(f.metadata.get(mark) for mark in left_out))
        return {name: content(getattr(value, name), later=later) for name in kept}
    if isinstance(value, list | tuple):
        return [content(item, later=later) for item in value]
    if isinstance(value, dict):
        return {key: content(item, later=later) for key, item in value.items()}
    return value
