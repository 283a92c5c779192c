"""`tutelage score`: tables in, the same rows with scores out, across interruptions."""

import csv
import json
from pathlib import Path

import pyarrow.parquet
import pytest
import tiny
from reward_runs import RewardRun, reward_run
from typer.testing import CliRunner

from data.schema import write_jsonl
from stages.__main__ import app
from stages.score import run as scoring
from stages.score import source
from stages.score.model import Answers, RewardScorer

ROWS = [
    {"id": number, "prompt": f"q{word}", "completions": [word, f"{word} z", "no"], "note": [None, "x"][number % 2]}
    for number, word in enumerate(tiny.words(9, seed=5))
]  # fmt: skip


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RewardRun:
    """A reward model of three members; tables in the working directory; parts of two rows."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(scoring, "PART", 6)
    write_jsonl(tmp_path / "in.jsonl", ROWS)
    return reward_run(tmp_path / "runs", members=3)


def score(run: RewardRun, *options: str) -> str:
    result = CliRunner().invoke(app, ["score", *options, "--model", str(run.reward.path), "--device", "cpu"])
    assert result.exit_code == 0, result.stderr
    return result.output


def refused(run: RewardRun, *options: str, code: int = 2) -> str:
    result = CliRunner().invoke(app, ["score", *options, "--model", str(run.reward.path), "--device", "cpu"])
    assert result.exit_code == code, result.output
    assert result.stderr.count("hint:") == 1
    assert "Traceback" not in result.stderr
    return result.stderr


def expected(run: RewardRun) -> list[dict]:
    loaded = source.from_place(str(run.reward.path), None, "cpu")
    scores = loaded.score([Answers(tiny.user(row["prompt"]), row["completions"]) for row in ROWS])
    return [
        {**row, "scores": s.scores, "ranks": s.ranks, "score_stds": s.stds}
        for row, s in zip(ROWS, scores, strict=True)
    ]


def same(rows: list[dict], others: list[dict]) -> None:
    assert len(rows) == len(others)
    for row, other in zip(rows, others, strict=True):
        assert list(row) == list(other)
        for name, value in row.items():
            assert value == (pytest.approx(other[name], abs=1e-5) if name.startswith("score") else other[name])


def lines(path: str) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text(encoding="utf-8").splitlines()]


def test_rows_keep_their_columns_and_order_and_get_scores(run: RewardRun) -> None:
    output = score(run, "in.jsonl", "--out", "out.jsonl")
    assert "3 members (mean)" in output
    assert "score  27/27" in output
    assert "out.jsonl: 9 rows, 27 completions" in output
    same(lines("out.jsonl"), expected(run))
    assert not Path("out.jsonl.partial").exists()


def test_csv_and_parquet_hold_the_same(run: RewardRun) -> None:
    score(run, "in.jsonl", "--out", "out.csv")
    with Path("out.csv").open(encoding="utf-8", newline="") as file:
        read = list(csv.DictReader(file))
    wanted = expected(run)
    for row, other in zip(read, wanted, strict=True):
        assert row["completions"] == json.dumps(other["completions"])
        assert row["note"] == (other["note"] or "")
        assert json.loads(row["scores"]) == pytest.approx(other["scores"], abs=1e-5)
    score(run, "in.jsonl", "--out", "out.parquet")
    same(pyarrow.parquet.read_table("out.parquet").to_pylist(), wanted)
    # What was written can be read: a CSV file with lists, and the Parquet file, get the same scores again.
    for again in ("out.csv", "out.parquet"):
        score(run, again, "--out", "again.jsonl", "--prefix", "new_", "--fresh")
        for row, other in zip(lines("again.jsonl"), wanted, strict=True):
            assert row["new_scores"] == pytest.approx(other["scores"], abs=1e-5)


def interrupt_after(parts: int, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Interrupts scoring after so many parts; records the rows of each part that is scored."""
    original, sizes = RewardScorer.score, []

    def counted(self, rows, on_batch=lambda count: None):
        if len(sizes) == parts:
            raise KeyboardInterrupt
        sizes.append(len(rows))
        return original(self, rows, on_batch)

    monkeypatch.setattr(RewardScorer, "score", counted)
    return sizes


