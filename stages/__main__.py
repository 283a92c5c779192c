"""The command `tutelage`."""

from __future__ import annotations

from pipeline.cli import inspect as of_recipes  # noqa: F401 (registers commands)
from pipeline.cli import run  # noqa: F401 (registers commands)
from pipeline.cli.app import app
from pipeline.engine import environment
from pipeline.engine import launch as launching
from stages import check, commands, inspect, registry  # noqa: F401 (registers commands, checks and stages)
from stages.init import options  # noqa: F401 (registers init)
from stages.score import command  # noqa: F401 (registers score)
from stages.serve import command as serving  # noqa: F401 (registers serve)


def main() -> None:
    environment.prepare()
    try:
        app(prog_name="tutelage")
    except Exception as bug:
        if not launching.report_failure(bug):
            raise
        raise SystemExit(1) from None


if __name__ == "__main__":
    main()
