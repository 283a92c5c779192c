"""Rows in the schemas of public data sets are read by the formats that docs/rankings/formats.md names for them."""

import json

import pytest
from dropped import rows_by_reason

from data.annotators.agreement import agreement
from data.schema import Ranking, write_jsonl
from data.tables.check import check_table
from data.tables.demonstrations import read_demonstrations
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig, TableConfig
from pipeline.errors import DataError, RecipeError


def user(text):
    return {"role": "user", "content": text}


def assistant(text):
    return {"role": "assistant", "content": text}


def table(tmp_path, format, rows, **columns):
    write_jsonl(tmp_path / "t.jsonl", rows)
    return RankingTableConfig(path=str(tmp_path / "t.jsonl"), format=format, columns=columns)


def read(config, dropped=None):
    return list(read_rankings(config, dropped or Dropped()))


def completion(model, score):
    annotations = {"helpfulness": {"Rating": "3", "Rationale": "...", "Type": ["1"]}}
    return {
        "model": model,
        "principle": "helpfulness",
        "custom_system_prompt": "...",
        "response": f"by {model}",
        "annotations": annotations,
        "critique": "...",
        "fine-grained_score": 3.0,
        "overall_score": score,
    }


def test_ultrafeedback(tmp_path):
    """openbmb/UltraFeedback; some of its rows have no completions."""
    row = {
        "source": "sharegpt",
        "instruction": "What to do in Cairo?",
        "models": ["starchat", "gpt-4"],
        "correct_answers": ["None"],
        "completions": [completion("starchat", 6.5), completion("gpt-4", 8.0), completion("bard", 6.5)],
    }
    dropped = Dropped()
    config = table(
        tmp_path,
        "scored",
        [row, row | {"completions": []}],
        prompt="instruction",
        text="response",
        score="overall_score",
    )
    [ranking] = read(config, dropped)
    assert (ranking.ranks, ranking.ratings) == ([2, 1, 2], [6.5, 8.0, 6.5])
    assert ranking.models == ["starchat", "gpt-4", "bard"]
    assert rows_by_reason(dropped) == {"fewer than 2 completions left": [2]}


def test_ultrafeedback_binarized(tmp_path):
    """HuggingFaceH4/ultrafeedback_binarized: conversations with the prompt in them, and two scores that may tie."""
    rows = [
        {
            "prompt": "p",
            "chosen": [user("p"), assistant("x")],
            "rejected": [user("p"), assistant("y")],
            "messages": [user("p"), assistant("x")],
            "score_chosen": chosen,
            "score_rejected": 5.0,
        }
        for chosen in (8.0, 5.0)
    ]
    columns = {"chosen_rating": "score_chosen", "rejected_rating": "score_rejected"}
    first, second = read(table(tmp_path, "pairs", rows, **columns))
    assert (first.ranks, first.ratings) == ([1, 2], [8.0, 5.0])
    assert (second.ranks, second.ratings) == ([1, 1], [5.0, 5.0])
    with pytest.raises(DataError, match="below the rejected one"):
        read(table(tmp_path, "pairs", [rows[0] | {"score_chosen": 1.0}], **columns))


def test_helpsteer2_ratings(tmp_path):
    """nvidia/HelpSteer2: one row per response, five attributes; the rows of a prompt form a ranking."""
    rows = [
        {"prompt": "p", "response": text, "helpfulness": h, "correctness": 4, "coherence": 4, "complexity": 2}
        for text, h in (("x", 3), ("y", 4))
    ]
    [ranking] = read(table(tmp_path, "long", rows, completion="response", rating="helpfulness"))
    assert (ranking.completions, ranking.ranks, ranking.ratings) == (["x", "y"], [2, 1], [3.0, 4.0])


def preference(strength, **more):
    """A row of HelpSteer2's preference/preference.jsonl."""
    return {
        "split": "train",
        "prompt": "p",
        "response_1": "x",
        "response_2": "y",
        "preference_strength": strength,
        "preference_statement": "...",
        **more,
    }


