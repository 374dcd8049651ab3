"""`python -m tests.parity.misc FOLDER`, right and wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.parity.misc import main


@pytest.fixture
def copied(subset: Path, tmp_path: Path) -> Path:
    """A folder to spoil."""
    folder = tmp_path / "misc"
    shutil.copytree(subset / "model" / "misc", folder)
    return folder


def test_sampling_and_targets_equal_the_reference(golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(golden / "model" / "misc")]) == 0
    printed = capsys.readouterr().out
    for part in (
        "sampling, freq_18: object texts",
        "annotation, truncated_to_2_pairs: subject boxes",
        "evaluators, hico, nms_True: (4 numbers)",
        "evaluators, vcoco in training: (18 numbers)",
        "evaluators, open images, nms_False: (18 numbers)",
    ):
        assert part in printed


def other_seed(content: dict[str, Any]) -> None:
    content["cases"]["freq_12"]["python_random_seed"] += 1


def other_label(content: dict[str, Any]) -> None:
    content["cases"]["random_15"]["targets"][1]["verb_labels"][0][0] = 1.0


def other_box(content: dict[str, Any]) -> None:
    content["cases"]["all"]["target"]["sub_boxes"][0][0] += 1e-4


@pytest.mark.parametrize(
    ("file", "spoil", "named"),
    [
        ("label_merge_and_sampling.json", other_seed, "sampling, freq_12: object texts"),
        ("label_merge_and_sampling.json", other_label, "sampling, random_15, image 1: relation labels"),
        ("vg_annotation_to_target.json", other_box, "annotation, all: subject boxes"),
    ],
)
def test_a_difference_is_told(
    copied: Path, file: str, spoil: Callable[[dict[str, Any]], None], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    content = json.loads((copied / file).read_text())
    spoil(content)
    (copied / file).write_text(json.dumps(content))
    assert main([str(copied)]) == 1
    assert named in capsys.readouterr().out.split("outside tolerance:")[1]
