"""A tiny run that is served over HTTP, and a client."""

from __future__ import annotations

import http.client
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import tiny
from reward_runs import finish, reward_run

from pipeline.config.load import LoadedRecipe
from pipeline.engine import manifest
from pipeline.engine.plan import RunSummary, StageRun
from ranking import web
from stages.serve.app import application
from stages.serve.engine import Engine
from stages.serve.models import Served


def served_run(runs: Path, loaded: LoadedRecipe, *, lora: bool = True, **reward: Any) -> RunSummary:
    """A run with base, sft, reward and ppo. Arguments as of `reward_run`; `lora` is for all models."""
    made = reward_run(runs, lora=lora, **reward)
    folders = {name: artifact.path.parent for name, artifact in (("base", made.base), ("reward", made.reward))}
    for number, name in enumerate(("sft", "ppo")):
        folders[name] = runs / "small" / name / f"{number + 5:012x}"
        tiny.policy_artifact(folders[name] / "out", made.base, lora=lora, seed=7 + number)
        finish(folders[name], name, {})
    stages = {}
    for name in ("base", "sft", "reward", "ppo"):
        record = manifest.read(folders[name])
        assert record is not None
        stages[name] = StageRun(folders[name], record)
    return RunSummary(loaded, runs / "small", stages)


@dataclass
class Reply:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        """The error, which must have OpenAI's shape."""
        content = self.json
        assert set(content) == {"error"}
        assert set(content["error"]) == {"message", "type", "param", "code"}
        assert content["error"]["message"]
        return content["error"]


@dataclass
class Api:
    """A served model's client."""

    address: str
    served: Served
    engine: Engine

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> Reply:
        with closing(self.connect()) as connection:
            connection.request(
                method, path, body, {name.replace("_", "-"): value for name, value in headers.items()}
            )
            response = connection.getresponse()
            return Reply(response.status, dict(response.getheaders()), response.read())

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(urlsplit(self.address).netloc, timeout=60)

    def get(self, path: str, **headers: str) -> Reply:
        return self.request("GET", path, **headers)

    def post(self, path: str, /, **body: Any) -> Reply:
        return self.request("POST", path, json.dumps(body).encode(), Content_Type="application/json")

    def chat(self, text: str = "ab", model: str = "ppo", **body: Any) -> Reply:
        return self.post("/v1/chat/completions", **{"model": model, "messages": tiny.user(text), **body})

    def complete(self, prompt: Any = "ab", model: str = "ppo", **body: Any) -> Reply:
        return self.post("/v1/completions", **{"model": model, "prompt": prompt, **body})

    def stream(self, path: str, /, **body: Any) -> list[dict[str, Any]]:
        """The events of a stream, which must end with [DONE]."""
        reply = self.post(path, stream=True, **body)
        assert reply.status == 200, reply.body
        assert reply.headers["content-type"].startswith("text/event-stream")
        *events, done, rest = reply.body.decode().split("\n\n")
        assert (done, rest) == ("data: [DONE]", "")
        return [json.loads(event.removeprefix("data: ")) for event in events]


def streamed(events: list[dict[str, Any]]) -> dict[int, str]:
    """The text of each choice of a stream."""
    texts: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            text = choice["text"] if "text" in choice else choice["delta"].get("content", "")
            texts[choice["index"]] = texts.get(choice["index"], "") + text
    return texts


@contextmanager
def serving(served: Served, *, batch: int = 8, queue: int = 64, key: str | None = None) -> Iterator[Api]:
    """Serves models at a free port."""
    engine = Engine(served.models, served.codec.pad_id, batch=batch, queue=queue)
    engine.start()
    try:
        with web.listening("127.0.0.1", 0, host_hint="", port_hint="") as listener:
            address = web.address_of("127.0.0.1", listener.getsockname()[1])
            with web.running(application(served, engine, key=key), listener):
                yield Api(address, served, engine)
    finally:
        engine.stop()


def in_parallel(*work: Any) -> list[Any]:
    """Calls functions in threads of their own, and returns their results in order."""
    results: list[Any] = [None] * len(work)

    def call(place: int) -> None:
        results[place] = work[place]()

    threads = [threading.Thread(target=call, args=(place,)) for place in range(len(work))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return results
