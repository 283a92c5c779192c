"""The values of one JSON list, parsed one by one: exports of labelling tools are lists larger than memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

WHITE = " \t\r\n"
DELIMITER = re.compile(r"[\s,\]}]")


class NotAList(ValueError):
    """The text is not a JSON list. `line`: the line of the error, from 1."""

    def __init__(self, what: str, line: int) -> None:
        super().__init__(what)
        self.line = line


class ListReader:
    """Iterates over the values of the list whose text comes in `pieces`. Raises `NotAList`."""

    def __init__(self, pieces: Iterator[str]) -> None:
        self._pieces, self._text, self._line = pieces, "", 1
        self._decoder = json.JSONDecoder()

    def __iter__(self) -> Iterator[Any]:
        if self._next() != "[":
            raise NotAList("the file is not a list of objects", self._line)
        self._skip(1)
        if self._next() == "]":
            self._skip(1)
        else:
            separator = ","
            while separator == ",":
                yield self._value()
                separator = self._next()
                if separator not in (",", "]"):
                    raise NotAList("the file is not JSON: a ',' or ']' is missing", self._line)
                self._skip(1)
        if self._next():
            raise NotAList("the file is not JSON: something follows the list", self._line)

    def _value(self) -> Any:
        first = self._next()
        while first not in ("{", "[", '"') and not DELIMITER.search(self._text) and self._more():
            pass  # a number or a word ends where something else begins
        while True:
            try:
                value, end = self._decoder.raw_decode(self._text)
            except RecursionError as error:
                raise NotAList(f"the file is not JSON: {error}", self._line) from None
            except json.JSONDecodeError as error:
                if not self._more():  # otherwise the text may just be incomplete
                    line = self._line + error.lineno - 1
                    raise NotAList(f"the file is not JSON: {error.msg}", line) from None
                continue
            self._skip(end)
            return value

    def _more(self) -> bool:
        """Reads at least as much again as is waiting, so that a long value is parsed a few times only."""
        parts, size = [self._text], len(self._text)
        while size >= 0 and (piece := next(self._pieces, None)) is not None:
            parts.append(piece)
            size -= len(piece)
        self._text = "".join(parts)
        return len(parts) > 1

    def _next(self) -> str:
        """The next character that is not white space; "" at the end."""
        while True:
            self._skip(len(self._text) - len(self._text.lstrip(WHITE)))
            if self._text or not self._more():
                return self._text[:1]

    def _skip(self, size: int) -> None:
        self._line += self._text.count("\n", 0, size)
        self._text = self._text[size:]
