"""An OpenAI-compatible endpoint, for language models that judge answers."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pipeline.config.section import RUNTIME, Count, Natural, Positive, field, section

if TYPE_CHECKING:
    from pipeline.config.rules import Problem

SET_BY_THE_CLIENT = frozenset({"model", "messages", "stream", "n"})
"""Parameters of a request that a recipe must not set."""


@section
class EndpointConfig:
    """A language model behind an endpoint that implements OpenAI's chat completions."""

    base_url: str
    """Address of the endpoint up to the version, as in `https://api.example.org/v1`; `/chat/completions` is
    appended."""
    model: str
    """The endpoint's name of the model."""
    api_key_env: str | None = field(default=None, metadata=RUNTIME)
    """Environment variable with the API key; null: no key is sent. The key itself is never written to a file."""
    parameters: dict[str, Any] = field(default_factory=lambda: {"temperature": 0, "max_tokens": 512})
    """Further parameters of each request, by the endpoint's names."""
    concurrency: Count = field(default=4, metadata=RUNTIME)
    """Requests in flight at the same time."""
    timeout: Positive = field(default=120.0, metadata=RUNTIME)
    """Seconds after which an unanswered request is repeated."""
    retries: Natural = field(default=5, metadata=RUNTIME)
    """How often a failed request is repeated, after growing pauses."""


def problems(path: str, endpoint: EndpointConfig) -> Iterator[Problem]:
    """Values of an endpoint, at this dotted path, that no request can use."""
    if not re.fullmatch(r"https?://\S+", endpoint.base_url):
        yield f"{path}.base_url", f"must be like https://api.example.org/v1, got {endpoint.base_url!r}"
    if owned := sorted(SET_BY_THE_CLIENT & endpoint.parameters.keys()):
        yield f"{path}.parameters", f"must not set {', '.join(owned)}"
