"""Wrong data that reads well: each fault is named before anything runs, and right data is passed in
silence.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from rich.console import Console

from sgpipe.errors import UserError
from sgpipe.miniworld.dataset import render_dataset
from sgpipe.recipe import SourceConfig, SplitConfig
from sgpipe.records import Record
from sgpipe.sources.coco import coco_source
from sgpipe.sources.hoi import hico_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.sources.opening import open_source
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.source_index import SourceIndex
from sgpipe.utils.console import Progress
from tests.values import values_of

IMAGES = 60


class Dataset(NamedTuple):
    """The contents of an instances file and a captions file."""

    instances: dict[str, Any]
    captions: dict[str, Any]

    @classmethod
    def load(cls, *files: Path) -> Dataset:
        return cls(*(json.loads(file.read_text()) for file in files))

    def change_boxes(self, form: str) -> None:
        """Write the boxes in another form than x, y, width, height."""
        sizes = {
            image["id"]: (image["width"], image["height"]) for image in self.instances["images"]
        }
        for box in self.instances["annotations"]:
            (x, y, w, h), (width, height) = box["bbox"], sizes[box["image_id"]]
            forms = {"xyxy": [x, y, x + w, y + h], "cxcywh": [x + w / 2, y + h / 2, w, h]}
            box["bbox"] = (forms | {"xywhn": [x / width, y / height, w / width, h / height]})[form]

    def part(self, start: int, stop: int) -> Dataset:
        images = self.instances["images"][start:stop]
        ids = set(values_of(images, "id"))
        boxes, captions = (
            [a for a in part["annotations"] if a["image_id"] in ids] for part in self
        )
        return Dataset(
            {**self.instances, "images": images, "annotations": boxes}, {"annotations": captions}
        )

    def save(self, folder: Path) -> tuple[Path, Path]:
        files = folder / "instances.json", folder / "captions.json"
        for file, content in zip(files, self, strict=True):
            file.write_text(json.dumps(content))
        return files


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world") / "set"
    render_dataset(folder, IMAGES, seed=1)
    return folder


@pytest.fixture
def dataset(world) -> Dataset:
    return Dataset.load(world / "instances.json", world / "captions.json")


def opened(dataset: Dataset, folder: Path, boxes: str | None = None) -> SourceIndex:
    instances, captions = dataset.save(folder)
    split = SplitConfig(annotations=instances, images=str(folder), captions=captions)
    return open_source(
        SourceConfig(splits={"val": split}, boxes=boxes), "val", folder / "index.arrow"
    )


def boxes_of(records: list[Record]) -> list[list[float]]:
    return [[round(side, 6) for side in box.bbox] for record in records for box in record.objects]


@pytest.mark.parametrize("form", ["xyxy", "cxcywh", "xywhn"])
def test_boxes_of_another_form_are_refused_and_read_as_what_the_message_names(
    dataset, tmp_path, form
):
    right = opened(dataset, tmp_path)
    dataset.change_boxes(form)
    with pytest.raises(
        UserError, match=f"instances.json: .* boxes .*: pass --set source.boxes={form}, or"
    ):
        opened(dataset, tmp_path)
    index = opened(dataset, tmp_path, form)
    assert index.meta["notes"] == []
    assert boxes_of(index.records(0, IMAGES)) == boxes_of(right.records(0, IMAGES))
    assert index.meta["annotations_sha256"] != right.meta["annotations_sha256"]  # another run
    # as the user insists
    assert "source.boxes" in opened(dataset, tmp_path, "xywh").meta["notes"][0]


def renumber(items: list[dict[str, Any]], key: str, before: list[int], after: list[int]) -> None:
    """Replace the ids under `key` of all items."""
    numbers = dict(zip(before, after, strict=True))
    for item in items:
        item[key] = numbers[item[key]]


def test_a_fault_is_named_once(dataset, tmp_path):
    instances = dataset.instances
    captions = dataset.captions["annotations"]
    boxes = (instances["annotations"], "category_id")
    images = values_of(instances["images"], "id")
    categories = values_of(instances["categories"], "id")
    for note, items, before, after in (
        (
            "if each caption were of the image before",
            (captions, "image_id"),
            images,
            [*images[1:], images[0]],
        ),
        ("do they belong together", (captions, "image_id"), images, images[::-1]),
        (
            "had the previous category of the list",
            boxes,
            categories,
            [*categories[1:], categories[0]],
        ),
        ("if they were smaller by one", boxes, categories, [number + 1 for number in categories]),
    ):
        renumber(*items, before, after)
        (fault,) = opened(dataset, tmp_path).meta["notes"]
        assert note in fault
        renumber(*items, after, before)
    for image in instances["images"]:
        image["width"], image["height"] = image["height"], image["width"]
    (fault,) = opened(dataset, tmp_path).meta["notes"]
    assert "are width and height those of the images" in fault


@pytest.mark.parametrize(
    "name", ["miniworld", "coco_mini val", "coco_mini train", "vcoco_captions"]
)
@pytest.mark.parametrize("images", [1, 2, 5, 500])
def test_right_data_is_passed_in_silence(request, world, tmp_path, name, images):
    folder, _, split = name.partition(" ")
    root = world if name == "miniworld" else request.getfixturevalue("oracle") / "data" / folder
    files = (
        f"{kind}_{split}2017.json" if split else f"{kind}.json"
        for kind in ("instances", "captions")
    )
    dataset = Dataset.load(*(root / file for file in files))
    for start in range(0, IMAGES, max(images, 10)):
        assert opened(dataset.part(start, start + images), tmp_path).meta["notes"] == []


class Said(Progress):
    """Keeps the notes."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.notes: list[str] = []
        self.say = lambda text: self.notes.extend([text] * text.startswith("NOTE: "))


def test_an_import_is_doubted_likewise(dataset, tmp_path):
    instances, captions = dataset.save(tmp_path)
    messages = Said()
    import_annotations(
        coco_source(instances, "val", captions), str(tmp_path), tmp_path / "right", messages
    )
    assert messages.notes == []
    dataset.change_boxes("xyxy")
    dataset.save(tmp_path)
    source = coco_source(instances, "val", captions)
    out = tmp_path / "out"
    with pytest.raises(UserError, match="pass --boxes xyxy, or --boxes xywh if they are right"):
        import_annotations(source, str(tmp_path), out, messages)
    import_annotations(source, str(tmp_path), out, messages, boxes="xyxy")
    assert boxes_of(list(iter_records(out))) == boxes_of(list(iter_records(tmp_path / "right")))
    assert messages.notes == []


def test_interactions_with_widths_for_corners_are_refused(world, tmp_path):
    content = json.loads((world / "hico.json").read_text())
    out = tmp_path / "out"
    file = tmp_path / "hico.json"
    classes = world / "hico_classes.json"
    messages = Said()
    source = hico_source(world / "hico.json", "val", classes)
    import_annotations(source, world / "images", tmp_path / "right", messages)
    assert messages.notes == []
    for image in content:
        for box in image["annotations"]:
            left, top, right, bottom = box["bbox"]
            box["bbox"] = [left, top, right - left, bottom - top]
    file.write_text(json.dumps(content))
    with pytest.raises(UserError, match="as xyxy, 0% as xywh: pass --boxes xywh"):
        import_annotations(hico_source(file, "val", classes), world / "images", out, messages)
    import_annotations(
        hico_source(file, "val", classes), world / "images", out, messages, boxes="xywh"
    )
    assert boxes_of(list(iter_records(out))) == boxes_of(list(iter_records(tmp_path / "right")))
