"""Text files as lines, pieces and CSV records.

Text is UTF-8, or UTF-16 with a byte order mark. Lines end with LF, CR LF or CR. The header tells a CSV file's
separator. All errors are `DataError` with file and line.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any, cast

from pipeline.errors import DataError

CHUNK = 1 << 16
"""Bytes read at a time."""
LONGEST_CELL = 1 << 26
"""Characters of a CSV cell. A longer one is taken for a quote that was never closed."""
SEPARATORS = (",", ";", "\t", "|")


PACKED = (".gz", ".zst")
"""Suffixes of packed text files."""


@contextmanager
def _opened(path: Path, line: Callable[[], int]) -> Iterator[IO[bytes]]:
    """The unpacked file. Errors while reading it name the line `line()`."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".zst": _open_zstd}
    opener = openers.get(path.suffix.lower(), open)
    try:
        with opener(path, "rb") as file:
            yield cast(IO[bytes], file)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(
            f"the file cannot be read: {error}", where=f"{path}:{line()}", hint="write or copy it again"
        ) from error


def _open_zstd(path: Path, mode: str) -> IO[bytes]:
    import pyarrow  # Python has no zstd before 3.14

    return io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))


def _dialect(path: Path) -> tuple[str, str]:
    """Encoding and line end, from the first bytes."""
    with _opened(path, lambda: 1) as file:
        head = file.read(CHUNK)
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        encoding = "utf-16"
        head = head.decode("utf-16", errors="replace").encode("utf-8", errors="replace")
    else:
        encoding = "utf-8-sig"
    first_cr, first_lf = head.find(b"\r"), head.find(b"\n")
    is_cr = first_cr >= 0 and (first_lf < 0 or first_cr < first_lf - 1)
    return encoding, "\r" if is_cr else "\n"


def _decoded(decode: Callable[[bytes], str], raw: bytes, path: Path, line: int, encoding: str) -> str:
    """`raw`, which starts at line `line`, as text."""
    try:
        text = decode(raw)
    except UnicodeDecodeError as error:
        line += error.object.count(b"\n", 0, error.start)
        raise _not_text(error, path, line, encoding) from None
    return _checked(text, path, line)


def _not_text(error: UnicodeDecodeError, path: Path, line: int, encoding: str) -> DataError:
    name = "UTF-16" if encoding == "utf-16" else "UTF-8"
    return DataError(
        f"the line holds byte {error.object[error.start]:#04x}, which is not {name}",
        where=f"{path}:{line}",
        hint="save the file with the encoding UTF-8",
    )


def _checked(text: str, path: Path, line: int) -> str:
    if "\0" in text:
        line += text.count("\n", 0, text.index("\0"))
        raise DataError(
            "the line holds a NUL byte",
            where=f"{path}:{line}",
            hint="the file is damaged or not text: write it again, as UTF-8",
        )
    return text


def lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends, from 1. Raises `DataError`."""
    encoding, end = _dialect(path)
    number = 0
    with _opened(path, lambda: number + 1) as file:
        if encoding == "utf-8-sig" and end == "\n":
            for number, raw in enumerate(file, 1):  # decoded line by line, to name the line of a bad byte
                decode = partial(bytes.decode, encoding=encoding if number == 1 else "utf-8")
                yield number, _decoded(decode, raw, path, number, encoding)
            return
        text = io.TextIOWrapper(file, encoding=encoding, newline="\r" if end == "\r" else "")
        try:
            for number, line in enumerate(text, 1):
                yield number, _checked(line, path, number)
        except UnicodeDecodeError as error:
            raise _not_text(error, path, number + 1, encoding) from None


def pieces(path: Path) -> Iterator[str]:
    """The text in pieces of a fixed size, since a JSON file may be one long line. Raises `DataError`."""
    encoding, _ = _dialect(path)
    line = 1
    decode = codecs.getincrementaldecoder(encoding)().decode
    with _opened(path, lambda: line) as file:
        while raw := file.read(CHUNK):
            text = _decoded(decode, raw, path, line, encoding)
            line += text.count("\n")
            yield text
        yield _decoded(partial(decode, final=True), b"", path, line, encoding)


def csv_records(path: Path, separator: str, header_rows: int = 1) -> Iterator[tuple[int, dict[str, str]]]:
    """The line where a record starts, and its cells by column. Raises `DataError`.

    Args:
        separator: of the file's format. A first line `sep=;` names another one; so does a header that would be a
            single column otherwise.
        header_rows: rows of names (`_names`). Qualtrics writes its questions and its ids below the names; neither
            row is a record.
    """
    csv.field_size_limit(LONGEST_CELL)
    numbered = lines(path)
    before = 0  # lines in front of the reader's first
    first = next(numbered, None)
    if first is not None and (stated := _stated_separator(first[1])):
        separator, before = stated, 1
        first = next(numbered, None)
    while first is not None and not first[1].strip():
        before += 1
        first = next(numbered, None)
    if first is None:
        return
    separator = _separator(first[1], separator)
    text = chain([first[1]], (line for _, line in numbered))
    reader = csv.reader(text, delimiter=separator, strict=True)
    above: list[list[str]] = []
    columns: list[str | None] = []
    for line, cells in _without_questions(_records(reader, before, path), header_rows):
        where = f"{path}:{line}"
        if len(above) < header_rows:
            above.append(cells)
            if len(above) == header_rows:
                columns = _names(above, where)
            continue
        if len(cells) != len(columns):
            raise DataError(
                f"the row has {len(cells)} fields and the header has {len(columns)}, separated by {separator!r}",
                where=where,
                hint=f"quote cells that hold {separator!r}, quotes or line breaks; a first line `sep=;` names "
                "another separator",
            )
        record = {}
        for number, (name, cell) in enumerate(zip(columns, cells, strict=True), 1):
            if name is not None:
                record[name] = cell
            elif cell.strip():
                raise HeaderError(
                    f"the row has text in field {number}, {cell!r:.40}, which has no name in the header",
                    where=where,
                    hint=f"give the column a name; {TWO_ROWS}",
                )
        yield line, record


class HeaderError(DataError):
    """What is wrong with the header of a CSV file."""


TWO_ROWS = "set header: 2 beside `path` where the header is two rows, with merged cells above the names"


def _records(reader: Any, before: int, path: Path) -> Iterator[tuple[int, list[str]]]:
    """The records that hold any cell, with the line where each starts: a quoted cell may hold line breaks."""
    while True:
        line = before + reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise _malformed(error, f"{path}:{line}") from None
        if cells:
            yield line, cells


def _without_questions(
    records: Iterator[tuple[int, list[str]]], header_rows: int
) -> Iterator[tuple[int, list[str]]]:
    """`records` without the two rows that Qualtrics writes below the names: the questions, and ids in JSON."""
    yield from islice(records, header_rows)
    if (questions := next(records, None)) is None:
        return
    try:
        ids = next(records, None)
    except DataError:
        yield questions  # which is whole
        raise
    if ids is None or not all(cell.startswith('{"ImportId":') for cell in ids[1]):
        yield questions
        if ids is not None:
            yield ids
    yield from records


def _malformed(error: csv.Error, where: str) -> DataError:
    if "field larger than" in str(error):
        what = f"a cell is longer than {LONGEST_CELL:,} characters"
        return DataError(what, where=where, hint="close the quote that opens it; a row starts on this line")
    hint = 'close every quote, and double the quotes inside a quoted cell ("")'
    return DataError(f"the row is malformed: {error}", where=where, hint=hint)


def _stated_separator(line: str) -> str | None:
    """The separator in a first line such as `sep=;`, which Excel writes and reads."""
    text = line.strip("\r\n ").strip('"')
    return text[4:] if text[:4].lower() == "sep=" and len(text) == 5 else None


def _separator(header: str, expected: str) -> str:
    """`expected`, unless the header is one column with it and several with another separator."""
    counts = {}
    for separator in (expected, *SEPARATORS):
        try:
            counts[separator] = len(next(csv.reader([header], delimiter=separator), []))
        except csv.Error:
            counts[separator] = 1
    if counts[expected] > 1:
        return expected
    return max(counts, key=lambda separator: counts[separator])


def _names(rows: list[list[str]], where: str) -> list[str | None]:
    """The columns' names; None for each of several that have none. Of two rows the upper one holds merged cells,
    which empty cells on their right belong to: a name that occurs several times is preceded by the one above."""
    names = rows[-1]
    if len(rows) == 2:
        upper, merged = [""] * len(names), ""
        for number, cell in enumerate(rows[0][: len(names)]):
            merged = cell.strip() or merged
            upper[number] = merged
        names = [
            f"{group} {name}".strip() if not name.strip() or names.count(name) > 1 else name
            for group, name in zip(upper, names, strict=True)
        ]
    twice = sorted({name for name in names if name.strip() and names.count(name) > 1})
    if twice:
        raise HeaderError(
            f"the header names a column twice: {', '.join(map(repr, twice))}",
            where=where,
            hint=f"give each column a unique name; {TWO_ROWS}",
        )
    unnamed = sum(not name.strip() for name in names) > 1
    return [None if unnamed and not name.strip() else name for name in names]
