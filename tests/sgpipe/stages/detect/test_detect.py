import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from sgpipe.errors import UserError
from sgpipe.recipe import DetectConfig, Resources, packaged_model
from sgpipe.records import Record
from sgpipe.stages import detect
from sgpipe.stages.detect import (
    DetectedBoxes,
    Detector,
    DetectStage,
    Prepared,
    detector_classes,
    load,
)
from sgpipe.stages.given_boxes import GivenBoxesStage
from tests.sgpipe.stages.detect.detectors import (
    make_closed,
    make_grounding_dino,
    make_omdet,
    make_owl,
    make_sam3,
)
from tests.values import values_of

CPU = torch.device("cpu")
ASKED = ("dog", "cup", "dining table")
THOUSAND = tuple(f"thing{number}" for number in range(1000))


@pytest.fixture(scope="module")
def image() -> Image.Image:
    return Image.effect_mandelbrot((64, 48), (-2, -1, 1, 1), 60).convert("RGB")


def boxes_of(image: Image.Image, config: DetectConfig, threshold: float) -> DetectedBoxes:
    detector = load(config, CPU)
    return detector.detect(detector.prepare(image), threshold)


def stage(folder: Path, boxes: DetectedBoxes, **settings) -> DetectStage:
    detect_stage = DetectStage(DetectConfig(detector="d", **settings), {"all": folder})
    detect_stage.classes = ("dog", "cup", "N/A")
    detect_stage.detector = Found(boxes)
    return detect_stage


class Found(Detector):
    """A detector that finds the same in every image."""

    def __init__(self, boxes: DetectedBoxes) -> None:
        self.found = boxes

    def prepare(self, image):
        return Prepared({}, image.size)

    def detect(self, image, threshold):
        return self.found


def record(folder: Path, name: str = "a.png") -> Record:
    return Record(name, "folder", "all", name, 64, 48)


@pytest.fixture
def folder(tmp_path, image) -> Path:
    image.save(tmp_path / "a.png")
    return tmp_path


def test_duplicate_boxes_are_removed_and_boxes_clipped(folder):
    boxes = torch.tensor(
        [
            [10.0, 10, 30, 30],
            [11, 10, 31, 30],
            [11, 10, 31, 30],
            [-5, -5, 20, 60],
            [70, 0, 80, 9],
            [1, 1, 1, 9],
        ]
    )
    scores = torch.tensor([0.5, 0.9, 0.4, 0.3, 0.8, 0.7])
    labels = torch.tensor([0, 0, 1, 0, 0, 0])
    [done] = stage(folder, DetectedBoxes(boxes, scores, labels))([record(folder)])
    expected = [
        ("dog", 1, (11, 10, 20, 20)),
        ("cup", 2, (11, 10, 20, 20)),
        ("dog", 1, (0, 0, 20, 48)),
    ]
    assert values_of(done.objects, "category", "category_id", "bbox") == expected
    assert values_of(done.objects, "score") == pytest.approx([0.9, 0.4, 0.3])
    [few] = stage(folder, DetectedBoxes(boxes, scores, labels), max_boxes=3)([record(folder)])
    assert values_of(few.objects, "category") == ["dog"]  # the others were no boxes
    [unused] = stage(folder, DetectedBoxes(boxes, scores, torch.full((6,), 2)))([record(folder)])
    assert unused.objects == []  # DETR's class of ids that COCO does not use


def test_missing_images_are_reported(folder):
    nothing = DetectedBoxes(torch.zeros(0, 4), torch.zeros(0), torch.zeros(0, dtype=torch.long))
    missing, present = stage(folder, nothing)([record(folder, "b.png"), record(folder)])
    assert "image file not found" in missing.error
    assert (present.ok, present.objects) == (True, [])


def test_classes_of_a_closed_detector_are_read_without_its_weights(tmp_path, image):
    folder = make_closed(tmp_path / "d")
    (folder / "model.safetensors").rename(tmp_path / "away")
    assert detector_classes(DetectConfig(detector=str(folder))) == ("cat", "dog", "cup")
    with pytest.raises(UserError, match="has a fixed set of classes"):
        detector_classes(DetectConfig(detector=str(folder), classes=("a",)))
    (tmp_path / "away").rename(folder / "model.safetensors")
    boxes = boxes_of(image, DetectConfig(detector=str(folder)), 0.0)
    assert len(boxes.labels)
    assert set(boxes.labels.tolist()) <= {0, 1, 2}
    assert boxes.boxes.shape == (len(boxes.scores), 4)
    assert boxes.boxes.abs().max() > 2  # pixels, no shares


