"""The command line and Python in separate processes that use a local Hub server."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from hub_server import TOKEN, Hub
from repository import ROOT


def environment(hub: Hub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """`home` holds the client's cache, so two homes act like two machines."""
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGINGFACE"))}
    variables |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(home), "PYTHONPATH": str(ROOT), "NO_PROXY": "127.0.0.1"}
    variables |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_XET": "" if hub.xet else "1"}
    return variables | ({"HF_TOKEN": token} if token else {})


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
    """Runs `tutelage publish --yes` in the working directory. Returns its exit code and output."""
    values = [part for text in sets for part in ("--set", text)]
    process = start(
        hub, home, "-P", "-m", "stages", "publish", "--yes", "--recipe", recipe, *values, *arguments, token=token
    )
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def python(hub: Hub, home: Path, code: str) -> str:
    """The output of `code` in a new process."""
    process = start(hub, home, "-c", code)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output
