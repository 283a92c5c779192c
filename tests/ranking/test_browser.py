"""The ranking page in a browser by mouse, keyboard and touch; the stored rankings; accessibility."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from ranking_site import Site, ask, contents

from ranking.campaign import Source

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
pytestmark = pytest.mark.slow
Make = Callable[..., Site]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """The system's Chromium, or else Playwright's."""
    system = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    with playwright.sync_playwright() as driver:
        if system is None and not os.path.exists(driver.chromium.executable_path):
            pytest.skip("there is no Chromium: install one, or run `playwright install chromium`")
        launched = driver.chromium.launch(executable_path=system)
        yield launched
        launched.close()


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an annotator's page. Any error, console error or dialog fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_(served: Site, name: str = "ana", **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
        context.set_default_timeout(5000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if _grave(message) else None)
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(served.address + served.path(name))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def _grave(message: Any) -> bool:
    return message.type == "error" and "502" not in message.text  # a test causes 502 on purpose


def order(page: Any) -> str:
    """The letters from best to worst, tied ones in brackets: "B(AC)D"."""
    groups: dict[str, str] = {}
    for card in page.locator(".answer").all():
        groups.setdefault(card.locator(".place").inner_text(), "")
        groups[card.locator(".place").inner_text()] += card.get_attribute("data-letter")
    return "".join(group if len(group) == 1 else f"({group})" for group in groups.values())


def stored(served: Site, at: int = -1) -> str:
    """The order in the database, in the format of `order`."""
    row = contents(served)[at]
    task = served.store.task(row["task"])
    assert task is not None
    by_rank: dict[int, str] = {}
    for position, completion in enumerate(task.shown):
        rank = row["ranks"][completion]
        by_rank[rank] = by_rank.get(rank, "") + "ABCDEFG"[position]
    groups = [by_rank[rank] for rank in sorted(by_rank)]
    return "".join(group if len(group) == 1 else f"({group})" for group in groups)


def sent(page: Any, act: Callable[[], Any]) -> None:
    """Runs an action that sends the form, and waits for the next page."""
    with page.expect_navigation():
        act()


def drag(page: Any, letter: str, onto: str) -> None:
    """Drags an answer by its number to the far edge of another answer."""
    grip = page.locator(f".answer[data-letter={letter}] .grip")
    grip.scroll_into_view_if_needed()
    box = grip.bounding_box()
    page.mouse.move(box["x"] + 20, box["y"] + box["height"] / 2)
    page.mouse.down()
    target = page.locator(f".answer[data-letter={onto}]").bounding_box()
    down = target["y"] > box["y"]
    page.mouse.move(box["x"] + 20, target["y"] + (target["height"] - 4 if down else 4), steps=12)
    page.mouse.up()


def test_ranking_by_mouse(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1), ask(2)], ratings=True)
    page = visit(served)
    assert order(page) == "ABCD"
    drag(page, "A", onto="C")
    assert order(page) == "BCAD"
    drag(page, "D", onto="B")
    assert order(page) == "DBCA"
    page.get_by_role("button", name="Answer C as good as the one above").click()
    assert order(page) == "D(BC)A"
    page.get_by_role("button", name="Answer D down").click()
    assert order(page) == "(BDC)A"  # dropped between tied answers, it joins the tie
    page.get_by_role("button", name="Answer D up").click()
    assert order(page) == "D(BC)A"
    page.get_by_text("Rate and label").nth(0).click()
    page.get_by_role("group", name="Rating of answer D").get_by_role("radio", name="6").check(force=True)
    page.get_by_role("group", name="What is wrong with answer D").get_by_label("Invents facts").check(force=True)
    sent(page, page.get_by_role("button", name="Send ranking").click)
    assert stored(served) == "D(BC)A"
    [row] = contents(served)
    completion = served.store.task(row["task"]).shown[3]  # type: ignore[union-attr]
    assert row["ratings"][completion] == 6
    assert row["labels"][completion] == ["Invents facts"]
    assert sum(r is not None for r in row["ratings"]) == 1
    assert row["moves"] >= 4
    assert 0 <= row["seconds"] < 60


def test_ranking_by_keyboard_alone(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(i) for i in range(5)])
    page = visit(served)
    press = page.keyboard.press
    press("Enter")  # asks for confirmation, because nothing was moved
    assert contents(served) == []
    assert "You have not changed the order" in page.get_by_role("status").inner_text()
    press("j")
    press("ArrowDown")
    assert order(page) == "BACD"
    assert page.get_by_role("status").inner_text() == "Answer A: place 2 of 4."
    assert page.evaluate("document.activeElement.innerText").endswith("Answer A: place 2 of 4")
    press("j")
    press("1")
    assert order(page) == "CBAD"
    press("t")  # no-op: there is no answer above the first
    press("j")
    press("=")
    assert order(page) == "(CB)AD"
    sent(page, lambda: press("Enter"))
    assert stored(served) == "(CB)AD".replace("CB", "BC")  # a tie has no order

    press("b")
    sent(page, lambda: press("Enter"))
    assert contents(served)[-1]["all_bad"] is True
    assert stored(served) == "(ABCD)"

    press("f")
    page.keyboard.type("two are the same b")  # in a text field, letters are not shortcuts
    press("Shift+Tab")
    assert not page.locator("#all_bad").is_checked()
    sent(page, lambda: press("s"))
    assert contents(served)[-1]["kind"] == "skipped"
    assert contents(served)[-1]["flag"] == "two are the same b"

    sent(page, lambda: press("p"))  # back to the skipped item, and to the one before
    sent(page, lambda: press("p"))
    assert page.locator("#all_bad").is_checked()
    press("b")
    press("j")
    press("4")
    changed = order(page)
    assert changed == "(BCD)A"  # all were tied, and the first moved to the last place
    sent(page, lambda: press("Enter"))
    assert stored(served) == changed
    assert contents(served)[-1]["task"] == contents(served)[1]["task"]
    assert len(contents(served)) == 4


def test_shortcuts_can_be_turned_off(site: Make, visit: Callable[..., Any]) -> None:
    page = visit(site([ask(0), ask(1)]))
    page.keyboard.press("?")
    page.get_by_label("Letters and digits are shortcuts").uncheck()
    page.keyboard.press("b")
    assert not page.locator("#all_bad").is_checked()
    page.reload()
    page.keyboard.press("b")
    assert not page.locator("#all_bad").is_checked()


def test_ranking_by_touch_on_a_phone(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served, viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    touch = page.context.new_cdp_session(page)

    def finger(kind: str, x: float, y: float) -> None:
        points = [] if kind == "touchEnd" else [{"x": x, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    box = page.locator(".answer[data-letter=A] .grip").bounding_box()
    target = page.locator(".answer[data-letter=C]").bounding_box()
    x, y = box["x"] + 20, box["y"] + box["height"] / 2
    finger("touchStart", x, y)
    for part in range(1, 13):
        finger("touchMove", x, y + (target["y"] + target["height"] - 4 - y) * part / 12)
    for _ in range(6):  # rest before lifting: a fling would swallow the next tap
        page.wait_for_timeout(30)
        finger("touchMove", x, target["y"] + target["height"] - 4)
    finger("touchEnd", 0, 0)
    assert order(page) == "BCAD"
    page.get_by_role("button", name="Answer D up").tap()
    assert order(page) == "BCDA"
    page.get_by_role("button", name="Answer A as good as the one above").tap()
    assert order(page) == "BC(DA)"
    page.get_by_text("Flag a problem").tap()
    page.get_by_label("Something is wrong with this item").check()
    page.get_by_label("Note").fill("hm")
    sent(page, page.get_by_role("button", name="Send ranking").tap)
    assert stored(served) == "BC(AD)"
    assert (contents(served)[0]["flag"], contents(served)[0]["note"]) == ("", "hm")
    for target in page.locator("button:visible, summary:visible, .bar a:visible, .check:visible").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 43.9, target.inner_text()


def test_going_back_and_changing_a_ranking(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    page.get_by_role("button", name="Answer B up").click()
    sent(page, page.get_by_role("button", name="Send ranking").click)
    sent(page, page.get_by_role("link", name="Previous").click)
    assert order(page) == "BACD"
    page.get_by_role("button", name="Answer D up").click()
    sent(page, page.get_by_role("button", name="Save the change").click)
    assert stored(served) == "BADC"
    assert [row["task"] for row in contents(served)] == [1, 1]
    sent(page, page.get_by_role("link", name="My rankings").click)
    sent(page, page.get_by_role("link", name="Question 0?").click)
    assert order(page) == "BADC"


def test_comparing_two_answers_by_keyboard_and_mouse(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(i, k=2) for i in range(3)])
    page = visit(served)
    page.keyboard.press("Enter")
    assert page.get_by_role("status").inner_text() == "Choose first which answer is better."
    page.keyboard.press("ArrowRight")
    sent(page, lambda: page.keyboard.press("Enter"))
    assert stored(served) == "BA"
    page.keyboard.press("0")
    sent(page, lambda: page.keyboard.press("Enter"))
    assert stored(served) == "(AB)"
    page.get_by_role("radio", name="A is better").check()
    sent(page, page.get_by_role("button", name="Send").click)
    assert stored(served) == "AB"


def test_ranking_without_javascript(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served, java_script_enabled=False)
    for letter, rank in zip("ABCD", "2122", strict=True):
        page.get_by_label(f"Rank of answer {letter}").fill(rank)
    sent(page, page.get_by_role("button", name="Send ranking").click)
    assert stored(served) == "B(ACD)"
    assert page.get_by_role("link", name="Previous").is_visible()


def test_a_failed_submission_is_retried(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    lost = []

    def lose(route: Any) -> None:
        if len(lost) < 2:
            lost.append(route.fetch().status)  # stored, but the response is lost
            route.fulfill(status=502, body="")
        else:
            route.continue_()

    page.route("**/item/*", lose)
    page.get_by_role("button", name="Answer B up").click()
    with page.expect_navigation(timeout=15_000):
        page.get_by_role("button", name="Send ranking").click()
        page.get_by_text("Not saved yet").wait_for()
    assert lost == [200, 200]
    assert len(contents(served)) == 1
    assert stored(served) == "BACD"


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
    page.get_by_role("button", name="Answer B up").click()
    sent(page, page.get_by_role("button", name="Send ranking").click)
    assert len(contents(served)) == 1


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
    page.get_by_text("Rate and label").nth(0).click()
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
    grips = [name for name in names if "place" in name]
    assert [grip[-22:] for grip in grips] == [f"Answer {x}: place {i} of 3" for i, x in enumerate("ABC", 1)]
    assert all(style != "none" for _, _, style in stops)
    assert (
        names.index("action") > max(i for i, name in enumerate(names) if "place" in name)
        if "action" in names
        else 1
    )
    # Moves are announced, the focus stays on the moved answer, and "pressed" is not shown by colour alone.
    page.get_by_role("button", name="Answer C: place 3 of 3").focus()
    page.keyboard.press("ArrowUp")
    assert page.get_by_role("status").inner_text() == "Answer C: place 2 of 3."
    assert page.get_by_role("button", name="Answer C: place 2 of 3").evaluate("e => e === document.activeElement")
    page.keyboard.press("t")
    assert page.get_by_role("button", name="Answer C as good").get_attribute("aria-pressed") == "true"
    assert page.locator(".answer[data-letter=C] .place").inner_text() == "1="


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast(site: Make, visit: Callable[..., Any], scheme: str) -> None:
    """WCAG 2.2 AA: a contrast of 4.5 to 1 for all text that is not disabled."""
    page = visit(site([ask(0), ask(1)], ratings=True), color_scheme=scheme)
    page.get_by_role("button", name="Answer B as good").click()
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
