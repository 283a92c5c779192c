"""Hostile texts, Markdown, accessibility and contrast of the ranking page in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ranking_browser import place_all, sent, status
from ranking_site import Site, ask, contents

from ranking.campaign import Source

pytestmark = pytest.mark.slow
Make = Callable[..., Site]


def test_hostile_answers_are_inert(site: Make, visit: Callable[..., Any]) -> None:
    attacks = [
        "<script>document.title = 'owned'</script>",
        '"><img src=x onerror="document.title=\'owned\'">',
        "</div></li></ol></form><h1>owned</h1><iframe src=javascript:parent.document.title='owned'>",
        "abc \u202e evil \u2066 \x00 \ud800 end",
        "{{ 7 * 7 }} <svg/onload=alert(1)> javascript:alert(1)",
        "long " * 20_000,
    ]
    served = site([Source([{"role": "user", "content": attacks[1]}], attacks), ask(1)], overlap=1)
    page = visit(served)
    assert page.title() == "Item 1 · Rankings"
    texts = page.locator(".answer .text").all_inner_texts()
    assert len(texts) == 6
    for attack in (*attacks[:3], attacks[4]):
        assert attack in texts
    [strange] = [text for text in texts if text.startswith("abc")]
    assert strange == "abc U+202E evil U+2066 \u2400 U+D800 end"
    assert page.locator("main h1").count() == 1
    assert page.locator("script").count() == 1
    assert page.locator("img, iframe, svg").count() == 0
    long = page.get_by_role("region", name="Answer")
    assert long.count() == 1
    assert long.bounding_box()["height"] < 600
    place_all(page, "ABCDEF")
    sent(page, page.get_by_role("button", name="Send").click)
    assert len(contents(served)) == 1


def test_markdown_is_formatted_and_inert(site: Make, visit: Callable[..., Any]) -> None:
    attacks = [
        "**x** <script>document.title = 'owned'</script>",
        "*x* ![a](http://127.0.0.1:9/a.png) ![](javascript:alert(1)) <img src=http://127.0.0.1:9/b onerror=a()>",
        "[click](javascript:document.title='owned') [data](data:text/html,<script>a()</script>) [own](/admin/) `c`",
        '[good](https://example.org/ "\'onmouseover=alert(1)") and <https://example.org/"onclick=alert(1)>',
        "# Big\n\n```html\n</code></pre><script>alert(1)</script>\n```\n\n| a | b |\n|---|---|\n| 1 | <b>2</b> |",
    ]
    served = site([Source([{"role": "user", "content": "**bold** question"}], attacks), ask(1)], overlap=1)
    requests: list[str] = []
    page = visit(served)
    page.on("request", lambda request: requests.append(request.url))
    page.reload()
    assert page.title() == "Item 1 · Rankings"
    assert page.locator("img, iframe, svg, script:not([src])").count() == 0
    assert page.locator(".prompt strong").inner_text() == "bold"
    assert page.locator(".answer pre code").inner_text().strip() == "</code></pre><script>alert(1)</script>"
    assert page.locator(".answer table td").all_inner_texts() == ["1", "<b>2</b>"]
    assert (page.locator("main h1").count(), page.locator(".answer h4").inner_text()) == (1, "Big")
    handlers = (
        "[...document.querySelectorAll('*')].filter((e) => [...e.attributes].some((a) => a.name.startsWith('on')))"
    )
    assert page.evaluate(f"{handlers}.length") == 0
    links = page.locator(".answer .text a").all()
    assert sorted(link.get_attribute("href") for link in links) == [
        "http://127.0.0.1:9/a.png",
        "https://example.org/",
        "https://example.org/%22onclick=alert(1)",
    ]
    for link in links:
        assert link.get_attribute("target") == "_blank"
        assert set(link.get_attribute("rel").split()) == {"noopener", "nofollow", "noreferrer"}
    assert all(url.startswith(served.address) for url in requests)
    page.get_by_label("Show Markdown as written").check()
    assert set(page.locator(".answer .text:visible").all_inner_texts()) == set(attacks)
    page.reload()
    assert page.locator(".prompt .text:visible").inner_text() == "**bold** question"


def test_the_page_is_accessible(site: Make, visit: Callable[..., Any]) -> None:
    prompt = [{"role": role, "content": role} for role in ("system", "user", "assistant", "user")]
    served = site([Source(prompt, ["x", "y", "z"]), ask(1)], ratings=True)
    page = visit(served)
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.locator("h1").count() == 1
    assert page.locator(".prompt h2").all_inner_texts() == ["Instructions", "User", "Assistant", "User"]
    for role in ("main", "banner", "navigation", "status"):
        assert page.get_by_role(role).count() == 1, role
    assert page.get_by_role("list", name="Put the answers in order").get_by_role("listitem").count() == 3
    unnamed = page.evaluate(
        """() => [...document.querySelectorAll("button, a, input:not([type=hidden]), textarea, summary, progress")]
        .filter((e) => e.checkVisibility() && !(e.labels?.[0]?.innerText || e.ariaLabel || e.innerText).trim())
        .map((e) => e.outerHTML)"""
    )
    assert unnamed == []
    dangling = page.evaluate(
        """() => [...document.querySelectorAll("[aria-labelledby], [aria-describedby]")]
        .filter((e) => !document.getElementById(
          e.getAttribute("aria-labelledby") || e.getAttribute("aria-describedby")))
        .map((e) => e.outerHTML)"""
    )
    assert dangling == []
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map((e) => e.id)")
    assert len(ids) == len(set(ids))
    # Tab follows the reading order, every stop has a visible focus, and none traps the focus.
    page.reload()
    page.evaluate("() => { document.body.tabIndex = -1; document.body.focus(); }")
    stops = []
    for _ in range(60):
        page.keyboard.press("Tab")
        stop = page.evaluate(
            """() => { const e = document.activeElement; const s = getComputedStyle(e.matches(
              ".rating input, .labels input, .choice input") ? e.nextElementSibling : e);
              const b = e.getBoundingClientRect();
              if (e === document.body) return null;
              return [e.innerText || e.name || e.id, b.top + scrollY, s.outlineStyle] }"""
        )
        if stop is None:
            break
        stops.append(stop)
    names = [name.split("\\n")[-1] for name, _, _ in stops]
    assert names[0] == "Skip to the answers"
    grips = [name for name in names if "no place" in name]
    assert [grip[-22:] for grip in grips] == [f"Answer {x}: no place yet" for x in "ABC"]
    assert all(style != "none" for _, _, style in stops)
    # Moves are announced, the focus stays on the moved answer, and "pressed" is not shown by colour alone.
    page.get_by_role("button", name="Answer C: no place yet").focus()
    page.keyboard.press("ArrowUp")
    assert status(page) == "Answer C: place 2 of 3. 2 without a place."
    assert page.get_by_role("button", name="Answer C: place 2 of 3").evaluate("e => e === document.activeElement")
    page.locator(".answer[data-letter=A] .grip").click()
    page.get_by_role("button", name="Answer C: place 2 of 3").focus()
    page.keyboard.press("t")
    tie = page.get_by_role("button", name="Answer C: tie with the answer above")
    assert tie.get_attribute("aria-pressed") == "true"
    assert page.locator(".answer[data-letter=C] .place").inner_text() == "1="


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(site: Make, visit: Callable[..., Any], scheme: str) -> None:
    """WCAG 2.2 AA: a contrast of 4.5 to 1 for all text that is not disabled."""
    page = visit(site([ask(0), ask(1)], ratings=True), color_scheme=scheme)
    place_all(page, "AB")
    page.get_by_role("button", name="Answer B: tie with the answer above").click()
    page.get_by_role("group", name="What is wrong with answer A").get_by_label("Invents facts").check(force=True)
    for details in page.locator("summary").all():
        details.click()
    low = page.evaluate(
        """() => {
        const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
        const rgb = (colour, under) => {
          if (under) { canvas.fillStyle = `rgb(${under})`; canvas.fillRect(0, 0, 1, 1); }
          else canvas.clearRect(0, 0, 1, 1);
          canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
          return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3);
        };
        const behind = (e) => {
          const stack = [];
          for (; e; e = e.parentElement) stack.push(getComputedStyle(e).backgroundColor);
          return stack.reverse().reduce((under, colour) => rgb(colour, under), [255, 255, 255]);
        };
        const light = (c) => c.map((v) => v / 255).map((v) => v <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
          .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
        const low = [];
        for (const e of document.querySelectorAll("body *")) {
          const hasText = [...e.childNodes].some((n) => n.nodeType === 3 && n.textContent.trim());
          if (!hasText || !e.checkVisibility() || e.closest(":disabled, .spoken, .jump")) continue;
          const back = behind(e), fore = rgb(getComputedStyle(e).color, back);
          const [a, b] = [light(back), light(fore)].sort((x, y) => y - x);
          const ratio = (a + .05) / (b + .05);
          if (ratio < 4.5) low.push([e.className, e.innerText, ratio]);
        }
        return low;
        }"""
    )
    assert low == []
