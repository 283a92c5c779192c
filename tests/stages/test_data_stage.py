import json
from pathlib import Path

import pytest

from data.schema import prompt_key
from pipeline.config.data import DataConfig, RankingTableConfig, TableConfig, TaskConfig
from pipeline.errors import DataError
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
    with pytest.raises(DataError, match="demonstrations is left to train on"):
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
    assert notes.advanced == 1520
