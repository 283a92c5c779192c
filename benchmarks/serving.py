"""Loads `tutelage serve` with concurrent streams, and with clients that misbehave.

    python benchmarks/serving.py [--clients 64] [--minutes 5] [--tokens 48] -- sft ppo --recipe quickstart
    python benchmarks/serving.py -- --model models/smollm2-135m

What follows `--` goes to `tutelage serve`. First one client streams an answer to each prompt, greedily, which gives
its speed and the expected texts. Then all clients stream answers to the same prompts for the given minutes. In the
meantime another client disconnects in the middle of a stream, sends garbage, and sends a prompt of 10,000 words.

Prints tokens per second of one client and of all, and their ratio; streams that finished, that were lost (no finish
reason, no usage or no end), and whose text differs from the expected one; what the misbehaving client was told; and
the server's resident memory a fifth into the run and at its end. Exits with 1 if a stream was lost, or if more than
one in a hundred differs: another batch rounds differently, and may turn a near tie between two tokens.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import random
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = 32
SUBJECTS = ("a pub", "a river", "the moon", "bread", "a library", "rain", "a bicycle", "tea")
SHOWN = 15
"""Seconds between two lines of progress."""


@dataclass
class Stream:
    """What came of one streamed request."""

    text: str = ""
    finish: str | None = None
    tokens: int | None = None
    ended: bool = False

    @property
    def whole(self) -> bool:
        return self.ended and self.finish is not None and self.tokens is not None


@dataclass
class Client:
    """Requests to a model of the server at a port."""

    port: int
    model: str = ""

    def send(self, path: str, body: bytes | None) -> tuple[http.client.HTTPConnection, http.client.HTTPResponse]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Content-Type": "application/json"}
        connection.request("GET" if body is None else "POST", path, body, headers)
        return connection, connection.getresponse()

    def json(self, path: str, body: bytes | None = None) -> tuple[int, Any]:
        connection, response = self.send(path, body)
        with closing(connection):
            return response.status, json.loads(response.read())

    def asked(self, prompt: str, tokens: int) -> bytes:
        return json.dumps(
            {
                "model": self.model,
                "messages": [{"role": "user", "content": prompt}],
                "max_tokens": tokens,
                "temperature": 0,
                "stream": True,
                "stream_options": {"include_usage": True},
            }
        ).encode()

    def stream(self, prompt: str, tokens: int) -> Stream:
        connection, response = self.send("/v1/chat/completions", self.asked(prompt, tokens))
        with closing(connection):
            return read(response)


def read(response: http.client.HTTPResponse) -> Stream:
    """Reads server-sent events to their end."""
    found = Stream()
    for line in response:
        if not line.startswith(b"data: "):
            continue
        data = line[len(b"data: ") :].strip()
        if data == b"[DONE]":
            found.ended = True
            continue
        event = json.loads(data)
        for choice in event.get("choices", ()):
            found.text += choice["delta"].get("content") or ""
            found.finish = choice["finish_reason"] or found.finish
        if event.get("usage"):
            found.tokens = event["usage"]["completion_tokens"]
    return found


@dataclass
class Load:
    """Counts of the streams of all clients.

    Attributes:
        failures: exceptions of clients, by their text.
    """

    expected: dict[str, str]
    finished: int = 0
    lost: int = 0
    different: int = 0
    tokens: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, prompt: str, stream: Stream) -> None:
        with self._lock:
            self.finished += stream.whole
            self.lost += not stream.whole
            self.different += stream.whole and stream.text != self.expected[prompt]
            self.tokens += stream.tokens or 0

    def fail(self, error: Exception) -> None:
        with self._lock:
            self.lost += 1
            self.failures[repr(error)] += 1


def ask(client: Client, load: Load, until: float, tokens: int, seed: int) -> None:
    """Streams answers, one after the other."""
    order = random.Random(seed)
    while time.monotonic() < until:
        prompt = order.choice(list(load.expected))
        try:
            load.count(prompt, client.stream(prompt, tokens))
        except Exception as error:  # counted as a lost stream
            load.fail(error)


def misbehave(client: Client, until: float, tokens: int, replies: Counter[str]) -> None:
    """Disconnects in the middle of a stream, sends garbage, and sends a prompt that is too long, in turns."""
    prompt = "Describe everything. " * 3
    while time.monotonic() < until:
        connection, response = client.send("/v1/chat/completions", client.asked(prompt, tokens))
        response.read(80)
        connection.close()
        replies["disconnected in mid-stream"] += 1
        for name, body in {
            "garbage": os.urandom(200),
            "10,000 words": client.asked("word " * 10_000, tokens),
        }.items():
            status, content = client.json("/v1/chat/completions", body)
            replies[f"{name}: {status} {content['error']['code']}"] += 1
        time.sleep(1)


def resident(pid: int) -> float:
    """The resident memory of a process, MB."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


