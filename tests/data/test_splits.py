import pytest

from data.schema import Demonstration, Prompt, Ranking
from data.splits import check_split, group_of, split_of, split_of_prompt
from pipeline.errors import DataError


def user(text):
    return {"role": "user", "content": text}


def test_the_held_out_share_is_the_fraction():
    keys = [f"prompt {i}" for i in range(20_000)]
    for fraction in (0.05, 0.1, 0.5):
        share = sum(split_of(key, fraction) == "eval" for key in keys) / len(keys)
        assert share == pytest.approx(fraction, abs=0.01)


def test_the_split_of_a_known_hash():
    """The first 64 bits of SHA-256("abc") are ba7816bf8f01cfea: 0.7284 as a fraction of 2**64."""
    assert split_of("abc", 0.728) == "train"
    assert split_of("abc", 0.729) == "eval"


def test_fractions_of_zero_and_one():
    keys = [str(i) for i in range(100)]
    assert {split_of(key, 0.0) for key in keys} == {"train"}
    assert {split_of(key, 1.0) for key in keys} == {"eval"}


def test_a_larger_fraction_only_adds_held_out_prompts():
    small = {str(i) for i in range(1000) if split_of(str(i), 0.1) == "eval"}
    large = {str(i) for i in range(1000) if split_of(str(i), 0.3) == "eval"}
    assert small < large


def test_the_group_is_the_first_user_turn():
    system = {"role": "system", "content": "Be brief."}
    answer = {"role": "assistant", "content": "Hello."}
    assert group_of([user(" How\n are you? ")]) == "how are you?"
    assert group_of([system, user("How are you?")]) == "how are you?"
    assert group_of([user("How are you?"), answer, user("And now?")]) == "how are you?"


def test_a_conversation_stays_on_one_side():
    answer = {"role": "assistant", "content": "Hello."}
    for i in range(200):
        first = [user(f"question {i}")]
        assert split_of_prompt(first, 0.5) == split_of_prompt([*first, answer, user("more")], 0.5)


def test_leaks_across_tables_are_detected():
    fraction = 0.5
    sides = {text: split_of(text, fraction) for text in "abcdefgh"}
    other = {"train": "eval", "eval": "train"}
    for text, side in sides.items():
        check_split(Demonstration([user(text)], "x", side), fraction)
        check_split(Prompt([user(f" {text.upper()}")], side), fraction)
        ranking = Ranking([user(text)], ["x", "y"], [1, 2], "ann", True, split=other[side], where="r.csv:3")
        with pytest.raises(DataError, match="both trained on and held out") as caught:
            check_split(ranking, fraction)
        assert caught.value.where == "r.csv:3"
    assert set(sides.values()) == {"train", "eval"}
