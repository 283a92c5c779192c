"""The pages and requests that the server serves, accepts and refuses, over HTTP without a browser."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from urllib.parse import quote, urlencode

import pytest
from ranking_site import Site, ask, contents

from ranking.campaign import Source
from ranking.export import rankings
from ranking.security import MAX_BODY

Make = Callable[..., Site]


@pytest.fixture
def two(site: Make) -> Site:
    return site([ask(0), ask(1)])


def test_a_submitted_ranking_is_stored_unchanged(two: Site) -> None:
    ana = two.client("ana")
    item = ana.current()
    assert item is not None
    reply = ana.rank(
        item,
        [2, 1, 4, 2],
        **{"label-0": ["Invents facts"], "note": " fine ", "seconds": "4.5", "flag_reason": "odd"},
    )
    assert (reply.status, '"stored":true' in reply.text) == (200, True)
    task = two.store.task(item)
    assert task is not None
    [ranking] = rankings(two.store, two.campaign)
    by_position = [ranking.ranks[ranking.metadata["shown"].index(p)] for p in range(4)]
    assert by_position == [2, 1, 3, 2]
    assert ranking.completions == two.campaign.sources[0].completions
    assert ranking.metadata["labels"][ranking.metadata["shown"].index(0)] == ["Invents facts"]
    assert sum(map(len, ranking.metadata["labels"])) == 1
    assert (ranking.human, ranking.annotator, ranking.metadata["note"]) == (True, "ana", "fine")
    assert (ranking.metadata["flag"], ranking.metadata["flag_reason"]) == (True, "odd")
    assert ranking.metadata["repeat"] is ranking.metadata["all_bad"] is False
    assert 0 < ranking.metadata["seconds"] <= 4.5


def test_the_form_works_without_javascript(two: Site) -> None:
    ana = two.client("ana")
    page = ana.get().text
    fields = dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))
    names = re.findall(r'<input type="number"[^>]* name="(rank-\d)"', page)
    assert len(names) == 4
    item = ana.current()
    assert item is not None
    reply = ana.submit(item, {**fields, **dict.fromkeys(names, 1)}, json_wanted=False)
    assert (reply.status, reply.headers["location"]) == (303, f"{ana.base}?sent={item}")
    assert ana.current() != item
    assert 'value="1"' in ana.get(f"item/{item}").text
    incomplete = ana.submit(item, {"rank-0": 1}, json_wanted=False)
    assert incomplete.status == 422
    assert "Give each answer a rank" in incomplete.text
    assert contents(two)[-1]["ranks"] == [1, 1, 1, 1]


def test_a_resent_submission_is_stored_once(two: Site) -> None:
    ana = two.client("ana")
    item = ana.current()
    assert item is not None
    fields = {"submission": "s" * 20}
    replies = [ana.rank(item, [1, 2, 3, 4], **fields) for _ in range(3)]
    assert [reply.status for reply in replies] == [200, 200, 200]
    assert ['"new":true' in reply.text for reply in replies] == [True, False, False]
    assert len(contents(two)) == 1
    other = ana.rank(item, [4, 3, 2, 1], **fields)
    assert (other.status, "sent before" in other.text) == (409, True)
    ben = two.client("ben")
    bens_item = ben.current()
    assert bens_item is not None
    assert ben.rank(bens_item, [1, 2, 3, 4], **fields).status == 409
    assert len(contents(two)) == 1


def test_a_link_opens_only_its_annotators_pages(two: Site) -> None:
    ana, ben = two.client("ana"), two.client("ben")
    item = ana.current()
    assert item is not None
    assert ben.get(f"item/{item}").status == 404
    assert ben.rank(item, [1, 2, 3, 4]).status == 404
    assert ana.get("item/999").status == 404
    admin = two.links.token("admin")
    for path, status in {
        "/": 404,
        "/r//": 404,
        f"/r/{'x' * 43}/": 403,
        f"/r/{ana.base[3:-2]}/": 403,
        f"/r/{admin}/": 403,
        f"/r/{'é'}/": 403,
        f"/admin/{ana.base[3:]}": 403,
        f"/admin/{admin}/": 200,
        "/static/../store.py": 404,
        "/static/%2e%2e/store.py": 404,
    }.items():
        reply = ana.request("GET", path.replace("é", "%C3%A9"))
        assert reply.status == status, path
        assert "default-src 'none'" in reply.headers["content-security-policy"]
    refused = ana.request("GET", f"/r/{'x' * 43}/").text
    assert "This link is not valid" in refused
    wrong = ana.request("POST", f"/r/{'x' * 43}/item/{item}", b"rank-0=1")
    assert wrong.status == 403
    assert contents(two) == []


def test_requests_for_foreign_hosts_are_refused(two: Site) -> None:
    ana = two.client("ana")
    for host in ("127.0.0.1:1", "localhost", "LOCALHOST:8000", "[::1]:80", "10.1.2.3"):
        assert ana.get(Host=host).status == 200, host
    for host in ("evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "[::1", "a@127.0.0.1@b"):
        assert ana.get(Host=host).status == 400, host
    item = ana.current()
    assert item is not None
    assert ana.rank(item, [1, 2, 3, 4]).status == 200
    for site in ("cross-site", "same-site", "none"):
        assert ana.submit(item, {}, Sec_Fetch_Site=site).status == 403


def test_a_body_that_is_too_long_or_not_a_form_is_refused(two: Site) -> None:
    ana = two.client("ana")
    item = ana.current()
    assert item is not None
    path = f"{ana.base}item/{item}"
    assert ana.request("POST", path, b"a" * (MAX_BODY + 1)).status == 413
    for body in (
        b"\xff\xfe",
        b"",
        b"no form",
        urlencode({"submission": "short"}).encode(),
        b"a=1&" * 3000 + b"a=1",
    ):
        assert ana.request("POST", path, body, Accept="application/json").status == 422, body[:20]
    for fields in ({"rank-0": "9"}, {"rank-0": "-1"}, {"rank-0": "1e9"}, {"moves": "x"}):
        assert ana.rank(item, [1, 2, 3, 4], **fields).status == 422, fields
    assert ana.rank(item, [1, 2, 3, 4], **{"label-0": "not offered", "seconds": "nan"}).status == 200
    assert contents(two)[0].keys() == {"task", "kind", "ranks"}


def test_every_page_has_a_restrictive_security_policy(two: Site) -> None:
    reply = two.client("ana").get()
    policy = reply.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "https" not in policy
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert reply.headers["referrer-policy"] == "no-referrer"
    assert reply.headers["cache-control"] == "no-store"
    assert "server" not in reply.headers
    static = two.client("ana").request("GET", "/static/rank.js")
    assert static.headers["cache-control"] == "no-cache"
    assert two.client("ana").request("GET", "/static/rank.js", If_None_Match=static.headers["etag"]).status == 304
    assert not re.search(r"<script(?! type=.module. src=)|\son\w+=|style=|https?://", reply.text)


def test_answers_are_escaped(site: Make) -> None:
    hostile = "</div><script>alert(1)</script>\"'><img src=x onerror=alert(1)>"
    strange = "a\x00b\u202ecod.exe\u2066x\ud83dy\x1b[31m\x85"
    prompt = [{"role": "assistant'\"><b>", "content": hostile}, {"role": "user", "content": "\ufeff" + hostile}]
    ana = site([Source(prompt, [hostile, strange, "x" * 100_000])], overlap=1, guidelines=hostile).client("ana")
    page = ana.get().text
    assert "<script>" not in page
    assert "<img" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert not re.search("[\x00\u202e\u2066\ud800-\udfff\ufeff\x1b\x85]", page)
    for shown in ("\u2400", "U+202E", "right-to-left override", "U+D83D", "\u241b", "U+0085"):
        assert shown in page, shown
    assert "x" * 100_000 in page


def test_skipping_all_bad_and_the_final_page(two: Site) -> None:
    ana, ben = two.client("ana"), two.client("ben")
    item = ana.current()
    assert item is not None
    assert ana.submit(item, {"action": "skip", "all_bad": "1", "flag": "1"}).status == 200
    following = ana.current()
    assert following not in (item, None)
    assert ana.submit(following or 0, {"all_bad": "1"}).status == 200
    assert ana.current() is None
    assert "You ranked 1 item. You skipped 1 item." in re.sub(r"<.*?>", "", ana.get().text)
    while (task := ben.current()) is not None:
        ben.rank(task, [1, 2, 3, 4])
    assert "All rankings are in" in ana.get().text
    kinds = {(row["kind"], row.get("all_bad", False), row.get("flag")) for row in contents(two)}
    assert kinds == {("skipped", False, ""), ("ranked", True, None), ("ranked", False, None)}
    bad = [r for r in rankings(two.store, two.campaign) if r.metadata["all_bad"]]
    assert [r.ranks for r in bad] == [[1, 1, 1, 1]]
    assert "skipped" in ana.get("done").text


def test_the_admin_sees_progress_and_can_finish(two: Site) -> None:
    ana, ben = two.client("ana"), two.client("ben")
    admin = f"/admin/{two.links.token('admin')}/"
    assert ana.request("POST", f"{admin}finish").status == 409
    for client, ranks in ((ana, [1, 2, 3, 4]), (ben, [1, 2, 3, 4])):
        item = client.current()
        assert item is not None
        task = two.store.task(item)
        assert task is not None
        # Ranks by completion: ben orders one of the six pairs the other way.
        wanted = ranks if client is ana else [2, 1, 3, 4]
        client.rank(item, [wanted[c] for c in task.shown], note="<i>note</i>")
    page = ana.request("GET", admin).text
    assert re.search(r"<strong>2</strong> of 4 rankings", page)
    assert page.count("83\N{NO-BREAK SPACE}% <small>of 6 pairs") == 4  # all, ana, ben, the disputed item
    version = re.search(r'data-version="(\d+)"', page)
    assert version
    assert ana.request("GET", f"{admin}live?version={version[1]}").status == 204
    part = ana.request("GET", f"{admin}live?version=0")
    assert (part.status, "<html" in part.text, "of 6 pairs" in part.text) == (200, False, True)
    assert ana.request("GET", f"/admin/{'x' * 43}/live").status == 403
    assert "&lt;i&gt;note" in page
    assert ana.base in page
    assert "Finish with 2 rankings" in ana.request("GET", f"{admin}finish").text
    assert not two.finished.is_set()
    assert ana.request("POST", f"{admin}finish").status == 200
    assert two.finished.is_set()


def test_what_was_sent_is_confirmed_to_its_annotator_only(two: Site) -> None:
    ana, ben = two.client("ana"), two.client("ben")
    item = ana.current()
    assert item is not None
    ana.rank(item, [1, 2, 3, 4])
    assert "Saved." in ana.get(f"?sent={item}").text
    for path in ("", f"?sent={item + 1}", "?sent=-1", "?sent=x", "?sent=²", f"?sent={'9' * 30}"):
        assert "Saved." not in ana.request("GET", ana.base + quote(path, safe="?=")).text, path
    assert "Saved." not in ben.get(f"?sent={item}").text
    assert ana.get("alive").status == 204


def test_two_answers_are_compared_by_choice(site: Make) -> None:
    served = site([ask(0, k=2)], overlap=2)
    wanted = {"ana": ("first", 1), "ben": ("tie", 0)}
    for name, (choice, _) in wanted.items():
        client = served.client(name)
        item = client.current()
        assert item is not None
        assert client.submit(item, {}).status == 422
        assert client.submit(item, {"choice": "both"}).status == 422
        assert client.submit(item, {"choice": choice}).status == 200
    ana, ben = rankings(served.store, served.campaign)
    assert ana.ranks[ana.metadata["shown"].index(0)] == 1
    assert sorted(ana.ranks) == [1, 2]
    assert ben.ranks == [1, 1]


def test_identical_answers_share_rank_and_rating(site: Make) -> None:
    prompt = [{"role": "user", "content": "q"}]
    source = Source(prompt, ["x", "y", "x"], ["m1", "m2", "m3"], "eval")
    served = site([source], overlap=1, ratings=True)
    ana = served.client("ana")
    item = ana.current()
    assert item is not None
    task = served.store.task(item)
    assert task is not None
    at = {task.item.completions[c]: p for p, c in enumerate(task.shown)}
    ana.submit(item, {f"rank-{at['x']}": 2, f"rank-{at['y']}": 1, "choice": "", f"rating-{at['x']}": 3})
    [partly] = rankings(served.store, served.campaign)
    assert (partly.ranks, partly.ratings, partly.metadata["ratings"]) == ([2, 1, 2], None, [3, None, 3])
    time.sleep(0.01)
    ana.submit(item, {f"rank-{at['x']}": 2, f"rank-{at['y']}": 1, f"rating-{at['x']}": 3, f"rating-{at['y']}": 7})
    [ranking] = rankings(served.store, served.campaign)
    assert (ranking.ratings, ranking.models, ranking.split) == ([3.0, 7.0, 3.0], ["m1", "m2", "m3"], "eval")
    assert ranking.metadata["revisions"] == 2
