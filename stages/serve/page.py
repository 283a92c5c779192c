"""The chat page: models side by side, blind, with a vote that is stored as a ranking."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated

from pydantic import Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from data.tables.messages import with_system
from stages.chat import notice
from stages.models.templates import Refused
from stages.sampling.history import fitted
from stages.serve.errors import invalid
from stages.serve.models import Served
from stages.serve.protocol import ChatMessage, Strict, conversation, parsed, refusing
from stages.serve.votes import Votes

HERE = Path(__file__).parent


class FitRequest(Strict):
    """A conversation to fit into the context, with room for an answer."""

    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)]


class VoteRequest(Strict):
    """Ranks (1 is best) of the models' answers to a conversation, in the order in which they were shown."""

    prompt: Annotated[list[ChatMessage], Field(min_length=1)]
    completions: Annotated[list[str], Field(min_length=2, max_length=16)]
    models: Annotated[list[str], Field(min_length=2, max_length=16)]
    ranks: Annotated[list[Annotated[int, Field(ge=1, le=16)]], Field(min_length=2, max_length=16)]
    annotator: Annotated[str, Field(min_length=1, max_length=64)]
    vote: Annotated[str, Field(min_length=8, max_length=64)]
    temperature: Annotated[float, Field(ge=0, le=2)]
    blind: bool


class Page:
    """The handlers.

    Args:
        needs_key: whether the API needs a key, which the page then asks for.
    """

    def __init__(self, served: Served, needs_key: bool) -> None:
        self.served, self.needs_key = served, needs_key
        self.votes = Votes(served.folder) if served.folder else None

    def routes(self) -> list[BaseRoute]:
        return [
            Route("/", self.index),
            Route("/page/settings", self.settings),
            Route("/page/fit", self.fit, methods=["POST"]),
            Route("/page/vote", self.vote, methods=["POST"]),
            Mount("/static/style", StaticFiles(directory=str(files("ranking") / "static"))),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ]

    async def index(self, request: Request) -> Response:
        return HTMLResponse((HERE / "templates/chat.html").read_text(encoding="utf-8"))

    async def settings(self, request: Request) -> Response:
        return JSONResponse(
            {
                "title": self.served.title,
                "models": list(self.served.models),
                "limit": self.served.limit,
                "votes": str(self.votes.path) if self.votes else None,
            }
        )

    async def fit(self, request: Request) -> Response:
        """The conversation without its oldest turns, as far as they do not fit."""
        asked = parsed(await request.body(), FitRequest)
        limit = None if self.served.limit is None else self.served.limit - asked.max_tokens
        try:
            kept, dropped = await run_in_threadpool(
                refusing,
                lambda: fitted(
                    with_system(conversation(asked.messages), self.served.system), self.served.codec.prompt, limit
                ),
                "messages",
            )
        except Refused as refused:
            raise invalid(f"the chat template refuses this conversation: {refused.words}", "messages") from None
        return JSONResponse({"messages": kept, "dropped": dropped, "notice": notice(dropped) if dropped else ""})

    async def vote(self, request: Request) -> Response:
        asked = parsed(await request.body(), VoteRequest)
        if self.votes is None:
            raise invalid("votes are stored beside a run, and this model is not of one")
        if not len(asked.completions) == len(asked.models) == len(asked.ranks):
            raise invalid("completions, models and ranks must have the same number", "ranks", "invalid_value")
        for name in asked.models:
            if name not in self.served.models:
                raise invalid(f"there is no model {name!r}", "models", "model_not_found")
        new = await run_in_threadpool(
            self.votes.add,
            asked.vote,
            conversation(asked.prompt),
            asked.completions,
            asked.models,
            asked.ranks,
            asked.annotator,
            temperature=asked.temperature,
            blind=asked.blind,
        )
        return JSONResponse({"stored": True, "new": new, "file": str(self.votes.path)})
