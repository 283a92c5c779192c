"""A served campaign, a client that fills in its forms, and the contents of the database."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import secrets
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlencode, urlsplit

from ranking.campaign import Campaign, Source
from ranking.security import Links
from ranking.store import Store


def ask(number: int, k: int = 4) -> Source:
    prompt = [{"role": "user", "content": f"Question {number}?"}]
    return Source(prompt, [f"{word} answer to {number}" for word in ("good", "fair", "poor", "bad", "worst")[:k]])


@dataclass
class Site:
    """A served campaign. `client(name)` fills in forms as that annotator."""

    store: Store
    campaign: Campaign
    links: Links
    address: str
    finished: threading.Event = field(default_factory=threading.Event)

    def path(self, name: str) -> str:
        return f"/r/{self.links.token('annotator', name)}/"

    def client(self, name: str) -> Client:
        return Client(self.address, self.path(name))


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    text: str


@dataclass
class Client:
    address: str
    base: str

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        connection = http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=20)
        with contextlib.closing(connection):
            sent = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, sent)
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read().decode())

    def get(self, path: str = "", **headers: str) -> Reply:
        return self.request("GET", self.base + path, **headers)

    def current(self) -> int | None:
        """The number of the item that the page shows, or None."""
        match = re.search(r'action="[^"]*/item/(\d+)"', self.get().text)
        return int(match.group(1)) if match else None

    def submit(self, item: int, fields: dict[str, Any], *, json_wanted: bool = True, **headers: str) -> Reply:
        fields = {"submission": secrets.token_hex(16), "action": "rank", **fields}
        if json_wanted:
            headers["Accept"] = "application/json"
        headers.setdefault("Content_Type", "application/x-www-form-urlencoded")
        return self.request("POST", f"{self.base}item/{item}", urlencode(fields, doseq=True).encode(), **headers)

    def rank(self, item: int, ranks: Sequence[int], **fields: Any) -> Reply:
        """`ranks` by position on the screen."""
        return self.submit(item, {**{f"rank-{p}": rank for p, rank in enumerate(ranks)}, **fields})


def contents(site: Site) -> list[dict[str, Any]]:
    """All submissions in the database."""
    rows = site.store.read("SELECT task, kind, content FROM submissions ORDER BY id")
    return [{"task": task, "kind": kind, **json.loads(content)} for task, kind, content in rows]
