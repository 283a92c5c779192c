"""Rows of a table, wherever it lies: a local file, an `https://` URL, or a data set on the Hub.

Rows come one at a time, each with its place, so that a file larger than memory can be read and every
complaint about a row names it. CSV, TSV, JSONL, JSON and Parquet are told apart by suffix; the text formats
may be gzipped.
"""

from __future__ import annotations

import codecs
import csv
import difflib
import gzip
import json
import math
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

from data.fetch import fetch, is_url
from data.json_list import ListReader, NotAList
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
HUB = "hub://"
CHUNK = 1 << 16  # bytes of a JSON file read at a time


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


KEPT = 1000
"""How many of the places where something was left out are kept; they are all counted."""


class Dropped:
    """What was left out of a table, and why.

    Attributes:
        read: rows of the table that were read.
        counts: how often something was left out, by reason.
        places: (row, reason) of the first `KEPT` of them.
        on_read: told of `read` now and then. Where rows must be grouped, all are read before anything comes of it.
    """

    def __init__(self) -> None:
        self.read = 0
        self.on_read: Callable[[int], None] = lambda read: None
        self.counts: Counter[str] = Counter()
        self.places: list[tuple[int, str]] = []

    def add(self, reason: str, row: int) -> None:
        self.counts[reason] += 1
        if len(self.places) < KEPT:
            self.places.append((row, reason))

    def counting(self, rows: Iterable[Row]) -> Iterator[Row]:
        """`rows`, counted as they pass."""
        for row in rows:
            self.read += 1
            if self.read % 1000 == 0:
                self.on_read(self.read)
            yield row

    @property
    def rows(self) -> dict[str, list[int]]:
        """Row numbers by reason, of the places that are kept."""
        found: dict[str, list[int]] = defaultdict(list)
        for row, reason in self.places:
            found[reason].append(row)
        return dict(found)


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
    if path.is_dir() and (shards := sorted(path.rglob("*.parquet"))):
        for number, row in enumerate(chain.from_iterable(map(_parquet_rows, shards)), 1):
            row.number = number
            yield row
        return
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


@contextmanager
def _opened(path: Path, line: Callable[[], int]) -> Iterator[IO[bytes]]:
    """The file, unpacked; what goes wrong while reading it is placed at `line()`."""
    opener = gzip.open if path.suffix == ".gz" else open
    try:
        with opener(path, "rb") as file:
            yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}", where=f"{path}:{line()}", mend="write or copy it again"
        ) from error


def _decoded(decode: Callable[[bytes], str], raw: bytes, path: Path, line: int) -> str:
    """`raw`, which starts in line `line`, as text."""
    try:
        text = decode(raw)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise DataError(
            f"byte {error.object[error.start]:#04x} is not UTF-8",
            where=f"{path}:{line}",
            mend="save the file with the encoding UTF-8",
        ) from None
    if "\0" in text:
        line += text.count("\n", 0, text.index("\0"))
        raise DataError(
            "the line holds a NUL byte",
            where=f"{path}:{line}",
            mend="the file is damaged or not text: write it again, as UTF-8",
        )
    return text


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines, decoded one by one so that a bad byte is placed exactly."""
    number = 0
    with _opened(path, lambda: number + 1) as file:
        for number, raw in enumerate(file, 1):
            encoding = "utf-8-sig" if number == 1 else "utf-8"
            yield number, _decoded(partial(bytes.decode, encoding=encoding), raw, path, number)


def _chunks(path: Path) -> Iterator[str]:
    """Text in pieces of one size: a JSON file may be one long line."""
    line = 1
    decode = codecs.getincrementaldecoder("utf-8-sig")().decode
    with _opened(path, lambda: line) as file:
        while raw := file.read(CHUNK):
            text = _decoded(decode, raw, path, line)
            line += text.count("\n")
            yield text
        yield _decoded(partial(decode, final=True), b"", path, line)


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
        for number, value in enumerate(ListReader(_chunks(path)), 1):
            where = f"{path}, row {number}"
            yield Row(number, _object(value, where), where)
    except NotAList as error:
        raise DataError(
            str(error),
            where=f"{path}:{error.line}",
            mend="write a list of objects, [{...}, ...]; a file with one object on each line is named .jsonl",
        ) from None


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
        for part in split.split("+"):
            table = datasets.load_dataset(name, subset, split=part, revision=revision, streaming=True)
            for number, cells in enumerate(table, 1):
                yield Row(number, cells, f"{path}, split {part}, row {number}")
    except DataError:
        raise
    except Exception as error:  # datasets raises whatever its readers, file systems and HTTP client raise
        raise DataError(
            f"the Hub data set cannot be read: {type(error).__name__}: {error}",
            where=f"{path}, split {split}",
            mend="check the name, the revision, the split and the network, or give a local file",
        ) from error
