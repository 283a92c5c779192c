"""How documents become rows of pretraining: one row each, ended by the stop token, and not packed."""

import pytest
import tiny

from stages.base.stage import _rows
from stages.models.text import IGNORED


@pytest.fixture
def codec():
    return tiny.codec()


def test_every_document_is_a_row_of_its_own_that_ends_with_the_stop_token(codec):
    for text in ("abc", "b"):
        [row] = _rows(codec, (text,), 64)
        assert row["input_ids"] == codec.completion(text)
        assert row["labels"] == row["input_ids"]
        assert row["input_ids"].count(codec.end_id) == 1
        assert row["input_ids"][-1] == codec.end_id


def test_the_loss_covers_only_the_completion_of_a_prompt(codec):
    [row] = _rows(codec, ("abc", "de"), 64)
    prompt = codec.prompt(tiny.user("abc"))
    assert row["input_ids"] == prompt + codec.completion("de")
    assert row["labels"] == [IGNORED] * len(prompt) + codec.completion("de")


def test_longer_documents_are_cut_into_rows_of_the_context_length(codec):
    rows = _rows(codec, ("abcdefghij" * 3,), 8)
    assert [len(row["input_ids"]) for row in rows[:-1]] == [8] * (len(rows) - 1)
    assert [token for row in rows for token in row["input_ids"]] == codec.completion("abcdefghij" * 3)
