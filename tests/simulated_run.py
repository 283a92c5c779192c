"""Runs the command line with every stage on the simulated device:

    python tests/simulated_run.py REPORT.json ARGUMENTS

The report holds the refused operations, and the host synchronisations by kind and source line.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path

from simulated_device import NAME, ROOT, install, refused, syncs


def main() -> None:
    report, *arguments = sys.argv[1:]
    os.environ["ACCELERATE_TORCH_DEVICE"] = install()
    sys.path.insert(0, str(ROOT))

    import stages.__main__ as command_line
    from pipeline.engine import runner
    from stages import commands

    commands.resolve = runner.resolve = lambda loaded: NAME  # type: ignore[attr-defined]
    sys.argv = ["tutelage", *arguments]
    code = 1
    try:
        command_line.main()
    except SystemExit as end:
        code = int(end.code or 0)
    except BaseException:
        traceback.print_exc()
    counts = [[kind, line, count] for (kind, line), count in syncs.most_common()]
    Path(report).write_text(json.dumps({"refused": refused, "syncs": counts}), encoding="utf-8")
    sys.stdout.flush()
    os._exit(code)  # autograd's thread for a device in Python outlives the interpreter


if __name__ == "__main__":
    main()
