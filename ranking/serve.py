"""Serves a campaign until it is complete, the admin ends it, or the command is stopped.

A complete campaign is served a while longer, so that annotators can correct their last rankings.
"""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pipeline.config.rank import AppConfig
from pipeline.engine.lock import locked
from pipeline.errors import StageError
from pipeline.wording import counted
from ranking import assignment, web, workload
from ranking.app import Pages
from ranking.campaign import Campaign
from ranking.security import Links
from ranking.store import Store
from ranking.terminal import Keyboard, Lines

LINGER = 4.0
"""Seconds that the page stays up at the very end, so that its last visitors see that all is done."""
POLL = 0.5


def collect_rankings(
    database: Path,
    campaign: Campaign,
    config: AppConfig,
    *,
    say: Callable[[str], None],
) -> Store:
    """Serves the page until the campaign is complete or the admin ends it; returns the store, open.

    A complete campaign is served until no annotator has used the page for `config.linger_minutes`, unless the admin
    ends it, or the operator presses Enter or Ctrl-C. One that was complete before is not served again.

    Stopping or killing the process loses no ranking, and calling this again continues with the same links.

    Raises:
        StageError: there is nothing to rank, the port is taken, or another process serves this database.
        KeyboardInterrupt: passed on, once the server has stopped.
    """
    if not campaign.items:
        raise StageError(
            "there is nothing to rank: no prompt has two different answers",
            where=str(database),
            hint="collect more answers per prompt, or raise the temperature",
        )
    store = Store(database)
    try:
        with locked(database.parent, wait=False, say=say, name=f"{database.name}.lock", what="these rankings"):
            store.open(campaign)
            workload.announce(store, campaign, say)
            if not assignment.progress(store, campaign).complete:
                _serve(store, campaign, config, say)
    except BaseException:
        store.close()
        raise
    return store


def _serve(store: Store, campaign: Campaign, config: AppConfig, say: Callable[[str], None]) -> None:
    links = Links(store.path.with_suffix(".key"))
    ended = threading.Event()
    with listening(config) as listener:
        address = config.url.rstrip("/") if config.url else web.address_of(config.host, listener.getsockname()[1])
        hosts = [name for name in (urlsplit(address).hostname, config.host) if name]
        pages = Pages(store, campaign, links, ended.set, address)
        with web.running(pages.app(hosts), listener):
            say(
                f"{counted(len(campaign.items), 'item')}, {counted(campaign.overlap, 'ranking')} each. "
                "One private link per annotator:"
            )
            for name in campaign.annotators:
                say(f"  {name}: {address}/r/{links.token('annotator', name)}/")
            say(f"  admin (progress, agreement, finish): {address}/admin/{links.token('admin')}/")
            say(f"Ctrl-C stops; the same command continues. Rankings are stored in {store.path}")
            _watch(store, campaign, ended, say)
            while config.linger_minutes and not ended.is_set():
                if _await_corrections(pages, ended, config.linger_minutes, say):
                    break
                _watch(store, campaign, ended, say)
            with contextlib.suppress(KeyboardInterrupt):  # the campaign has ended: do not interrupt the run
                time.sleep(LINGER)


def _watch(store: Store, campaign: Campaign, ended: threading.Event, say: Callable[[str], None]) -> None:
    """Waits until the campaign is complete or ended."""
    seen = assignment.progress(store, campaign)
    if seen.done:
        say(f"{seen.done} of {counted(seen.wanted, 'ranking')} are in.")
    lines = Lines(seen.done, seen.wanted, say)
    while not (seen.complete or ended.is_set()):
        ended.wait(POLL)
        seen = assignment.progress(store, campaign)
        lines.update(seen.done, seen.wanted)


def _await_corrections(pages: Pages, ended: threading.Event, minutes: float, say: Callable[[str], None]) -> bool:
    """Waits until the annotators have left, the admin ends the campaign, or somebody presses Enter or Ctrl-C.

    Returns False at once when a correction makes the campaign incomplete: a ranking that is skipped after all.
    """
    with contextlib.suppress(KeyboardInterrupt):  # also one that comes while the line is written
        say(
            "All rankings are in. The page stays open for corrections until nobody has used it for "
            f"{minutes:g} min. Press Enter or Ctrl-C to continue now."
        )
        keyboard = Keyboard()
        while time.monotonic() - pages.last_visit < 60 * minutes and not keyboard.enter():
            if ended.wait(POLL):
                break
            if not assignment.progress(pages.store, pages.campaign).complete:
                return False
    return True


def listening(config: AppConfig) -> contextlib.AbstractContextManager[socket.socket]:
    """The socket of a campaign's page. Raises `StageError` when it cannot be bound."""
    return web.listening(
        config.host,
        config.port,
        host_hint="set rank.app.host to an address of this machine, such as 127.0.0.1 (or 0.0.0.0: all of them)",
        port_hint="set rank.app.port to another port, or to 0 for any free one (judge and annotate: --port)",
    )
