from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image

from sgpipe.errors import UserError
from sgpipe.recipe import DetectConfig, packaged_model
from sgpipe.records import Record
from sgpipe.stages.detect import DetectedBoxes, DetectStage, ZeroShotDetector, detector_classes, load
from tests.sgpipe.stages.detect.detectors import make_closed, make_grounding_dino, make_owl

CPU = torch.device("cpu")
ASKED = ("dog", "cup", "dining table")


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 60).convert("RGB")


def stage(folder: Path, found: DetectedBoxes, **settings) -> DetectStage:
    made = DetectStage(DetectConfig(detector="d", **settings), {"all": folder})
    made.classes = ("dog", "cup")
    made.detector = lambda image, threshold: found
    return made


def record(folder: Path, name: str = "a.png") -> Record:
    return Record(name, "folder", "all", name, 64, 48)


@pytest.fixture
def folder(tmp_path, image) -> Path:
    image.save(tmp_path / "a.png")
    return tmp_path


def test_duplicate_boxes_are_removed_and_boxes_clipped(folder):
    boxes = torch.tensor(
        [[10.0, 10, 30, 30], [11, 10, 31, 30], [11, 10, 31, 30], [-5, -5, 20, 60], [70, 0, 80, 9], [1, 1, 1, 9]]
    )
    scores, labels = torch.tensor([0.5, 0.9, 0.4, 0.3, 0.8, 0.7]), torch.tensor([0, 0, 1, 0, 0, 0])
    [done] = stage(folder, DetectedBoxes(boxes, scores, labels))([record(folder)])
    assert [(box.category, box.category_id, box.bbox) for box in done.objects] == [
        ("dog", 1, (11, 10, 20, 20)),
        ("cup", 2, (11, 10, 20, 20)),
        ("dog", 1, (0, 0, 20, 48)),
    ]
    assert done.box_scores == pytest.approx([0.9, 0.4, 0.3])
    [few] = stage(folder, DetectedBoxes(boxes, scores, labels), max_boxes=3)([record(folder)])
    assert [box.category for box in few.objects] == ["dog"]  # the others were no boxes


def test_missing_images_and_nan_scores_are_reported(folder):
    nothing = DetectedBoxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    missing, there = stage(folder, nothing)([record(folder, "b.png"), record(folder)])
    assert "image file not found" in missing.error
    assert (there.ok, there.objects, there.box_scores) == (True, [], [])
    broken = DetectedBoxes(torch.zeros(1, 4), torch.tensor([torch.nan]), torch.zeros(1, dtype=torch.long))
    with pytest.raises(UserError, match="NaN"):
        stage(folder, broken)([record(folder)])


def test_classes_of_a_closed_detector_are_read_without_its_weights(tmp_path, image):
    folder = make_closed(tmp_path / "d")
    (folder / "model.safetensors").rename(tmp_path / "away")
    assert detector_classes(DetectConfig(detector=str(folder))) == ("N/A", "dog", "cup")
    with pytest.raises(UserError, match="has a fixed set of classes"):
        detector_classes(DetectConfig(detector=str(folder), classes=("a",)))
    (tmp_path / "away").rename(folder / "model.safetensors")
    found = load(DetectConfig(detector=str(folder)), CPU)(image, 0.0)
    assert len(found.labels)
    assert set(found.labels.tolist()) <= {1, 2}  # never "N/A"
    assert found.boxes.shape == (len(found.scores), 4)
    assert found.boxes.abs().max() > 2  # pixels, no shares


@pytest.mark.parametrize("make", [make_owl, make_grounding_dino])
def test_zero_shot_detectors_get_class_names(tmp_path, image, make):
    config = DetectConfig(detector=str(make(tmp_path / "d")), classes=ASKED)
    assert detector_classes(config) == ASKED
    assert len(detector_classes(DetectConfig(detector=config.detector))) == 80
    found = load(config, CPU)(image, 0.05)
    assert found.boxes.shape == (len(found.scores), 4)
    assert len(found.labels) == len(found.scores)
    assert set(found.labels.tolist()) <= {0, 1, 2}


@pytest.mark.parametrize(
    ("make", "classes", "reason"),
    [
        (make_grounding_dino, [f"thing {n}" for n in range(150)], r"the 150 class names would be \d+ tokens, .* 256;"),
        (make_owl, ["a dog", "a dog " * 9], r"the longest class name would be \d+ tokens, and this owlv2 reads 16;"),
    ],
)
def test_class_names_that_a_zero_shot_detector_cannot_read_are_refused(tmp_path, make, classes, reason):
    with pytest.raises(UserError, match=f"detect.classes: {reason}"):
        load(DetectConfig(detector=str(make(tmp_path / "d")), classes=classes), CPU)


@pytest.mark.parametrize(
    ("phrase", "place"), [("dog", 0), ("dining", 2), ("table", 2), ("", -1), ("do", -1), ("dog cup", -1)]
)
def test_phrases_map_to_classes(phrase, place):
    detector = ZeroShotDetector.__new__(ZeroShotDetector)
    detector._classes = list(ASKED)
    assert detector._class_index(phrase) == place


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (str(packaged_model("captioner")), "is not an object detector: its model_type is 'blip'"),
        ("nowhere/no", "no detector"),
    ],
)
def test_other_models_are_refused(name, reason, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # the variable is read at import
    with pytest.raises(UserError, match=reason):
        detector_classes(DetectConfig(detector=name))
