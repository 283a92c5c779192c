import gzip
import json
import sys
import types
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from data.tables.sources import Row, as_number, read_table
from pipeline import network
from pipeline.config.data import TableConfig
from pipeline.errors import DataError

ROWS = [{"prompt": "a, b", "completion": 'say "hi"\nand go'}, {"prompt": "é", "completion": "x"}]


def read(path, **options) -> list[Row]:
    return list(read_table(TableConfig(path=str(path), **options)))


def fails(path, *parts: str, **options) -> DataError:
    """The error of reading `path`, whose message contains all `parts`."""
    with pytest.raises(DataError) as caught:
        read(path, **options)
    for part in parts:
        assert part in str(caught.value)
    assert caught.value.hint
    return caught.value


def write_csv(path: Path, text: str) -> Path:
    path.write_bytes(text.encode())
    return path


CSV = 'prompt,completion\n"a, b","say ""hi""\nand go"\né,x\n'


@pytest.mark.parametrize("name", ["t.csv", "t.tsv", "t.jsonl", "t.ndjson", "t.json", "t.csv.gz", "t.jsonl.gz"])
def test_every_text_format_gives_the_same_rows(tmp_path, name):
    path = tmp_path / name
    if ".csv" in name:
        text = CSV
    elif ".tsv" in name:
        text = 'prompt\tcompletion\na, b\t"say ""hi""\nand go"\né\tx\n'
    elif name == "t.json":
        text = json.dumps(ROWS, indent=2)
    else:
        text = "\n".join(map(json.dumps, ROWS)) + "\n\n"
    opener = gzip.open if name.endswith(".gz") else open
    with opener(path, "wt", encoding="utf-8", newline="") as out:
        out.write(text)
    assert read(path) == ROWS


def test_parquet_is_read(tmp_path):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet

    rows = [{"prompt": str(i), "scores": [i, i + 1]} for i in range(3000)]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    read_back = read(tmp_path / "t.parquet")
    assert read_back == rows
    assert [row.number for row in read_back] == list(range(1, 3001))


def test_damaged_parquet_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 and nothing of the kind")
    fails(tmp_path / "t.parquet", "not Parquet", "t.parquet")


def test_rows_are_numbered_by_the_line_they_start_on(tmp_path):
    rows = read(write_csv(tmp_path / "t.csv", CSV + "\nc,d\n"))
    assert [row.number for row in rows] == [2, 4, 6]
    assert rows[1].where == f"{tmp_path / 't.csv'}:4"


def test_limit_stops_reading(tmp_path):
    path = write_csv(tmp_path / "t.csv", "a,b\n1,2\n3,4\nbroken\n")
    assert read(path, limit=2) == [{"a": "1", "b": "2"}, {"a": "3", "b": "4"}]
    fails(path, "1 fields", ":4")


def test_rows_are_streamed(tmp_path):
    path = write_csv(tmp_path / "t.csv", "a\n1\n" + '"never closed\n')
    assert next(read_table(TableConfig(path=str(path)))) == {"a": "1"}


def test_a_byte_order_mark_is_not_part_of_the_header(tmp_path):
    assert read(write_csv(tmp_path / "t.csv", "\ufeffa,b\n1,2\n")) == [{"a": "1", "b": "2"}]


@pytest.mark.parametrize(
    ("text", "line", "message"),
    [
        ("a,b\n1,2\n3\n", 3, "the row has 1 fields and the header has 2"),
        ("a,b\n1,2\n3,4,5\n", 3, "the row has 3 fields and the header has 2"),
        ('a,b\n1,2\n\n"x\ny",4,5\n', 4, "3 fields"),
        ('a,b\n1,"2\n', 2, "malformed"),
        ('a,b\n1,"2"x\n', 2, "malformed"),
        ("a,b\n1,\0\n", 2, "NUL"),
        ("a,a\n1,2\n", 1, "twice: 'a'"),
    ],
)
def test_malformed_csv_is_refused_with_the_row(tmp_path, text, line, message):
    path = write_csv(tmp_path / "t.csv", text)
    assert fails(path, message).where == f"{path}:{line}"


