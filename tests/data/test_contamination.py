import pytest

from data.contamination import HeldOutTexts, conversation

PROMPT = "Write a short poem about the old lighthouse of the northern harbour in winter"
CHINESE = "请用两句话介绍这家位于老城区的餐厅"


def index(*texts, **options):
    held_out = HeldOutTexts(options.pop("threshold", 0.8), **options)
    for text in texts:
        held_out.add(text)
    return held_out


@pytest.mark.parametrize(
    "text",
    [
        PROMPT,
        f"Sure! {PROMPT.upper()}: here it is.",
        PROMPT.replace(" ", "\n") + "?",
        f"An exam. Question 3: «{PROMPT}.» Answer: ...",
    ],
)
def test_a_held_out_prompt_in_a_text_is_found_whatever_its_case_punctuation_and_white_space(text):
    occurrence = index("Another prompt which is long enough to be compared here", PROMPT).find(text)
    assert (occurrence.kind, occurrence.held_out) == ("exact", PROMPT)


def test_a_reworded_prompt_is_nearly_contained():
    words = PROMPT.split()
    reworded = " ".join([*words[:-1], "summer"])
    occurrence = index(PROMPT).find(f"Please: {reworded}, if you can.")
    triples = len(words) - 2
    assert occurrence.kind == "near"
    assert occurrence.share == pytest.approx((triples - 1) / triples)
    assert index(PROMPT, near=False).find(reworded) is None
    assert index(PROMPT, threshold=0.95).find(reworded) is None


def test_a_prompt_in_another_order_or_in_part_is_not_contained():
    assert index(PROMPT).find(" ".join(reversed(PROMPT.split()))) is None
    assert index(PROMPT).find("Write a short poem about the old lighthouse") is None


def test_the_same_triples_in_another_order_are_only_near():
    """Every triple of the prompt occurs, and the prompt does not."""
    prompt = "a b c d e f g h i"
    text = "d e f g h i / a b c d e / x"
    assert index(prompt).find(text).kind == "near"


def test_short_prompts_count_only_as_a_whole_prompt():
    held_out = index("Hello there")
    assert held_out.find("Hello there, said the sailor to the captain of the ship") is None
    assert held_out.find("hello  there\nHi.", prompt="hello  there").kind == "exact"


def test_chinese_prompts_are_found_in_running_text():
    assert index(CHINESE).find(f"题目:{CHINESE}。答案:好的。").kind == "exact"
    assert index(CHINESE).find(CHINESE.replace("餐厅", "咖啡馆")).kind == "near"
    assert index(CHINESE).find("这家餐厅位于老城区,价格便宜,适合家庭。") is None


def test_of_several_prompts_the_one_with_the_largest_share_is_reported():
    other = PROMPT.replace("northern harbour in winter", "southern harbour in autumn at night")
    text = PROMPT.replace("winter", "spring")
    assert index(other, PROMPT).find(text).held_out == PROMPT


def test_an_index_without_texts_finds_nothing():
    assert index().find(PROMPT, PROMPT) is None


def test_the_system_message_is_not_compared():
    prompt = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q"}]
    assert conversation(prompt) == "Q"
