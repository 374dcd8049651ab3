"""Box AP beside pycocotools called directly."""

import contextlib
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from sgpipe.errors import UserError
from sgpipe.evaluation.box_quality import evaluate_boxes
from sgpipe.records import Box, Record
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

MEASURES = ("AP", "AP50", "AP75", "AP small", "AP medium", "AP large")
RECALLS = ("AR@1", "AR@10", "AR@100", "AR small", "AR medium", "AR large")
CATEGORIES = {1: "person", 2: "bicycle", 18: "dog", 44: "bottle"}
DOG = Box("dog", 18, (10.0, 10.0, 30.0, 30.0))
CUP = Box("cup", 47, (60.0, 60.0, 20.0, 20.0))
WRONG = Box("dog", 18, (60.0, 0.0, 20.0, 20.0))


def instances(folder: Path, images: int = 15, seed: int = 0) -> Path:
    """Boxes of all sizes, some of them crowds, in files without annotation 0; bottles occur
    nowhere.
    """
    rng = np.random.default_rng(seed)
    annotations = []
    for image in range(images):
        for _ in range(int(rng.integers(0, 8))):
            corner = rng.integers(0, 200, 2)
            sides = rng.integers(10, 150, 2)
            box = {"image_id": image, "bbox": [*map(float, corner), *map(float, sides)]}
            box["area"] = float(sides.prod()) * 0.7  # of the segmentation
            crowd = int(rng.random() < 0.1)
            category = int(rng.choice([1, 2, 18]))
            annotations.append({**box, "iscrowd": crowd, "category_id": category})
    content = {
        "images": [
            {"id": image, "file_name": f"{image}.jpg", "width": 400, "height": 400}
            for image in range(images)
        ],
        "categories": [{"id": number, "name": name} for number, name in CATEGORIES.items()],
        "annotations": [
            {"id": number, **annotation} for number, annotation in enumerate(annotations, 1)
        ],
    }
    path = folder / "instances.json"
    path.write_text(json.dumps(content))
    return path


def results(folder: Path, truth: Path, seed: int = 1) -> Path:
    """Shifted boxes, some twice, some missing, some of another class, some anywhere; many scores
    are equal.
    """
    rng = np.random.default_rng(seed)
    content = json.loads(truth.read_text())
    numbers = values_of(content["categories"], "id")
    detections = []
    for item in content["annotations"]:
        for _ in range(int(rng.integers(0, 3))):
            box = np.array(item["bbox"]) + rng.normal(0, 0.08, 4) * max(item["bbox"][2:])
            box[2:] = np.maximum(box[2:], 1)
            category = item["category_id"] if rng.random() < 0.8 else int(rng.choice(numbers))
            score = round(float(rng.random()), 2)
            detections.append(
                {
                    "image_id": item["image_id"],
                    "category_id": category,
                    "bbox": box.tolist(),
                    "score": score,
                }
            )
    path = folder / "results.json"
    path.write_text(json.dumps(detections))
    return path


