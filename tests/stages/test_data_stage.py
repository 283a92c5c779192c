import json
from dataclasses import replace
from pathlib import Path

import pytest

from data.schema import prompt_key
from pipeline.config.data import DataConfig, RankingTableConfig, TableConfig, TaskConfig
from pipeline.errors import DataError, RecipeError
from stages.data import run


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def tables(tmp_path):
    """40 demonstrations, one of them empty; 30 pairs, 20 on prompts of the demonstrations; 15 prompts."""
    demonstrations = [{"prompt": f"p{i}", "completion": f"c{i}"} for i in range(40)]
    demonstrations[7]["completion"] = ""
    pairs = [{"prompt": f"p{i}", "chosen": "x", "rejected": "y", "annotator": f"w{i % 3}"} for i in range(20, 50)]
    return {
        "demonstrations": TableConfig(path=write(tmp_path / "d.jsonl", demonstrations)),
        "rankings": RankingTableConfig(path=write(tmp_path / "r.jsonl", pairs), format="pairs"),
        "prompts": TableConfig(path=write(tmp_path / "p.jsonl", [{"prompt": f"p{i}"} for i in range(45, 60)])),
    }


def read(out, name):
    return [json.loads(line) for line in (out / name).read_text().splitlines()]


def stage(config, tmp_path, context, seed=0, name="out"):
    out = tmp_path / name
    out.mkdir()
    return run(config, {}, out, context(seed)), out


def test_tables(tables, tmp_path, context):
    metrics, out = stage(DataConfig(**tables, eval_fraction=0.3), tmp_path, context)
    demonstrations, prompts, rankings = (
        read(out, f"{name}.jsonl") for name in ("demonstrations", "prompts", "rankings")
    )
    assert len(demonstrations) == 39
    assert len(rankings) == 30
    # p0..p59 once each, less p7, whose only row was dropped
    assert sorted(row["prompt"][0]["content"] for row in prompts) == sorted(f"p{i}" for i in range(60) if i != 7)

    split = {prompt_key(row["prompt"]): row["split"] for row in prompts}
    for row in demonstrations + rankings:
        assert row["split"] == split[prompt_key(row["prompt"])]
    [place] = read(out, "dropped.jsonl")
    assert place == {"table": "demonstrations", "row": 8, "reason": "empty completion"}
    assert metrics["demonstrations_train"] + metrics["demonstrations_eval"] == 39
    assert metrics["prompts_eval"] == sum(s == "eval" for s in split.values()) > 0
    assert metrics["rankings_train"] + metrics["rankings_eval"] == metrics["rankings_of_2"] == 30
    assert metrics["dropped_demonstrations"] == metrics["dropped_demonstrations/empty completion"] == 1
    assert (metrics["read_demonstrations"], metrics["read_prompts"], metrics["read_rankings"]) == (40, 15, 30)
    assert (metrics["annotators"], metrics["human"]) == (3, True)


def test_same_tables_elsewhere_give_the_same_content(tables, tmp_path, context):
    config = DataConfig(**tables)
    _, first = stage(config, tmp_path, context, name="first")
    moved = {name: tmp_path / f"moved-{name}.jsonl" for name in tables}
    for name, table in tables.items():
        moved[name].write_bytes(Path(table.path).read_bytes())
    config = DataConfig(
        demonstrations=TableConfig(path=str(moved["demonstrations"])),
        prompts=TableConfig(path=str(moved["prompts"])),
        rankings=RankingTableConfig(path=str(moved["rankings"]), format="pairs"),
    )
    _, second = stage(config, tmp_path, context, seed=5, name="second")
    for file in first.iterdir():
        assert file.read_bytes() == (second / file.name).read_bytes()


def test_system_message_everywhere_and_the_same_splits(tables, tmp_path, context):
    _, plain = stage(DataConfig(**tables), tmp_path, context, name="plain")
    _, with_system = stage(DataConfig(**tables, system="Be brief."), tmp_path, context, name="system")
    for name in ("demonstrations.jsonl", "prompts.jsonl", "rankings.jsonl"):
        for before, after in zip(read(plain, name), read(with_system, name), strict=True):
            assert after["prompt"] == [{"role": "system", "content": "Be brief."}, *before["prompt"]]
            assert after["split"] == before["split"]


def test_built_in_task(tmp_path, context):
    config = DataConfig(demonstrations=TaskConfig(task="venues", size=200), eval_fraction=0.2)
    metrics, out = stage(config, tmp_path, context)
    assert metrics["demonstrations_train"] + metrics["demonstrations_eval"] == 200
    assert metrics["prompts_eval"] > 0
    assert "human" not in metrics
    assert not (out / "rankings.jsonl").exists()


def test_nothing_to_train_on(tmp_path, context):
    path = write(tmp_path / "d.jsonl", [{"prompt": "p", "completion": ""}])
    with pytest.raises(DataError, match=r"no demonstration is left: 1 x empty completion\n.*\n.*fill the answer"):
        stage(DataConfig(demonstrations=TableConfig(path=path)), tmp_path, context)


