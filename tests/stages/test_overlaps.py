"""Planted duplicates and held-out prompts are counted, shown and, if the recipe says so, dropped."""

import json

import pytest

from data.splits import split_of_prompt
from pipeline.config.data import (
    ContaminationConfig,
    DataConfig,
    DuplicatesConfig,
    RankingTableConfig,
    TableConfig,
    TaskConfig,
)
from pipeline.engine.stage import Artifact
from stages.contamination import check_corpus
from stages.data import run

FRACTION = 0.3
TOPICS = [
    *("lighthouse", "museum", "station", "theatre", "park", "river"),
    *("castle", "market", "bridge", "tower", "garden", "library"),
]


def prompt(i):
    letter = chr(97 + i % 26)
    return (
        f"Number {i}: write {letter} few lines of verse on the {TOPICS[i % 12]} that you saw {i} days ago at dawn"
    )


def answer(i, rest="quiet water"):
    place = f"In verse {i} the {TOPICS[i % 12]} stands alone by day {i + 1} and by night {i + 2}"
    return f"{place}, beside the {rest} of {i}, and nobody comes to visit it before the summer of {1900 + i}"


def split(text):
    return split_of_prompt([{"role": "user", "content": text}], FRACTION)


def reworded(text, wanted):
    """The prompt with another last word, in the wanted split."""
    for word in ("noon", "dusk", "midnight", "sunrise", "sunset", "teatime", "breakfast", "supper"):
        other = text.replace("dawn", word)
        if split(other) == wanted:
            return other
    raise AssertionError


TRAIN = [i for i in range(60) if split(prompt(i)) == "train"]
EVAL = [i for i in range(60) if split(prompt(i)) == "eval"]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def stage(tmp_path, training_context):
    """Runs the stage on demonstrations, and rankings if there are any. Returns metrics, artifact and lines."""

    def go(demonstrations, rankings=(), **config):
        table = TableConfig(path=write(tmp_path / "d.jsonl", demonstrations))
        if rankings:
            path = write(tmp_path / "r.jsonl", rankings)
            columns = {"completions": ["a", "b", "c"], "ranks": ["ra", "rb", "rc"]}
            config["rankings"] = RankingTableConfig(path=path, format="wide", columns=columns)
        ctx, notes = training_context()
        out = tmp_path / "out"
        out.mkdir()
        metrics = run(DataConfig(demonstrations=table, eval_fraction=FRACTION, **config), {}, out, ctx)
        return metrics, Artifact("data", out, ""), notes.lines

    return go


def demonstrations():
    """60 without overlap, an exact copy of a training row and a near one, and a copy of a held-out row."""
    first = TRAIN[0]
    return [
        *({"prompt": prompt(i), "completion": answer(i)} for i in range(60)),
        {"prompt": prompt(first).upper(), "completion": answer(first)},
        {"prompt": prompt(first), "completion": answer(first, "silent water")},
        {"prompt": prompt(first), "completion": "Another answer to the same prompt."},
        {"prompt": prompt(EVAL[0]), "completion": answer(EVAL[0]) + " "},
    ]


def named(metrics, prefix):
    return {name: value for name, value in metrics.items() if name.startswith(prefix) and value}


def test_duplicates_are_counted_and_shown(stage):
    metrics, artifact, lines = stage(demonstrations())
    assert named(metrics, "duplicate_") == {
        "duplicate_demonstrations/exact": 2,
        "duplicate_demonstrations/near": 1,
        "duplicate_prompts/exact": 1,
    }
    assert metrics["demonstrations_train"] + metrics["demonstrations_eval"] == 64
    examples = [(row["table"], row["kind"], row["row"], row["of"]) for row in artifact.jsonl("duplicates.jsonl")]
    first = TRAIN[0] + 1
    assert examples == [
        ("demonstrations", "exact", 61, first),
        ("demonstrations", "near", 62, first),
        ("demonstrations", "exact", 64, EVAL[0] + 1),
        ("prompts", "exact", 61, first),
    ]
    [line] = [line for line in lines if "among the demonstrations" in line]
    assert line.startswith(
        f"data: 2 duplicates and 1 near-duplicate among the demonstrations (row 61 repeats row {first}"
    )
    assert line.endswith("set data.duplicates.exact and data.duplicates.near: drop")


