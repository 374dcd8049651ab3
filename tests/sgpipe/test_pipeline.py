import json
from dataclasses import replace
from pathlib import Path

import networkx as nx
import numpy as np
import pytest
import supervision as sv
import torch
from PIL import Image, ImageChops
from typer.testing import CliRunner

from sgpipe import Pipeline, RelationAnnotator, SceneGraph
from sgpipe.cli.main import app
from sgpipe.errors import UserError
from sgpipe.miniworld.dataset import IMAGES, INSTANCES, render_dataset
from sgpipe.records import NO_OBJECT, Box, Record, Relation


@pytest.fixture(scope="module")
def miniworld(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("miniworld") / "world"
    render_dataset(out, 3, seed=5)
    return out


@pytest.fixture(scope="module")
def pipeline(miniworld) -> Pipeline:
    return Pipeline(boxes=miniworld / INSTANCES)


@pytest.fixture(scope="module")
def graphs(pipeline, miniworld) -> list[SceneGraph]:
    return list(pipeline.label(sorted((miniworld / IMAGES).iterdir())))


def test_the_packaged_models_find_relations_between_given_boxes(graphs, miniworld):
    instances = json.loads((miniworld / INSTANCES).read_text())
    assert sum(len(graph.objects) for graph in graphs) == len(instances["annotations"])
    assert sum(len(graph.triplets()) for graph in graphs) >= 2
    for graph in graphs:
        confidences = [triplet.confidence for triplet in graph.triplets(0.5)]
        assert confidences == sorted(confidences, reverse=True)
        assert all(confidence >= 0.5 for confidence in confidences)
        assert len(graph.captions) == 10


def test_labels_do_not_depend_on_the_other_images(pipeline, graphs, miniworld):
    last = sorted((miniworld / IMAGES).iterdir())[-1]
    assert pipeline(last).record == graphs[-1].record
    assert pipeline(str(last)).record == graphs[-1].record


def test_paths_may_contain_dots_and_links(pipeline, graphs, miniworld, tmp_path, monkeypatch):
    last = sorted((miniworld / IMAGES).iterdir())[-1]
    monkeypatch.chdir(miniworld)
    (tmp_path / "link").symlink_to(miniworld / IMAGES)
    for path in (f"../{miniworld.name}/{IMAGES}/{last.name}", tmp_path / "link" / ".." / IMAGES / last.name):
        assert pipeline(path).record == graphs[-1].record


def test_a_graph_gives_triplets_drawings_and_json():
    objects = [Box("dog", 1, (0.0, 0.0, 20.0, 20.0)), Box("dog", 1, (30.0, 5.0, 20.0, 20.0))]
    relations = [Relation(0, 1, "next to", 0.3), Relation(1, 0, "chasing", 0.9), Relation(0, 1, "on", 0.1)]
    graph = SceneGraph(Record("a", "d", "all", "nowhere.png", 60, 40, objects, relations=relations))
    assert graph.triplets() == [("dog 2", "chasing", "dog 1", 0.9), ("dog 1", "next to", "dog 2", 0.3)]
    for threshold in (float("nan"), float("inf"), -1):
        for method in (graph.triplets, graph.draw, graph.to_networkx, graph.to_supervision):
            with pytest.raises(UserError, match="expected a number from 0 to 1"):
                method(threshold)
    assert graph.draw(width=300).width == 300
    assert graph.as_json()["relations"][1]["predicate"] == "chasing"


@pytest.fixture
def detected() -> SceneGraph:
    """A dog that runs, and another one next to it; the annotation of V-COCO comes first."""
    boxes = [(0, 0, 0, 0), (4, 5, 20, 30), (40, 6, 50, 80)]
    known = zip((NO_OBJECT, "dog", "dog"), (0, 18, 18), boxes, (1.0, 0.5, 0.75), strict=True)
    objects = [Box(name, id, box, score=score) for name, id, box, score in known]
    relations = [
        Relation(1, 2, "next to", 0.3),
        Relation(1, 2, "next to", 0.7),
        Relation(1, 2, "chasing", 0.6),
        Relation(2, 1, "on", 0.1),
        Relation(1, 0, "run"),
    ]
    return SceneGraph(Record("a", "d", "all", "a.png", 100, 200, objects, relations=relations))


def test_a_graph_of_networkx_has_the_boxes_and_confident_relations(detected):
    graph = detected.to_networkx()
    assert graph.graph == {"file_name": "a.png", "width": 100, "height": 200}
    assert graph.nodes[2] == {"category": "dog", "bbox": (40, 6, 90, 86), "score": 0.75}
    assert set(graph.edges(keys=True, data="confidence")) == {
        (1, 2, "next to", 0.7),
        (1, 2, "chasing", 0.6),
        (1, 0, "run", None),
    }
    assert detected.to_networkx(0).has_edge(2, 1, "on")
    objects = [replace(box, score=None) for box in detected.objects]
    given = SceneGraph(Record("a", "d", "all", "a.png", 100, 200, objects)).to_networkx()
    assert list(given.nodes) == [0, 1, 2]
    assert "score" not in given.nodes[1]
    json.dumps(nx.node_link_data(graph))


def test_detections_of_supervision_keep_their_relations_when_filtered(detected):
    detections = detected.to_supervision(threshold=0.5)
    assert detections.xyxy.tolist() == [[4, 5, 24, 35], [40, 6, 90, 86]]
    assert detections.confidence.tolist() == [0.5, 0.75]
    assert detections.class_id.tolist() == [18, 18]
    assert detections["class_name"].tolist() == ["dog", "dog"]
    assert [r.predicate for r in detections.metadata["relations"]] == ["run", "next to", "chasing"]
    second = detections[detections.confidence > 0.6]
    assert second["object_index"].tolist() == [2]
    assert second.metadata == detections.metadata
    empty = SceneGraph(Record("a", "d", "all", "a.png", 100, 200)).to_supervision()
    assert (len(empty), empty.xyxy.shape, empty.confidence) == (0, (0, 4), None)


@pytest.mark.parametrize("size", [(100, 200), (200, 100), (101, 151)])
def test_an_annotator_draws_relations_between_the_detections_that_are_left(detected, size):
    image, detections = Image.new("RGB", size, "#204060"), detected.to_supervision()
    drawn = RelationAnnotator().annotate(image, detections)
    assert drawn.size == size
    bgr = np.asarray(image)[:, :, ::-1]
    assert np.array_equal(RelationAnnotator().annotate(bgr, detections), np.asarray(drawn)[:, :, ::-1])
    boxes = RelationAnnotator().annotate(image, detections, relations=[])
    assert ImageChops.difference(drawn, boxes).getbbox()
    dog = detections[[1]]
    assert RelationAnnotator().annotate(image, dog) == RelationAnnotator().annotate(image, dog, relations=[])
    others = sv.Detections(xyxy=np.array([[4.0, 5, 24, 35], [40, 6, 90, 86]]))
    arrow = RelationAnnotator().annotate(image, others, [Relation(0, 1, "near", 0.5)])
    assert arrow != RelationAnnotator().annotate(image, others)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"recipe": "folder"}, "tag.tagger is not set"),
        ({"recipe": "coco", "tagger": "t"}, "detect.detector is not set"),
        ({"settings": {"tag.thresh": 1}}, "unknown setting 'tag.thresh'"),
        ({"boxes": "nowhere.json"}, "no such file: nowhere.json"),
        ({"detector": "nowhere"}, "no detector nowhere"),
    ],
)
def test_missing_models_and_boxes_are_refused(options, reason, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(UserError, match=reason):
        Pipeline(**options)(tmp_path / "a.png")


def test_labels_need_no_tagger(pipeline, miniworld, tmp_path):
    image = sorted((miniworld / IMAGES).iterdir())[0]
    settings = {"tag.method": "all", "tag.tagger": None}
    graph = Pipeline(boxes=miniworld / INSTANCES, settings=settings)(image)
    by_tagger = pipeline(image)
    assert graph.record.pairs == by_tagger.record.pairs
    assert {each.confidence for each in graph.record.relations} == {1.0}
    assert len(graph.record.relations) == sum(len(pair.predicates) for pair in graph.record.pairs)
    options = ("--boxes", miniworld / INSTANCES, "--out", tmp_path, "--set", "tag.method=overlap")
    labelled = invoke(image, *options)
    assert labelled.exit_code == 0
    assert "confidence 1 means only that nothing scored them" in labelled.stderr
    refused = invoke(
        image, "--recipe", "folder", "--detector", tmp_path, "--captioner", tmp_path, "--out", tmp_path / "no"
    )
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 1)
    assert "set tag.method to all" in refused.stderr


