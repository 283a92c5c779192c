"""The requests, as OpenAI and vLLM define them, read strictly: what is unknown or not supported is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data.schema import Message
from stages.serve.errors import ApiError, invalid

MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_STOPS = 32

IGNORED = {
    "user",
    "metadata",
    "store",
    "service_tier",
    "safety_identifier",
    "prompt_cache_key",
    "encoding_format",
    "priority",
}
"""Parameters that change nothing here."""

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "min_p": (0,),
    "logit_bias": ({},),
    "suffix": ("",),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "function_call": ("none",),
    "parallel_tool_calls": (True, False),
    "modalities": (["text"],),
    "truncate_prompt_tokens": (),
}
"""Parameters that are not supported, and the values besides null at which they change nothing."""


class Strict(BaseModel):
    """A part of a request. Unknown fields are refused, and values are not converted."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False


class _Sampled(Strict):
    """What both kinds of completion share."""

    model: str
    max_tokens: Annotated[int, Field(ge=0)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1)] | None = None
    n: Annotated[int, Field(ge=1, le=MAX_CHOICES)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63 - MAX_CHOICES)] | None = None
    stop: str | Annotated[list[str], Field(max_length=MAX_STOPS)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class TextPart(Strict):
    type: Literal["text"]
    text: str


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]
    name: str | None = None
    refusal: None = None


class ChatRequest(_Sampled):
    messages: Annotated[list[ChatMessage], Field(min_length=1)]
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None


class CompletionRequest(_Sampled):
    prompt: str | list[str] | list[int] | list[list[int]]
    echo: bool | None = None
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    best_of: int | None = None


class ScoreRequest(Strict):
    """vLLM's `/score`: prompts and their answers."""

    model: str | None = None
    text_1: str | list[str]
    text_2: str | list[str]


class PoolingRequest(Strict):
    """vLLM's `/classify` and `/pooling`: rendered text or its tokens, or a conversation."""

    model: str | None = None
    input: str | list[str] | list[int] | list[list[int]] | None = None
    messages: list[ChatMessage] | None = None
    task: Literal["classify", "reward", "token_classify"] | None = None


R = TypeVar("R", bound=Strict)

ALIASES = {
    "queries": "text_1",
    "documents": "text_2",
    "data_1": "text_1",
    "data_2": "text_2",
}
"""Other names that versions of vLLM give to fields of `/score`."""

RAW = ("activation", "softmax", "use_activation", "normalize")
"""vLLM's switches for an activation on scores. Scores here have none."""


def parsed(body: bytes, kind: type[R]) -> R:
    """The request in a body. Raises `ApiError` (400) that names the first wrong field."""
    values = _object(body)
    for name, neutral in NEUTRAL.items():
        given = values.pop(name, None)
        if given is not None and not any(_same(given, value) for value in neutral):
            raise invalid(f"{name} is not supported here: leave it out", name, "unsupported_parameter")
    for name in RAW:
        if values.pop(name, None) is True:
            raise invalid(f"{name} is not supported here: scores are raw", name, "unsupported_parameter")
    values = {name: value for name, value in values.items() if name not in IGNORED}
    if kind is ScoreRequest:
        values = {ALIASES.get(name, name): value for name, value in values.items()}
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise _refusal(error) from None


def _object(body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body.decode("utf-8"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise invalid(
            f"the body is not valid JSON: {str(error) or type(error).__name__}", code="invalid_json"
        ) from None
    if not isinstance(values, dict):
        raise invalid("the body must be a JSON object")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a JSON number")


def _same(a: Any, b: Any) -> bool:
    """Equality in which 0 is not false, nor 1 true."""
    return a == b and isinstance(a, bool) == isinstance(b, bool)


def _refusal(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    # A field that takes several types reports each of them below its own name.
    place = [str(part) for part in first["loc"]]
    name = place[0] if place else None
    if first["type"] == "extra_forbidden":
        return invalid(f"unknown parameter {'.'.join(place)!r}", ".".join(place), "unknown_parameter")
    if first["type"] == "missing" and len(place) == 1:
        return invalid(f"{name} is missing", name, "missing_required_parameter")
    kinds = {tuple(problem["loc"][:1]) for problem in error.errors()}
    several = len(error.errors()) > 1 and len(kinds) == 1
    message = f"{name} has a wrong type or value" if several else f"{'.'.join(place)}: {first['msg']}"
    return invalid(message, name, "invalid_value")


def conversation(messages: list[ChatMessage]) -> list[Message]:
    """The messages with text contents, as the codec takes them."""
    roles = {"developer": "system"}
    return [
        {
            "role": roles.get(message.role, message.role),
            "content": message.content
            if isinstance(message.content, str)
            else "".join(part.text for part in message.content),
        }
        for message in messages
    ]


T = TypeVar("T")


def refusing(work: Callable[[], T], param: str) -> T:
    """Runs what encodes a client's text. Text that a tokenizer cannot take is the client's mistake."""
    try:
        return work()
    except (UnicodeError, TypeError) as error:
        raise invalid(f"{param} holds text that is not Unicode: {error}", param) from None
