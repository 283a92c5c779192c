"""A language model as the judge of pairs, behind any endpoint that implements OpenAI's chat completions.

Each pair is shown in both orders, since such judges favour a position (Zheng et al. 2023, arXiv:2306.05685, section
3.3): a verdict counts only where both orders agree, anything else is a tie. Replies are appended to a file that is
kept between runs, and a request that is in the file is never sent again.
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import re
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from pipeline import network
from pipeline.config.evaluate import LLMJudgeConfig
from pipeline.engine.stage import Progress
from pipeline.errors import StageError
from pipeline.files import canonical
from stages.scoring.judge import Pair, PairJudge, Verdicts

VERDICTS = "llm-verdicts.jsonl"
"""In a recipe's folder."""

INSTRUCTION = """\
You compare two answers to the same request. {criteria}
The order of the answers says nothing. Reason in a few sentences, then end with exactly one of
[[A]] (the first answer is better), [[B]] (the second is better) or [[C]] (neither is better)."""

PASSING = (408, 409, 425, 429, 500, 502, 503, 504, 529)
"""HTTP status codes of errors that may pass."""
LONGEST_PAUSE = 60.0
RETRIES_WITHOUT_SERVER = 2
"""How often a request is repeated to an endpoint that has never been reached."""


class LLMJudge(PairJudge):
    """Asks the endpoint, keeps its replies, and retries.

    Args:
        folder: where replies are kept.
        pause: seconds before the first retry of a request; each further one waits twice as long.

    Raises `StageError` when the key's environment variable is not set.
    """

    def __init__(self, config: LLMJudgeConfig, folder: Path, *, pause: float = 1.0) -> None:
        self.config, self._file, self._pause = config, folder / VERDICTS, pause
        self.name = config.model
        self._key = os.environ.get(config.api_key_env, "") if config.api_key_env else None
        if self._key == "":
            raise StageError(
                f"the environment variable {config.api_key_env} is not set",
                where="eval.llm_judge.api_key_env",
                hint=f"export {config.api_key_env}=..., or set eval.llm_judge to null",
            )
        self._replies = dict(_read_replies(self._file))
        self._replied = False  # by the endpoint, in this process
        self._lock, self._stop = threading.Lock(), threading.Event()

    def compare(self, pairs: Sequence[Pair], progress: AbstractContextManager[Progress]) -> Verdicts:
        """Asks about every pair in both orders. Raises `StageError` when the endpoint refuses; earlier replies are
        kept."""
        bodies = [self._body(pair, swapped) for pair in pairs for swapped in (False, True)]
        requests = {_digest(self.config, body): body for body in bodies}
        unanswered = [(key, body) for key, body in requests.items() if key not in self._replies]
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
        letters = [verdict(self._replies[_digest(self.config, body)]) for body in bodies]
        outcomes = [
            (_won(first, ours="A"), _won(second, ours="B"))
            for first, second in zip(letters[::2], letters[1::2], strict=True)
        ]
        return Verdicts(
            wins=[first if first == second else 0.5 for first, second in outcomes],
            disagreed=sum(first != second for first, second in outcomes),
            unreadable=sum(letter is None for letter in letters),
        )

    def _body(self, pair: Pair, swapped: bool) -> dict[str, Any]:
        first, second = (pair.theirs, pair.ours) if swapped else (pair.ours, pair.theirs)
        request = "\n\n".join(
            message["content"] if len(pair.prompt) == 1 else f"{message['role']}: {message['content']}"
            for message in pair.prompt
        )
        shown = f"<request>\n{request}\n</request>\n<A>\n{first}\n</A>\n<B>\n{second}\n</B>"
        messages = [
            {"role": "system", "content": INSTRUCTION.format(criteria=self.config.criteria)},
            {"role": "user", "content": shown},
        ]
        return {"model": self.config.model, "messages": messages, **self.config.parameters}

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
                "start the server, or correct eval.llm_judge.base_url, and run again: its replies so far are kept. "
                "eval.llm_judge: null works without it"
            ),
        )


def verdict(reply: str) -> str | None:
    """A, B or C: the last one in double brackets; None when there is none."""
    letters = re.findall(r"\[\[\s*([ABC])\s*\]\]", reply)
    return letters[-1] if letters else None


def _won(letter: str | None, ours: str) -> float:
    return 0.5 if letter not in ("A", "B") else float(letter == ours)


def _digest(config: LLMJudgeConfig, body: dict[str, Any]) -> str:
    return hashlib.sha256(canonical([config.base_url.rstrip("/"), body]).encode()).hexdigest()


def _read_replies(file: Path) -> Iterator[tuple[str, str]]:
    """Pairs of a request's digest and its reply. Removes an incomplete last line, which a killed run may leave."""
    if not file.exists():
        return
    content = file.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    if whole != content:
        with file.open("rb+") as out:
            out.truncate(len(whole))
    for line in whole.decode("utf-8").split("\n")[:-1]:
        row = json.loads(line)
        yield row["key"], row["reply"]


def _excerpt(error: HTTPError) -> str:
    return error.read(300).decode("utf-8", "replace").strip().replace("\n", " ")


def _seconds(text: str | None) -> float:
    return float(text) if text and re.fullmatch(r"[0-9.]+", text) else 0.0