def direct(truth: Path, detections: Path) -> Any:
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(truth)
        evaluation = COCOeval(coco, coco.loadRes(str(detections)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation


@pytest.mark.parametrize("seed", range(3))
def test_equal_to_pycocotools(tmp_path: Path, seed: int) -> None:
    truth = instances(tmp_path, seed=seed)
    detections = results(tmp_path, truth, seed)
    result = evaluate_boxes(detections, truth)
    expected = direct(truth, detections)
    stats = [np.nan if value == -1 else value for value in expected.stats]
    assert [result.summary[name] for name in (*MEASURES, *RECALLS)] == pytest.approx(
        stats, abs=1e-12, nan_ok=True
    )
    precision = expected.eval["precision"][:, :, :, 0, -1]
    names = values_of(expected.cocoGt.loadCats(expected.params.catIds), "name")
    by_class = dict(values_of(result.per_class, "class", "AP"))
    for place, name in enumerate(names):
        if (precision[:, :, place] > -1).all():
            assert by_class.pop(name) == pytest.approx(precision[:, :, place].mean(), abs=1e-12)
    assert not by_class
    assert 0.1 < result.summary["AP"] < result.summary["AP50"] < 0.9


def copies(items: list[Any], drawn: np.ndarray) -> list[Any]:
    """The items of each image drawn, as often as it was drawn."""
    return [
        {**item, "image_id": at}
        for at, one in enumerate(drawn)
        for item in items
        if item["image_id"] == one
    ]


def test_resampled_images_beside_files_in_which_they_are_repeated(tmp_path: Path) -> None:
    truth = instances(tmp_path, 8)
    content = json.loads(truth.read_text())
    detections = json.loads(results(tmp_path, truth).read_text())
    for number, item in enumerate(detections):
        item["score"] += 1e-6 * number  # the order of equal scores within an image is arbitrary
    (tmp_path / "results.json").write_text(json.dumps(detections))
    resampling = evaluate_boxes(tmp_path / "results.json", truth).resampling
    assert resampling is not None
    rng = np.random.default_rng(5)
    copied = tmp_path / "again.json"
    repeated = tmp_path / "repeated.json"
    for _ in range(3):
        drawn = np.sort(rng.integers(0, 8, 8))
        images = [{**content["images"][image], "id": place} for place, image in enumerate(drawn)]
        annotations = copies(content["annotations"], drawn)
        repeated.write_text(json.dumps({**content, "images": images, "annotations": annotations}))
        copied.write_text(json.dumps(copies(detections, drawn)))
        expected = evaluate_boxes(copied, repeated).summary
        summary = resampling.summary(np.bincount(drawn, minlength=8))
        assert summary == pytest.approx(
            {name: expected[name] for name in summary}, abs=1e-12, nan_ok=True
        )


def record(number: int, *boxes: Box, scores: list[float] | None = None) -> Record:
    objects = [
        replace(box, score=score)
        for box, score in zip(boxes, scores or [None] * len(boxes), strict=True)
    ]
    return Record(str(number), "coco", "val", f"{number}.jpg", 100, 100, objects)


def test_precision_and_recall_at_a_score_and_the_best_f1(tmp_path: Path) -> None:
    truth = make_shards(tmp_path / "truth", [record(1, DOG, CUP), record(2, DOG)])
    detected = [record(1, DOG, WRONG, CUP, scores=[0.9, 0.8, 0.4]), record(2, WRONG, scores=[0.3])]
    run = make_shards(tmp_path / "run", detected)
    summary = evaluate_boxes(run, truth, 0.5).summary
    assert (summary["precision at 0.5"], summary["recall at 0.5"]) == (1 / 2, 1 / 3)
    assert summary["best F1"] == pytest.approx(2 * 2 / (3 + 3))
    assert summary["threshold of best F1"] == pytest.approx(0.4)
    assert summary["AP50"] == pytest.approx((1.0 + 51 / 101) / 2)


def test_images_are_matched_by_name_and_resized_and_those_not_run_are_left_out(
    tmp_path: Path,
) -> None:
    truth = make_shards(tmp_path / "truth", [record(1, DOG), record(2, DOG)])
    half = Box("Dog", 1, (5.0, 5.0, 15.0, 15.0), score=0.5)
    folder = Record("x", "folder", "all", "photos/1.jpg", 50, 50, [half])
    result = evaluate_boxes(make_shards(tmp_path / "run", [folder]), truth)
    assert result.summary["AP"] == pytest.approx(1)
    assert result.counts["ground truth images not in run"] == 1


def test_what_is_not_compared_is_said(tmp_path: Path) -> None:
    truth = make_shards(
        tmp_path / "truth", [record(1, DOG, Box("bird", 3, (50.0, 0.0, 20.0, 20.0)))]
    )
    run = make_shards(
        tmp_path / "run", [record(1, DOG, CUP, scores=[0.9, 0.8]), record(9, DOG, scores=[0.9])]
    )
    notes = " ".join(evaluate_boxes(run, truth).notes)
    assert "left out 1 box of classes without ground truth here: 'cup'" in notes
    assert "nothing was detected of 'bird'" in notes
    assert "1 image of the run without ground truth" in notes
    assert "the lowest score is 0.800" in notes
    shards = make_shards(tmp_path / "given", [record(1, DOG)])
    assert "the boxes have no scores" in " ".join(evaluate_boxes(shards, truth).notes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"category_id": None}, "expected the folder of a run, or a COCO results file"),
        ({"category_id": 5}, "category_id 5 is not a class"),
        ({"image_id": 7}, "image_id 7 is not in the ground"),
        ({"score": float("nan")}, "with score nan; expected"),
        ({"bbox": [0, 0, -1, 1]}, r"image 1: box \[0.0, 0.0, -1.0, 1.0\] with score 1"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    truth = make_shards(tmp_path / "truth", [record(1, DOG)])
    detection = {"image_id": 1, "category_id": 18, "bbox": [0, 0, 1, 1], "score": 1} | change
    (tmp_path / "found.json").write_text(
        json.dumps([{key: v for key, v in detection.items() if v is not None}])
    )
    with pytest.raises(UserError, match=message):
        evaluate_boxes(tmp_path / "found.json", truth)
