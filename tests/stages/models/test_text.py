import pytest
import tiny
from tokenizers import processors

from pipeline.errors import StageError
from stages.models.text import Codec, chat_template, pad

TURN = [{"role": "user", "content": "abc"}]
TALK = [*TURN, {"role": "assistant", "content": "de"}, {"role": "user", "content": "f"}]


def ids(text):
    return [len(tiny.SPECIAL) + tiny.CHARACTERS.index(character) for character in text]


def test_plain():
    codec = tiny.codec("plain")
    assert codec.prompt(TURN) == ids("abc\n")
    assert codec.prompt(TALK) == [*ids("abc\nde"), tiny.EOS, *ids("f\n")]
    assert codec.completion("de") == [*ids("de"), tiny.EOS]
    assert (codec.end_id, codec.stop_ids) == (tiny.EOS, {tiny.EOS})


def test_chatml():
    codec = tiny.codec("chatml")
    user, assistant = [tiny.IM_START, *ids("user\n")], [tiny.IM_START, *ids("assistant\n")]
    end = [tiny.IM_END, *ids("\n")]
    assert codec.prompt(TURN) == [*user, *ids("abc"), *end, *assistant]
    assert codec.prompt(TALK) == [
        *[*user, *ids("abc"), *end, *assistant, *ids("de"), *end],
        *[*user, *ids("f"), *end, *assistant],
    ]
    assert codec.completion("de") == [*ids("de"), tiny.IM_END]
    assert codec.end_id == tiny.IM_END
    assert codec.stop_ids == {tiny.IM_END, tiny.EOS}


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_prompt_and_completion_equal_the_rendered_conversation(template):
    """Prompt and completion give the tokens of the rendered conversation, except its last line break."""
    codec = tiny.codec(template)
    talk = [*TURN, {"role": "assistant", "content": "de"}]
    conversation = codec.tokenizer.apply_chat_template(talk, tokenize=False)
    pieces = codec.prompt(TURN) + codec.completion("de")
    assert codec.tokenizer.decode(pieces) == conversation.rstrip("\n")


@pytest.mark.parametrize("template", ["plain", "chatml"])
def test_decode_ends_at_the_first_stop_token(template):
    codec = tiny.codec(template)
    assert codec.decode(codec.completion("ab c.")) == "ab c."
    assert codec.decode([*ids("ab"), tiny.EOS, *ids("cd")]) == "ab"
    assert codec.decode(ids("ab")) == "ab"
    assert codec.decode([tiny.EOS]) == ""
    if template == "chatml":
        assert codec.decode([*ids("ab"), tiny.IM_END, tiny.EOS]) == "ab"


def test_a_tokenizer_that_adds_bos_starts_prompts_with_one():
    tokenizer = tiny.tokenizer(None, bos_token="<bos>")
    tokenizer._tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", tiny.BOS)]
    )
    assert tokenizer("a")["input_ids"] == [tiny.BOS, *ids("a")]
    tokenizer.chat_template = chat_template("plain", tokenizer)
    codec = Codec(tokenizer)
    assert codec.prompt(TURN) == [tiny.BOS, *ids("abc\n")]
    assert codec.prompt(TALK).count(tiny.BOS) == 1
    assert codec.completion("de") == [*ids("de"), tiny.EOS]


def test_a_bos_token_that_the_tokenizer_does_not_add_is_not_used():
    tokenizer = tiny.tokenizer("plain", bos_token="<bos>")
    assert Codec(tokenizer).prompt(TURN) == ids("abc\n")


def test_auto_keeps_the_tokenizers_own_template():
    tokenizer = tiny.tokenizer(None)
    tokenizer.chat_template = "{{ 'own' }}"
    assert chat_template("auto", tokenizer) == "{{ 'own' }}"
    tokenizer.chat_template = None
    assert chat_template("auto", tokenizer) == chat_template("plain", tokenizer)


def test_a_template_may_be_a_file(tmp_path):
    (tmp_path / "mine.jinja").write_text("{{ messages[0].content }}")
    assert chat_template(str(tmp_path / "mine.jinja"), tiny.tokenizer(None)) == "{{ messages[0].content }}"


def test_an_unknown_template_is_refused():
    with pytest.raises(StageError, match="no chat template 'chtml'") as caught:
        chat_template("chtml", tiny.tokenizer(None))
    assert "chatml, plain" in str(caught.value)


@pytest.mark.parametrize(
    ("tokenizer", "message"),
    [
        (lambda: tiny.tokenizer(None), "no chat template"),
        (lambda: tiny.tokenizer("chatml", eos_token=None), "no EOS"),
    ],
)
def test_unusable_tokenizers_are_refused(tokenizer, message):
    with pytest.raises(StageError, match=message):
        Codec(tokenizer())


def test_pad_is_eos_where_there_is_none():
    assert tiny.codec().pad_id == tiny.PAD
    assert Codec(tiny.tokenizer("plain", pad_token=None)).pad_id == tiny.EOS


@pytest.mark.parametrize(("left", "expected"), [(True, [[0, 0, 7], [7, 8, 9]]), (False, [[7, 0, 0], [7, 8, 9]])])
def test_pad(left, expected):
    padded, mask = pad([[7], [7, 8, 9]], 0, left=left)
    assert padded.tolist() == expected
    assert mask.tolist() == [[i > 0 for i in row] for row in expected]


def test_the_mask_is_of_positions_and_not_of_ids():
    padded, mask = pad([[0, 5], [0]], 0, left=False)
    assert padded.tolist() == [[0, 5], [0, 0]]
    assert mask.tolist() == [[True, True], [True, False]]
