"""Files and folders written by other programs: CSV dialects, encodings, folders of tables, saved data sets."""

import codecs
import csv
import io
import json

import pyarrow
import pyarrow.parquet
import pytest

from data.tables import text_files
from data.tables.sources import read_table
from pipeline.config.data import TableConfig
from pipeline.errors import DataError

ROWS = [
    {"prompt": "one, two; three\tfour|five", "chosen": 'say "hi"\nand go', "rejected": "é"},
    {"prompt": "Q", "chosen": "x", "rejected": ""},
]


def read(path, **options):
    return list(read_table(TableConfig(path=str(path), **options)))


def fails(path, *parts, **options):
    with pytest.raises(DataError) as caught:
        read(path, **options)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.hint
    return caught.value


def csv_text(separator=",", end="\n", rows=ROWS):
    out = io.StringIO()
    writer = csv.DictWriter(out, list(rows[0]), delimiter=separator, lineterminator=end)
    writer.writeheader()
    writer.writerows(rows)
    return out.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("suffix", [".csv", ".tsv"])
def test_every_dialect_gives_the_same_rows(tmp_path, suffix, separator, end, encoding):
    path = tmp_path / f"t{suffix}"
    path.write_bytes(csv_text(separator, end).encode(encoding))
    assert read(path) == ROWS
    path.write_bytes((f"sep={separator}{end}" + csv_text(separator, end)).encode(encoding))
    assert read(path) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16-le", "utf-16-be"])
def test_json_is_read_in_other_encodings(tmp_path, encoding):
    bom = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}.get(encoding, b"")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\r\n" for row in ROWS)
    (tmp_path / "t.jsonl").write_bytes(bom + lines.encode(encoding))
    (tmp_path / "t.json").write_bytes(bom + json.dumps(ROWS, ensure_ascii=False).encode(encoding))
    assert read(tmp_path / "t.jsonl") == read(tmp_path / "t.json") == ROWS


def test_rows_have_line_numbers_in_every_dialect(tmp_path):
    path = tmp_path / "t.csv"
    for end in ("\r", "\r\n"):
        path.write_bytes(end.join(["sep=;", "a;b", "1;2", "3"]).encode())
        error = fails(path, "1 fields", "separated by ';'")
        assert error.where == f"{path}:4"
        path.write_bytes(end.join(["sep=;", "a;b", "1;2", "3;4"]).encode())
        assert [row.number for row in read(path)] == [3, 4]


def test_a_single_column_needs_no_separator(tmp_path):
    (tmp_path / "t.csv").write_text('text\none; two\n"three, four"\n')
    assert read(tmp_path / "t.csv") == [{"text": "one; two"}, {"text": "three, four"}]


def test_a_stray_line_end_in_a_cell_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(b"a,b\n1,x\ry\n")
    fails(tmp_path / "t.csv", "malformed", "t.csv:2")


def test_long_cells_are_read_up_to_a_limit(tmp_path, monkeypatch):
    row = {"a": "x" * 300_000, "b": "y"}
    (tmp_path / "t.csv").write_text(csv_text(rows=[row]))
    assert read(tmp_path / "t.csv") == [row]
    monkeypatch.setattr(text_files, "LONGEST_CELL", 1000)
    error = fails(tmp_path / "t.csv", "a cell is longer than 1,000 characters", "close the quote")
    assert error.where.endswith("t.csv:2")


def test_invalid_utf_16_is_refused(tmp_path):
    (tmp_path / "t.csv").write_bytes(codecs.BOM_UTF16_LE + "a,b\n1,".encode("utf-16-le") + b"\x00\xd8\x00")
    fails(tmp_path / "t.csv", "is not UTF-16", "save the file with the encoding UTF-8")


# folders


def write_kind(path, suffix, rows):
    if suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    elif suffix in (".csv", ".tsv"):
        path.write_text(csv_text("," if suffix == ".csv" else "\t", rows=rows))
    else:
        text = json.dumps(rows) if suffix == ".json" else "\n".join(map(json.dumps, rows))
        path.write_text(text)


@pytest.mark.parametrize("suffix", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_folders_of_tables_are_read(tmp_path, suffix):
    (tmp_path / "part").mkdir()
    (tmp_path / ".cache").mkdir()
    (tmp_path / "README.md").write_text("# Rows\n")
    for name in ("a", "part/b", ".cache/c"):
        write_kind(tmp_path / f"{name}{suffix}", suffix, [{"x": f"{name}{i}", "y": "-"} for i in range(2)])
    rows = read(tmp_path)
    assert [row["x"] for row in rows] == ["a0", "a1", "part/b0", "part/b1"]
    assert [row.number for row in rows] == [1, 2, 3, 4]
    assert f"b{suffix}" in rows[3].where


def test_folders_without_a_single_format_are_refused(tmp_path):
    fails(tmp_path, "there is no file with rows in the folder", "save_to_disk")
    write_kind(tmp_path / "a.csv", ".csv", ROWS)
    write_kind(tmp_path / "dataset_infos.json", ".json", ROWS)
    assert read(tmp_path) == ROWS
    write_kind(tmp_path / "a.jsonl", ".jsonl", ROWS)
    fails(tmp_path, "tables of several formats: .csv, .jsonl")


def test_folders_written_by_save_to_disk_are_read(tmp_path):
    import datasets

    rows = [{"prompt": f"Q{i}", "chosen": [{"role": "assistant", "content": "x"}]} for i in range(5)]
    table = datasets.Dataset.from_list(rows)
    table.save_to_disk(tmp_path / "one")
    assert read(tmp_path / "one") == rows
    assert read(tmp_path / "one", limit=2)[1].where == f"{tmp_path / 'one'}, row 2"
    datasets.DatasetDict(train=table.select([4, 2]), test=table.select([0])).save_to_disk(tmp_path / "several")
    assert read(tmp_path / "several") == [rows[4], rows[2]]
    assert read(tmp_path / "several", split="train+test") == [rows[4], rows[2], rows[0]]
    fails(tmp_path / "several", "no split 'validation'", "train or test", split="validation")
    next((tmp_path / "one").glob("*.arrow")).write_bytes(b"nothing of the kind")
    fails(tmp_path / "one", "save_to_disk", "one")
