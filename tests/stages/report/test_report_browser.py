"""The report in a browser: how long it is on a phone, that nothing scrolls sideways, and that its links open what
they point to."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_run import HOSTILE, build
from full_run import FullRun
from pipeline_fakes import FakeStages

from pipeline.engine.runner import Runner

pytestmark = pytest.mark.slow

PHONE, DESKTOP = {"width": 390, "height": 844}, {"width": 1280, "height": 900}
MOST_SCREENS = 12
SIDEWAYS = """() => [...document.querySelectorAll("body *")].filter(element => {
  const box = element.getBoundingClientRect();
  return !element.closest("svg") && box.width && (box.left < -1 || box.right > innerWidth + 1);
}).map(element => element.outerHTML.slice(0, 90))"""
BROKEN = """() => {
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), broken = [];
  while (walker.nextNode()) {
    const node = walker.currentNode;
    if (node.parentElement.closest("code, svg, .pairs, .prompt, .label")) continue;
    for (const word of node.data.matchAll(/[\\p{L}]{2,30}/gu)) {
      const range = document.createRange();
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      if (new Set([...range.getClientRects()].map(box => Math.round(box.top))).size > 1) broken.push(word[0]);
    }
  }
  return broken;
}"""


@pytest.fixture
def report(stages: FakeStages, runner: Callable[..., Runner], tmp_path: Path) -> str:
    build(FullRun(stages, runner)(), tmp_path)
    return (tmp_path / "made" / "report.html").as_uri()


def visit(browser: Any, address: str, viewport: dict[str, int], **options: Any) -> Any:
    page = browser.new_page(viewport=viewport, **options)
    page.goto(address)
    return page


def test_the_report_is_short_on_a_phone(
    browser: Any, report: str, record_property: Callable[[str, object], None]
) -> None:
    page = visit(browser, report, PHONE)
    screens = page.evaluate("document.documentElement.scrollHeight") / PHONE["height"]
    record_property("screens", screens)
    print(f"{screens:.1f} screens of {PHONE['width']} x {PHONE['height']}")
    assert screens < MOST_SCREENS


@pytest.mark.parametrize(
    "viewport", [{"width": width, "height": 900} for width in (320, 390, 820, 962, 1152, 1280)], ids=str
)
def test_nothing_is_cut_or_broken(browser: Any, report: str, viewport: dict[str, int]) -> None:
    page = visit(browser, report, viewport)
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert page.evaluate("document.documentElement.scrollWidth") <= viewport["width"]
    assert page.evaluate(SIDEWAYS) == []
    assert set(page.evaluate(BROKEN)) - set(re.findall(r"\w+", HOSTILE)) == set()  # it contains a web address


@pytest.mark.parametrize("viewport", [PHONE, DESKTOP], ids=lambda v: str(v["width"]))
def test_contents_lead_to_sections_and_unfold_them(browser: Any, report: str, viewport: dict[str, int]) -> None:
    page = visit(browser, report, viewport)
    links = page.locator("#contents a")
    assert links.count() >= 12
    for link in links.all():
        if viewport == PHONE:
            page.locator(".bar-top a").first.click()
        link.click()
        target = page.locator(str(link.get_attribute("href")))
        assert target.is_visible()
        assert -1 <= target.bounding_box()["y"] < viewport["height"]


def test_a_term_leads_to_its_line_in_the_folded_glossary(browser: Any, report: str) -> None:
    page = visit(browser, report, DESKTOP)
    assert not page.locator("#term-kl").is_visible()
    page.locator("a.term[href='#term-kl']").click()
    assert page.locator("#term-kl").is_visible()


def test_cards_show_labels_on_a_phone_only(browser: Any, report: str) -> None:
    label = "getComputedStyle(document.querySelector('#models td'), '::before').content"
    assert visit(browser, report, PHONE).evaluate(label) != "none"
    assert visit(browser, report, DESKTOP).evaluate(label) == "none"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, report: str, scheme: str) -> None:
    """At least 4.5 to 1 (WCAG 2.2, level AA), with the page's or a card's background."""
    page = visit(browser, report, DESKTOP, color_scheme=scheme)
    ratios = page.evaluate("""() => {
      const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
      const luminance = name => {
        canvas.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(name);
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b] = [...canvas.getImageData(0, 0, 1, 1).data].map(value => value / 255)
          .map(value => value <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const pairs = [];
      for (const back of ["--page", "--raised"])
        for (const text of ["--text", "--muted", "--good", "--bad", "--warn"]) {
          const [low, high] = [luminance(back), luminance(text)].sort((a, b) => a - b);
          pairs.push([text + " on " + back, (high + 0.05) / (low + 0.05)]);
        }
      return pairs;
    }""")
    assert [pair for pair in ratios if pair[1] < 4.5] == []


def test_print_has_no_navigation(browser: Any, report: str) -> None:
    page = visit(browser, report, DESKTOP)
    page.emulate_media(media="print")
    assert not page.locator("#contents").is_visible()
    assert page.locator("#verdict").is_visible()
