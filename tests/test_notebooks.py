"""The notebooks run from their first cell to the last, and are stored without outputs."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
PICTURES = {"one_step": 8, "quickstart": 1}  # that they show


def code_of(notebook: Path) -> list[dict[str, Any]]:
    """The cells with code."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return [cell for cell in cells if cell["cell_type"] == "code"]


def test_there_are_notebooks() -> None:
    """Those that are known here."""
    assert [path.stem for path in NOTEBOOKS] == sorted(PICTURES)


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_outputs_are_not_stored(notebook: Path) -> None:
    """They would differ between machines: text of another Python, pictures, seconds."""
    assert [(cell["outputs"], cell["execution_count"]) for cell in code_of(notebook)] == [
        ([], None) for _ in code_of(notebook)
    ]


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_runs(notebook: Path, run_command, tmp_path: Path) -> None:
    """In a kernel of its own, without an error, and the pictures are there."""
    for name in ("nbclient", "ipykernel", "matplotlib"):
        pytest.importorskip(name)
    done = run_command(
        *("-c", "from nbclient.cli import main; main()"),
        *(notebook, f"--output={tmp_path / 'done.ipynb'}", "--timeout=600"),
    )
    assert done.returncode == 0, done.stderr
    cells = code_of(tmp_path / "done.ipynb")
    assert len(cells) == len(code_of(notebook))
    assert all(cell["execution_count"] for cell in cells)
    shown = [output.get("data", {}) for cell in cells for output in cell["outputs"]]
    pictures = [data for data in shown if {"image/png", "image/svg+xml"} & set(data)]
    assert len(pictures) == PICTURES[notebook.stem]
