"""The admin's page in a browser."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from ranking_site import Site, ask

pytestmark = pytest.mark.slow
Make = Callable[..., Site]


def rank_one(served: Site, name: str, ranks: list[int], **fields: str) -> None:
    client = served.client(name)
    item = client.current()
    assert item is not None
    task = served.store.task(item)
    assert task is not None
    assert client.rank(item, [ranks[completion] for completion in task.shown], **fields).status == 200


def test_the_numbers_are_kept_current(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0), ask(1)])
    page = visit(served, path=f"/admin/{served.links.token('admin')}/")
    loads: list[str] = []
    page.on("load", lambda: loads.append(page.url))
    main = page.locator("main")
    assert page.title() == "rank · Admin · Rankings"
    assert "Agreement: nothing to compare yet." in main.inner_text()
    assert "Nothing to compare yet." in page.locator("#live-disputed").inner_text()
    rank_one(served, "ana", [1, 2, 3, 4])
    page.locator(".big strong", has_text="1").wait_for()
    assert "1 of 4 rankings" in main.inner_text()
    rank_one(served, "ben", [2, 1, 3, 4], note="hm")
    page.get_by_text("Question 0? 83").wait_for()
    assert "of 6 pairs" in page.locator("#live-progress").inner_text()
    page.locator("#live-disputed summary").click()  # it is open and has the focus
    rank_one(served, "ana", [1, 2, 3, 4], note="another")
    page.get_by_text("another").wait_for()
    rank_one(served, "ben", [2, 1, 3, 4])
    page.get_by_text("All rankings are in.").wait_for()
    assert page.locator("#live-disputed details").first.evaluate("e => e.open")
    assert page.evaluate("document.activeElement.closest('details') !== null")
    assert loads == []


def test_links_are_copied(site: Make, visit: Callable[..., Any]) -> None:
    served = site([ask(0)])
    path = f"/admin/{served.links.token('admin')}/"
    page = visit(
        served, path=path, viewport={"width": 390, "height": 844}, permissions=["clipboard-read", "clipboard-write"]
    )
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    assert page.get_by_role("heading", name="rank").is_visible()
    page.get_by_role("button", name="Copy ben’s link").click()
    page.get_by_text("Copied.").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == served.address + served.path("ben")
