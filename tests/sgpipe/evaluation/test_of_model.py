"""A network that finds most of what is true, evaluated directly and by way of files: the numbers are the same."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rlip_model.evaluation.inputs import Pairs
from sgpipe import predict as prediction
from sgpipe.cli import app
from sgpipe.evaluation import of_model
from sgpipe.evaluation.classes import data_classes, read_classes
from sgpipe.predict import PredictConfig, Predicted
from sgpipe.predict_rows import Unit, iter_rows
from sgpipe.shards.read import iter_records
from tests.sgpipe.trainings import PICTURES

QUERIES = 12


def clumsy(config: PredictConfig, units: Sequence[Unit]) -> Iterator[Predicted]:
    """True pairs with shaken boxes, and others; scores that mean something."""
    classes, rng = config.classes, np.random.default_rng(0)
    records = {record.file_name: record for unit in units for record in iter_records(unit.file.parents[1])}
    for row in (row for unit in units for row in iter_rows(unit)):
        record = records[row.file_name]
        corners = np.array([(x, y, x + w, y + h) for x, y, w, h in (box.bbox for box in record.objects)])
        labels = np.array([classes.objects.index(box.category) for box in record.objects])
        ends = rng.integers(0, len(labels), (QUERIES, 2))
        true = np.zeros((QUERIES, len(classes.relations)))
        for place, relation in enumerate(record.relations[:QUERIES]):
            ends[place] = relation.subject, relation.object
            true[place, classes.relations.index(relation.predicate)] = 1
        scores = (0.4 * true + 0.6 * rng.random(true.shape)).astype(np.float32)
        boxes = (corners[ends] + rng.normal(0, 3, (QUERIES, 2, 4))).astype(np.float32)
        subjects = labels[ends[:, 0]]
        if config.task != "scene graph":
            subjects = np.full(QUERIES, classes.objects.index("person"))
        yield Predicted(row, Pairs(boxes[:, 0], boxes[:, 1], subjects, labels[ends[:, 1]], scores))


@pytest.fixture(autouse=True)
def clumsy_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(of_model, "predict", clumsy)
    monkeypatch.setattr(prediction, "predict", clumsy)


def invoke(*arguments: Any) -> Result:
    result = CliRunner().invoke(app, list(map(str, arguments)))
    assert result.exit_code == 0, result.output
    return result


def evaluated(folder: Path, *arguments: Any) -> dict[str, Any]:
    invoke("eval", *arguments, "--json", folder / "out.json")
    return dict(json.loads((folder / "out.json").read_text()))


def test_hico_of_a_network_equals_hico_of_its_file(drawn_run: Path, tmp_path: Path) -> None:
    drawn, out = drawn_run.parent / "drawn", tmp_path / "found.json"
    direct = evaluated(tmp_path, "hico", "--model", "any", "--data", drawn_run, "--plot", tmp_path / "plot.svg")
    assert direct["benchmark"] == "HICO-DET's protocol"
    assert 0.2 < direct["summary"]["mAP"] < 0.99
    classes = ("--classes", drawn / "hico_classes.json")
    annotated = ("--annotations", drawn / "hico.json", *classes)
    invoke("predict", "any", "--data", drawn_run, "--out", out, *classes)
    by_file = evaluated(tmp_path, "hico", "--predictions", out, *annotated)
    again = evaluated(tmp_path, "hico", "--model", "any", "--data", drawn_run, *annotated)
    assert again["per_class"] == by_file["per_class"]
    assert again["summary"] == by_file["summary"]
    by_name = [{tuple(row.values())[:3]: row["ground_truth"] for row in one["per_class"]} for one in (direct, again)]
    assert by_name[0] == by_name[1]
    assert "<polyline" in (tmp_path / "plot.svg").read_text()


def test_scene_graphs_of_a_network_as_open_images_counts(drawn_run: Path, tmp_path: Path) -> None:
    result = evaluated(tmp_path, "openimages", "--model", "any", "--data", drawn_run)
    assert result["benchmark"] == "Open Images' protocol"
    true = sum(len(record.relations) for record in iter_records(drawn_run))
    assert sum(row["ground_truth"] for row in result["per_class"]) == true
    assert max(result["summary"].values()) > 0.3


def test_what_persons_do_is_what_is_annotated(drawn_run: Path) -> None:
    drawn = drawn_run.parent / "drawn"
    classes = read_classes(drawn / "hico_classes.json")
    items = {item["file_name"]: item for item in json.loads((drawn / "hico.json").read_text())}
    assert len(items) == PICTURES
    for record in iter_records(drawn_run):
        item = items[record.file_name]
        found = {
            (one["subject_id"], classes.relations[one["category_id"]], one["object_id"])
            for one in item["hoi_annotation"]
        }
        persons = [box.category == "person" for box in record.objects]
        assert found == {(one.subject, one.predicate, one.object) for one in record.relations if persons[one.subject]}
        assert [classes.objects[box["category_id"]] for box in item["annotations"]] == [
            box.category for box in record.objects
        ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--model", "any"), "give --predictions and --annotations, or --model and --data"),
        (("--model", "any", "--data", "RUN", "--predictions", "p.json"), "give --predictions"),
        (("--model", "any", "--data", "RUN", "--setting", "UO"), "these are others"),
        (("--model", "any", "--data", "RUN", "--annotations", "a.json"), "other classes than HICO-DET"),
        (("--model", "any", "--data", "RUN", "--classes", "few.json"), "is none of the 1 classes"),
        (("--model", "any", "--data", "RUN", "--classes", "bad.json"), "classes file .*bad.json: expected"),
        (("--model", "any", "--data", "nowhere"), "holds no sgpipe run"),
    ],
)
def test_what_does_not_go_together_is_refused(
    drawn_run: Path, tmp_path: Path, options: Sequence[str], message: str
) -> None:
    (tmp_path / "few.json").write_text('{"objects": ["person"], "relations": ["riding"]}')
    (tmp_path / "bad.json").write_text('{"objects": ["person", "person"], "relations": ["riding"]}')
    paths = {"RUN": drawn_run} | {name: tmp_path / name for name in ("few.json", "bad.json", "nowhere")}
    arguments = [str(paths.get(option, option)) for option in options]
    result = CliRunner().invoke(app, ["eval", "hico", *arguments])
    assert result.exit_code == 2
    assert result.exception is not None
    output = " ".join((result.output + str(result.stderr)).split())
    assert re.search(message, output), output


def test_classes_of_shards_without_closed_lists_are_their_names(drawn_run: Path) -> None:
    classes = data_classes(drawn_run)
    counts = [
        sum(one.category == name for r in iter_records(drawn_run) for one in r.objects) for name in classes.objects
    ]
    assert counts == sorted(counts, reverse=True)
    assert counts[-1] > 0
