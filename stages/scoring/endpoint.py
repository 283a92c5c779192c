"""A client of any endpoint that implements OpenAI's chat completions.

Replies are appended to a file that is kept between runs, and a request that is in the file is never sent again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pipeline import network
from pipeline.config.endpoint import EndpointConfig
from pipeline.engine.stage import Progress
from pipeline.errors import StageError
from pipeline.files import canonical, remove_incomplete_line

REPLIES = "llm-verdicts.jsonl"
"""In a recipe's folder."""

PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP status codes of errors that may pass."""
LONGEST_PAUSE = 60.0
RETRIES_WITHOUT_SERVER = 2
"""How often a request is repeated to an endpoint that has never been reached."""


class Endpoint:
    """Asks the endpoint, keeps its replies, and retries.

    Args:
        folder: where replies are kept. Several processes may share it.
        where: dotted path of its section in the recipe, for errors.
        without: what to do to work without it, for hints.
        pause: seconds before the first retry of a request; each further one waits twice as long.
        most: the most requests to send; None: no limit.

    Raises `StageError` when the key's environment variable is not set.
    """

    def __init__(
        self,
        config: EndpointConfig,
        folder: Path,
        *,
        where: str,
        without: str,
        pause: float = 1.0,
        most: int | None = None,
    ) -> None:
        self.config, self.where, self.without, self.most = config, where, without, most
        self._file, self._pause = folder / REPLIES, pause
        self._key = os.environ.get(config.api_key_env, "") if config.api_key_env else None
        if self._key == "":
            raise StageError(
                f"the environment variable {config.api_key_env} is not set",
                where=f"{where}.api_key_env",
                hint=f"export {config.api_key_env}=..., or {without}",
            )
        self._replies: dict[str, str] = {}
        self._read = 0  # bytes of the file
        self.sent = 0
        self._replied = False  # by the endpoint, in this process
        self._lock, self._stop = threading.Lock(), threading.Event()
        remove_incomplete_line(self._file)
        self._refresh()

    def replies(
        self, conversations: Sequence[list[dict[str, str]]], progress: AbstractContextManager[Progress]
    ) -> list[str]:
        """The model's reply to each conversation. Equal ones are sent once. The bar advances by 1 per conversation.
        Raises `StageError` when the endpoint refuses or the limit of requests is reached; earlier replies are
        kept."""
        bodies = [
            {"model": self.config.model, "messages": messages, **self.config.parameters}
            for messages in conversations
        ]
        requests = {self._digest(body): body for body in bodies}
        if requests.keys() - self._replies.keys():
            self._refresh()  # another process may have asked
        unanswered = [(key, body) for key, body in requests.items() if key not in self._replies]
        if self.most is not None and self.sent + len(unanswered) > self.most:
            raise StageError(
                f"{self.sent + len(unanswered):,} requests to {self.config.model} are needed, and at most "
                f"{self.most:,} may be sent",
                where=f"{self.where}.max_requests",
                hint="raise it, or set it to null, and run again: replies so far are kept",
            )
        self._stop.clear()
        with progress as bar, ThreadPoolExecutor(self.config.concurrency) as pool:
            bar.advance(len(bodies) - len(unanswered))
            futures = [pool.submit(self._ask, key, body) for key, body in unanswered]
            try:
                for future in as_completed(futures):
                    future.result()
                    bar.advance(1)
            except BaseException:
                self._stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [self._replies[self._digest(body)] for body in bodies]

    def _ask(self, key: str, body: dict[str, Any]) -> None:
        if self._stop.is_set():
            return
        try:
            reply = self._post(body)
        except StageError:
            self._stop.set()  # before the exception arrives: the next in the queue would still be sent
            raise
        line = json.dumps({"key": key, "model": self.config.model, "reply": reply}, ensure_ascii=False) + "\n"
        with self._lock:
            self._replies[key] = reply
            self.sent += 1
            with self._file.open("a", encoding="utf-8") as out:
                out.write(line)

    def _post(self, body: dict[str, Any]) -> str:
        """The reply's text. Retries after errors that may pass."""
        address = f"{self.config.base_url.rstrip('/')}/chat/completions"
        headers = {"Content-Type": "application/json", "User-Agent": "tutelage"}
        if self._key:
            headers["Authorization"] = f"Bearer {self._key}"
        request = Request(address, json.dumps(body).encode(), headers)
        allowed, attempt = self.config.retries, -1
        while attempt < allowed:
            attempt += 1
            wait = self._pause * 2**attempt
            try:
                with urlopen(request, timeout=self.config.timeout) as response:
                    self._replied = True
                    return str(json.load(response)["choices"][0]["message"]["content"] or "")
            except HTTPError as error:
                with error:
                    reason = f"HTTP {error.code} {error.reason}: {_excerpt(error)}"
                    wait = max(wait, _seconds(error.headers.get("Retry-After")))
                if error.code not in PASSING:
                    raise self._refused(address, reason) from error
            except (OSError, http.client.HTTPException) as error:
                reason = network.reason(error)
                if not self._replied and network.never_connected(error):
                    allowed = min(self.config.retries, RETRIES_WITHOUT_SERVER)
            except (ValueError, LookupError, TypeError) as error:
                raise self._refused(address, f"its reply is no chat completion ({error})") from error
            if attempt < allowed and self._stop.wait(min(wait, LONGEST_PAUSE)):
                break
        raise self._refused(address, f"{reason} ({attempt + 1} times)")

    def _refused(self, address: str, reason: str) -> StageError:
        return StageError(
            f"the LLM judge does not answer: {reason}",
            where=address,
            hint=(
                f"start the server, or correct {self.where}.base_url, and run again: its replies so far are kept. "
                f"To work without it, {self.without}"
            ),
        )

    def _digest(self, body: dict[str, Any]) -> str:
        return hashlib.sha256(canonical([self.config.base_url.rstrip("/"), body]).encode()).hexdigest()

    def _refresh(self) -> None:
        """Reads the replies that were added to the file since it was last read."""
        if not self._file.exists():
            return
        with self._file.open("rb") as file:
            file.seek(self._read)
            content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        self._read += len(whole)
        for line in whole.decode("utf-8").split("\n")[:-1]:
            row = json.loads(line)
            self._replies[row["key"]] = row["reply"]


def _excerpt(error: HTTPError) -> str:
    return error.read(300).decode("utf-8", "replace").strip().replace("\n", " ")


def _seconds(text: str | None) -> float:
    return float(text) if text and re.fullmatch(r"[0-9.]+", text) else 0.0