@pytest.mark.parametrize(
    ("strength", "ranks", "ratings"),
    [(-3, [1, 2], [3.0, 0.0]), (0, [1, 1], [0.0, 0.0]), (2, [2, 1], [0.0, 2.0])],
)
def test_helpsteer2_preferences(tmp_path, strength, ranks, ratings):
    """-3: response 1 is much better, ..., 3: response 2 is."""
    columns = {"completions": ["response_1", "response_2"], "preference": "preference_strength"}
    [ranking] = read(table(tmp_path, "wide", [preference(strength)], **columns))
    assert (ranking.completions, ranking.ranks, ranking.ratings) == (["x", "y"], ranks, ratings)


def test_helpsteer3(tmp_path):
    """nvidia/HelpSteer3: a conversation, an overall preference, and the preferences of up to three annotators."""
    context = [user("p"), assistant("a"), user("q")]
    rows = [
        {
            "domain": "general",
            "language": "english",
            "context": context,
            "response1": "x",
            "response2": "y",
            "overall_preference": -2,
            "individual_preference": [
                {"score": -2, "reasoning": "...", "feedback1": "...", "feedback2": "..."},
                {"score": 1, "reasoning": "...", "feedback1": "...", "feedback2": "..."},
                {"score": None, "reasoning": "...", "feedback1": "...", "feedback2": "..."},
            ],
        }
    ]
    columns = {"prompt": "context", "completions": ["response1", "response2"]}
    [overall] = read(table(tmp_path, "wide", rows, **columns, preference="overall_preference"))
    assert (overall.prompt, overall.ranks) == (context, [1, 2])
    dropped = Dropped()
    single = read(table(tmp_path, "wide", rows, **columns, preference="individual_preference"), dropped)
    assert [(r.annotator, r.ranks, r.ratings) for r in single] == [
        ("unknown-1", [1, 2], [2.0, 0.0]),
        ("unknown-2", [2, 1], [0.0, 1.0]),
    ]
    assert dropped.counts == {"missing rating": 2, "fewer than 2 completions left": 1}
    assert agreement(single).pairwise.value == 0.0


def test_a_preference_orders_two(tmp_path):
    columns = {"completions": ["response_1", "response_2"], "preference": "preference_strength"}
    with pytest.raises(RecipeError, match="orders 2 completions"):
        read(table(tmp_path, "wide", [preference(1)], **(columns | {"completions": ["response_1"]})))
    with pytest.raises(DataError, match="must be a number"):
        read(table(tmp_path, "wide", [preference("better")], **columns))


def test_native_is_lossless(tmp_path):
    rankings = [
        Ranking([user("p"), assistant("a"), user("q")], ["x", "", "x"], [1, 3, 3], "ann", True, split="eval"),
        Ranking(
            [user("ü\n")], ["x", "y"], [2, 1], "bot", False, [0.1, 1e300], ["m", ""], metadata={"shown": [1, 0]}
        ),
    ]
    rows = [*rankings, {**vars(rankings[1]), "metadata": json.dumps(rankings[1].metadata), "ratings": None}]
    path = tmp_path / "t.jsonl"
    write_jsonl(path, rows)
    first, second, third = read(RankingTableConfig(path=str(path), format="native"))
    assert [first, second] == rankings
    assert (third.metadata, third.ratings) == ({"shown": [1, 0]}, None)
    assert [r.human for r in read(RankingTableConfig(path=str(path), format="native", human=False))] == [False] * 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ranks": ["1", "2"]}, "ranks.0"),
        ({"ranks": [1]}, "2 completions has 1 ranks"),
        ({"completions": "xy"}, "completions"),
        ({"metadata": "{"}, "not a ranking"),
    ],
)
def test_malformed_native_rows(tmp_path, change, message):
    row = {"prompt": [user("p")], "completions": ["x", "y"], "ranks": [1, 2], "annotator": "a", "human": True}
    with pytest.raises(DataError, match=message) as caught:
        read(table(tmp_path, "native", [row, row | change]))
    assert "t.jsonl:2" in str(caught.value)
    with pytest.raises(RecipeError, match="leave `columns` out"):
        read(table(tmp_path, "native", [row], prompt="p"))


