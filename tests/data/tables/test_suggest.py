import pytest

from data.tables.suggest import close, count_of, is_called, probable, quoted, role_of, series


@pytest.mark.parametrize(
    ("wanted", "columns", "column"),
    [
        ("completion", ["instruction", "output"], "output"),
        ("prompt", ["instruction", "output"], "instruction"),
        ("prompt", ["output", "rater"], None),
        ("prompt", ["Prompt ", "x"], "Prompt "),
        ("completion", ["COMPLETION"], "COMPLETION"),
        ("prompt", ["promt", "answer"], "promt"),
        ("prompt", ["Frage", "Antwort"], "Frage"),
        ("completion", ["Frage", "Antwort"], "Antwort"),
        ("annotator", ["id", "Rater ID"], "Rater ID"),
        ("annotator", ["workerId"], "workerId"),
        ("annotator", ["Bewerterin", "Note"], "Bewerterin"),
        ("annotator", ["Pru\u0308fer"], "Pru\u0308fer"),
        ("annotator", ["annotater"], "annotater"),
        ("rating", ["ranking"], None),
        ("rating", ["overall_score"], "overall_score"),
        ("completion", ["response_text", "text"], "text"),
        ("prompt", ["prompt_id"], None),
        ("prompt", [], None),
    ],
)
def test_probable_columns(wanted, columns, column):
    assert probable(wanted, columns) == column


def test_a_name_that_is_none_of_ours_is_compared_by_spelling_only():
    assert probable("promt", ["prompt", "completion"]) == "prompt"
    assert probable("reply_5", ["question", "reply_4"]) == "reply_4"
    assert close("reply_5", ["question", "pos_5"]) is None


def test_roles():
    assert [role_of(name) for name in ("rater", "Stars", "pos", "id", "when")] == [
        "annotator",
        "rating",
        "rank",
        None,
        None,
    ]
    assert is_called("annotator", "Name of the rater")
    assert not is_called("annotator", "rater_comment")


def test_series_differ_in_a_number_or_a_letter():
    columns = ["question", "reply_1", "reply_2", "Antwort A", "Antwort B", "ref1", "ref2", "a", "b", "id"]
    assert list(series(columns).values()) == [["reply_1", "reply_2"], ["Antwort A", "Antwort B"], ["ref1", "ref2"]]


def test_names_are_quoted_where_yaml_needs_it():
    names = ["rater", "Rater ID", "Prompt ", "a, b", "1st", "null", 'say "x"', ""]
    assert list(quoted(names)) == [
        "rater", "Rater ID", '"Prompt "', '"a, b"', '"1st"', '"null"', '"say \\"x\\""', '""',
    ]  # fmt: skip


def test_counts_agree_with_their_noun():
    assert [count_of(n, "rows") for n in (0, 1, 2, 1000)] == ["0 rows", "1 row", "2 rows", "1,000 rows"]
