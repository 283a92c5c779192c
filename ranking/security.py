"""Who may do what: links with a token, the hosts that the page answers to, and what every response forbids.

The token stays in the link's path and no cookie is set. So nothing but the link itself gives access: another site
cannot make a browser send it along (no cross-site request forgery), two annotators can share a browser, and a link
opened from a mail works, where a `SameSite=Strict` cookie set by a redirect would not be sent. What could leak a
path is closed: no referrer is sent, pages link nowhere, nothing is logged, nothing is cached.
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
    """The tokens of a database: 256 bits each, derived from a key that lies beside it, readable by its owner only.

    They are the same at every start. Deleting the key file makes all links void and the next start gives new ones.
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
                "the key of the annotators' links is damaged", where=str(key_file), hint="delete it: links change"
            )

    def token(self, role: str, name: str = "") -> str:
        """URL-safe, 43 characters."""
        digest = hmac.digest(self._key, f"{role}\0{name}".encode(), hashlib.sha256)
        return base64.urlsafe_b64encode(digest).decode().rstrip("=")

    def holder(self, token: str, role: str, names: Iterable[str]) -> str | None:
        """Whose token it is. Takes the same time whatever part of it is right."""
        found = None
        for name in names:
            if hmac.compare_digest(self.token(role, name).encode(), token.encode(errors="replace")):
                found = name
        return found


class Guard:
    """Refuses requests for other hosts and from other sites, and adds `HEADERS` to every response.

    A page of an attacker whose name is made to point here (DNS rebinding) asks for the attacker's name. Numeric
    addresses are therefore safe, and of names only localhost and those given are answered.
    """

    def __init__(self, app: ASGIApp, hosts: Iterable[str]) -> None:
        self.app = app
        self.hosts = {"localhost", *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers[name] = value
            await send(message)

        headers = Headers(scope=scope)
        if not self.answers_to(headers.get("host", "")):
            refusal = PlainTextResponse("This server does not answer to that host name.\n", 421)
        elif scope["method"] == "POST" and headers.get("sec-fetch-site", "same-origin") != "same-origin":
            refusal = PlainTextResponse("Refused: the form is not from this page.\n", 403)
        else:
            await self.app(scope, receive, guarded)
            return
        await refusal(scope, receive, guarded)

    def answers_to(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self.hosts
        return True
