"""The chat page in a browser, by keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from served import Api, serving

from data.schema import read_rankings_file
from stages.serve.models import Served

pytestmark = pytest.mark.slow


@pytest.fixture
def page(browser: Any, api: Api) -> Iterator[Any]:
    """The page. Errors in it fail the test."""
    context = browser.new_context(viewport={"width": 1100, "height": 900})
    context.set_default_timeout(10_000)
    opened = context.new_page()
    complaints: list[str] = []
    opened.on("pageerror", lambda error: complaints.append(str(error)))
    # A refused request is reported here too; a test causes some on purpose.
    opened.on("console", lambda m: complaints.append(m.text) if m.type == "error" and "400" not in m.text else None)
    opened.goto(api.address)
    opened.locator("#models input").nth(2).wait_for(state="attached")
    opened.locator("#length").fill("12")
    yield opened
    context.close()
    assert complaints == []


def ask(page: Any, text: str) -> None:
    page.locator("#message").focus()
    page.keyboard.type(text)
    page.keyboard.press("Enter")


def test_a_blind_vote_by_keyboard(page: Any, api: Api) -> None:
    file = api.served.folder / "chat-rankings.jsonl"  # type: ignore[operator]
    file.unlink(missing_ok=True)
    ask(page, "what is a fox")
    page.locator(".vote").wait_for()
    assert page.locator(".column h3").all_text_contents() == ["Answer A", "Answer B", "Answer C"]
    assert page.locator("#send").is_disabled(), "the conversation waits for the vote"
    words = page.locator(".column .words").all_text_contents()
    # The first radio button has the focus. A is third, B first, C second.
    for rank in (3, 1, 2):
        page.keyboard.press("Space")
        for _ in range(rank - 1):
            page.keyboard.press("ArrowRight")
        page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    page.locator("#status", has_text="Stored in").wait_for()
    [ranking] = read_rankings_file(file)
    assert ranking.ranks == [3, 1, 2]
    assert ranking.completions == words
    assert sorted(ranking.models or ()) == ["base", "ppo", "sft"]
    assert page.locator(".column h3").all_text_contents() == ranking.models, "now the names are shown"
    # The conversation goes on with the best answer.
    ask(page, "and")
    page.locator(".vote").wait_for()
    page.get_by_role("button", name="Skip").click()
    assert page.evaluate("document.activeElement.id") == "message"
    assert len(list(read_rankings_file(file))) == 1


def test_one_model_needs_no_vote_and_old_turns_are_left_out_visibly(page: Any) -> None:
    for name in ("base", "sft"):
        page.locator(f"#models input[value={name}]").uncheck()
    for place in range(4):
        ask(page, "x" * 25)
        page.locator(".column").nth(place).wait_for()
        page.locator("#send:enabled").wait_for()
    assert page.locator(".vote").count() == 0
    assert "no longer fit into the context" in page.locator(".trimmed").first.inner_text()
    page.get_by_role("button", name="New conversation").click()
    assert page.locator(".column").count() == 0


def test_errors_are_shown(page: Any) -> None:
    page.locator("#length").fill("500")
    ask(page, "fox")
    page.locator("#status", has_text="maximum context length").wait_for(timeout=5000)
    assert page.locator("#send").is_enabled()


def test_a_key_is_asked_for(browser: Any, served: Served) -> None:
    with serving(served, key="s3cret") as api:
        page = browser.new_page()
        page.set_default_timeout(10_000)
        page.goto(api.address)
        page.locator("#key").fill("s3cret")
        page.locator("#key").press("Enter")
        page.locator("#models input").nth(2).wait_for(state="attached")
        assert not page.locator("#key").is_visible()
        page.close()
