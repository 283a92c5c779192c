"""What `check_table` reports about a table: everything at once, with lines to paste into the recipe."""

import csv
from collections import Counter

import pytest

from data.schema import Demonstration, Ranking, write_jsonl
from data.tables.check import MOST, check_table
from data.tables.mapping import paste, place
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError, RecipeError

WIDE = {"completions": ["a", "b"], "ranks": ["ra", "rb"]}


def table(tmp_path, rows, format=None, name="t.jsonl", columns=None, **values):
    path = tmp_path / name
    if path.suffix == ".csv":
        with path.open("w", newline="") as out:
            writer = csv.DictWriter(out, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    else:
        write_jsonl(path, rows)
    if format is None:
        return TableConfig(path=str(path), columns=columns or {}, **values)
    return RankingTableConfig(path=str(path), format=format, columns=columns or {}, **values)


def check(tmp_path, rows, format=None, of=None, **values):
    return check_table(
        of or ("data.rankings" if format else "data.demonstrations"), table(tmp_path, rows, format, **values)
    )


def wide_rows(count=6, **more):
    return [
        {"prompt": f"p{i}", "a": "x", "b": "y", "ra": 1, "rb": 2} | {k: v(i) for k, v in more.items()}
        for i in range(count)
    ]


def test_a_good_table_is_described(tmp_path):
    rows = wide_rows(who=lambda i: ("ana", "ben")[i % 2], day=lambda i: f"2026-01-{i + 1:02}")
    report = check(tmp_path, [*rows, rows[0] | {"a": ""}], "wide", columns=WIDE | {"annotator": "who"})
    assert report.problems == []
    assert (report.read, report.complete, report.parsed, report.prompts) == (7, True, 6, 6)
    assert report.columns == ["prompt", "a", "b", "ra", "rb", "who", "day"]
    assert report.unused == ["day"]
    assert report.annotators == {"ana": 3, "ben": 3}
    assert report.dropped.rows_out == {"fewer than 2 completions left": 1}
    assert isinstance(report.first[0], Ranking)
    assert len(report.first) == 3
    assert list(report.describe()) == [
        f"data.rankings: {tmp_path}/t.jsonl, all 7 rows: 6 rankings of 6 prompts, by ana (3), ben (3)",
        "data.rankings: 1 of 7 rankings left out: 1 x fewer than 2 completions left (row 7), which had 1 x empty "
        "completion (row 7; fill the answer's cell)",
        "data.rankings: 6 rankings of 6 prompts, by 2 annotators; answers per ranking: 2 (6)",
        "data.rankings: 0.0 % of 6 pairs are tied",
        "data.rankings: no two annotators ordered the same answers: their agreement is not known",
        "data.rankings: the answer listed first is better in 100.0 % of 6 strict pairs",
        "data.rankings: not used: day",
    ]


def test_only_the_first_rows_are_read(tmp_path):
    config = table(tmp_path, [{"prompt": f"p{i % 5}", "completion": "c"} for i in range(30)])
    report = check_table("data.demonstrations", config, limit=20)
    assert (report.read, report.complete, report.parsed, report.prompts) == (20, False, 20, 5)
    assert isinstance(report.first[0], Demonstration)
    assert "the first 20 rows: 20 demonstrations of 5 prompts" in next(report.describe())
    assert check_table("data.demonstrations", config, limit=30).complete


@pytest.mark.parametrize("path", ["hub://owner/name@123", "https://host/t.csv"])
def test_what_is_not_local_is_not_opened(path):
    report = check_table("data.prompts", TableConfig(path=path))
    assert not report.opened
    assert report.problems == []
    assert list(report.describe()) == [f"data.prompts: {path} was not opened, since it is not a local file"]


def test_a_missing_file_and_the_nearest_one(tmp_path):
    (tmp_path / "votes.csv").write_text("a\n1\n")
    report = check_table("data.prompts", TableConfig(path=str(tmp_path / "vote.csv")))
    [problem] = report.problems
    assert (problem.key, problem.what) == (
        "data.prompts.path",
        f"data.prompts.path: there is no file or folder {tmp_path}/vote.csv",
    )
    assert f"did you mean {tmp_path}/votes.csv?" in problem.hint


PAIRED = [
    (["instruction", "output"], "{prompt: instruction, completion: output}"),
    (["Frage", "Antwort"], "{prompt: Frage, completion: Antwort}"),
    (["Prompt", "Completion"], "{prompt: Prompt, completion: Completion}"),
    (["user prompt", "Model answer", "response"], "{prompt: user prompt, completion: response}"),
]


@pytest.mark.parametrize(("names", "line"), PAIRED)
@pytest.mark.parametrize("name", ["t.csv", "t.jsonl"])
def test_all_missing_columns_and_the_line_that_sets_them(tmp_path, names, line, name):
    rows = [dict.fromkeys(names, f"text {i}") for i in range(3)]
    report = check(tmp_path, rows, name=name)
    assert [problem.hint for problem in report.problems] == [f"set data.demonstrations.columns: {line}"] * 2
    assert ["'prompt'" in problem.what for problem in report.problems] == [True, False]
    assert "none of them usable" in next(report.describe())


def test_no_column_is_suggested_that_is_only_the_nearest(tmp_path):
    report = check(tmp_path, [{"alpha": "x", "beta": "y"}])
    [first, second] = report.problems
    assert first.what == "the table has no column 'prompt'"
    assert first.hint == second.hint
    assert "{prompt: COLUMN, completion: COLUMN}; the columns are alpha, beta" in first.hint


def test_a_name_in_the_recipe_that_the_table_lacks_is_reported_at_its_line(tmp_path):
    columns = {"prompt": "prompt", "completions": ["a", "bb"], "ranks": ["ra", "rb"], "annotator": "worker"}
    report = check(tmp_path, wide_rows(rater=lambda i: "ana"), "wide", columns=columns)
    assert [problem.key for problem in report.problems] == [
        "data.rankings.columns.completions",
        "data.rankings.columns.annotator",
    ]
    assert "no column 'worker'; did you mean 'rater'?" in report.problems[1].what
    error = report.problems[1].error({"data.rankings.columns.annotator": "r.yaml:9"}.get)
    assert isinstance(error, RecipeError)
    assert error.where == "r.yaml:9"


def test_a_column_of_a_list_is_replaced_by_one_that_is_free(tmp_path):
    rows = [{"prompt": "p", **{f"reply_{k}": f"t{k}" for k in range(1, 5)}, **{f"pos_{k}": k for k in range(1, 5)}}]
    columns = {
        "completions": ["reply_1", "reply_2", "reply_3", "reply_5"],
        "ranks": [f"pos_{k}" for k in range(1, 5)],
    }
    [problem] = check(tmp_path, rows, "wide", columns=columns).problems
    assert problem.what == "the table has no column 'reply_5'; did you mean 'reply_4'?"
    assert problem.hint == "set data.rankings.columns: {completions: [reply_1, reply_2, reply_3, reply_4]}"
    columns["completions"] = [f"reply_{k}" for k in range(1, 6)]
    [problem] = check(tmp_path, rows, "wide", columns=columns).problems
    assert problem.what == "the table has no column 'reply_5'"


def test_a_key_that_later_rows_lack_is_an_error_of_these_rows(tmp_path):
    rows = [{"prompt": f"p{i}", "completion": "c"} for i in range(6)]
    del rows[3]["completion"], rows[4]["prompt"]
    report = check(tmp_path, rows)
    assert [(problem.what, problem.key, problem.where[-9:]) for problem in report.problems] == [
        ("the row has no 'completion', which other rows have", "", "t.jsonl:4"),
        ("the row has no 'prompt', which other rows have", "", "t.jsonl:5"),
    ]
    assert report.parsed == 4
    assert isinstance(report.problems[0].error(str), DataError)


def test_columns_inside_of_cells(tmp_path):
    [problem, _] = check(tmp_path, [{"data": {"prompt": "p", "completion": "c"}}]).problems
    assert problem.hint == "'data' holds objects with completion, prompt: write these as columns of the table"
    rows = [{"prompt": "p", "completions": [{"response": "x", "overall_score": 3}, {"response": "y"}]}]
    problems = check(tmp_path, rows, "scored").problems
    assert [problem.what for problem in problems] == [
        "the objects in the row have no 'text'; 'response' is probably the text",
        "the objects in the row have no 'score'; 'overall_score' is probably the score",
    ]
    assert problems[0].hint == "set data.rankings.columns: {text: response, score: overall_score}"


def test_trees_as_demonstrations_need_no_completions(tmp_path):
    replies = [{"role": "assistant", "text": "x", "rank": 0}, {"role": "assistant", "text": "y", "rank": 1}]
    report = check(tmp_path, [{"prompt": {"role": "prompter", "text": "p", "replies": replies}}])
    assert (report.problems, report.parsed) == ([], 1)


def test_wrong_cells_of_all_columns_are_listed_and_alike_ones_once(tmp_path):
    rows = wide_rows(8)
    for i, value in ((1, "A"), (2, "B"), (5, "1st")):
        rows[i]["ra"] = value
    rows[6]["rb"] = "C"
    report = check(tmp_path, rows, "wide", columns=WIDE)
    first, second = report.problems
    assert first.what == "column 'ra' must be a number, got 'A'"
    assert first.where == f"{tmp_path}/t.jsonl:2, and 2 other rows: {tmp_path}/t.jsonl:3, {tmp_path}/t.jsonl:6"
    assert (second.what, second.where) == ("column 'rb' must be a number, got 'C'", f"{tmp_path}/t.jsonl:7")
    assert report.parsed == 4


def test_a_table_of_wrong_cells_is_not_read_to_its_end(tmp_path):
    [problem] = check(tmp_path, wide_rows(200, ra=lambda i: "A"), "wide", columns=WIDE).problems
    assert f"and {MOST} other rows" in problem.where
    assert "later rows were not checked" in problem.hint


def test_a_problem_of_the_whole_table_is_listed_once(tmp_path):
    rows = [{"prompt": f"p{i}", "a": "x", "b": "y", "better": i % 2} for i in range(10)]
    [problem] = check(tmp_path, rows, "wide", columns={"completions": ["a", "b"], "preference": "better"}).problems
    assert problem.what.startswith("none of the 10 numbers in column 'better' is below 0")


def test_what_left_out_every_row_is_the_error(tmp_path):
    [problem] = check(
        tmp_path, [row | {"a": "x", "b": "x "} for row in wide_rows(3)], "wide", columns=WIDE
    ).problems
    assert (
        problem.what == "no ranking is left: 6 x the same answer at two places, 3 x fewer than 2 completions left"
    )
    assert problem.hint == "give equal answers equal ranks, or keep one of them"


def test_a_malformed_file_is_reported_with_the_rows_before_it(tmp_path):
    (tmp_path / "t.csv").write_text("prompt,completion\np,c\nq\n")
    report = check_table("data.demonstrations", TableConfig(path=str(tmp_path / "t.csv")))
    [problem] = report.problems
    assert problem.where.endswith("t.csv:3")
    assert report.parsed == 1


def test_repeated_rankings_by_nobody_are_a_problem(tmp_path):
    rows = [row | {"c": "z", "rc": k} for row in wide_rows(3, rater=lambda i: "ana") for k in (0, 3)]
    rows[1::2] = [row | {"rater": "ben"} for row in rows[1::2]]
    columns = {"completions": ["a", "b", "c"], "ranks": ["ra", "rb", "rc"]}
    [problem] = check(tmp_path, rows, "wide", columns=columns).problems
    assert "3 of 6 rankings repeat" in problem.what
    assert "set data.rankings.columns: {annotator: rater}" in problem.hint


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_separators_of_csv(tmp_path, separator):
    """The header tells the separator, also where cells hold others; a single column may hold any of them."""
    cells = [["prompt", "completion"], ["one; two", "a, b"], ["x|y", "c"]]
    path = tmp_path / "t.csv"
    with path.open("w", newline="") as out:
        csv.writer(out, delimiter=separator).writerows(cells)
    report = check_table("data.demonstrations", TableConfig(path=str(path)))
    assert [(d.prompt[0]["content"], d.completion) for d in report.first] == [tuple(row) for row in cells[1:]]
    path.write_text("prompt\none; two | three\tfour\nx; y\n")
    report = check_table("data.prompts", TableConfig(path=str(path)))
    assert [prompt.prompt[0]["content"] for prompt in report.first] == ["one; two | three\tfour", "x; y"]


TEXTS = [
    ([{"content": "text"}], "{text: content}"),
    ([{"instruction": "p", "output": "c"}], "{prompt: instruction, completion: output}"),
]


@pytest.mark.parametrize("name", ["eval.text", "base.pretrain.corpus"])
@pytest.mark.parametrize(("rows", "line"), TEXTS)
def test_texts(tmp_path, name, rows, line):
    problems = check(tmp_path, rows, of=name).problems
    assert {problem.hint for problem in problems} == {f"set {name}.columns: {line}"}
    good = check(tmp_path, [{"text": "one"}, {"text": "two"}], of=name)
    assert (good.problems, good.parsed, good.kind) == ([], 2, "texts")


# Unused columns


def lines(tmp_path, rows, format="wide", **columns):
    return check(tmp_path, rows, format, columns=(WIDE if format == "wide" else {}) | columns).lines


def test_a_column_that_names_people_is_asked_about(tmp_path):
    asked = "is not used. If it names who ranked, set data.rankings.columns: {annotator: "
    for column in ("rater", "Rater ID", "Bewerter", "worker_id", "kuerzel"):
        [line] = lines(tmp_path, wide_rows(8, **{column: lambda i: ("ab", "cd")[i % 2]}))
        assert line == f"data.rankings: column {column!r} {asked}{column}}}"
    [line] = lines(tmp_path, wide_rows(8, rater=lambda i: i % 3))
    assert asked in line
    assert lines(tmp_path, wide_rows(8, rater=lambda i: "ana"), annotator="rater") == []


def test_metadata_is_named_without_a_question(tmp_path):
    rows = wide_rows(
        8,
        id=lambda i: f"id-{i}",
        date=lambda i: f"2026-01-0{1 + i % 2}",
        language=lambda i: ("en", "de")[i % 2],
        split=lambda i: ("train", "test")[i % 2],
        seen=lambda i: ("yes", "no")[i % 2],
        weight=lambda i: 0.5 * i,
        rationale=lambda i: f"because of {i} " * 20,
        extra=lambda i: {"a": [1]},
    )
    [line] = lines(tmp_path, rows)
    assert line == "data.rankings: not used: id, date, language, split, seen, weight, rationale (long text), extra"


def test_further_answers_of_a_wide_table_are_asked_about(tmp_path):
    rows = [
        {"prompt": f"p{i}", **{f"reply_{k}": f"t{k}" for k in (1, 2, 3)}, **{f"pos_{k}": k for k in (1, 2, 3)}}
        for i in range(4)
    ]
    [line] = lines(tmp_path, rows, completions=["reply_1", "reply_2"], ranks=["pos_1", "pos_2"])
    assert line == (
        "data.rankings: columns 'reply_3' and 'pos_3' are not used. If they continue those that are named, set "
        "data.rankings.columns: {completions: [reply_1, reply_2, reply_3], ranks: [pos_1, pos_2, pos_3]}"
    )
    report = check(tmp_path, rows, "wide", columns={"completions": ["reply_1", "reply_2", "reply_3"]})
    assert "set data.rankings.columns: {ranks: [pos_1, pos_2, pos_3]}" in report.lines[0]
    assert report.problems[0].what == "no column orders the completions"


def test_ratings_of_pairs_are_asked_about(tmp_path):
    rows = [{"prompt": "p", "chosen": "x", "rejected": "y", "score_chosen": 3, "score_rejected": 1, "n": 3}]
    assert lines(tmp_path, rows, "pairs") == [
        "data.rankings: column 'score_chosen' is not used. If it rates the chosen answer, set "
        "data.rankings.columns: {chosen_rating: score_chosen}",
        "data.rankings: column 'score_rejected' is not used. If it rates the rejected answer, set "
        "data.rankings.columns: {rejected_rating: score_rejected}",
        "data.rankings: also not used: n",
    ]


def test_the_second_half_of_a_prompt_is_asked_about(tmp_path):
    rows = [{"instruction": f"do {i}", "input": "this", "output": "y", "lang": "en"} for i in range(4)]
    report = check(tmp_path, rows, columns={"prompt": "instruction", "completion": "output"})
    assert report.problems == []
    assert report.lines == [
        "data.demonstrations: column 'input' holds text and is not used. If it belongs to the prompt, set "
        'data.demonstrations.columns: {prompt: "{instruction}\\n{input}"}',
        "data.demonstrations: also not used: lang",
    ]


def test_columns_of_tools_and_templates_count_as_used(tmp_path):
    rows = wide_rows(4, title=lambda i: f"T{i}", info=lambda i: {"post": "P"})
    assert lines(tmp_path, rows, prompt="{title}: {info[post]}") == ["data.rankings: not used: prompt"]
    tree = {
        "prompt": {
            "role": "prompter",
            "text": "p",
            "replies": [
                {"role": "assistant", "text": "x", "rank": 0},
                {"role": "assistant", "text": "y", "rank": 1},
            ],
        },
        "message_tree_id": "1",
    }
    assert lines(tmp_path, [tree], "tree") == []


def test_lines_to_paste():
    assert paste("data.rankings", {"annotator": "", "completions": ["a b", "c,d"]}) == (
        'data.rankings.columns: {annotator: "", completions: [a b, "c,d"]}'
    )
    where = {"data.rankings": "r.yaml:3", "data": "r.yaml:1"}
    assert place("data.rankings.columns.annotator", lambda path: where.get(path, "default")) == "r.yaml:3"
    assert place("seed", lambda path: "default") == "default"


def test_annotators_are_counted(tmp_path):
    rows = wide_rows(3, annotator=lambda i: "ana" if i else "")
    assert check(tmp_path, rows, "wide", columns=WIDE).annotators == Counter(ana=2, unknown=1)