def hh(*turns, last):
    """A transcript as in Anthropic/hh-rlhf."""
    return "".join(f"\n\n{who}: {text}" for who, text in turns) + f"\n\nAssistant: {last}"


def test_hh_rlhf(tmp_path):
    """Anthropic/hh-rlhf: chosen and rejected are whole conversations as one text."""
    turns = [("Human", "Hi"), ("Assistant", "Hello.\n\nHow are you?"), ("Human", "Tell me")]
    rows = [
        {"chosen": hh(*turns, last="x"), "rejected": hh(*turns, last="y")},
        {"chosen": hh(*turns, last="x"), "rejected": hh(*turns[:1], last="y")},  # another conversation
        {"chosen": hh(*turns, last="x"), "rejected": hh(*turns, last="")},
        {"chosen": hh(*turns, last="x") + "\n\nHuman: more", "rejected": hh(*turns, last="y")},
        {"chosen": hh(*turns, last="x"), "rejected": hh(*turns, last="z\n\nAssistant: w")},
    ]
    dropped = Dropped()
    first, last = read(table(tmp_path, "pairs", rows), dropped)
    assert first.prompt == [user("Hi"), assistant("Hello.\n\nHow are you?"), user("Tell me")]
    assert (first.completions, first.ranks, first.ratings) == (["x", "y"], [1, 2], None)
    assert last.completions == ["x", "z\n\nw"]
    assert rows_by_reason(dropped) == {
        "chosen and rejected differ before the last answer": [2, 4],
        "empty completion": [3],
        "fewer than 2 completions left": [3],
    }


def test_hh_rlhf_as_demonstrations(tmp_path):
    write_jsonl(tmp_path / "t.jsonl", [{"chosen": hh(("Human", "Hi"), last="Hello."), "rejected": "-"}])
    config = TableConfig(path=str(tmp_path / "t.jsonl"), columns={"messages": "chosen"})
    [demonstration] = read_demonstrations(config, 0.1, Dropped())
    assert (demonstration.prompt, demonstration.completion) == ([user("Hi")], "Hello.")


TLDR = "SUBREDDIT: r/{info[subreddit]}\n\nTITLE: {info[title]}\n\nPOST: {info[post]}\n\nTL;DR:"


def comparison(**changes):
    """A row of openai/summarize_from_feedback, comparisons."""
    return {
        "info": {"id": "t3_1", "post": "A {long} post", "title": "T", "subreddit": "tifu", "site": None},
        "split": "train",
        "summaries": [
            {"text": " x", "policy": "sup1", "note": None},
            {"text": " y", "policy": "ref", "note": None},
        ],
        "choice": 1,
        "worker": "w1",
        "batch": "batch3",
        "extra": {"confidence": None},
    } | changes


def test_summarize_from_feedback(tmp_path):
    columns = {"prompt": TLDR, "completions": "summaries", "model": "policy", "annotator": "worker"}
    dropped = Dropped()
    [ranking] = read(table(tmp_path, "choice", [comparison(), comparison(choice=None)], **columns), dropped)
    assert ranking.prompt == [user("SUBREDDIT: r/tifu\n\nTITLE: T\n\nPOST: A {long} post\n\nTL;DR:")]
    assert (ranking.completions, ranking.ranks, ranking.ratings) == ([" x", " y"], [2, 1], None)
    assert (ranking.models, ranking.annotator) == (["sup1", "ref"], "w1")
    assert dropped.counts == {"missing rating": 2, "fewer than 2 completions left": 1}
    with pytest.raises(DataError, match="holds 2, and the 2 completions are counted from 0"):
        read(table(tmp_path, "choice", [comparison(choice=2)], **columns))
    for template in ("{info[body]}", "{title}", "{", "{info.x}"):
        with pytest.raises(RecipeError, match="template does not fit the row at"):
            read(table(tmp_path, "choice", [comparison()], **(columns | {"prompt": template})))


def test_a_choice_among_texts(tmp_path):
    [ranking] = read(table(tmp_path, "choice", [{"prompt": "p", "completions": ["x", "y", "z"], "choice": 0}]))
    assert (ranking.completions, ranking.ranks) == (["x", "y", "z"], [1, 2, 2])


