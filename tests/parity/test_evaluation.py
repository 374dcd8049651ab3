"""`python -m tests.parity.evaluation FOLDER`, right and wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rlip_model.evaluation.visual_genome import VG150_PREDICATES, vg150_zero_shot
from tests.parity.evaluation.__main__ import main

IN_BOTH = (
    "hico/micro_cases, duplicate_gt: metrics (4 numbers)",
    "openimages/main300, nms_phrase_order_repaired: per_class_phr_top100 ap (889 numbers)",
    "openimages/ties120, default_stable_sort: metrics (18 numbers)",
    "vcoco/main300, official: scenario_1 per_role (25 numbers)",
    "vcoco/train_time300: metrics (31 numbers)",
    "vg/sgcls: metrics (25 numbers)",
)
ONLY_IN_FULL = (
    "hico/real500, UC-RF: per_class ap (385 numbers)",
    "hico/ties250, default_stable_sort: metrics (4 numbers)",
    "vg/sgdet: metrics (22 numbers)",
    "vg/predcls: per_image_recall_100 (188 numbers)",
)


@pytest.fixture
def copied(subset: Path, tmp_path: Path) -> Path:
    """The smaller sets, to spoil."""
    official = subset / "evaluation"
    for name in ("vcoco/ties120", "vcoco/train_time300", "openimages/ties120"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        for ending in (".inputs.json.gz", ".expected.json"):
            shutil.copy(official / (name + ending), tmp_path / (name + ending))
    for benchmark in ("hico", "vcoco", "openimages"):
        (tmp_path / benchmark).mkdir(exist_ok=True)
        shutil.copy(official / benchmark / "micro_cases.json", tmp_path / benchmark)
    return tmp_path


def test_every_official_figure_is_reproduced(subset: Path, golden: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(golden / "evaluation")]) == 0
    printed = capsys.readouterr().out
    for part in IN_BOTH if golden == subset else IN_BOTH + ONLY_IN_FULL:
        assert part in printed


def test_visual_genomes_packaged_lists_are_the_published_ones(oracle: Path) -> None:
    published = json.loads((oracle / "data" / "vg" / "zeroshot_triplet_vg150.json").read_text())
    assert vg150_zero_shot().tolist() == published
    names = json.loads((oracle / "data" / "vg" / "VG-SGG-dicts-with-attri.json").read_text())["idx_to_predicate"]
    assert list(VG150_PREDICATES) == [names[str(number)] for number in range(1, 51)]


def other_score(figures: dict[str, Any]) -> None:
    figures["settings"]["default_stable_sort"]["per_class_rel_top100"][7]["ap"] += 2e-6


def unknown_setting(figures: dict[str, Any]) -> None:
    figures["settings"]["new_stable_sort"] = figures["settings"]["default_stable_sort"]


def no_number(figures: dict[str, Any]) -> None:
    figures["metrics"]["AP_kick_obj"] = None


@pytest.mark.parametrize(
    ("file", "spoil", "named"),
    [
        ("openimages/ties120", other_score, "per_class_rel_top100 ap (396 numbers"),
        ("openimages/ties120", unknown_setting, "setting 'new_stable_sort' is unknown"),
        ("vcoco/train_time300", no_number, "metrics (31 numbers, AP_kick_obj)"),
    ],
)
def test_a_difference_is_told(
    copied: Path, file: str, spoil: Callable[[dict[str, Any]], None], named: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = copied / f"{file}.expected.json"
    figures = json.loads(path.read_text())
    spoil(figures)
    path.write_text(json.dumps(figures))
    assert main([str(copied / file.partition("/")[0])]) == 1
    assert named in capsys.readouterr().out.split("outside tolerance:")[1]
