"""Runs the server until it is interrupted."""

from __future__ import annotations

import ipaddress
import os
import threading
from collections.abc import Callable

from pipeline.engine.runner import terminate_as_interrupt
from pipeline.errors import Interrupted, RecipeError
from pipeline.wording import counted, listing
from ranking import web
from stages.serve.access import KEY
from stages.serve.app import application
from stages.serve.engine import Engine
from stages.serve.models import Served

GRACE = 10
"""Seconds that requests have to finish when the server is stopped."""


def serve(
    served: Served,
    *,
    host: str,
    port: int,
    batch: int,
    queue: int,
    say: Callable[[str], None],
) -> None:
    """Serves until Ctrl-C or SIGTERM, then lets requests finish for `GRACE` seconds.

    Args:
        batch, queue: as of `Engine`.
        say: called with messages for the operator.

    Raises:
        StageError: the address cannot be used.
        RecipeError: the API key in the environment is unusable.
        Interrupted: when the server has stopped.
    """
    key = _key()
    engine = Engine(served.models, served.codec.pad_id, batch=batch, queue=queue)
    with (
        web.listening(
            host,
            port,
            host_hint="set --host to an address of this machine, such as 127.0.0.1 (or 0.0.0.0: all of them)",
            port_hint="set --port to another port, or to 0 for any free one",
        ) as listener,
        terminate_as_interrupt(),
    ):
        address = web.address_of(host, listener.getsockname()[1])
        engine.start()
        try:
            with web.running(application(served, engine, key=key, hosts=[host]), listener, grace=GRACE):
                _announce(served, address, key, host, say)
                try:
                    _wait()
                except KeyboardInterrupt:
                    if left := engine.running + engine.waiting:
                        say(f"stopping: {counted(left, 'answer')} may finish within {GRACE} s")
        except KeyboardInterrupt:  # a second one, while answers finish
            pass
        finally:
            engine.stop()
    raise Interrupted("the server was stopped")


def _wait() -> None:
    """Returns never; a signal raises `KeyboardInterrupt`."""
    threading.Event().wait()


def _key() -> str | None:
    key = os.environ.get(KEY)
    if key is None:
        return None
    if key.split() != [key] or not key.isascii() or not key.isprintable():
        raise RecipeError(
            f"the API key in {KEY} is empty or has spaces or unusual characters",
            hint=f"set {KEY} to letters and digits, or unset it",
        )
    return key


def _announce(served: Served, address: str, key: str | None, host: str, say: Callable[[str], None]) -> None:
    limit = "" if served.limit is None else f", up to {served.limit:,} tokens"
    say(f"{served.title}: {listing(served.names)}{limit}")
    for note in served.reward.notes if served.reward else ():
        say(f"warning: {note}")
    say(f"chat page: {address}/")
    say(f"OpenAI base URL: {address}/v1" + (f" (API key: {KEY})" if key else ""))
    if key is None and not _is_local(host):
        say(f"warning: whoever reaches {address} can use the models; set {KEY} to require a key")
    say("Ctrl-C stops")


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
