"""Numbers as text for people."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

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
        return {True: "yes", False: "no"}.get(value, DASH)  # type: ignore[arg-type]
    if isinstance(value, int | float):
        return number(value, 4) if abs(value) >= 1e-4 or not value else f"{value:.2e}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(part) for part in value)
    return str(value)


def percent(share: float | None, decimals: int = 0, *, sign: bool = False) -> str:
    return DASH if share is None else f"{fixed(100 * share, decimals, sign=sign)}{SPACE}%"


def points(change: float, decimals: int = 0) -> str:
    """A difference of two shares."""
    return f"{fixed(100 * change, decimals, sign=True)} points"


def points_span(low: float, high: float, decimals: int = 0) -> str:
    """An interval of a difference of two shares."""
    return f"{fixed(100 * low, decimals, sign=True)} to {points(high, decimals)}"


def span(low: float, high: float, decimals: int = 0, *, sign: bool = False) -> str:
    """An interval of shares."""
    return f"{fixed(100 * low, decimals, sign=sign)} to {percent(high, decimals, sign=sign)}"


def moment(iso: str) -> str:
    """To the minute; manifests are in UTC."""
    return f"{datetime.fromisoformat(iso):%Y-%m-%d %H:%M}"


def counted(number: int, one: str, many: str = "") -> str:
    """A number with its noun: 1 person, 1,600 people. `many` is `one` with an s by default."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"


def listing(items: list[str]) -> str:
    """a, b and c"""
    return f"{', '.join(items[:-1])} and {items[-1]}" if len(items) > 1 else "".join(items)
