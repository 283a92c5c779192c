"""`tutelage inspect` says what a table is, shows rows and figures, and prints the section to paste."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from stages.__main__ import app


def written(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def inspect(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(app, ["inspect", *arguments])
    return result.exit_code, str(result.output)


def section(output: str) -> Any:
    """The printed section, as a recipe has it."""
    return yaml.safe_load(output.partition("The section for a recipe")[2].partition(":\n")[2])


def votes(count: int = 30) -> list[dict[str, Any]]:
    """Two annotators rank the same two answers to each prompt; every tenth answer is missing."""
    return [
        {"question": f"q{i}", "answer_1": "long answer" if i % 10 else "", "answer_2": "short", "rank_1": 1,
         "rank_2": 1 if who == "ben" and i == 2 else 2, "rater": who}
        for i in range(count)
        for who in ("ana", "ben")
    ]  # fmt: skip


def test_rankings(tmp_path: Path) -> None:
    path = written(tmp_path / "votes.jsonl", votes())
    code, output = inspect(path)
    assert code == 0
    for line in (
        f"{path}: rankings, format wide",
        "  completions   answer_1, answer_2",
        "    prompt  q1   (ranked by ana)",
        "      1. long answer",
        "      2. short",
        "data.rankings: 60 rows read, 54 rankings kept, 6 left out",
        "data.rankings: 54 rankings of 27 prompts, by 2 annotators; answers per ranking: 2 (54)",
        "data.rankings: 1.9 % of 54 pairs are tied; all answers of 1 ranking are",
        "data.rankings: annotators agree on 100.0 % of 26 pairs that two of them ordered",
        "data.rankings: the longer answer is better in 100.0 % of 53 strict pairs of unequal length",
    ):
        assert line in output.splitlines()
    assert "6 x fewer than 2 completions left (rows 1, 2, 21, ...), which had 6 x empty completion" in output
    assert section(output) == {
        "data": {
            "rankings": {
                "path": path,
                "format": "wide",
                "columns": {
                    "prompt": "question",
                    "completions": ["answer_1", "answer_2"],
                    "ranks": ["rank_1", "rank_2"],
                    "annotator": "rater",
                },
            }
        }
    }


def test_all_rows_are_read_and_a_limit_holds(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i}", "chosen": "x", "rejected": "y"} for i in range(1500)]
    path = written(tmp_path / "pairs.jsonl", rows)
    assert "1,500 rows read, 1,500 rankings kept" in inspect(path)[1]
    assert "7 rows read, 7 rankings kept" in inspect(path, "--limit", "7")[1]


def test_demonstrations_prompts_and_text(tmp_path: Path) -> None:
    rows = [{"instruction": f"p{i % 3}", "output": f"a{i % 3}"} for i in range(4)]
    path = written(tmp_path / "d.jsonl", [*rows, {"instruction": "", "output": "a"}])
    code, output = inspect(path)
    assert code == 0
    assert "data.demonstrations: 5 rows read, 4 demonstrations kept, 1 left out" in output
    assert "data.demonstrations: 1 of 4 demonstrations repeat an earlier one" in output
    assert section(output)["data"]["demonstrations"]["columns"] == {"prompt": "instruction", "completion": "output"}
    code, output = inspect(written(tmp_path / "p.jsonl", [{"question": "p"}]))
    assert (code, section(output)["data"]["prompts"]["columns"]) == (0, {"prompt": "question"})
    code, output = inspect(written(tmp_path / "t.jsonl", [{"text": "A document."}]))
    assert (code, list(section(output)["eval"])) == (0, ["text"])


def test_what_is_open_is_asked_with_the_lines_that_answer_it(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "output_1": "x", "output_2": "y", "label": 1 + i % 2} for i in range(6)]
    code, output = inspect(written(tmp_path / "t.jsonl", rows))
    assert code == 0
    assert "column label does not say which answer its values 1, 2 prefer. One of:" in output
    assert "    labels: {1: first, 2: second}" in output.splitlines()
    assert "    labels: {1: second, 2: first}" in output.splitlines()
    assert "# FILL IN: column label does not say" in output


def test_people_who_are_not_told_apart_are_a_question(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{i}", "text_a": "x", "text_b": "y", "rank_a": 1 + turn, "rank_b": 2 - turn}
        for i in range(10)
        for turn in (0, 1)
    ]
    code, output = inspect(written(tmp_path / "t.jsonl", rows))
    assert code == 0
    assert "question: 10 of 20 rankings repeat the prompt and answers of an earlier one" in output
    assert "data.rankings.columns: {annotator: COLUMN}" in output
    assert section(output)["data"]["rankings"]["format"] == "wide"


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([{"alpha": 1, "beta": 2}], "its columns are alpha, beta"),
        ([{"prompt": "p", "completion": "c", "label": True}], "prompt, chosen and rejected"),
        ([{"chosen": "The sky is blue.", "rejected": "Grass is green."}], "looks like the prompt"),
    ],
)
def test_a_table_that_no_recipe_can_read_ends_with_3(
    tmp_path: Path, rows: list[dict[str, Any]], message: str
) -> None:
    code, output = inspect(written(tmp_path / "t.jsonl", rows))
    assert code == 3
    assert message in output


def test_a_broken_row_ends_with_3_and_names_it_after_the_section(tmp_path: Path) -> None:
    rows = [*votes(10), {**votes(1)[0], "answer_1": "x", "rank_1": "best"}]
    path = written(tmp_path / "t.jsonl", rows * 60)
    text = (tmp_path / "t.jsonl").read_text().splitlines()
    (tmp_path / "t.jsonl").write_text("\n".join([*(json.dumps(row) for row in votes(600)), text[20]]) + "\n")
    code, output = inspect(path)
    assert code == 3
    assert f"{path}:1201" in output
    assert "format: wide" in output


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    written(tmp_path / "votes.jsonl", votes())
    code, output = inspect(str(tmp_path / "vote.jsonl"))
    assert code == 3
    assert f"did you mean {tmp_path / 'votes.jsonl'}?" in output


class Handler(http.server.SimpleHTTPRequestHandler):
    """Serves files without a log."""

    def log_message(self, *args: object) -> None:
        pass


def test_a_url_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(tmp_path / "votes.jsonl", votes())
    monkeypatch.setenv("TUTELAGE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    handler = partial(Handler, directory=str(tmp_path))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        digest = hashlib.sha256((tmp_path / "votes.jsonl").read_bytes()).hexdigest()
        address = f"http://127.0.0.1:{server.server_port}/votes.jsonl#sha256={digest}"
        code, output = inspect(address)
        server.shutdown()
    assert code == 0
    assert section(output)["data"]["rankings"]["path"] == address


def test_check_names_inspect_where_a_table_is_described_wrongly(tmp_path: Path) -> None:
    path = written(tmp_path / "votes.jsonl", votes())
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "name: r\nbase: {pretrain: {corpus: {task: venues, size: 10}}}\ndata:\n"
        f"  demonstrations: {{task: venues, size: 10}}\n  rankings: {{path: {path}, format: pairs}}\n"
    )
    result = CliRunner().invoke(app, ["check", "--recipe", str(recipe)])
    assert result.exit_code == 2
    [line] = [line for line in result.output.splitlines() if "the table looks like rankings, format wide" in line]
    assert f" inspect {path}` prints the section to paste" in line
