"""Tasks for Label Studio and datasets for FiftyOne, and what of a run comes back from them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any
from zipfile import ZipFile

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from sgpipe.errors import UserError
from sgpipe.export.run import Exported, export_run
from sgpipe.records import Box, Caption, Record, Relation, deduplicate
from sgpipe.sources.label_studio import label_studio_source
from sgpipe.storage.judgements import JudgementLog, RelationState
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.export.runs import HEIGHT, WIDTH, draw_images, imported, only, records
from tests.sgpipe.export.test_exports import NAMES, NOTHING, ODD_NAMES, PAIR, named_record
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

if TYPE_CHECKING:
    from label_studio_sdk.label_interface import LabelInterface

URL = "https://example.org/images/"
DOG = Box("dog", 18, (8.0, 4.0, 20.0, 30.0))
CUP = Box("cup", 47, (100.0, 50.0, 8.0, 9.0))

READ = """
import sys, fiftyone
from fiftyone import ViewField as F
kind = fiftyone.types.FiftyOneDataset
dataset = fiftyone.Dataset.from_dir(sys.argv[1], dataset_type=kind)
for confidence, tag in ((F("confidence") < 0.4, "wrong"), (F("confidence") >= 0.4, "right")):
    dataset.filter_labels("relations", confidence).tag_labels(tag, "relations")
