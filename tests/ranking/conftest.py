"""A campaign with a real HTTP server, and a real browser."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from ranking_site import Site

from pipeline.config.rank import AppConfig
from ranking import serve, web
from ranking.app import Pages
from ranking.campaign import Campaign, Source
from ranking.security import Links
from ranking.store import Store


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    """`site(sources, annotators=[...], overlap=2)`: serves a campaign until the test ends."""
    with contextlib.ExitStack() as stack:

        def make(sources: Sequence[Source], name: str = "rankings", **values: Any) -> Site:
            config = AppConfig(**{"annotators": ["ana", "ben"], "port": 0, "repeats": 0.0, **values})
            campaign = Campaign.of("rank", sources, config)
            store = Store(tmp_path / f"{name}.sqlite")
            stack.callback(store.close)
            store.open(campaign)
            links = Links(store.path.with_suffix(".key"))
            listener = stack.enter_context(serve.listening(config))
            address = web.address_of(config.host, listener.getsockname()[1])
            served = Site(store, campaign, links, address)
            pages = Pages(store, campaign, links, served.finished.set, address)
            stack.enter_context(web.running(pages.app([]), listener))
            return served

        yield make


@pytest.fixture
def visit(browser: Any) -> Iterator[Callable[..., Any]]:
    """Opens an annotator's page, or the one at `path`. Any error, console error or dialog fails the test."""
    complaints: list[str] = []
    contexts = []

    def open_(served: Site, name: str = "ana", *, path: str | None = None, **options: Any) -> Any:
        context = browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options})
        context.set_default_timeout(5000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: complaints.append(message.text) if _grave(message) else None)
        page.on("dialog", lambda dialog: (complaints.append(dialog.message), dialog.dismiss()))
        page.goto(served.address + (path or served.path(name)))
        return page

    yield open_
    for context in contexts:
        context.close()
    assert complaints == []


def _grave(message: Any) -> bool:
    return message.type == "error" and "502" not in message.text  # a test causes 502 on purpose
