"""Reads from the Hugging Face Hub where there may be no network.

The libraries retry a request five times over 24 s, and make several requests. Here the Hub is asked once or twice
whether it can be reached at all. If not, they read only their cache.
"""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.errors import StageError

TIMEOUT = 4.0
"""Seconds to wait for the Hub's answer."""
PAUSE = 1.0
"""Seconds before the second attempt."""
REMEMBERED = 30.0
"""Seconds for which the Hub is not asked again."""


class NoNetwork(StageError):
    """Something of the Hub is needed, is not in the cache, and the Hub cannot be reached."""


@dataclass(frozen=True)
class Answer:
    """Whether the Hub could be reached, and until when that is taken to hold."""

    reachable: bool = False
    until: float = 0.0


_asked = Answer()


def hub_address() -> str:
    """Address of the Hub: huggingface.co, or `HF_ENDPOINT`."""
    return (os.environ.get("HF_ENDPOINT") or "https://huggingface.co").rstrip("/")


def hub_is_reachable() -> bool:
    """Whether the Hub answers anything at all, through the proxies that its client uses."""
    from httpx2 import TransportError
    from huggingface_hub import get_session, is_offline_mode

    if is_offline_mode():
        return False
    global _asked
    if time.monotonic() < _asked.until:
        return _asked.reachable
    reachable = False
    for pause in (PAUSE, 0.0):
        try:
            get_session().head(hub_address(), timeout=TIMEOUT)
        except TransportError:
            time.sleep(pause)
        else:
            reachable = True
            break
    _asked = Answer(reachable, time.monotonic() + REMEMBERED)
    return reachable


@contextmanager
def hub(needed: str, *, where: str = "", offline: str) -> Iterator[None]:
    """A block that reads from the Hub. Without a network it reads only the Hub's cache.

    Args:
        needed: what it reads, for the message.
        where: where the recipe names it.
        offline: how to work without a network.

    Raises `NoNetwork` when there is no network and the cache does not hold what is read.
    """
    if hub_is_reachable():
        yield
        return
    try:
        with _offline():
            yield
    except Exception as error:
        if not _is_missing(error):
            raise
        chosen = os.environ.get("HF_HUB_OFFLINE") or os.environ.get("TRANSFORMERS_OFFLINE")
        absent = "HF_HUB_OFFLINE is set" if chosen else f"{hub_address()} cannot be reached"
        raise NoNetwork(
            f"no network: {needed} is not in the Hub's cache on this machine, and {absent}",
            where=where,
            hint=f"{'unset HF_HUB_OFFLINE' if chosen else 'connect to the network'} and run again, or {offline}",
        ) from error


def _is_missing(error: BaseException | None) -> bool:
    """Whether an error comes from a file that is not in the cache. Each library wraps huggingface_hub's error."""
    from huggingface_hub.errors import LocalEntryNotFoundError, OfflineModeIsEnabled

    while error is not None:
        if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled | ConnectionError):
            return True
        error = error.__cause__ or error.__context__
    return False


def local_model(name: str) -> str:
    """How to use a Hub model without a network."""
    return f"fetch it elsewhere with `hf download {name} --local-dir FOLDER` and name that folder in the recipe"


@contextmanager
def _offline() -> Iterator[None]:
    """The libraries read `HF_HUB_OFFLINE` when they are imported, and this attribute when they ask the Hub."""
    from huggingface_hub import constants

    modules: list[Any] = [constants, *(sys.modules[name] for name in ("datasets.config",) if name in sys.modules)]
    before = [module.HF_HUB_OFFLINE for module in modules]
    for module in modules:
        module.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        for module, value in zip(modules, before, strict=True):
            module.HF_HUB_OFFLINE = value


def reason(error: BaseException) -> str:
    """Why a connection failed, in a few words."""
    inner = getattr(error, "reason", None)  # urllib's URLError
    cause = inner if isinstance(inner, OSError) else error
    if isinstance(cause, socket.gaierror):
        return "the server's name cannot be resolved: is there a network?"
    if isinstance(cause, TimeoutError):
        return "the server does not answer"
    return getattr(cause, "strerror", None) or str(cause) or type(cause).__name__


def never_connected(error: BaseException) -> bool:
    """Whether no server was reached at all: its name is unknown, or nothing listens there."""
    cause = getattr(error, "reason", error)
    return isinstance(cause, socket.gaierror | ConnectionRefusedError)
