"""The chat page: its data, and votes that are stored as rankings."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
from repository import ROOT
from served import Api

from data.schema import read_rankings_file
from data.tables.rankings import read_rankings
from data.tables.sources import Dropped
from pipeline.config.data import RankingTableConfig
from stages.serve.votes import Votes

SERVE = ROOT / "stages/serve"


def vote(**changes: Any) -> dict[str, Any]:
    return {
        "prompt": tiny.user("which is best?"),
        "completions": ["the fox", "a pub", "none"],
        "models": ["ppo", "base", "sft"],
        "ranks": [1, 3, 1],
        "annotator": "ana",
        "vote": "vote-number-1",
        "temperature": 0.7,
        "blind": True,
        **changes,
    }


def test_a_vote_is_stored_once_as_a_ranking(api: Api) -> None:
    file = api.served.folder / "chat-rankings.jsonl"  # type: ignore[operator]
    file.unlink(missing_ok=True)
    reply = api.post("/page/vote", **vote())
    assert reply.json == {"stored": True, "new": True, "file": str(file)}
    assert api.post("/page/vote", **vote()).json["new"] is False, "sent again"
    api.post("/page/vote", **vote(vote="vote-number-2", ranks=[2, 1, 3]))
    first, second = read_rankings_file(file)
    assert (first.prompt, first.completions) == (vote()["prompt"], vote()["completions"])
    assert first.ranks == [1, 2, 1], "ranks are dense"
    assert first.models == ["ppo", "base", "sft"]
    assert (first.annotator, first.human) == ("ana", True)
    assert second.ranks == [2, 1, 3]
    assert file.stat().st_mode & 0o077 == 0, "only its owner reads it"
    again = Votes(file.parent).add(
        "vote-number-2", tiny.user("a"), ["b", "c"], ["ppo", "sft"], [1, 2], "ana", temperature=0, blind=True
    )
    assert not again, "after a restart"
    table = RankingTableConfig(path=str(file), format="native")
    assert [ranking.ranks for ranking in read_rankings(table, Dropped())] == [[1, 2, 1], [2, 1, 3]]


def test_a_vote_that_was_half_written_is_dropped_and_the_next_one_is_whole(tmp_path: Path) -> None:
    def store(votes: Votes, name: str) -> bool:
        prompt = tiny.user("which is best?")
        return votes.add(name, prompt, ["a", "b"], ["ppo", "sft"], [1, 2], "ana", temperature=1, blind=True)

    store(Votes(tmp_path), "first")
    file = tmp_path / "chat-rankings.jsonl"
    whole = file.read_bytes()

    file.write_bytes(whole + whole[:40])  # the server was killed
    votes = Votes(tmp_path)
    assert file.read_bytes() == whole

    file.write_bytes(whole + whole[:40])  # the disk was full
    assert store(votes, "second")
    assert [ranking.metadata["vote"] for ranking in read_rankings_file(file)] == ["first", "second"]


@pytest.mark.parametrize(
    ("changes", "param"),
    [
        ({"ranks": [1, 2]}, "ranks"),
        ({"ranks": [0, 1, 2]}, "ranks"),
        ({"models": ["ppo", "base", "gone"]}, "models"),
        ({"completions": ["one"]}, "completions"),
        ({"annotator": ""}, "annotator"),
        ({"more": 1}, "more"),
    ],
)
def test_wrong_votes_are_refused(api: Api, changes: dict[str, Any], param: str) -> None:
    reply = api.post("/page/vote", **vote(vote="another-vote", **changes))
    assert reply.status == 400
    assert reply.error["param"] == param


def test_the_page_is_told_which_turns_no_longer_fit(api: Api) -> None:
    talk = [{"role": ("user", "assistant")[i % 2], "content": letter * 30} for i, letter in enumerate("abcde")]
    fit = api.post("/page/fit", messages=talk, max_tokens=20).json
    assert fit["messages"] == talk[2:]
    assert fit["dropped"] == 2
    assert fit["notice"].startswith("the first 2 turns no longer fit")
    assert api.post("/page/fit", messages=talk[:3], max_tokens=10).json["notice"] == ""
    assert api.chat(messages=fit["messages"], max_tokens=20).status == 200


def test_the_page_obeys_its_policy(api: Api) -> None:
    reply = api.get("/")
    assert reply.headers["content-type"] == "text/html; charset=utf-8"
    page = reply.body.decode()
    assert not re.search(r"<script(?! type=\"module\" src=)|<style|\son\w+=|style=|javascript:", page)
    for path in re.findall(r'(?:href|src)="(/static/[^"]+)"', page):
        assert api.get(path).status == 200, path
    assert api.get("/static/../models.py").status == 404
    script = (SERVE / "static/chat.js").read_text()
    assert "innerHTML" not in script, "texts of models are never read as HTML"


def test_settings_name_the_models(api: Api) -> None:
    settings = json.loads(api.get("/page/settings").body)
    assert settings["models"] == ["base", "sft", "ppo"]
    assert settings["limit"] == 128
    assert Path(settings["votes"]).name == "chat-rankings.jsonl"
