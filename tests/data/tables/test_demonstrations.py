import json

import pytest
from dropped import rows_by_reason

from data.schema import Demonstration, Prompt
from data.splits import split_of_prompt
from data.tables.demonstrations import read_demonstrations, read_prompts
from data.tables.mapping import read_columns
from data.tables.sources import Dropped
from pipeline.config.data import PromptTableConfig, TableConfig
from pipeline.errors import DataError, RecipeError


def table(tmp_path, rows, **columns):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return TableConfig(path=str(path), columns=columns)


def user(text):
    return [{"role": "user", "content": text}]


def test_columns_are_mapped_by_name(tmp_path):
    config = table(tmp_path, [{"mr": "name[X]", "ref": "X is a pub."}], prompt="mr", completion="ref")
    assert list(read_demonstrations(config, 0.0, Dropped())) == [Demonstration(user("name[X]"), "X is a pub.")]


def test_conversations_are_read(tmp_path):
    conversation = [*user("hi"), {"role": "assistant", "content": "hello"}]
    for row in ({"messages": conversation}, {"prompt": user("hi"), "completion": conversation[1:]}):
        config = table(tmp_path, [row])
        assert list(read_demonstrations(config, 0.0, Dropped())) == [Demonstration(user("hi"), "hello")]
    config = table(tmp_path, [{"chat": conversation}], messages="chat")
    assert list(read_demonstrations(config, 0.0, Dropped())) == [Demonstration(user("hi"), "hello")]


def test_rows_with_empty_cells_are_dropped_with_a_reason(tmp_path):
    rows = [
        {"prompt": "a", "completion": "x"},
        {"prompt": "", "completion": "x"},
        {"prompt": "b", "completion": " "},
        {"prompt": "c", "completion": None},
    ]
    dropped = Dropped()
    assert len(list(read_demonstrations(table(tmp_path, rows), 0.0, dropped))) == 1
    assert rows_by_reason(dropped) == {"empty prompt": [2], "empty completion": [3, 4]}
    assert dropped.counts == {"empty prompt": 1, "empty completion": 2}


def test_the_split_depends_on_the_prompt(tmp_path):
    rows = [{"prompt": f"prompt {i}", "completion": "x"} for i in range(50)]
    for d in read_demonstrations(table(tmp_path, rows), 0.3, Dropped()):
        assert d.split == split_of_prompt(d.prompt, 0.3)


def test_prompts_are_read(tmp_path):
    dropped = Dropped()
    config = table(tmp_path, [{"q": "a"}, {"q": ""}, {"q": user("b")}], prompt="q")
    assert list(read_prompts(config, 0.0, dropped)) == [Prompt(user("a")), Prompt(user("b"))]
    assert rows_by_reason(dropped) == {"empty prompt": [2]}


def test_wrong_columns_are_errors(tmp_path):
    rows = [{"prompt": "a", "answer": "x"}]
    with pytest.raises(DataError, match="no column 'completion'"):
        list(read_demonstrations(table(tmp_path, rows), 0.0, Dropped()))
    with pytest.raises(RecipeError, match="'promt'"):
        list(read_demonstrations(table(tmp_path, rows, promt="prompt"), 0.0, Dropped()))


def test_metadata_of_prompts_is_kept_as_json(tmp_path):
    path = tmp_path / "p.jsonl"
    path.write_text(
        '{"prompt": "a", "answer": "4", "level": [1, null]}\n{"prompt": "b", "answer": null, "level": 2}\n'
    )
    config = PromptTableConfig(path=str(path), metadata=["answer", "level"])
    assert [p.metadata for p in read_prompts(config, 0.1, Dropped())] == [
        {"answer": "4", "level": [1, None]},
        {"answer": None, "level": 2},
    ]
    assert read_columns("data.prompts", config, ["prompt", "answer", "level", "more"]) == {
        "prompt",
        "answer",
        "level",
    }
    misspelt = PromptTableConfig(path=str(path), metadata=["anser"])
    with pytest.raises(DataError, match="there is no column 'anser'; 'answer' is probably meant"):
        list(read_prompts(misspelt, 0.1, Dropped()))
