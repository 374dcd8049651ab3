"""`python -m tests.parity.candidates FOLDER`, right and wrong."""

import gzip
import json
import shutil
from pathlib import Path

import pytest

from tests.parity.candidates import first_difference, main


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


def test_where_values_differ() -> None:
    assert first_difference({"a": [1, 2]}, {"a": [1, 2]}) is None
    assert first_difference({"a": [1, 2]}, {"a": [1, 3]}) == "/a[1]: 2, RLIPv2 3"
    assert first_difference({"a": [1]}, {"a": [1, 3]}) == "/a: 1 items, RLIPv2 2"
    assert first_difference({}, {"b": 1}) == "/b: only RLIPv2 has it"