dataset.export(export_dir=sys.argv[2], dataset_type=kind, export_media=False)
dataset.delete()
"""


def record(
    objects: list[Box], relations: list[Relation], name: str = "7.jpg", **columns: object
) -> Record:
    return Record("7", "coco", "val", name, WIDTH, HEIGHT, objects, relations=relations, **columns)


def export(root: Path, *labelled: Record, **options: object) -> tuple[list[Any], Exported]:
    """The tasks of the split "val", and what else is said."""
    options = {"images_url": URL, "threshold": 0.0, **options}
    written = export_run(
        make_shards(root / "run", labelled), "label-studio", root / "out", **options
    )
    return json.loads((root / "out/val.json").read_text(encoding="utf-8")), written


def read(root: Path, **options: object) -> list[Record]:
    source = label_studio_source(root / "out/val.json", root, predictions=True, **options)
    return imported(source, root, root / "in")


def interface(root: Path) -> LabelInterface:
    from label_studio_sdk.label_interface import LabelInterface  # this takes seconds

    return LabelInterface((root / "out/labeling_config.xml").read_text(encoding="utf-8"))


def rounded(record: Record) -> Record:
    """Percent round the sides of boxes at the fifteenth digit."""
    boxes = [
        replace(box, bbox=tuple(round(side, 9) for side in box.bbox)) for box in record.objects
    ]
    relations = sorted(
        deduplicate(record.relations), key=lambda item: (item.subject, item.object, item.predicate)
    )
    return replace(record, objects=boxes, relations=relations, triplets=[], pairs=[])


def test_a_task_has_boxes_in_percent_and_one_link_for_each_pair(tmp_path):
    relations = [
        Relation(0, 1, "on", 0.75),
        Relation(1, 0, "under"),
        Relation(0, 1, "next to", 0.25),
    ]
    boxes = [replace(DOG, iscrowd=True), CUP]
    (task,), written = export(
        tmp_path, record(boxes, relations, captions=[Caption("a dog"), Caption("?", "box", [0])])
    )
    columns = {
        "image_id": "7",
        "dataset": "coco",
        "split": "val",
        "file_name": "7.jpg",
        "width": WIDTH,
        "height": HEIGHT,
    }
    more = {"image": URL + "7.jpg", "captions": ["a dog"], "category_ids": {"dog": 18, "cup": 47}}
    assert task["data"] == columns | more
    (prediction,) = task["predictions"]
    dog, _, *links = prediction["result"]
    sides = {
        "x": 2.5,
        "y": pytest.approx(400 / HEIGHT),
        "width": 6.25,
        "height": 12.5,
        "rotation": 0,
    }
    assert dog == {
        "id": "object0",
        "type": "rectanglelabels",
        "from_name": "objects",
        "to_name": "image",
        "original_width": WIDTH,
        "original_height": HEIGHT,
        "image_rotation": 0,
        "value": sides | {"rectanglelabels": ["dog"]},
        "meta": {"text": ["crowd"]},
    }
    ends = {"type": "relation", "direction": "right"}
    assert links == [
        {
            **ends,
            "from_id": "object0",
            "to_id": "object1",
            "labels": ["on", "next to"],
            "scores": [0.75, 0.25],
        },
        {**ends, "from_id": "object1", "to_id": "object0", "labels": ["under"]},
    ]
    assert (prediction["score"], prediction["model_version"]) == (0.5, "drawn drawn")
    assert written.left_out == {"captions that the format cannot hold": 1}
    assert interface(tmp_path).validate_prediction(prediction, return_errors=True) == []


@pytest.mark.parametrize("split", ["train", "val"])
def test_all_but_triplets_and_pairs_comes_back(tmp_path, split):
    originals = records(40)
    originals[0].relations.append(Relation(0, 0, "on", 0.875)) if originals[0].objects else None
    run = make_shards(tmp_path / "run", originals, rows=7)
    out = export_run(run, "label-studio", tmp_path / "out", threshold=0.0, images_url=URL).root
    source = label_studio_source(out / f"{split}.json", tmp_path, predictions=True)
    returned = imported(source, tmp_path, tmp_path / "in")
    assert any(box.iscrowd for item in returned for box in item.objects)
    assert list(map(rounded, returned)) == list(map(rounded, only(originals, split)))


@given(st.lists(NAMES, min_size=1, max_size=4), st.lists(NAMES, max_size=4))
@example(list(ODD_NAMES), list(ODD_NAMES))
@example(["a$b", "$", "cost$ "], ["$x", "5 $"])
@settings(max_examples=8, deadline=None)
def test_every_name_survives_or_is_counted(classes, predicates):
    original = named_record(classes, predicates, ["a\ncaption "])
    with TemporaryDirectory() as folder:
        root = Path(folder)
        (task,), written = export(root, original)
        (returned,) = read(root)
        known = interface(root)
        assert known.validate_prediction(task["predictions"][0], return_errors=True) == []
        labels = set(known.get_control("objects").labels)
    assert (returned.image_id, returned.file_name, returned.captions) == (*PAIR, original.captions)
    labelled = [box for box in original.objects if box.category in labels]
    assert values_of(returned.objects, "category", "category_id") == values_of(
        labelled, "category", "category_id"
    )
    lost = {
        name: len(getattr(original, name)) - len(getattr(returned, name))
        for name in ("objects", "relations")
    }
    assert {
        kind: written.left_out.get(f"{kind} that the format cannot hold", 0) for kind in lost
    } == lost
    assert set(values_of(original.objects, "category")) - labels <= {
        name for name in classes if is_unheld(name)
    }


def is_unheld(name: str) -> bool:
    """Blank names, names that XML cannot contain, and variables."""
    controls = any((ord(c) < 32 and c not in "\t\n\r") or c in "\ufffe\uffff" for c in name)
    return not name.strip() or controls or "$" in name


def test_images_are_local_files_below_the_parent_of_their_folder(tmp_path):
    original = record([DOG], [], "a b/ü#1+.jpg")
    root = tmp_path / "all images"
    (root / "val").mkdir(parents=True)
    (task,), written = export(tmp_path, original, images_url=None, images=root / "val")
    assert task["data"]["image"] == "/data/local-files/?d=val/a%20b/%C3%BC%231%2B.jpg"
    assert (
        f"LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={root}, and add {root / 'val'} to the project"
        in written.note
    )
    assert read(tmp_path) == [original]
    with ZipFile(tmp_path / "images.zip", "w") as archive:
        archive.writestr("7.jpg", b"")
    with pytest.raises(
        UserError, match=r"images\.zip, not in a folder: pass --embed or --images-url"
    ):
        export_run(
            tmp_path / "run", "label-studio", tmp_path / "new", images=tmp_path / "images.zip"
        )


def test_tasks_can_contain_their_images(tmp_path):
    originals = [replace(item, split="val") for item in records(3)]
    images = draw_images(tmp_path / "images", originals)
    (images / originals[1].file_name).unlink()
    (first, second, _), written = export(
        tmp_path, *originals, images_url=None, images=images, embed=True
    )
    kind, _, content = first["data"]["image"].partition(",")
    assert kind == "data:image/jpeg;base64"
    assert base64.b64decode(content) == (images / originals[0].file_name).read_bytes()
    assert second["data"]["image"] == originals[1].file_name
    assert written.left_out["images that cannot be read"] == 1
    assert values_of(read(tmp_path), "file_name") == values_of(originals, "file_name")


def sampled(root: Path, originals: list[Record], **options: object) -> list[dict[str, Any]]:
    options = {"images": draw_images(root / "images", originals), "threshold": 0.0} | options
    export_run(make_shards(root / "run", originals, rows=7), "fiftyone", root / "out", **options)
    return json.loads((root / "out/samples.json").read_text(encoding="utf-8"))["samples"]


def states(root: Path, file: Path) -> dict[str, RelationState]:
    """What a run takes a file of tags to say, by image."""
    log = JudgementLog(file, Manifest.load(root / "run").run["fingerprint"])
    assert not log.problems
    return {state.key.image_id: state for state in log.current()}


def test_a_sample_has_boxes_relations_around_both_and_captions(tmp_path: Path) -> None:
    dog = Box("dog", 18, (32, 24, 64, 48), True)
    cup = Box("cup", 47, (0, 0, 32, 24), False, "detector", 0.5)
    original = Record(
        "7", "coco", "val", "7.jpg", WIDTH, HEIGHT, [dog, cup, NOTHING], [Caption("a dog")]
    )
    original.relations = [
        Relation(1, 0, "on", 0.5),
        Relation(1, 0, "on", 0.75, "tagger"),
        Relation(0, 2, "run"),
    ]
    [sample] = sampled(tmp_path, [original])
    assert Path(sample["filepath"]).is_file()
    assert (sample["image_id"], sample["captions"], sample["tags"]) == ("7", ["a dog"], ["val"])
    [first, second], [relation] = (sample[name]["detections"] for name in ("objects", "relations"))
    keys = ("label", "index", "iscrowd", "origin", "confidence")
    assert [first[key] for key in keys] == ["dog", 0, True, "annotation", None]
    assert [second[key] for key in keys] == ["cup", 1, False, "detector", 0.5]
    keys = ("label", "subject_index", "object_index", "origin", "confidence")
    # of repeated ones, the most confident
    assert [relation[key] for key in keys] == [
        "on",
        1,
        0,
        "tagger",
        0.75,
    ]
    assert [relation[end] for end in ("subject", "object")] == [
        field["_id"]["$oid"] for field in (second, first)
    ]
    boxes = [0.1, 0.1, 0.2, 0.2], [0, 0, 0.1, 0.1], [0, 0, 0.3, 0.3]
    for field, box in zip((first, second, relation), boxes, strict=True):
        assert field["bounding_box"] == pytest.approx(box)
    assert len({field["_id"]["$oid"] for field in (sample, first, second, relation)}) == 4
    assert "tags of relations come back" in (tmp_path / "out/README.md").read_text()


def test_ids_are_the_same_in_every_export_and_images_can_be_in_the_folder(tmp_path: Path) -> None:
    originals = [record for record in records(20) if record.split == "val"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    all_samples = sampled(tmp_path / "a", originals)
    part = sampled(tmp_path / "b", originals[1:], threshold=0.5, embed=True)
    for one, other in zip(all_samples[1:], part, strict=True):
        assert one["_id"] == other["_id"]
        ids = {
            detection["_id"]["$oid"]
            for detection in one["relations"]["detections"]
            if detection["confidence"] >= 0.5
        }
        assert ids == {detection["_id"]["$oid"] for detection in other["relations"]["detections"]}
        image = tmp_path / "b/out" / other["filepath"]
        assert image.read_bytes() == Path(one["filepath"]).read_bytes()


def test_tags_and_labels_of_relations_are_judgements(tmp_path: Path) -> None:
    boxes = [Box("dog", 18, (8, 4, 20, 30)), Box("cup", 47, (9, 5, 8, 9))]
    stated = [Relation(0, 1, "on", 0.75)]
    originals = [
        Record(str(n), "coco", "val", f"{n}.jpg", WIDTH, HEIGHT, boxes, relations=stated)
        for n in range(5)
    ]
    samples = sampled(tmp_path, originals)
    for sample, tags in zip(
        samples, (["right", "mine"], ["wrong"], ["right", "wrong"], ["mine"], []), strict=True
    ):
        sample["relations"]["detections"][0]["tags"] = tags
        sample["objects"]["detections"][0]["tags"] = ["wrong"]
    samples[4]["relations"]["detections"][0]["label"] = "beside"
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    states_of_images = states(tmp_path, tmp_path / "samples.json")
    expected = {"0": "right", "1": "wrong", "2": "unsure", "4": "changed"}
    assert {name: state.state for name, state in states_of_images.items()} == expected
    assert values_of(states_of_images["4"].resolve() or (), "predicate") == ["beside"]
    assert states_of_images["0"].key == ("val", "0", 0, 1, "on")
    before = (tmp_path / "samples.json").read_bytes()
    log = JudgementLog(tmp_path / "samples.json", samples[0]["run"])
    with pytest.raises(
        UserError, match=r"samples\.json is a dataset of FiftyOne: nothing is saved"
    ):
        log.append(states_of_images["0"].judgements[0])
    assert (tmp_path / "samples.json").read_bytes() == before
    for text in ("[]", "{", '{"samples": [{}]}', '{"samples": [1]}'):
        (tmp_path / "samples.json").write_text(text)
        with pytest.raises(
            UserError, match=r"samples\.json: expected the samples.json of a FiftyOne dataset"
        ):
            states(tmp_path, tmp_path / "samples.json")


@pytest.mark.slow
def test_fiftyone_itself_reads_tags_and_writes_it(tmp_path: Path) -> None:
    """SGPIPE_FIFTYONE: a Python with fiftyone, which needs a MongoDB, as its documentation says."""
    python = os.environ.get("SGPIPE_FIFTYONE")
    if python is None:
        pytest.skip("SGPIPE_FIFTYONE is not set to a Python that has fiftyone")
    originals = [replace(record, split="val") for record in records(20)]
    samples = sampled(tmp_path, originals)
    subprocess.run(
        [python, "-c", READ, str(tmp_path / "out"), str(tmp_path / "tagged")],
        check=True,
        stdout=sys.stderr,
    )
    rewritten = json.loads((tmp_path / "tagged/samples.json").read_text())["samples"]
    for before, after in zip(samples, rewritten, strict=True):
        for name in ("objects", "relations"):
            for one, other in zip(
                before[name]["detections"], after[name]["detections"], strict=True
            ):
                assert one == {key: other.get(key) for key in one} | {"tags": []}
    log = JudgementLog(
        tmp_path / "tagged/samples.json", Manifest.load(tmp_path / "run").run["fingerprint"]
    )
    judged = dict(values_of(log.current(), "key", "state"))
    expected = {
        ("val", record.image_id, r.subject, r.object, r.predicate): (
            "right" if (r.confidence or 0) >= 0.4 else "wrong"
        )
        for record in originals
        for r in deduplicate(record.relations)
    }
    assert judged == expected
