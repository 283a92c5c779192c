"""`/v1/chat/completions` and `/v1/completions`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from data.tables.messages import with_system
from stages.models.templates import Refused
from stages.serve.engine import Engine
from stages.serve.errors import ApiError, invalid, too_long, unknown_model
from stages.serve.models import REWARD, Served
from stages.serve.protocol import ChatRequest, CompletionRequest, conversation, parsed, refusing
from stages.serve.rows import Options, Piece, Row
from stages.serve.shapes import Answer, ChatShape, Shape, TextShape, usage

DEFAULT_TOKENS = 16
"""`max_tokens` of a text completion without one, as OpenAI has it."""
UNLIMITED = 1024
"""`max_tokens` of a chat completion without one, where the model's context is not known."""


class Completions:
    """The handlers.

    Args:
        served: the models.
        engine: runs them.
    """

    def __init__(self, served: Served, engine: Engine) -> None:
        self.served, self.engine, self.codec = served, engine, served.codec

    async def chat(self, request: Request) -> Response:
        asked = parsed(await request.body(), ChatRequest)
        self._known(asked.model)
        messages = with_system(conversation(asked.messages), self.served.system)
        try:
            prompt = refusing(lambda: self.codec.prompt(messages), "messages")
        except Refused as refused:
            raise invalid(f"the chat template refuses this conversation: {refused.words}", "messages") from None
        wanted = asked.max_completion_tokens or asked.max_tokens
        if asked.max_tokens == 0:
            raise invalid("max_tokens must be at least 1", "max_tokens", "invalid_value")
        if asked.top_logprobs is not None and not asked.logprobs:
            raise invalid("top_logprobs needs logprobs: true", "top_logprobs", "invalid_value")
        options = self._options(
            asked,
            self._tokens(len(prompt), wanted, None, "messages"),
            (asked.top_logprobs or 0) if asked.logprobs else None,
        )
        shape = ChatShape(
            asked.model,
            self.codec.tokenizer,
            logprobs=bool(asked.logprobs),
            usage_in_chunks=_usage_wanted(asked),
        )
        return await self._answer(request, asked, shape, [prompt], [options])

    async def complete(self, request: Request) -> Response:
        asked = parsed(await request.body(), CompletionRequest)
        self._known(asked.model)
        if asked.best_of not in (None, asked.n or 1):
            raise invalid("best_of is not supported here: leave it out", "best_of", "unsupported_parameter")
        prompts = self._prompts(asked.prompt)
        options = [
            self._options(
                asked,
                self._tokens(len(prompt), asked.max_tokens, DEFAULT_TOKENS, "prompt"),
                asked.logprobs,
                echo=bool(asked.echo),
            )
            for prompt in prompts
        ]
        n = asked.n or 1
        echoes = [self._echo(asked, place) for place in range(len(prompts)) for _ in range(n)]
        shape = TextShape(
            asked.model,
            self.codec.tokenizer,
            logprobs=asked.logprobs is not None,
            usage_in_chunks=_usage_wanted(asked),
            echoes=echoes,
        )
        return await self._answer(request, asked, shape, prompts, options)

    # --- Reading a request

    def _known(self, name: str) -> None:
        if name in self.served.models:
            return
        if name == REWARD and self.served.reward:
            raise invalid("reward is a reward model: send prompts and answers to /v1/score", "model")
        raise unknown_model(name, list(self.served.models))

    def _prompts(self, prompt: str | list[str] | list[int] | list[list[int]]) -> list[list[int]]:
        """Each prompt's tokens. Text is encoded as a document: with BOS if the tokenizer adds one, and with control
        tokens where they are spelled."""
        texts: list[Any] = (
            [prompt] if isinstance(prompt, str) or (prompt and isinstance(prompt[0], int)) else prompt
        )
        if not texts:
            raise invalid("prompt is empty", "prompt", "invalid_value")
        size = len(self.codec.tokenizer)
        rows: list[list[int]] = []
        for text in texts:
            if isinstance(text, str):
                ids = refusing(lambda text=text: self.codec.tokenizer(text)["input_ids"], "prompt")  # type: ignore[misc]
            else:
                ids = text
            if not ids:
                raise invalid("a prompt has no tokens", "prompt", "invalid_value")
            if not all(0 <= i < size for i in ids):
                raise invalid(f"a token is not in the vocabulary (0 to {size - 1:,})", "prompt", "invalid_value")
            rows.append([int(i) for i in ids])
        return rows

    def _echo(self, asked: CompletionRequest, place: int) -> str:
        if not asked.echo:
            return ""
        if isinstance(asked.prompt, str):
            return asked.prompt
        one = asked.prompt[place] if not isinstance(asked.prompt[0], int) else asked.prompt
        return one if isinstance(one, str) else str(self.codec.tokenizer.decode(one))

    def _tokens(self, prompt: int, wanted: int | None, default: int | None, param: str) -> int:
        """The limit on the answer's tokens. Raises `ApiError` where the prompt or the answer does not fit."""
        limit = self.served.limit
        if limit is None:
            return wanted if wanted is not None else default or UNLIMITED
        if wanted is None:
            wanted = min(default or limit, limit - prompt) if prompt < limit else 1
        if prompt + wanted > limit:
            raise too_long(prompt, wanted, limit, param)
        return wanted

    def _options(
        self, asked: ChatRequest | CompletionRequest, tokens: int, logprobs: int | None, *, echo: bool = False
    ) -> Options:
        return Options(
            max_tokens=tokens,
            temperature=1.0 if asked.temperature is None else asked.temperature,
            top_k=max(0, asked.top_k or 0),  # vLLM writes -1 for all
            top_p=asked.top_p or 1.0,
            seed=asked.seed,
            stops=asked.stops,
            logprobs=logprobs,
            echo=echo,
        )

    # --- Answering it

    async def _answer(
        self,
        request: Request,
        asked: ChatRequest | CompletionRequest,
        shape: Shape,
        prompts: Sequence[list[int]],
        options: Sequence[Options],
    ) -> Response:
        """Queues a row per choice, and answers when all are finished or, streaming, with each piece."""
        n = asked.n or 1
        if len(prompts) * n > self.engine.queue:
            raise invalid(
                f"{len(prompts) * n:,} answers at once; at most {self.engine.queue:,}", "n", "invalid_value"
            )
        pieces: asyncio.Queue[tuple[int, Piece]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def deliver_to(index: int) -> Callable[[Piece], None]:
            return lambda piece: _call(loop, pieces.put_nowait, (index, piece))

        rows = [
            self._row(asked, prompt, chosen, number, deliver_to(place * n + number))
            for place, (prompt, chosen) in enumerate(zip(prompts, options, strict=True))
            for number in range(n)
        ]
        self.engine.submit(rows)
        prompt_tokens = sum(map(len, prompts))
        if asked.stream:
            content = _stream(rows, pieces, shape, prompt_tokens, with_usage=_usage_wanted(asked))
            return _Stream(content, rows)
        answers = [Answer() for _ in rows]
        watcher = asyncio.create_task(_until_disconnect(request, rows))
        try:
            async for index, piece in _pieces(rows, pieces):
                answers[index].add(piece)
        finally:
            watcher.cancel()
            _free(rows)
        used = usage(prompt_tokens, sum(row.generated for row in rows))
        return JSONResponse(shape.whole(answers, used))

    def _row(
        self,
        asked: ChatRequest | CompletionRequest,
        prompt: list[int],
        options: Options,
        number: int,
        deliver: Callable[[Piece], None],
    ) -> Row:
        if options.seed is not None and number:  # the choices of a prompt differ, and can be repeated
            options = Options(**{**vars(options), "seed": options.seed + number})
        return Row(
            model=asked.model,
            prompt=prompt,
            options=options,
            tokenizer=self.codec.tokenizer,
            stop_ids=self.codec.stop_ids,
            deliver=deliver,
            context=prompt if isinstance(asked, CompletionRequest) else (),
        )


class _Stream(StreamingResponse):
    """Server-sent events. However the response ends, its rows are freed."""

    media_type = "text/event-stream"

    def __init__(self, content: AsyncIterator[str], rows: Sequence[Row]) -> None:
        super().__init__(content)
        self._rows = rows

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            _free(self._rows)


def _usage_wanted(asked: ChatRequest | CompletionRequest) -> bool:
    if asked.stream_options is None:
        return False
    if not asked.stream:
        raise invalid("stream_options needs stream: true", "stream_options", "invalid_value")
    return asked.stream_options.include_usage


def _call(loop: asyncio.AbstractEventLoop, function: Callable[..., None], *values: Any) -> None:
    """Calls a function on the loop's thread. A loop that has ended has nobody to tell."""
    if not loop.is_closed():
        loop.call_soon_threadsafe(function, *values)


def _free(rows: Sequence[Row]) -> None:
    for row in rows:
        row.cancelled = True


async def _until_disconnect(request: Request, rows: Sequence[Row]) -> None:
    """Frees the rows when the client goes away, and fails the request, so that nobody waits for them."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
    for row in rows:
        row.fail(ApiError(499, "the client went away"))
    _free(rows)


async def _pieces(
    rows: Sequence[Row], pieces: asyncio.Queue[tuple[int, Piece]]
) -> AsyncIterator[tuple[int, Piece]]:
    """The rows' pieces until all are finished. Raises the error of a row that fails."""
    left = len(rows)
    while left:
        index, piece = await pieces.get()
        if piece.error is not None:
            raise piece.error
        left -= piece.last
        yield index, piece


async def _stream(
    rows: Sequence[Row],
    pieces: asyncio.Queue[tuple[int, Piece]],
    shape: Shape,
    prompt_tokens: int,
    *,
    with_usage: bool,
) -> AsyncIterator[str]:
    try:
        for index in range(len(rows)):
            if (opening := shape.opening(index)) is not None:
                yield _event(opening)
        async for index, piece in _pieces(rows, pieces):
            yield _event(shape.chunk(index, piece))
        if with_usage:
            yield _event(shape.closing(usage(prompt_tokens, sum(row.generated for row in rows))))
        yield "data: [DONE]\n\n"
    except ApiError as error:
        yield _event(error.content)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content)}\n\n"
