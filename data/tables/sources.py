"""Rows of a table: of a local file or folder, an `https://` URL, or a data set on the Hub.

Rows come one at a time, each with its place, so that files may be larger than memory and every error about a row
names it. The suffix tells CSV, TSV, JSONL, JSON and Parquet apart; the text formats may be packed with gzip or
zstd. A folder holds tables of one format, or what `datasets.save_to_disk` wrote.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any

from data.tables import paths
from data.tables.fetch import fetch, is_url
from data.tables.json_list import ListReader, NotAList
from data.tables.suggest import count_of, listed, probable
from data.tables.text_files import PACKED, csv_records, lines, pieces
from pipeline import network
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.config.paths import nearest
from pipeline.config.table_files import files_of, joins_of, shown
from pipeline.errors import DataError, TutelageError

SUFFIXES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
HUB = "hub://"


def as_text(value: Any, what: str, where: str) -> str:
    """`value` if it is a string that UTF-8 can hold, "" for None; `DataError` otherwise."""
    if value is None:
        return ""
    if not isinstance(value, str):
        raise DataError(f"{what} must be text, got {value!r:.60}", where=where, hint="write text in that cell")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise DataError(
            f"{what} holds half of a surrogate pair, which is not a character",
            where=where,
            hint="write the file again from its source, as UTF-8",
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
            f"{what} must be a number, got {value!r:.60}",
            where=where,
            hint="write a number, or leave the cell empty to have it left out",
        )
    return number


def is_empty(value: Any) -> bool:
    """Whether a cell is empty: null, blank text, or the NaN that pandas writes for null."""
    return value is None or (isinstance(value, str) and not value.strip()) or value != value


class Row(dict[str, Any]):
    """The cells of a row by column, with its number (the line, in text files) and its place for messages.

    A name that is no column may be a path into a cell or a template (`data.tables.paths`).

    Attributes:
        left_out: why the row cannot be used; "" where it can. Readers count it and look at no cell.
        hint: how to fix that.
    """

    def __init__(
        self, number: int, cells: Mapping[str, Any], where: str, left_out: str = "", hint: str = ""
    ) -> None:
        super().__init__(cells)
        self.number, self.where, self.left_out, self.hint = number, where, left_out, hint

    def with_cells(self, cells: Mapping[str, Any]) -> Row:
        """The same row with more cells, or other ones."""
        return Row(self.number, {**self, **cells}, self.where)

    def __missing__(self, name: str) -> Any:
        if paths.is_template(name):
            return paths.filled(name, self.__getitem__)
        start = paths.root(name, self)
        if start is None:
            raise MissingColumn(name, self)
        return paths.follow(self[start], name[len(start) :], self.where, start)

    def has(self, name: str) -> bool:
        """Whether there is such a column, or the one in which a path starts; of a template, all of them."""
        if name not in self and paths.is_template(name):
            return all(map(self.has, paths.fields_of(name)))
        return paths.root(name, self) is not None

    def find(self, name: str) -> Any:
        """The cell of a column, or what a path or a template leads to; None where there is no such column."""
        return self[name] if self.has(name) else None

    def text(self, column: str) -> str:
        """A text cell; "" when it is empty."""
        return as_text(self[column], f"column {column!r}", self.where)

    def value(self, column: str) -> float | None:
        """A number cell; None when it is empty."""
        return as_number(self[column], f"column {column!r}", self.where)


class TableError(DataError):
    """What is wrong with a table as a whole, although it is reported at one of its rows."""


class MissingColumn(DataError):
    """A row has no such column.

    Attributes:
        column: the name that was looked up.
        columns: those of the row.
    """

    def __init__(self, column: str, row: Row) -> None:
        self.column, self.columns = column, list(row)
        near = probable(column, list(row))
        super().__init__(
            f"there is no column {column!r}" + (f"; {near!r} is probably meant" if near else ""),
            where=row.where,
            hint=f"the columns are {listed(self.columns, 30)}. Rename the right one to {column}",
        )


KEPT = 1000
"""How many places of rows that were left out are kept. All of them are counted."""


EXAMPLES = 3
"""Rows that a message names for each reason."""


HINTS = {
    "empty prompt": "fill the prompt's cell",
    "empty completion": "fill the answer's cell",
    "missing rating": "fill the cell with the answer's rating or rank",
    "chosen and rejected are the same": "correct or remove the row",
    "the same answer at two places": "give equal answers equal ranks, or keep one of them",
    "no ranked reply": "rank the replies",
}
"""Reason for which something is left out -> how to fix it."""


class Dropped:
    """Counts of the rows and completions of a table that were left out, by reason.

    Attributes:
        read: rows of the table that were read.
        rows_out: demonstrations, prompts or rankings that were left out. Each counts once.
        completions_out: completions that were left out of rankings that were kept.
        counts: all of these, and the completions of rankings that were left out.
        places: (row, reason) of the first `KEPT` of them.
        hints: how to fix a reason, where its reader says so.
        on_read: called with `read` every 1000 rows, since grouping reads all rows before the first ranking.
        on_row: called with each row.
    """

    def __init__(self) -> None:
        self.read = 0
        self.on_read: Callable[[int], None] = lambda read: None
        self.on_row: Callable[[Row], None] = lambda row: None
        self.hints: dict[str, str] = {}
        self.rows_out: Counter[str] = Counter()
        self.completions_out: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.places: list[tuple[int, str]] = []

    def add(self, reason: str, row: int, hint: str = "") -> None:
        """Counts a demonstration, a prompt or a whole ranking."""
        if hint:
            self.hints.setdefault(reason, hint)
        self.rows_out[reason] += 1
        self._note(reason, row)

    def add_completions(self, reasons: Iterable[str], row: int, kept: bool) -> None:
        """Counts completions of one ranking. `kept`: whether the ranking itself is kept."""
        for reason in reasons:
            self.completions_out[reason] += kept
            self._note(reason, row)

    def _note(self, reason: str, row: int) -> None:
        self.counts[reason] += 1
        if len(self.places) < KEPT:
            self.places.append((row, reason))

    def reasons(self) -> str:
        """The counts, highest first, for messages."""
        return ", ".join(f"{count} x {reason}" for reason, count in self.counts.most_common())

    def hint(self) -> str:
        """How to fix the most frequent reason, for messages; empty where there is none."""
        for reason, _ in self.counts.most_common(1):
            return self.hints.get(reason) or HINTS.get(reason, "")
        return ""

    def line(self, name: str, what: str, kept: int) -> str:
        """A line for the log about what was left out; empty where nothing was.

        Args:
            name: dotted path of the table in the recipe.
            what: what its rows become, such as "rankings".
            kept: how many of them there are.
        """
        out = self.rows_out.total()
        parts = []
        if out:
            answers = self.counts - self.rows_out - self.completions_out  # of what is left out
            why = self._why(self.rows_out) + (f", which had {self._why(answers)}" if answers else "")
            parts.append(f"{out:,} of {count_of(out + kept, what)} left out: {why}")
        if answers := +self.completions_out:
            shown = f"{count_of(answers.total(), 'answers')} left out of {what} that are kept"
            # A row may have fewer answers than the table has columns.
            parts.append(f"{shown}: {self._why(answers, {'empty completion': 'no text in the cell'})}")
        return f"{name}: {'. '.join(parts)}" if parts else ""

    def examples(self, reason: str) -> str:
        """The first rows with something left out for this reason: `row 3`, or `rows 3, 17, 20, ...`; empty where
        rows have no numbers."""
        rows = list(dict.fromkeys(row for row, why in self.places if why == reason and row))
        more = ", ..." if len(rows) > EXAMPLES else ""
        return f"row{'s' * (len(rows) > 1)} {', '.join(map(str, rows[:EXAMPLES]))}{more}" if rows else ""

    def _why(self, counts: Counter[str], remarks: Mapping[str, str] = HINTS) -> str:
        """The counts, highest first, each with its first rows and how to fix it or another remark."""
        parts = []
        for reason, count in counts.most_common():
            hint = self.hints.get(reason) or remarks.get(reason) or HINTS.get(reason, "")
            about = "; ".join(filter(None, (self.examples(reason), hint)))
            parts.append(f"{count:,} x {reason}" + (f" ({about})" if about else ""))
        return ", ".join(parts)

    def counting(self, rows: Iterable[Row]) -> Iterator[Row]:
        """`rows`, counted as they pass, without those that are left out."""
        for row in rows:
            self.read += 1
            if row.left_out:
                self.add(row.left_out, row.number, row.hint)
                continue
            self.on_row(row)
            if self.read % 1000 == 0:
                self.on_read(self.read)
            yield row


def read_table(config: TableConfig | RankingTableConfig, say: Callable[[str], None] | None = None) -> Iterator[Row]:
    """The rows of the table that `config` names, with the columns of the tables that are joined to it; `say` is
    called before a download.

    Each source of `config.path` is a local file or folder, a pattern of files, `https://...[#sha256=HEX]`, or
    `hub://owner/name[/subset]@revision`. Rows without a partner in a joined table have `left_out` set.

    Raises:
        DataError: the table does not exist, is malformed (with file and line), or has no rows.
    """
    from data.tables.joins import joined  # which, as the other, needs the rows of this module
    from data.tables.selection import cleaned, filled_down, selected

    rows: Iterator[Row] = islice(_rows(config.path, config.split, say, config.header), config.limit)
    if config.na_values or config.decimal != ".":
        rows = cleaned(rows, config.na_values, config.decimal)
    if config.fill_down:
        rows = filled_down(rows, config.fill_down)
    if config.only:
        rows = selected(rows, config.only)
    for _, join in joins_of("", config):
        rows = joined(rows, join, _rows(join.path, join.split, say))
    yield from rows


def _rows(
    path: str | Sequence[str], split: str, say: Callable[[str], None] | None, header: int = 1
) -> Iterator[Row]:
    """The rows of all sources, one after the other. `header`: rows of names in CSV files."""
    empty = True
    for source in files_of(path):
        if source.startswith(HUB):
            rows = _hub_rows(source, split)
        else:
            local = fetch(source, say) if is_url(source) else Path(source).expanduser()
            rows = _saved_rows(local, split) if is_saved(local) else _file_rows(local, header)
        for row in rows:
            empty = False
            yield row
    if empty:
        raise DataError("the table has no rows", where=shown(path), hint="give a table with at least one row")


def _file_rows(path: Path, header: int = 1) -> Iterator[Row]:
    if path.is_dir():
        yield from _folder_rows(path, header)
        return
    if not path.is_file():
        near = nearest(path)
        start = "correct the path; a relative one starts at the folder where the command runs"
        raise DataError(f"there is no file {path}", hint=f"did you mean {near}?" if near else start)
    match kind(path):
        case ".csv" | ".tsv" as suffix:
            for number, cells in csv_records(path, "," if suffix == ".csv" else "\t", header):
                yield Row(number, cells, f"{path}:{number}")
        case ".jsonl" | ".ndjson":
            yield from _jsonl_rows(path)
        case ".json":
            yield from _json_rows(path)
        case ".parquet":
            yield from _parquet_rows(path)
        case _:
            raise DataError(
                f"the name of {path.name} does not tell its format",
                hint=f"name it with one of {', '.join(SUFFIXES)} (text formats also with .gz or .zst)",
            )


def kind(path: Path) -> str | None:
    """The suffix of a table's format, without `.gz` or `.zst`; None for an unknown one."""
    packed = path.suffix.lower() in PACKED
    suffix = (Path(path.stem).suffix if packed else path.suffix).lower()
    return suffix if suffix in SUFFIXES and not (packed and suffix == ".parquet") else None


