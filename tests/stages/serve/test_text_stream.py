"""Text that arrives in pieces is the text of the whole answer."""

from __future__ import annotations

import pytest
import tiny
from small import bpe

from stages.sampling.history import fitted
from stages.serve.rows import Options, Piece, Row
from stages.serve.text import Detokenizer, StopStrings

TEXTS = ["the blue fox", "naïve café – 😀😀 日本語", "a\n\n  b", "\ufffd", "e\u0301e\u0301", "", "  x"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_add_up_to_the_decoded_text(text: str) -> None:
    tokenizer = bpe()
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    pieces = [detokenizer.add(i) for i in ids]
    assert "".join(pieces) + detokenizer.rest() == text == tokenizer.decode(ids)
    assert not any(piece.endswith("\ufffd") for piece in pieces), "no half characters"


def test_bytes_that_are_no_character_come_at_the_end() -> None:
    tokenizer = bpe()
    ids = tokenizer.encode("a😀", add_special_tokens=False)[:-1]
    detokenizer = Detokenizer(tokenizer)
    assert [detokenizer.add(i) for i in ids] == ["a", *[""] * (len(ids) - 1)]
    assert detokenizer.rest() == tokenizer.decode(ids)[1:] != ""


@pytest.mark.parametrize(
    ("text", "stops", "expected"),
    [
        ("one two", ["\n"], "one two"),
        ("one\ntwo", ["\n"], "one"),
        ("aab", ["ab"], "a"),
        ("abab-abac", ["abac"], "abab-"),
        ("xENDy", ["y", "END"], "x"),
        ("EN", ["END"], "EN"),
        ("ENENDx", ["END"], "EN"),
        ("END", ["END"], ""),
        ("abc", ["", "c"], "ab"),
    ],
)
def test_text_ends_before_the_first_stop_string(text: str, stops: list[str], expected: str) -> None:
    for size in (1, 2, len(text)):
        watched = StopStrings(stops)
        passed = ""
        for start in range(0, len(text), size):
            passed += watched.add(text[start : start + size])
            assert expected.startswith(passed), "nothing is passed on that must be taken back"
            if watched.stopped:
                break
        assert passed + watched.rest() == expected
        assert watched.stopped == (expected != text)


def pieces_of(text: str, options: Options) -> list[Piece]:
    codec = tiny.codec()
    pieces: list[Piece] = []
    row = Row("m", [5], options, codec.tokenizer, codec.stop_ids, pieces.append)
    for token in codec.tokenizer.encode(text, add_special_tokens=False):
        if row.accept(token, -1.0):
            break
    return pieces


def test_a_row_ends_at_its_limit_at_a_stop_token_or_at_a_stop_string() -> None:
    cut = pieces_of("abcdef", Options(max_tokens=3))
    assert ("".join(piece.text for piece in cut), cut[-1].finish) == ("abc", "length")
    ended = pieces_of("ab<eos>cd", Options(max_tokens=9))
    assert ("".join(piece.text for piece in ended), ended[-1].finish) == ("ab", "stop")
    stopped = pieces_of("abcdef", Options(max_tokens=9, stops=["cd"], logprobs=0))
    assert ("".join(piece.text for piece in stopped), stopped[-1].finish) == ("ab", "stop")
    assert [token.offset for piece in stopped for token in piece.tokens] == [0, 1]
    held = pieces_of("abcdef", Options(max_tokens=3, stops=["cx"]))
    assert "".join(piece.text for piece in held) == "abc", "what was held back is passed on at the end"


def test_a_conversation_is_trimmed_from_its_oldest_turns() -> None:
    codec = tiny.codec()
    turns = [{"role": ("user", "assistant")[i % 2], "content": letter * 10} for i, letter in enumerate("abcde")]
    talk = [{"role": "system", "content": "s"}, *turns]
    full = len(codec.prompt(talk))
    assert fitted(talk, codec.prompt, full) == (talk, 0)
    assert fitted(talk, codec.prompt, None) == (talk, 0)
    kept, dropped = fitted(talk, codec.prompt, full - 1)
    assert (kept, dropped) == ([talk[0], *turns[2:]], 2)
    assert len(codec.prompt(kept)) <= full - 1
    assert fitted(talk, codec.prompt, 3) == ([talk[0], turns[-1]], 4), "the question stays, although it is too long"
    assert len(talk) == 6, "the conversation itself is unchanged"
