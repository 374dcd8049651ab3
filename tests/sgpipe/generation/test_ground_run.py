"""Runs in which words of captions find their boxes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sgpipe import Pipeline
from sgpipe.export.run import export_run
from sgpipe.miniworld.dataset import IMAGES, INSTANCES, render_dataset
from sgpipe.recipe import load_recipe
from sgpipe.records import Record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.verify import verify
from sgpipe.utils.config_file import recipe_folder
from tests.sgpipe.generation.in_process import RAN, label, rows
from tests.values import values_of

pytestmark = pytest.mark.usefixtures("in_this_process")

GROUNDED = str(recipe_folder() / "miniworld" / "grounded.yaml")
ON = {"ground.detector": "MINIWORLD", "ground.threshold": 0.45}

# The last finds a box for any word: a forklift where the detector sees one most.
EVERYWHERE = {**ON, "ground.threshold": 0.001, "ground.max_boxes": 9}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "world"
    render_dataset(out, 6, seed=3)
    return out


@pytest.fixture(scope="module")
def half(world: Path) -> dict[str, Any]:
    """A source that knows the boxes of every second class, and captions that also name things of no
    class.
    """
    instances = json.loads((world / INSTANCES).read_text())
    categories = {category["id"]: category for category in instances["categories"][::2]}
    instances["annotations"] = [
        annotation
        for annotation in instances["annotations"]
        if annotation["category_id"] in categories
    ]
    (world / "half.json").write_text(
        json.dumps({**instances, "categories": list(categories.values())})
    )
    captions = json.loads((world / "captions.json").read_text())
    for number, image in enumerate(instances["images"]):
        text = "a man next to a forklift in the background"
        captions["annotations"].append(
            {"id": 10**9 + number, "image_id": image["id"], "caption": text}
        )
    (world / "said.json").write_text(json.dumps(captions))
    split = {
        "annotations": world / "half.json",
        "images": str(world / IMAGES),
        "captions": world / "said.json",
    }
    return {"source.format": "coco", "source.splits": {"val": split}, "caption.captioner": None}


def run(
    recipe: str, changes: dict[str, Any], out: Path, parent: Path | None = None
) -> tuple[list[Record], list[str]]:
    _, lines = label(load_recipe(recipe, {"engine.unit_size": 2, **changes}), out, parent)
    return rows(out), lines


@pytest.fixture(scope="module")
def plain(
    half: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Record]]:
    out = tmp_path_factory.mktemp("plain") / "run"
    return out, run("miniworld", half, out)[0]


@pytest.fixture(scope="module")
def grounded(
    half: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[Record]]:
    out = tmp_path_factory.mktemp("grounded") / "run"
    return out, run("miniworld", {**half, **EVERYWHERE}, out)[0]


def test_given_boxes_are_the_same_bit_for_bit(plain, grounded):
    added = 0
    for before, after in zip(plain[1], grounded[1], strict=True):
        assert after.objects[: len(before.objects)] == before.objects
        grounded_boxes = after.objects[len(before.objects) :]
        given_classes = set(values_of(before.objects, "category"))
        assert all(
            box.origin == "grounded" and box.score is not None and box.phrase
            for box in grounded_boxes
        )
        assert given_classes.isdisjoint(values_of(grounded_boxes, "category"))
        added += len(grounded_boxes)
    assert added
    counts = Manifest.load(grounded[0]).shards
    assert sum(shard.counts.get("grounded", 0) for shard in counts) == added
    assert sum(shard.counts.get("grounded_left_out", 0) for shard in counts) > 0
    assert verify(grounded[0]).ok


def test_free_nouns_get_relations_and_go_into_exports(grounded, tmp_path):
    out, records = grounded
    forklifts = [box for record in records for box in record.objects if box.category == "forklift"]
    assert len(set(values_of(forklifts, "category_id"))) == 1
    ends = {
        row.objects[end].category
        for row in records
        for r in row.relations
        for end in (r.subject, r.object)
    }
    assert "forklift" in ends
    export_run(out, "coco", tmp_path / "coco")
    instances = json.loads((tmp_path / "coco" / "instances_val.json").read_text())
    ids = dict(values_of(instances["categories"], "name", "id"))
    assert ids["forklift"] == forklifts[0].category_id >= 2**30
    given_ids = {
        box.category: box.category_id
        for record in records
        for box in record.objects
        if box.origin != "grounded"
    }
    assert {name: ids[name] for name in given_ids} == given_ids


def test_a_run_takes_the_captions_of_another_and_grounds_them(plain, grounded, half, tmp_path):
    RAN.clear()
    records, lines = run("miniworld", {**half, **EVERYWHERE}, tmp_path / "added", plain[0])
    assert RAN[-3:] == ["ground", "pair", "tag"]
    assert records == grounded[1]
    assert lines[0].startswith(
        f"captions from {plain[0]}; parse, ground, pair and tag to run (ground.detector:"
    )
    RAN.clear()
    assert run("miniworld", half, tmp_path / "removed", grounded[0])[0] == plain[1]
    assert RAN == ["parse", "pair", "tag"]  # attributes of objects are told again
    RAN.clear()
    records, lines = run(
        "miniworld", {**half, **EVERYWHERE, "tag.threshold": 0.5}, tmp_path / "tagged", grounded[0]
    )
    assert RAN == ["tag"]
    assert "boxes of words" in lines[0]
    assert values_of(records, "objects", "left_out") == values_of(
        grounded[1], "objects", "left_out"
    )


def test_images_alone_are_labelled_without_a_class_list(world, tmp_path):
    source = {"source.splits": {"all": {"images": str(world / IMAGES)}}}
    records, _ = run(GROUNDED, source, tmp_path / "run")
    assert sum(len(row.relations) for row in records) >= 3
    assert {box.origin for row in records for box in row.objects} == {"grounded"}
    assert "person" in {box.category for row in records for box in row.objects}
    assert "detect" not in Manifest.load(tmp_path / "run").run["identity"]
    pipeline = Pipeline(load_recipe(GROUNDED))
    for row, graph in zip(records, pipeline.label(sorted((world / IMAGES).iterdir())), strict=True):
        assert graph.objects == row.objects
        fields = ("subject", "predicate", "object")
        assert values_of(graph.record.relations, *fields) == values_of(row.relations, *fields)
    first = records[0]
    [x, y, w, h] = first.objects[0].bbox
    image = world / IMAGES / first.file_name
    graph = pipeline(image, boxes=[[x, y, x + w, y + h]], classes=[first.objects[0].category])
    assert graph.objects[0].origin == "annotation"
    assert first.objects[0].category not in set(values_of(graph.objects[1:], "category"))
