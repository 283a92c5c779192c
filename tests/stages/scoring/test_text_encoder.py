"""What a reward model with a tokenizer of its own reads of a conversation."""

from types import SimpleNamespace

import published
import pytest
import tiny

from pipeline.errors import StageError
from stages.models.templates import Refused
from stages.models.text import Codec
from stages.scoring.text_encoder import TextEncoder

TALK = [
    {"role": "system", "content": "Be brief"},
    {"role": "user", "content": "The fox?"},
    {"role": "assistant", "content": "No."},
    {"role": "user", "content": "The pub?"},
]
ANSWERED = [*TALK, {"role": "assistant", "content": "Two!"}]


def encoder(tokenizer, codec=None, longest=1000):
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.unk_token or "<|im_end|>"
    classifier = SimpleNamespace(tokenizer=tokenizer, where="ppo.reward_model", longest=longest)
    return TextEncoder(classifier, codec or tiny.codec())


@pytest.mark.parametrize("policys", ["plain", "chatml"])
@pytest.mark.parametrize("kind", ["Llama", "Llama with ChatML", "GPT-2"])
def test_the_turns_are_rendered_once_by_its_own_template(kind, policys):
    """As transformers encodes the conversation, whatever the policy's template is."""
    tokenizer = published.KINDS[kind]()
    row = encoder(tokenizer, tiny.codec(policys)).row(TALK, "Two!")
    assert row == tokenizer.apply_chat_template(ANSWERED, tokenize=True, return_dict=False)
    assert row.count(tokenizer.bos_token_id) == (0 if kind == "GPT-2" else 1)


def test_bos_comes_once_where_its_template_forgets_it():
    tokenizer = published.sentencepiece(published.CHATML, special=published.MARKERS)
    row = encoder(tokenizer).row(TALK, "Two!")
    assert row == tokenizer(tokenizer.apply_chat_template(ANSWERED, tokenize=False))["input_ids"]
    assert row.count(tokenizer.bos_token_id) == 1


def test_without_a_template_the_turns_are_joined():
    tokenizer = published.sentencepiece(None)
    text = "Be brief\nThe fox?\nNo.\nThe pub?\nTwo!"
    expected = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    assert encoder(tokenizer).row(TALK, "Two!") == expected


def test_special_tokens_around_a_text_come_once():
    """As a BERT: [CLS] text [SEP]; and as a tokenizer that ends texts with EOS, which the joined text has too."""
    from tokenizers import processors

    tokenizer = published.sentencepiece(None)
    ends = [("<s>", tokenizer.bos_token_id), ("</s>", tokenizer.eos_token_id)]
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    row = encoder(tokenizer).row(tiny.user("fox"), "pub")
    assert row == tokenizer("fox\npub")["input_ids"]
    assert (row.count(tokenizer.bos_token_id), row.count(tokenizer.eos_token_id)) == (1, 1)
    assert encoder(tokenizer).row(tiny.user("fox"), "pub", 5) == [row[0], *row[-4:]]


@pytest.mark.parametrize("longest", [3, 7, 10_000])
def test_of_a_long_text_the_end_is_kept(longest):
    tokenizer = published.sentencepiece(None)
    whole = encoder(tokenizer).row(TALK, "Two!")
    short = encoder(tokenizer).row(TALK, "Two!", longest)
    assert short == (whole if longest > len(whole) else [whole[0], *whole[len(whole) - longest + 1 :]])


def test_a_response_is_ended_by_its_own_token_whatever_stop_token_ended_it():
    codec = tiny.codec("chatml")
    tokenizer = published.sentencepiece(published.LLAMA)
    text = codec.encode("a pub")
    ends = ([tiny.IM_END], [tiny.EOS], [])
    rows = [encoder(tokenizer, codec).row(tiny.user("fox"), codec.decode([*text, *end])) for end in ends]
    assert rows[0] == rows[1] == rows[2]
    assert rows[0][-1] == tokenizer.eos_token_id
    assert rows[0].count(tokenizer.eos_token_id) == 1


def test_control_tokens_that_are_spelled_are_text_to_it_too():
    policy = Codec(published.byte_level())
    tokenizer = published.sentencepiece("{{ bos_token }}" + published.CHATML, special=published.MARKERS)
    made = encoder(tokenizer, policy)
    neutral = [i for i in made.row(TALK, "Two!") if i in made.control.ids]
    spelling = [{**turn, "content": turn["content"] + "</s><|im_end|> fox"} for turn in TALK]
    assert [i for i in made.row(spelling, "<|im_start|> Two!") if i in made.control.ids] == neutral
    assert made.row(TALK, "Two!<|im_end|>") == made.row(TALK, "Two!"), "no stop token of the policy is read"
    wanted = encoder(tokenizer, Codec(published.byte_level(), control_tokens="tokens"))
    assert tokenizer.eos_token_id in wanted.row(spelling, "Two!")


def test_its_template_folds_and_dates_as_the_policys():
    policy = Codec(published.byte_level(), date="2031-03-05", fold_turns=True)
    dated = encoder(published.byte_level(published.DATED), policy)
    assert "05 Mar 2031" in dated.tokenizer.decode(dated.row(TALK, "Two!"))
    folding = encoder(published.gemma(), policy)
    assert "Be brief\n\nThe fox?" in folding.tokenizer.decode(folding.row(TALK, "Two!"))
    with pytest.raises(Refused, match="System role"):
        encoder(published.gemma()).check(TALK)


def test_its_template_must_have_a_default():
    with pytest.raises(StageError, match="rag") as caught:
        encoder(published.byte_level({"rag": published.CHATML, "tool_use": published.CHATML}))
    assert caught.value.where == "ppo.reward_model"
