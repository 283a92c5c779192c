"""Numbers as text for people, in the current language (`pipeline.language`)."""

from __future__ import annotations

import math
from collections.abc import Iterable
from datetime import datetime
from typing import Any

from pipeline.language import ENGLISH, current, translate

MINUS, DASH, SPACE = "\N{MINUS SIGN}", "\N{EN DASH}", "\N{NO-BREAK SPACE}"


def fixed(value: float | None, decimals: int = 2, *, sign: bool = False) -> str:
    """With so many decimals and thousands separators; a dash for None."""
    if value is None:
        return DASH
    rounded = round(value, decimals) + 0.0  # no "-0.0"
    return f"{rounded:{'+' if sign and rounded else ''},.{decimals}f}".replace("-", MINUS)


def number(value: float | None, digits: int = 3) -> str:
    """With so many significant digits; whole numbers without decimals."""
    if value is None or value == int(value):
        return fixed(value, 0)
    return fixed(value, max(0, digits - 1 - math.floor(math.log10(abs(value)))))


def plain(value: Any) -> str:
    """Any value of a manifest: numbers formatted, other values as they are."""
    if isinstance(value, bool) or value is None:
        return DASH if value is None else translate("yes") if value else translate("no")
    if isinstance(value, int | float):
        return number(value, 4) if abs(value) >= 1e-4 or not value else f"{value:.2e}"
    if isinstance(value, list | tuple):
        return commas(plain(part) for part in value)
    return str(value)


def percent(share: float | None, decimals: int = 0, *, sign: bool = False) -> str:
    if share is None:
        return DASH
    return translate("{number}\N{NO-BREAK SPACE}%", number=fixed(100 * share, decimals, sign=sign))


def points(change: float, decimals: int = 0) -> str:
    """A difference of two shares."""
    return translate("{number} points", number=fixed(100 * change, decimals, sign=True))


def points_span(low: float, high: float, decimals: int = 0) -> str:
    """An interval of a difference of two shares."""
    return between(fixed(100 * low, decimals, sign=True), points(high, decimals))


def span(low: float, high: float, decimals: int = 0, *, sign: bool = False) -> str:
    """An interval of shares."""
    ends = {"low": fixed(100 * low, decimals, sign=sign), "high": fixed(100 * high, decimals, sign=sign)}
    return translate("{low} to {high}\N{NO-BREAK SPACE}%", **ends)


def between(low: str, high: str) -> str:
    """An interval of anything."""
    return translate("{low} to {high}", low=low, high=high)


def moment(iso: str) -> str:
    """To the minute; manifests are in UTC."""
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 person, 1,600 people. `many` is `one` with an s by default."""
    if current().code == ENGLISH:
        return f"{number:,} {one if number == 1 else many or f'{one}s'}"
    return current().translated(f"{{number}} {one}").format(number=f"{number:,}")


def listing(items: list[str]) -> str:
    """a, b and c"""
    if len(items) < 2:
        return "".join(items)
    return translate("{first} and {last}", first=commas(items[:-1]), last=items[-1])


def sentences(*parts: str) -> str:
    """One text of several sentences; empty ones are left out."""
    text = ""
    for part in parts:
        text = translate("{first} {second}", first=text, second=part) if text and part else text or part
    return text


def commas(items: Iterable[str]) -> str:
    """a, b, c"""
    return translate(", ").join(items)
