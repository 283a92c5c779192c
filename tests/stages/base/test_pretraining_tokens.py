"""The tokenizer of a pretrained model."""

import pytest

from pipeline.config.base import PretrainConfig
from pipeline.config.data import TaskConfig
from stages.base.stage import _train_tokenizer


def tokenizer(*texts: str):
    return _train_tokenizer(list(texts), PretrainConfig(corpus=TaskConfig(task="venues", size=1), vocab_size=512))


@pytest.mark.parametrize("text", ["靠近剧院，供应泰国菜。", "カレーの店", "ร้านอาหารไทย"])
def test_a_token_holds_at_most_one_character_of_a_script_without_spaces(text):
    trained = tokenizer(*[text] * 50)
    ids = trained(text)["input_ids"]
    assert [trained.decode(i) for i in ids] == list(text), "each character is a token"
    assert trained.decode(ids) == text


def test_words_of_other_scripts_become_tokens():
    trained = tokenizer(*["The Thai cafe 靠近 the river"] * 50)
    assert [trained.decode(i) for i in trained(" cafe 靠近 the river")["input_ids"]] == [
        " cafe", " ", "靠", "近", " the", " river",
    ]  # fmt: skip
