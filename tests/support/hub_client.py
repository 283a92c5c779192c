"""The command line and Python as a user has them: processes of their own, on a Hub of this machine."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hub_server import TOKEN, Hub
from repository import ROOT


def environment(hub: Hub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """`home` keeps the client's cache: two homes are two machines."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    kept |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    kept |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "" if hub.xet else "1"}
    return kept | ({"HF_TOKEN": token} if token else {})


def start(hub: Hub, home: Path, *arguments: str, token: str | None = TOKEN) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, *arguments],
        env=environment(hub, home, token),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def publish(
    hub: Hub,
    home: Path,
    *sets: str,
    recipe: str = "small.yaml",
    arguments: tuple[str, ...] = (),
    token: str | None = TOKEN,
) -> tuple[int, str]:
    """`tutelage publish` in the working directory; its exit code and what it said."""
    values = [part for text in sets for part in ("--set", text)]
    process = start(
        hub, home, "-P", "-m", "stages", "publish", "--recipe", recipe, *values, *arguments, token=token
    )
    said, _ = process.communicate(timeout=300)
    return process.returncode, said


def python(hub: Hub, home: Path, code: str) -> str:
    """What a fresh process prints."""
    process = start(hub, home, "-c", code)
    said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    return said
