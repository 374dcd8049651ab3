"""What `Pipeline` takes: images in every form, lists of them, and boxes with each call."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import ExifTags, Image

from sgpipe import ImageError, Pipeline, SceneGraph, UserError
from sgpipe.miniworld.dataset import IMAGES, render_dataset

BOXES, CLASSES = [[4, 6, 60, 70], [40.5, 20, 90, 88]], ["person", "dog"]


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("miniworld") / "world"
    render_dataset(out, 1, seed=5)
    return next((out / IMAGES).iterdir())


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(settings={"caption.samples": 3})


@pytest.fixture(scope="module")
def array(file) -> np.ndarray:
    return np.asarray(Image.open(file))


def objects(graph: SceneGraph) -> list[tuple]:
    return [(box.category, box.bbox) for box in graph.objects]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Path("no/such/folder/a.jpg"), "image file not found"),
        ("", "not a regular file"),
        (Path(__file__).parent, "not a regular file"),
        (Path(__file__), "unknown format"),
        ("https://a.org/b.jpg", r"^https://a\.org/b\.jpg is a URL, not a file"),
        (torch.zeros(3, 8, 8), "Tensor is not an image"),
        (Image.new("F", (8, 8)), "floating-point"),
        (Image.new("RGB", (0, 8)), "no pixels"),
        (np.zeros((8, 8, 3)), r"array of float64 .*expected uint8.*\(array \* 255\)\.astype\('uint8'\)"),
        (np.zeros((8, 8), np.uint16), "array of uint16 is not an image: expected uint8"),
        (np.zeros((3, 8, 9), np.uint8), r"shape 3x8x9 .*transpose\(1, 2, 0\)"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)
def test_what_is_no_image_raises_an_error_and_in_a_list_becomes_one(pipeline, file, bad, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        pipeline(bad)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)
    [graph] = pipeline([bad])
    assert str(caught.value) in str(graph.error)
    assert (graph.objects, graph.triplets()) == ([], [])


def test_a_list_gives_a_list_in_order_and_a_bad_image_does_not_stop_it(pipeline, file, array):
    graphs = pipeline([file, "nope.jpg", array])
    assert isinstance(graphs, list)
    assert [graph.error is None for graph in graphs] == [True, False, True]
    assert graphs[0].record == pipeline(file).record
    assert objects(graphs[2]) == objects(pipeline(array))
    assert pipeline([]) == []
    assert pipeline((str(file),))[0].record == graphs[0].record


def test_arrays_are_the_images_that_they_show(pipeline, file, array):
    expected = pipeline(Image.fromarray(array))
    assert expected.objects
    alpha = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    for same in (array, np.asfortranarray(array), array[:, ::-1][:, ::-1], alpha):
        assert pipeline(same).record == expected.record
    grey = np.asarray(Image.fromarray(array).convert("L"))
    in_grey = pipeline(Image.fromarray(grey)).record
    assert pipeline(grey).record == pipeline(grey[..., None]).record == in_grey
    assert pipeline(array[..., ::-1]).record != expected.record


def test_boxes_of_a_call_replace_the_detector(pipeline, file, array):
    for image in (file, array):
        graph = pipeline(image, boxes=BOXES, classes=CLASSES)
        assert objects(graph) == [("person", (4.0, 6.0, 56.0, 64.0)), ("dog", (40.5, 20.0, 49.5, 68.0))]
        assert len(graph.captions) == 3
        for same in (np.array(BOXES), torch.tensor(BOXES), np.array(BOXES, np.float32), tuple(map(tuple, BOXES))):
            assert pipeline(image, boxes=same, classes=np.array(CLASSES)).record == graph.record
    assert objects(pipeline(file)) != objects(graph)  # the next call has its own


def test_other_classes_than_the_detectors_do_not_change_other_calls(pipeline, file):
    before = pipeline(file, boxes=BOXES, classes=CLASSES).record
    other = pipeline(file, boxes=BOXES, classes=["kangaroo", "person"])
    assert [box.category for box in other.objects] == ["kangaroo", "person"]
    assert other.error is None
    assert pipeline(file, boxes=BOXES, classes=CLASSES).record == before
    fresh = Pipeline(settings={"caption.samples": 3})
    assert fresh(file, boxes=BOXES, classes=["kangaroo", "person"]).record == other.record
    assert fresh(file, boxes=BOXES, classes=CLASSES).record == before


def test_relations_lead_from_given_boxes_to_given_boxes(file):
    pipeline = Pipeline(settings={"tag.threshold": 0, "pair.candidates": "image"})
    found = pipeline(file)
    corners = [(x, y, x + w, y + h) for x, y, w, h in (box.bbox for box in found.objects)]
    given = pipeline(file, boxes=corners, classes=[box.category for box in found.objects])
    assert given.record.captions == found.record.captions
    assert [(r.subject, r.predicate, r.object) for r in given.record.relations] == [
        (r.subject, r.predicate, r.object) for r in found.record.relations
    ]
    assert given.record.relations


def test_a_pipeline_without_a_detector_takes_boxes_only(file):
    pipeline = Pipeline("coco", captioner="MINIWORLD", tagger="MINIWORLD", settings={"caption.samples": 2})
    assert len(pipeline(file, boxes=BOXES, classes=CLASSES).objects) == 2
    for images in (file, [file]):
        with pytest.raises(UserError, match=r"detect\.detector is not set"):
            pipeline(images)


@pytest.mark.parametrize("nothing", [[], np.zeros((0, 4)), np.zeros(0), ()])
def test_no_boxes_are_another_thing_than_boxes_of_the_detector(pipeline, file, nothing):
    graph = pipeline(file, boxes=nothing, classes=[])
    assert (graph.objects, graph.triplets(0), graph.error) == ([], [], None)


def test_boxes_are_of_the_image_as_displayed(pipeline, file, tmp_path):
    image = Image.open(file).resize((120, 60))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for same in (tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")):
        graph = pipeline(same, boxes=[[0, 0, 60, 120]], classes=["dog"])
        assert (graph.record.width, graph.record.height) == (60, 120)
        assert objects(graph) == [("dog", (0.0, 0.0, 60.0, 120.0))]
        with pytest.raises(UserError, match=r"box .* is not inside the image, which has 60x120 pixels"):
            pipeline(same, boxes=[[0, 0, 120, 60]], classes=["dog"])


@pytest.mark.parametrize(
    ("boxes", "classes", "reason"),
    [
        (BOXES, None, "2 boxes and 0 classes"),
        (BOXES, ["dog"], "expected a class name for each box, got 2 boxes and 1 class"),
        (BOXES, "dog", "expected a list of class names, got 'dog'"),
        (BOXES, ["dog", "a\nb"], "expected class names, got"),
        ([1, 2, 3, 4], ["dog"], r"expected x1, y1, x2, y2 in pixels of each box, got shape \(4,\)"),
        ([[1, 2, 3, 4], [5]], ["dog", "cat"], "boxes= are not numbers"),
        ([[1, 2, 3, float("nan")]], ["dog"], r"box 0 \(1, 2, 3, nan\) is not finite"),
        ([[5, 5, 5, 9]], ["dog"], r"box 0 \(5, 5, 5, 9\) is not inside .*x1 < x2 and y1 < y2"),
        ([[-2, 5, 20, 20]], ["dog"], "is not inside the image, which has"),
        ([[0.1, 0.2, 0.5, 1.0]], ["dog"], "within the first pixel of the image, .* expected pixels, not shares"),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused(pipeline, file, boxes, classes, reason):
    with pytest.raises(UserError, match=reason) as caught:
        pipeline(file, boxes=boxes, classes=classes)
    assert not isinstance(caught.value, ImageError)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"of image 1|expected a list with"):
        pipeline([file, file], boxes=[BOXES, boxes], classes=[CLASSES, classes])


@pytest.mark.parametrize("boxes", [BOXES[:1], [], 5, "file"])
def test_a_list_of_images_needs_a_list_of_boxes(pipeline, file, boxes):
    with pytest.raises(UserError, match=r"boxes=: expected a list with an entry for each of 3 images, got"):
        pipeline([file] * 3, boxes=boxes, classes=[CLASSES] * 3)


def test_an_image_in_memory_has_no_name_in_a_file_of_boxes(file, array):
    pipeline = Pipeline(boxes=file.parents[1] / "instances.json")
    with pytest.raises(ImageError, match=r"an image in memory has no name to find in .*: pass its boxes"):
        pipeline(array)
    assert len(pipeline(array, boxes=BOXES, classes=CLASSES).objects) == 2


@pytest.mark.parametrize("single", ["a.jpg", Path("a.jpg"), Image.new("RGB", (8, 8)), np.zeros((8, 8, 3)), None])
def test_label_takes_several_images(pipeline, single):
    with pytest.raises(UserError, match=r"label: expected several images, got .*; pipeline\(image\) labels one"):
        pipeline.label(single)
