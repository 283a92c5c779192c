from __future__ import annotations

import pytest
import small

from stages.export.modelfile import Turns, modelfile
from stages.models.text import Codec


def test_the_plain_template_in_go() -> None:
    assert modelfile(Codec(small.bpe("plain")), "model-q4_0.gguf", 0.7) == (
        "FROM ./model-q4_0.gguf\n"
        'TEMPLATE """{{ range .Messages }}{{ if eq .Role "assistant" }}{{ .Content }}<|endoftext|>'
        '{{ else if eq .Role "system" }}{{ .Content }}\n{{ else if eq .Role "user" }}{{ .Content }}\n'
        '{{ end }}{{ end }}"""\n'
        'PARAMETER temperature 0.7\nPARAMETER stop "<|endoftext|>"\n'
    )


def test_chatml_ends_turns_by_a_token_of_its_own() -> None:
    codec = Codec(small.bpe("chatml"))
    turns = Turns.of(codec)
    assert turns is not None
    assert turns.answer == "<|im_start|>assistant\n"
    assert turns.around["user"] == ("<|im_start|>user\n", "<|im_end|>\n")
    assert 'PARAMETER stop "<|im_end|>"' in modelfile(codec, "m.gguf", 1.0)


@pytest.mark.parametrize(
    ("template", "around", "start"),
    [
        ("{% for m in messages %}{{ m.role + ': ' + m.content + '\n' }}{% endfor %}", True, ""),
        ("Be kind.\n{% for m in messages %}{{ m.content + '\n' }}{% endfor %}", True, "Be kind.\n"),
        ("{% for m in messages %}{{ loop.index ~ m.content }}{% endfor %}", False, ""),
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", False, ""),
    ],
)
def test_only_what_puts_text_around_messages_is_translated(template: str, around: bool, start: str) -> None:
    tokenizer = small.bpe()
    tokenizer.chat_template = template
    turns = Turns.of(Codec(tokenizer))
    assert (turns is not None) == around
    if turns is not None:
        assert turns.start == start
    else:
        assert "write TEMPLATE by hand" in modelfile(Codec(tokenizer), "m.gguf", 1.0)


def test_a_template_without_system_messages_has_none_in_go() -> None:
    tokenizer = small.bpe()
    tokenizer.chat_template = (
        "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no') }}{% endif %}"
        "{{ m.content + '\n' }}{% endfor %}"
    )
    turns = Turns.of(Codec(tokenizer))
    assert turns is not None
    assert set(turns.around) == {"user", "assistant"}
