import csv
import json
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


def test_hico_as_tables_json_and_csv(tmp_path: Path) -> None:
    result = hico(tmp_path, [annotated(), annotated("HICO_test2015_00000002.jpg", HOLD)], [predicted()])
    assert result.exit_code == 0, result.output
    assert "mAP rare" in result.output
    assert "no predictions for 1 of 2 annotated images" in result.output
    content = written(tmp_path)
    assert content["summary"]["mAP"] == pytest.approx(0.5)
    assert content["summary"]["mAP rare"] is None
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    assert [(row["predicate"], row["object"], row["hits"]) for row in rows] == [
        ("hold", "bicycle", "0"),
        ("ride", "bicycle", "1"),
    ]
    assert [row["predicate"] for row in content["per_class"]] == ["hold", "ride"]


@pytest.mark.parametrize("flag", [["--json"], ["--json", "-"], ["--json=-"]])
def test_hico_as_json_on_standard_output(tmp_path: Path, flag: list[str]) -> None:
    """`--json` is a flag as everywhere; its earlier forms still work."""
    hico(tmp_path, [annotated()], [predicted()])
    expected = written(tmp_path)
    (tmp_path / "out.json").unlink()
    result = hico(tmp_path, [annotated()], [predicted()], *flag)
    assert json.loads(result.stdout) == expected