def copy_parseda(folder):
    return Path(shutil.copytree(packaged_model("parseda"), folder))


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [make_closed, make_owl, make_omdet, make_grounding_dino, make_sam3, copy_parseda]
)
def test_detectors_with_damaged_weights_are_refused(tmp_path, make):
    file = make(tmp_path / "d") / "model.safetensors"
    tensors = load_file(file)
    name = next(
        name
        for name in tensors
        if name.endswith("norm.weight") or name.endswith("layernorm_before.weight")
    )
    missing = {other: tensors[other] for other in tensors if other != name}
    for weights, reason in (
        (
            {**tensors, name: tensors[name] * torch.nan},
            "returns NaN scores: its weights are damaged",
        ),
        (missing, "1 of its weights missing, such as |json: missing "),
    ):
        save_file(weights, file, metadata={"format": "pt"})
        with pytest.raises(UserError, match=reason) as raised:
            load(DetectConfig(detector=str(file.parent)), CPU)
        assert "\n" not in str(raised.value)


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [make_closed, make_owl, make_omdet, make_grounding_dino, make_sam3, copy_parseda]
)
def test_images_are_prepared_in_threads_as_by_the_whole_processor(tmp_path, image, make):
    config = DetectConfig(detector=str(make(tmp_path / "d")), threshold=0.01, max_boxes=7)
    if make is make_sam3:  # which looks for one class after the other
        config = config.model_copy(update={"classes": ASKED})
    images = [image.rotate(10 * turn).resize((64, 48)) for turn in range(9)]
    names = [f"{number}.png" for number in range(9)]
    for picture, name in zip(images, names, strict=True):
        picture.save(tmp_path / name)
    (tmp_path / "4.png").write_bytes(b"no image")
    results = []
    for threads in (0, 3):
        detect_stage = DetectStage(
            config.model_copy(update={"resources": Resources(io_threads=threads)}),
            {"all": tmp_path},
        )
        detect_stage.setup()
        done = detect_stage([record(tmp_path, name) for name in names])
        assert values_of(done, "ok") == [number != 4 for number in range(9)]
        results.append(values_of(done, "image_id", "error", "objects"))
    assert results[0] == results[1]
    assert any(objects for _, _, objects in results[0])
    detector = detect_stage.detector
    assert len(detect_stage.classes) == {make_closed: 3, make_sam3: len(ASKED)}.get(make, 80)
    if isinstance(detector, detect.ZeroShotDetector):
        text = detector._prompts[0] if make is make_sam3 else detector._prompts[:1]
        expected = detector._processor(images=image, text=text, return_tensors="pt")
        inputs = {**detector.prepare(image).inputs, **detector._texts[0]}
        assert expected.keys() == inputs.keys()
        assert all(torch.equal(expected[name], inputs[name]) for name in expected)


def assert_same(one: DetectedBoxes, other: DetectedBoxes) -> None:
    torch.testing.assert_close(one.boxes, other.boxes, atol=1e-3, rtol=0)
    torch.testing.assert_close(one.scores, other.scores, atol=1e-5, rtol=0)
    assert one.labels.tolist() == other.labels.tolist()


@pytest.mark.slow
def test_a_thousand_classes_of_grounding_dino_are_those_of_each_prompt_alone(tmp_path, image):
    folder = str(make_grounding_dino(tmp_path / "d"))
    boxes = boxes_of(image, DetectConfig(detector=folder, classes=THOUSAND), 0.99)
    size = 127  # two tokens each, of 256 with those at both ends
    parts = []
    for first in range(0, 1000, size):
        part = boxes_of(
            image, DetectConfig(detector=folder, classes=THOUSAND[first : first + size]), 0.99
        )
        parts.append(part._replace(labels=part.labels + first))
    assert sum(len(part.labels) > 0 for part in parts) > 4
    assert_same(boxes, DetectedBoxes(*map(torch.cat, zip(*parts, strict=True))))
    fewer = boxes_of(image, DetectConfig(detector=folder, classes=THOUSAND[: 2 * size]), 0.99)
    first_two = boxes.labels < 2 * size
    # classes to come change nothing
    assert_same(fewer, DetectedBoxes(*(part[first_two] for part in boxes)))


