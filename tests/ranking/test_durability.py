"""Eight concurrent annotators and a server that is killed repeatedly: every acknowledged ranking is stored once."""

from __future__ import annotations

import http.client
import json
import os
import random
import re
import secrets
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from ranking_site import Client
from repository import ROOT

NAMES = [f"person-{i}" for i in range(8)]
ITEMS, KILLS = 200, 8


class Server:
    """`tutelage annotate` in a separate process."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.log = folder / "log"
        self.command = [sys.executable, "-P", "-m", "stages", "annotate", str(folder / "items.jsonl")]
        self.command += ["--out", str(folder / "out.jsonl"), "--annotators", ",".join(NAMES)]
        self.command += ["--overlap", str(len(NAMES)), "--port", str(self.port)]

    def start(self) -> None:
        with self.log.open("w") as log:
            self.process = subprocess.Popen(self.command, cwd=ROOT, stdout=log, stderr=log)
        while "Ctrl-C stops" not in self.log.read_text():
            assert self.process.poll() is None, self.log.read_text()
            time.sleep(0.05)

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.wait()


@pytest.mark.slow
def test_no_acknowledged_ranking_is_lost_when_the_server_is_killed(tmp_path: Path) -> None:
    with (tmp_path / "items.jsonl").open("w") as file:
        for i in range(ITEMS):
            file.write(json.dumps({"prompt": f"Question {i}", "completions": [f"{w} {i}" for w in "abcd"]}) + "\n")
    server = Server(tmp_path)
    server.start()
    links = dict(re.findall(r"(person-\d): http://[^/]*(\S+)", server.log.read_text()))
    acknowledged: list[tuple[int, str, list[int]]] = []
    resent = [0]

    def work(name: str) -> None:
        client = Client(f"http://127.0.0.1:{server.port}", links[name])
        rng = random.Random(name)
        while True:
            try:
                item = client.current()
                if item is None:
                    return
            except (OSError, http.client.HTTPException):
                time.sleep(0.05)
                continue
            ranks, submission = [rng.randint(1, 4) for _ in range(4)], secrets.token_hex(16)
            while True:
                try:
                    reply = client.rank(item, ranks, submission=submission)
                    break
                except (OSError, http.client.HTTPException):
                    resent[0] += 1
                    time.sleep(0.05)
            assert reply.status == 200, reply.text
            acknowledged.append((item, submission, ranks))

    started, down = time.monotonic(), 0.0
    people = [threading.Thread(target=work, args=(name,)) for name in NAMES]
    for person in people:
        person.start()
    for kill in range(1, KILLS + 1):
        while len(acknowledged) < kill * ITEMS * len(NAMES) / (KILLS + 1):
            time.sleep(0.01)
        before = time.monotonic()
        server.kill()
        server.start()
        down += time.monotonic() - before
    for person in people:
        person.join()
    spent = time.monotonic() - started - down
    while "All rankings are in" not in server.log.read_text():
        assert server.process.poll() is None, server.log.read_text()
        time.sleep(0.05)
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=120) == 0, server.log.read_text()

    total = ITEMS * len(NAMES)
    print(f"{total} rankings, {total / spent:.0f}/s while the server was up, {resent[0]} sent again")
    assert len(acknowledged) == total
    with sqlite3.connect(tmp_path / "out.jsonl.sqlite") as db:
        rows = db.execute(
            "SELECT s.submission, s.task, t.shown, s.content FROM submissions s JOIN tasks t ON t.id = s.task"
        ).fetchall()
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
    db.close()
    assert len(rows) == total
    by_submission = {
        submission: (task, json.loads(shown), json.loads(content)) for submission, task, shown, content in rows
    }
    for item, submission, ranks in acknowledged:
        task, shown, content = by_submission[submission]
        assert task == item
        levels = sorted(set(ranks))
        assert [content["ranks"][completion] for completion in shown] == [levels.index(rank) + 1 for rank in ranks]
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(written) == len({(r["prompt"][0]["content"], r["annotator"]) for r in written}) == total
