"""Markdown of prompts and answers: what is formatted, and that nothing in it is active."""

from __future__ import annotations

import random
import re
import time
from html.parser import HTMLParser

import pytest

from ranking.markup import LONGEST, formatted

ALLOWED = {"a": {"href", "target", "rel"}, "ol": {"start"}, "span": {"class", "title"}}


class Tags(HTMLParser):
    """Collects elements, and text."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.mark.parametrize(
    "text",
    [
        "",
        "plain",
        "two\nlines  \nand\n\n\nmore",
        "1 < 2 & 3",
        "<b>html</b>",
        "&lt;i&gt;",
        "a_b_c",
        "[1]: http://x/",
    ],
)
def test_text_without_markdown_stays_as_it_is_written(text: str) -> None:
    assert formatted(text) is None


def test_markdown_becomes_html() -> None:
    assert formatted("# A\n\n*b* **c** `d`\ne") == (
        "<h4>A</h4>\n<p><em>b</em> <strong>c</strong> <code>d</code><br>\ne</p>\n"
    )
    assert formatted("```python\nx < 1\n```") == "<pre><code>x &lt; 1\n</code></pre>\n"
    assert formatted("4. a\n5. b") == '<ol start="4">\n<li>a</li>\n<li>b</li>\n</ol>\n'


def test_images_are_links_and_links_open_elsewhere() -> None:
    html = formatted("![cat](https://e.org/c.png) [page](https://e.org) ![](https://e.org/d.png)")
    assert html is not None
    assert re.sub(r' target="_blank" rel="noopener nofollow noreferrer"', "", html) == (
        '<p><a href="https://e.org/c.png">Image: cat</a> <a href="https://e.org">page</a> '
        '<a href="https://e.org/d.png">Image: https://e.org/d.png</a></p>\n'
    )
    assert html.count('target="_blank" rel="noopener nofollow noreferrer"') == 3


@pytest.mark.parametrize(
    "address",
    ["javascript:alert(1)", "JaVaScRiPt:alert(1)", "&#106;avascript:alert(1)", "data:text/html,x", "vbscript:x",
     "file:///etc/passwd", "/admin/x", "//evil.example", "java\tscript:alert(1)", "\x01javascript:alert(1)"],
)  # fmt: skip
def test_other_addresses_are_no_links(address: str) -> None:
    for text in (f"*x* [a]({address})", f"*x* ![a]({address})", f"*x* <{address}>", f"*x* [a](<{address}>)"):
        html = formatted(text)
        assert html is not None
        assert "<a" not in html, text


def test_hidden_characters_are_shown() -> None:
    html = formatted("*a* \u202e \x00 `\u2066` \ud800 [\x1b](http://e.org/\ud800 '\ud800')")
    assert html is not None
    assert not re.search("[\x00\u202e\u2066\ud800-\udfff\x1b]", html)
    for name in ("right-to-left override", "left-to-right isolate", "lone surrogate", "\u2400"):
        assert name in html


def test_random_markup_is_inert() -> None:
    rng = random.Random(0)
    pieces = [
        "word", "*", "**", "`", "```", "\n", "\n\n", "[", "]", "(", ")", "!", "<", ">", '"', "'", "&", "#", "- ",
        "1. ", "> ", "|", "---", "~~", "<script>", "</script>", "<img src=x onerror=a()>", "javascript:alert(1)",
        "http://e.org/", "&lt;", "\\", " onclick=x ", "<!--", "-->", "<![CDATA[", "\x00", "\ud800", "&#0;",
    ]  # fmt: skip
    rendered = 0
    for _ in range(3000):
        text = "".join(rng.choices(pieces, k=rng.randint(2, 25)))
        html = formatted(text)
        if html is None:
            continue
        rendered += 1
        html.encode()
        tags = Tags(html)
        for tag, attributes in tags.elements:
            assert tag not in ("script", "img", "iframe", "style", "svg"), text
            assert attributes.keys() <= ALLOWED.get(tag, set()), text
            assert re.match(r"(https?:|mailto:|$)", attributes.get("href") or ""), text
    assert rendered > 500


@pytest.mark.parametrize("piece", ["[", "*a ", "> ", "[a](", "|a", "`a``", "<a ", "- ", "![a](", "|\n", "~~a"])
def test_hostile_nesting_takes_no_time(piece: str) -> None:
    before = time.monotonic()
    formatted("a|b\n-|-\n" + piece * (LONGEST // len(piece) - 10))
    assert time.monotonic() - before < 5
    assert formatted("*a* " + "x" * LONGEST) is None
