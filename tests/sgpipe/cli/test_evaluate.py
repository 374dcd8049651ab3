import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from sgpipe.cli.main import app

PERSON, BIKE = {"bbox": [0, 0, 9, 9], "category_id": 1}, {"bbox": [50, 50, 59, 59], "category_id": 2}
RIDE, HOLD, WASH = 77, 37, 112  # of HICO-DET, from 1


def relation(verb: int, **more: Any) -> dict[str, Any]:
    return {"subject_id": 0, "object_id": 1, "category_id": verb, **more}


def annotated(name: str = "HICO_test2015_00000001.jpg", verb: int = RIDE) -> dict[str, Any]:
    return {"file_name": name, "annotations": [PERSON, BIKE], "hoi_annotation": [relation(verb)]}


def predicted(name: str = "HICO_test2015_00000001.jpg", verb: int = RIDE, **more: Any) -> dict[str, Any]:
    return {
        "file_name": name,
        "predictions": [PERSON, BIKE],
        "hoi_prediction": [relation(verb, **{"score": 0.9, **more})],
    }


def run(folder: Path, benchmark: str, contents: dict[str, Any], *options: str, json_file: bool = True) -> Result:
    """Write the contents of each option to a file, and evaluate the files."""
    outputs = ["--csv", str(folder / "out.csv"), *(["--json-file", str(folder / "out.json")] if json_file else [])]
    arguments = ["eval", benchmark, *outputs, *options]
    for option, content in contents.items():
        path = folder / f"{option}.json"
        path.write_text(json.dumps(content))
        arguments += [f"--{option}", str(path)]
    return CliRunner().invoke(app, arguments)


def hico(folder: Path, annotations: list[Any], predictions: list[Any], *options: str) -> Result:
    return run(folder, "hico", {"annotations": annotations, "predictions": predictions}, *options)


def written(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "out.json").read_text()))


def refused(result: Result) -> str:
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.output
    return result.stderr


def test_hico_as_tables_json_and_csv(tmp_path: Path) -> None:
    images = [annotated(), annotated("HICO_test2015_00000002.jpg", HOLD)]
    result = hico(tmp_path, images, [predicted()])
    assert result.exit_code == 0, result.output
    assert "mAP rare" in result.output
    assert "scored 2 images: 1 with predictions, 1 without predictions" in result.output
    assert "lists no classes: its numbers are taken for the annotations'" in result.output
    content = written(tmp_path)
    assert json.loads(hico(tmp_path, images, [predicted()], "--json").stdout) == content
    assert content["summary"]["mAP"] == pytest.approx(0.5)
    assert content["summary"]["mAP rare"] is None
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(row["predicate"], row["object"], row["hits"]) for row in rows] == [
        ("hold", "bicycle", "0"),
        ("ride", "bicycle", "1"),
    ]
    assert [row["predicate"] for row in content["per_class"]] == ["hold", "ride"]


NAMED = {"objects": {"1": "bicycle", "2": "person"}, "relations": {"1": "hold", "3": "ride"}}
SWAPPED = [{**PERSON, "category_id": 2}, {**BIKE, "category_id": 1}]


def test_predictions_with_a_class_list_are_mapped_by_name(tmp_path: Path) -> None:
    images = [f"HICO_test2015_{number:08}.jpg" for number in (1, 2, 3)]
    first = {**predicted(images[0], verb=3), "predictions": SWAPPED}
    listed = [{**first, "classes": NAMED}, {**first, "file_name": images[1]}]
    result = hico(tmp_path, [annotated(name) for name in images], [*listed, {**first, "file_name": images[2]}])
    assert result.exit_code == 0, result.output
    assert written(tmp_path)["summary"]["mAP"] == 1
    assert hico(tmp_path, [annotated(images[0])], [first]).exit_code == 0
    assert written(tmp_path)["summary"]["mAP"] == 0  # without the list, the numbers are HICO-DET's


VERB = {"action_name": "cut", "role_name": ["agent", "obj"], "image_id": [7], "ann_id": [1], "label": [1]}
VERB |= {"role_object_id": [1, 2]}
COCO = {
    "images": [{"id": 7, "width": 100, "height": 60}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [50, 20, 10, 10], "area": 100},
    ],
}
DETECTION = {"image_id": 7, "person_box": [0, 0, 9, 9], "cut_agent": 0.5, "cut_obj": [50, 20, 59, 29, 0.5]}


def wrong() -> Iterator[Any]:
    """Predictions of each benchmark that are of another form, or do not fit the annotations."""
    hico, other = predicted(), predicted("HICO_test2015_00000009.jpg")
    bad_class, bad_box = {**BIKE, "category_id": 12}, {**BIKE, "bbox": [59, 50, 50, 59]}
    for each in (other, predicted(score=float("nan")), predicted(verb=118), predicted(object_id=2), 7):
        yield "hico", [], [annotated()], [each]
    for box in (bad_class, bad_box):
        yield "hico", [], [annotated()], [{**hico, "predictions": [PERSON, box]}]
    for found in ({"pairs": [[0, 2]]}, {"predicate_scores": [[0.5] * 50]}, {"labels": [5, 151]}, {"image_id": 4}):
        yield "vg", ["--mode", "sgdet"], [GRAPH], [FOUND | found]
    for each in ({**DETECTION, "image_id": 8}, {"image_id": 7, "person_box": [0, 0, 9, 9], "ride_agent": 0.5}):
        yield "vcoco", [], [VERB], [each]
    yield "vcoco", [], [{**VERB, "label": [1.5]}], [DETECTION]
    yield "vg", ["--mode", "sgdet"], [GRAPH], []


@pytest.mark.parametrize(("benchmark", "options", "annotations", "predictions"), wrong())
def test_wrong_files_are_refused_in_one_line(
    tmp_path: Path, benchmark: str, options: list[str], annotations: list[Any], predictions: list[Any]
) -> None:
    contents = {"annotations": annotations, "predictions": predictions}
    contents |= {"coco": COCO} if benchmark == "vcoco" else {}
    refused(run(tmp_path, benchmark, contents, *options))
    assert not (tmp_path / "out.json").exists()


GRAPH = {"image_id": 3, "boxes": [[0, 0, 9, 9], [20, 20, 29, 29]], "labels": [5, 6], "relations": [[0, 1, 31]]}
FOUND = {**GRAPH, "scores": [1, 1], "pairs": [[0, 1]], "predicate_scores": [[0.1] * 31 + [0.9] + [0.1] * 19]}


def test_scene_graphs(tmp_path: Path) -> None:
    contents = {"annotations": [GRAPH, {**GRAPH, "image_id": "4x"}], "predictions": [FOUND]}
    result = run(tmp_path, "vg", contents, "--mode", "sgdet")
    assert "scored 1 image: 1 with predictions, 1 left out" in result.output
    assert written(tmp_path)["summary"]["R@20"] == 1
