"""Tables as spreadsheets and survey tools export them: merged cells, several header rows, rows to leave out."""

import csv

import pytest

from data.tables.check import parse
from data.tables.corpus import documents
from data.tables.demonstrations import read_demonstrations
from data.tables.guess.rankings import any_table
from data.tables.guess.sample import Sample
from data.tables.guess.section import config_of
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped, read_table
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.config.load import load_recipe
from pipeline.errors import DataError, RecipeError


def written(tmp_path, rows, name="t.csv"):
    with (tmp_path / name).open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return str(tmp_path / name)


def read(config, dropped=None):
    return list(read_rankings(config, Dropped() if dropped is None else dropped))


TWO_ROWS = [
    ["", "Answers", "", "Scores", "", ""],
    ["Prompt", "A", "B", "A", "B", "Rater"],
    ["Why?", "x", "y", "1", "3", "ana"],
    ["How?", "x", "y", "4", "3", "ben"],
]


def test_a_header_of_two_rows(tmp_path):
    path = written(tmp_path, TWO_ROWS)
    columns = {
        "prompt": "Prompt",
        "completions": ["Answers A", "Answers B"],
        "ratings": ["Scores A", "Scores B"],
        "annotator": "Rater",
    }
    first, second = read(RankingTableConfig(path=path, format="wide", columns=columns, header=2))
    assert (first.prompt[0]["content"], first.ranks, second.ranks, second.annotator) == (
        "Why?", [2, 1], [1, 2], "ben",
    )  # fmt: skip
    assert first.where.endswith("t.csv:3")
    with pytest.raises(DataError, match="header names a column twice: 'A', 'B'"):
        list(read_table(TableConfig(path=written(tmp_path, TWO_ROWS[1:]))))


def test_text_below_an_unnamed_column_is_refused(tmp_path):
    with pytest.raises(DataError, match="has text in field 1, 'Prompt', which has no name") as caught:
        list(read_table(TableConfig(path=written(tmp_path, TWO_ROWS))))
    assert "header: 2" in caught.value.hint
    assert caught.value.where.endswith("t.csv:2")


def test_unnamed_columns_without_text_are_ignored(tmp_path):
    rows = [["prompt", "completion", "", ""], ["p", "c", "", " "]]
    [row] = read_table(TableConfig(path=written(tmp_path, rows)))
    assert row == {"prompt": "p", "completion": "c"}
    [row] = read_table(TableConfig(path=written(tmp_path, [["", "prompt"], ["0", "p"]])))  # an index
    assert row == {"": "0", "prompt": "p"}


QUALTRICS = [
    ["StartDate", "ResponseId", "prompt", "answer_a", "answer_b", "Q1"],
    ["Start Date", "Response ID", "prompt", "answer_a", "answer_b", "Which is\nbetter?"],
    [f'{{"ImportId":"{name}"}}' for name in ("startDate", "_recordId", "p", "a", "b", "QID1")],
    ["2024-01-01", "R_1", "Why?", "x", "y", "B"],
]  # fmt: skip


def test_the_questions_of_qualtrics_are_no_rows(tmp_path):
    path = written(tmp_path, QUALTRICS)
    columns = {"completions": ["answer_a", "answer_b"], "preference": "Q1", "annotator": "ResponseId"}
    dropped = Dropped()
    [ranking] = read(RankingTableConfig(path=path, format="wide", columns=columns), dropped)
    assert (ranking.ranks, ranking.annotator, dropped.read) == ([2, 1], "R_1", 1)
    assert ranking.where.endswith("t.csv:5")
    assert len(list(read_table(TableConfig(path=written(tmp_path, QUALTRICS[:2]))))) == 1


MERGED = [
    ["Prompt", "Answer", "Score", "Rater"],
    ["Why?", "x", "3", "ana"],
    ["", "y", "1", ""],
    ["", "z", "2", " "],
    ["How?", "x", "1", "ben"],
    ["", "y", "2", ""],
]
LONG = {"prompt": "Prompt", "completion": "Answer", "rating": "Score", "annotator": "Rater"}


def test_merged_cells_are_filled_down(tmp_path):
    path = written(tmp_path, MERGED)
    config = RankingTableConfig(path=path, format="long", columns=LONG, fill_down=["Prompt", "Rater"])
    read_from = [(r.prompt[0]["content"], r.annotator, r.ranks) for r in read(config)]
    assert read_from == [("Why?", "ana", [1, 3, 2]), ("How?", "ben", [2, 1])]


def test_every_file_is_filled_down_on_its_own(tmp_path):
    paths = [
        written(tmp_path, rows, name) for rows, name in ((MERGED[:3], "a.csv"), ([MERGED[0], MERGED[2]], "b.csv"))
    ]
    rows = list(read_table(TableConfig(path=paths, fill_down=["Prompt"])))
    assert [row["Prompt"] for row in rows] == ["Why?", "Why?", ""]


def test_a_column_to_fill_must_be_there(tmp_path):
    with pytest.raises(DataError, match="'prompt'"):
        list(read_table(TableConfig(path=written(tmp_path, MERGED), fill_down=["prompt"])))


