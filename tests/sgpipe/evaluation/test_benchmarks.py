"""A network that finds most of what is true, evaluated directly and by way of files: the numbers
are the same.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from rlip_model.evaluation.inputs import PredictedPairs
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks import PredictionFiles, score_vcoco
from sgpipe.evaluation.inputs import data_classes
from sgpipe.inference import predictor
from sgpipe.inference.predictions import ImagePrediction, PredictConfig, RowGroup, iter_rows
from sgpipe.records import NO_OBJECT, Box, Record, Relation
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.hoi import hico_source
from sgpipe.sources.import_run import import_annotations
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.utils.console import Progress
from tests.sgpipe.stats.runs import invoke
from tests.values import values_of

QUERIES = 12
MODEL = Path(__file__).parent  # any folder: `clumsy` does not read it

REFUSED = {
    "": "pass --predictions and --annotations, or --model and --data",
    "--data RUN --predictions few.json": "pass --predictions", "--data RUN --setting UO": "these are others",
    "--data RUN --annotations few.json": "few.json has a format",
    "--data RUN --classes few.json": "is not a listed class",
    "--data RUN --classes bad.json": "classes file .*bad.json: expected", "--data nowhere": "nowhere",
}  # fmt: skip


def clumsy(config: PredictConfig, row_groups: Sequence[RowGroup]) -> Iterator[ImagePrediction]:
    """True pairs with shaken boxes, and others; scores that mean something."""
    classes = config.classes
    rng = np.random.default_rng(0)
    records = {
        record.file_name: record
        for group in row_groups
        for record in iter_records(group.file.parents[1])
    }
    for row in (row for group in row_groups for row, _ in iter_rows(group)):
        record = records[row.file_name]
        corners = np.array(
            [(x, y, x + w, y + h) for x, y, w, h in values_of(record.objects, "bbox")]
        )
        labels = np.array([classes.objects.index(box.category) for box in record.objects])
        ends = rng.integers(0, len(labels), (QUERIES, 2))
        true = np.zeros((QUERIES, len(classes.relations)))
        for place, relation in enumerate(record.relations[:QUERIES]):
            ends[place] = relation.subject, relation.object
            true[place, classes.relations.index(relation.predicate)] = 1
        scores = (0.4 * true + 0.6 * rng.random(true.shape)).astype(np.float32)
        boxes = corners[ends] + rng.normal(0, 3, (QUERIES, 2, 4))
        boxes = (
            np.sort(boxes.reshape(QUERIES, 2, 2, 2), axis=2)
            .reshape(QUERIES, 2, 4)
            .astype(np.float32)
        )
        subjects = labels[ends[:, 0]]
        if config.task != "scene graph":
            subjects = np.full(QUERIES, classes.objects.index("person"))
        yield ImagePrediction(
            row, PredictedPairs(boxes[:, 0], boxes[:, 1], subjects, labels[ends[:, 1]], scores)
        )


@pytest.fixture(autouse=True)
def clumsy_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(predictor, "predict", clumsy)


def evaluated(folder: Path, *arguments: object) -> dict[str, Any]:
    invoke("eval", *arguments, "--json-file", folder / "out.json")
    return dict(json.loads((folder / "out.json").read_text()))


def test_hico_of_a_network_equals_hico_of_its_file(drawn_run: Path, tmp_path: Path) -> None:
    drawn = drawn_run.parent / "drawn"
    out = tmp_path / "found.json"
    direct = evaluated(
        tmp_path, "hico", "--model", MODEL, "--data", drawn_run, "--plot", tmp_path / "plot.svg"
    )
    assert direct["benchmark"] == "HICO-DET's protocol"
    assert 0.2 < direct["summary"]["mAP"] < 0.99
    classes = ("--classes", drawn / "hico_classes.json")
    annotated = ("--annotations", drawn / "hico.json", *classes)
    invoke("predict", MODEL, "--data", drawn_run, "--out", out, *classes)
    by_file = evaluated(tmp_path, "hico", "--predictions", out, *annotated)
    table = tmp_path / "found.parquet"
    invoke("predict", MODEL, "--data", drawn_run, "--out", table, "--form", "hico", *classes)
    assert evaluated(tmp_path, "hico", "--predictions", table, *annotated) == by_file
    for named in (out, table):  # the classes of the shards, in another order: mapped by name
        invoke("predict", MODEL, "--data", drawn_run, "--out", named, "--form", "hico")
        by_names = evaluated(tmp_path, "hico", "--predictions", named, *annotated)
        assert by_names["summary"] == pytest.approx(direct["summary"])
    by_names = evaluated(tmp_path, "hico", "--model", MODEL, "--data", drawn_run, *annotated)
    assert by_names["per_class"] == by_file["per_class"]
    assert by_names["summary"] == by_file["summary"]
    by_name = [
        {tuple(row.values())[:3]: row["ground_truth"] for row in one["per_class"]}
        for one in (direct, by_names)
    ]
    assert by_name[0] == by_name[1]
    assert "<polyline" in (tmp_path / "plot.svg").read_text()


def test_hico_det_itself_by_its_own_numbers(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    items = []
    categories = [1, 1, 2, 19]  # persons, a bicycle, a horse
    verbs = [(0, 2, 77), (0, 3, 77), (1, 2, 37), (0, 1, 43)]  # ride, ride, hold, hug
    relations = [{"subject_id": s, "object_id": o, "category_id": verb} for s, o, verb in verbs]
    for number in range(12):
        corners = zip(rng.integers(0, 200, (4, 2)).tolist(), categories, strict=True)
        boxes = [
            {"bbox": [x, y, x + 90, y + 90], "category_id": category}
            for (x, y), category in corners
        ]
        sizes = {"file_name": f"HICO_test2015_{number:08}.jpg", "width": 320, "height": 320}
        items.append({**sizes, "annotations": boxes, "hoi_annotation": relations})
    true = tmp_path / "test_hico.json"
    run = tmp_path / "run"
    out = tmp_path / "found.json"
    true.write_text(json.dumps(items))
    import_annotations(hico_source(true, "test"), tmp_path, run, Progress(Console(quiet=True)))
    direct = evaluated(tmp_path, "hico", "--model", MODEL, "--data", run)
    assert direct["benchmark"] == "HICO-DET"
    assert 0.02 < direct["summary"]["mAP non-rare"] < 0.99
    invoke("predict", MODEL, "--data", run, "--out", out)
    table = out.with_suffix(".parquet")
    invoke("predict", MODEL, "--data", run, "--out", table, "--form", "hico")
    for options in (
        ("--predictions", out),
        ("--predictions", table),
        ("--model", MODEL, "--data", run),
    ):
        assert evaluated(tmp_path, "hico", *options, "--annotations", true) == direct
    rows = pq.read_table(table)
    for key, value in (
        ("score", float("nan")),
        ("score", None),
        ("subject", "horse"),
        ("object", "unicorn"),
    ):
        wrong = rows.to_pylist()
        wrong[0]["triplets"][1] |= {key: value}
        pq.write_table(pa.Table.from_pylist(wrong, schema=rows.schema), tmp_path / "wrong.parquet")
        output = invoke(
            "eval",
            "hico",
            "--predictions",
            tmp_path / "wrong.parquet",
            "--annotations",
            true,
            code=2,
        ).output
        assert "wrong.parquet: image" in output.replace("\n", " ")
    for column in ("triplets", "file_name"):
        pq.write_table(rows.drop_columns(column), tmp_path / f"{column}.parquet")
    (tmp_path / "text.parquet").write_bytes(b"PAR1 but not really")
    for name in ("triplets", "file_name", "text"):
        file = tmp_path / f"{name}.parquet"
        output = invoke("eval", "hico", "--predictions", file, "--annotations", true, code=2).output
        assert "was not written by `sgpipe predict" in " ".join(output.split())


def test_scene_graphs_of_a_network_as_open_images_counts(drawn_run: Path, tmp_path: Path) -> None:
    result = evaluated(tmp_path, "openimages", "--model", MODEL, "--data", drawn_run)
    assert result["benchmark"] == "Open Images' protocol"
    true = sum(len(record.relations) for record in iter_records(drawn_run))
    assert sum(values_of(result["per_class"], "ground_truth")) == true
    assert max(result["summary"].values()) > 0.3


def test_scene_graphs_of_a_network_equal_those_of_its_file(drawn_run: Path, tmp_path: Path) -> None:
    out = tmp_path / "found.json"
    classes = data_classes(drawn_run)
    direct = evaluated(tmp_path, "vg", "--model", MODEL, "--data", drawn_run)
    assert direct["benchmark"] == "Visual Genome's protocol"
    assert 0.2 < direct["summary"]["mR@50"] < 1
    items = []
    for record in iter_records(drawn_run):
        boxes = [(x, y, x + w, y + h) for x, y, w, h in values_of(record.objects, "bbox")]
        labels = [1 + classes.objects.index(box.category) for box in record.objects]
        relations = [
            (one.subject, one.object, 1 + classes.relations.index(one.predicate))
            for one in record.relations
        ]
        items.append(
            {"image_id": record.image_id, "boxes": boxes, "labels": labels, "relations": relations}
        )
    (tmp_path / "true.json").write_text(json.dumps(items))
    (tmp_path / "classes.json").write_text(json.dumps(vars(classes)))
    annotated = ("--annotations", tmp_path / "true.json", "--classes", tmp_path / "classes.json")
    invoke("predict", MODEL, "--data", drawn_run, "--out", out, "--form", "vg")
    by_file = evaluated(tmp_path, "vg", "--predictions", out, *annotated, "--mode", "sgdet")
    assert by_file["per_class"] == direct["per_class"]
    assert by_file["summary"] == direct["summary"]
    second = evaluated(tmp_path, "vg", "--model", MODEL, "--data", drawn_run, *annotated)
    assert second["summary"] == direct["summary"]


def test_vcoco_of_a_network_equals_vcoco_of_its_file(tmp_path: Path) -> None:
    run = tmp_path / "run"
    out = tmp_path / "found.json"
    write_vcoco(run, tmp_path / "vsrl.json", tmp_path / "coco.json")
    official = ("--annotations", tmp_path / "vsrl.json", "--coco", tmp_path / "coco.json")
    direct = evaluated(
        tmp_path, "vcoco", "--model", MODEL, "--data", run, "--images", tmp_path, *official
    )
    assert 0 < direct["summary"]["role AP, scenario 1"] < 1
    invoke("predict", MODEL, "--data", run, "--images", tmp_path, "--out", out, "--form", "vcoco")
    assert evaluated(tmp_path, "vcoco", "--predictions", out, *official) == direct
    (tmp_path / "splits.json").write_text(f'{{"test": {(tmp_path / "vsrl.json").read_text()}}}')
    with pytest.raises(UserError, match=r"splits\.json and"):  # not a list of actions
        score_vcoco(PredictionFiles(out, tmp_path / "splits.json"), tmp_path / "coco.json")
    options = ("--model", MODEL, "--data", run, "--images", tmp_path, *official, "--possible", run)
    possible = evaluated(tmp_path, "vcoco", *options)
    assert possible["summary"]["role AP, scenario 1"] > direct["summary"]["role AP, scenario 1"]


def write_vcoco(root: Path, vsrl_file: Path, coco_file: Path) -> None:
    """Shards of persons with things, and V-COCO's two files about them: all "hold", "hit" and
    "stand".
    """
    rng = np.random.default_rng(3)
    records = []
    coco: dict[str, Any] = {"images": [], "annotations": []}
    verbs = {
        name: {
            "action_name": name,
            "role_name": roles,
            "image_id": [],
            "ann_id": [],
            "label": [],
            "role_object_id": [],
        }
        for name, roles in (
            ("hold", ["agent", "obj"]),
            ("hit", ["agent", "instr", "obj"]),
            ("stand", ["agent"]),
        )
    }
    for number in range(1, 9):
        coco["images"].append({"id": number, "width": 200, "height": 100})
        objects = [Box("person", 1, (*rng.integers(0, 50, 2).tolist(), 40, 40))]
        objects += [
            Box(name, 2, (*rng.integers(60, 100, 2).tolist(), 40, 40))
            for name in ("cup", "sports ball")
        ]
        objects.append(Box(NO_OBJECT, -1, (0, 0, 0, 0)))
        for place, box in enumerate(objects[:3]):
            annotation = {
                "id": 10 * number + place,
                "image_id": number,
                "bbox": box.bbox,
                "area": 1600,
            }
            coco["annotations"].append({**annotation, "category_id": 1 if place == 0 else 40})
        person = 10 * number
        ends = {"hold": [person, person + 1], "hit": [person, 0, person + 2], "stand": [person]}
        for name, verb in verbs.items():
            for key, value in {
                "image_id": number,
                "ann_id": person,
                "label": 1,
                "role_object_id": ends[name],
            }.items():
                verb[key].append(value)
        relations = [Relation(0, 1, "hold"), Relation(0, 2, "hit"), Relation(0, 3, "stand")]
        records.append(
            Record(
                str(number),
                "vcoco",
                "test",
                f"{number}.jpg",
                200,
                100,
                objects,
                relations=relations,
            )
        )
    for verb in verbs.values():
        verb["role_object_id"] = np.array(verb["role_object_id"]).T.ravel().tolist()
    (root / "data").mkdir(parents=True)
    classes = DatasetClasses(
        ("person", "cup", "sports ball", NO_OBJECT), ("hold", "hit", "hit with", "stand")
    )
    manifest = Manifest.create(
        root, {"labels": {"objects": classes.objects, "relations": classes.relations}}
    )
    manifest.commit(write_shard(root, shard_name("test", 0, 8), "test", 0, records, {}))
    vsrl_file.write_text(json.dumps(list(verbs.values())))
    coco_file.write_text(json.dumps(coco))


@pytest.mark.parametrize("options", REFUSED)
def test_what_does_not_go_together_is_refused(
    drawn_run: Path, tmp_path: Path, options: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("few.json").write_text('{"objects": ["person"], "relations": ["riding"]}')
    Path("bad.json").write_text('{"objects": ["person", "person"], "relations": ["riding"]}')
    result = invoke(
        "eval", "hico", "--model", tmp_path, *options.replace("RUN", str(drawn_run)).split(), code=2
    )
    output = " ".join(result.output.split())
    assert re.search(REFUSED[options], output), output
