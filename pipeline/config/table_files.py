"""The files that `path` of a table names: one, a list of them, or those that a pattern matches."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any


def files_of(path: str | Sequence[str]) -> list[str]:
    """The sources in order. A local path with `*`, `?` or `[...]` that is not itself a file stands for the files it
    matches, sorted by name (`**`: in any subfolder); for itself where it matches none."""
    given = [path] if isinstance(path, str) else path
    return [source for each in given for source in _matches(each)]


def _matches(path: str) -> list[str]:
    if "://" in path or not glob.has_magic(path) or os.path.exists(path):
        return [path]
    return sorted(glob.glob(path, recursive=True)) or [path]


def shown(path: str | Sequence[str]) -> str:
    """`path` for messages: the first of several, with a count of the others."""
    given = [path] if isinstance(path, str) else path
    more = len(given) - 1
    return given[0] + (f" and {more} more" if more else "")


def joins_of(dotted: str, table: Any) -> Iterator[tuple[str, Any]]:
    """The tables that are joined to the table at a dotted recipe path, each with its own path."""
    join = getattr(table, "join", None)
    if isinstance(join, list):
        for number, each in enumerate(join):
            yield f"{dotted}.join[{number}]", each
    elif join is not None:
        yield f"{dotted}.join", join


def by_name(dotted: str, path: str | Sequence[str]) -> Mapping[str, str]:
    """The sources that the recipe's value at a dotted path names, by dotted path: `data.rankings.path`, or with the
    number of each of several."""
    sources = files_of(path)
    if isinstance(path, str) and sources == [path]:
        return {dotted: path}
    return {f"{dotted}[{number}]": source for number, source in enumerate(sources)}


def joined_files(recipe: Any, *tables: str) -> dict[str, Path]:
    """The local files that are joined to the tables at these dotted paths, by dotted path. Their content enters the
    stage's key as that of the tables does."""
    files: dict[str, Path] = {}
    for dotted in tables:
        table = recipe
        for name in dotted.split("."):
            table = table.get(name) if isinstance(table, dict) else getattr(table, name, None)
        for place, join in joins_of(dotted, table):
            sources = by_name(f"{place}.path", join.path)
            files |= {at: Path(source) for at, source in sources.items() if "://" not in source}
    return files
