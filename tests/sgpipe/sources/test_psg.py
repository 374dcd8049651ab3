"""PSG, made here in the form of its loader: read, refused if bad, written and read again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.export.run import export_run
from sgpipe.records import Relation
from sgpipe.sources.coco import coco_source
from sgpipe.sources.psg import psg_source
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.verify import verify
from tests.sgpipe.export.runs import imported
from tests.sgpipe.sources.scene_graph_files import (
    HEIGHT,
    WIDTH,
    bare,
    graphs,
    rle,
    round_trip,
)
from tests.values import values_of

BOXES = (0, 0, 12, 8), (2, 1, 6, 4), (7, 3, 11, 8)  # xyxy, later ones on top of earlier ones
IDS = np.zeros((HEIGHT, WIDTH), np.uint32)
BAD = [
    {"annotations": [{}] * 3},
    {"annotations": []},
    {"segments_info": [None] * 3},
    {"segments_info": [{"category_id": 3}] * 3},
    {"relations": [[0, 3, 0]]},
    {"relations": [[-1, 0, 0]]},
    {"relations": [[0, 1, 2]]},
    {"relations": [[0, 1]]},
]


for number, (left, top, right, bottom) in enumerate(BOXES):
    IDS[top:bottom, left:right] = 70_000 + number


def psg(folder: Path, **changes: object) -> Path:
    """A psg.json of two images in `folder`, the second a test image without relations; `changes`:
    of the first.
    """
    classes = (2, 0, 1)
    segments = [
        {"id": 70_000 + n, "category_id": c, "isthing": int(c < 2)} for n, c in enumerate(classes)
    ]
    item = {
        "file_name": "val2017/1.jpg",
        "height": HEIGHT,
        "width": WIDTH,
        "image_id": "1",
        "pan_seg_file_name": "panoptic/1.png",
        "segments_info": [segment | {"iscrowd": 0, "area": 9} for segment in segments],
        "annotations": [
            {"bbox": list(box), "category_id": c} for box, c in zip(BOXES, classes, strict=True)
        ],
        "relations": [[1, 2, 1], [2, 2, 0]],
    }
    content = {
        "data": [
            item | changes,
            item | {"image_id": "2", "file_name": "val2017/2.jpg", "relations": []},
        ],
        "thing_classes": ["person", "dog"],
        "stuff_classes": ["grass-merged"],
        "predicate_classes": ["over", "in front of"],
        "test_image_ids": ["2"],
    }
    (folder / "panoptic").mkdir(exist_ok=True)
    colours = np.stack([IDS & 255, IDS >> 8 & 255, IDS >> 16], -1).astype(np.uint8)
    Image.fromarray(colours).save(folder / "panoptic/1.png")
    (folder / "psg.json").write_text(
        json.dumps({k: v for k, v in content.items() if v is not None})
    )
    return folder / "psg.json"


def test_psg_is_read_with_its_splits_and_masks(tmp_path):
    path = psg(tmp_path)
    (record,) = imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "train")
    assert values_of(record.objects, "category") == ["grass-merged", "person", "dog"]
    assert values_of(record.objects, "bbox") == [(0, 0, 12, 8), (2, 1, 4, 3), (7, 3, 4, 5)]
    assert [json.loads(box.segmentation) for box in record.objects] == [
        rle(70_000 + n == IDS) for n in range(3)
    ]
    assert record.relations == [Relation(1, 2, "in front of"), Relation(2, 2, "over")]
    (other,) = imported(psg_source(path, "test"), tmp_path, tmp_path / "test")
    assert (other.image_id, other.relations, other.objects[0].segmentation) == ("2", [], None)
    assert values_of(imported(psg_source(path, "all"), tmp_path, tmp_path / "all"), "image_id") == [
        "1",
        "2",
    ]
    with pytest.raises(UserError, match="has no split 'val': pass --split train, test or all"):
        psg_source(path, "val")


def test_boxes_of_segments_come_from_any_outline(tmp_path):
    path = psg(tmp_path, annotations=[{"category_id": 0}] * 3)
    (record,) = imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "masks")
    assert values_of(record.objects, "bbox") == [(0, 0, 12, 8), (2, 1, 4, 3), (7, 3, 4, 5)]
    polygon = [[2, 1, 6, 1, 6, 4], [3, 2, 7.5, 2, 4, 3]]
    runs = {"size": [8, 12], "counts": [17, 3, 5, 3, 68]}
    path = psg(
        tmp_path,
        annotations=[{"segmentation": segmentation} for segmentation in (polygon, runs, RUNS)],
    )
    (record,) = imported(psg_source(path, "train"), tmp_path, tmp_path / "run")
    assert values_of(record.objects, "bbox") == [(2, 1, 5.5, 3), (2, 1, 2, 3), (2, 1, 4, 3)]


RUNS = rle(IDS == 70_001)


@pytest.mark.parametrize("changes", BAD)
def test_bad_images_of_psg_are_error_rows(tmp_path, changes):
    first, second = imported(
        psg_source(psg(tmp_path, **changes), "all"), tmp_path, tmp_path / "run"
    )
    assert first.error
    assert second.ok
    assert verify(tmp_path / "run").ok


BAD_OUTLINES: tuple[Any, ...] = (
    RUNS | {"size": [12, 8]},  # of another image
    rle(IDS[:4] > 0) | {"size": [8, 12]},  # too few
    *(RUNS | {"counts": counts} for counts in ("zzzz", "é\u2028", [100, -4], None)), RUNS | {"size": 96},
    [[0, 0, 1, 1]],  # two points
    [[0, 0, 1, 1, 2, float("nan")]],
    [[0, 0, 1, 1, 2, 2, 3]],  # half a point
    [0, 0, 1, 1, 2, 2], "mask",
)  # fmt: skip


def test_run_lengths_of_another_size_are_dropped_where_only_the_image_states_its_size(tmp_path):
    Image.new("RGB", (12, 8)).save(tmp_path / "1.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [0, 0, 3, 3]}
    other_size = rle(np.ones((8, 11), np.uint8))
    annotations = [
        {**box, "id": 0, "segmentation": RUNS},
        {**box, "id": 1, "segmentation": other_size},
    ]
    content = {
        "images": [{"id": 1, "file_name": "1.png"}],
        "categories": [{"id": 1, "name": "cat"}],
    }
    (tmp_path / "coco.json").write_text(json.dumps(content | {"annotations": annotations}))
    (record,) = imported(coco_source(tmp_path / "coco.json", "train"), tmp_path, tmp_path / "run")
    assert values_of(record.objects, "segmentation") == [json.dumps(RUNS), None]
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.segmentations"] == 1


@pytest.mark.parametrize("outline", BAD_OUTLINES)
def test_bad_segmentations_are_dropped_and_counted(tmp_path, outline):
    entries = [
        {"bbox": list(BOXES[0]), "segmentation": segmentation}
        for segmentation in (outline, RUNS, None)
    ]
    (record,) = imported(
        psg_source(psg(tmp_path, annotations=entries), "train"), tmp_path, tmp_path / "run"
    )
    assert values_of(record.objects, "segmentation") == [None, json.dumps(RUNS), None]
    assert Manifest.load(tmp_path / "run").shards[0].counts["problem.segmentations"] == 1


def test_a_missing_or_wrong_panoptic_png_is_an_error_row(tmp_path):
    path = psg(tmp_path)
    Image.new("RGB", (3, 3)).save(tmp_path / "panoptic/1.png")
    (record,) = imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "a")
    assert "it is 3x3, the annotation says 12x8" in (record.error or "")
    (tmp_path / "panoptic/1.png").unlink()
    assert "1.png" in str(
        imported(psg_source(path, "train", tmp_path), tmp_path, tmp_path / "b")[0].error
    )


def test_class_lists_that_are_missing_or_ambiguous_are_refused(tmp_path):
    path = psg(tmp_path)
    content = json.loads(path.read_text())
    for key, value in (
        ("predicate_classes", []),
        ("thing_classes", ["dog", "dog"]),
        ("stuff_classes", ["dog"]),
    ):
        path.write_text(json.dumps({k: v for k, v in (content | {key: value}).items() if v}))
        with pytest.raises(UserError, match="is missing, or has a name twice"):
            psg_source(path, "train")


@given(graphs(("test", "train", "val", "mine")))
@settings(max_examples=15, deadline=None)
def test_psg_comes_back_as_it_was(originals):
    returned = round_trip(originals, "psg", lambda out, split: psg_source(out / "psg.json", split))
    assert bare(returned) == bare(originals, attributes=[])


def test_panoptic_pngs_and_stuff_come_back(tmp_path):
    source = psg_source(psg(tmp_path), "train", tmp_path)
    before = imported(source, tmp_path, tmp_path / "run")
    exported = export_run(tmp_path / "run", "psg", tmp_path / "out")
    content = json.loads((tmp_path / "out/psg.json").read_text())
    assert (content["thing_classes"], content["stuff_classes"]) == (
        ["person", "dog"],
        ["grass-merged"],
    )
    assert values_of(content["data"][0]["segments_info"], "isthing") == [0, 1, 1]
    assert values_of(content["data"][0]["segments_info"], "area") == [
        96 - 12 - 20,
        12,
        20,
    ]
    for entry in content["data"][0]["annotations"]:
        del entry["segmentation"]
    (tmp_path / "out/psg.json").write_text(json.dumps(content))
    returned = imported(
        psg_source(tmp_path / "out/psg.json", "train", tmp_path / "out"),
        tmp_path,
        tmp_path / "again",
    )
    assert returned == before
    assert exported.left_out == {}
    assert (
        Manifest.load(tmp_path / "again").run["labels"]
        == Manifest.load(tmp_path / "run").run["labels"]
    )
