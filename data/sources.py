"""Rows of a table, wherever it lies: a local file, an `https://` URL, or a data set on the Hub.

Rows come one at a time, each with its place, so that a file larger than memory can be read and every
complaint about a row names it. CSV, TSV, JSONL, JSON and Parquet are told apart by suffix; the text formats
may be gzipped.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data.fetch import fetch, is_url
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
HUB = "hub://"


def as_text(value: Any, what: str, where: str) -> str:
    """`value` if it is a string that UTF-8 can hold, "" for None; `DataError` otherwise."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{what} is not text but {value!r:.60}", where=where, mend="give text there")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{what} holds half a surrogate pair, which is no character",
            where=where,
            mend="write the file again from its source, as UTF-8",
        ) from None
    return value


def as_number(value: Any, what: str, where: str) -> float | None:
    """A finite number, also from text; None for an empty cell; `DataError` otherwise."""
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise DataError(
            f"{what} is not a number but {value!r:.60}",
            where=where,
            mend="write a number, or leave the cell empty to have it left out",
        )
    return number


class Row(dict[str, Any]):
    """The cells of a row by column, with its number (the line, in text files) and its place for messages."""

    def __init__(self, number: int, cells: Mapping[str, Any], where: str) -> None:
        super().__init__(cells)
        self.number, self.where = number, where

    def __missing__(self, column: str) -> Any:
        near = difflib.get_close_matches(column, self, n=1, cutoff=0.0)
        raise DataError(
            f"there is no column {column!r}" + (f"; the nearest is {near[0]!r}" if near else ""),
            where=self.where,
            mend=f"name one of these under `columns`: {', '.join(self)}",
        )

    def text(self, column: str) -> str:
        """A text cell; "" when it is empty."""
        return as_text(self[column], f"column {column!r}", self.where)

    def value(self, column: str) -> float | None:
        """A number cell; None when it is empty."""
        return as_number(self[column], f"column {column!r}", self.where)


class Dropped:
    """What was left out of a table, and why: row numbers by reason."""

    def __init__(self) -> None:
        self.rows: dict[str, list[int]] = defaultdict(list)

    def add(self, reason: str, row: int) -> None:
        self.rows[reason].append(row)

    def counts(self) -> dict[str, int]:
        return {reason: len(rows) for reason, rows in self.rows.items()}


def read_table(config: TableConfig | RankingTableConfig, say: Callable[[str], None] | None = None) -> Iterator[Row]:
    """The rows of the table that `config` names; `say` is told when something is fetched.

    `config.path` is a local file, `https://...[#sha256=HEX]`, or `hub://owner/name[/subset]@revision`. Raises
    `DataError` when it is not there, is malformed (with file and line), or has no rows.
    """
    path = config.path
    if path.startswith(HUB):
        rows = _hub_rows(path, config.split)
    else:
        rows = _file_rows(fetch(path, say) if is_url(path) else Path(path).expanduser())
    first = next(rows, None)
    if first is None:
        raise DataError("the data set is empty", where=path, mend="give a table with at least one row")
    yield from islice(chain([first], rows), config.limit)


