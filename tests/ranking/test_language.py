"""The annotators' page in another language: every text has a translation, and no page shows an English one."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from catalogues import LEFT, RIGHT, Bracketed, marked, placeholders
from jinja2 import Environment
from ranking_site import Site, ask
from repository import ROOT

from pipeline.config.rank import AppConfig
from ranking.language import Language

PAGES = ROOT / "ranking"
ADMIN = {"admin.html", "finish.html", "live.html"}
"""Pages in English alone."""
CATALOGUES = sorted(path.stem for path in (PAGES / "messages").glob("*.yaml"))


def page_texts() -> set[str]:
    """Texts that the templates and the server mark."""
    templates = Environment(extensions=["jinja2.ext.i18n"])
    texts = {"min", "h", *AppConfig().labels}
    for path in (PAGES / "templates").glob("*.html"):
        texts.update(marked(templates.parse(path.read_text(encoding="utf-8"))))
    for path in PAGES.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("mark", "BadForm"):
                assert isinstance(node.args[0], ast.Constant), f"{path.name}:{node.lineno}"
                texts.add(node.args[0].value)
    return texts


def script_texts() -> set[str]:
    scripts = "".join(path.read_text(encoding="utf-8") for path in (PAGES / "static").glob("*.js"))
    return set(re.findall(r'\bt\(\s*"([^"]+)"', scripts))


@pytest.mark.parametrize("code", CATALOGUES)
def test_every_text_has_a_translation_and_every_translation_a_text(code: str) -> None:
    catalogue = yaml.safe_load((PAGES / "messages" / f"{code}.yaml").read_text(encoding="utf-8"))
    for section, texts in (("page", page_texts()), ("script", script_texts())):
        assert len(texts) > 20
        assert set(catalogue[section]) - texts == set(), "not used"
        assert texts - set(catalogue[section]) == set(), "not translated"
        for text, translation in catalogue[section].items():
            assert translation
            assert placeholders(translation) == placeholders(text)


def test_every_language_of_a_recipe_has_a_catalogue() -> None:
    assert CATALOGUES == ["zh"]
    for code in ("en", *CATALOGUES):
        assert AppConfig(language=code).language == code  # type: ignore[arg-type]
        assert Language.load(code).code == code


class Visible(HTMLParser):
    """The texts of a page that people read or hear, attributes included."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.text = ""
        self._tags: list[str] = []
        self.feed(source)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "link", "input", "br"):
            self._tags.append(tag)
        self.text += "".join(
            f" {value} " for name, value in attrs if name in ("aria-label", "title", "placeholder")
        )

    def handle_endtag(self, tag: str) -> None:
        while self._tags and self._tags.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"kbd", "script", "style"} & set(self._tags):
            self.text += data


def english(source: str) -> set[str]:
    """Words on a page that are not in brackets and do not come from the test's own prompts, answers and names."""
    rest, depth = "", 0
    for character in Visible(source).text:
        depth += (character == LEFT) - (character == RIGHT)
        rest += character if depth == 0 else " "
    own = {"question", "good", "fair", "poor", "bad", "worst", "answer", "to", "ana", "ben"}
    return {word for word in re.findall(r"[A-Za-z]{2,}", rest) if word.lower() not in own}


@pytest.mark.parametrize("k", [2, 4])
def test_no_page_of_an_annotator_has_a_text_outside_of_the_catalogue(
    site: Callable[..., Site], monkeypatch: pytest.MonkeyPatch, k: int
) -> None:
    monkeypatch.setattr(Language, "load", classmethod(lambda cls, code: cls(code, Bracketed())))
    served = site([ask(i, k) for i in range(4)], language="zh", ratings=True, guidelines="Good?", overlap=1)
    ana = served.client("ana")
    pages = [ana.get().text]
    for number in range(3):
        item = ana.current()
        if item is None:
            break
        fields = {"choice": "first"} if k == 2 else {f"rank-{p}": p + 1 for p in range(k)}
        action = {"action": "skip", "flag": "1"} if number == 1 else {"all_bad": "1"} if number == 2 else {}
        reply = ana.submit(item, fields | action | {"note": "good"}, json_wanted=False)
        pages += [ana.get(f"?sent={item}").text, ana.get(f"item/{item}").text]
        assert reply.status == 303
        pages.append(ana.submit(item, {f"rank-{p}": 99 for p in range(k)}, json_wanted=False).text)
    pages += [ana.get("done").text, ana.get("item/99999").text, served.client("ben").get().text]
    assert sum(LEFT in page for page in pages) == len(pages)
    for page in pages:
        assert english(page) == set(), page
        assert '<html lang="zh">' in page


def test_a_page_in_chinese(site: Callable[..., Site]) -> None:
    served = site([ask(i, 3) for i in range(2)], language="zh")
    ana = served.client("ana")
    text = ana.get().text
    for part in ("请给回答排序", "没有遵循指令", "我的：<strong>0 / 2</strong>", "回答 A"):
        assert part in text
    assert 'value="Fails to follow the instruction"' in text  # stored as in the recipe
    item = ana.current()
    assert item is not None
    assert ana.submit(item, {"rank-0": "9"}).text == '{"error":"“9”必须是 1 到 3 之间的整数。"}'
    assert ana.rank(item, [1, 2, 3]).status == 200
    assert "排序" in ana.get("done").text
    assert "此链接无效" in ana.request("GET", "/r/wrong/").text


def test_the_admins_page_stays_english(site: Callable[..., Site]) -> None:
    served = site([ask(0)], language="zh")
    path = f"/admin/{served.links.token('admin', '')}/"
    page = served.client("ana").request("GET", path).text
    assert '<html lang="en">' in page
    assert "Agrees with others" in page


def test_scripts_speak_the_page_s_language(site: Callable[..., Site], visit: Callable[..., Any]) -> None:
    page = visit(site([ask(0, 3)], language="zh"))
    page.locator("#answers .grip").first.click()
    assert page.locator("#status").text_content() == "回答 A：第 1 名，共 3 个。 还有 2 个没有名次。"
    page.locator("button.primary").click(force=True)
    assert page.locator("#status").text_content() == "回答 B 和 C 还没有名次。"
    assert page.locator("#answers .grip .spoken").first.text_content() == "回答 A：第 1 名，共 3 个"
