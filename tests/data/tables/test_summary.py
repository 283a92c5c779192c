"""The figures of rankings equal a plain calculation with pandas, one row per pair of answers."""

from __future__ import annotations

import random
from itertools import combinations

import pandas as pd
import pytest

from data.schema import Ranking, ranks_from_scores, write_jsonl
from data.tables.check import check_table
from data.tables.first_wins import FirstWins
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from data.tables.summary import RankingSummary, summary
from pipeline.config.data import RankingTableConfig


def rankings(seed: int) -> list[Ranking]:
    """Rankings of 2 to 4 answers to a few prompts by three annotators, with ties, repeats and the places shown."""
    generator = random.Random(seed)
    rows = []
    for number in range(150):
        prompt, count = f"p{number % 12}", 2 + number % 3
        texts = [f"{place} {'b' * generator.randrange(4)}" for place in range(count)]
        if number % 4 == 0:
            texts = [f"answer {place}" for place in range(count)]  # several annotators, and the same one again
        order = list(range(count))
        generator.shuffle(order)
        rows.append(
            Ranking(
                [{"role": "user", "content": prompt}],
                texts,
                ranks_from_scores([generator.randrange(3) for _ in texts]),
                generator.choice(["ana", "ben", "unknown"]),
                human=True,
                metadata={"shown": order} if number % 2 else {},
            )
        )
    return rows


def summarised(rows: list[Ranking], path: str = "t.csv") -> RankingSummary:
    with summary(FirstWins(path)) as figures:
        for row in rows:
            figures.add(row)
    return figures


def frame(rows: list[Ranking]) -> pd.DataFrame:
    """One row per pair of answers of a ranking, with what each of the two has."""
    pairs = []
    for number, row in enumerate(rows):
        shown = row.metadata.get("shown", [None] * len(row.ranks))
        for i, j in combinations(range(len(row.ranks)), 2):
            pairs.append({
                "ranking": number,
                "who": row.annotator,
                "prompt": row.prompt[0]["content"],
                "answers": tuple(sorted(row.completions)),
                "k": len(row.ranks),
                "texts": tuple(sorted((row.completions[i], row.completions[j]))),
                "first_is_better": row.ranks[i] < row.ranks[j],
                "strict": row.ranks[i] != row.ranks[j],
                "better": row.completions[i] if row.ranks[i] < row.ranks[j] else row.completions[j],
                "longer": len(row.completions[i]) - len(row.completions[j]),
                "shown_i": shown[i],
                "shown_j": shown[j],
            })  # fmt: skip
    return pd.DataFrame(pairs)


@pytest.mark.parametrize("seed", range(4))
def test_every_figure_equals_pandas(seed: int) -> None:
    rows = rankings(seed)
    figures, pairs = summarised(rows), frame(rows)
    metrics = figures.metrics()
    strict = pairs[pairs.strict]
    assert metrics["ranked_prompts"] == pairs.prompt.nunique()
    sizes = pairs.drop_duplicates("ranking").k.value_counts()
    assert {k: metrics[f"rankings_of_{k}"] for k in sizes.index} == sizes.to_dict()
    assert metrics["pairs"] == len(strict)
    assert metrics["tie_share"] == pytest.approx(1 - pairs.strict.mean())
    assert metrics["tied_rankings"] == (~pairs.groupby("ranking").strict.any()).sum()
    assert metrics["first_wins"] == pytest.approx(strict.first_is_better.mean())
    assert metrics["first_wins_pairs"] == len(strict)
    unequal = strict[strict.longer != 0]
    assert metrics["longer"] == pytest.approx((unequal.first_is_better == (unequal.longer > 0)).mean())
    assert figures.unequal == len(unequal)

    shown = strict[strict.shown_i.notna()]
    among = shown[(shown.shown_i == 0) | (shown.shown_j == 0)]
    assert (figures.shown, figures.shown_first) == (
        len(among),
        int((among.first_is_better == (among.shown_i == 0)).sum()),
    )

    again = pairs.drop_duplicates("ranking").duplicated(["who", "prompt", "answers"])
    assert metrics["repeated_rankings"] == again.sum()

    # Agreement: the first time an annotator ranks the same answers counts; of each two annotators, strict pairs.
    firsts = pairs.drop_duplicates(["who", "prompt", "answers", "texts"])
    both = firsts[firsts.strict].merge(firsts[firsts.strict], on=["prompt", "answers", "texts"])
    both = both[both.who_x < both.who_y]
    assert metrics["agreement_pairs"] == len(both) > 0
    assert metrics["agreement"] == pytest.approx((both.better_x == both.better_y).mean())


