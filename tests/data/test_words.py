"""Words of real sentences in scripts with and without spaces, and what is counted from them."""

import re

import pytest
import regex

from data.words import UNSPACED, words, words_and_punctuation
from stages.eval.texts import distinct, repetition

SENTENCES = {
    "English": (
        "The harbour's café isn't far: 3.14 km, at most.",
        ["The", "harbour's", "café", "isn't", "far", "3.14", "km", "at", "most"],
    ),
    "Chinese": ("我喜欢吃泰国菜，价格很便宜。", list("我喜欢吃泰国菜价格很便宜")),
    "Japanese": (
        "東京タワーへ行きました。",
        ["東", "京", "タワー", "へ", "行", "き", "ま", "し", "た"],
    ),
    "Thai": ("ฉันกินข้าว", ["ฉั", "น", "กิ", "น", "ข้", "า", "ว"]),
    "Hindi": ("यह हिन्दी में लिखा है।", ["यह", "हिन्दी", "में", "लिखा", "है"]),
    "Korean": ("이 식당은 맛있어요.", ["이", "식당은", "맛있어요"]),
    "mixed": (
        "我用Python 3写code，在Café Blue吃ラーメン。",
        ["我", "用", "Python", "3", "写", "code", "在", "Café", "Blue", "吃", "ラーメン"],
    ),
}


@pytest.mark.parametrize(("text", "expected"), SENTENCES.values(), ids=SENTENCES)
def test_words_of_a_sentence(text, expected):
    assert words(text) == expected


def test_punctuation_marks_are_tokens_of_their_own():
    assert words_and_punctuation("价格便宜，很好！ isn't it?") == [*"价格便宜，很好！", "isn't", "it", "?"]


@pytest.mark.parametrize("text", ["", " \n", "…!?", "🙂"])
def test_texts_without_words(text):
    assert words(text) == []
    assert distinct([text], 2) == 0
    assert repetition(text) == 0


@pytest.mark.parametrize(
    ("once", "more"),
    [
        ("这家餐厅位于老城区", "价格适中，而且欢迎儿童"),
        ("この店は駅の近くにある", "値段も手ごろです"),
        ("ร้านนี้อยู่ใกล้สถานีรถไฟ", "ราคาไม่แพงมาก"),
        ("我们在Blue Fox吃饭", "それは楽しかった"),
    ],
    ids=["Chinese", "Japanese", "Thai", "mixed"],
)
def test_repetition_and_distinct_pairs_see_a_repeated_clause_without_spaces(once, more):
    """Split at white space, each of these texts is a word or two, and nothing is ever repeated."""
    assert repetition(f"{once}，{more}。") == pytest.approx(0, abs=0.1)
    assert repetition(f"{once}，{once}，{once}。") > 0.4
    assert distinct([f"{once}，{once}，{once}。"], 2) < 0.6 < distinct([f"{once}，{more}。"], 2)


def test_the_character_class_is_that_of_the_scripts_without_spaces():
    """Of Unicode's characters that can be in words."""
    scripts = ("Han", "Hiragana", "Katakana", "Bopomofo", "Thai", "Lao", "Khmer", "Myanmar")
    of_scripts = regex.compile("[" + "".join(rf"\p{{sc={name}}}" for name in scripts) + "]")
    of_ours = re.compile(f"[{UNSPACED}]")
    word = re.compile(r"\w")
    letters = [chr(code) for code in range(0x323B0) if word.match(chr(code))]
    assert not [c for c in letters if of_scripts.match(c) and not of_ours.match(c)]
    # Marks that Unicode counts among several scripts, all of Chinese and Japanese text.
    assert {c for c in letters if of_ours.match(c) and not of_scripts.match(c)} == set("〆〱〲〳〴〵ーｰﾞﾟ")
    for sample in "汉々〇ひカｶㄅกລខမ":
        assert of_ours.match(sample)
    for sample in "aé1_кאع한अ":
        assert not of_ours.match(sample)