def test_invalid_utf_8_is_refused_with_the_row(tmp_path):
    path = tmp_path / "t.csv"
    path.write_bytes(b"a,b\n1,2\n3,caf\xe9\n")
    assert fails(path, "0xe9, which is not UTF-8").where == f"{path}:3"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"a": 1', "not JSON"),
        ("[1, 2]", "must be a JSON object"),
        ('"text"', "must be a JSON object"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_a_malformed_json_line_is_refused_with_the_row(tmp_path, line, message):
    path = tmp_path / "t.jsonl"
    path.write_text('{"a": 1}\n' + line + "\n")
    assert fails(path, message).where == f"{path}:2"


@pytest.mark.parametrize(
    ("text", "message"), [('{"a": 1}', "list of objects"), ("[1]", "row 1"), ('[\n{"a": }]', ":2")]
)
def test_a_malformed_json_file_is_refused(tmp_path, text, message):
    (tmp_path / "t.json").write_text(text)
    fails(tmp_path / "t.json", message)


def test_truncated_gzip_is_refused(tmp_path):
    path = tmp_path / "t.csv.gz"
    path.write_bytes(gzip.compress(CSV.encode() * 1000)[:-20])
    fails(path, "cannot be read", "t.csv.gz")


@pytest.mark.parametrize("name", ["t.csv", "t.jsonl", "t.tsv"])
@pytest.mark.parametrize("text", ["", "\n\n", "a,b\n"])
def test_an_empty_data_set_is_an_error(tmp_path, name, text):
    if name == "t.jsonl" and text.strip():
        text = ""
    (tmp_path / name).write_text(text)
    fails(tmp_path / name, "empty", name)


def test_an_empty_json_list_is_an_error(tmp_path):
    (tmp_path / "t.json").write_text("[]")
    fails(tmp_path / "t.json", "empty")


def test_a_missing_file_and_an_unknown_format_are_errors(tmp_path):
    fails(tmp_path / "t.csv", "there is no file", "t.csv")
    fails(tmp_path, "there is no file")
    (tmp_path / "t.xlsx").write_text("x")
    fails(tmp_path / "t.xlsx", "name of t.xlsx does not tell its format")


def test_a_missing_column_names_the_nearest():
    row = Row(7, {"prompt": "x", "completion": "y"}, "t.csv:7")
    with pytest.raises(DataError, match="no column 'promt'; 'prompt' is probably meant") as caught:
        row["promt"]
    assert caught.value.where == "t.csv:7"
    assert caught.value.hint == "the columns are prompt, completion. Rename the right one to promt"


def test_cells_are_converted_to_text():
    row = Row(1, {"a": None, "b": "x", "c": 3, "d": "\ud800"}, "t:1")
    assert (row.text("a"), row.text("b")) == ("", "x")
    for column in "cd":
        with pytest.raises(DataError, match=f"column '{column}'"):
            row.text(column)


@pytest.mark.parametrize(
    ("cell", "number"), [("3", 3), (" 2.5 ", 2.5), (4, 4), ("", None), ("  ", None), (None, None)]
)
def test_cells_are_converted_to_numbers(cell, number):
    assert as_number(cell, "a rating", "t:1") == number


@pytest.mark.parametrize("cell", ["good", "n/a", True, "nan", float("inf"), [1], {}, "1,5", 10**400])
def test_cells_that_are_not_numbers_are_refused(cell):
    with pytest.raises(DataError, match="a rating must be a number"):
        as_number(cell, "a rating", "t:1")


def fake_datasets(monkeypatch, load):
    monkeypatch.setitem(sys.modules, "datasets", types.SimpleNamespace(load_dataset=load))


def test_hub_data_sets_are_streamed_at_the_revision(monkeypatch):
    calls = []

    def load(*args, **options):
        calls.append((args, options))
        return ({"text": str(i)} for i in range(10**9))

    fake_datasets(monkeypatch, load)
    assert [row["text"] for row in read("hub://owner/name@abc", split="test", limit=2)] == ["0", "1"]
    assert calls == [(("owner/name", None), {"split": "test", "revision": "abc", "streaming": True})]
    assert read("hub://owner/name/part@abc", limit=1)[0].where == "hub://owner/name/part@abc, split train, row 1"
    assert calls[1][0] == ("owner/name", "part")


@pytest.mark.parametrize("path", ["hub://name@abc", "hub://owner/name", "hub://owner/name@", "hub://a/b/c/d@e"])
def test_a_malformed_hub_address_is_refused(path):
    fails(path, "does not name a Hub data set")


def test_a_hub_failure_is_a_single_error(monkeypatch):
    monkeypatch.setattr(network, "hub_is_reachable", lambda: True)

    def load(*args, **options):
        raise ConnectionError("no route to host")

    fake_datasets(monkeypatch, load)
    fails("hub://owner/name@abc", "no route to host", "hub://owner/name@abc")


def test_a_long_line_of_json_is_read(tmp_path):
    rows = [{"a": i, "b": "ü" * 50} for i in range(5000)]
    (tmp_path / "t.json").write_text(json.dumps(rows, ensure_ascii=False))
    assert list(map(dict, read(tmp_path / "t.json"))) == rows
    (tmp_path / "t.json").write_bytes(json.dumps(rows).encode()[:-1] + b', {"a": "\xff"}]')
    fails(tmp_path / "t.json", "0xff, which is not UTF-8", "t.json:1")


def test_folders_of_parquet_files_are_read(tmp_path):
    for i in range(3):
        rows = [{"a": 10 * i + j} for j in range(2)]
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / f"train-0000{i}.parquet")
    rows = read(tmp_path)
    assert [row["a"] for row in rows] == [0, 1, 10, 11, 20, 21]
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[3].where.endswith("train-00001.parquet, row 2")


def test_several_splits_of_a_hub_data_set_are_read(monkeypatch):
    import datasets

    requests = []

    def load_dataset(name, subset, *, split, revision, streaming):
        requests.append((name, subset, split, revision, streaming))
        return [{"a": f"{split} {i}"} for i in range(2)]

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    config = TableConfig(path="hub://me/rankings/some@abc", split="train+eval")
    rows = list(read_table(config))
    assert [row["a"] for row in rows] == ["train 0", "train 1", "eval 0", "eval 1"]
    assert rows[2].where == "hub://me/rankings/some@abc, split eval, row 1"
    assert requests == [("me/rankings", "some", split, "abc", True) for split in ("train", "eval")]
