"""Serves a campaign until it is complete, the admin ends it, or the command is stopped."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import uvicorn
from starlette.applications import Starlette

from pipeline.config.rank import AppConfig
from pipeline.engine.lock import locked
from pipeline.engine.stage import Progress
from pipeline.errors import StageError
from ranking import assignment, workload
from ranking.app import Pages
from ranking.campaign import Campaign
from ranking.security import Links
from ranking.store import Store

LINGER = 4.0
"""Seconds that the page stays up at the end, so that the last annotator sees that all is done."""
POLL = 0.5


def collect_rankings(
    database: Path,
    campaign: Campaign,
    config: AppConfig,
    *,
    say: Callable[[str], None],
    progress: Callable[..., AbstractContextManager[Progress]],
) -> Store:
    """Serves the page until the campaign is complete or the admin ends it; returns the store, open.

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
                _serve(store, campaign, config, say, progress)
    except BaseException:
        store.close()
        raise
    return store


def _serve(
    store: Store,
    campaign: Campaign,
    config: AppConfig,
    say: Callable[[str], None],
    progress: Callable[..., AbstractContextManager[Progress]],
) -> None:
    links = Links(store.path.with_suffix(".key"))
    ended = threading.Event()
    with _listening(config) as listener:
        address = config.url.rstrip("/") if config.url else _address(config.host, listener.getsockname()[1])
        hosts = [name for name in (urlsplit(address).hostname, config.host) if name]
        pages = Pages(store, campaign, links, ended.set, address)
        with _running(pages.app(hosts), listener):
            say(f"{len(campaign.items)} items, {campaign.overlap} rankings each. One private link per annotator:")
            for name in campaign.annotators:
                say(f"  {name}: {address}/r/{links.token('annotator', name)}/")
            say(f"  admin (progress, agreement, finish): {address}/admin/{links.token('admin')}/")
            say(f"Ctrl-C stops; the same command continues. Rankings are stored in {store.path}")
            _watch(store, campaign, ended, progress)
            time.sleep(LINGER)


def _watch(
    store: Store,
    campaign: Campaign,
    ended: threading.Event,
    progress: Callable[..., AbstractContextManager[Progress]],
) -> None:
    seen = assignment.progress(store, campaign)
    with progress("rankings", total=seen.wanted, done=seen.done) as bar:
        while not (seen.complete or ended.is_set()):
            ended.wait(POLL)
            now = assignment.progress(store, campaign)
            bar.advance(now.done - seen.done)
            seen = now


@contextlib.contextmanager
def _listening(config: AppConfig) -> Iterator[socket.socket]:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((config.host, config.port))
        except OSError as error:
            wrong_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            raise StageError(
                f"the page cannot be served at {config.host}, port {config.port}: {error.strerror or error}",
                hint="set rank.app.host to an address of this machine, such as 127.0.0.1 (or 0.0.0.0: all of them)"
                if wrong_host
                else "set rank.app.port to another port, or to 0 for any free one (judge and annotate: --port)",
            ) from error
        yield listener


def _address(host: str, port: int) -> str:
    """The URL for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


@contextlib.contextmanager
def _running(app: Starlette, listener: socket.socket) -> Iterator[None]:
    """Runs the server in another thread, so that signals reach the caller's."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    server = uvicorn.Server(
        uvicorn.Config(
            cast(Any, app),  # starlette and uvicorn type ASGI differently
            log_config=None,
            access_log=False,  # paths hold tokens
            server_header=False,
            proxy_headers=False,
            lifespan="off",
            ws="none",
            http="h11",
            loop="asyncio",
            timeout_graceful_shutdown=3,
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="ranking page", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise StageError("the server of the page did not start", hint="set another host or port")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()
