"""Nothing is lost in silence: what sources and stages count, what is worth a note, and where it is
told.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.records import LEFT_OUT
from sgpipe.storage.header import RunHeader
from sgpipe.storage.losses import (
    _ROW_LOSSES,
    PROBLEM,
    SOURCE_LOSSES,
    SOURCE_REMARKS,
    losses_of,
)
from tests.detections import make_coco
from tests.sgpipe.generation.in_process import without_ray
from tests.sgpipe.stats.runs import make_shards, scene
from tests.values import values_of

SOURCES = Path(__file__).parents[3] / "sgpipe/sources"
DOCUMENT = Path(__file__).parents[3] / "docs/faults.md"


def test_whatever_a_source_counts_is_a_loss_or_a_remark() -> None:
    counted = set[str]()
    for path in SOURCES.glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            for key in re.findall(r"problems\[(.+?)\]", line):
                counted |= set(re.findall(r'"(\w+)"', key))
    assert len(counted) > 20
    known = SOURCE_LOSSES.keys() | SOURCE_REMARKS.keys()
    assert counted - known == set(), (
        "name it in sgpipe/storage/losses.py and in the table of docs/faults.md"
    )


def test_the_documented_table_has_every_kind_of_loss() -> None:
    table = DOCUMENT.read_text(encoding="utf-8")
    texts = [*LEFT_OUT.values(), *values_of(SOURCE_LOSSES.values(), "text")]
    assert [text for text in texts if f"| {text} |" not in table] == []
    assert _ROW_LOSSES.keys() == LEFT_OUT.keys()


@pytest.mark.parametrize("name", SOURCE_LOSSES)
def test_a_loss_of_more_than_five_percent_is_worth_a_note(name: str) -> None:
    counts = dict.fromkeys(("boxes", "images", "captions", "relations"), 1000)
    for lost, is_noted in ((1, False), (400, True)):
        header = RunHeader(source_problems={name: lost}, source_counts=counts)
        [loss] = losses_of(header, {"boxes": 7})
        assert loss.lost == lost < loss.total
        assert loss.is_noteworthy == (is_noted or SOURCE_LOSSES[name].is_noted)
        assert losses_of({}, {f"{PROBLEM}{name}": lost, **counts}) == [loss]


@pytest.mark.parametrize("name", LEFT_OUT)
def test_what_stages_leave_out_is_worth_a_note_by_the_same_rule(name: str) -> None:
    counts = dict.fromkeys(("boxes", "captions", "pairs", "grounded", "images"), 1000)
    for lost, is_noted in ((10, False), (400, True)):
        [loss] = losses_of({}, {**counts, f"{name}_left_out": lost})
        assert (loss.lost, loss.is_noteworthy) == (lost, is_noted)
    [triplets] = losses_of({}, {"triplets": 100, "matched_triplets": 90})
    assert (triplets.lost, triplets.total, triplets.is_noteworthy) == (10, 100, True)


def invoke(*words: object) -> Any:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert result.exit_code == 0, result.output
    return result


def with_boxes(folder: Path, change: Any) -> Path:
    make_coco(folder, images=12)
    file = folder / "instances_val.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    for number, item in enumerate(content["annotations"]):
        item["bbox"] = change(number, item["bbox"])
    file.write_text(json.dumps(content), encoding="utf-8")
    return file


def some_not_finite(number: int, bbox: Sequence[float]) -> list[float]:
    return [(math.nan, math.inf)[number % 2], *bbox[1:]] if number % 3 == 0 else [*bbox]


@pytest.mark.parametrize("command", ["import", "generate"])
@without_ray()
def test_boxes_that_are_not_finite_have_a_reason_a_note_and_a_health_check(
    tmp_path: Path, command: str
) -> None:
    file = with_boxes(tmp_path / "coco", some_not_finite)
    out = tmp_path / "run"
    data = ("--annotations", file, "--images", tmp_path / "coco/images", "--split", "val")
    if command == "import":
        result = invoke("import", "coco", *data, "--out", out)
    else:
        captions = ("--captions", file.with_name("captions_val.json"))
        result = invoke(
            "generate", "coco", *data, *captions, "--set", "tag.method=all", "--out", out
        )
    assert "source: boxes with NaN or infinite coordinates" in result.stdout
    [note] = [
        line for line in result.stderr.splitlines() if "NOTE: lost" in line and "boxes (" in line
    ]
    lost, total = map(int, re.findall(r"\d+", note)[:2])
    assert (
        note
        == f"NOTE: lost {lost} of {total} boxes ({lost / total:.0%}): boxes with NaN or infinite"
        " coordinates"
    )
    audit = json.loads(invoke("stats", out, "--json").stdout)
    [check] = [check for check in audit["health"] if check["name"] == "lost_boxes"]
    assert (check["count"], check["total"], audit["totals"]["objects"]) == (
        lost,
        total,
        total - lost,
    )
    texts = values_of(audit["findings"], "text")
    assert f"Lost {note.removeprefix('NOTE: lost ')}." in texts
    assert any(
        text.startswith("Check this first: boxes of the source that were lost") for text in texts
    )


def test_a_run_without_any_box_fails_a_health_check(tmp_path: Path) -> None:
    for objects, failed in (([], ["no_boxes"]), (None, [])):
        bare = [
            scene(str(number), **({} if objects is None else {"objects": objects}))
            for number in range(3)
        ]
        audit = json.loads(
            invoke("stats", make_shards(tmp_path / str(objects), bare), "--json").stdout
        )
        missing = [
            check for check in audit["health"] if check["name"] in ("no_boxes", "lost_boxes")
        ]
        assert [check["name"] for check in missing if check["count"]] == failed
        bad = [finding["text"] for finding in audit["findings"] if finding["grade"] == "bad"]
        assert any(
            text.startswith("Check this first: images without boxes") for text in bad
        ) == bool(failed)


def test_without_losses_nothing_is_said(tmp_path: Path) -> None:
    file = with_boxes(tmp_path / "coco", lambda number, bbox: bbox)
    assert losses_of({}, {}) == []
    result = invoke(
        "import",
        "coco",
        "--annotations",
        file,
        "--images",
        tmp_path / "coco/images",
        "--out",
        tmp_path / "run",
    )
    assert "lost" not in result.stderr
