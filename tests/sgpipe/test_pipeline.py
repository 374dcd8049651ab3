import json
import os
import pickle
from io import BytesIO
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import supervision as sv
import torch
from PIL import ExifTags, Image, ImageChops
from typer.testing import CliRunner

from sgpipe import ImageError, Pipeline, RelationAnnotator, SceneGraph
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.miniworld.dataset import IMAGES, INSTANCES, render_dataset
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.folder import read_folder
from tests.values import values_of

BOXES = [[4, 6, 60, 70], [40.5, 20, 90, 88]]
CLASSES = ["person", "dog"]


@pytest.fixture(scope="module")
def miniworld(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("miniworld") / "world"
    render_dataset(out, 3, seed=5)
    return out


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline(settings={"caption.samples": 3})


@pytest.fixture(scope="module")
def of_boxes(miniworld) -> Pipeline:
    return Pipeline(boxes=miniworld / INSTANCES)


@pytest.fixture(scope="module")
def graphs(of_boxes, miniworld) -> list[SceneGraph]:
    return list(of_boxes.label(sorted((miniworld / IMAGES).iterdir())))


@pytest.fixture(scope="module")
def file(miniworld) -> Path:
    return min((miniworld / IMAGES).iterdir())


@pytest.fixture(scope="module")
def array(file) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_the_packaged_models_find_relations_between_given_boxes(graphs, miniworld):
    instances = json.loads((miniworld / INSTANCES).read_text())
    assert sum(len(graph.objects) for graph in graphs) == len(instances["annotations"])
    assert sum(len(graph.triplets()) for graph in graphs) >= 2
    for graph in graphs:
        confidences = values_of(graph.triplets(0.5), "confidence")
        assert confidences == sorted(confidences, reverse=True)
        assert all(confidence >= 0.5 for confidence in confidences)
        assert len(graph.captions) == 10


def test_labels_depend_neither_on_other_images_nor_on_how_the_path_is_written(
    of_boxes, graphs, miniworld, tmp_path, monkeypatch
):
    last = sorted((miniworld / IMAGES).iterdir())[-1]
    monkeypatch.chdir(miniworld)
    (tmp_path / "link").symlink_to(miniworld / IMAGES)
    dotted = (
        f"../{miniworld.name}/{IMAGES}/{last.name}",
        tmp_path / "link" / ".." / IMAGES / last.name,
    )
    for path in (last, str(last), *dotted):
        assert of_boxes(path).record == graphs[-1].record


def test_a_graph_gives_triplets_drawings_and_json():
    objects = [Box("dog", 1, (0.0, 0.0, 20.0, 20.0)), Box("dog", 1, (30.0, 5.0, 20.0, 20.0))]
    relations = [
        Relation(0, 1, "next to", 0.3),
        Relation(1, 0, "chasing", 0.9),
        Relation(0, 1, "on", 0.1),
    ]
    graph = SceneGraph(Record("a", "d", "all", "nowhere.png", 60, 40, objects, relations=relations))
    assert graph.triplets() == [
        ("dog 2", "chasing", "dog 1", 0.9),
        ("dog 1", "next to", "dog 2", 0.3),
    ]
    assert graph.relations == relations
    assert (graph.width, graph.height) == (60, 40)
    for threshold in (float("nan"), float("inf"), -1, "a", None, [0.5, 0.6], np.array([0.1, 0.2])):
        for method in (graph.triplets, graph.draw, graph.to_networkx, graph.to_supervision):
            with pytest.raises(UserError, match="expected a number from 0 to 1"):
                method(threshold)
    assert graph.draw(width=300).width == 300
    with pytest.raises(UserError, match=r"^limit=-1: expected a number of relations, 0 or more$"):
        graph.draw(limit=-1)
    assert graph.as_json()["relations"][1]["predicate"] == "chasing"


@pytest.fixture
def detected() -> SceneGraph:
    """A dog that runs, and another one next to it; the annotation of V-COCO comes first."""
    objects = [
        Box(NO_OBJECT, 0, (0, 0, 0, 0), score=1.0),
        Box("dog", 18, (4, 5, 20, 30), score=0.5),
        Box("dog", 18, (40, 6, 50, 80), score=0.75),
    ]
    texts = (
        (1, 2, "next to", 0.3),
        (1, 2, "next to", 0.7),
        (1, 2, "chasing", 0.6),
        (2, 1, "on", 0.1),
        (1, 0, "run"),
    )
    relations = [Relation(*text) for text in texts]
    return SceneGraph(Record("a", "d", "all", "a.png", 100, 200, objects, relations=relations))


def test_a_graph_of_networkx_has_the_boxes_and_confident_relations(detected):
    graph = detected.to_networkx()
    assert graph.graph == {"file_name": "a.png", "width": 100, "height": 200}
    assert graph.nodes[2] == {"category": "dog", "bbox": (40, 6, 90, 86), "score": 0.75}
    edges = {(1, 2, "next to", 0.7), (1, 2, "chasing", 0.6), (1, 0, "run", None)}
    assert set(graph.edges(keys=True, data="confidence")) == edges
    assert detected.to_networkx(0).has_edge(2, 1, "on")
    scene_graph = SceneGraph(
        Record("a", "d", "all", "a.png", 100, 200, [Box("dog", 1, (0, 0, 9, 9))])
    ).to_networkx()
    assert dict(scene_graph.nodes) == {0: {"category": "dog", "bbox": (0, 0, 9, 9)}}
    json.dumps(nx.node_link_data(graph))


def test_detections_of_supervision_keep_their_relations_when_filtered(detected):
    detections = detected.to_supervision(threshold=0.5)
    assert detections.xyxy.tolist() == [[4, 5, 24, 35], [40, 6, 90, 86]]
    assert detections.confidence.tolist() == [0.5, 0.75]
    assert detections.class_id.tolist() == [18, 18]
    assert detections["class_name"].tolist() == ["dog", "dog"]
    assert values_of(detections.metadata["relations"], "predicate") == ["run", "next to", "chasing"]
    second = detections[detections.confidence > 0.6]
    assert second["object_index"].tolist() == [2]
    assert second.metadata == detections.metadata
    empty = SceneGraph(Record("a", "d", "all", "a.png", 100, 200)).to_supervision()
    assert (len(empty), empty.xyxy.shape, empty.confidence) == (0, (0, 4), None)


@pytest.mark.parametrize("size", [(100, 200), (200, 100), (101, 151)])
def test_an_annotator_draws_relations_between_the_detections_that_are_left(detected, size):
    image = Image.new("RGB", size, "#204060")
    detections = detected.to_supervision()
    drawn = RelationAnnotator().annotate(image, detections)
    assert drawn.size == size
    bgr = np.asarray(image)[:, :, ::-1]
    assert np.array_equal(
        RelationAnnotator().annotate(bgr, detections), np.asarray(drawn)[:, :, ::-1]
    )
    boxes = RelationAnnotator().annotate(image, detections, relations=[])
    assert ImageChops.difference(drawn, boxes).getbbox()
    dog = detections[[1]]
    assert RelationAnnotator().annotate(image, dog) == RelationAnnotator().annotate(
        image, dog, relations=[]
    )
    remaining = sv.Detections(xyxy=np.array([[4.0, 5, 24, 35], [40, 6, 90, 86]]))
    arrow = RelationAnnotator().annotate(image, remaining, [Relation(0, 1, "near", 0.5)])
    assert arrow != RelationAnnotator().annotate(image, remaining)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"recipe": "folder", "settings": {"tag.method": "rtagger"}}, "tag.tagger is not set"),
        ({"recipe": "coco", "tagger": "t"}, "detect.detector is not set"),
        ({"boxes": "nowhere.json"}, "no such file: nowhere.json"),
        ({"boxes": np.zeros((2, 4))}, "^boxes=: expected"),
        ({"detector": "nowhere"}, "nowhere is not an object detector"),
        ({"settings": {"tag.device": "gpu"}}, r"tag\.device 'gpu': expected auto"),
        (
            {"settings": {"caption.resources.gpus": 1}},
            r"sees 0 GPUs here: set caption\.device to cpu",
        ),
        ({"device": "cuda"}, r"^detect\.device 'cuda': .*PyTorch sees 0 GPUs"),
    ],
)
def test_what_a_pipeline_cannot_use_is_refused(options, reason, monkeypatch, file):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match=reason):
        Pipeline(**options)(file)