def _folder_rows(path: Path, header: int) -> Iterator[Row]:
    """The rows of all tables below a folder, in the order of their names, numbered as one table."""
    files = [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file() and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]
    kinds = {kind(file) for file in files} - {None}
    if len(kinds) > 1:
        kinds.discard(".json")  # descriptions of a data set lie beside its tables
    if len(kinds) > 1:
        raise DataError(
            f"the folder {path} holds tables of several formats: {', '.join(sorted(map(str, kinds)))}",
            hint="name one file, or keep one format in the folder",
        )
    if not kinds:
        raise DataError(
            f"there is no file with rows in the folder {path}",
            hint=f"name a table ({', '.join(SUFFIXES)}), a folder of tables of one format, or what "
            "`datasets.save_to_disk` wrote",
        )
    tables = (file for file in files if kind(file) in kinds)
    for number, row in enumerate(chain.from_iterable(_file_rows(table, header) for table in tables), 1):
        row.number = number
        yield row


def _jsonl_rows(path: Path) -> Iterator[Row]:
    for number, line in lines(path):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"the line is not JSON: {error}", where=where, hint="write one JSON object on each line"
            ) from None
        yield Row(number, _object(value, where), where)


def _json_rows(path: Path) -> Iterator[Row]:
    try:
        for number, value in enumerate(ListReader(pieces(path)), 1):
            where = f"{path}, row {number}"
            yield Row(number, _object(value, where), where)
    except NotAList as error:
        raise DataError(
            str(error),
            where=f"{path}:{error.line}",
            hint="write a list of objects, [{...}, ...]; a file with one object on each line is named .jsonl",
        ) from None