def test_an_interrupted_run_continues(run: RewardRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        message = refused(run, "in.jsonl", "--out", "out.jsonl", code=130)
    assert "interrupted: 4 rows are scored" in message
    assert not Path("out.jsonl").exists()
    with monkeypatch.context() as patch:
        sizes = interrupt_after(-1, patch)
        output = score(run, "in.jsonl", "--out", "out.jsonl")
    assert sizes == [2, 2, 1], "finished rows are not scored again"
    assert "9 rows (4 by an earlier run), 27 completions" in output
    same(lines("out.jsonl"), expected(run))


def test_a_part_that_was_not_written_whole_is_scored_again(run: RewardRun, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        refused(run, "in.jsonl", "--out", "out.jsonl", code=130)
    # What a crash in the middle of writing leaves (pipeline.files.write_atomic).
    Path("out.jsonl.partial/.000000000002-2.jsonl.77.1").write_text('{"id": 2, "pro')
    score(run, "in.jsonl", "--out", "out.jsonl")
    same(lines("out.jsonl"), expected(run))


def test_an_unfinished_run_with_other_settings_is_not_continued(
    run: RewardRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        refused(run, "in.jsonl", "--out", "out.jsonl", code=130)
    write_jsonl(Path("in.jsonl"), ROWS[::-1])
    assert "an unfinished run with another table" in refused(run, "in.jsonl", "--out", "out.jsonl")
    assert "another table, model" in refused(run, "in.jsonl", "--out", "out.jsonl", "--aggregate", "min")
    score(run, "in.jsonl", "--out", "out.jsonl", "--fresh")
    same(lines("out.jsonl"), expected(run)[::-1])


def test_a_part_is_written_before_the_next_is_read(run: RewardRun, monkeypatch: pytest.MonkeyPatch) -> None:
    original, waiting, most = scoring.read_table, [], []

    def counted(table, say=None):
        for row in original(table, say):
            waiting.append(row)
            most.append(len(waiting))
            yield row

    def written(self, first, rows):
        waiting.clear()

    write_jsonl(Path("in.jsonl"), ROWS * 20)
    monkeypatch.setattr(scoring, "count", lambda *_: None)
    monkeypatch.setattr(scoring, "layout_of", lambda *_: scoring.Layout("prompt", ["completions"], True))
    monkeypatch.setattr(scoring, "read_table", counted)
    monkeypatch.setattr("stages.score.output.Output.write", written)
    score(run, "in.jsonl", "--out", "out.jsonl")
    assert len(most) == 180
    assert max(most) == 2


def test_mistakes_are_found_before_anything_is_scored(run: RewardRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RewardScorer, "score", lambda *_: pytest.fail("scored"))
    write_jsonl(Path("bad.jsonl"), [*ROWS, {"prompt": "q", "completions": ["a", ""]}])
    message = refused(run, "bad.jsonl", "--out", "out.jsonl", code=3)
    assert "the completion in column 'completions', item 2 is empty" in message
    assert "bad.jsonl:10" in message
    write_jsonl(Path("columns.jsonl"), [{"question": "q", "text": "a"}])
    assert "no column holds completions" in refused(run, "columns.jsonl", "--out", "out.jsonl", code=3)
    assert "does not tell its format" in refused(run, "in.jsonl", "--out", "out.xlsx")
    assert "did you mean in.jsonl?" in refused(run, "in.jsnl", "--out", "out.jsonl", code=3)
    assert "there is no folder no" in refused(run, "in.jsonl", "--out", "no/such/out.jsonl")
    assert "score needs --out" in refused(run, "in.jsonl")
    Path("out.jsonl").touch()
    assert "out.jsonl exists" in refused(run, "in.jsonl", "--out", "out.jsonl")


def test_a_prompt_that_is_too_long_is_named(run: RewardRun) -> None:
    write_jsonl(Path("long.jsonl"), [ROWS[0], {"prompt": "a" * 200, "completions": ["b"]}])
    message = refused(run, "long.jsonl", "--out", "out.jsonl", code=3)
    assert "reads at most 128" in message
    assert "long.jsonl:2" in message


def test_a_column_of_several_types_needs_jsonl_and_nothing_is_lost(run: RewardRun) -> None:
    write_jsonl(Path("mixed.jsonl"), [ROWS[0], {**ROWS[1], "id": {"a": 1}}])
    message = refused(run, "mixed.jsonl", "--out", "out.parquet", code=3)
    assert "rename out.parquet.partial to out.jsonl.partial" in message
    Path("out.parquet.partial").rename("out.jsonl.partial")
    assert "2 rows (2 by an earlier run)" in score(run, "mixed.jsonl", "--out", "out.jsonl")
    assert [row["id"] for row in lines("out.jsonl")] == [0, {"a": 1}]
