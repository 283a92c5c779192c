"""The findings' dataclasses as the JSON of report.json."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, is_dataclass
from typing import Any


def named(key: str, **more: Any) -> Any:
    """A field that has another name in report.json."""
    return field(metadata={"json": key}, **more)


def json_form(value: Any) -> Any:
    """Nested dataclasses as JSON values. What was read from a stage's JSON file (`json`) is passed on as it is."""
    content = getattr(value, "json", None)
    if content is not None:
        return content
    if is_dataclass(value):
        return {f.metadata.get("json", f.name): json_form(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, Mapping):
        return {key: json_form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_form(item) for item in value]
    return value