@pytest.mark.parametrize("name", ["out.json", "-out.json"])
def test_json_goes_to_a_file(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    files = {"annotations": [annotated()], "predictions": [predicted()]}
    forms = [["--json-file", name], [f"--json-file={name}"], [f"--json={name}"]] + [["--json", name]] * (name[0] != "-")
    for form in forms:
        result = run(tmp_path, "hico", files, *form, json_file=False)
        assert "mAP" in result.stdout
        assert json.loads(Path(name).read_text())["benchmark"] == "HICO-DET"
        Path(name).unlink()


def test_zero_shot_settings_have_their_own_names(tmp_path: Path) -> None:
    assert hico(tmp_path, [annotated()], [predicted()], "--setting", "UO").exit_code == 0
    assert set(written(tmp_path)["summary"]) == {"mAP", "mAP unseen", "mAP seen", "mean max recall"}


def test_a_class_without_predictions_has_recall_0(tmp_path: Path) -> None:
    hico(tmp_path, [annotated()], [predicted(verb=WASH)])
    assert written(tmp_path)["summary"]["mean max recall"] == 0


def test_images_predicted_twice_are_reported(tmp_path: Path) -> None:
    result = hico(tmp_path, [annotated()], [predicted(verb=WASH), predicted()])
    assert "1 prediction of an image that already had one" in result.output
    assert written(tmp_path)["summary"]["mAP"] == 0


@pytest.mark.parametrize(
    ("prediction", "message"),
    [
        (predicted("HICO_test2015_00000009.jpg"), "image 'HICO_test2015_00000009.jpg' is not in"),
        (predicted(score=float("nan")), "a 'score' is NaN"),
        (predicted(score="high"), "not a table of numbers with shape (-1,): item 0 is 'high'"),
        (predicted(verb=118), "category_id 118 of a relation is not a class of the dataset"),
        (predicted(object_id=2), "a box of a relation is 2, expected 0 to 1"),
        (predicted(subject_id=None), "not a table of numbers"),
        ({**predicted(), "predictions": [PERSON, {**BIKE, "category_id": 12}]}, "category_id 12 of an object"),
        ({**predicted(), "predictions": [PERSON, {**BIKE, "bbox": [59, 50, 50, 59]}]}, "has inverted corners"),
        ({**predicted(), "predictions": [PERSON, {**BIKE, "bbox": [1, 2, 3]}]}, r"shape (-1, 4): item 1 is [1, 2, 3]"),
        ({**predicted(), "predictions": [PERSON, {}]}, "KeyError('category_id')"),
        ({**predicted(), "predictions": [7]}, "expected boxes with 'bbox'"),
        ({**predicted(), "hoi_prediction": {}}, "'hoi_prediction' is not a list"),
        (predicted(subject_id=0.5), "not a table of integers"),
        (predicted(score=[0.9]), "not a table of numbers"),
        ({"file_name": "HICO_test2015_00000001.jpg"}, "'predictions' is missing"),
        (7, "an item: 'file_name' is missing; expected one list with an object per image"),
    ],
)
def test_wrong_predictions_are_refused_in_one_line(tmp_path: Path, prediction: Any, message: str) -> None:
    result = hico(tmp_path, [annotated()], [prediction])
    assert result.exit_code == 2
    assert result.stderr.startswith("error: ")
    assert message in result.stderr
    assert result.stderr.count("\n") == 1
    assert not (tmp_path / "out.json").exists()


@pytest.mark.parametrize(
    ("annotations", "message"),
    [
        ([annotated(), annotated()], "occurs twice"),
        ([annotated(verb=118)], "category_id 118 of a relation"),
        ([], "is not HICO-DET in HOIA form"),
        ([{**annotated(), "annotations": [PERSON, {**BIKE, "bbox": [59, 50, 50, 59]}]}], "has inverted corners"),
    ],
)
def test_wrong_annotations_are_refused_in_one_line(tmp_path: Path, annotations: list[Any], message: str) -> None:
    result = hico(tmp_path, annotations, [predicted()])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize("option", ["--json", "--csv", "--plot"])
def test_results_do_not_overwrite_a_folder(tmp_path: Path, option: str) -> None:
    (tmp_path / "folder").mkdir()
    result = hico(tmp_path, [annotated()], [predicted()], option, str(tmp_path / "folder"))
    assert result.exit_code == 2
    assert "folder is a folder, not a file" in result.stderr
    assert not list(tmp_path.glob("*.tmp"))


def test_missing_and_empty_files(tmp_path: Path) -> None:
    result = hico(tmp_path, [annotated()], [])
    assert (result.exit_code, "contains no predictions" in result.stderr) == (2, True)
    result = CliRunner().invoke(app, ["eval", "hico", "--predictions", "none.json", "--annotations", "none.json"])
    assert (result.exit_code, "no such file: none.json" in result.stderr) == (2, True)


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


@pytest.mark.parametrize(
    ("listed", "message"),
    [
        ({**NAMED, "relations": {"3": "fly over"}}, "'fly over' is not a class of the dataset; "),
        ({**NAMED, "objects": {"1": "unicorn", "2": "person"}}, "'unicorn' is not a class of the dataset; "),
        ({**NAMED, "objects": ["bicycle"]}, "category_id 2 of an object is not in the class list of the file itself"),
        ({"objects": ["person"]}, "its 'classes' are not"),
        ({"objects": ["person", "person"], "relations": ["ride"]}, "each name once"),
        (7, "its 'classes' are not"),
    ],
)
def test_other_classes_are_refused_with_the_commands_to_use(tmp_path: Path, listed: Any, message: str) -> None:
    item = {**predicted(verb=3), "predictions": SWAPPED, "classes": listed}
    result = hico(tmp_path, [annotated()], [item])
    assert (result.exit_code, message in result.stderr, result.stderr.count("\n")) == (2, True, 1), result.stderr
    files = f"--predictions {tmp_path}/predictions.json --annotations {tmp_path}/annotations.json"
    if message.endswith("; "):
        assert "`sgpipe predict MODEL --data SHARDS --form hico --classes CLASSES.json --out" in result.stderr
        assert f"then `sgpipe eval hico {files} --classes CLASSES.json`" in result.stderr


def test_commands_name_the_class_list_beside_the_annotations(tmp_path: Path) -> None:
    (tmp_path / "annotations_classes.json").write_text("{}")
    for annotations, predictions in (([annotated()], [predicted(verb=118)]), ([annotated(verb=118)], [predicted()])):
        result = hico(tmp_path, annotations, predictions)
        assert f"--classes {tmp_path}/annotations_classes.json" in result.stderr


def test_the_number_of_scored_images_is_told(tmp_path: Path) -> None:
    images = [f"HICO_test2015_{number:08}.jpg" for number in range(1, 5)]
    empty = {"file_name": images[2], "predictions": [], "hoi_prediction": []}
    result = hico(tmp_path, [annotated(name) for name in images], [predicted(images[0]), predicted(images[1]), empty])
    told = "scored 4 images: 2 with predictions, 1 with an empty list of predictions, 1 without predictions"
    assert told in result.stdout
    counts = written(tmp_path)["counts"]
    assert (counts["images"], counts["images with predictions"], counts["images without predictions"]) == (4, 2, 1)
    assert "scored 1 image: 1 with predictions\n" in hico(tmp_path, [annotated()], [predicted()]).stdout


def test_predictions_without_a_class_list_are_read_by_number_and_the_user_is_told(tmp_path: Path) -> None:
    note = "lists no classes: its numbers are taken for the annotations', such as 1 for the relation 'adjust'"
    assert note in hico(tmp_path, [annotated()], [predicted()]).stdout
    names = {"objects": {"1": "person", "2": "bicycle"}, "relations": {str(RIDE): "ride"}}
    listed = hico(tmp_path, [annotated()], [{**predicted(), "classes": names}])
    assert (listed.exit_code, "lists no classes" in listed.stdout) == (0, False)


VERB = {
    "action_name": "cut",
    "role_name": ["agent", "obj"],
    "image_id": [7],
    "ann_id": [1],
    "label": [1],
    "role_object_id": [1, 2],
}
PERSON_7 = {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100}
COCO = {
    "images": [{"id": 7, "width": 100, "height": 60}],
    "annotations": [
        PERSON_7,
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [50, 20, 10, 10], "area": 100},
    ],
}
DETECTION = {"image_id": 7, "person_box": [0, 0, 9, 9], "cut_agent": 0.5, "cut_obj": [50, 20, 59, 29, 0.5]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": []}, "contains no predictions"),
        ({"predictions": [{**DETECTION, "image_id": 8}]}, "1 image with detections but without annotations; first: 8"),
        (
            {"predictions": [{**DETECTION, "image_id": name} for name in (8, "8")]},
            "2 images with detections but without annotations",
        ),
        ({"predictions": [{**DETECTION, "cut_agent": None}]}, "a score of an agent is NaN"),
        (
            {"predictions": [{**DETECTION, "cut_obj": [59, 20, 50, 29, 0.5]}]},
            "box of a predicted role [59.0, 20.0, 50.0, 29.0] has inverted corners",
        ),
        ({"predictions": [{**DETECTION, "person_box": []}]}, "1 action scores of predicted persons, expected 0"),
        ({"predictions": [{"image_id": 7}]}, "a detection has no 'person_box'"),
        (
            {"predictions": [{"image_id": 7, "person_box": [0, 0, 9, 9], "ride_agent": 0.5}]},
            "has no 'cut_agent', which is an action of",
        ),
        ({"predictions": [7]}, "expected detections in V-COCO's format"),
        ({"coco": {}}, "are not V-COCO's annotations with the COCO instances"),
        ({"coco": {**COCO, "images": [], "annotations": []}}, "lacks image 7"),
        (
            {"coco": {**COCO, "annotations": COCO["annotations"][1:]}},
            "person 1 of action 'cut' is missing in COCO's annotations",
        ),
        (
            {"coco": {**COCO, "annotations": [{**PERSON_7, "bbox": [0, 0, float("nan"), 9]}]}},
            "bbox or area of annotation 1 is NaN",
        ),
        ({"coco": {**COCO, "annotations": [7]}}, "are not V-COCO's annotations with the COCO instances"),
        ({"annotations": [{**VERB, "label": [1.5]}]}, "label of person 1 of action 'cut' is 1.5, expected 0, 1 or -1"),
        ({"annotations": [{}]}, "are not V-COCO's annotations with the COCO instances"),
    ],
)
def test_wrong_vcoco_files_are_refused_in_one_line(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    valid = {"annotations": [VERB], "coco": COCO, "predictions": [DETECTION]}
    result = run(tmp_path, "vcoco", valid)
    assert result.exit_code == 0, result.output
    assert written(tmp_path)["summary"]["role AP, scenario 1"] == 1
    result = run(tmp_path, "vcoco", {**valid, **change})
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


GRAPH = {"image_id": 3, "boxes": [[0, 0, 9, 9], [20, 20, 29, 29]], "labels": [5, 6], "relations": [[0, 1, 31]]}
FOUND = {**GRAPH, "scores": [1, 1], "pairs": [[0, 1]], "predicate_scores": [[0.1] * 31 + [0.9] + [0.1] * 19]}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ([], "contains no predictions"),
        ([{**FOUND, "image_id": 4}], "image 4 is not in"),
        ([FOUND, FOUND], "image 3 occurs twice"),
        ([{**FOUND, "labels": [5, 151]}], "label of a predicted box is 151"),
        ([{**FOUND, "labels": [5.5, 6]}], "not a table of integers"),
        ([{**FOUND, "labels": [5, 10**30]}], "not a table of numbers"),
        ([{**FOUND, "pairs": [[0, 2]]}], "box of a predicted pair is 2"),
        ([{**FOUND, "pairs": [[0, 1, 1], [1, 0, 0]]}], "not a table of integers"),
        ([{**FOUND, "predicate_scores": [[0.5] * 50]}], "not a table of numbers"),
        ([{**FOUND, "predicate_scores": [[None] * 51]}], "a score of a predicate is NaN"),
        ([{"image_id": 3}], "'boxes' is missing"),
        ([7], "an item has no 'image_id'"),
    ],
)
def test_wrong_scene_graphs_are_refused_in_one_line(tmp_path: Path, change: list[Any], message: str) -> None:
    contents = {"annotations": [GRAPH, {**GRAPH, "image_id": "4x"}], "predictions": [FOUND]}
    result = run(tmp_path, "vg", contents, "--mode", "sgdet")
    assert "no predictions for 1 of 2 annotated images" in result.output
    assert "scored 1 image: 1 with predictions, 1 without predictions left out" in result.output
    assert written(tmp_path)["summary"]["R@20"] == 1
    result = run(tmp_path, "vg", {**contents, "predictions": change}, "--mode", "sgdet")
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.count("\n") == 1


