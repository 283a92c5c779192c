"""A campaign from the printed links to the rankings file, with HTTP clients as annotators."""

from __future__ import annotations

import contextlib
import json
import re
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ranking_site import Client, ask

from data.schema import Ranking, prompt_key
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from pipeline.config.rank import AppConfig, RankConfig
from pipeline.engine.stage import Artifact, RunContext
from pipeline.errors import DataError, StageError
from ranking import serve
from ranking.campaign import Campaign, Source
from ranking.files import rank_file
from ranking.judge import result
from ranking.security import Links
from ranking.terminal import Keyboard


class Terminal:
    """Records printed lines, and starts the workers on their links once these are printed."""

    def __init__(self, *workers: Any) -> None:
        self.lines: list[str] = []
        self.workers = [threading.Thread(target=self._work, args=(worker,), daemon=True) for worker in workers]
        self.links: dict[str, Client] = {}

    def say(self, line: str) -> None:
        self.lines.append(line)
        match = re.search(r"^  (\S+?)(?: \(.*\))?: (http://[^/]+)(\S+)$", line)
        if match:
            self.links[match[1]] = Client(match[2], match[3])
        if line.startswith("Ctrl-C"):
            for worker in self.workers:
                worker.start()

    def _work(self, worker: Any) -> None:
        worker(self)

    @contextlib.contextmanager
    def progress(self, name: str, total: int | None = None, done: int = 0) -> Iterator[Terminal]:
        yield self

    def advance(self, steps: int = 1, **numbers: float) -> None:
        pass


def ranks_all(name: str, limit: int = 10**6) -> Any:
    """A worker that prefers the alphabetically first completion."""

    def work(terminal: Terminal) -> None:
        client = terminal.links[name]
        for _ in range(limit):
            item = client.current()
            if item is None:
                return
            page = client.get().text
            texts = re.findall(r'class="text" dir="auto"><bdi>(\w+ answer to \d+)</bdi>', page)
            if len(texts) == 2:
                assert client.submit(item, {"choice": "first" if texts[0] < texts[1] else "second"}).status == 200
            else:
                assert client.rank(item, [sorted(texts).index(text) + 1 for text in texts]).status == 200

    return work


@pytest.fixture(autouse=True)
def _soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve, "LINGER", 0.3)
    monkeypatch.setattr(serve, "POLL", 0.02)


@pytest.fixture
def collected(tmp_path: Path) -> Artifact:
    folder = tmp_path / "collect"
    folder.mkdir()
    with (folder / "answers.jsonl").open("w") as file:
        for i in range(4):
            source = ask(i)
            completions = ["same"] * 4 if i == 3 else source.completions
            split = "eval" if i == 2 else "train"
            file.write(json.dumps({"prompt": source.prompt, "completions": completions, "split": split}) + "\n")
    return Artifact("collect", folder, "0" * 64)


def stage(config: RankConfig, collected: Artifact, tmp_path: Path, terminal: Terminal) -> tuple[Any, list[Ranking]]:
    from stages.rank import run

    none: Any = None
    out = tmp_path / f"out{len(list(tmp_path.iterdir()))}"
    out.mkdir()
    ctx = RunContext(
        seed=0, device="cpu", state_dir=tmp_path, metrics=none, progress=terminal.progress, say=terminal.say,
        recipe_dir=tmp_path,
    )  # fmt: skip
    metrics = run(config, {"collect": collected}, out, ctx)
    return metrics, [Ranking(**json.loads(line)) for line in (out / "rankings.jsonl").read_text().splitlines()]


def app_config(*names: str, **values: Any) -> RankConfig:
    return RankConfig(
        source="app", app=AppConfig(**{"annotators": list(names), "port": 0, "linger_minutes": 0, **values})
    )


