"""The chat template of an exported reward model: it renders a conversation as the reward model was trained on it.

A reward model reads `prompt(messages) + answer + end of turn`. A chat template may render a whole conversation in
another way: text after the last end of turn moves the token at which the score is read, and some templates change
answers. The exported template renders the prompt with the original one, and writes the answer and the end of turn
after it.
"""

from __future__ import annotations

import json

from stages.models.text import Codec

BEFORE = (
    "{%- set scored_answer = none %}"
    "{%- if messages[-1]['role'] == 'assistant' and not add_generation_prompt %}"
    "{%- set scored_answer = messages[-1]['content'] %}"
    "{%- set messages = messages[:-1] %}"
    "{%- set add_generation_prompt = true %}"
    "{%- endif %}"
)


def scoring_template(codec: Codec) -> str:
    """A Jinja template for transformers. Conversations that end with the assistant's turn are rendered for scoring,
    others as the codec's template renders them. The date is fixed, and BOS is written where the codec adds it."""
    bos = "{{ bos_token }}" if codec.adds_bos else ""
    # After a block tag, Jinja drops a newline: the empty expression keeps the template's first line as it is.
    original = "{{ '' }}" + codec.template.text.removesuffix("\n")
    end = json.dumps(codec.end, ensure_ascii=False)
    return f"{BEFORE}{bos}{original}{{{{ '' if scored_answer is none else scored_answer + {end} }}}}"
