"""Comparisons of pairs turned into rankings by net wins, against a count written in plain Python."""

import itertools
import json
import random
from collections import Counter

import pandas as pd
import pytest

from data.tables.combine import connected
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.errors import DataError

COLUMNS = {"completions": ["answer_1", "answer_2"], "preference": "winner"}
TEXTS = ["red", "green", "blue", "black"]


def read(tmp_path, rows, columns=COLUMNS, format="wide", say=None, combine="net_wins", dropped=None, **values):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = RankingTableConfig(path=str(path), format=format, columns=columns, combine=combine, **values)
    return list(read_rankings(config, Dropped() if dropped is None else dropped, say))


def compared(better, worse, annotator="ana", prompt="Q", winner="answer_1"):
    return {"prompt": prompt, "answer_1": better, "answer_2": worse, "winner": winner, "annotator": annotator}


def by_text(ranking):
    return dict(zip(ranking.completions, ranking.ranks, strict=True))


def test_one_annotators_comparisons_become_one_ranking(tmp_path):
    rows = [
        compared("red", "green"),
        compared("red", "blue", "ben"),
        compared("green", "blue"),
        compared("red", "blue"),
        compared("green", "red", "ben", winner="tie"),
        compared("green", "red", prompt="R"),
    ]
    ana, ben, other = read(tmp_path, rows)
    assert (ana.annotator, by_text(ana)) == ("ana", {"red": 1, "green": 2, "blue": 3})
    assert (ben.annotator, by_text(ben)) == ("ben", {"red": 1, "green": 2, "blue": 3})
    assert by_text(other) == {"green": 1, "red": 2}
    kept = read(tmp_path, rows, combine="keep")
    assert [(r.annotator, r.ranks) for r in kept][:2] == [("ana", [1, 2]), ("ben", [1, 2])]
    assert len(kept) == 6


def test_net_wins_equal_a_count_by_pandas(tmp_path):
    rng = random.Random(1)
    rows = [
        compared(a, b, who, prompt, rng.choice(["answer_1", "answer_2", "tie"]))
        for prompt in ("Q1", "Q2", "Q3", "Q4", "Q5")
        for who in ("ana", "ben", "eve")
        for a, b in itertools.combinations(rng.sample(TEXTS, 4), 2)
    ]
    rng.shuffle(rows)
    table = pd.DataFrame(rows)
    sign = table.winner.map({"answer_1": 1, "answer_2": -1, "tie": 0})
    sides = pd.concat(
        [
            table.assign(answer=table.answer_1, net=sign),
            table.assign(answer=table.answer_2, net=-sign),
        ]
    )
    net = sides.groupby(["prompt", "annotator", "answer"]).net.sum()
    expected = net.groupby(level=[0, 1]).rank(method="dense", ascending=False).astype(int)
    rankings = read(tmp_path, rows)
    assert len(rankings) == 15
    for ranking in rankings:
        assert by_text(ranking) == expected[ranking.prompt[0]["content"], ranking.annotator].to_dict()


def test_contradictory_cycles_are_counted(tmp_path):
    lines = []
    rows = [
        compared("red", "green"),
        compared("green", "blue"),
        compared("blue", "red"),
        compared("red", "green", "ben"),
        compared("green", "red", "ben"),
        compared("red", "green", "eve"),
        compared("red", "green", "eve"),
        compared("green", "blue", "eve"),
    ]
    ana, ben, eve = read(tmp_path, rows, say=lines.append)
    assert set(ana.ranks) == set(ben.ranks) == {1}
    assert by_text(eve) == {"red": 1, "green": 2, "blue": 3}
    [line] = lines
    assert "8 comparisons became 3 rankings by net wins. 2 of 3 annotators' comparisons" in line
    assert "t.jsonl:1" in line
    lines.clear()
    read(tmp_path, rows[5:], say=lines.append)
    assert lines[0].endswith("3 comparisons became 1 ranking by net wins")


def test_a_repeated_pair_counts_once_for_the_majority(tmp_path):
    rows = [compared("red", "green")] * 3 + [compared("green", "red"), compared("green", "blue")]
    [ranking] = read(tmp_path, [*rows, compared("blue", "black"), compared("blue", "red")])
    # red: +1 -1, green: +1 -1, blue: +1 +1 -1, black: -1
    assert by_text(ranking) == {"blue": 1, "red": 2, "green": 2, "black": 3}


def test_answers_that_nothing_connects_are_not_ordered(tmp_path):
    first, second = read(tmp_path, [compared("red", "green"), compared("blue", "black")])
    assert by_text(first) == {"red": 1, "green": 2}
    assert by_text(second) == {"blue": 1, "black": 2}
    assert connected([["a", "b"], ["c", "d"], ["d", "a"], ["e"]]) == [["a", "b", "c", "d"], ["e"]]


