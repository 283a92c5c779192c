"""Errors of the API, in OpenAI's shape: `{"error": {"message", "type", "param", "code"}}`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipeline.wording import listing

INVALID = "invalid_request_error"


class ApiError(Exception):
    """A request that is refused, or that failed.

    Args:
        status: of the HTTP response.
        message: what is wrong, for people.
        param: the part of the request that is wrong.
        code: for programs.
    """

    def __init__(
        self, status: int, message: str, *, kind: str = INVALID, param: str | None = None, code: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code = status, message, kind, param, code

    @property
    def content(self) -> dict[str, Any]:
        return {
            "error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code},
        }

    @property
    def headers(self) -> dict[str, str]:
        if self.status == 401:
            return {"WWW-Authenticate": "Bearer"}
        return {"Retry-After": "1"} if self.status in (429, 503) else {}


def invalid(message: str, param: str | None = None, code: str | None = None) -> ApiError:
    return ApiError(400, message, param=param, code=code)


def unknown_model(name: str, known: Sequence[str]) -> ApiError:
    return ApiError(
        404,
        f"there is no model {name!r} here; the models are {listing(list(known))}",
        param="model",
        code="model_not_found",
    )


def too_long(prompt: int, answer: int, limit: int, param: str) -> ApiError:
    asked = f"{prompt:,} in the prompt" + (f" and {answer:,} for the answer" if answer else "")
    return invalid(
        f"this model's maximum context length is {limit:,} tokens, and the request needs {prompt + answer:,}: "
        f"{asked}. Shorten the prompt or lower max_tokens.",
        param,
        "context_length_exceeded",
    )


def busy(waiting: int) -> ApiError:
    return ApiError(
        429,
        f"the server is busy ({waiting:,} wait): try again later",
        kind="rate_limit_error",
        code="rate_limit_exceeded",
    )


def stopping() -> ApiError:
    return ApiError(503, "the server is stopping", kind="server_error", code="stopping")


def no_memory() -> ApiError:
    return ApiError(
        503, "the server ran out of memory: try again, with less", kind="server_error", code="no_memory"
    )


def broken() -> ApiError:
    return ApiError(500, "the server failed; its log says why", kind="server_error", code="internal_error")