def test_oasst_trees_as_demonstrations(tmp_path):
    """OpenAssistant/oasst1, *_ready.trees.jsonl.gz: of ranked replies the best is the demonstration."""

    def reply(text, rank, replies=()):
        return {"text": text, "role": "assistant", "rank": rank, "replies": list(replies)}

    follow_up = {"text": "more", "role": "prompter", "rank": 0, "replies": [reply("u", 1), reply("v", 0)]}
    replies = [reply("x", 1), reply("y", 0, [follow_up]), reply("z", None)]
    root = {"text": "Hi", "role": "prompter", "replies": replies}
    write_jsonl(tmp_path / "t.jsonl", [{"message_tree_id": "1", "tree_state": "ready_for_export", "prompt": root}])
    demonstrations = list(read_demonstrations(TableConfig(path=str(tmp_path / "t.jsonl")), 0.1, Dropped()))
    assert [(d.prompt, d.completion) for d in demonstrations] == [
        ([user("Hi")], "y"),
        ([user("Hi"), assistant("y"), user("more")], "v"),
    ]


LMSYS = {
    "completions": ["response_a", "response_b"],
    "ratings": ["winner_model_a", "winner_model_b"],
    "models": ["model_a", "model_b"],
}


def lmsys(i, prompt, winner=0):
    """A row of Kaggle's lmsys table, with lists of texts unwrapped."""
    return {
        "id": 30192 + i,
        "model_a": ("gpt-4", "koala-13b")[i % 2],
        "model_b": ("vicuna", "gpt-4")[i % 2],
        "prompt": prompt,
        "response_a": f"Hello {prompt}",
        "response_b": f"Hi {prompt}",
        "winner_model_a": int(winner == 0),
        "winner_model_b": int(winner == 1),
        "winner_tie": int(winner == 2),
    }


REPEATED = {
    "ultrafeedback": (
        "scored",
        [
            {
                "source": "sharegpt",
                "instruction": f"q{i}",
                "models": ["a", "b"],
                "completions": [completion("a", 6.5), completion("b", 8)],
            }
            for i in range(12)
        ],
        {"prompt": "instruction", "text": "response", "score": "overall_score"},
    ),
    "hh-rlhf": (
        "pairs",
        [
            {
                "chosen": hh(("Human", f"Hi {i // 2}"), last="xy"[i % 2]),
                "rejected": hh(("Human", f"Hi {i // 2}"), last="yx"[i % 2]),
            }
            for i in range(12)
        ],
        {},
    ),
    "lmsys": ("wide", [*(lmsys(i, f"q{i}") for i in range(30)), lmsys(30, "q3", 1), lmsys(31, "q4", 2)], LMSYS),
    "tldr": (
        "choice",
        [comparison(worker=f"w{i % 2}", choice=i % 2) for i in range(8)],
        {"prompt": TLDR, "completions": "summaries", "model": "policy", "annotator": "worker"},
    ),
    "helpsteer2": (
        "wide",
        [preference(1 - i % 3) | {"prompt": f"q{i}"} for i in range(12)],
        {"completions": ["response_1", "response_2"], "preference": "preference_strength"},
    ),
}


@pytest.mark.parametrize("name", REPEATED)
def test_repeated_comparisons_of_public_tables_are_read(tmp_path, name):
    """They hold some, by nobody that they name, and no column that could be taken for people."""
    format, rows, columns = REPEATED[name]
    report = check_table("data.rankings", table(tmp_path, format, rows, **columns))
    assert report.problems == []
    assert report.parsed == len(rows)
    assert not [line for line in report.lines if "If it names who ranked" in line]


def test_comparisons_with_workers_need_them_named(tmp_path):
    format, rows, columns = REPEATED["tldr"]
    columns = {name: value for name, value in columns.items() if name != "annotator"}
    [problem] = check_table("data.rankings", table(tmp_path, format, rows, **columns)).problems
    assert "set data.rankings.columns: {annotator: worker}" in problem.hint
