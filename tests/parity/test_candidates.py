"""`python -m tests.parity.candidates FOLDER`, right and wrong."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from tests.parity.candidates import main


def test_all_sets_are_equal(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(golden / "candidates")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 17
    assert all(line.endswith(": equal") for line in lines)


def test_a_changed_set_is_told(subset: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "candidates"
    shutil.copytree(subset / "candidates", folder)
    shutil.copytree(subset / "data", tmp_path / "data")
    path = folder / "post_expected.json.gz"
    expected = json.loads(gzip.decompress(path.read_bytes()))
    image = next(image for image, kept in expected["top2"].items() if kept)
    expected["top2"][image][0] += 1
    path.write_bytes(gzip.compress(json.dumps(expected).encode()))
    assert main([str(folder)]) == 1
    [line] = [line for line in capsys.readouterr().out.splitlines() if "differs" in line]
    assert line.startswith("post top2:")
    assert f"/{image}[0]" in line


def test_another_folder_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "a" / "b")]) == 2
    assert "not a folder of candidate sets" in capsys.readouterr().err
