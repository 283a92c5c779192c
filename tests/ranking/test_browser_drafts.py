"""What keeps an annotator's work, and keeps out orders that nobody gave: drafts, places, Enter, undo."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ranking_browser import drag, order, place_all, sent, status, stored
from ranking_site import Site, ask, contents

pytestmark = pytest.mark.slow
Make = Callable[..., Site]


def drafts(page: Any) -> list[str]:
    keys = page.evaluate("Object.keys(localStorage)")
    return [key for key in keys if key.startswith("draft/")]


def test_a_draft_survives_a_reload(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)], ratings=True)
    page = visit(served)
    assert not page.locator("#restored").is_visible()
    place_all(page, "CA")
    page.get_by_role("button", name="Answer A: tie with the answer above").click()
    page.get_by_role("group", name="Rating of answer B").get_by_role("radio", name="3").check(force=True)
    page.get_by_role("group", name="What is wrong with answer D").get_by_label("Invents facts").check(force=True)
    page.get_by_text("Leave a note").click()
    page.get_by_label("Note").fill("a note")
    page.locator("#flag").check()
    page.get_by_label("What is wrong with this item").fill("odd")
    page.reload()
    assert page.get_by_text("Restored what you had entered.").is_visible()
    assert order(page) == "(CA)bd"
    place_all(page, "BD")
    page.locator("#flag").uncheck()
    page.locator("#flag").check()
    sent(page, page.get_by_role("button", name="Send").click)
    [row] = contents(served)
    task = served.store.task(row["task"])
    assert task is not None
    assert stored(served) == "(AC)BD"
    assert (row["flag"], row["note"]) == ("odd", "a note")
    assert row["ratings"][task.shown[1]] == 3
    assert row["labels"][task.shown[3]] == ["Invents facts"]
    assert drafts(page) == []
    sent(page, page.get_by_role("link", name="Previous").click)
    assert not page.locator("#restored").is_visible()
    assert order(page) == "(AC)BD"


def test_a_draft_can_be_dropped_and_belongs_to_one_annotator(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    place_all(page, "C")
    page.goto(served.address + served.path("ben"))
    assert order(page) == "abcd"
    page.goto(served.address + served.path("ana"))
    assert order(page) == "Cabd"
    page.get_by_role("button", name="Start over").click()
    page.locator("#restored").wait_for(state="hidden")
    assert order(page) == "abcd"
    assert drafts(page) == []
    page.reload()
    assert not page.locator("#restored").is_visible()


def test_the_draft_of_a_pair(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0, k=2), ask(1, k=2)])
    page = visit(served)
    page.keyboard.press("2")
    page.reload()
    assert page.get_by_text("Restored").is_visible()
    sent(page, lambda: page.keyboard.press("Enter"))
    assert stored(served) == "BA"


@pytest.mark.parametrize(
    "broken", ["throw new DOMException('off')", "return { getItem: () => null, setItem() { throw 1 } }"]
)
def test_the_page_works_without_storage(site: Make, visit: Callable[..., Any], broken: str) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    for area in ("localStorage", "sessionStorage"):
        page.add_init_script(f"Object.defineProperty(window, '{area}', {{ get() {{ {broken} }} }})")
    page.reload()
    place_all(page, "DCBA")
    sent(page, lambda: page.keyboard.press("Enter"))
    assert stored(served) == "DCBA"
    assert order(page) == "abcd"


def test_an_order_that_nobody_gave_is_not_sent(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    assert status(page) == "Answers A, B, C and D have no place yet."
    drag(page, "D", onto="A")  # one answer with a place does not place the others
    page.get_by_role("button", name="Send").click(force=True)
    assert status(page) == "Answers A, B and C have no place yet."
    assert page.get_by_role("button", name="Send").get_attribute("aria-disabled") == "true"
    page.wait_for_timeout(1100)
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert contents(served) == []
    page.get_by_role("button", name="The rest is in this order").click()
    assert order(page) == "DABC"
    assert page.get_by_role("button", name="Send").get_attribute("aria-disabled") == "false"
    sent(page, page.get_by_role("button", name="Send").click)
    assert stored(served) == "DABC"


def test_two_enters_do_not_send_two_items(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(i, k=2) for i in range(3)])
    page = visit(served)
    page.keyboard.press("1")
    sent(page, lambda: page.keyboard.press("Enter"))
    sent(page, lambda: page.keyboard.press("p"))  # an earlier item, complete as it is
    page.evaluate("sessionStorage.setItem('enter', String(Date.now()))")
    page.keyboard.press("Enter")
    page.wait_for_timeout(300)
    assert len(contents(served)) == 1
    page.keyboard.press("2")  # after a change, Enter is meant
    sent(page, lambda: page.keyboard.press("Enter"))
    assert len(contents(served)) == 2


def test_a_flag_can_be_sent_without_an_order(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    page.keyboard.press("f")
    page.keyboard.type("empty")
    sent(page, page.get_by_role("button", name="Flag and skip").click)
    [row] = contents(served)
    assert (row["kind"], row["flag"]) == ("skipped", "empty")
    assert page.get_by_text("Skipped.").first.is_visible()
    assert page.get_by_text("0 of 1 of yours").is_visible()  # a skip is not a ranking


def test_undo(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    undo = page.get_by_role("button", name="Undo")
    assert undo.is_disabled()
    place_all(page, "BA")
    drag(page, "D", onto="B")
    assert order(page) == "DBAc"
    page.keyboard.press("Control+z")
    assert order(page) == "BAcd"
    page.keyboard.press("u")
    assert order(page) == "Bacd"
    page.keyboard.press("b")
    undo.click()
    assert not page.locator("#all_bad").is_checked()
    undo.click()
    assert order(page) == "abcd"
    assert undo.is_disabled()
    place_all(page)
    sent(page, page.get_by_role("button", name="Send").click)
    assert status(page) == "Saved."
    sent(page, lambda: page.keyboard.press("u"))  # nothing to undo here: back to what was sent
    assert order(page) == "ABCD"
    sent(page, lambda: page.get_by_role("link", name="Next new item").click())
    assert not page.locator("#saved").is_visible()


def test_the_last_page_thanks_and_allows_corrections(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served)
    for _ in range(2):
        place_all(page)
        sent(page, page.get_by_role("button", name="Send").click)
    assert page.get_by_role("heading", name="Thank you, ana.").is_visible()
    assert "You ranked 2 items." in page.inner_text("main")
    assert "The others still have 2 rankings to do" in page.inner_text("main")
    sent(page, page.get_by_role("link", name="Undo").click)
    assert order(page) == "ABCD"
    page.keyboard.press("ArrowDown")
    sent(page, lambda: page.keyboard.press("Enter"))
    assert "Change saved." in page.inner_text("main")
    assert stored(served) == "BACD"
