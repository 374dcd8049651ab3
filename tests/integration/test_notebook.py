"""The docs' notebook prints its stored outputs; `python -m tests.integration.test_notebook` stores
new ones.
"""

from __future__ import annotations

import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

NOTEBOOK = Path(__file__).parents[2] / "docs" / "notebooks" / "five-minutes.ipynb"


def executed(folder: Path) -> Any:
    """The notebook, run in a folder by this interpreter's environment; raises nbclient's error
    where a cell fails.
    """
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    resources = {"metadata": {"path": str(folder)}}
    nbclient.NotebookClient(
        notebook, timeout=600, coalesce_streams=True, resources=resources
    ).execute()
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":  # warnings of libraries depend on the machine
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
            for output in cell.outputs:
                if "image/jpeg" in output.get("data", ()):
                    # smaller than the same as PNG
                    output.data = {"image/jpeg": output.data["image/jpeg"]}
    return notebook


def words(cell: Any) -> list[str]:
    """What a cell printed, without numbers, which may differ in the last digit on another
    processor.
    """
    printed = "".join(output.get("text", "") for output in cell.outputs)
    return re.findall(r"[A-Za-z]+", printed)


def is_python(cell: Any) -> bool:
    """Commands of the shell print messages, which have tests of their own."""
    return cell.cell_type == "code" and not cell.source.startswith(("!", "%%"))


@pytest.mark.slow
def test_the_notebook_prints_what_it_shows(tmp_path: Path) -> None:
    stored = nbformat.read(NOTEBOOK, as_version=4)
    fresh = executed(tmp_path)
    assert [words(cell) for cell in fresh.cells if is_python(cell)] == [
        words(cell) for cell in stored.cells if is_python(cell)
    ]
    outputs = [output for cell in fresh.cells for output in cell.get("outputs", [])]
    assert sum("image/jpeg" in output.get("data", ()) for output in outputs) == 2
    assert list((tmp_path / "labels" / "data").glob("*.parquet"))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as place:
        nbformat.write(executed(Path(place)), NOTEBOOK)
