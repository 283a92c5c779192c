"""Files by URL: downloaded once, checked by hash, kept in a cache folder."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urldefrag, urlsplit
from urllib.request import Request, urlopen

from pipeline import network
from pipeline.engine.fingerprint import file_sha256
from pipeline.errors import DataError

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte


def is_url(path: str) -> bool:
    return path.startswith(("https://", "http://"))


def cache_dir() -> Path:
    """Where fetched files are kept: `$TUTELAGE_CACHE`, or `~/.cache/tutelage`."""
    return Path(os.environ.get("TUTELAGE_CACHE") or "~/.cache/tutelage").expanduser()


def fetch(address: str, say: Callable[[str], None] | None = None) -> Path:
    """The local copy of `https://...[#sha256=HEX]`, fetched if it is not in the cache.

    A file appears in the cache whole or not at all. With a hash, the copy is checked on every use; without one,
    the first download is used forever. Plain `http://` needs a hash.
    """
    url, fragment = urldefrag(address)
    expected = _expected_hash(url, fragment)
    if expected is None and url.startswith("http://"):
        raise DataError(
            f"{url} is fetched over plain http, where anybody can change it",
            hint="use https, or add #sha256=... to check it",
        )
    key = expected or hashlib.sha256(url.encode()).hexdigest()
    path = cache_dir() / key[:16] / (Path(unquote(urlsplit(url).path)).name or "file")
    if path.is_file() and (expected is None or file_sha256(path) == expected):
        return path
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=path.parent, delete=False) as file:
            partial = Path(file.name)
        try:
            sha256 = _download(url, partial, say)
            if expected not in (None, sha256):
                raise DataError(
                    f"the file at {url} is not the one expected: its SHA-256 is {sha256}, not {expected}",
                    hint="if the new file is the one you want, put its SHA-256 into the recipe",
                )
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        if isinstance(error, HTTPError):
            error.close()  # the error is also the response, and holds the connection
        raise DataError(
            f"{url} cannot be fetched: {network.reason(error)}",
            hint=f"connect to the network once, put the file at {path}, or give the path of a local copy",
        ) from error
    return path


def _expected_hash(url: str, fragment: str) -> str | None:
    if not fragment:
        return None
    match = re.fullmatch(r"sha256=([0-9a-fA-F]{64})", fragment)
    if match is None:
        raise DataError(
            f"#{fragment} after {url} is not a hash", hint="write #sha256= and the 64 hexadecimal digits"
        )
    return match[1].lower()


def _open(request: Request) -> Any:
    """The response, with a second attempt when the server could not be reached."""
    try:
        return urlopen(request, timeout=TIMEOUT)
    except HTTPError:
        raise
    except URLError:
        time.sleep(network.PAUSE)
        return urlopen(request, timeout=TIMEOUT)


def _download(url: str, path: Path, say: Callable[[str], None] | None) -> str:
    """Downloads `url` to `path`; returns its SHA-256."""
    digest, size = hashlib.sha256(), 0
    request = Request(url, headers={"User-Agent": "tutelage"})
    with _open(request) as response, path.open("wb") as file:
        length = response.headers.get("Content-Length")
        if say:
            say(f"fetching {url}" + (f" ({int(length) / 1e6:.1f} MB)" if length else ""))
        while chunk := response.read(CHUNK):
            digest.update(chunk)
            size += len(chunk)
            file.write(chunk)
    if length is not None and size != int(length):
        raise http.client.IncompleteRead(b"", int(length) - size)
    return digest.hexdigest()
