"""Tasks for Label Studio, and what of a run comes back from them."""

import base64
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from label_studio_sdk.label_interface import LabelInterface

from sgpipe.export.run import Exported, export_run
from sgpipe.records import Box, Caption, Record, Relation, deduplicate
from sgpipe.sources.label_studio import label_studio_source
from tests.sgpipe.export.runs import HEIGHT, WIDTH, draw_images, imported, only, records
from tests.sgpipe.export.test_exports import NAMES, ODD_NAMES, PAIR, named_record
from tests.sgpipe.stats.runs import make_shards

URL = "https://example.org/images/"
DOG, CUP = Box("dog", 18, (8.0, 4.0, 20.0, 30.0)), Box("cup", 47, (100.0, 50.0, 8.0, 9.0))


def record(objects: list[Box], relations: list[Relation], name: str = "7.jpg", **columns: Any) -> Record:
    return Record("7", "coco", "val", name, WIDTH, HEIGHT, objects, relations=relations, **columns)


def export(root: Path, *made: Record, **options: Any) -> tuple[list[Any], Exported]:
    """The tasks of the split "val", and what else is said."""
    options = {"images_url": URL, "threshold": 0.0, **options}
    written = export_run(make_shards(root / "run", made), "label-studio", root / "out", **options)
    return json.loads((root / "out/val.json").read_text(encoding="utf-8")), written


def read(root: Path, **options: Any) -> list[Record]:
    source = label_studio_source(root / "out/val.json", root, predictions=True, **options)
    return imported(source, root, root / "in")


def interface(root: Path) -> LabelInterface:
    return LabelInterface((root / "out/labeling_config.xml").read_text(encoding="utf-8"))


def rounded(made: Record) -> Record:
    """Percent round the sides of boxes at the fifteenth digit."""
    boxes = [replace(box, bbox=tuple(round(side, 9) for side in box.bbox)) for box in made.objects]
    relations = sorted(deduplicate(made.relations), key=lambda item: (item.subject, item.object, item.predicate))
    return replace(made, objects=boxes, relations=relations, triplets=[], pairs=[])


def test_a_task_has_boxes_in_percent_and_one_link_for_each_pair(tmp_path):
    relations = [Relation(0, 1, "on", 0.75), Relation(1, 0, "under"), Relation(0, 1, "next to", 0.25)]
    boxes = [replace(DOG, iscrowd=True), CUP]
    (task,), written = export(tmp_path, record(boxes, relations, captions=[Caption("a dog"), Caption("?", "box", [0])]))
    own = {"image_id": "7", "dataset": "coco", "split": "val", "file_name": "7.jpg", "width": WIDTH, "height": HEIGHT}
    more = {"image": URL + "7.jpg", "captions": ["a dog"], "category_ids": {"dog": 18, "cup": 47}}
    assert task["data"] == own | more
    (prediction,) = task["predictions"]
    dog, _, *links = prediction["result"]
    sides = {"x": 2.5, "y": pytest.approx(400 / HEIGHT), "width": 6.25, "height": 12.5, "rotation": 0}
    assert dog == {
        **{"id": "object0", "type": "rectanglelabels", "from_name": "objects", "to_name": "image"},
        **{"original_width": WIDTH, "original_height": HEIGHT, "image_rotation": 0},
        **{"value": sides | {"rectanglelabels": ["dog"]}, "meta": {"text": ["crowd"]}},
    }
    ends = {"type": "relation", "direction": "right"}
    assert links == [
        {**ends, "from_id": "object0", "to_id": "object1", "labels": ["on", "next to"], "scores": [0.75, 0.25]},
        {**ends, "from_id": "object1", "to_id": "object0", "labels": ["under"]},
    ]
    assert (prediction["score"], prediction["model_version"]) == (0.5, "drawn drawn")
    assert written.left_out == {"captions that the format cannot hold": 1}
    assert interface(tmp_path).validate_prediction(prediction, return_errors=True) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_but_triplets_and_pairs_comes_back(tmp_path, split):
    made = records(40)
    made[0].relations.append(Relation(0, 0, "on", 0.875)) if made[0].objects else None
    run = make_shards(tmp_path / "run", made, rows=7)
    out = export_run(run, "label-studio", tmp_path / "out", threshold=0.0, images_url=URL).root
    source = label_studio_source(out / f"{split}.json", tmp_path, predictions=True)
    found = imported(source, tmp_path, tmp_path / "in")
    assert any(box.iscrowd for item in found for box in item.objects)
    assert [rounded(item) for item in found] == [rounded(item) for item in only(made, split)]


@given(st.lists(NAMES, min_size=1, max_size=4), st.lists(NAMES, max_size=4))
@example(list(ODD_NAMES), list(ODD_NAMES))
@example(["a$b", "$", "cost$ "], ["$x", "5 $"])
@settings(max_examples=8, deadline=None)
def test_every_name_survives_or_is_counted(classes, predicates):
    made = named_record(classes, predicates, ["a\ncaption "])
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (task,), written = export(root, made)
        (found,) = read(root)
        known = interface(root)
        assert known.validate_prediction(task["predictions"][0], return_errors=True) == []
        labels = set(known.get_control("objects").labels)
    assert (found.image_id, found.file_name, found.captions) == (*PAIR, made.captions)
    kept = [box for box in made.objects if box.category in labels]
    assert [(box.category, box.category_id) for box in found.objects] == [(b.category, b.category_id) for b in kept]
    lost = {name: len(getattr(made, name)) - len(getattr(found, name)) for name in ("objects", "relations")}
    assert {kind: written.left_out.get(f"{kind} that the format cannot hold", 0) for kind in lost} == lost
    assert {box.category for box in made.objects} - labels <= {name for name in classes if is_unheld(name)}


def is_unheld(name: str) -> bool:
    """Blank names, names that XML cannot contain, and variables."""
    controls = any((ord(c) < 32 and c not in "\t\n\r") or c in "\ufffe\uffff" for c in name)
    return not name.strip() or controls or "$" in name


def test_images_are_local_files_below_the_parent_of_their_folder(tmp_path):
    made = record([DOG], [], "a b/ü#1+.jpg")
    root = tmp_path / "all images"
    (root / "val").mkdir(parents=True)
    (task,), written = export(tmp_path, made, images_url=None, images=root / "val")
    assert task["data"]["image"] == "/data/local-files/?d=val/a%20b/%C3%BC%231%2B.jpg"
    assert f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add {root / 'val'} to the project" in written.note
    assert read(tmp_path) == [made]


def test_tasks_can_contain_their_images(tmp_path):
    made = [replace(item, split="val") for item in records(3)]
    images = draw_images(tmp_path / "images", made)
    (images / made[1].file_name).unlink()
    (first, second, _), written = export(tmp_path, *made, images_url=None, images=images, embed=True)
    kind, _, content = first["data"]["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(content) == (images / made[0].file_name).read_bytes()
    assert second["data"]["image"] == made[1].file_name
    assert written.left_out["images that cannot be read"] == 1
    assert [item.file_name for item in read(tmp_path)] == [item.file_name for item in made]