def test_the_rank_stage_ends_when_every_item_has_its_overlap(collected: Artifact, tmp_path: Path) -> None:
    terminal = Terminal(ranks_all("ana"), ranks_all("ben"))
    metrics, rankings = stage(app_config("ana", "ben"), collected, tmp_path, terminal)
    assert len(rankings) == 6
    assert any(line.endswith(" 6 of 6 rankings") for line in terminal.lines)
    assert [r.annotator for r in rankings].count("ana") == 3
    assert [r.split for r in rankings] == ["train"] * 4 + ["eval"] * 2
    for ranking in rankings:
        assert ranking.human is True
        assert [ranking.completions[i] for i in sorted(range(4), key=ranking.ranks.__getitem__)] == sorted(
            ranking.completions
        )
        assert {"seconds", "shown", "repeat", "labels", "flag", "all_bad"} <= ranking.metadata.keys()
        assert sorted(ranking.metadata["shown"]) == [0, 1, 2, 3]
    assert (metrics["human"], metrics["agreement"], metrics["annotators"]) == (True, 1.0, 2)
    assert metrics["collected_dropped_prompts"] == 1
    assert metrics["collected_dropped_prompts/all answers are the same"] == 1
    assert (tmp_path / "rankings.sqlite").exists()

    # With other labels, existing rankings are reused: no annotator is needed.
    again, same = stage(app_config("ana", "ben", labels=["other"]), collected, tmp_path, Terminal())
    assert same == rankings
    assert again["rankings"] == 6
    terminal = Terminal(ranks_all("cem"))
    _, more = stage(app_config("ana", "ben", "cem", overlap=3), collected, tmp_path, terminal)
    assert "6 of 9 rankings are in." in terminal.lines
    assert len(more) == 9


def test_the_admin_can_finish_and_links_stay_valid(collected: Artifact, tmp_path: Path) -> None:
    def ends(terminal: Terminal) -> None:
        ranks_all("ana", limit=2)(terminal)
        admin = terminal.links["admin"]
        assert admin.request("POST", f"{admin.base}finish").status == 200

    terminal = Terminal(ends)
    _, rankings = stage(app_config("ana", "ben"), collected, tmp_path, terminal)
    assert len(rankings) == 2
    links = Links(tmp_path / "rankings.key")
    assert terminal.links["ana"].base == f"/r/{links.token('annotator', 'ana')}/"
    assert len(links.token("annotator", "ana")) == 43
    assert len({links.token("annotator", "ana"), links.token("annotator", "ben"), links.token("admin", "ana")}) == 3
    assert (tmp_path / "rankings.key").stat().st_mode & 0o777 == 0o600


