"""Who may use the server: the API key, requests from other sites, and the security headers of responses."""

from __future__ import annotations

import hmac

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from ranking.security import is_cross_site, with_headers
from stages.serve.errors import ApiError

KEY = "TUTELAGE_API_KEY"
"""The environment variable that holds the API key."""
MAX_BODY = 8 * 2**20
"""Bytes of a request."""
OPEN = ("/", "/health", "/static/")
"""Paths that need no key, because they show nothing of the models; the last is the start of paths."""


class Access:
    """Refuses requests without the API key, if there is one, and POST requests from pages of other sites. Adds
    the security headers of the annotators' page to every response."""

    def __init__(self, app: ASGIApp, key: str | None = None) -> None:
        self.app, self._key = app, key

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        refusal = self._refusal(scope)
        app = self.app if refusal is None else JSONResponse(refusal.content, refusal.status, refusal.headers)
        await app(scope, receive, with_headers(send, scope["path"]))

    def _refusal(self, scope: Scope) -> ApiError | None:
        if is_cross_site(scope):
            return ApiError(403, "requests from pages of other sites are refused", code="cross_site")
        path = scope["path"]
        if self._key is None or path in OPEN or path.startswith(OPEN[-1]):
            return None
        kind, _, given = Headers(scope=scope).get("authorization", "").partition(" ")
        if kind.lower() == "bearer" and hmac.compare_digest(given.strip().encode(), self._key.encode()):
            return None
        return ApiError(401, "a valid API key is needed: Authorization: Bearer KEY", code="invalid_api_key")
