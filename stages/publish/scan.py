"""Searches files for secrets and for paths of this machine before they are uploaded.

The patterns are our own, because the well-known scanner for Python (detect-secrets) has had no release since May
2024. They match kinds of secrets with a recognisable form. Random-looking text is ignored, because tokenizers are
full of it.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from pipeline.errors import StageError

SECRETS = {
    "a Hugging Face token": r"\bhf_[A-Za-z0-9]{20,}",
    "an API key": r"\bsk-(?=[\w-]*\d)(?=[\w-]*[A-Z])[\w-]{20,}",
    "an AWS access key": r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",
    "an AWS secret key": r"(?i:aws_secret_access_key)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{40}",
    "a GitHub token": r"\b(?:gh[pousr]_[A-Za-z0-9]{30,}|github_pat_\w{30,})",
    "a GitLab token": r"\bglpat-[\w-]{20,}",
    "a Google API key": r"\bAIza[\w-]{35}",
    "a Slack token": r"\bxox[abeprs]-[A-Za-z0-9-]{10,}",
    "a private key": r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY-----",
    "a bearer token": r"(?i:\bbearer)\s+(?=[\w.~+/=-]*\d)[\w.~+/=-]{20,}",
    "a JSON web token": r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.",
    "a password in an address": r"\w://[^/\s:@\"']{1,60}:[^/\s:@\"']{3,60}@[\w.-]",
}
"""Name of a kind of secret -> its pattern."""

_SECRET = re.compile("|".join(f"(?P<s{number}>{form})" for number, form in enumerate(SECRETS.values())))
_HOMES = re.compile(r"(?:/home|/Users)/[\w.-]+/|\b[A-Za-z]:\\+Users\\+[\w.-]+")

HEAD = 1 << 22
"""Bytes of a binary file that are searched: formats keep their metadata at the start."""


@dataclass(frozen=True)
class Finding:
    """A kind of secret and its place ("config.json:2"). The secret itself is never repeated."""

    what: str
    where: str


def machine_folders() -> list[str]:
    """Folders that reveal something about this machine, each with a slash at its end."""
    places = [Path.home(), Path.cwd(), Path(tempfile.gettempdir())]
    if sys.prefix != sys.base_prefix:  # a virtual environment; /usr and the like are on every machine
        places.append(Path(sys.prefix))
    return sorted({f"{place}/" for place in places if place != place.parent})


@lru_cache(maxsize=8)
def _folders(names: tuple[str, ...]) -> re.Pattern[str] | None:
    """A pattern for these folders. `/tmp/` alone is harmless and in many vocabularies; `/tmp/some-name` is not."""
    forms = [re.escape(name) if name.count("/") > 2 else rf"{re.escape(name)}[\w.-]{{3,}}" for name in names]
    return re.compile(rf"(?<![\w.~-])(?:{'|'.join(forms)})") if forms else None


def problem(text: str, *, quoted: bool = False) -> str | None:
    """What a text must not contain, or None.

    Args:
        quoted: whether people or models wrote the text. They may mention `/home/user/` and `/tmp/x`, so only this
            machine's own folders count.
    """
    if match := _SECRET.search(text):
        return list(SECRETS)[int(str(match.lastgroup)[1:])]
    names = machine_folders()
    if quoted:
        names = [name for name in names if name.count("/") > 2 and not name.startswith(tempfile.gettempdir())]
    folders = _folders(tuple(names))
    if (folders and folders.search(text)) or (not quoted and _HOMES.search(text)):
        return "a path of this machine"
    return None


def in_lines(name: str, lines: Iterable[str], *, quoted: bool = False) -> Iterator[Finding]:
    """The findings in a text, by line."""
    for number, line in enumerate(lines, start=1):
        if what := problem(line, quoted=quoted):
            yield Finding(what, f"{name}:{number}")


def in_file(name: str, path: Path) -> Iterator[Finding]:
    """The findings in a file: in a text file everywhere, in a binary file in its first 4 MiB."""
    with path.open("rb") as file:
        head = file.read(HEAD)
    if b"\0" in head:
        if what := problem(head.decode("latin-1")):
            yield Finding(what, f"{name}, in its first {len(head):,} bytes")
        return
    with path.open(encoding="utf-8", errors="replace") as lines:
        yield from in_lines(name, lines)


def refuse(findings: Sequence[Finding], most: int = 10) -> None:
    """Raises `StageError` with the places of the findings, if there are any."""
    if not findings:
        return
    places = [f"{finding.where} ({finding.what})" for finding in findings[:most]]
    if len(findings) > most:
        places.append(f"and {len(findings) - most} more")
    raise StageError(
        f"{findings[0].where.partition(':')[0].partition(',')[0]} holds {findings[0].what}: nothing was uploaded",
        where=", ".join(places),
        hint="remove it at its source (recipe, base model, rankings) and run the stage again",
    )
