"""`base.chat_template_kwargs`: the values are in the template of the base artifact."""

from __future__ import annotations

from typing import Any

import published
import pytest
import tiny

from pipeline.errors import StageError
from stages.models import template_values
from stages.models.template_values import literal, with_values
from stages.models.text import Codec

THINKS = published.CHATML.replace(
    "<|im_start|>assistant\n' }}",
    "<|im_start|>assistant\n' }}{% if enable_thinking is defined and not enable_thinking %}{{ 'no' }}{% endif %}",
)
"""As Qwen3's: without thinking, the prompt ends with an empty thought."""


def rendered(template: str, **values: Any) -> str:
    tokenizer = tiny.tokenizer()
    text = tokenizer.apply_chat_template(
        tiny.user("hi"), tokenize=False, add_generation_prompt=True, chat_template=template, **values
    )
    return str(text)


def set_in(template: str, **values: Any) -> str:
    return with_values(template, values, tiny.tokenizer().special_tokens_map, "recipe.yaml:3")


def test_a_template_with_values_renders_as_if_they_were_passed() -> None:
    template = set_in(THINKS, enable_thinking=False)
    assert rendered(template) == rendered(THINKS, enable_thinking=False)
    assert rendered(template) != rendered(THINKS)


def test_the_caller_may_still_pass_another_value() -> None:
    assert rendered(set_in(THINKS, enable_thinking=False), enable_thinking=True) == rendered(THINKS)


@pytest.mark.parametrize(
    "start", ["", "\n", "  \n x", "  {%- if true %}\n  {{ 'a' }}{% endif %}", "  {% if true %}b{% endif %}"]
)
def test_white_space_at_the_start_of_a_template_stays(start: str) -> None:
    template = (
        start + "{{ mood }}{% macro m() %}{{ mood }}{% endmacro %}{% for _ in [1] %}{{ mood }}{% endfor %}{{ m() }}"
    )
    assert rendered(set_in(template, mood="sad")) == rendered(template, mood="sad")


@pytest.mark.parametrize(
    "value",
    [True, False, None, 3, -1.5, "a", "", "it's \"quoted\" \\ %}{{ x }}\n", "é😀", [1, "b", None], {"k": [True]}],
)  # fmt: skip
def test_any_json_value_can_be_set(value: Any) -> None:
    template = "{{ value | tojson }}"
    assert rendered(set_in(template, value=value)) == rendered(template, value=value)
    assert literal(True) == "true"


def test_a_misspelt_variable_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(StageError, match="the chat template has no variable enable_thinkin") as refusal:
        set_in(THINKS, enable_thinkin=False)
    assert refusal.value.where == "recipe.yaml:3"
    assert refusal.value.hint == "did you mean enable_thinking?"


def test_a_variable_of_a_template_without_any_is_refused() -> None:
    with pytest.raises(StageError) as refusal:
        set_in(published.CHATML, enable_thinking=False)
    assert refusal.value.hint == "remove it; it has no variables of its own"


@pytest.mark.parametrize("name", ["bos_token", "messages", "m", "raise_exception"])
def test_what_a_template_gets_elsewhere_cannot_be_set(name: str) -> None:
    with pytest.raises(StageError, match=f"has no variable {name}"):
        with_values(published.LLAMA + THINKS, {name: 1}, {"bos_token": "<s>", "eos_token": "</s>"}, "here")


def test_a_variable_with_a_default_in_the_template_can_be_set() -> None:
    template = (
        "{% if not date_string is defined %}{% set date_string = '26 Jul 2024' %}{% endif %}{{ date_string }}"
    )
    assert rendered(set_in(template, date_string="1 Jan 2030")) == "1 Jan 2030"


def test_blocks_of_generation_and_loop_controls_are_understood() -> None:
    template = (
        "{% for m in messages %}{% if m.role == 'user' %}{% continue %}{% endif %}{% generation %}{{ mood }}"
        "{% endgeneration %}{% endfor %}{{ strftime_now('%Y') }}"
    )
    assert template_values.variables(template) == {"mood"}


def test_a_syntax_error_is_left_to_the_check_of_the_template() -> None:
    assert set_in("{% if %}", mood=1) == "{% if %}"


def test_turns_are_not_located_where_a_value_changes_what_answers_follow() -> None:
    tokenizer = published.byte_level(set_in(THINKS, enable_thinking=False))
    assert "differently once the answer is there" in Codec(tokenizer).no_turns
    assert Codec(published.byte_level(THINKS)).no_turns == ""
