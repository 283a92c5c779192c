"""Which tokens of a conversation have labels with `sft.assistant_only_loss`."""

from __future__ import annotations

from typing import Any

import published
import pytest
import tiny

from data.schema import Message
from stages.models import turns
from stages.models.text import IGNORED, Codec

SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a fox<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
"""SmolLM2's, which adds a system turn of its own."""
MARKED = (
    "{% for m in messages %}{% if m.role == 'assistant' %}{{ '<|im_start|>assistant\n' }}"
    "{% generation %}{{ m.content + '<|im_end|>' }}{% endgeneration %}{{ '\n' }}"
    "{% else %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
THINKING = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\nno thought\n' }}{% endif %}"
)
"""As Qwen3's without thinking: what an answer follows is not what the conversation shows before it later on."""
TRIMMED = published.CHATML.replace("m.content", "m.content | trim")
UPPER = published.CHATML.replace("m.content", "(m.content | upper)")


def conversation(*texts: str) -> list[Message]:
    return [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(texts)]


def codec(template: str, **values: Any) -> Codec:
    tokenizer = published.byte_level()
    tokenizer.chat_template = template
    return Codec(tokenizer, **values)


def learned(codec: Codec, messages: list[Message]) -> list[list[int]]:
    """The runs of tokens with labels."""
    ids, labels = codec.prompt_labels(messages)
    runs: list[list[int]] = [[]]
    for i, label in zip(ids, labels, strict=True):
        assert label in (i, IGNORED)
        if label == IGNORED:
            runs.append([])
        else:
            runs[-1].append(label)
    return [run for run in runs if run]


@pytest.mark.parametrize("template", [published.CHATML, SMOLLM2, MARKED], ids=range(3))
@pytest.mark.parametrize("system", [[], [{"role": "system", "content": "Be brief."}]], ids=["", "system"])
def test_each_turn_of_the_assistant_is_learned_as_it_is_sampled(template: str, system: list[Message]) -> None:
    talk = codec(template)
    messages = [*system, *conversation("What is 1+1?", "Two!", "No", " the fox\n", "a", "", "b")]
    assert learned(talk, messages) == [talk.completion(text) for text in ("Two!", " the fox\n", "")]
    assert talk.prompt_labels(messages)[0] == talk.prompt(messages)


@pytest.mark.parametrize("kind", published.KINDS)
def test_tokenizers_learn_whole_turns_or_are_refused(kind: str) -> None:
    """In ChatML SentencePiece writes a space before an answer only where a text starts."""
    talk = Codec(published.KINDS[kind]())
    messages = conversation("What is 1+1?", "Two!", "No", "the red fox", "is it?")
    assert talk.prompt_labels(messages)[0] == talk.prompt(messages)
    exact = learned(talk, messages) == [talk.completion(text) for text in ("Two!", "the red fox")]
    assert exact == (talk.no_turns == "") == (kind != "Llama with ChatML")


def test_ids_are_written_exactly() -> None:
    """One token per character, so the labels can be counted by hand."""
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = published.CHATML
    talk = Codec(tokenizer)
    ids, labels = talk.prompt_labels(conversation("ab", "cd", "e"))
    spelled = ["<|im_start|>", *"user", "\n", *"ab", "<|im_end|>", "\n", "<|im_start|>", *"assistant", "\n"]
    assert tokenizer.convert_ids_to_tokens(ids)[: len(spelled)] == spelled
    assert labels[: len(spelled)] == [IGNORED] * len(spelled)
    after = labels[len(spelled) :]
    assert tokenizer.convert_ids_to_tokens(after[:3]) == ["c", "d", "<|im_end|>"]
    assert set(after[3:]) == {IGNORED}


def test_a_template_without_an_end_of_turn_teaches_the_text_of_earlier_turns() -> None:
    tokenizer = tiny.tokenizer()
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + '\n' }}{% endfor %}"
    talk = Codec(tokenizer)
    assert learned(talk, conversation("ab", "cd", "e")) == [talk.encode("cd")]
    assert talk.no_turns == ""


def test_phi3s_end_of_turn_is_learned() -> None:
    markers = ("<|user|>", "<|assistant|>", "<|end|>")
    talk = Codec(published.byte_level(published.PHI3, special=markers))
    assert learned(talk, conversation("a", "Two!", "b")) == [talk.completion("Two!")]


def test_a_start_of_turn_inside_a_token_is_cut_there() -> None:
    """The line break of the header and one at the start of an answer are one token of GPT-2's vocabulary."""
    talk = codec(published.CHATML)
    messages = conversation("a", "\n\nNo", "b")
    assert learned(talk, messages) == [talk.completion("\n\nNo")]


def test_control_tokens_in_a_turn_are_text() -> None:
    talk = codec(published.CHATML)
    messages = conversation("a", "x <|im_start|> y", "b")
    assert learned(talk, messages) == [talk.completion("x <|im_start|> y")]
    assert talk.prompt_labels(messages)[0] == talk.prompt(messages)


def test_a_template_may_trim_an_answer() -> None:
    talk = codec(TRIMMED)
    assert learned(talk, conversation("a", "  Two! \n", "b")) == [talk.completion("Two!")]


def test_folded_turns_are_located_after_folding() -> None:
    talk = Codec(published.gemma(), fold_turns=True)
    messages: list[Message] = [
        {"role": "system", "content": "Be brief."},
        *conversation("a", "the fox"),
        {"role": "assistant", "content": "is a pub"},
        {"role": "user", "content": "b"},
    ]
    assert learned(talk, messages) == [talk.completion("the fox\n\nis a pub")]


def test_bos_that_is_added_has_no_label() -> None:
    talk = Codec(published.sentencepiece(published.CHATML, special=published.MARKERS))
    ids, labels = talk.prompt_labels(conversation("a", "the fox", "b"))
    assert talk.adds_bos
    assert "encodes an answer inside a conversation differently" in talk.no_turns  # without its leading space
    assert ids == talk.prompt(conversation("a", "the fox", "b"))
    assert labels[0] == IGNORED


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (THINKING, "it renders what comes before an answer differently once the answer is there"),
        (UPPER, "it changes the text of an assistant's turn"),
        (
            published.CHATML + "{% generation %}{% endgeneration %}",
            "it marks 0 of 2 assistant's turns",
        ),
        (
            published.CHATML + "{% generation %}a{% endgeneration %}{% generation %}b{% endgeneration %}",
            "markers do not enclose the assistant's text",
        ),
        (
            "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}"
            "{{ messages[loop.index0 - 1].content + m.content }}{% endgeneration %}{% endif %}{% endfor %}",
            "markers enclose text of other turns",
        ),
        (
            "{% if messages | length > 3 %}{{ raise_exception('one answer only') }}{% endif %}" + published.CHATML,
            "it refuses a conversation with two answers: one answer only",
        ),
    ],
)  # fmt: skip
def test_a_template_where_turns_cannot_be_located_is_refused(template: str, reason: str) -> None:
    talk = codec(template)
    assert reason in turns.why_not(talk.template, talk.end)
    assert talk.no_turns


@pytest.mark.parametrize("template", [published.CHATML, SMOLLM2, MARKED, TRIMMED], ids=range(4))
def test_ordinary_templates_are_accepted(template: str) -> None:
    talk = codec(template)
    assert talk.no_turns == ""
