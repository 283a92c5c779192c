"""`base.chat_template_kwargs`: values of a chat template's variables, written into the template itself.

The template of the `base` artifact starts with a line that sets each variable unless the caller does, so every
stage, the chat and the exported tokenizer render alike. Whoever serves the model may still pass another value.
"""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from typing import Any

from jinja2 import TemplateSyntaxError, meta, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.config.base import TEMPLATE_INPUTS
from pipeline.errors import StageError
from pipeline.wording import listing

FUNCTIONS = frozenset(
    {"raise_exception", "strftime_now", "namespace", "dict", "range", "lipsum", "cycler", "joiner"}
)
"""What templates can call besides their variables."""


class _Generation(Extension):
    """Parses transformers' `{% generation %}` blocks."""

    tags = {"generation"}  # noqa: RUF012 (jinja's interface)

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


def variables(template: str) -> set[str]:
    """The variables that a template reads from its caller, other than those that every conversation has. Raises
    `TemplateSyntaxError`."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols]
    )
    return meta.find_undeclared_variables(environment.parse(template)) - FUNCTIONS - TEMPLATE_INPUTS


def with_values(template: str, values: Mapping[str, Any], special: Collection[str], where: str) -> str:
    """The template with these values of its variables.

    Args:
        special: names of the tokenizer's special tokens, such as `bos_token`, which the tokenizer passes.
        where: for errors.

    Raises `StageError` for a variable that the template does not read.
    """
    if not values:
        return template
    try:
        known = variables(template) - set(special)
    except TemplateSyntaxError:  # `ChatTemplate` reports it, with the line of the published template
        return template
    for name in values:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            there = f"its variables are {listing(sorted(known))}" if known else "it has no variables of its own"
            raise StageError(
                f"base.chat_template_kwargs: the chat template has no variable {name}",
                where=where,
                hint=f"did you mean {near[0]}?" if near else f"remove it; {there}",
            )
    lines = (
        f"{{%- if {name} is not defined %}}{{%- set {name} = {literal(value)} %}}{{%- endif %}}"
        for name, value in values.items()
    )
    # The last block tag swallows the line's end.
    return "".join(lines) + "\n" + template


def literal(value: Any) -> str:
    """A JSON value as Jinja writes it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, str):
        escaped = value.encode("unicode_escape").decode("ascii").replace('"', '\\"')
        return f'"{escaped}"'
    if isinstance(value, list):
        return f"[{', '.join(map(literal, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{literal(key)}: {literal(item)}' for key, item in value.items())}}}"
    return repr(value)
