"""Rankings of the same answers by people whom the recipe does not tell apart."""

import pytest

from data.schema import write_jsonl
from data.tables.profile import Profile
from data.tables.rankings import read_rankings
from data.tables.repeats import repeats
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError

WIDE = {"completions": ["a", "b", "c"], "ranks": ["ra", "rb", "rc"]}


def row(i, *ranks, **more):
    return {"prompt": f"p{i}", "a": "x", "b": "y", "c": "z", "ra": ranks[0], "rb": ranks[1], "rc": ranks[2], **more}


def read(tmp_path, rows, format="wide", human=True, **columns):
    """The lines about repeats; raises where they are an error."""
    path = tmp_path / "t.jsonl"
    write_jsonl(path, rows)
    columns = (WIDE if format == "wide" else {}) | columns
    config = RankingTableConfig(path=str(path), format=format, columns=columns, human=human)
    profile, dropped = Profile(), Dropped()
    dropped.on_row = profile.add
    with repeats("data.rankings", config, profile) as watch:
        rankings = list(read_rankings(config, dropped, repeats=watch))
        assert rankings
        return list(watch.lines())


def fails(*arguments, **columns):
    with pytest.raises(DataError) as caught:
        read(*arguments, **columns)
    return caught.value


TWO = [(1, 2, 3), (3, 2, 1)]


@pytest.mark.parametrize("column", ["rater", "Worker ID", "Bewerter", "kuerzel", "who"])
def test_an_unused_column_of_people_is_named(tmp_path, column):
    rows = [row(i, *TWO[who == "ben"], **{column: who}) for i in range(4) for who in ("ana", "ben")]
    error = fails(tmp_path, rows)
    assert "4 of 8 rankings repeat the prompt and answers of an earlier one, all by 'unknown'" in error.what
    assert error.where == f"{tmp_path}/t.jsonl:1 and {tmp_path}/t.jsonl:2"
    assert f"set data.rankings.columns: {{annotator: {column}}}" in error.hint
    assert read(tmp_path, rows, annotator=column) == []


def test_people_who_agree_in_all_are_told_apart_too(tmp_path):
    rows = [row(i, 1, 2, 3, rater=who) for i in range(4) for who in ("ana", "ben")]
    assert "{annotator: rater}" in fails(tmp_path, rows).hint


def test_annotators_as_numbers(tmp_path):
    rows = [row(i, *TWO[who - 1], p_no=who, item=i) for i in range(4) for who in (1, 2)]
    assert (
        "set data.rankings.columns: {annotator: p_no} if column 'p_no' names who ranked"
        in fails(tmp_path, rows).hint
    )


def test_a_table_without_such_a_column(tmp_path):
    rows = [row(i, *ranks, date=f"2026-01-0{i + 1}") for i in range(4) for ranks in TWO]
    error = fails(tmp_path, rows)
    assert error.hint.startswith("add a column that names who ranked each row, and set data.rankings.columns")
    assert 'set data.rankings.columns: {annotator: ""} if they are by one person' in error.hint
    assert read(tmp_path, rows, annotator="") == []


def test_answers_count_as_a_set(tmp_path):
    first = row(0, 1, 2, 3)
    second = first | {"a": "z", "c": "x "}
    assert "1 of 2 rankings repeats" in fails(tmp_path, [first, second]).what
    assert read(tmp_path, [first, first | {"a": "other"}]) == []


def test_a_single_contradiction_among_many_rankings_is_an_error(tmp_path):
    assert (
        "1 of 101 rankings repeats"
        in fails(tmp_path, [row(i, 1, 2, 3) for i in range(100)] + [row(7, 3, 2, 1)]).what
    )


def test_copies_of_rows_are_kept_and_counted(tmp_path):
    [line] = read(tmp_path, [row(i, 1, 2, 3) for i in range(4)] * 2)
    assert "4 of 8 rankings repeat" in line
    assert "all in the same order" in line
    assert "They are kept" in line


def test_metadata_that_differs_is_no_annotator(tmp_path):
    rows = [
        row(
            i,
            1,
            2,
            3,
            split=("train", "test")[k],
            date=f"2026-01-0{k + 1}",
            id=10 * i + k,
            language=("en", "de")[k],
        )
        for i in range(4)
        for k in range(2)
    ]
    [line] = read(tmp_path, rows)
    assert "all in the same order" in line


def test_rankings_that_no_person_made_are_not_counted(tmp_path):
    rows = [row(i, *ranks, rater="ab"[k]) for i in range(4) for k, ranks in enumerate(TWO)]
    assert read(tmp_path, rows, human=False) == []


def pair(i, flip=False, **more):
    return {"prompt": f"p{i}", "chosen": "y" if flip else "x", "rejected": "x" if flip else "y", **more}


def test_pairs_without_annotators_stay_usable(tmp_path):
    """HH-RLHF and others hold repeated comparisons and say nothing of who compared."""
    rows = [pair(i, flip, source="web") for i in range(5) for flip in (False, True)]
    [line] = read(tmp_path, rows, "pairs")
    assert "5 of 10 rankings repeat" in line
    assert "5 in another order" in line


def test_pairs_with_an_unused_worker_are_an_error(tmp_path):
    rows = [pair(i, flip, worker=f"w{flip}") for i in range(5) for flip in (False, True)]
    assert "{annotator: worker}" in fails(tmp_path, rows, "pairs").hint


def test_two_short_answers_may_be_alike_by_chance(tmp_path):
    """lmsys tables hold many greetings, and a person ranks each once."""
    rows = [{"prompt": f"p{i}", "a": "Hi", "b": "Hello", "ra": 1, "rb": 2} for i in range(40)]
    rows += [rows[3] | {"ra": 2, "rb": 1}]
    two = {"completions": ["a", "b"], "ranks": ["ra", "rb"]}
    [line] = read(tmp_path, rows, "wide", **two)
    assert "1 of 41 rankings repeats" in line
    assert (
        "5 of 10"
        in fails(tmp_path, [r | {"ra": k, "rb": 3 - k} for r in rows[:5] for k in (1, 2)], "wide", **two).what
    )


@pytest.mark.parametrize("more", [{"wer": ("ana", "ben")}, {}])
def test_long_tables_put_people_into_one_group(tmp_path, more):
    rows = [
        {
            "prompt": f"p{i}",
            "completion": text,
            "rating": (k + who) % 3,
            **{name: v[who] for name, v in more.items()},
        }
        for i in range(4)
        for k, text in enumerate("xyz")
        for who in range(2)
    ]
    error = fails(tmp_path, rows, "long")
    assert "4 groups of rows with the same prompt hold an answer at two places" in error.what
    assert "{annotator: wer}" in error.hint if more else "add a column" in error.hint
    assert "{group: COLUMN}" in error.hint
    if more:
        assert read(tmp_path, rows, "long", annotator="wer") == []


def test_trees_and_our_own_format_are_exempt(tmp_path):
    own = {
        "prompt": [{"role": "user", "content": "p"}],
        "completions": ["x", "y", "z"],
        "annotator": "unknown",
        "human": True,
    }
    assert read(tmp_path, [own | {"ranks": list(ranks)} for ranks in TWO], "native") == []
    replies = [
        [{"role": "assistant", "text": text, "rank": rank} for text, rank in zip("xyz", ranks, strict=True)]
        for ranks in TWO
    ]
    trees = [{"prompt": {"role": "prompter", "text": "p", "replies": reply}} for reply in replies]
    assert read(tmp_path, trees, "tree") == []
