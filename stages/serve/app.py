"""The Starlette app: routes, and errors in OpenAI's shape."""

from __future__ import annotations

import time
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from ranking.security import Hosts
from stages.serve.access import MAX_BODY, Access
from stages.serve.completions import Completions
from stages.serve.engine import Engine
from stages.serve.errors import ApiError, broken, unknown_model
from stages.serve.models import Served
from stages.serve.page import Page
from stages.serve.scores import Scores


def application(
    served: Served, engine: Engine, *, key: str | None = None, hosts: list[str] | None = None
) -> Starlette:
    """The app.

    Args:
        engine: started by the caller.
        key: the API key that requests must have; None: none.
        hosts: further names that the server answers to. With a key it answers to every name: a page that points
            its name here (DNS rebinding) does not have the key.
    """
    completions, scores, page = Completions(served, engine), Scores(served, engine), Page(served, key is not None)
    about = _About(served, engine)
    routes: list[BaseRoute] = [
        Route("/health", about.health),
        Route("/v1/models", about.models),
        Route("/v1/models/{name:path}", about.model),
        Route("/v1/chat/completions", completions.chat, methods=["POST"]),
        Route("/v1/completions", completions.complete, methods=["POST"]),
        *(Route(path, scores.score, methods=["POST"]) for path in ("/v1/score", "/score")),
        *(Route(path, scores.classify, methods=["POST"]) for path in ("/classify", "/v1/classify")),
        *(Route(path, scores.pooling, methods=["POST"]) for path in ("/pooling", "/v1/pooling")),
        *page.routes(),
    ]
    access = Middleware(Access, key=key)
    return Starlette(
        routes=routes,
        middleware=[access] if key is not None else [access, Middleware(Hosts, names=hosts or [])],
        exception_handlers={ApiError: _refused, HTTPException: _http_error, Exception: _failed},
        max_body_size=MAX_BODY,
    )


class _About:
    def __init__(self, served: Served, engine: Engine) -> None:
        self.served, self.engine, self.created = served, engine, int(time.time())

    async def health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok", "running": self.engine.running, "waiting": self.engine.waiting})

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(name) for name in self.served.names]})

    async def model(self, request: Request) -> Response:
        name = request.path_params["name"]
        if name not in self.served.names:
            raise unknown_model(name, self.served.names)
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> dict[str, Any]:
        reward = self.served.reward
        limit = self.served.limit if name in self.served.models else reward and reward.longest
        return {
            "id": name,
            "object": "model",
            "created": self.created,
            "owned_by": "tutelage",
            "root": self.served.title,
            "max_model_len": limit,
        }


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, ApiError)
    return JSONResponse(error.content, error.status, error.headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    reasons = {
        404: f"there is nothing at {request.url.path}",
        405: f"{request.url.path} does not take {request.method}",
        413: f"the request is larger than {MAX_BODY // 2**20} MB",
    }
    message = reasons.get(error.status_code, HTTPStatus(error.status_code).phrase)
    refusal = ApiError(error.status_code, message)
    return JSONResponse(refusal.content, error.status_code, error.headers)


async def _failed(request: Request, error: Exception) -> Response:
    return JSONResponse(broken().content, broken().status)
