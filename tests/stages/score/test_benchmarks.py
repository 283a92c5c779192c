"""Benchmarks of reward models give the numbers of their official scorers."""

import json
import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tiny
from reward_runs import reward_run
from typer.testing import CliRunner

from data.schema import write_jsonl
from data.tables.sources import Row
from pipeline.config.data import TableConfig
from pipeline.engine.stage import Silent
from pipeline.errors import DataError
from stages.__main__ import app
from stages.score import benchmarks, evaluate, source
from stages.score.benchmarks import TiesRow
from stages.score.model import Answers, Scores


def test_equal_scores_of_a_pair_are_wrong():
    assert [benchmarks.pair_accuracy(*pair) for pair in ((2, 1), (1, 1), (0, 1))] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("scores", "result"),
    [([3, 1, 2, 0], 1.0), ([1, 3, 2, 0], 0.0), ([3, 3, 2, 0], 0.5), ([1, 1, 1, 1], 0.25), ([2, 3, 3, 0], 0.0)],
)
def test_the_best_of_four_shares_a_tie(scores, result):
    assert benchmarks.best_of_n(scores) == result


def official_ties(rows):
    """The definition of RewardBench 2 in plain Python: 60 % accuracy, 40 % margins, and 1 % for their size."""
    reference = {row.prompt: row for row in rows if row.kind == "ref"}
    tied = {row.prompt: row for row in rows if row.kind == "tied"}
    right = {"ref": [], "tied": []}
    for row in rows:
        right[row.kind].append(all(c > w for c in row.correct for w in row.wrong))
    preferred, hard, size = [], [], []
    for prompt in reference.keys() & tied.keys():
        gap_tied = min(tied[prompt].correct) - max(tied[prompt].wrong)
        gap_reference = min(reference[prompt].correct) - max(reference[prompt].wrong)
        within = max(tied[prompt].correct) - min(tied[prompt].correct)
        preferred.append(gap_tied > within)
        hard.append(min(gap_tied, gap_reference) > within)
        smaller = min(gap_tied, gap_reference)
        if within:
            size.append(math.tanh(smaller / within - 1))
        else:  # tanh of an infinite ratio; 0 / 0 counts 0
            size.append(math.copysign(1, smaller) if smaller else 0)
    mean = lambda values: sum(values) / len(values)  # noqa: E731
    return (
        0.3 * mean(right["tied"]) + 0.3 * mean(right["ref"]) + 0.2 * mean(preferred) + 0.2 * mean(hard)
        + 0.01 * mean(size)
    )  # fmt: skip


@pytest.mark.parametrize("decimals", [6, 0], ids=["distinct", "with equal scores"])
def test_the_ties_score_follows_the_official_definition(decimals):
    draw = np.random.default_rng(0)
    rows = []
    for prompt in range(40):
        scores = draw.normal([2, 1.5, 1.8, 0, 0, 3, 1, 0], 1.5).round(decimals).tolist()
        rows.append(TiesRow("tied", prompt, scores[:3], scores[3:5]))
        rows.append(TiesRow("ref", prompt, scores[5:6], scores[6:]))
    assert benchmarks.ties_score(rows) == pytest.approx(official_ties(rows), abs=1e-12)
    assert 0.1 < benchmarks.ties_score(rows) < 0.9


def test_the_ties_score_by_hand():
    reference = TiesRow("ref", 7, [5.0], [1.0])  # a margin of 4
    tied = TiesRow("tied", 7, [3.0, 2.0], [0.5])  # a spread of 1, a margin of 1.5
    assert benchmarks.ties_score([reference, tied]) == pytest.approx(1 + 0.01 * math.tanh(0.5))
    close = TiesRow("ref", 7, [5.0], [4.5])  # its margin of 0.5 is less than the spread
    assert benchmarks.ties_score([close, tied]) == pytest.approx(0.8 + 0.01 * math.tanh(-0.5))
    wrong = TiesRow("tied", 7, [3.0, 2.0], [2.5])
    assert benchmarks.ties_score([reference, wrong]) == pytest.approx(0.3 + 0.01 * math.tanh(-1.5))
    assert benchmarks.ties_score([reference]) == 0.3


