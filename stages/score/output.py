"""The file of scored rows, written in parts so that an interrupted run continues.

While a run is at work, `OUT.partial/` holds its settings and one JSONL file per finished part. A part is written
whole or not at all. At the end the parts become the file OUT, which appears in one step.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import DataError, RecipeError
from pipeline.files import canonical, jsonable, need_file, write_atomic

FORMATS = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet")
SETTINGS = "settings.json"
OTHER_OUT = "give another file with --out"


@dataclass(frozen=True)
class Output:
    """Scored rows on their way to a file.

    Attributes:
        path: the file.
        settings: what decides its content, as JSON values: input, model, columns.
    """

    path: Path
    settings: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        return self.path.with_name(f"{self.path.name}.partial")

    def begin(self, *, fresh: bool) -> int:
        """Prepares the folder of parts; returns how many rows are already finished.

        Args:
            fresh: discard what an earlier run wrote.

        Raises `RecipeError` if the file is there, or is being written with other settings.
        """
        stated = self.folder / SETTINGS
        if fresh:
            for file in (*self._parts(), stated):
                file.unlink(missing_ok=True)
        if stated.exists():
            earlier = json.loads(stated.read_text(encoding="utf-8"))
            changed = [name for name in self.settings if earlier.get(name) != jsonable(self.settings)[name]]
            if changed:
                raise RecipeError(
                    f"{self.folder} holds an unfinished run with another {', '.join(changed)}",
                    hint=f"add --fresh to start again, or {OTHER_OUT}",
                )
        write_atomic(stated, canonical(jsonable(self.settings)) + "\n")
        return sum(_rows_in(part) for part in self._parts())

    def write(self, first: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a part: rows from number `first` on, counted from 0."""
        lines = (json.dumps(jsonable(row), ensure_ascii=False, default=str) for row in rows)
        write_atomic(self.folder / f"{first:012d}-{len(rows)}.jsonl", "".join(f"{line}\n" for line in lines))

    def finish(self) -> None:
        """Makes the file from the parts, and removes these. Raises `DataError` if Parquet cannot hold the rows."""
        temporary = self.folder / f"finished{self.path.suffix}"
        suffix = self.path.suffix.lower()
        if suffix == ".parquet":
            self._write_parquet(temporary)
        elif suffix in (".csv", ".tsv"):
            self._write_csv(temporary, "," if suffix == ".csv" else "\t")
        else:
            with temporary.open("wb") as out:
                for part in self._parts():
                    with part.open("rb") as lines:
                        shutil.copyfileobj(lines, out)
        os.replace(temporary, self.path)
        shutil.rmtree(self.folder)

    def _parts(self) -> list[Path]:
        return sorted(self.folder.glob("*-*.jsonl"))

    def _rows(self) -> Iterator[list[dict[str, Any]]]:
        for part in self._parts():
            with part.open(encoding="utf-8") as lines:
                yield [json.loads(line) for line in lines]

    def _columns(self) -> list[str]:
        """All columns, in the order in which they first occur: rows of JSONL may lack some."""
        names: dict[str, None] = {}
        for rows in self._rows():
            for row in rows:
                names |= dict.fromkeys(row)
        return list(names)

    def _write_csv(self, path: Path, separator: str) -> None:
        with path.open("w", encoding="utf-8", newline="") as out:
            writer = csv.DictWriter(out, self._columns(), delimiter=separator, lineterminator="\n")
            writer.writeheader()
            for rows in self._rows():
                writer.writerows({name: _csv_cell(value) for name, value in row.items()} for row in rows)

    def _write_parquet(self, path: Path) -> None:
        import pyarrow
        import pyarrow.parquet

        columns, jsonl = self._columns(), self.path.with_suffix(".jsonl")

        def tables(schema: Any = None) -> Iterator[Any]:
            for rows in self._rows():
                filled = [{name: row.get(name) for name in columns} for row in rows]
                yield pyarrow.Table.from_pylist(filled, schema)

        try:
            schema = pyarrow.schema([])
            for table in tables():
                schema = pyarrow.unify_schemas([schema, table.schema], promote_options="permissive")
            with pyarrow.parquet.ParquetWriter(path, schema) as writer:
                for table in tables(schema):
                    writer.write_table(table)
        except (pyarrow.ArrowInvalid, pyarrow.ArrowTypeError) as error:
            raise DataError(
                f"a column holds values of several types, which Parquet cannot hold: {error}",
                where=str(self.path),
                hint=f"nothing is lost: rename {self.folder} to {jsonl}.partial and run again with --out {jsonl}",
            ) from error


def check_path(path: Path, *, fresh: bool) -> None:
    """Raises `RecipeError` if the suffix of a path does not name a format that can be written, if it cannot be
    written to, or if it is a finished file and is not to be replaced (`fresh`)."""
    if path.suffix.lower() not in FORMATS:
        raise RecipeError(
            f"the name of {path.name} does not tell its format",
            hint=f"give --out a name that ends with one of {', '.join(FORMATS)}",
        )
    need_file(path, f"scores{path.suffix}", OTHER_OUT)
    if path.exists() and not (fresh or Output(path, {}).folder.exists()):
        raise RecipeError(f"{path} exists", hint=f"add --fresh to write it again, or {OTHER_OUT}")


def _rows_in(part: Path) -> int:
    return int(part.stem.partition("-")[2])


def _csv_cell(value: Any) -> Any:
    """Lists and objects as JSON, as `score` reads them back; nothing for null."""
    if value is None:
        return ""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict | bool) else value
