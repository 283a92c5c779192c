"""Tables joined to others, several files in one source, and texts extracted from longer ones."""

import csv
import gzip
import json
import subprocess
import sys
from pathlib import Path

import pandas
import pyarrow
import pytest
from repository import ROOT

from data.tables.check import check_table
from data.tables.corpus import documents
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped, read_table
from pipeline.config.data import JoinConfig, PromptTableConfig, RankingTableConfig, TableConfig
from pipeline.errors import DataError


def write(path, rows):
    if path.suffix == ".csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


SYSTEMS, PEOPLE, ITEMS = ("gpt", "llama", "t5"), ("ana", "ben"), range(6)


def votes():
    return [
        {"item": i, "system": s, "who": w, "rating": (i * 7 + len(s) * 3 + len(w) * i) % 5}
        for i in ITEMS
        for w in PEOPLE
        for s in SYSTEMS
    ]


def texts():
    return [{"item": str(i), "system": s, "text": f"{s} says {i}"} for i in ITEMS for s in SYSTEMS]


def prompts():
    return [{"id": i, "q": {"text": f"question {i}"}} for i in ITEMS]


def joined(tmp_path, rows=None, partners=None, join=None):
    path = write(tmp_path / "votes.csv", rows or votes())
    if join is None:
        join = [
            JoinConfig(path=write(tmp_path / "texts.jsonl", partners or texts()), on=["item", "system"]),
            JoinConfig(
                path=write(tmp_path / "items.jsonl", prompts()), on={"item": "id"}, columns={"question": "q.text"}
            ),
        ]
    columns = {"prompt": "question", "completion": "text", "model": "system", "annotator": "who"}
    return RankingTableConfig(path=path, format="long", columns=columns, join=join)


def test_one_row_per_item_system_and_annotator(tmp_path):
    config = joined(tmp_path)
    read = list(read_rankings(config, Dropped()))
    frame = pandas.DataFrame(votes()).merge(pandas.DataFrame(texts()).astype({"item": int}), on=["item", "system"])
    groups = frame.groupby(["item", "who"])
    assert len(read) == len(groups) == 12
    for (item, who), group in groups:
        [ranking] = [r for r in read if (r.prompt[0]["content"], r.annotator) == (f"question {item}", who)]
        assert ranking.models == list(group.system)
        assert ranking.completions == list(group.text)
        assert ranking.ranks == group.rating.rank(ascending=False, method="min").astype(int).tolist()
    report = check_table("data.rankings", config)
    assert (report.problems, report.unused, report.parsed, report.complete) == ([], [], 12, True)


def test_rows_without_a_partner_are_counted(tmp_path):
    dropped = Dropped()
    lacking = [row for row in texts() if (row["item"], row["system"]) != ("2", "t5")]
    rows = [*votes(), votes()[0] | {"system": ""}]
    config = joined(tmp_path, rows, lacking)
    assert len(list(read_rankings(config, dropped))) == 12
    reason = f"no row of {tmp_path / 'texts.jsonl'} with its item, system"
    assert dropped.rows_out == {reason: 2, "empty key of a join (item, system)": 1}
    assert dropped.read == len(rows)
    report = check_table("data.rankings", config)
    assert (report.problems, report.dropped.rows_out) == ([], dropped.rows_out)


def test_partners_with_the_same_key_must_agree(tmp_path):
    assert len(list(read_rankings(joined(tmp_path, partners=texts() * 2), Dropped()))) == 12
    config = joined(tmp_path, partners=[*texts(), texts()[3] | {"text": "another"}])
    with pytest.raises(DataError, match="have the same item, system and differ in text") as caught:
        list(read_rankings(config, Dropped()))
    assert caught.value.where == f"{tmp_path / 'texts.jsonl'}:4 and {tmp_path / 'texts.jsonl'}:19"
    [problem] = check_table("data.rankings", config).problems
    assert problem.what == caught.value.what


@pytest.mark.parametrize(
    ("join", "message", "hint"),
    [
        (
            {"on": {"itm": "item", "system": "system"}},
            "the table has no column 'itm'; 'item' is probably meant",
            "correct `on` under `join`",
        ),
        ({"on": {"item": "itm"}}, "texts.jsonl, which is joined, has no column 'itm'", "the columns are item"),
        ({"on": ["item", "system"], "columns": ["txt"]}, "has no column 'txt'; 'text' is", "`on` or `columns`"),
        ({"on": "item"}, "have the same item and differ in system, text", "name more columns under `on`"),
        (
            {"on": {"item": "item"}, "columns": {"who": "item"}},
            "both this table and .* have a column 'who'",
            "join",
        ),
    ],
)
def test_joins_that_do_not_fit_are_refused(tmp_path, join, message, hint):
    path = write(tmp_path / "texts.jsonl", texts())
    with pytest.raises(DataError, match=message) as caught:
        list(read_table(joined(tmp_path, join=JoinConfig(path=path, **join))))
    assert hint in caught.value.hint
    assert caught.value.where


