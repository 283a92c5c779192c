"""Listens at an address, and runs an app there in another thread. For the ranking page and other servers."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any, cast

import uvicorn
from starlette.applications import Starlette

from pipeline.errors import StageError


@contextlib.contextmanager
def listening(host: str, port: int, *, host_hint: str, port_hint: str) -> Iterator[socket.socket]:
    """A socket that is bound to an address. Raises `StageError` when it cannot be.

    Args:
        port: 0 takes a free one.
        host_hint, port_hint: what to do about a wrong host, and about a port that is taken.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            wrong_host = isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL
            raise StageError(
                f"the page cannot be served at {host}, port {port}: {error.strerror or error}",
                hint=host_hint if wrong_host else port_hint,
            ) from error
        yield listener


def address_of(host: str, port: int) -> str:
    """The URL for a browser on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{host}:{port}"


@contextlib.contextmanager
def running(app: Starlette, listener: socket.socket, *, grace: float = 3) -> Iterator[None]:
    """Runs the server in another thread, so that signals reach the caller's.

    Args:
        grace: seconds that requests have to finish when the context ends.
    """
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
            timeout_graceful_shutdown=cast(Any, grace),
        )
    )
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="web server", daemon=True)
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise StageError("the server did not start", hint="set another host or port")
            time.sleep(0.01)
        yield
    finally:
        server.should_exit = True
        thread.join()
