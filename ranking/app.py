"""The pages of annotators and of the admin. Every route begins with the token of its link."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from statistics import median
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from pipeline.files import readable_seconds
from pipeline.language import mark
from pipeline.wording import counted, fixed, percent
from ranking import assignment, forms
from ranking.campaign import Campaign
from ranking.language import Language
from ranking.markup import formatted
from ranking.overview import overview
from ranking.security import MAX_BODY, Guard, Hosts, Links
from ranking.store import Conflict, Store, Stored, Task
from ranking.text import visible

HERE = Path(__file__).parent
LONG = 1500
"""Answers with this many characters or more scroll in a box."""
PACE = 20
"""How many of an annotator's last items the remaining time is estimated from."""


class Pages:
    """The routes' handlers.

    Args:
        finish: called when the admin ends the campaign.
        address: of the pages, for the links that the admin sees.

    Attributes:
        last_visit: when an annotator last used the page, by `time.monotonic`.
    """

    def __init__(
        self, store: Store, campaign: Campaign, links: Links, finish: Callable[[], None], address: str
    ) -> None:
        self.store, self.campaign, self.links = store, campaign, links
        self.finish, self.address = finish, address
        self.last_visit = time.monotonic()
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters |= {
            "visible": visible,
            "formatted": formatted,
            "counted": counted,
            "percent": percent,
            "fixed": fixed,
            "duration": readable_seconds,
        }
        self.templates.globals |= {"campaign": campaign, "long": LONG}
        self.language = Language.load(campaign.language)
        self.language.install(self.templates)

    def app(self, hosts: list[str]) -> Starlette:
        return Starlette(
            routes=[
                Mount("/static", StaticFiles(directory=HERE / "static")),
                Route("/r/{token}/", self.current),
                Route("/r/{token}/done", self.done),
                Route("/r/{token}/alive", self.alive),
                Route("/r/{token}/item/{task:int}", self.item, methods=["GET"]),
                Route("/r/{token}/item/{task:int}", self.submit, methods=["POST"]),
                Route("/admin/{token}/", self.admin, methods=["GET"]),
                Route("/admin/{token}/live", self.live, methods=["GET"]),
                Route("/admin/{token}/finish", self.confirm, methods=["GET"]),
                Route("/admin/{token}/finish", self.end, methods=["POST"]),
            ],
            middleware=[Middleware(Guard), Middleware(Hosts, names=hosts)],
            exception_handlers={HTTPException: self.refuse},
            max_body_size=MAX_BODY,
        )

    # --- annotators

    def current(self, request: Request) -> Response:
        """The annotator's next item, or why there is none."""
        name = self._annotator(request)
        task = assignment.next_task(self.store, self.campaign, name)
        if task is not None:
            return self._item_page(request, task)
        results = self.store.submitted(self.campaign.name, name)
        return self._page(
            "finished.html",
            progress=assignment.progress(self.store, self.campaign),
            ranked=sum(stored.assessment.ranks is not None for stored in results),
            skipped=sum(stored.assessment.ranks is None for stored in results),
            sent=self._sent(request, name),
            base=self._base(request),
            name=name,
        )

    def alive(self, request: Request) -> Response:
        """Open pages ask for this while somebody works on them."""
        self._annotator(request)
        return Response(status_code=204)

    def done(self, request: Request) -> Response:
        """The items that the annotator ranked, newest first."""
        name = self._annotator(request)
        stored = self.store.submitted(self.campaign.name, name)
        stored.sort(key=lambda s: -s.received_at)
        return self._page("done.html", stored=stored, base=self._base(request), name=name)

    def item(self, request: Request) -> Response:
        task = self._task(request)
        assignment.show_again(self.store, task)
        return self._item_page(request, task)

    async def submit(self, request: Request) -> Response:
        """Stores a submission and confirms it. A submission that is sent again is stored once."""
        body = await request.body()
        return await run_in_threadpool(self._submit, request, body)

    def _submit(self, request: Request, body: bytes) -> Response:
        task = self._task(request)
        quick = "application/json" in request.headers.get("accept", "")
        try:
            form = forms.Form(body)
            new = self.store.submit(task.id, form.submission(), forms.read_assessment(form, task, self.campaign))
        except forms.BadForm as error:
            if quick:
                return JSONResponse({"error": self.language.refused(error)}, 422)
            return self._item_page(request, task, self.language.refused(error), status=422)
        except Conflict:
            message = self.language.translated(_SENT_BEFORE)
            if quick:
                return JSONResponse({"error": message}, 409)
            return self._item_page(request, task, message, status=409)
        following = f"{self._base(request)}?sent={task.id}"
        if quick:
            return JSONResponse({"stored": True, "new": new, "next": following})
        return RedirectResponse(following, status_code=303)

    def _item_page(self, request: Request, task: Task, problem: str = "", status: int = 200) -> Response:
        stored = self.store.stored(task)
        assessment = stored.assessment if stored else None
        finished = self.store.finished(self.campaign.name, task.annotator)
        pace = [s.seconds for s in self.store.stored_all(finished[-PACE:])]
        revisions = stored.revisions if stored else 0
        ranks = assessment.ranks if assessment and not assessment.all_bad else None
        order = list(range(len(task.shown)))
        if ranks:
            order.sort(key=lambda p: (ranks[task.shown[p]], p))
        share = assignment.share(self.store, self.campaign, task.annotator)
        return self._page(
            "item.html",
            status=status,
            task=task,
            assessment=assessment,
            ranks=ranks,
            order=order,
            letters=[_letter(p) for p in range(len(order))],
            submission=secrets.token_urlsafe(24),
            draft=f"draft/{task.campaign}/{task.annotator}/{task.item.key}/{task.id}/{revisions}",
            problem=problem,
            name=task.annotator,
            base=self._base(request),
            before=max((number for number in finished if number < task.id), default=None),
            finished=len(finished),
            sent=self._sent(request, task.annotator),
            share=share,
            progress=assignment.progress(self.store, self.campaign),
            left=_time_left(pace, share),
        )

    def _sent(self, request: Request, name: str) -> Stored | None:
        """What the annotator has just sent, to confirm it on the next page."""
        number = request.query_params.get("sent", "")
        task = self.store.task(int(number)) if number.isascii() and number.isdigit() and len(number) < 16 else None
        if task is None or task.annotator != name or task.campaign != self.campaign.name:
            return None
        return self.store.stored(task)

    # --- admin

    def admin(self, request: Request) -> Response:
        self._admin(request)
        links = {
            name: f"{self.address}/r/{self.links.token('annotator', name)}/" for name in self.campaign.annotators
        }
        return self._overview_page(request, "admin.html", links=links)

    def live(self, request: Request) -> Response:
        """The parts of the admin's page that change, or 204 if they are still those of `version`."""
        self._admin(request)
        if request.query_params.get("version") == str(self.store.newest()):
            return Response(status_code=204)
        return self._overview_page(request, "live.html")

    def _overview_page(self, request: Request, template: str, **values: Any) -> Response:
        version = self.store.newest()  # read first: what comes in meanwhile is fetched the next time
        summary = overview(self.store, self.campaign)
        return self._page(template, seen=summary, version=version, base=self._base(request), **values)

    def confirm(self, request: Request) -> Response:
        self._admin(request)
        return self._page(
            "finish.html", seen=overview(self.store, self.campaign), ended=False, base=self._base(request)
        )

    def end(self, request: Request) -> Response:
        self._admin(request)
        seen = overview(self.store, self.campaign)
        if seen.progress.done == 0:
            raise HTTPException(409, "There is no ranking yet. A campaign needs at least one before it can end.")
        self.finish()
        return self._page("finish.html", seen=seen, ended=True, base=self._base(request))

    # --- common

    def refuse(self, request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        phrase = HTTPStatus(error.status_code).phrase
        message = error.detail if error.detail != phrase else _MESSAGES.get(error.status_code, phrase)
        message = self.language.translated(message)
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"error": message}, error.status_code)
        return self._page("error.html", error.status_code, message=message)

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self.templates.get_template(template).render({**values, "status": status}), status)

    def _annotator(self, request: Request) -> str:
        name = self.links.holder(request.path_params["token"], "annotator", self.campaign.annotators)
        if name is None:
            raise HTTPException(
                403, mark("This link is not valid (any more). Ask the person who sent it to you for a new one.")
            )
        self.last_visit = time.monotonic()
        return name

    def _admin(self, request: Request) -> None:
        if self.links.holder(request.path_params["token"], "admin", [""]) is None:
            raise HTTPException(403, "This is not the admin’s link.")

    def _task(self, request: Request) -> Task:
        """The task that the path names. Another annotator's task is refused like one that does not exist."""
        name = self._annotator(request)
        task = self.store.task(request.path_params["task"])
        if task is None or task.annotator != name or task.campaign != self.campaign.name:
            raise HTTPException(404, mark("You have no such item."))
        return task

    def _base(self, request: Request) -> str:
        """The path of the request's link."""
        return "/".join(request.url.path.split("/")[:3]) + "/"


_SENT_BEFORE = mark(
    "This form was sent before with different content. Below is what is stored; change and resend it."
)
_MESSAGES = {
    404: mark("There is no page here. Open the link that you were given."),
    405: mark("This page does not accept that."),
    413: mark("The form is too long to be stored. Shorten the note."),
}


def _letter(position: int) -> str:
    return chr(ord("A") + position) if position < 26 else str(position + 1)


def _time_left(seconds: list[float], share: assignment.Progress) -> float | None:
    """Seconds until the annotator has done their share; None before three items, and where nothing is left."""
    if len(seconds) < 3 or share.complete:
        return None
    return median(seconds) * (share.wanted - share.done)