def test_demonstrations_prompts_and_texts_can_be_joined(tmp_path):
    answers = write(tmp_path / "answers.csv", [{"id": 0, "text": "x"}, {"id": 1, "text": "y"}])
    questions = [{"id": i, "prompt": f"p{i}"} for i in range(3)]
    join = JoinConfig(path=answers, on="id")
    config = TableConfig(path=write(tmp_path / "q.jsonl", questions), join=join, columns={"completion": "text"})
    dropped = Dropped()
    assert [d.completion for d in read_demonstrations(config, 0.0, dropped)] == ["x", "y"]
    assert dropped.rows_out.total() == 1
    prompts = PromptTableConfig(path=config.path, join=join, metadata=["text"])
    assert [p.metadata for p in read_prompts(prompts, 0.0, Dropped())] == [{"text": "x"}, {"text": "y"}]
    with pytest.raises(DataError, match=r"no row of .* with its id") as caught:
        list(documents(TableConfig(path=config.path, join=join), 0, 0.0))
    assert caught.value.where.endswith("q.jsonl:3")


def test_check_names_a_joined_file_that_does_not_exist(tmp_path):
    config = joined(tmp_path, join=JoinConfig(path=str(tmp_path / "vote.csv"), on="item"))
    [problem] = check_table("data.rankings", config).problems
    assert problem.key == "data.rankings.join.path"
    assert "votes.csv" in problem.hint
    remote = joined(tmp_path, join=JoinConfig(path="https://host/t.csv", on="item"))
    assert not check_table("data.rankings", remote).opened


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak from /proc")
def test_the_memory_of_a_join_does_not_grow(tmp_path):
    script = (
        "import re, sys\n"
        "from pathlib import Path\n"
        "from data.tables.sources import read_table\n"
        "from pipeline.config.data import JoinConfig, TableConfig\n"
        "rows = read_table(TableConfig(path=sys.argv[1], join=JoinConfig(path=sys.argv[2], on='id')))\n"
        "print(sum(1 for row in rows), re.search(r'VmHWM:\\s+(\\d+)', Path('/proc/self/status').read_text())[1])\n"
    )
    peaks = []
    for count in (100, 20_000):
        left = write(tmp_path / "left.jsonl", ({"id": i, "rating": 1} for i in range(count)))
        right = write(tmp_path / "right.jsonl", ({"id": i, "text": "word " * 600} for i in reversed(range(count))))
        command = [sys.executable, "-c", script, left, right]
        out = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT).stdout.split()
        assert int(out[0]) == count
        peaks.append(int(out[1]) / 1024)
    assert peaks[1] - peaks[0] < 20  # MB; the texts are 60 MB


# Several files


def test_several_files_are_read_one_after_the_other(tmp_path):
    a = write(tmp_path / "a.csv", [{"prompt": "p1", "completion": "x"}, {"prompt": "p2", "completion": "y"}])
    b = write(tmp_path / "b.jsonl", [{"prompt": "p3", "completion": "z"}])
    rows = list(read_table(TableConfig(path=[a, b])))
    assert [(row["prompt"], row.where, row.number) for row in rows] == [
        ("p1", f"{a}:2", 2),
        ("p2", f"{a}:3", 3),
        ("p3", f"{b}:1", 1),
    ]
    assert len(list(read_table(TableConfig(path=[a, b], limit=2)))) == 2
    report = check_table("data.demonstrations", TableConfig(path=[a, b]))
    assert (report.problems, report.parsed, report.path) == ([], 3, f"{a} and 1 more")


def test_a_pattern_names_files_in_the_order_of_their_names(tmp_path):
    (tmp_path / "deep").mkdir()
    for name in ("v2.jsonl", "v1.jsonl", "deep/v3.jsonl", "other.jsonl"):
        write(tmp_path / name, [{"prompt": name}])

    def read(pattern):
        return [row["prompt"] for row in read_table(TableConfig(path=f"{tmp_path}/{pattern}"))]

    assert read("v*.jsonl") == ["v1.jsonl", "v2.jsonl"]
    assert read("v[2].jsonl") == ["v2.jsonl"]
    assert read("**/v*.jsonl") == ["deep/v3.jsonl", "v1.jsonl", "v2.jsonl"]
    write(tmp_path / "v[2].jsonl", [{"prompt": "literally"}])
    assert read("v[2].jsonl") == ["literally"]
    with pytest.raises(DataError, match=r"there is no file .*/w\*\.jsonl"):
        read("w*.jsonl")
    [problem] = check_table(
        "data.prompts", TableConfig(path=[f"{tmp_path}/v1.jsonl", f"{tmp_path}/vx.csv"])
    ).problems
    assert problem.key == "data.prompts.path[1]"


def pack(path, raw):
    if path.suffix == ".gz":
        path.write_bytes(gzip.compress(raw))
    else:
        path.write_bytes(pyarrow.Codec("zstd").compress(raw, asbytes=True))