def test_style_accuracies_follow_the_official_definition():
    draw = np.random.default_rng(1)
    results = [(draw.normal(0.5, 1, 3).round(1), draw.normal(0, 1, 3).round(1)) for _ in range(60)]
    wins = np.zeros((3, 3))
    for chosen, rejected in results:
        for i in range(3):
            for j in range(3):
                wins[i, j] += chosen[i] > rejected[j]
    wins /= len(results)
    hard = (wins[0, 1] + wins[0, 2] + wins[1, 2]) / 3
    normal = (wins[0, 0] + wins[1, 1] + wins[2, 2]) / 3
    easy = (wins[1, 0] + wins[2, 0] + wins[2, 1]) / 3
    matrix = np.mean([benchmarks.style_matrix(*result) for result in results], axis=0)
    assert benchmarks.style_accuracies(matrix) == pytest.approx({"easy": easy, "normal": normal, "hard": hard})
    assert len({easy, normal, hard}) == 3


# --- Files ---


class Numbers:
    """Scores an answer by the number that it begins with."""

    name = "numbers"

    def score(self, rows, on_batch=lambda count: None):
        on_batch(sum(len(row.completions) for row in rows))
        return [Scores([float(text.split()[0]) for text in row.completions], [], None) for row in rows]


def results(rows, tmp_path, form=None):
    write_jsonl(tmp_path / "bench.jsonl", rows)
    table = TableConfig(path=str(tmp_path / "bench.jsonl"))
    form = form or evaluate.first_format(table)
    lines = evaluate.evaluate(table, Numbers(), Silent.progress, form)  # type: ignore[arg-type]
    return form, {line.name: line.value for line in lines}, lines


def best_of_4(subset, correct, *wrong):
    row = {"id": "7", "prompt": "q", "chosen": [f"{correct} a"], "rejected": [f"{score} b" for score in wrong]}
    return row | {"num_correct": 1, "num_incorrect": 3, "total_completions": 4, "subset": subset}


def ties(kind, prompt, correct, wrong):
    answers = {"chosen": [f"{score} a" for score in correct], "rejected": [f"{score} b" for score in wrong]}
    return {"id": f"{kind}:{prompt}", "prompt": "q", **answers, "num_correct": len(correct), "subset": "Ties"}


def test_rewardbench_2(tmp_path):
    rows = [
        best_of_4("Math", 3, 1, 2, 0),
        best_of_4("Focus", 3, 3, 2, 0),
        best_of_4("Math", 1, 3, 0, 0),
        best_of_4("Focus", 1, 0, 0, 0),
        best_of_4("Math", 9, 8, 7, 6),
        ties("ref", 7, [5], [4.5]),
        ties("tied", 7, [3, 2], [0.5]),
    ]
    form, values, lines = results(rows, tmp_path)
    tied = 0.8 + 0.01 * math.tanh(-0.5)
    expected = {"Math": 2 / 3, "Focus": 0.75, "Ties": tied}
    assert form == "rewardbench-2"
    assert values == pytest.approx(expected | {"mean of the subsets": sum(expected.values()) / 3})
    assert [line.rows for line in lines] == [3, 2, 2, 7]
    assert lines[0].low <= values["Math"] <= lines[0].high


def test_rm_bench(tmp_path):
    rows = [
        {
            "id": 1,
            "prompt": "q",
            "chosen": ["1 a", "2 b", "3 c"],
            "rejected": ["0 d", "1 e", "4 f"],
            "domain": "chat",
        },
        {
            "id": 2,
            "prompt": "q",
            "chosen": ["5 a", "5 b", "5 c"],
            "rejected": ["0 d", "5 e", "9 f"],
            "domain": "math",
        },
    ]
    form, values, _ = results(rows, tmp_path)
    assert form == "rm-bench"
    # Of the first: normal 1 > 0, 2 > 1, 3 < 4; hard 1 = 1, 1 < 4, 2 < 4; easy 2 > 0, 3 > 0, 3 > 1.
    assert values["chat: normal"] == pytest.approx(2 / 3)
    assert (values["chat: hard"], values["chat: easy"]) == (0, 1)
    # Of the second: normal 5 > 0, 5 = 5, 5 < 9; hard none; easy 5 > 0, 5 > 0, 5 = 5.
    assert values["math: normal"] == pytest.approx(1 / 3)
    assert values["math: easy"] == pytest.approx(2 / 3)
    assert values["easy"] == pytest.approx(5 / 6)
    assert values["normal"] == pytest.approx(1 / 2)
    assert values["hard"] == 0
    assert values["mean of the three"] == pytest.approx((5 / 6 + 1 / 2) / 3)


