"""A dataset for FiftyOne, and the tags that come back from it."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import UserError
from sgpipe.export.run import export_run
from sgpipe.records import NO_OBJECT, Box, Caption, Record, Relation, deduplicate
from sgpipe.storage.judgements import JudgementLog, RelationState
from sgpipe.storage.manifest import Manifest
from tests.sgpipe.export.runs import HEIGHT, WIDTH, draw_images, records
from tests.sgpipe.stats.runs import make_shards

NOTHING = Box(NO_OBJECT, -1, (0.0, 0.0, 0.0, 0.0))
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


def export(root: Path, made: list[Record], **options: Any) -> list[dict[str, Any]]:
    options = {"images": draw_images(root / "images", made), "threshold": 0.0} | options
    export_run(make_shards(root / "run", made, rows=7), "fiftyone", root / "out", **options)
    return json.loads((root / "out/samples.json").read_text(encoding="utf-8"))["samples"]


def states(root: Path, file: Path) -> dict[str, RelationState]:
    """What a run takes a file of tags to say, by image."""
    log = JudgementLog(file, Manifest.load(root / "run").run["fingerprint"])
    assert not log.problems
    return {state.key.image_id: state for state in log.current()}


def test_a_sample_has_boxes_relations_around_both_and_captions(tmp_path: Path) -> None:
    dog, cup = Box("dog", 18, (32, 24, 64, 48), True), Box("cup", 47, (0, 0, 32, 24), False, "detector", 0.5)
    made = Record("7", "coco", "val", "7.jpg", WIDTH, HEIGHT, [dog, cup, NOTHING], [Caption("a dog")])
    made.relations = [Relation(1, 0, "on", 0.5), Relation(1, 0, "on", 0.75, "tagger"), Relation(0, 2, "run")]
    [sample] = export(tmp_path, [made])
    assert Path(sample["filepath"]).is_file()
    assert (sample["image_id"], sample["captions"], sample["tags"]) == ("7", ["a dog"], ["val"])
    [first, second], [relation] = (sample[name]["detections"] for name in ("objects", "relations"))
    keys = ("label", "index", "iscrowd", "origin", "confidence")
    assert [first[key] for key in keys] == ["dog", 0, True, "annotation", None]
    assert [second[key] for key in keys] == ["cup", 1, False, "detector", 0.5]
    keys = ("label", "subject_index", "object_index", "origin", "confidence")
    assert [relation[key] for key in keys] == ["on", 1, 0, "tagger", 0.75]  # of repeated ones, the most confident
    assert [relation[end] for end in ("subject", "object")] == [each["_id"]["$oid"] for each in (second, first)]
    boxes = [0.1, 0.1, 0.2, 0.2], [0, 0, 0.1, 0.1], [0, 0, 0.3, 0.3]
    for each, box in zip((first, second, relation), boxes, strict=True):
        assert each["bounding_box"] == pytest.approx(box)
    assert len({each["_id"]["$oid"] for each in (sample, first, second, relation)}) == 4
    assert "tags of relations come back" in (tmp_path / "out/README.md").read_text()


def test_ids_are_the_same_in_every_export_and_images_can_be_in_the_folder(tmp_path: Path) -> None:
    made = [record for record in records(20) if record.split == "val"]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    whole, part = export(tmp_path / "a", made), export(tmp_path / "b", made[1:], threshold=0.5, embed=True)
    for one, other in zip(whole[1:], part, strict=True):
        assert one["_id"] == other["_id"]
        ids = {each["_id"]["$oid"] for each in one["relations"]["detections"] if each["confidence"] >= 0.5}
        assert ids == {each["_id"]["$oid"] for each in other["relations"]["detections"]}
        image = tmp_path / "b/out" / other["filepath"]
        assert image.read_bytes() == Path(one["filepath"]).read_bytes()


def test_tags_and_labels_of_relations_are_judgements(tmp_path: Path) -> None:
    boxes, said = [Box("dog", 18, (8, 4, 20, 30)), Box("cup", 47, (9, 5, 8, 9))], [Relation(0, 1, "on", 0.75)]
    made = [Record(str(n), "coco", "val", f"{n}.jpg", WIDTH, HEIGHT, boxes, relations=said) for n in range(5)]
    samples = export(tmp_path, made)
    for sample, tags in zip(samples, (["right", "mine"], ["wrong"], ["right", "wrong"], ["mine"], []), strict=True):
        sample["relations"]["detections"][0]["tags"] = tags
        sample["objects"]["detections"][0]["tags"] = ["wrong"]
    samples[4]["relations"]["detections"][0]["label"] = "beside"
    (tmp_path / "samples.json").write_text(json.dumps({"samples": samples}))
    found = states(tmp_path, tmp_path / "samples.json")
    expected = {"0": "right", "1": "wrong", "2": "unsure", "4": "changed"}
    assert {name: state.state for name, state in found.items()} == expected
    assert [key.predicate for key in found["4"].resolve() or ()] == ["beside"]
    assert found["0"].key == ("val", "0", 0, 1, "on")
    before = (tmp_path / "samples.json").read_bytes()
    log = JudgementLog(tmp_path / "samples.json", samples[0]["run"])
    with pytest.raises(UserError, match=r"samples\.json is a dataset of FiftyOne: nothing is saved"):
        log.append(found["0"].judgements[0])
    assert (tmp_path / "samples.json").read_bytes() == before
    for text in ("[]", "{", '{"samples": [{}]}', '{"samples": [1]}'):
        (tmp_path / "samples.json").write_text(text)
        with pytest.raises(UserError, match=r"samples\.json: expected the samples.json of a FiftyOne dataset"):
            states(tmp_path, tmp_path / "samples.json")


@pytest.mark.slow
def test_fiftyone_itself_reads_tags_and_writes_it(tmp_path: Path) -> None:
    """SGPIPE_FIFTYONE: a Python with fiftyone, which needs a MongoDB, as its documentation says."""
    python = os.environ.get("SGPIPE_FIFTYONE")
    if python is None:
        pytest.skip("SGPIPE_FIFTYONE is not set to a Python that has fiftyone")
    made = [replace(record, split="val") for record in records(20)]
    samples = export(tmp_path, made)
    subprocess.run([python, "-c", READ, str(tmp_path / "out"), str(tmp_path / "tagged")], check=True, stdout=sys.stderr)
    again = json.loads((tmp_path / "tagged/samples.json").read_text())["samples"]
    for before, after in zip(samples, again, strict=True):
        for name in ("objects", "relations"):
            for one, other in zip(before[name]["detections"], after[name]["detections"], strict=True):
                assert one == {key: other.get(key) for key in one} | {"tags": []}
    log = JudgementLog(tmp_path / "tagged/samples.json", Manifest.load(tmp_path / "run").run["fingerprint"])
    found = {state.key: state.state for state in log.current()}
    expected = {
        ("val", record.image_id, r.subject, r.object, r.predicate): "right" if (r.confidence or 0) >= 0.4 else "wrong"
        for record in made
        for r in deduplicate(record.relations)
    }
    assert found == expected
