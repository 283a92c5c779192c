"""The ranking page in a browser by mouse, keyboard and touch, and the stored rankings."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ranking_browser import drag, order, place_all, sent, status, stored
from ranking_site import Site, ask, contents

from ranking.campaign import Source

pytestmark = pytest.mark.slow
Make = Callable[..., Site]
PHONE = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}


def test_ranking_by_mouse(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1), ask(2)], ratings=True)
    page = visit(served)
    assert order(page) == "abcd"
    drag(page, "A", onto="C")
    assert order(page) == "bcAd"
    drag(page, "D", onto="B")
    assert order(page) == "DbAc"  # answers without a place fill the gaps
    page.locator(".answer[data-letter=C] .grip").click()
    assert order(page) == "DCAb"
    page.get_by_role("button", name="It stays where it is").click()
    assert order(page) == "DCAB"
    page.get_by_role("button", name="Answer C: tie with the answer above").click()
    assert order(page) == "(DC)AB"
    page.get_by_role("button", name="Answer B up").click()
    page.get_by_role("button", name="Answer B up").click()
    assert order(page) == "(DBC)A"  # dropped between tied answers, it joins the tie
    page.get_by_role("button", name="Answer B down").click()
    page.get_by_role("button", name="Answer B down").click()
    assert order(page) == "(DC)AB"
    page.get_by_role("group", name="Rating of answer D").get_by_role("radio", name="6").check(force=True)
    page.get_by_role("group", name="What is wrong with answer D").get_by_label("Invents facts").check(force=True)
    sent(page, page.get_by_role("button", name="Send").click)
    assert stored(served) == "(CD)AB"
    [row] = contents(served)
    completion = served.store.task(row["task"]).shown[3]  # type: ignore[union-attr]
    assert row["ratings"][completion] == 6
    assert row["labels"][completion] == ["Invents facts"]
    assert sum(r is not None for r in row["ratings"]) == 1
    assert row["moves"] == 9
    assert 0 <= row["seconds"] < 60


def test_clicks_from_best_to_worst_give_the_order(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1), ask(2)])
    page = visit(served)
    place_all(page, "CADB")
    assert order(page) == "CADB"
    page.locator(".answer[data-letter=D] .grip").click()  # it has its place
    assert order(page) == "CADB"
    sent(page, page.get_by_role("button", name="Send").click)
    assert stored(served) == "CADB"
    place_all(page, "C")
    page.get_by_role("button", name="The rest is tied").click()
    assert order(page) == "C(ABD)"
    sent(page, page.get_by_role("button", name="Send").click)
    assert stored(served) == "C(ABD)"


def test_ranking_by_keyboard_alone(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(i) for i in range(5)])
    page = visit(served)
    press = page.keyboard.press
    for digit in "4312":  # the first answer has the focus, and each digit leads to the next answer
        press(digit)
    assert order(page) == "CDBA"
    press("ArrowUp")
    assert order(page) == "DCBA"
    assert status(page) == "Answer D: place 1 of 4."
    assert page.evaluate("document.activeElement.innerText").endswith("Answer D: place 1 of 4")
    press("t")  # no-op: there is no answer above the first
    press("j")
    press("=")
    assert order(page) == "(DC)BA"
    sent(page, lambda: press("Enter"))
    assert stored(served) == "(CD)BA"  # a tie has no order

    press("b")
    sent(page, lambda: press("Enter"))
    assert contents(served)[-1]["all_bad"] is True
    assert stored(served) == "(ABCD)"

    press("f")
    page.keyboard.type("two are the same b")  # in a text field, letters are not shortcuts
    press("Enter")  # nor is Enter
    page.wait_for_timeout(200)
    press("Shift+Tab")
    assert not page.locator("#all_bad").is_checked()
    assert len(contents(served)) == 2
    sent(page, lambda: press("s"))
    assert contents(served)[-1]["kind"] == "skipped"
    assert contents(served)[-1]["flag"] == "two are the same b"

    sent(page, lambda: press("p"))  # back to the skipped item, and to the one before
    sent(page, lambda: press("p"))
    assert page.locator("#all_bad").is_checked()
    press("b")
    assert order(page) == "abcd"
    for key in ["Space", "Space", "4", "3"]:
        press(key)
    assert order(page) == "ABDC"
    sent(page, lambda: press("Enter"))
    assert stored(served) == "ABDC"
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
    page = visit(served, **PHONE)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    touch = page.context.new_cdp_session(page)

    def finger(kind: str, x: float, y: float) -> None:
        points = [] if kind == "touchEnd" else [{"x": x, "y": y}]
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    box = page.locator(".answer[data-letter=A] .grip").bounding_box()
    bar = page.locator(".send").bounding_box()["y"]
    x, y = box["x"] + 20, box["y"] + box["height"] / 2
    finger("touchStart", x, y)
    for part in range(1, 13):  # far below the bar: the page scrolls, and the card stays above the bar
        finger("touchMove", x, y + (bar + 60 - y) * part / 12)
    for _ in range(40):
        page.wait_for_timeout(25)
        finger("touchMove", x, bar + 60)
    assert order(page) == "bcdA"
    assert status(page) == "Answer A: place 4 of 4. 3 without a place."
    dragged = page.locator(".dragged").bounding_box()
    assert dragged["y"] + dragged["height"] <= page.locator(".send").bounding_box()["y"] + 1
    finger("touchEnd", 0, 0)
    for letter in "CB":
        page.locator(f".answer[data-letter={letter}] .grip").tap()
    assert order(page) == "CBdA"
    page.get_by_role("button", name="Answer D: tie with the answer above").tap()
    page.get_by_role("button", name="Answer A up").tap()
    assert order(page) == "C(BAD)"
    page.locator(".check", has_text="Flag").tap()
    page.get_by_text("Leave a note").tap()
    page.get_by_label("Note").fill("hm")
    sent(page, page.get_by_role("button", name="Send").tap)
    assert stored(served) == "C(ABD)"
    assert (contents(served)[0]["flag"], contents(served)[0]["note"]) == ("", "hm")
    for target in page.locator("button:visible, summary:visible, .bar a:visible, .check:visible").all():
        box = target.bounding_box()
        assert min(box["width"], box["height"]) >= 43.9, target.inner_text()


def test_a_phone_shows_what_is_needed(site: Make, visit: Callable[..., Any]) -> None:
    long = Source([{"role": "user", "content": "A long question. " * 300}], [f"{i} words " * 40 for i in range(4)])
    page = visit(site([long]), **PHONE)
    assert page.get_by_role("button", name="Answer A: no place yet").is_visible()
    assert page.locator(".answer").first.bounding_box()["y"] < 700  # on the first screen
    for control in ("#skip", "#flag", "#all_bad"):
        box = page.locator(control).bounding_box()
        assert box["y"] + box["height"] <= 844, control
    for words in ("Keys", "Enter", "Click"):
        assert page.get_by_text(words, exact=False).filter(visible=True).count() == 0, words
    assert not page.locator("#peek").is_visible()
    page.locator(".answer[data-letter=D]").scroll_into_view_if_needed()
    page.locator("#peek").tap()
    prompt = page.locator("#prompt").bounding_box()
    assert 40 <= prompt["y"] < 60
    assert prompt["height"] > 300
    page.locator("#peek").tap()
    assert page.locator("#prompt").bounding_box()["y"] < 0


def test_going_back_and_changing_a_ranking(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    place_all(page, "BACD")
    sent(page, page.get_by_role("button", name="Send").click)
    sent(page, page.get_by_role("link", name="Previous").click)
    assert order(page) == "BACD"
    page.get_by_role("button", name="Answer D up").click()
    sent(page, page.get_by_role("button", name="Save the change").click)
    assert page.get_by_text("Change saved.").first.is_visible()
    assert stored(served) == "BADC"
    assert [row["task"] for row in contents(served)] == [1, 1]
    sent(page, page.get_by_role("link", name="My rankings").click)
    sent(page, page.get_by_role("link", name="Question 0?").click)
    assert order(page) == "BADC"


def test_comparing_two_answers_by_keyboard_and_mouse(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(i, k=2) for i in range(3)])
    page = visit(served)
    page.keyboard.press("Enter")
    assert status(page) == "Choose first which answer is better."
    page.keyboard.press("ArrowRight")
    sent(page, lambda: page.keyboard.press("Enter"))
    assert stored(served) == "BA"
    page.keyboard.press("0")
    sent(page, lambda: page.keyboard.press("Enter"))
    assert stored(served) == "(AB)"
    page.get_by_role("radio", name="A is better").check(force=True)
    sent(page, page.get_by_role("button", name="Send").click)
    assert stored(served) == "AB"


def test_ranking_without_javascript(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served, java_script_enabled=False)
    for letter, rank in zip("ABCD", "2122", strict=True):
        page.get_by_label(f"Rank of answer {letter}").fill(rank)
    sent(page, page.get_by_role("button", name="Send").click)
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
    place_all(page, "BACD")
    with page.expect_navigation(timeout=15_000):
        page.get_by_role("button", name="Send").click()
        page.get_by_text("Not saved yet").wait_for()
    assert lost == [200, 200]
    assert len(contents(served)) == 1
    assert stored(served) == "BACD"
