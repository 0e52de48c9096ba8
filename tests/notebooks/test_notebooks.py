"""The notebooks run from top to bottom, as a kernel runs them, and show what they promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "examples" / "notebooks").glob("*.ipynb"))
SECONDS = 600


def test_notebooks_carry_no_outputs() -> None:
    assert [file.stem for file in NOTEBOOKS] == ["own_data", "preferences", "quick_start"]
    for file in NOTEBOOKS:
        cells = json.loads(file.read_text(encoding="utf-8"))["cells"]
        assert not [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")], file


@pytest.mark.slow
@pytest.mark.parametrize("file", NOTEBOOKS, ids=lambda file: file.stem)
def test_a_notebook_runs(file: Path, tmp_path: Path) -> None:
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed")
    nbformat = pytest.importorskip("nbformat")
    notebook = nbformat.read(file, as_version=4)
    nbclient.NotebookClient(notebook, timeout=SECONDS, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output["data"] for output in outputs(notebook) if "data" in output]
    htmls = [data["text/html"] for data in shown if "text/html" in data]
    assert any("<polyline" in text for text in htmls), "no curve"
    assert any('class="trainable"' in text for text in htmls), "no mask"
    assert not any("<script" in text for text in htmls)
    bars = [text for data in shown for text in data.values() if "Training" in str(text) or "HBox" in str(text)]
    streamed = "".join(output.get("text", "") for output in outputs(notebook))
    assert bars or "Training:" in streamed, "no progress bar"
    if file.stem == "quick_start":
        answers = shown[-1]["text/plain"]
        assert "Tuny" in answers
        assert "Paris" in answers


def outputs(notebook: Any) -> list[Any]:
    return [output for cell in notebook.cells for output in cell.get("outputs", ())]