@pytest.mark.parametrize("suffix", [".gz", ".zst", ".ZST"])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", "prompt,completion\nhi,x\nhö,y\n"),
        ("t.tsv", "prompt\tcompletion\rhi\tx\rhö\ty\r"),
        ("t.jsonl", '{"prompt": "hi", "completion": "x"}\n{"prompt": "hö", "completion": "y"}\n'),
        ("t.json", '[{"prompt": "hi", "completion": "x"}, {"prompt": "hö", "completion": "y"}]'),
    ],
)
def test_packed_files(tmp_path, name, text, suffix):
    path = tmp_path / (name + suffix)
    pack(path, text.encode())
    rows = list(read_table(TableConfig(path=str(path))))
    assert [dict(row) for row in rows] == [{"prompt": "hi", "completion": "x"}, {"prompt": "hö", "completion": "y"}]


def test_a_damaged_zst_file_is_an_error_with_its_line(tmp_path):
    path = tmp_path / "t.jsonl.zst"
    pack(path, b'{"prompt": "hi"}\n' * 100_000)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(DataError, match="the file cannot be read: Truncated") as caught:
        list(read_table(TableConfig(path=str(path))))
    assert caught.value.where.startswith(f"{path}:")
    path.write_bytes(b"no zstd at all")
    with pytest.raises(DataError, match="the file cannot be read"):
        list(read_table(TableConfig(path=str(path))))
    packed = Path(f"{tmp_path}/t.parquet.zst")
    pack(packed, b"x")
    with pytest.raises(DataError, match="does not tell its format"):
        list(read_table(TableConfig(path=str(packed))))


# Extracted texts

QA = {"text": "Question: why?\nAnswer: because"}


def test_prompt_and_completion_are_extracted_from_one_cell(tmp_path):
    config = TableConfig(
        path=write(tmp_path / "t.jsonl", [QA, {"text": "Q: why?"}, QA | {"text": "Question: a\nb\nAnswer: c\nd"}]),
        columns={"prompt": "text", "completion": "text"},
        extract={"prompt": "(?s)Question: (.*?)\nAnswer:", "completion": "(?s)(Answer): (?P<completion>.*)"},
    )
    dropped = Dropped()
    read = list(read_demonstrations(config, 0.0, dropped))
    assert [(d.prompt[0]["content"], d.completion) for d in read] == [("why?", "because"), ("a\nb", "c\nd")]
    assert dropped.rows_out == {"the pattern of prompt is not found": 1}
    assert dropped.places == [(2, "the pattern of prompt is not found")]
    report = check_table("data.demonstrations", config)
    assert (report.problems, report.unused, report.parsed) == ([], [], 2)
    with pytest.raises(DataError, match="the pattern of prompt is not found"):
        list(documents(config, 0, 0.0))


def test_texts_are_extracted_in_rankings(tmp_path):
    row = {"p": "Post: hi TL;DR", "a": "TL;DR: x", "b": "TL;DR: y", "ra": "4 of 5", "rb": "2 of 5"}
    config = RankingTableConfig(
        path=write(tmp_path / "t.jsonl", [row, row | {"b": ""}]),
        format="wide",
        columns={"prompt": "p", "completions": ["a", "b"], "ratings": ["ra", "rb"]},
        extract={"prompt": "Post: (.*) TL", "completions": "TL;DR: (.*)", "ratings": r"(\d+) of"},
    )
    dropped = Dropped()
    [ranking] = read_rankings(config, dropped)
    assert ranking.prompt[0]["content"] == "hi"
    assert (ranking.completions, ranking.ratings) == (["x", "y"], [4.0, 2.0])
    assert dropped.counts["empty completion"] == 1
    scored = {"prompt": "hi", "outs": {"m": {"t": "A: x"}, "n": {"t": "A: y"}}, "s": {"n": 1, "m": 2}}
    config = RankingTableConfig(
        path=write(tmp_path / "s.jsonl", [scored]),
        format="scored",
        columns={"completions": "outs.*.t", "ratings": "s.*"},
        extract={"completions": "A: (.*)"},
    )
    [ranking] = read_rankings(config, Dropped())
    assert (ranking.completions, ranking.models, ranking.ranks) == (["x", "y"], ["m", "n"], [1, 2])


def test_a_pattern_that_is_never_found_is_an_error(tmp_path):
    config = PromptTableConfig(
        path=write(tmp_path / "t.jsonl", [QA] * 3), columns={"prompt": "text"}, extract={"prompt": "Prompt: (.*)"}
    )
    with pytest.raises(DataError, match="no prompt is left: 3 x the pattern of prompt is not found") as caught:
        list(read_prompts(config, 0.0, Dropped()))
    assert "extract: {prompt: ...}" in caught.value.hint
    path = write(tmp_path / "n.jsonl", [{"text": 3}])
    other = PromptTableConfig(path=path, columns=config.columns, extract=config.extract)
    with pytest.raises(DataError, match="column 'text' must be text to extract prompt from, got 3"):
        list(read_prompts(other, 0.0, Dropped()))
