"""Access control: links with a token, the hosts that the page answers to, and the security headers of responses.

The token stays in the link's path and no cookie is set, so only the link itself gives access. Another site cannot
make a browser send it (no cross-site request forgery), two annotators can share a browser, and links opened from a
mail work, where a `SameSite=Strict` cookie set by a redirect would not be sent. Nothing leaks the path: no referrer
is sent, links in answers open without an opener, requests are not logged, and responses are not cached.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.errors import StageError

MAX_BODY = 256 * 1024
"""Bytes of a request."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Links:
    """The tokens of a database: 256 bits each, derived from a key file beside it that only its owner can read.

    They are the same at every start. Deleting the key file invalidates all links; the next start makes new ones.
    """

    def __init__(self, key_file: Path) -> None:
        try:
            with open(os.open(key_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(secrets.token_hex(32))
                file.flush()
                os.fsync(file.fileno())
        except FileExistsError:
            pass
        try:
            self._key = bytes.fromhex(key_file.read_text().strip())
        except ValueError:
            self._key = b""
        if len(self._key) < 32:
            raise StageError(
                "the key of the annotators' links is damaged",
                where=str(key_file),
                hint="delete the file: the next start makes a new key, and new links",
            )

    def token(self, role: str, name: str = "") -> str:
        """URL-safe, 43 characters."""
        digest = hmac.digest(self._key, f"{role}\0{name}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def holder(self, token: str, role: str, names: Iterable[str]) -> str | None:
        """The name that the token belongs to, compared in constant time; None where it is nobody's."""
        holder = None
        for name in names:
            if hmac.compare_digest(self.token(role, name).encode(), token.encode(errors="replace")):
                holder = name
        return holder


class Hosts(TrustedHostMiddleware):
    """Answers requests for numeric addresses, localhost and the given names only.

    With DNS rebinding, an attacker makes a name of theirs point here, and requests from their page ask for that
    name. Numeric addresses are therefore safe.
    """

    def __init__(self, app: ASGIApp, names: Iterable[str]) -> None:
        super().__init__(app, ["localhost", *names], www_redirect=False)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _is_numeric(Headers(scope=scope).get("host", "")):
            await self.app(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


def _is_numeric(host: str) -> bool:
    """Whether a Host header is an IP address, with or without a port."""
    try:
        ipaddress.ip_address(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False
    return True


def is_cross_site(scope: Scope) -> bool:
    """Whether a page of another site sends this POST request. Browsers say where a request comes from; other
    clients send no such header."""
    return scope["method"] == "POST" and Headers(scope=scope).get("sec-fetch-site", "same-origin") != "same-origin"


def with_headers(send: Send, path: str) -> Send:
    """Adds `HEADERS` to the response to a request for `path`."""

    async def guarded(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = MutableHeaders(scope=message)
            for name, value in HEADERS.items():
                headers[name] = value
            if path.startswith("/static/"):
                headers["Cache-Control"] = "no-cache"  # kept, but only used if it is still the same
        await send(message)

    return guarded


class Guard:
    """Refuses forms from other sites, and adds `HEADERS` to every response, refusals too."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refused = PlainTextResponse("Refused: the form is not from this page.\n", 403)
        app = refused if is_cross_site(scope) else self.app
        await app(scope, receive, with_headers(send, scope["path"]))