def test_a_pickled_pipeline_loads_its_models_again(of_boxes, graphs, miniworld):
    for used in (of_boxes, Pipeline(boxes=miniworld / INSTANCES)):
        pickled = pickle.dumps(used)
        assert len(pickled) < 100_000  # the recipe, not the models
        copied = pickle.loads(pickled)  # noqa: S301 - made above
        assert copied(sorted((miniworld / IMAGES).iterdir())[0]).record == graphs[0].record


def test_a_device_holds_for_all_stages_but_those_with_one_of_their_own():
    recipe = Pipeline(device="cpu", settings={"tag.device": "auto"}).recipe
    assert (recipe.tag.device, recipe.caption.device) == ("auto", "cpu")


def test_a_tagger_replaces_the_clip_of_the_recipe_for_photographs(miniworld, tmp_path):
    models = ("--captioner", "MINIWORLD", "--tagger", "MINIWORLD")
    options = ("--recipe", "photos", "--boxes", miniworld / INSTANCES, "--out", tmp_path, "--json")
    sides = ("--set", "tag.short_side=96", "--set", "tag.long_side=144")
    labelled = invoke(miniworld / IMAGES, *models, *options, *sides)
    assert labelled.exit_code == 0, labelled.stderr
    assert any(json.loads(line)["relations"] for line in labelled.stdout.splitlines())