def test_stopping_frees_the_port_and_keeps_rankings(
    collected: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked = threading.Event()

    def some(terminal: Terminal) -> None:
        ranks_all("ana", limit=2)(terminal)
        ranked.set()

    class Stopped(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if ranked.is_set():
                raise KeyboardInterrupt
            return super().wait(timeout)

    monkeypatch.setattr(serve.threading, "Event", Stopped)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = app_config("ana", "ben", port=port)
    with pytest.raises(KeyboardInterrupt):
        stage(config, collected, tmp_path, Terminal(some))
    monkeypatch.undo()
    monkeypatch.setattr(serve, "LINGER", 0.1)
    terminal = Terminal(ranks_all("ana"), ranks_all("ben"))
    _, rankings = stage(config, collected, tmp_path, terminal)
    assert "2 of 6 rankings are in." in terminal.lines
    assert len(rankings) == 6


def test_the_last_rankings_can_be_corrected(collected: Artifact, tmp_path: Path) -> None:
    """A complete campaign is served until the admin ends it."""

    def corrects(terminal: Terminal) -> None:
        ranks_all("ana")(terminal)
        while not any(line.startswith("All rankings are in.") for line in terminal.lines):
            time.sleep(0.01)
        ana, admin = terminal.links["ana"], terminal.links["admin"]
        assert "Thank you" in ana.get().text
        assert ana.submit(3, {"action": "skip"}).status == 200  # now ben can have it
        ranks_all("ben")(terminal)
        assert ana.rank(2, [2, 1, 3, 4], note="corrected").status == 200
        assert admin.request("POST", f"{admin.base}finish").status == 200

    terminal = Terminal(corrects)
    config = app_config("ana", "ben", overlap=1, linger_minutes=5)
    _, rankings = stage(config, collected, tmp_path, terminal)
    assert [r.annotator for r in rankings] == ["ana", "ana", "ben"]
    assert [r.metadata.get("note") for r in rankings] == [None, "corrected", None]
    assert rankings[1].metadata["revisions"] == 2


@pytest.mark.parametrize("how", ["nobody visits", "Enter", "Ctrl-C", "Ctrl-C at once"])
def test_a_complete_campaign_ends(
    collected: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    class Pressed(Keyboard):
        def enter(self) -> bool:
            if how == "Ctrl-C":
                raise KeyboardInterrupt
            return how == "Enter"

    class Interrupted(Terminal):
        def say(self, line: str) -> None:
            super().say(line)
            if how == "Ctrl-C at once" and line.startswith("All rankings are in."):
                raise KeyboardInterrupt

    monkeypatch.setattr(serve, "Keyboard", Pressed)
    minutes = 0.3 / 60 if how == "nobody visits" else 60
    terminal = Interrupted(ranks_all("ana"))
    _, rankings = stage(app_config("ana", overlap=1, linger_minutes=minutes), collected, tmp_path, terminal)
    assert len(rankings) == 3
    assert any("stays open for corrections" in line for line in terminal.lines)


def test_an_empty_campaign_and_a_taken_port_are_errors(tmp_path: Path) -> None:
    terminal = Terminal()
    same = Campaign("rank", [Source([{"role": "user", "content": "q"}], ["x", "x"])], ["ana"])
    with pytest.raises(StageError, match="nothing to rank"):
        serve.collect_rankings(tmp_path / "r.sqlite", same, AppConfig(), say=terminal.say)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = AppConfig(annotators=["ana"], port=taken.getsockname()[1])
        campaign = Campaign.of("rank", [ask(0)], config)
        with pytest.raises(StageError, match="cannot be served"):
            serve.collect_rankings(tmp_path / "r.sqlite", campaign, config, say=terminal.say)


def test_a_file_of_items_is_ranked(tmp_path: Path) -> None:
    file, out = tmp_path / "items.jsonl", tmp_path / "new" / "rankings.jsonl"
    rows = [{"prompt": "q", "completions": ["bad answer to 1", "good answer to 1"], "models": ["m", "n"]}]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    terminal = Terminal(ranks_all("ana"))
    config = AppConfig(annotators=["ana"], overlap=1, port=0, linger_minutes=0)
    assert rank_file(file, out, config, say=terminal.say) == 1
    [ranking] = [Ranking(**json.loads(line)) for line in out.read_text().splitlines()]
    table = RankingTableConfig(path=str(out), format="scored", columns={"ranks": "ranks"})
    [read] = read_rankings(table, Dropped())
    assert (read.ranks, read.annotator, read.human) == ([1, 2], "ana", True)
    assert (ranking.ranks, ranking.models, ranking.prompt) == (
        [1, 2],
        ["m", "n"],
        [{"role": "user", "content": "q"}],
    )
    for broken, message in (
        ({"prompt": "q", "completions": ["x"]}, "at least 2"),
        ({"prompt": "", "completions": ["x", "y"]}, "needs a prompt"),
        ({"prompt": "q", "completions": "xy"}, "must be a list"),
        ({"prompt": "q", "completions": ["x", "y"], "models": ["m"]}, "1 models"),
    ):
        file.write_text(json.dumps(broken) + "\n")
        with pytest.raises(DataError, match=message) as error:
            rank_file(file, out, config, say=terminal.say)
        assert "items.jsonl" in error.value.where


def judged(number: int, judge: str, ranks: list[int], repeat: bool = False) -> Ranking:
    source = ask(number, k=2)
    metadata = {"repeat": repeat, "all_bad": ranks == [1, 1]}
    return Ranking(source.prompt, source.completions, ranks, judge, human=True, metadata=metadata)


def test_the_win_rate_is_averaged_over_prompts() -> None:
    sources = [ask(i, k=2) for i in range(4)]
    sources[2] = Source(sources[2].prompt, ["same", "same"])
    rankings = [
        judged(0, "ana", [1, 2]), judged(0, "ben", [2, 1]), judged(0, "ana", [2, 1], repeat=True),
        judged(1, "ana", [1, 2]), judged(1, "ben", [1, 2]),
        judged(3, "ana", [1, 1]),
    ]  # fmt: skip
    summary = result(sources, rankings, resamples=4000, seed=0)
    assert summary["win_rate"]["value"] == pytest.approx((0.5 + 1 + 0.5 + 0.5) / 4)
    assert summary["win_rate"]["ties"] == summary["both_bad"] == pytest.approx(1 / 5)
    assert (summary["prompts"], summary["identical"], summary["judgements"], summary["judges"]) == (4, 1, 5, 2)
    assert (summary["agreement"]["value"], summary["agreement"]["pairs"]) == (0.5, 2)
    # One of four prompts wins: with n draws of it the mean is 0.5 + n / 8, and P(n = 0) = 0.32, P(n > 2) = 0.05.
    assert summary["win_rate"]["low"] == 0.5
    assert summary["win_rate"]["high"] in (0.75, 0.875)
    early = result(sources, [judged(0, "ana", [1, 2])], resamples=10, seed=0)
    assert (early["prompts"], early["win_rate"]["value"], early["agreement"]["value"]) == (1, 1.0, None)
    with pytest.raises(StageError, match="nobody compared anything"):
        result(sources, [], resamples=10, seed=0)


def test_prompts_with_lone_surrogates_have_keys() -> None:
    assert prompt_key([{"role": "user", "content": "\ud800"}]) != prompt_key(
        [{"role": "user", "content": "\ud801"}]
    )
