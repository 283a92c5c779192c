"""Reward functions: Python functions with the signature of TRL's `reward_funcs` (docs/rewards.md).

What such a function returns, or fails to, is checked for every batch. The error names the prompt and the completion
that caused it.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import inspect
import math
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from data.schema import prompt_key
from pipeline.errors import StageError
from pipeline.functions import PASSED, FunctionName
from pipeline.wording import counted
from stages.models.text import Codec
from stages.sampling.prompts import EncodedPrompt
from stages.scoring.scorer import Scorer

Value = float | None
SHOWN = 400
"""Characters of a prompt and of a completion in an error."""


class Failure(Exception):
    """What a call did wrong, in words that follow the function's name.

    Attributes:
        row: the row of the batch at fault, if the call shows it.
    """

    def __init__(self, what: str, row: int | None = None) -> None:
        super().__init__(what)
        self.row = row


class RewardFunction(Scorer):
    """Scores by a function; NaN where it returns None: the term does not apply to that response.

    Args:
        function: `load` returns it.
        source: how the recipe names it, for errors.
        where: dotted path of its term in the recipe, for errors.
        timeout: seconds that a call may take.
        conversational: whether texts are passed as messages.
        columns: metadata by the key of a prompt; every function gets each column as a keyword argument, None for
            prompts without it.

    Raises `StageError` when the function has required arguments that are not passed.
    """

    optional = True

    def __init__(
        self,
        function: Callable[..., Any],
        codec: Codec,
        *,
        name: str,
        source: str,
        where: str,
        timeout: float,
        conversational: bool = True,
        columns: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        self.function, self.codec, self.name, self.source, self.where = function, codec, name, source, where
        self.timeout, self.conversational, self.columns = timeout, conversational, columns or {}
        self._names = sorted({column for row in self.columns.values() for column in row} - set(PASSED))
        self._taken = self._arguments()

    def _arguments(self) -> list[str]:
        """The arguments that are passed: all, or those that the function takes if it has no `**kwargs`."""
        passed = [*PASSED, *self._names]
        try:
            parameters = inspect.signature(self.function).parameters.values()
        except (TypeError, ValueError):  # a function that is not written in Python
            return passed
        named = {p.name: p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
        lacking = [name for name, p in named.items() if p.default is p.empty and name not in passed]
        if lacking:
            raise StageError(
                f"the function {self.source} needs {', '.join(lacking)}, and is called with {', '.join(passed)}",
                where=self.where,
                hint="add them to data.prompts.metadata, or give them defaults",
            )
        return passed if any(p.kind is p.VAR_KEYWORD for p in parameters) else [n for n in passed if n in named]

    def members(self, prompts: Sequence[EncodedPrompt], responses: Sequence[Sequence[int]]) -> Tensor:
        rows = list(range(len(responses)))
        texts = [self.codec.decode(response) for response in responses]

        def call(some: Sequence[int], seconds: float) -> list[Value]:
            return self._call(
                [prompts[i] for i in some], [responses[i] for i in some], [texts[i] for i in some], seconds
            )

        try:
            values = call(rows, self.timeout) if rows else []
        except Failure as failure:
            raise self._error(failure, call, prompts, texts) from failure.__cause__
        self.on_batch(len(responses))
        return torch.tensor([[math.nan if value is None else value for value in values]], dtype=torch.float32)

    def _call(
        self,
        prompts: Sequence[EncodedPrompt],
        responses: Sequence[Sequence[int]],
        texts: Sequence[str],
        seconds: float,
    ) -> list[Value]:
        """The values of a batch. Raises `Failure`."""
        known = [self.columns.get(prompt_key(prompt.messages), {}) for prompt in prompts] if self._names else []
        arguments: dict[str, Any] = {
            "prompts": [self._prompt(prompt) for prompt in prompts],
            "completions": [[{"role": "assistant", "content": t}] if self.conversational else t for t in texts],
            "completion_ids": [list(response) for response in responses],
            **{name: [row.get(name) for row in known] for name in self._names},
        }
        returned = within(seconds, lambda: self._run({name: arguments[name] for name in self._taken}))
        return checked(returned, len(texts))

    def _prompt(self, prompt: EncodedPrompt) -> Any:
        messages = [dict(message) for message in prompt.messages]
        return messages if self.conversational else "\n".join(message["content"] for message in messages)

    def _run(self, arguments: Mapping[str, Any]) -> Any:
        returned = self.function(**arguments)
        return asyncio.run(returned) if inspect.iscoroutine(returned) else returned

    def _error(
        self,
        failure: Failure,
        call: Callable[[Sequence[int], float], list[Value]],
        prompts: Sequence[EncodedPrompt],
        texts: Sequence[str],
    ) -> StageError:
        """The error for a failed batch, with the row at fault: called alone, it fails too. The search starts no
        call after the time limit."""
        row, note = failure.row, ""
        deadline = time.monotonic() + self.timeout
        for i in range(len(texts)) if row is None else ():
            if time.monotonic() > deadline:
                break
            try:
                call([i], self.timeout)
            except Failure as alone:
                failure, row = alone, i
                break
        if row is None:
            row = 0
            note = f" (the first of a batch of {len(texts)}; none of them was seen to fail alone)"
        prompt = "\n".join(f"{message['role']}: {message['content']}" for message in prompts[row].messages)
        return StageError(
            f"the reward function {self.source} {failure}{note}\n"
            f"  prompt: {_short(prompt)}\n"
            f"  completion: {_short(texts[row])}",
            where=self.where,
            hint="correct the function and run again",
        )


def checked(returned: Any, count: int) -> list[Value]:
    """What a function returned, as one finite number or None per response. Raises `Failure`."""
    try:
        values = list(returned)
    except TypeError:
        raise Failure(f"returned {_short(repr(returned))} instead of a list of numbers") from None
    if len(values) != count:
        raise Failure(
            f"returned {counted(len(values), 'value', 'values')} for "
            f"{counted(count, 'completion', 'completions')}: it must return one number for each"
        )
    numbers: list[Value] = []
    for row, value in enumerate(values):
        if value is None:
            numbers.append(None)
            continue
        try:
            number = math.nan if isinstance(value, str) else float(value)
        except (TypeError, ValueError, RuntimeError):
            number = math.nan
        if not math.isfinite(number):
            raise Failure(f"returned {_short(repr(value))}, which is not a finite number (None: no score)", row)
        numbers.append(number)
    return numbers


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """The result of a call that may take so many seconds. A call that takes longer is left behind in its thread,
    which does not keep the process alive. Raises `Failure`."""
    result: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            result.append(call())
        except BaseException as error:  # SystemExit too
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True, name="reward function")
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise Failure(f"took longer than its limit of {seconds:.3g} s (timeout)") from TimeoutError()
    if errors:
        raise Failure(f"raised {_described(errors[0])}") from errors[0]
    return result[0]


def _described(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    outside = [frame for frame in frames if frame.filename != __file__]
    line = f" ({outside[0].filename}:{outside[0].lineno})" if outside else ""
    text = str(error)
    return f"{type(error).__name__}{f': {text}' if text else ''}{line}"


def _short(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ... ({len(text):,} characters)"


def load(function: FunctionName, where: str, file: Path | None = None) -> Callable[..., Any]:
    """Runs the function's module and returns the function. Raises `StageError` when that fails.

    Args:
        where: dotted path of its term in the recipe, for errors.
        file: a copy to load instead of the file that it names.
    """
    shown = f"{function.source}:{function.name}"
    try:
        if function.is_file:
            module = _load_file(file or Path(function.source))
        else:
            module = importlib.import_module(function.source)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        hint = "correct the file"
        if isinstance(error, ImportError):
            hint = "install what it imports, or write it into the same file: files beside it are not imported"
        raise StageError(
            f"the module of the reward function {shown} cannot be imported: {_described(error)}",
            where=where,
            hint=hint,
        ) from error
    loaded = getattr(module, function.name, None)
    if not callable(loaded):
        raise StageError(
            f"{function.source} has no function {function.name}",
            where=where,
            hint="correct the name after the colon",
        )
    return loaded


def _load_file(file: Path) -> Any:
    name = f"tutelage_reward_{abs(hash(file.resolve())):x}"
    spec = importlib.util.spec_from_file_location(name, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look a class's module up
    spec.loader.exec_module(module)
    return module
