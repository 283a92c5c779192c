"""The chat template of an exported reward model: it renders a conversation as the reward model was trained on it.

A reward model reads `prompt(messages) + answer + end of turn`. A chat template may render a whole conversation in
another way: text after the last end of turn moves the token at which the score is read, and some templates change
answers. The exported template renders the prompt with the original one, and writes the answer and the end of turn
after it.
"""

from __future__ import annotations

import json
from typing import Any

from stages.models.text import Codec
from stages.scoring.text_encoder import special_tokens_around

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


def joining_template(tokenizer: Any) -> str:
    """A Jinja template for an encoder without one: it renders a conversation as `TextEncoder` joins its turns, with
    the special tokens that the tokenizer puts around a text."""
    before, after = special_tokens_around(tokenizer)
    opening, closing = ("".join(tokenizer.convert_ids_to_tokens(ids)) for ids in (before, after))
    if tokenizer.eos_token_id is not None and after != [tokenizer.eos_token_id]:
        closing = tokenizer.eos_token + closing
    first, last = (json.dumps(text, ensure_ascii=False) for text in (opening, closing))
    turns = "{%- for message in messages %}{{ message['content'] + ('' if loop.last else '\\n') }}{%- endfor %}"
    return f"{{{{ {first} }}}}{turns}{{{{ {last} }}}}"