@contextmanager
def served(arguments: Sequence[str]) -> Iterator[tuple[int, Client]]:
    """A server with all its models. Yields its process and a client of its last language model."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-P", "-m", "stages", "serve", *arguments, "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        client = Client(port)
        while True:
            if process.poll() is not None:
                raise SystemExit("the server ended before it was ready")
            try:
                client.json("/health")
                break
            except OSError:
                time.sleep(0.3)
        models = [model["id"] for model in client.json("/v1/models")[1]["data"]]
        yield process.pid, Client(port, [name for name in models if name != "reward"][-1])
    finally:
        process.terminate()
        process.wait(60)


def in_threads(work: Sequence[Callable[[], None]]) -> list[threading.Thread]:
    threads = [threading.Thread(target=one) for one in work]
    for thread in threads:
        thread.start()
    return threads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--tokens", type=int, default=48, help="most tokens of an answer")
    parser.add_argument("server", nargs="*", help="arguments of `tutelage serve`, after --")
    options = parser.parse_args()
    prompts = [f"Number {i}: describe {SUBJECTS[i % len(SUBJECTS)]}." for i in range(PROMPTS)]
    with served(options.server) as (pid, client):
        client.stream(prompts[0], options.tokens)  # warms up
        start = time.monotonic()
        alone = {prompt: client.stream(prompt, options.tokens) for prompt in prompts}
        one = sum(stream.tokens or 0 for stream in alone.values()) / (time.monotonic() - start)
        print(f"one client, {client.model}: {one:.1f} tokens/s", flush=True)

        load = Load({prompt: stream.text for prompt, stream in alone.items()})
        replies: Counter[str] = Counter()
        start = time.monotonic()
        until = start + 60 * options.minutes
        threads = in_threads(
            [
                *(lambda seed=i: ask(client, load, until, options.tokens, seed) for i in range(options.clients)),
                lambda: misbehave(client, until, options.tokens, replies),
            ]
        )
        memory: list[tuple[float, float]] = []
        while any(thread.is_alive() for thread in threads):
            time.sleep(min(1.0, 6 * options.minutes))
            passed = time.monotonic() - start
            if not memory or passed - memory[-1][0] >= min(SHOWN, 6 * options.minutes):
                memory.append((passed, resident(pid)))
                left = max(0.0, until - time.monotonic())
                print(
                    f"  {load.finished:,} streams  {load.tokens / passed:.1f} tokens/s  {memory[-1][1]:,.0f} MB  "
                    f"{left:.0f} s left",
                    flush=True,
                )
        many = load.tokens / (time.monotonic() - start)
        early = next(megabytes for passed, megabytes in memory if passed >= 12 * options.minutes)
        idle = client.json("/health")[1]
    print(f"{options.clients} clients: {many:.1f} tokens/s, {many / one:.1f} times one client's")
    print(f"streams: {load.finished:,} finished, {load.lost} lost, {load.different} with another text")
    print(f"memory: {early:,.0f} MB a fifth into the run, {memory[-1][1]:,.0f} MB at its end")
    print(f"rows left when all clients were gone: {idle['running']} running, {idle['waiting']} waiting")
    for reply, count in sorted(replies.items()):
        print(f"{reply}: {count} times")
    for failure, count in load.failures.items():
        print(f"lost: {count} times {failure}")
    sys.exit(int(load.lost > 0 or load.different > load.finished / 100))


if __name__ == "__main__":
    main()