def test_nothing_held_out(tmp_path, context):
    path = write(tmp_path / "d.jsonl", [{"prompt": "p", "completion": "c"}])
    with pytest.raises(DataError, match="is held out"):
        stage(DataConfig(demonstrations=TableConfig(path=path), eval_fraction=0.01), tmp_path, context)
    assert stage(
        DataConfig(demonstrations=TableConfig(path=path), eval_fraction=0.0), tmp_path, context, name="all"
    )


def test_a_long_table_shows_that_it_is_read(tmp_path, training_context):
    rows = [
        {"prompt": f"p{i}", "annotator": "a", "completion": text, "rating": len(text)}
        for text in ("x", "yy")
        for i in range(1500)
    ]
    demonstrations = [{"prompt": f"p{i}", "completion": "c"} for i in range(20)]
    config = DataConfig(
        demonstrations=TableConfig(path=write(tmp_path / "d.jsonl", demonstrations)),
        rankings=RankingTableConfig(path=write(tmp_path / "r.jsonl", rows), format="long"),
        eval_fraction=0.3,
    )
    ctx, notes = training_context()
    out = tmp_path / "out"
    out.mkdir()
    metrics = run(config, {}, out, ctx)
    assert metrics["rankings_train"] + metrics["rankings_eval"] == 1500
    assert (metrics["read_rankings"], notes.numbers) == (3000, {"read": 3000})
    assert (notes.bars["reading demonstrations"], notes.bars["reading rankings"]) == (20, 1500)


def test_completions_of_a_ranking_that_is_left_out_are_not_counted_again(tmp_path, context):
    good = {"prompt": "Q", "a": "x", "b": "y", "c": "z", "ra": 1, "rb": 2, "rc": 3}
    rows = [good, good | {"a": ""}, good | {"a": "", "rb": None}]
    demonstrations = [{"prompt": f"p{i}", "completion": "c"} for i in range(20)]
    columns = {"completions": ["a", "b", "c"], "ratings": ["ra", "rb", "rc"]}
    config = DataConfig(
        demonstrations=TableConfig(path=write(tmp_path / "d.jsonl", demonstrations)),
        rankings=RankingTableConfig(path=write(tmp_path / "t.jsonl", rows), format="wide", columns=columns),
        eval_fraction=0.3,
    )
    metrics, out = stage(config, tmp_path, context)
    dropped = {name: value for name, value in metrics.items() if name.startswith("dropped_") and value}
    assert dropped == {
        "dropped_rankings": 1,
        "dropped_rankings/fewer than 2 completions left": 1,
        "dropped_completions": 1,
        "dropped_completions/empty completion": 1,
    }
    assert [(place["row"], place["reason"]) for place in read(out, "dropped.jsonl")] == [
        (2, "empty completion"),
        (3, "empty completion"),
        (3, "missing rating"),
        (3, "fewer than 2 completions left"),
    ]


def test_system_messages_of_rows_beside_the_recipe_s_are_counted_and_said(tmp_path, training_context):
    own = [{"role": "system", "content": "Mine."}, {"role": "user", "content": "Q0"}]
    rows = [{"prompt": f"Q{i}" if i else own, "completion": "c"} for i in range(20)]
    path = write(tmp_path / "d.jsonl", rows)
    config = DataConfig(demonstrations=TableConfig(path=path), system="Ours.", eval_fraction=0.3)
    ctx, notes = training_context()
    (tmp_path / "out").mkdir()
    assert run(config, {}, tmp_path / "out", ctx)["own_system_message"] == 1
    assert "1 rows keep their own system message instead of data.system" in notes.lines


def test_what_was_left_out_is_in_the_error(tmp_path, context):
    ends_with_user = [{"role": "user", "content": "Q"}] * 2
    path = write(tmp_path / "d.jsonl", [{"messages": ends_with_user}, {"prompt": "Q", "completion": ""}])
    with pytest.raises(DataError, match="1 x the conversation ends with the user's turn, 1 x empty completion"):
        stage(DataConfig(demonstrations=TableConfig(path=path)), tmp_path, context)


def test_how_often_the_first_of_two_answers_wins(tmp_path, context):
    rows = [{"prompt": f"Q{i}", "a": "x", "b": "y", "better": "b" if i % 4 else "a"} for i in range(40)]
    columns = {"completions": ["a", "b"], "preference": "better"}
    config = DataConfig(
        demonstrations=TaskConfig(task="venues", size=50),
        rankings=RankingTableConfig(path=write(tmp_path / "r.jsonl", rows), format="wide", columns=columns),
        eval_fraction=0.2,
    )
    metrics, _ = stage(config, tmp_path, context)
    assert metrics["first_wins"] == 0.25