def test_boxes_of_owl_do_not_depend_on_how_many_classes_are_read_at_once(
    tmp_path, image, monkeypatch
):
    size = 300
    # the best come late
    config = DetectConfig(detector=str(make_owl(tmp_path / "d")), classes=THOUSAND[::-1])
    boxes = boxes_of(image, config, 0.05)
    monkeypatch.setattr(detect, "_QUERIES", size)
    pieces = load(config, CPU)
    assert len(pieces._prompts) == -(-1000 // size)
    assert boxes.labels.max() > size
    assert_same(pieces.detect(pieces.prepare(image), 0.05), boxes)


def test_sam_3_sees_an_image_once_and_looks_for_each_class_alone(tmp_path, image):
    model = load(DetectConfig(detector=str(make_sam3(tmp_path / "d")), classes=ASKED), CPU)
    seen = []
    network = model._model
    processor = model._processor
    network.vision_encoder.register_forward_hook(lambda module, inputs, output: seen.append(output))
    detections = model.detect(model.prepare(image), 0.0)
    assert len(seen) == 1
    for label, name in enumerate(ASKED):
        with torch.no_grad():
            output = network(**processor(images=image, text=name, return_tensors="pt"))
        expected = (output.pred_logits.sigmoid() * output.presence_logits.sigmoid())[0]
        detected_boxes = DetectedBoxes(*(part[detections.labels == label] for part in detections))
        boxes = output.pred_boxes[0] * torch.tensor([64, 48, 64, 48])
        assert_same(detected_boxes, DetectedBoxes(boxes, expected, torch.full((20,), label)))


def test_names_are_found_as_the_tokenizer_spells_them(tmp_path, image, monkeypatch):
    classes = ("Cup", "T-Shirt", "Dog?", "Dining table", "thing1 table")
    model = load(
        DetectConfig(detector=str(make_grounding_dino(tmp_path / "d")), classes=classes), CPU
    )
    assert model._prompts == [["cup", "t-shirt", "dog ", "dining table", "thing1 table"]]
    texts = ["t - shirt", "dog", "cup t - shirt", "dining", "table", "", "do"]
    output = {"boxes": torch.zeros(7, 4), "scores": torch.ones(7), "text_labels": texts}
    monkeypatch.setattr(
        model._processor, "post_process_grounded_object_detection", lambda *_, **__: [output]
    )
    # there are two tables
    assert model.detect(model.prepare(image), 0.3).labels.tolist() == [
        1,
        2,
        3,
    ]


@pytest.mark.parametrize(("make", "names", "reason"), [
    (make_grounding_dino, ["cup", "dog " * 300], r"'dog dog .* 303 tokens, and this grounding-dino reads 256"),
    (make_owl, ["a dog", "a dog " * 9], r"'a dog .* would be 38 tokens, and this owlv2 reads 16;"),
    (make_sam3, ["a dog", "a dog " * 9], r"'a dog .* would be 38 tokens, and this sam3 reads 32;"),
])  # fmt: skip
def test_a_name_that_a_zero_shot_detector_cannot_read_is_refused(tmp_path, make, names, reason):
    with pytest.raises(UserError, match=f"detect.classes: {reason}"):
        load(DetectConfig(detector=str(make(tmp_path / "d")), classes=names), CPU)


def test_other_models_are_refused(tmp_path, monkeypatch):
    # the variable is read at import
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    (tmp_path / "config.json").write_text('{"model_type": ["detr"]}')
    for name, reason in (
        (
            packaged_model("captioner"),
            "is not an object detector: model_type in its config.json is blip",
        ),
        ("nowhere/no", "no such folder: nowhere/no, and .* not in the hub.s cache"),
        (tmp_path, r"is not an object detector: model_type in its config.json is \['detr'\]"),
    ):
        with pytest.raises(UserError, match=reason):
            detector_classes(DetectConfig(detector=str(name)))


@pytest.fixture
def given_boxes(tmp_path) -> GivenBoxesStage:
    names = ["a/same.jpg", "b/same.jpg", "c/one.jpg", "bare.jpg"]
    images = [
        {"id": n, "file_name": name, "width": 40, "height": 30} for n, name in enumerate(names)
    ]
    images[3] |= {"width": 0, "height": 0}
    boxes = [{"id": n, "image_id": n, "category_id": 7, "bbox": [n, 1, 5, 5]} for n in range(4)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 7, "name": "dog"}]}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return GivenBoxesStage(tmp_path / "boxes.json")


@pytest.mark.parametrize(("name", "entry"), [
    ("home/me/a/same.jpg", 0), ("home/me/b/same.jpg", 1), ("b/same.jpg", 1), ("elsewhere/one.jpg", 2), ("one.jpg", 2),
    ("x/bare.jpg", 3), ("c/same.jpg", "has 2 images"), ("d/other.jpg", "has no images"),
])  # fmt: skip
def test_images_match_by_path_suffix_unless_that_is_ambiguous(given_boxes, name, entry):
    [matched] = given_boxes([Record("1", "coco", "all", name, 40, 30)])
    assert matched.error is None or entry in matched.error
    assert [box.bbox[0] for box in matched.objects] == ([entry] if matched.ok else [])
