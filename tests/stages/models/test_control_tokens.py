"""Text that spells a control token stays text; text that spells none is encoded as the tokenizer encodes it."""

import json
import random

import published
import pytest
import tiny
from tokenizers import Tokenizer

from pipeline.errors import StageError
from stages.models.control_tokens import ControlTokens
from stages.models.text import Codec

SPELLED = ["</s>", "<s>", "<|im_end|>", "<|im_start|>", "<|endoftext|>", "<bos>", "<eos>", "<end_of_turn>"]
WORDS = [
    "The",
    " blue",
    "fox",
    "  is",
    "\n",
    "\n\n",
    "?",
    "1+1",
    "<|im",
    "▁",
    "é",
    "漢",
    " a",
    "|>",
    "pub",
    "</",
    "\t",
]


@pytest.fixture(params=published.KINDS, ids=str)
def tokenizer(request):
    return published.KINDS[request.param]()


def of_tokenizer(tokenizer):
    return [text for text in SPELLED if tokenizer.convert_tokens_to_ids(text) in tokenizer.added_tokens_decoder]


def test_text_without_control_tokens_is_encoded_unchanged(tokenizer):
    codec = Codec(tokenizer)
    generator = random.Random(0)
    for _ in range(200):
        texts = ["".join(generator.choices(WORDS, k=generator.randint(1, 9))) for _ in range(3)]
        talk = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]
        rendered = tokenizer.apply_chat_template(talk, tokenize=False, add_generation_prompt=True)
        assert codec.prompt(talk) == tokenizer.encode(rendered, add_special_tokens=False)
        assert codec.completion(texts[0])[:-1] == tokenizer.encode(texts[0], add_special_tokens=False)


def test_spelled_control_tokens_are_text_and_the_templates_own_are_tokens(tokenizer):
    codec = Codec(tokenizer)
    assert of_tokenizer(tokenizer)
    neutral = [i for i in codec.prompt(tiny.user("fox")) if i in codec.control.ids]
    for text in of_tokenizer(tokenizer):
        for content in (text, f"The {text} fox", f"a{text}\n{text}", f"fox\n\n{text}{text}."):
            ids = codec.prompt(tiny.user(content))
            assert [i for i in ids if i in codec.control.ids] == neutral, content
            rendered = tokenizer.apply_chat_template(tiny.user(content), tokenize=False, add_generation_prompt=True)
            # Without the spaces that a SentencePiece decoder adds around special tokens.
            assert tokenizer.decode(ids).replace(" ", "") == rendered.replace(" ", "")
            assert content.replace(" ", "") in tokenizer.decode(codec.encode(content)).replace(" ", "")
            assert not codec.control.ids.intersection(codec.encode(content))


def test_a_spelled_token_has_the_ids_of_a_tokenizer_that_does_not_know_it(tokenizer):
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    twin = Tokenizer.from_str(json.dumps(parts | {"added_tokens": [], "post_processor": None}))
    codec = Codec(tokenizer)
    for text in of_tokenizer(tokenizer):
        assert codec.encode(text) == twin.encode(text).ids


def test_a_recipe_may_select_tokens(tokenizer):
    codec = Codec(tokenizer, control_tokens="tokens")
    [text, *_] = of_tokenizer(tokenizer)
    content = f"The {text} fox"
    rendered = tokenizer.apply_chat_template(tiny.user(content), tokenize=False, add_generation_prompt=True)
    assert codec.prompt(tiny.user(content)) == tokenizer.encode(rendered, add_special_tokens=False)
    assert tokenizer.convert_tokens_to_ids(text) in codec.completion(content)[:-1]


@pytest.mark.parametrize("control_tokens", ["text", "tokens"])
def test_an_answer_that_spells_its_stop_token_is_ended_once(tokenizer, control_tokens):
    codec = Codec(tokenizer, control_tokens=control_tokens)
    stops = [tokenizer.convert_ids_to_tokens(i) for i in codec.stop_ids]
    for stop in stops:
        for text in (f"pub{stop}", f"pub{stop}\n", f"pub {stop} {stop}", *(f"pub{stop}{other}" for other in stops)):
            assert codec.completion(text) == codec.completion("pub")
            talk = [*tiny.user("a"), {"role": "assistant", "content": text}, *tiny.user("b")]
            assert codec.prompt(talk) == codec.prompt([talk[0], talk[1] | {"content": "pub"}, talk[2]])
    assert codec.completion("".join(stops)) == [*codec.encode(""), codec.end_id]


def test_turn_markers_that_are_not_declared_special_are_control_tokens():
    tokenizer = published.byte_level("", special=())
    tokenizer.add_tokens(["<|im_start|>", "<|im_end|>", "<think>", "user"])
    tokenizer.chat_template = published.CHATML
    codec = Codec(tokenizer)
    marker, think, word = (tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<think>", "user"))
    assert marker in codec.control.ids
    assert not {think, word} & codec.control.ids, "the template does not write <think>, and user is a word"
    ids = codec.prompt(tiny.user("a <|im_end|> user <think>"))
    assert ids.count(marker) == 1
    assert think in ids
    assert codec.end_id == marker


def test_a_template_that_splits_a_message_leaves_no_marks():
    tokenizer = published.byte_level(published.CHATML.replace("m.content", "m.content.split('|im_end')[-1]"))
    ids = Codec(tokenizer).prompt(tiny.user("a<|im_end|>b<|im_start|>"))
    assert tokenizer.decode(ids) == "<|im_start|>user\n|>b<|im_start|><|im_end|>\n<|im_start|>assistant\n"
    assert ids.count(tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2


def test_a_tokenizer_that_cannot_write_a_token_as_text_is_an_error():
    class Stubborn:
        added_tokens_decoder = published.byte_level().added_tokens_decoder

        def encode(self, text, **values):
            return [0] * len(text)

    control = ControlTokens(Stubborn())
    with pytest.raises(StageError, match="the tokenizer cannot write"):
        control.encode(control.mark("a<|im_end|>"))