def test_duplicates_are_dropped_from_the_training_split_alone(stage):
    metrics, artifact, lines = stage(demonstrations(), duplicates=DuplicatesConfig(exact="drop", near="drop"))
    assert named(metrics, "dropped_demonstrations") == {
        "dropped_demonstrations": 2,
        "dropped_demonstrations/duplicate": 1,
        "dropped_demonstrations/near-duplicate": 1,
    }
    assert named(metrics, "duplicate_") == {"duplicate_demonstrations/exact": 1}
    assert metrics["demonstrations_train"] == len(TRAIN) + 1
    assert metrics["demonstrations_eval"] == len(EVAL) + 1
    kept = [row["completion"] for row in artifact.jsonl("demonstrations.jsonl")]
    assert len(kept) == 62
    assert kept.count(answer(TRAIN[0])) == 1
    assert [(row["row"], row["reason"]) for row in artifact.jsonl("dropped.jsonl")] == [
        (61, "duplicate"),
        (62, "near-duplicate"),
    ]
    assert (
        "data.demonstrations: 2 of 64 demonstrations left out: 1 x duplicate (row 61; data.duplicates.exact: "
        "report keeps them), 1 x near-duplicate (row 62; data.duplicates.near: report keeps them)"
    ) in lines


def ranking(i, **cells):
    texts = {"a": answer(i), "b": answer(i, "silent water"), "c": f"Something else about number {i}."}
    return {"prompt": prompt(i), **texts, "ra": 1, "rb": 2, "rc": 3, "annotator": "ana", **cells}


def test_rankings_of_the_same_answers_stay_and_near_duplicate_answers_are_counted(stage):
    rankings = [ranking(TRAIN[1]), ranking(TRAIN[1], annotator="ben"), ranking(EVAL[1])]
    metrics, artifact, _ = stage(demonstrations()[:60], rankings)
    assert metrics["rankings_train"] + metrics["rankings_eval"] == 3
    assert named(metrics, "duplicate_") == {"duplicate_answers/near": 3}
    assert [row["row"] for row in artifact.jsonl("duplicates.jsonl")] == [1, 2, 3]


def test_near_duplicate_answers_are_dropped_and_rankings_stay(stage):
    cells = {"c": answer(TRAIN[2], "deep water")}
    rankings = [ranking(TRAIN[1]), ranking(TRAIN[1], annotator="ben"), ranking(EVAL[1]), ranking(TRAIN[2], **cells)]
    metrics, artifact, lines = stage(demonstrations()[:60], rankings, duplicates=DuplicatesConfig(near="drop"))
    kept = [(row["annotator"], len(row["completions"]), row["ranks"]) for row in artifact.jsonl("rankings.jsonl")]
    assert kept == [("ana", 2, [1, 2]), ("ben", 2, [1, 2]), ("ana", 3, [1, 2, 3])]
    assert named(metrics, "duplicate_") == {"duplicate_answers/near": 1}
    assert metrics["dropped_completions/near-duplicate"] == 2
    assert metrics["dropped_rankings/fewer than 2 completions left"] == 1
    assert metrics["rankings_of_2"] == 2
    [line] = [line for line in lines if line.startswith("data.rankings: 1 of 4")]
    assert "near-duplicate (rows 1, 2, 4; data.duplicates.near: report keeps them)" in line


def contaminated():
    """Training rows: a reworded held-out prompt, a held-out prompt inside an answer, and one in a prompt."""
    near = {"prompt": reworded(prompt(EVAL[0]), "train"), "completion": "Fine."}
    inside = {"prompt": prompt(TRAIN[0]), "completion": f"You asked: {prompt(EVAL[1]).upper()}"}
    longer = next(
        text for n in range(99) if split(text := f"Exercise {n}. {prompt(EVAL[2])}. Take your time.") == "train"
    )
    return [*demonstrations()[:60], near, inside, {"prompt": longer, "completion": "Fine."}]


def test_held_out_prompts_in_training_rows_are_counted_with_a_warning(stage):
    rankings = [ranking(TRAIN[1], c=f"{prompt(EVAL[3])}?"), ranking(TRAIN[3]), ranking(EVAL[4])]
    metrics, artifact, lines = stage(contaminated(), rankings)
    assert named(metrics, "contaminated_") == {
        "contaminated_demonstrations/exact": 2,
        "contaminated_demonstrations/near": 1,
        "contaminated_prompts/exact": 1,
        "contaminated_prompts/near": 1,
        "contaminated_rankings/exact": 1,
    }
    content = artifact.json("contamination.json")
    rows = [(row["table"], row["row"], row["kind"]) for row in content["examples"]]
    assert rows == [
        ("demonstrations", 61, "near"),
        ("demonstrations", 62, "exact"),
        ("demonstrations", 63, "exact"),
        ("prompts", 61, "near"),
        ("prompts", 63, "exact"),
        ("rankings", 1, "exact"),
    ]
    warnings = [line for line in lines if line.startswith("warning: of the")]
    counts = "2 contain a held-out prompt and 1 nearly contain one"
    assert warnings[0].startswith(f"warning: of the demonstrations that are trained on, {counts} (row 61: ")
    assert len(warnings) == 3


