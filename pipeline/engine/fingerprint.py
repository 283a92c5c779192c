"""Content fingerprints: equal fingerprints mean equal content."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.files import write_atomic

CHUNK = 1 << 20


def file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def combine(hashes: Mapping[str, str]) -> str:
    """The fingerprint of a folder, from the SHA-256 of each file by relative name."""
    lines = "".join(f"{hashes[name]}  {name}\n" for name in sorted(hashes))
    return hashlib.sha256(lines.encode()).hexdigest()


def files_below(folder: Path) -> dict[str, Path]:
    """Every file below a folder, by relative name."""
    return {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}


class Fingerprints:
    """Fingerprints of local inputs. Each file's hash is cached while its size, time and inode stay the same, so
    that a model of many gigabytes is read once rather than at every plan."""

    def __init__(self, cache: Path) -> None:
        self._cache = cache
        self._changed = False
        try:
            self._known: dict[str, list[Any]] = json.loads(cache.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self._known = {}

    def __call__(self, path: Path) -> str:
        """The fingerprint of a file or of a folder."""
        if path.is_dir():
            return combine({name: self._file(file) for name, file in files_below(path).items()})
        return self._file(path)

    def _file(self, path: Path) -> str:
        status = path.stat()
        name = os.path.abspath(path)
        stamp = [status.st_size, status.st_mtime_ns, status.st_ino]
        known = self._known.get(name)
        if known and known[:-1] == stamp:
            return str(known[-1])
        sha256 = file_sha256(path)
        self._known[name] = [*stamp, sha256]
        self._changed = True
        return sha256

    def save(self) -> None:
        """Writes the cache. A cache that cannot be written only costs time."""
        if not self._changed:
            return
        self._known = {name: entry for name, entry in self._known.items() if os.path.exists(name)}
        try:
            self._cache.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self._cache, json.dumps(self._known, indent=0))
        except OSError:
            return
        self._changed = False
