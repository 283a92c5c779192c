"""Every cell of the notebook runs, and it shows the report."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest
from repository import ROOT
from small_run import SMALL

NOTEBOOK = ROOT / "examples/quickstart.ipynb"


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Jupyter raises warnings
def test_the_notebook_runs_and_shows_the_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("TUTELAGE_RUNS", raising=False)
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [values] = [cell for cell in notebook.cells if "\nvalues = " in cell.source]
    values.source += f"\nvalues += {f' {SMALL} ppo.checkpoint=last dpo.max_length=128'!r}"
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}})
    client.execute()
    planned, ran, report, sample = [
        "".join(output.get("text", "") or output.get("data", {}).get("text/html", "") for output in cell.outputs)
        for cell in notebook.cells
        if cell.cell_type == "code" and cell is not values
    ]
    assert "base     run     no earlier result" in planned
    assert "report: runs/quickstart/report.html" in ran
    assert "<iframe srcdoc=" in report
    assert "fact errors on" in report
    assert "prompt: name[" in sample


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
