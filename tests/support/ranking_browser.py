"""What tests of the ranking page read from a browser and do in it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ranking_site import Site, contents


def order(page: Any) -> str:
    """The letters from top to bottom: tied ones in brackets, those without a place in lower case: "B(AC)d"."""
    groups: list[tuple[str, str]] = []
    for card in page.locator(".answer").all():
        letter, place = card.get_attribute("data-letter"), card.locator(".place").inner_text()
        if not place:
            groups.append(("", letter.lower()))
        elif groups and groups[-1][0] == place:
            groups[-1] = (place, groups[-1][1] + letter)
        else:
            groups.append((place, letter))
    return "".join(group if len(group) == 1 else f"({group})" for _, group in groups)


def status(page: Any) -> str:
    return str(page.get_by_role("status").inner_text())


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


def place_all(page: Any, letters: str = "ABCD") -> None:
    """Clicks the answers' circles from best to worst."""
    for letter in letters:
        page.locator(f".answer[data-letter={letter}] .grip").click()


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