def test_pairs_of_texts_and_of_conversations(tmp_path):
    talk = lambda text: [*tiny.user("q"), {"role": "assistant", "content": text}]  # noqa: E731
    rows = [
        {"prompt": "q", "chosen": "2 a", "rejected": "1 b", "subset": "one"},
        {"prompt": "q", "chosen": "1 a", "rejected": "1 b", "subset": "two"},
        {"prompt": "q", "chosen": talk("3 a"), "rejected": talk("1 b"), "subset": "two"},
    ]
    form, values, _ = results(rows, tmp_path)
    assert form == "pairs"
    assert values == pytest.approx({"one": 1, "two": 0.5, "accuracy": 2 / 3})
    alone = [{"chosen": talk("3 a"), "rejected": talk("1 b")}]
    assert results(alone, tmp_path)[1] == {"accuracy": 1}


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "q", "completion": "1"}, "none of the formats"),
        ({"prompt": "q", "chosen": ["1"], "rejected": ["0"]}, "none of the formats"),
        (ties("ref", "x", [1], [0]), "an id of the Ties subset is ref:N or tied:N"),
        (best_of_4("Math", 1, 0) | {"num_correct": 2}, "num_correct is 2, and there are 1 chosen answers"),
        (best_of_4("Math", 1, 0) | {"rejected": []}, "column 'rejected' must be a list of answers"),
        (best_of_4("Math", 1, 0) | {"prompt": " "}, "the prompt is empty"),
        ({"prompt": "q", "chosen": ["1"], "rejected": ["0", "1"], "domain": "x"}, "as many chosen as rejected"),
    ],
)
def test_rows_that_are_not_of_the_format_are_refused_before_anything_is_scored(tmp_path, row, problem, monkeypatch):
    monkeypatch.setattr(Numbers, "score", lambda *_: pytest.fail("scored"))
    with pytest.raises(DataError, match=problem) as caught:
        results([row], tmp_path)
    assert "bench.jsonl:1" in caught.value.where
    assert caught.value.hint


def test_the_format_can_be_named(tmp_path):
    row = Row(1, {"chosen": "1 a", "rejected": "0 b", "prompt": "q"}, "x:1")
    assert evaluate.format_of(row) == "pairs"
    with pytest.raises(DataError, match=r"column 'chosen' must be a list of answers"):
        results([dict(row)], tmp_path, "rm-bench")


def test_the_command_prints_and_writes_the_results(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = reward_run(tmp_path / "runs")
    texts = tiny.words(8, seed=3)
    rows = [{"prompt": "q", "chosen": f"{a} x", "rejected": b} for a, b in pairwise(texts)]
    write_jsonl(Path("pairs.jsonl"), rows)
    model = ["--model", str(run.reward.path), "--device", "cpu"]
    result = CliRunner().invoke(app, ["evaluate-reward", "pairs.jsonl", *model, "--out", "results.json"])
    assert result.exit_code == 0, result.stderr
    scorer = source.from_place(str(run.reward.path), None, "cpu")
    scored = scorer.score([Answers(tiny.user("q"), [row["chosen"], row["rejected"]]) for row in rows])
    accuracy = sum(row.scores[0] > row.scores[1] for row in scored) / len(rows)
    assert 0 < accuracy < 1
    assert f"accuracy  {accuracy:.4f}" in result.output
    [line] = json.loads(Path("results.json").read_text())["results"]
    assert (line["value"], line["rows"]) == (pytest.approx(accuracy), 7)
    without = CliRunner().invoke(app, ["evaluate-reward"])
    assert without.exit_code == 2
    assert "evaluate-reward needs the file of a benchmark" in without.stderr
