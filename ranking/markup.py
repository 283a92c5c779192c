"""Markdown in prompts and answers as safe HTML.

Texts come from models, so nothing in them is trusted: HTML in the source stays text, images become links, links
open in a new tab, and the result passes a sanitiser. The pages' content security policy is the third barrier.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import nh3
from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape

from ranking.text import visible

LONGEST = 20_000
"""Longer texts are shown as they are written: some take time quadratic in their length to parse."""
DEEPEST = 15
"""So are texts with deeper nesting, because the parser drops what is nested deeper than 20."""
_ADDRESS = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
_TAGS = {
    *("a", "blockquote", "br", "code", "del", "em", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "s", "span"),
    *("strong", "table", "tbody", "td", "th", "thead", "tr", "ul"),
}
_PLAIN = {"paragraph_open", "paragraph_close", "inline", "text", "softbreak", "hardbreak"}


def formatted(text: str) -> Markup | None:
    """`text` as HTML, or None for text that is better shown as it is written: without Markdown, or too long."""
    if len(text) > LONGEST:
        return None
    source = text.replace("\0", "\N{SYMBOL FOR NULL}")
    tokens = _PARSER.parse(source)
    kinds = {part.type for token in tokens for part in (token, *(token.children or []))}
    if kinds <= _PLAIN or any(token.level > DEEPEST for token in tokens):
        return None
    html = nh3.clean(
        _PARSER.renderer.render(tokens, _PARSER.options, {}),
        tags=_TAGS,
        attributes={"a": {"href"}, "ol": {"start"}, "span": {"title"}},
        allowed_classes={"span": {"mark"}},
        set_tag_attribute_values={"a": {"target": "_blank"}},
        link_rel="noopener nofollow noreferrer",
        url_schemes={"http", "https", "mailto"},
    )
    return Markup(html)


def _visible(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return str(visible(tokens[at].content))


def _code(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return str(Markup("<code>{}</code>").format(visible(tokens[at].content)))


def _block(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return str(Markup("<pre><code>{}</code></pre>\n").format(visible(tokens[at].content)))


def _link(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    return str(Markup('<a href="{}">').format(tokens[at].attrs["href"]))


def _image(self: Any, tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    address = str(tokens[at].attrs["src"])
    name = visible(tokens[at].content) or escape(address)
    return str(Markup('<a href="{}">Image: {}</a>').format(address, name))


def _parser() -> MarkdownIt:
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    parser.enable(["table", "strikethrough"])
    # An entity in an answer stays as it is written; definitions of links would vanish.
    parser.disable(["entity", "reference"])
    parser.validateLink = _valid_link  # type: ignore[method-assign]
    for kind, rule in {
        "text": _visible,
        "code_inline": _code,
        "code_block": _block,
        "fence": _block,
        "link_open": _link,
        "image": _image,
    }.items():
        parser.add_render_rule(kind, rule)
    parser.core.ruler.push("headings", _lower_headings)
    return parser


def _valid_link(url: str) -> bool:
    """Other links, such as `javascript:` or those into these pages, stay text."""
    return bool(_ADDRESS.match(url))


def _lower_headings(state: Any) -> None:
    """Below the page's own headings: h1 becomes h4, h2 h5, all others h6."""
    for token in state.tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"


_PARSER = _parser()
