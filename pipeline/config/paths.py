"""Messages about files and folders that do not exist, and about names that are neither a file nor known."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.config.evaluate import JUDGES

NAMES: Mapping[str, Sequence[str]] = {
    "base.chat_template": ("auto", "plain", "chatml"),
    "eval.judge": JUDGES,
    "eval.reward_model": ("ensemble",),
    "reward.rubric": ("eval", *JUDGES),
    "ppo.monitor.judge": ("eval", "member", "reward", *JUDGES),
}
"""Dotted path of a value that is a name or a path -> the names."""
CLOSE = 0.6
"""The least similarity (difflib's ratio) of a name that is suggested for another one."""


def nearest(path: Path | str, *, folders: bool = False) -> str | None:
    """The existing path that is most like one that does not exist; None when nothing is close.

    Each part of the path may be misspelt, `my/modle` for `My/model`.

    Args:
        folders: whether only folders count.
    """
    path = Path(path)
    at = Path(path.anchor)
    for position, part in enumerate(path.parts[1:] if path.anchor else path.parts):
        if part == ".." or (at / part).exists():
            at /= part
            continue
        last = position == len(path.parts) - (2 if path.anchor else 1)
        try:
            names = [child.name for child in at.iterdir() if not last or not folders or child.is_dir()]
        except OSError:
            return None
        shown = [name for name in names if not name.startswith(".") or part.startswith(".")]
        likeness = {name: _likeness(part.lower(), name.lower()) for name in shown}
        best = max(likeness, key=lambda name: likeness[name], default="")
        if likeness.get(best, 0.0) < CLOSE:
            return None
        at /= best
    return str(at) if at.exists() and (at.is_dir() or not folders) else None


def _likeness(one: str, other: str) -> float:
    """From 0 to 1. A suffix that both have makes no two names alike."""
    a, b = Path(one), Path(other)
    pair = (a.stem, b.stem) if a.suffix == b.suffix else (one, other)
    return difflib.SequenceMatcher(None, *pair).ratio()


def missing(dotted: str, path: Path) -> tuple[str, str]:
    """What is wrong with a recipe's value that should be a path and names nothing, and a hint."""
    names, near = NAMES.get(dotted, ()), nearest(path)
    text = str(path)
    if names and "/" not in text and not path.suffix:
        alike = difflib.get_close_matches(text.lower(), names, n=1, cutoff=CLOSE)
        suggestion = f"did you mean {alike[0] if alike else near}? " if alike or near else ""
        return (
            f"{dotted}: {text} is neither a known name nor a file or folder",
            f"{suggestion}write {', '.join(names)} or a path",
        )
    if near:
        return f"{dotted}: there is no file or folder {text}", f"did you mean {near}?"
    return (
        f"{dotted}: there is no file or folder {text}",
        f"paths are relative to the working directory, {Path.cwd()}"
        if not path.is_absolute()
        else "correct the path",
    )