def _file_rows(path: Path) -> Iterator[Row]:
    if not path.is_file():
        raise DataError(
            f"there is no file {path}",
            mend="correct the path: a relative one starts at the folder where the command was run",
        )
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    match suffix.lower():
        case ".csv":
            yield from _csv_rows(path, ",")
        case ".tsv":
            yield from _csv_rows(path, "\t")
        case ".jsonl" | ".ndjson":
            yield from _jsonl_rows(path)
        case ".json":
            yield from _json_rows(path)
        case ".parquet" if path.suffix != ".gz":
            yield from _parquet_rows(path)
        case _:
            raise DataError(
                f"the format of {path.name} cannot be told from its name",
                mend=f"name it with one of {', '.join(SUFFIXES)} (text formats also with .gz)",
            )


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded one by one so that a bad byte is placed exactly."""
    opener = gzip.open if path.suffix == ".gz" else open
    number = 0
    try:
        with opener(path, "rb") as file:
            for number, raw in enumerate(file, 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DataError(
                        f"byte {raw[error.start]:#04x} is not UTF-8",
                        where=f"{path}:{number}",
                        mend="save the file with the encoding UTF-8",
                    ) from None
                if "\0" in line:
                    raise DataError(
                        "the line holds a NUL byte",
                        where=f"{path}:{number}",
                        mend="the file is damaged or not text: write it again, as UTF-8",
                    )
                yield number, line
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}", where=f"{path}:{number + 1}", mend="write or copy it again"
        ) from error


def _csv_rows(path: Path, delimiter: str) -> Iterator[Row]:
    reader = csv.reader((line for _, line in _lines(path)), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1
    try:
        while True:
            line = reader.line_num + 1  # where the row starts: a quoted cell may hold line breaks
            cells = next(reader)
            if not cells:
                continue
            if not header:
                header = _header(cells, f"{path}:{line}")
                continue
            if len(cells) != len(header):
                raise DataError(
                    f"the row has {len(cells)} fields and the header has {len(header)}",
                    where=f"{path}:{line}",
                    mend=f"quote cells that hold {delimiter!r}, quotes or line breaks",
                )
            yield Row(line, dict(zip(header, cells, strict=True)), f"{path}:{line}")
    except StopIteration:
        return
    except csv.Error as error:
        raise DataError(
            f"the row is malformed: {error}",
            where=f"{path}:{line}",
            mend='close every quote, and double the quotes inside a quoted cell ("")',
        ) from None


def _header(cells: list[str], where: str) -> list[str]:
    twice = sorted({name for name in cells if cells.count(name) > 1})
    if twice:
        raise DataError(
            f"the header names a column twice: {', '.join(map(repr, twice))}",
            where=where,
            mend="give each column a name of its own",
        )
    return cells


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"the line is not JSON: {error}", where=where, mend="write one JSON object on each line"
            ) from None
        yield Row(number, _object(value, where), where)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        values = json.loads("".join(line for _, line in _lines(path)))
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"the file is not JSON: {error}",
            where=f"{path}:{getattr(error, 'lineno', 1)}",
            mend="write a list of objects; a file with one object on each line is named .jsonl",
        ) from None
    if not isinstance(values, list):
        raise DataError("the file is no list of objects", where=str(path), mend="put the rows into [ ... ]")
    for number, value in enumerate(values, 1):
        where = f"{path}, row {number}"
        yield Row(number, _object(value, where), where)


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"the row is no JSON object but {value!r:.60}", where=where, mend='write {"column": value, ...}'
        )
    return value


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow.parquet

    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            batches: Iterable[Any] = file.iter_batches(batch_size=1024)
            rows = (row for batch in batches for row in batch.to_pylist())
            for number, cells in enumerate(rows, 1):
                yield Row(number, cells, f"{path}, row {number}")
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(
            f"the file is not Parquet or is damaged: {error}", where=str(path), mend="write or copy it again"
        ) from error


def _hub_rows(path: str, split: str) -> Iterator[Row]:
    address, _, revision = path.removeprefix(HUB).partition("@")
    parts = address.split("/")
    if len(parts) not in (2, 3) or not all(parts) or not revision:
        raise DataError(
            f"{path} does not name a Hub data set at a revision",
            mend="write hub://owner/name@revision or hub://owner/name/subset@revision",
        )
    import datasets

    name, subset = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    try:
        table = datasets.load_dataset(name, subset, split=split, revision=revision, streaming=True)
        for number, cells in enumerate(table, 1):
            yield Row(number, cells, f"{path}, split {split}, row {number}")
    except DataError:
        raise
    except Exception as error:  # datasets raises whatever its readers, file systems and HTTP client raise
        raise DataError(
            f"the Hub data set cannot be read: {type(error).__name__}: {error}",
            where=f"{path}, split {split}",
            mend="check the name, the revision, the split and the network, or give a local file",
        ) from error
