"""The pages of annotators and of the admin. Every route begins with the token of its link."""

from __future__ import annotations

import secrets
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
from pipeline.wording import fixed, percent
from ranking import assignment, forms
from ranking.campaign import Campaign
from ranking.overview import overview
from ranking.security import MAX_BODY, Guard, Hosts, Links
from ranking.store import Conflict, Store, Task
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
    """

    def __init__(
        self, store: Store, campaign: Campaign, links: Links, finish: Callable[[], None], address: str
    ) -> None:
        self.store, self.campaign, self.links = store, campaign, links
        self.finish, self.address = finish, address
        self.templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self.templates.filters |= {
            "visible": visible,
            "percent": percent,
            "fixed": fixed,
            "duration": readable_seconds,
        }
        self.templates.globals |= {"campaign": campaign, "long": LONG}

    def app(self, hosts: list[str]) -> Starlette:
        return Starlette(
            routes=[
                Mount("/static", StaticFiles(directory=HERE / "static")),
                Route("/r/{token}/", self.current),
                Route("/r/{token}/done", self.done),
                Route("/r/{token}/item/{task:int}", self.item, methods=["GET"]),
                Route("/r/{token}/item/{task:int}", self.submit, methods=["POST"]),
                Route("/admin/{token}/", self.admin, methods=["GET"]),
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
        progress = assignment.progress(self.store, self.campaign)
        return self._page("finished.html", progress=progress, base=self._base(request), name=name)

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
                return JSONResponse({"error": str(error)}, 422)
            return self._item_page(request, task, str(error), status=422)
        except Conflict:
            message = (
                "This form was sent before with different content. Below is what is stored; change and resend it."
            )
            if quick:
                return JSONResponse({"error": message}, 409)
            return self._item_page(request, task, message, status=409)
        following = self._base(request)
        if quick:
            return JSONResponse({"stored": True, "new": new, "next": following})
        return RedirectResponse(following, status_code=303)

    def _item_page(self, request: Request, task: Task, problem: str = "", status: int = 200) -> Response:
        stored = self.store.stored(task)
        assessment = stored.assessment if stored else None
        finished = self.store.finished(self.campaign.name, task.annotator)
        pace = [s.seconds for s in self.store.stored_all(finished[-PACE:])]
        order = list(range(len(task.shown)))
        if assessment and assessment.ranks:
            order.sort(key=lambda p: (assessment.ranks[task.shown[p]], p))  # type: ignore[index]
        progress = assignment.progress(self.store, self.campaign)
        return self._page(
            "item.html",
            status=status,
            task=task,
            assessment=assessment,
            order=order,
            letters=[_letter(p) for p in range(len(order))],
            submission=secrets.token_urlsafe(24),
            problem=problem,
            name=task.annotator,
            base=self._base(request),
            before=max((number for number in finished if number < task.id), default=None),
            finished=len(finished),
            progress=progress,
            left=_time_left(pace, progress, len(self.campaign.annotators)),
        )

    # --- admin

    def admin(self, request: Request) -> Response:
        self._admin(request)
        links = {
            name: f"{self.address}/r/{self.links.token('annotator', name)}/" for name in self.campaign.annotators
        }
        return self._page(
            "admin.html", seen=overview(self.store, self.campaign), links=links, base=self._base(request)
        )

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
        if "application/json" in request.headers.get("accept", ""):
            return JSONResponse({"error": message}, error.status_code)
        return self._page("error.html", error.status_code, message=message)

    def _page(self, template: str, status: int = 200, **values: Any) -> Response:
        return HTMLResponse(self.templates.get_template(template).render({**values, "status": status}), status)

    def _annotator(self, request: Request) -> str:
        name = self.links.holder(request.path_params["token"], "annotator", self.campaign.annotators)
        if name is None:
            raise HTTPException(
                403, "This link is not valid (any more). Ask the person who sent it to you for a new one."
            )
        return name

    def _admin(self, request: Request) -> None:
        if self.links.holder(request.path_params["token"], "admin", [""]) is None:
            raise HTTPException(403, "This is not the admin’s link.")

    def _task(self, request: Request) -> Task:
        """The task that the path names. Another annotator's task is refused like one that does not exist."""
        name = self._annotator(request)
        task = self.store.task(request.path_params["task"])
        if task is None or task.annotator != name or task.campaign != self.campaign.name:
            raise HTTPException(404, "You have no such item.")
        return task

    def _base(self, request: Request) -> str:
        """The path of the request's link."""
        return "/".join(request.url.path.split("/")[:3]) + "/"


_MESSAGES = {
    404: "There is no page here. Open the link that you were given.",
    405: "This page does not accept that.",
    413: "The form is too long to be stored. Shorten the note.",
}


def _letter(position: int) -> str:
    return chr(ord("A") + position) if position < 26 else str(position + 1)


def _time_left(seconds: list[float], progress: assignment.Progress, annotators: int) -> float | None:
    """Seconds that this annotator has left if all do the same share; None before three items."""
    if len(seconds) < 3:
        return None
    return median(seconds) * (progress.wanted - progress.done) / annotators