def test_scene_graphs_with_a_class_list_are_mapped_by_name(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text(json.dumps({"objects": ["dog", "man"], "relations": ["on", "near"]}))
    true = {**GRAPH, "labels": [2, 1], "relations": [[0, 1, 2]]}
    listed = {"objects": ["man", "dog"], "relations": ["near"]}
    found = {**FOUND, "labels": [1, 2], "predicate_scores": [[0.1, 0.9]], "classes": listed}
    options = ("--mode", "sgdet", "--classes", str(tmp_path / "classes.json"))
    result = run(tmp_path, "vg", {"annotations": [true], "predictions": [found]}, *options)
    assert result.exit_code == 0, result.output
    assert written(tmp_path)["summary"]["R@20"] == 1
    for changed in ({**listed, "relations": ["under"]}, {**listed, "objects": ["man", "cat"]}, {"objects": []}):
        found["classes"] = changed
        result = run(tmp_path, "vg", {"annotations": [true], "predictions": [found]}, *options)
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert ("sgpipe predict MODEL --data SHARDS --form vg --classes" in result.stderr) == ("relations" in changed)
    result = run(tmp_path, "vg", {"annotations": [GRAPH], "predictions": [found | {"classes": listed}]}, *options[:2])
    assert "has 2 object classes, the dataset 150; list its classes" in result.stderr


def test_scene_graphs_annotated_twice_are_refused(tmp_path: Path) -> None:
    result = run(tmp_path, "vg", {"annotations": [GRAPH, GRAPH], "predictions": [FOUND]}, "--mode", "sgdet")
    assert result.exit_code == 2
    assert "image 3 occurs twice" in result.stderr