BATCH = [
    ["WorkerId", "AssignmentStatus", "Input.prompt", "Input.a", "Input.b", "Answer.choice", "turn"],
    ["w1", "Approved", "Why?", "x", "y", "a", "1"],
    ["w2", "Rejected", "Why?", "x", "y", "b", "1"],
    ["w3", "Submitted", "Why?", "x", "y", "b", "1.0"],
    ["w4", "Approved", "Why?", "x", "y", "b", "2"],
]
COMPARED = {
    "prompt": "Input.prompt", "completions": ["Input.a", "Input.b"], "preference": "Answer.choice",
    "annotator": "WorkerId",
}  # fmt: skip


@pytest.mark.parametrize(
    ("only", "workers"),
    [
        ({"AssignmentStatus": "Approved"}, ["w1", "w4"]),
        ({"AssignmentStatus": ["Approved", "Submitted"], "turn": 1}, ["w1", "w3"]),
        ({"turn": [2.0]}, ["w4"]),
    ],
)
def test_other_rows_are_left_out_and_counted(tmp_path, only, workers):
    config = RankingTableConfig(path=written(tmp_path, BATCH), format="wide", columns=COMPARED, only=only)
    dropped = Dropped()
    assert [ranking.annotator for ranking in read(config, dropped)] == workers
    assert dropped.rows_out == {"not among the rows of `only`": 4 - len(workers)}
    assert dropped.read == 4


def test_no_row_with_the_value_is_an_error(tmp_path):
    config = RankingTableConfig(
        path=written(tmp_path, BATCH), format="wide", columns=COMPARED, only={"AssignmentStatus": "approve"}
    )
    with pytest.raises(DataError, match="no ranking is left: 4 x not among the rows of `only`") as caught:
        read(config)
    assert "such as AssignmentStatus: 'Approved'" in caught.value.hint


def test_other_tables_are_selected_too(tmp_path):
    rows = [["prompt", "completion", "lang"], ["p", "c", "en"], ["q", "d", "de"]]
    config = TableConfig(path=written(tmp_path, rows), only={"lang": "en"})
    dropped = Dropped()
    assert [d.completion for d in read_demonstrations(config, 0.1, dropped)] == ["c"]
    assert dropped.rows_out == {"not among the rows of `only`": 1}
    assert list(documents(config, 0, 0.0)) == [("p", "c")]


def test_a_recipe_names_them(tmp_path):
    written(tmp_path, BATCH)
    recipe = tmp_path / "recipe.yaml"
    text = f"""
name: r
base: {{pretrain: {{corpus: {{task: venues, size: 10}}}}}}
data:
  demonstrations: {{task: venues, size: 10}}
  rankings:
    path: {tmp_path / "t.csv"}
    format: wide
    header: HEADER
    fill_down: [WorkerId]
    only: {{turn: 1, AssignmentStatus: [Approved, true, 2]}}
    columns: {{prompt: Input.prompt, completions: [Input.a, Input.b], preference: Answer.choice}}
rank: {{source: data}}
"""
    recipe.write_text(text.replace("HEADER", "1"))
    table = load_recipe(recipe).recipe.data.rankings
    assert (table.only, table.fill_down, table.header) == (
        {"turn": 1, "AssignmentStatus": ["Approved", True, 2]}, ["WorkerId"], 1,
    )  # fmt: skip
    recipe.write_text(text.replace("HEADER", "3"))
    with pytest.raises(RecipeError, match=r"data.rankings.header"):
        load_recipe(recipe)


def guessed(path):
    guess = any_table(Sample.of(TableConfig(path=path)))
    return guess, list(parse(guess.table, config_of(guess, path), Dropped())) if not guess.open else []


RADIO = [
    ["WorkerId", "Input.prompt", "Input.a", "Input.b", "Answer.choice.a", "Answer.choice.b", "Answer.choice.tie"],
    *([who, f"What of {i}?", "x x", "y y", str(i == 0).lower(), str(i == 1).lower(), str(i == 2).lower()]
      for i in range(3) for who in ("w1", "w2")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("rows", "values", "ranks"),
    [
        (TWO_ROWS, {"header": 2}, [[2, 1], [1, 2]]),
        (QUALTRICS, {}, [[2, 1]]),
        (MERGED, {"fill_down": ["Prompt", "Rater"]}, [[1, 3, 2], [2, 1]]),
        (RADIO, {"scale": ["false", "true"]}, [[1, 2], [1, 2], [2, 1], [2, 1], [1, 1], [1, 1]]),
        (BATCH, {}, [[1, 2], [2, 1], [2, 1], [2, 1]]),
    ],
    ids=["two header rows", "Qualtrics", "merged cells", "Mechanical Turk, radio", "Mechanical Turk"],
)
def test_they_are_recognised(tmp_path, rows, values, ranks):
    guess, rankings = guessed(written(tmp_path, rows))
    assert (guess.open, guess.values) == ([], values)
    assert [ranking.ranks for ranking in rankings] == ranks


SURVEY = [
    ["Respondent ID", "Rank the answers to: Why?", "", "", "Rank the answers to: How?", ""],
    ["", "Rayleigh scattering", "The sea", "Nobody knows", "By hand", "By foot"],
    *([str(100 + i), "1", "3", "2", "2", "1"] for i in range(4)),
]


def test_a_survey_without_texts_is_refused_with_what_to_do(tmp_path):
    with pytest.raises(DataError, match=r"may rank answers .* and does not hold their texts") as caught:
        guessed(written(tmp_path, SURVEY))
    assert "join: {path: FILE, on: COLUMN}" in caught.value.hint