def test_contaminated_training_rows_are_dropped(stage):
    rankings = [ranking(TRAIN[1], c=f"{prompt(EVAL[3])}?"), ranking(TRAIN[3]), ranking(EVAL[4])]
    config = ContaminationConfig(exact="drop", near="drop")
    metrics, artifact, _ = stage(contaminated(), rankings, contamination=config)
    assert not named(metrics, "contaminated_")
    assert metrics["dropped_demonstrations/contains a held-out prompt"] == 2
    assert metrics["dropped_demonstrations/nearly contains a held-out prompt"] == 1
    assert metrics["dropped_rankings/contains a held-out prompt"] == 1
    assert (metrics["rankings_train"], metrics["rankings_eval"], metrics["rankings_of_3"]) == (1, 1, 2)
    assert [row["prompt"][0]["content"] for row in artifact.jsonl("demonstrations.jsonl")] == [
        prompt(i) for i in range(60)
    ]
    prompts = list(artifact.jsonl("prompts.jsonl"))
    assert len(prompts) == 60
    assert metrics["prompts_train"] == sum(row["split"] == "train" for row in prompts) == len(TRAIN)
    assert ("demonstrations", 62, "contains a held-out prompt") in [
        (row["table"], row["row"], row["reason"]) for row in artifact.jsonl("dropped.jsonl")
    ]


def test_the_exact_kind_can_be_dropped_alone(stage):
    metrics, _, _ = stage(contaminated(), contamination=ContaminationConfig(exact="drop", near="ignore"))
    assert not named(metrics, "contaminated_")
    assert metrics["dropped_demonstrations/contains a held-out prompt"] == 2
    assert "dropped_demonstrations/nearly contains a held-out prompt" not in metrics


def test_generated_text_is_not_compared(tmp_path, context):
    out = tmp_path / "out"
    out.mkdir()
    config = DataConfig(demonstrations=TaskConfig(task="venues", size=400), eval_fraction=FRACTION)
    metrics = run(config, {}, out, context())
    assert not named(metrics, "contaminated_")
    assert not named(metrics, "duplicate_")


def test_documents_with_a_held_out_prompt_or_reference_are_left_out_of_the_corpus(stage, training_context):
    _, artifact, _ = stage(demonstrations()[:60])
    ctx, notes = training_context()
    running = [
        (f"An introduction. {prompt(EVAL[0])}. The end.",),
        (f"A page of verse. {answer(EVAL[1]).upper()}",),
        (f"A page of verse. {answer(TRAIN[1])}",),
        (reworded(prompt(EVAL[2]), "train"),),
        ("Nothing of the kind is in this document, which is long enough to be compared.",),
    ]
    kept, metrics = check_corpus(running, artifact, ctx)
    assert kept == running[2:]
    assert metrics["corpus_dropped_documents/contains a held-out prompt"] == 2
    assert metrics["corpus_read_documents"] == 5
    assert metrics["contaminated_documents/near"] == 1
    assert "base: 2 of 5 documents of base.pretrain.corpus left out: contains a held-out prompt." in notes.lines


def test_pairs_of_the_corpus_are_treated_as_other_tables_are(stage, training_context):
    pairs = [(prompt(TRAIN[0]), answer(EVAL[0])), (prompt(TRAIN[1]), prompt(EVAL[1]))]
    for action, kept in (("report", pairs), ("drop", pairs[:1])):
        config = ContaminationConfig(exact=action)
        _, artifact, _ = stage(demonstrations()[:60], contamination=config)
        ctx, _ = training_context()
        documents, metrics = check_corpus(pairs, artifact, ctx)
        assert documents == kept
        assert metrics.get("contaminated_documents/exact", 0) == (action == "report")
        for file in artifact.path.iterdir():
            file.unlink()
        artifact.path.rmdir()
