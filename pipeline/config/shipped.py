"""The recipes that come with the program, by name.

A name is a file's path below `recipes/` without its suffix: `quickstart`, `hh-rlhf/qwen3-1.7b`, `hardware/gpu-8gb`.
In a clone the folder is `recipes/` beside this package; in an installed wheel it is `pipeline/recipes/` (setup.py).
"""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from pipeline.config.paths import nearest

_PACKAGE = Path(__file__).resolve().parents[1]
_INSTALLED = _PACKAGE / "recipes"
FOLDER = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "recipes"


def name_of(path: Path) -> str | None:
    """The name of a shipped file; None for any other file."""
    path = path.resolve()
    return path.relative_to(FOLDER).with_suffix("").as_posix() if path.is_relative_to(FOLDER) else None


def files() -> dict[str, Path]:
    """Every shipped file by name, the parts for `extends` included."""
    return {str(name_of(file)): file for file in sorted(FOLDER.rglob("*.yaml"))}


def recipes() -> list[str]:
    """The names of complete recipes. A part for `extends` has no `name:` and is left out."""
    named = re.compile(r"^name:", re.MULTILINE)
    return [name for name, file in files().items() if named.search(file.read_text(encoding="utf-8"))]


def locate(path: Path, folder: Path = Path()) -> Path:
    """The file at `path`, relative to `folder`; if there is none, the shipped one of that name.

    If neither exists, returns the place where the file was expected.
    """
    local = folder / path
    return local if local.is_file() else files().get(path.as_posix(), local)


def listed() -> str:
    """The names of complete recipes for a message, one entry for each folder."""
    return ", ".join(dict.fromkeys(name if "/" not in name else f"{name.split('/')[0]}/*" for name in recipes()))


def suggestion(path: Path) -> str:
    """A hint for a recipe that is not there."""
    parts = path.as_posix().removesuffix(".yaml").split("/")
    for start in range(len(parts)):
        if near := difflib.get_close_matches("/".join(parts[start:]), files(), n=1, cutoff=0.8):
            return f"did you mean the shipped recipe {near[0]}?"
    file = nearest(path) or nearest(path.with_suffix(".yaml"))
    if file and Path(file).suffix in (".yaml", ".yml"):
        return f"did you mean {file}?"
    return f"name a YAML file, or a recipe that is shipped: {listed()}"