def invoke(*arguments: object):
    words = map(str, arguments)
    return CliRunner().invoke(
        app, ["label", *([] if "--recipe" in arguments else ["--recipe", "miniworld"]), *words]
    )


def test_the_command_draws_images_and_prints_relations(miniworld, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    images = miniworld / IMAGES
    out = tmp_path / "out"
    result = invoke(images, tmp_path / "bad.png", "--boxes", miniworld / INSTANCES, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"{tmp_path / 'bad.png'}: source: image cannot be read" in result.stdout
    assert any(" · " in line for line in lines)
    assert "know only synthetic images" in result.stderr
    assert sorted(values_of(out.iterdir(), "name")) == [
        f"{path.name}.relations.png" for path in sorted(images.iterdir())
    ]
    assert all(Image.open(path).width == 960 for path in out.iterdir())
    second = invoke(tmp_path / "bad.png", "--boxes", miniworld / INSTANCES, "--out", out, "--json")
    assert second.exit_code == 3
    row = json.loads(second.stdout)
    assert (row["status"], row["file_name"]) == ("error", str(tmp_path / "bad.png"))


def test_drawings_replace_no_other_and_are_not_images_of_the_next_run(miniworld, tmp_path, file):
    """The folder of the drawings may be inside the folder of the images, or the same."""
    named_output = tmp_path / "own.relations.png"
    out = tmp_path / "labelled"
    out.mkdir()
    for path in (
        named_output,
        out / "a.png.relations.png",
        out / "a.png.relations-2.png",
        out / "b.png",
    ):
        Image.new("RGB", (8, 6)).save(path)
    result = invoke(tmp_path, "--boxes", miniworld / INSTANCES, "--out", out)
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [
        str(out / "b.png"),
        str(named_output),
    ]
    (tmp_path / file.name).write_bytes(file.read_bytes())
    result = invoke(
        file, tmp_path / file.name, "--boxes", miniworld / INSTANCES, "--out", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    first, second = (path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert first == second


def cut_image() -> Image.Image:
    """An image whose pixels are not read yet, and cannot be."""
    buffer = BytesIO()
    Image.effect_noise((80, 60), 50).save(buffer, "JPEG")
    return Image.open(BytesIO(buffer.getvalue()[:-300]))


def objects(graph: SceneGraph) -> list[tuple]:
    return values_of(graph.objects, "category", "bbox")


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (Path("no/such/folder/a.jpg"), "image file not found"), ("a\0/b.jpg", "image file not found"),
        ("", "not a regular file"), (Path(__file__).parent, "not a regular file"), (Path(__file__), "unknown format"),
        ("https://a.org/b.jpg", r"^image file not found: 'https://a\.org/b\.jpg' is not a path"),
        (torch.zeros(3, 8, 8), "Tensor is not an image"), (cut_image(), "truncated"),
        (Image.new("F", (8, 8)), "floating-point"), (Image.new("RGB", (0, 8)), "no pixels"),
        (np.zeros((8, 8, 3)), "array of float64 .* is not an image: expected uint8"),
        (np.zeros((3, 8, 9), np.uint8), "shape 3x8x9 is not an image: .* channels last"),
    ],
    ids=lambda value: None if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_what_is_no_image_raises_an_error_and_in_a_list_becomes_one(pipeline, file, bad, reason):
    with pytest.raises(ImageError, match=reason) as caught:
        pipeline(bad)
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UserError)
    [graph] = pipeline([bad])
    assert str(caught.value) in str(graph.error)
    assert (graph.objects, graph.triplets()) == ([], [])


def test_odd_file_names_are_handled_as_by_generate(pipeline, file, tmp_path):
    """A backslash belongs to a name; one that is not UTF-8 cannot be stored in a row."""
    names = ["a\\b.jpg", os.fsdecode(b"caf\xe9.jpg"), "sub/c\\d.jpg", "é.jpg"]
    (tmp_path / "sub").mkdir()
    for name in names:
        (tmp_path / name).write_bytes(file.read_bytes())
    detections, _ = read_folder(tmp_path, split="all")
    graphs = pipeline([tmp_path / name for name in sorted(names)])
    assert [str(tmp_path / name) for name in detections.file_names] == [
        graph.record.file_name for graph in graphs
    ]
    reasons = [
        (detections.errors.get(row) or "").replace(": caf", f": {tmp_path}/caf")
        for row in range(len(names))
    ]
    assert reasons == [graph.error or "" for graph in graphs]
    assert list(map(bool, reasons)) == [False, True, False, False]
    assert "source: the file name is not UTF-8: " in reasons[1]
    assert graphs[0].objects


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
    for pixels in (array, np.asfortranarray(array), array[:, ::-1][:, ::-1], alpha):
        assert pipeline(pixels).record == expected.record
    grey = np.asarray(Image.fromarray(array).convert("L"))
    in_grey = pipeline(Image.fromarray(grey)).record
    assert pipeline(grey).record == pipeline(grey[..., None]).record == in_grey
    assert pipeline(array[..., ::-1]).record != expected.record


def test_boxes_of_a_call_replace_the_detector(pipeline, file, array):
    for image in (file, array):
        graph = pipeline(image, boxes=BOXES, classes=CLASSES)
        assert objects(graph) == [
            ("person", (4.0, 6.0, 56.0, 64.0)),
            ("dog", (40.5, 20.0, 49.5, 68.0)),
        ]
        assert len(graph.captions) == 3
        for boxes_form in (
            np.array(BOXES),
            torch.tensor(BOXES),
            np.array(BOXES, np.float32),
            tuple(map(tuple, BOXES)),
        ):
            assert (
                pipeline(image, boxes=boxes_form, classes=np.array(CLASSES)).record == graph.record
            )
    assert objects(pipeline(file)) != objects(graph)  # the next call has its own


def test_other_classes_than_the_detectors_do_not_change_other_calls(pipeline, file):
    before = pipeline(file, boxes=BOXES, classes=CLASSES).record
    other = pipeline(file, boxes=BOXES, classes=["kangaroo", "person"])
    assert values_of(other.objects, "category") == ["kangaroo", "person"]
    assert other.error is None
    assert pipeline(file, boxes=BOXES, classes=CLASSES).record == before
    fresh = Pipeline(settings={"caption.samples": 3})
    assert fresh(file, boxes=BOXES, classes=["kangaroo", "person"]).record == other.record
    assert fresh(file, boxes=BOXES, classes=CLASSES).record == before


def test_a_pipeline_without_a_detector_takes_boxes_only(file):
    pipeline = Pipeline(
        "coco", captioner="MINIWORLD", tagger="MINIWORLD", settings={"caption.samples": 2}
    )
    assert len(pipeline(file, boxes=BOXES, classes=CLASSES).objects) == 2
    for images in (file, [file]):
        with pytest.raises(UserError, match=r"detect\.detector is not set"):
            pipeline(images)


def test_no_boxes_are_another_thing_than_boxes_of_the_detector(pipeline, file):
    for nothing in ([], np.zeros((0, 4)), np.zeros(0), ()):
        graph = pipeline(file, boxes=nothing, classes=[])
        assert (graph.objects, graph.triplets(0), graph.error) == ([], [], None)


def test_boxes_are_of_the_image_as_displayed(pipeline, file, tmp_path):
    image = Image.open(file).resize((120, 60))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image.save(tmp_path / "turned.jpg", exif=exif, quality=95)
    for turned in (tmp_path / "turned.jpg", Image.open(tmp_path / "turned.jpg")):
        graph = pipeline(turned, boxes=[[0, 0, 60, 120]], classes=["dog"])
        assert (graph.record.width, graph.record.height) == (60, 120)
        assert objects(graph) == [("dog", (0.0, 0.0, 60.0, 120.0))]
        with pytest.raises(
            UserError, match=r"box .* is not inside the image, which has 60x120 pixels"
        ):
            pipeline(turned, boxes=[[0, 0, 120, 60]], classes=["dog"])


@pytest.mark.parametrize(
    ("boxes", "classes", "reason"),
    [
        (BOXES, None, "expected a class name for each of 2 boxes, got None"),
        (BOXES, ["dog"], "expected a class name for each of 2 boxes"),
        (BOXES, "dog", "expected a class name for each of 2 boxes, got 'dog'"),
        (BOXES, ["dog", "a\nb"], "expected a class name for each"),
        ([1, 2, 3, 4], ["dog"], r"expected x1, y1, x2, y2 in pixels of each box, got shape \(4,\)"),
        ([[1, 2, 3, 4], [5]], ["dog", "cat"], "boxes= are not numbers"),
        ([[1, 2, 3, float("nan")]], ["dog"], r"box 0 \(1, 2, 3, nan\) is not inside"),
        ([[5, 5, 5, 9]], ["dog"], r"box 0 \(5, 5, 5, 9\) is not inside .*x1 < x2 and y1 < y2"),
        ([[-2, 5, 20, 20]], ["dog"], "is not inside the image, which has"),
        (
            [[0.1, 0.2, 0.5, 1.0]],
            ["dog"],
            "within the first pixel of the image, .* expected pixels, not shares",
        ),
    ],
)
def test_boxes_that_cannot_be_meant_are_refused(pipeline, file, boxes, classes, reason):
    with pytest.raises(UserError, match=reason) as caught:
        pipeline(file, boxes=boxes, classes=classes)
    assert not isinstance(caught.value, ImageError)
    assert "\n" not in str(caught.value)
    with pytest.raises(UserError, match=r"of image 1|expected a list with"):
        pipeline([file, file], boxes=[BOXES, boxes], classes=[CLASSES, classes])


def test_boxes_of_a_list_of_images_are_as_many(pipeline, file):
    for arguments in ({"boxes": [BOXES] * 3}, {"boxes": [BOXES] * 2, "classes": [CLASSES]}):
        with pytest.raises(UserError, match=r"expected a list with an entry for each of 2 images$"):
            pipeline([file, file], **arguments)


def test_an_image_in_memory_has_no_name_in_a_file_of_boxes(file, array):
    pipeline = Pipeline(boxes=file.parents[1] / "instances.json")
    with pytest.raises(
        ImageError, match=r"an image in memory has no name to find in .*: pass its boxes"
    ):
        pipeline(array)
    assert len(pipeline(array, boxes=BOXES, classes=CLASSES).objects) == 2


def test_label_takes_several_images(pipeline):
    for single in ("a.jpg", Path("a.jpg"), Image.new("RGB", (8, 8)), np.zeros((8, 8, 3))):
        with pytest.raises(
            UserError, match=r"label: expected several images, got .*; pipeline\(image\) labels one"
        ):
            pipeline.label(single)