def _object(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"the row must be a JSON object, got {value!r:.60}", where=where, hint='write {"column": value, ...}'
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
            f"the file is not Parquet or is damaged: {error}", where=str(path), hint="write or copy it again"
        ) from error


def is_saved(path: Path) -> bool:
    """Whether `datasets.save_to_disk` wrote the folder, with one split or several."""
    return (path / "state.json").is_file() or (path / "dataset_dict.json").is_file()


def _saved_rows(path: Path, split: str) -> Iterator[Row]:
    import datasets

    try:
        saved = datasets.load_from_disk(str(path))
    except Exception as error:  # datasets raises whatever its readers and file systems raise
        raise DataError(
            f"the folder is not what datasets.save_to_disk writes, or is damaged: {type(error).__name__}: {error}",
            where=str(path),
            hint="save the data set again, or give its rows as JSONL or Parquet",
        ) from error
    if not isinstance(saved, Mapping):
        yield from _dataset_rows(saved, str(path))
        return
    for part in split.split("+"):
        if part not in saved:
            raise DataError(
                f"the saved data set has no split {part!r}",
                where=str(path),
                hint=f"set split to {' or '.join(saved)}",
            )
        yield from _dataset_rows(saved[part], f"{path}, split {part}")


def _dataset_rows(table: Iterable[Mapping[str, Any]], place: str) -> Iterator[Row]:
    for number, cells in enumerate(table, 1):
        yield Row(number, cells, f"{place}, row {number}")


def _hub_rows(path: str, split: str) -> Iterator[Row]:
    address, _, revision = path.removeprefix(HUB).partition("@")
    parts = address.split("/")
    if len(parts) not in (2, 3) or not all(parts) or not revision:
        raise DataError(
            f"{path} does not name a Hub data set at a revision",
            hint="write hub://owner/name@revision or hub://owner/name/subset@revision",
        )
    import datasets

    name, subset = "/".join(parts[:2]), parts[2] if len(parts) == 3 else None
    elsewhere = "give a local file: save the data set where there is a network, with datasets' to_parquet"
    try:
        with network.hub(f"the data set {name}", where=path, offline=elsewhere):
            for part in split.split("+"):
                table = datasets.load_dataset(name, subset, split=part, revision=revision, streaming=True)
                yield from _dataset_rows(table, f"{path}, split {part}")
    except TutelageError:
        raise
    except Exception as error:  # datasets raises whatever its readers, file systems and HTTP client raise
        raise DataError(
            f"the Hub data set cannot be read: {type(error).__name__}: {error}",
            where=f"{path}, split {split}",
            hint="check the name, the revision, the split and the network, or give a local file",
        ) from error
