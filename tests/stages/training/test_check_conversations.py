"""Before anything is trained: which conversations the chat template refuses, and what control tokens data spell."""

import json

import published
import pytest
import tiny

from data.schema import Ranking, write_jsonl
from pipeline.config.data import DataConfig, RankingTableConfig, TableConfig
from pipeline.config.sft import SFTConfig
from pipeline.engine.stage import Artifact
from pipeline.errors import DataError
from stages import data, sft
from stages.models.text import Codec
from stages.training.conversations import check_conversations

ALTERNATING = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('No system role') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}"
    "{{ m.content + '\n' }}{% endfor %}"
)


def artifact(tmp_path, context, system=None, **tables):
    """The `data` artifact of these rows: demonstrations, prompts and rankings in JSONL files."""
    for table, rows in tables.items():
        (tmp_path / f"{table}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = DataConfig(
        demonstrations=TableConfig(path=str(tmp_path / "demonstrations.jsonl")),
        prompts=TableConfig(path=str(tmp_path / "prompts.jsonl")) if "prompts" in tables else None,
        rankings=RankingTableConfig(path=str(tmp_path / "rankings.jsonl"), format="pairs")
        if "rankings" in tables
        else None,
        system=system,
        eval_fraction=0.3,
    )
    out = tmp_path / "data"
    out.mkdir()
    return Artifact("data", out, "", data.run(config, {}, out, context()))


DEMONSTRATIONS = [{"prompt": f"p{i}", "completion": "c."} for i in range(20)]
TWICE = {"prompt": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]}
GOOD = {"prompt": [{"role": "user", "content": "a"}]}
SYSTEM = {"prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "b"}]}
ANSWERS = {"chosen": "x", "rejected": "y"}
REFUSED = {
    "demonstrations": ({"demonstrations": [*DEMONSTRATIONS, TWICE | {"completion": "c"}]}, 21, "1 of 21", "joins"),
    "prompts": ({"prompts": [GOOD, TWICE, SYSTEM]}, 2, "2 of 23", "joins"),
    "rankings": ({"rankings": [GOOD | ANSWERS, SYSTEM | ANSWERS]}, 2, "1 of 22", "before the first user turn"),
}


@pytest.mark.parametrize("table", REFUSED)
def test_a_refused_conversation_is_named_by_file_and_row(table, tmp_path, context):
    tables, row, share, hint = REFUSED[table]
    found = artifact(tmp_path, context, **({"demonstrations": DEMONSTRATIONS} | tables))
    tokenizer = published.byte_level(ALTERNATING)
    with pytest.raises(DataError, match=f"refuses {share} prompts") as caught:
        check_conversations(found, Codec(tokenizer), lambda line: None)
    assert f"{tmp_path / table}.jsonl, row {row} (data.{table})" in caught.value.where
    assert ("Roles must alternate" if table != "rankings" else "No system role") in caught.value.what
    assert hint in caught.value.hint
    assert check_conversations(found, Codec(tokenizer, fold_turns=True), lambda line: None)


def test_a_template_without_system_turns_refuses_data_system(tmp_path, context):
    found = artifact(tmp_path, context, system="Be kind.", demonstrations=DEMONSTRATIONS)
    with pytest.raises(DataError, match="refuses 20 of 20 prompts") as caught:
        check_conversations(found, Codec(published.byte_level(ALTERNATING)), lambda line: None)
    assert "remove data.system" in caught.value.hint


def test_folding_is_not_advised_where_it_does_not_help(tmp_path, context):
    talk = {"prompt": [{"role": "assistant", "content": "hi"}, {"role": "user", "content": "b"}]}
    found = artifact(tmp_path, context, demonstrations=[*DEMONSTRATIONS, talk | {"completion": "c"}])
    with pytest.raises(DataError) as caught:
        check_conversations(found, Codec(published.byte_level(ALTERNATING)), lambda line: None)
    assert "fold_turns" not in caught.value.hint


def test_nothing_is_trained_on_data_that_the_template_refuses(tmp_path, training_context):
    base = tiny.base_artifact(tmp_path / "base")
    tokenizer = tiny.tokenizer(None)
    tokenizer.chat_template = ALTERNATING
    tokenizer.save_pretrained(base.path / "tokenizer")
    found = tiny.data_artifact(tmp_path / "data")
    with (found.path / "prompts.jsonl").open("a") as file:
        file.write(json.dumps(TWICE | {"split": "eval", "table": "rankings", "row": 9}) + "\n")
    ctx, notes = training_context()
    with pytest.raises(DataError, match="refuses 1 of 17 prompts") as caught:
        sft.run(SFTConfig(), {"base": base, "data": found}, tmp_path, ctx)
    assert "row 9 (data.rankings)" in caught.value.where
    assert not notes.logged


def test_spelled_control_tokens_are_counted_and_said(tmp_path, context):
    end = "<|im_end|>"
    found = artifact(
        tmp_path,
        context,
        demonstrations=[
            *DEMONSTRATIONS,
            {"prompt": f"a{end}", "completion": "b"},
            {"prompt": "q", "completion": f"b{end}"},
        ],
        rankings=[{"prompt": "p1", "chosen": f"x{end}\n", "rejected": f"{end} y"}],
    )
    lines = []
    codec = Codec(published.byte_level())
    assert check_conversations(found, codec, lines.append) == {
        "texts_with_control_tokens": 2,
        "answers_with_stop_token": 2,
    }
    assert lines == [
        "2 answers end with the text of a stop token, which is removed",
        "2 prompts and answers spell control tokens, encoded as text (base.control_tokens)",
    ]


def test_ordinary_data_pass_without_a_word(tmp_path):
    found = tiny.data_artifact(tmp_path / "data")
    ranked = Ranking(tiny.user("a"), ["b", "c"], [1, 2], "x", human=True)
    write_jsonl(found.path / "rankings.jsonl", [ranked])
    assert set(check_conversations(found, tiny.codec(), pytest.fail).values()) == {0}