def test_models_and_spellings_are_kept(tmp_path):
    columns = COLUMNS | {"models": ["m1", "m2"]}
    rows = [
        compared("red", "green") | {"m1": "gpt", "m2": "phi"},
        compared(" green ", "blue") | {"m1": "", "m2": "qwen"},
    ]
    [ranking] = read(tmp_path, rows, columns)
    assert ranking.completions == ["red", "green", "blue"]
    assert ranking.models == ["gpt", "phi", "qwen"]


# A label per pair


QA = {"prompt": "question", "completions": ["p1", "p2", "p3"], "preference": "preference"}
PAIRS = [[0, 1], [0, 2], [1, 2]]
ROW = {"question": "Q", "p1": "red", "p2": "green", "p3": "blue"}


def test_a_list_of_labels_orders_pairs_of_answers(tmp_path):
    labels = {"1": "first", "-1": "second", "0": "tie"}
    rows = [ROW | {"preference": [-1, 0, 1]}]
    kept = read(tmp_path, rows, QA, combine="keep", pairs=PAIRS, labels=labels)
    assert [by_text(r) for r in kept] == [{"red": 2, "green": 1}, {"red": 1, "blue": 1}, {"green": 1, "blue": 2}]
    [ranking] = read(tmp_path, rows, QA, pairs=PAIRS, labels=labels)
    assert by_text(ranking) == {"green": 1, "red": 2, "blue": 2}
    [signed] = read(tmp_path, rows, QA, pairs=PAIRS)
    assert by_text(signed) == {"red": 1, "blue": 1, "green": 2}


def test_every_order_of_pairs_gives_the_counts_of_its_labels(tmp_path):
    rng = random.Random(2)
    answers = {f"p{i}": f"text {i}" for i in range(4)}
    pairs = [list(rng.sample(pair, 2)) for pair in itertools.combinations(range(4), 2)]
    rng.shuffle(pairs)
    for _ in range(20):
        labels = [rng.choice(["A", "B", "tie"]) for _ in pairs]
        net = Counter(dict.fromkeys(range(4), 0))
        for (a, b), label in zip(pairs, labels, strict=True):
            won = {"A": 1, "B": -1, "tie": 0}[label]
            net[a] += won
            net[b] -= won
        levels = sorted(set(net.values()), reverse=True)
        [ranking] = read(
            tmp_path,
            [{"prompt": "Q", **answers, "labels": labels}],
            {"completions": list(answers), "preference": "labels"},
            pairs=pairs,
        )
        assert by_text(ranking) == {f"text {i}": levels.index(net[i]) + 1 for i in range(4)}


def test_labels_of_pairs_may_be_columns_or_of_a_list_of_completions(tmp_path):
    row = ROW | {"l1": "B", "l2": "p1", "l3": "green"}
    [ranking] = read(tmp_path, [row], QA | {"preference": ["l1", "l2", "l3"]}, pairs=PAIRS)
    assert by_text(ranking) == {"green": 1, "red": 2, "blue": 3}
    row = {"prompt": "Q", "completions": ["red", "green", "blue"], "choice": ["B", "A", "A"]}
    [ranking] = read(tmp_path, [row], {}, "choice", pairs=PAIRS)
    assert by_text(ranking) == {"green": 1, "red": 2, "blue": 3}


def test_pairs_without_a_label_are_left_out_and_counted(tmp_path):
    dropped = Dropped()
    rows = [ROW | {"preference": ["A", None, "A"]}, ROW | {"question": "R", "preference": None}]
    [ranking] = read(tmp_path, rows, QA, pairs=PAIRS, dropped=dropped)
    assert by_text(ranking) == {"red": 1, "green": 2, "blue": 3}
    assert dropped.rows_out == {"fewer than 2 completions left": 4}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"preference": ["A", "B"]}, "holds 2 labels, and `pairs` has 3 pairs"),
        ({"preference": ["A", "B", "C"]}, "must be a number, got 'C'"),
    ],
)
def test_labels_that_do_not_fit_their_pairs_are_refused_with_the_row(tmp_path, change, what):
    with pytest.raises(DataError, match=what) as caught:
        read(tmp_path, [ROW | {"preference": ["A", "B", "A"]}, ROW | change], QA, pairs=PAIRS)
    assert caught.value.where.endswith("t.jsonl:2")
    row = {"prompt": "Q", "completions": ["red", "green"], "choice": ["B", "A", "A"]}
    with pytest.raises(DataError, match="`pairs` names completion 2, and the row's 2 completions"):
        read(tmp_path, [row], {}, "choice", pairs=PAIRS)
