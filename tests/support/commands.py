"""The commands in the documentation, and the commands that make would execute for them."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from repository import ROOT

FOLDERS = ("*.md", "docs/**/*.md", "recipes/**/*.md")
PAGES = sorted(page for pattern in FOLDERS for page in ROOT.glob(pattern))
RECORDER = f"""#!{sys.executable}
import json, os, sys
with open(os.environ["RECORD"], "a") as out:
    out.write(json.dumps([os.path.basename(sys.argv[0]), *sys.argv[1:]]) + "\\n")
"""


def commands(page: Path) -> list[str]:
    """The commands in a page's bash blocks, with continued lines joined and comments removed."""
    blocks = re.findall(r"```bash\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return [
        re.split(r"\s+#\s", line)[0].strip()
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        if line.strip() and not line.startswith("#")
    ]


def recorded(command: str, folder: Path) -> list[list[str]]:
    """The programs and arguments that make would execute, recorded by stub programs."""
    programs = folder / "venv/bin"
    programs.mkdir(parents=True, exist_ok=True)
    for name in ("tutelage", "python", "ruff", "mypy"):
        (programs / name).write_text(RECORDER)
        (programs / name).chmod(0o755)
    (folder / "venv/.installed").touch()
    os.utime(folder / "venv/.installed", (2**31, 2**31))
    notes = folder / "notes"
    notes.unlink(missing_ok=True)
    environment = {"PATH": os.environ["PATH"], "RECORD": str(notes)}
    subprocess.run(
        [*shlex.split(command), f"VENV={folder / 'venv'}"],
        cwd=ROOT, env=environment, check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    return [json.loads(line) for line in notes.read_text().splitlines()] if notes.exists() else []