def test_copies_are_repeats_in_the_same_order() -> None:
    prompt = [{"role": "user", "content": "p"}]
    first = Ranking(prompt, ["x", "y"], [1, 2], "ana", human=True)
    rows = [
        first,
        first,
        Ranking(prompt, ["y", "x"], [2, 1], "ana", human=True),  # the same, displayed the other way round
        Ranking(prompt, ["x", "y"], [2, 1], "ana", human=True),
        Ranking(prompt, ["x", "y"], [1, 2], "ben", human=True),
        Ranking(prompt, ["x", "z"], [1, 2], "ana", human=True),
    ]
    metrics = summarised(rows).metrics()
    assert (metrics["repeated_rankings"], metrics["copied_rankings"]) == (3, 2)


def test_lines_say_each_figure() -> None:
    rows = rankings(0)
    lines = list(summarised(rows).lines("rank"))
    assert lines[0].startswith("rank: 150 rankings of 12 prompts, by 2 annotators (of ")
    assert lines[0].endswith("answers per ranking: 2 (50), 3 (50), 4 (50)")
    for part in ("are tied; all answers of", "annotators agree on", "the answer listed first", "shown first",
                 "the longer answer is better", "by the same annotator: "):  # fmt: skip
        assert sum(part in line for line in lines) == 1
    assert list(summarised([]).lines("rank")) == []


def test_check_prints_the_figures_and_examples_of_what_is_left_out(tmp_path) -> None:
    rows = [
        {
            "prompt": f"p{i % 10}",
            "a": "xx",
            "b": "y",
            "ra": 1 + (i % 4 == 0),
            "rb": 2 - (i % 4 == 0),
            "who": "ab"[i > 9],
        }
        for i in range(20)
    ]
    rows[3]["a"] = rows[7]["b"] = rows[8]["a"] = rows[9]["a"] = ""
    write_jsonl(tmp_path / "t.jsonl", rows)
    columns: dict[str, str | list[str]] = {"completions": ["a", "b"], "ranks": ["ra", "rb"], "annotator": "who"}
    config = RankingTableConfig(path=str(tmp_path / "t.jsonl"), format="wide", columns=columns)
    report = check_table("data.rankings", config)
    table = pd.DataFrame(rows)
    kept = table[(table.a != "") & (table.b != "")]
    lines = list(report.describe())
    assert report.parsed == len(kept) == 16
    assert (
        "data.rankings: 4 of 20 rankings left out: 4 x fewer than 2 completions left (rows 4, 8, 9, ...)"
        in lines[1]
    )
    share = 100 * (kept.ra < kept.rb).mean()
    assert f"data.rankings: the answer listed first is better in {share:.1f} % of 16 strict pairs" in lines
    assert (
        f"data.rankings: the longer answer is better in {share:.1f} % of 16 strict pairs of unequal length" in lines
    )
    both = kept[kept.who == "a"].merge(kept[kept.who == "b"], on="prompt")
    agreed = 100 * ((both.ra_x < both.rb_x) == (both.ra_y < both.rb_y)).mean()
    assert (
        f"data.rankings: annotators agree on {agreed:.1f} % of {len(both)} pairs that two of them ordered" in lines
    )
    assert report.figures == list(
        summarised(list(read_rankings(config, Dropped())), config.path).lines("data.rankings")
    )