def test_a_tagger_replaces_the_clip_of_the_recipe_for_photographs(miniworld, tmp_path):
    models = ("--captioner", "MINIWORLD", "--tagger", "MINIWORLD")
    options = ("--recipe", "photos", "--boxes", miniworld / INSTANCES, "--out", tmp_path, "--json")
    sides = ("--set", "tag.short_side=96", "--set", "tag.long_side=144")
    labelled = invoke(miniworld / IMAGES, *models, *options, *sides)
    assert labelled.exit_code == 0, labelled.stderr
    assert any(json.loads(line)["relations"] for line in labelled.stdout.splitlines())
    refused = invoke(miniworld / IMAGES, *options, "--captioner", "MINIWORLD")
    assert (refused.exit_code, len(refused.stderr.splitlines())) == (2, 2)
    assert "openai/clip-vit-base-patch32 (HF_HUB_OFFLINE is set)" in refused.stderr
    assert "`hf download openai/clip-vit-base-patch32`" in refused.stderr


def invoke(*arguments: object):
    words = map(str, arguments)
    return CliRunner().invoke(app, ["label", *([] if "--recipe" in arguments else ["--recipe", "miniworld"]), *words])


def test_the_command_draws_images_and_prints_relations(miniworld, tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no image")
    images, out = miniworld / IMAGES, tmp_path / "out"
    result = invoke(images, tmp_path / "bad.png", "--boxes", miniworld / INSTANCES, "--out", out)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert f"{tmp_path / 'bad.png'}: source: image cannot be read" in result.stdout
    assert any(" · " in line for line in lines)
    assert "know only synthetic images" in result.stderr
    assert sorted(path.name for path in out.iterdir()) == [
        f"{path.name}.relations.png" for path in sorted(images.iterdir())
    ]
    assert all(Image.open(path).width == 960 for path in out.iterdir())
    again = invoke(tmp_path / "bad.png", "--boxes", miniworld / INSTANCES, "--out", out, "--json")
    assert again.exit_code == 3
    row = json.loads(again.stdout)
    assert (row["status"], row["file_name"]) == ("error", str(tmp_path / "bad.png"))


def test_an_interrupted_command_does_not_promise_to_resume(miniworld, tmp_path, monkeypatch):
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sgpipe.pipeline.Pipeline", stop)
    result = invoke(miniworld / IMAGES, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert result.stderr == "interrupted. Run the same command again to start from the beginning.\n"


def test_drawings_are_not_images_of_the_next_run(miniworld, tmp_path):
    """The folder of the drawings may be inside the folder of the images, or the same."""
    own, out = tmp_path / "own.relations.png", tmp_path / "labelled"
    out.mkdir()
    for path in (own, out / "a.png.relations.png", out / "a.png.relations-2.png", out / "b.png"):
        Image.new("RGB", (8, 6)).save(path)
    result = invoke(tmp_path, "--boxes", miniworld / INSTANCES, "--out", out)
    assert [line.split(": ")[0] for line in result.stdout.splitlines()] == [str(out / "b.png"), str(own)]


def test_drawings_of_images_of_the_same_name_are_both_kept(miniworld, tmp_path):
    file = sorted((miniworld / IMAGES).iterdir())[0]
    (tmp_path / file.name).write_bytes(file.read_bytes())
    result = invoke(file, tmp_path / file.name, "--boxes", miniworld / INSTANCES, "--out", tmp_path / "out")
    assert result.exit_code == 0, result.output
    first, second = sorted(path.read_bytes() for path in (tmp_path / "out").iterdir())
    assert first == second


def test_a_device_that_is_not_there_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    for device, message in (("cuda", "PyTorch sees no GPU"), ("cuda:7", "no GPU"), ("mps", "expected auto, cpu, cuda")):
        with pytest.raises(UserError, match=rf"^detect\.device '{device}': .*{message}"):
            Pipeline(device=device)
    with pytest.raises(UserError, match=r"tag\.device 'gpu': expected auto"):
        Pipeline(settings={"tag.device": "gpu"})
    with pytest.raises(UserError, match="boxes=: expected"):
        Pipeline(boxes=[[1, 2, 3, 4]])
    with pytest.raises(UserError, match=r"caption\.resources\.gpus is 1, but PyTorch sees no GPU"):
        Pipeline(settings={"caption.resources.gpus": 1})
    assert Pipeline(device="cpu", settings={"tag.device": "auto"}).recipe.tag.device == "auto"
    assert Pipeline(device="cpu").recipe.caption.device == "cpu"