def test_composed_and_decomposed_prompts_are_on_one_side(tmp_path, context):
    rows = [
        {"prompt": f"{form} n\u00b0 {i}?", "chosen": "x", "rejected": "y"}
        for i in range(40)
        for form in ("O\u00f9 est le caf\u00e9", "Ou\u0300 est le cafe\u0301", "O\u00d9 EST\r\nLE CAFE\u0301")
    ]
    config = DataConfig(
        demonstrations=TaskConfig(task="venues", size=50),
        rankings=RankingTableConfig(path=write(tmp_path / "r.jsonl", rows), format="pairs"),
        eval_fraction=0.3,
    )
    _, out = stage(config, tmp_path, context)
    splits = [row["split"] for row in read(out, "rankings.jsonl")]
    for i in range(40):
        assert len(set(splits[3 * i : 3 * i + 3])) == 1
    assert set(splits) == {"train", "eval"}


def said(config, tmp_path, training_context):
    """The lines of the stage about its tables."""
    ctx, notes = training_context()
    (tmp_path / "out").mkdir()
    run(config, {}, tmp_path / "out", ctx)
    return [line for line in notes.lines if line.startswith("data.")]


def test_one_line_says_what_is_left_out_of_a_table_and_why(tmp_path, training_context):
    demonstrations = [{"prompt": f"p{i}", "completion": "c" if i % 4 else ""} for i in range(40)]
    good = {"prompt": "Q", "a": "x", "b": "y", "c": "z", "ra": 1, "rb": 2, "rc": 3}
    rows = [good, good | {"prompt": ""}, good | {"a": "z "}, good | {"a": "y", "ra": 2}]
    columns = {"completions": ["a", "b", "c"], "ranks": ["ra", "rb", "rc"]}
    config = DataConfig(
        demonstrations=TableConfig(path=write(tmp_path / "d.jsonl", demonstrations)),
        rankings=RankingTableConfig(path=write(tmp_path / "r.jsonl", rows), format="wide", columns=columns),
        eval_fraction=0.3,
    )
    lines = said(config, tmp_path, training_context)
    assert lines[0] == "data.rankings: 4 rows read, 2 rankings kept, 2 left out"
    assert [line for line in lines if "left out: " in line] == [
        "data.demonstrations: 10 of 40 demonstrations left out: 10 x empty completion (rows 1, 5, 9, ...; fill the "
        "answer's cell)",
        "data.rankings: 2 of 4 rankings left out: 1 x empty prompt (row 2; fill the prompt's cell), 1 x fewer than "
        "2 completions left (row 3), which had 2 x the same answer at two places (row 3; give equal answers equal "
        "ranks, or keep one of them). 1 answer left out of rankings that are kept: 1 x merged with an equal answer "
        "(row 4)",
    ]


def test_unused_columns_are_said(tables, tmp_path, training_context):
    rows = [{"prompt": f"p{i}", "chosen": "x", "rejected": "y", "rater": "ab"[i % 2], "id": i} for i in range(20)]
    rankings = RankingTableConfig(path=write(tmp_path / "r2.jsonl", rows), format="pairs")
    lines = said(DataConfig(**{**tables, "rankings": rankings}, eval_fraction=0.3), tmp_path, training_context)
    assert lines[-2:] == [
        "data.rankings: column 'rater' is not used. If it names who ranked, set data.rankings.columns: {annotator: "
        "rater}",
        "data.rankings: also not used: id",
    ]


def test_people_who_are_not_told_apart_are_an_error(tables, tmp_path, context):
    rows = [{"prompt": f"p{i // 2}", "chosen": "x", "rejected": "y", "rater": "ab"[i % 2]} for i in range(20)]
    rankings = RankingTableConfig(path=write(tmp_path / "r2.jsonl", rows), format="pairs")
    with pytest.raises(DataError, match="10 of 20 rankings repeat the prompt and answers"):
        stage(DataConfig(**{**tables, "rankings": rankings}), tmp_path, context)


def test_a_missing_column_is_an_error_at_the_recipe_s_line(tables, tmp_path, training_context):
    rows = [{"question": "p", "chosen": "x", "rejected": "y"}]
    rankings = RankingTableConfig(
        path=write(tmp_path / "r2.jsonl", rows), format="pairs", columns={"prompt": "quesion", "annotator": "who"}
    )
    ctx, _ = training_context()
    where = {"data.rankings.columns.prompt": "r.yaml:7"}
    ctx = replace(ctx, describe=lambda path: where.get(path, "default"))
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError) as caught:
        run(DataConfig(**{**tables, "rankings": rankings}), {}, tmp_path / "out", ctx)
    assert caught.value.what == (
        "data.rankings.columns.prompt: the table has no column 'quesion'; did you mean 'question'?; the table has "
        "no column 'who'"
    )
    assert caught.value.where == "r.yaml:7"
    assert "{prompt: question, annotator: COLUMN}" in caught.value.hint
