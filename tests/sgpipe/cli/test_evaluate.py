"""`sgpipe eval`: files, runs, comparisons, and the figures of the official evaluators for the same
predictions.
"""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rlip_model.evaluation.suppression import PairSuppression
from sgpipe.cli.main import app
from sgpipe.evaluation import benchmarks
from sgpipe.evaluation.label_quality import label_quality, label_report
from sgpipe.records import Box, Record, Relation
from sgpipe.storage.run_folder import GroundTruth
from tests.sgpipe.stats.runs import make_shards
from tests.values import values_of

PERSON = {"bbox": [0, 0, 9, 9], "category_id": 1}
BIKE = {"bbox": [50, 50, 59, 59], "category_id": 2}
# of HICO-DET, from 1
RIDE = 77
HOLD = 37
NAMED = {"objects": {"1": "bicycle", "2": "person"}, "relations": {"1": "hold", "3": "ride"}}
SWAPPED = [{**PERSON, "category_id": 2}, {**BIKE, "category_id": 1}]

VERB = {
    "action_name": "cut",
    "role_name": ["agent", "obj"],
    "image_id": [7],
    "ann_id": [1],
    "label": [1],
}
VERB |= {"role_object_id": [1, 2]}
COCO = {
    "images": [{"id": 7, "width": 100, "height": 60}],
    "annotations": [
        {"id": 1, "image_id": 7, "category_id": 1, "bbox": [0, 0, 10, 10], "area": 100},
        {"id": 2, "image_id": 7, "category_id": 2, "bbox": [50, 20, 10, 10], "area": 100},
    ],
}
DETECTION = {
    "image_id": 7,
    "person_box": [0, 0, 9, 9],
    "cut_agent": 0.5,
    "cut_obj": [50, 20, 59, 29, 0.5],
}

GRAPH = {
    "image_id": 3,
    "boxes": [[0, 0, 9, 9], [20, 20, 29, 29]],
    "labels": [5, 6],
    "relations": [[0, 1, 31]],
}
FOUND = {
    **GRAPH,
    "scores": [1, 1],
    "pairs": [[0, 1]],
    "predicate_scores": [[0.1] * 31 + [0.9] + [0.1] * 19],
}


def relation(verb: int, **more: object) -> dict[str, Any]:
    return {"subject_id": 0, "object_id": 1, "category_id": verb, **more}


def annotated(name: str = "HICO_test2015_00000001.jpg", verb: int = RIDE) -> dict[str, Any]:
    return {"file_name": name, "annotations": [PERSON, BIKE], "hoi_annotation": [relation(verb)]}


def predicted(
    name: str = "HICO_test2015_00000001.jpg", verb: int = RIDE, **more: object
) -> dict[str, Any]:
    interactions = [relation(verb, **{"score": 0.9, **more})]
    return {"file_name": name, "predictions": [PERSON, BIKE], "hoi_prediction": interactions}


def run(folder: Path, benchmark: str, contents: dict[str, Any], *options: str) -> Result:
    """Write the contents of each option to a file, and evaluate the files."""
    arguments = [
        "eval",
        benchmark,
        "--csv",
        f"{folder}/out.csv",
        "--json-file",
        f"{folder}/out.json",
        *options,
    ]
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


def test_an_exported_run_is_scored_by_its_confidences(tmp_path: Path) -> None:
    """As `sgpipe export --to hico` writes what any tagger labelled."""
    images = [annotated(), annotated("HICO_test2015_00000002.jpg", HOLD)]
    labelled = []
    for image, score in zip(images, (0.4, 0.9), strict=True):
        boxes = image["annotations"]
        relations = [relation(RIDE, score=score), relation(HOLD, score=1 - score)]
        item = {"file_name": image["file_name"], "annotations": boxes, "hoi_annotation": relations}
        labelled.append(item)
    assert hico(tmp_path, images, labelled).exit_code == 0
    assert written(tmp_path)["summary"]["mAP"] == pytest.approx(0.5), "the wrong ones come first"
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    predictions = [
        {
            "file_name": item["file_name"],
            "predictions": item["annotations"],
            "hoi_prediction": item["hoi_annotation"],
        }
        for item in labelled
    ]
    assert hico(tmp_path, images, predictions).exit_code == 0
    assert list(csv.DictReader((tmp_path / "out.csv").open())) == rows
    message = refused(hico(tmp_path, images, images))
    assert "image 'HICO_test2015_00000001.jpg': 'hoi_annotation' has relations without" in message


def test_hico_as_tables_json_and_csv(tmp_path: Path) -> None:
    images = [annotated(), annotated("HICO_test2015_00000002.jpg", HOLD)]
    result = hico(tmp_path, images, [predicted()])
    assert result.exit_code == 0, result.output
    assert "scored 2 images" in result.output
    content = written(tmp_path)
    assert json.loads(hico(tmp_path, images, [predicted()], "--json").stdout) == content
    assert content["summary"]["mAP"] == pytest.approx(0.5)
    assert content["summary"]["mAP rare"] is None
    assert hico(tmp_path, images, [predicted()], "--setting", "UC-NF").exit_code == 0
    assert written(tmp_path)["summary"]["mAP unseen"] == pytest.approx(0.5)
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    cells = values_of(rows, "predicate", "object", "hits")
    assert cells == [("hold", "bicycle", "0"), ("ride", "bicycle", "1")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hico", [None, False]),
        ("hico --pair-nms", [PairSuppression(), False]),
        ("hico --known-object", [None, True]),
        ("openimages", [None, "published"]),
        ("openimages --nms published", [PairSuppression(), "published"]),
        ("openimages --nms repaired", [PairSuppression(), "repaired"]),
    ],
)
def test_options_reach_the_evaluator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: str, expected: list[Any]
) -> None:
    benchmark, *options = words.split()
    name = {"hico": "evaluate_hico", "openimages": "evaluate_open_images"}[benchmark]
    used = []
    evaluate = getattr(benchmarks, name)
    monkeypatch.setattr(
        benchmarks,
        name,
        lambda images, settings: used.append(settings) or evaluate(images, settings),
    )
    true = annotated(verb=1)
    prediction = predicted(verb=1)
    if benchmark == "openimages":
        true["rel_annotations"], prediction["rel_prediction"] = (
            true.pop("hoi_annotation"),
            prediction.pop("hoi_prediction"),
        )
    contents = {"annotations": [true], "predictions": [prediction]}
    assert run(tmp_path, benchmark, contents, *options).exit_code == 0
    assert [*vars(used[0]).values()][-2:] == expected


def test_predictions_with_a_class_list_are_mapped_by_name(tmp_path: Path) -> None:
    images = [f"HICO_test2015_{number:08}.jpg" for number in (1, 2, 3)]
    first = {**predicted(images[0], verb=3), "predictions": SWAPPED}
    listed = [{**first, "classes": NAMED | {"by": "us"}}, {**first, "file_name": images[1]}]
    result = hico(
        tmp_path, list(map(annotated, images)), [*listed, {**first, "file_name": images[2]}]
    )
    assert result.exit_code == 0, result.output
    assert written(tmp_path)["summary"]["mAP"] == 1
    assert hico(tmp_path, [annotated(images[0])], [first]).exit_code == 0
    assert written(tmp_path)["summary"]["mAP"] == 0  # without the list, the numbers are HICO-DET's


def wrong() -> Iterator[Any]:
    """Predictions of each benchmark that are of another form, or do not fit the annotations."""
    hico = predicted()
    other = predicted("HICO_test2015_00000009.jpg")
    bad_class = {**BIKE, "category_id": 12}
    bad_box = {**BIKE, "bbox": [59, 50, 50, 59]}
    for prediction in (
        other,
        predicted(score=float("nan")),
        predicted(verb=118),
        predicted(object_id=2),
        7,
    ):
        yield "hico", [], [annotated()], [prediction]
    for box in (bad_class, bad_box):
        yield "hico", [], [annotated()], [{**hico, "predictions": [PERSON, box]}]
    for damage in (
        {"pairs": [[0, 2]]},
        {"predicate_scores": [[0.5] * 50]},
        {"labels": [5, 151]},
        {"image_id": 4},
    ):
        yield "vg", ["--mode", "sgdet"], [GRAPH], [FOUND | damage]
    for detection in (
        {**DETECTION, "image_id": 8},
        {"image_id": 7, "person_box": [0, 0, 9, 9], "ride_agent": 0.5},
    ):
        yield "vcoco", [], [VERB], [detection]
    yield "vcoco", [], [{**VERB, "label": [1.5]}], [DETECTION]
    yield "hico", [], [annotated()], [hico, hico]
    for predictions in ([], [FOUND, FOUND]):
        yield "vg", ["--mode", "sgdet"], [GRAPH], predictions
    yield "vg", ["--mode", "sgdet", "--plot", "curves.svg"], [GRAPH], [FOUND]  # it has none


@pytest.mark.parametrize(("benchmark", "options", "annotations", "predictions"), wrong())
def test_wrong_files_are_refused_in_one_line(
    tmp_path: Path,
    benchmark: str,
    options: list[str],
    annotations: list[Any],
    predictions: list[Any],
) -> None:
    contents = {"annotations": annotations, "predictions": predictions}
    contents |= {"coco": COCO} if benchmark == "vcoco" else {}
    error = refused(run(tmp_path, benchmark, contents, *options))
    assert error.startswith("error: --plot" if "--plot" in options else f"error: {tmp_path}/")
    assert not (tmp_path / "out.json").exists()


def test_hico_compared(tmp_path: Path) -> None:
    """The other predictions lack every third interaction."""
    named = [
        (f"HICO_test2015_{number:08d}.jpg", RIDE if number % 2 else HOLD) for number in range(12)
    ]
    other = [
        predicted(interaction, verb + (number % 3 == 0))
        for number, (interaction, verb) in enumerate(named)
    ]
    old = tmp_path / "old.json"
    old.write_text(json.dumps(other))
    images = [annotated(*interaction) for interaction in named]
    predictions = [predicted(*interaction) for interaction in named]
    assert (
        hico(tmp_path, images, predictions, "--compare", str(old), "--resamples", "40").exit_code
        == 0
    )
    content = written(tmp_path)["comparison"]
    assert (content["other"], content["images"], content["resamples"], content["seed"]) == (
        str(old),
        12,
        40,
        0,
    )
    measure = content["measures"]["mAP"]
    low, high = measure["difference_interval"]
    assert measure["value"] == 1
    assert measure["difference"] == pytest.approx(1 - measure["other"])
    assert 0 < low < measure["difference"] < high
    assert measure["shown"] is True
    rare = content["measures"]["mAP rare"]
    assert (rare["value"], rare["difference"], rare["interval"], rare["shown"]) == (
        None,
        None,
        [None, None],
        False,
    )


def shards(folder: Path, correct: Callable[[int], bool], images: int = 12) -> Path:
    """Runs with one box and one relation in each image."""
    rng = np.random.default_rng(0)
    records = []
    for number in range(images):
        boxes = [
            Box("dog", 18, (5.0, 5.0, 20.0, 20.0)),
            Box("cup", 47, (40.0 + 20 * (not correct(number)), 5.0, 20, 20)),
        ]
        confidence = float(np.float32(rng.random() / 2 + 0.5))
        boxes[0].score, boxes[1].score = 0.9, confidence
        relations = [Relation(0, 1, "near", confidence), Relation(1, 0, "on", 0.3)]
        image = Record(
            str(number), "coco", "val", f"{number}.jpg", 100, 50, boxes, relations=relations
        )
        records.append(image)
    return make_shards(folder, records)


@pytest.mark.parametrize(
    ("command", "measure"),
    [(["labels", "--pred"], "recall at 0.2"), (["boxes"], "AP50")],
    ids=["labels", "boxes"],
)
def test_runs_are_compared(tmp_path: Path, command: list[str], measure: str) -> None:
    truth = shards(tmp_path / "truth", lambda _: True)
    other = shards(tmp_path / "other", lambda number: number % 2 > 0)
    equal_run = shards(tmp_path / "same", lambda _: True)
    options = [
        "eval",
        *command,
        str(equal_run),
        "--truth",
        str(truth),
        "--resamples",
        "40",
        "--compare",
    ]
    result = CliRunner().invoke(app, [*options, str(other), "--json"])
    assert result.exit_code == 0, result.output
    figures = json.loads(result.stdout)["comparison"]["measures"][measure]
    low, high = figures["difference_interval"]
    assert figures["value"] == pytest.approx(1)
    assert 0 < low < figures["difference"] < high < 1
    assert figures["shown"] is True
    few = shards(tmp_path / "few", lambda _: True, 10)
    assert "images on one side only" in refused(CliRunner().invoke(app, [*options, str(few)]))


def test_labels_of_resampled_images_beside_runs_in_which_they_are_repeated(tmp_path: Path) -> None:
    def quality(folder: Path, drawn: list[int]) -> Any:
        rng = np.random.default_rng(1)
        shift = rng.random(6) < 0.4
        confidence = rng.random((6, 3))
        texts = rng.choice(["near", "on", "under"], (2, 6, 3))
        runs = []
        for side in range(2):
            records = []
            for place, image in enumerate(drawn):
                left = 60.0 if side and shift[image] else 40.0
                boxes = [
                    Box("dog", 18, (5.0, 5.0, 20.0, 20.0)),
                    Box("cup", 47, (left, 5.0, 20.0, 20.0)),
                ]
                relations = [
                    Relation(
                        row % 2,
                        1 - row % 2,
                        str(texts[side, image, row]),
                        float(confidence[image, row]),
                    )
                    for row in range(3)
                ]
                records.append(
                    Record(
                        str(place),
                        "coco",
                        "val",
                        f"{place}.jpg",
                        100,
                        50,
                        boxes,
                        relations=relations,
                    )
                )
            runs.append(make_shards(folder / str(side), records))
        return label_report(label_quality(runs[1], GroundTruth(runs[0])))

    once = quality(tmp_path / "once", list(range(6)))
    rng = np.random.default_rng(2)
    for number in range(3):
        drawn = np.sort(rng.integers(0, 6, 6))
        expected = quality(tmp_path / str(number), drawn.tolist()).summary
        summary = once.resampling.summary(np.bincount(drawn, minlength=6))
        assert summary == pytest.approx(expected, nan_ok=True)


def test_vcoco_gives_the_official_figures(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "golden" / "evaluation" / "vcoco"
    inputs = json.loads(gzip.decompress((folder / "main300.inputs.json.gz").read_bytes()))
    official = json.loads((folder / "main300.expected.json").read_text())["official"]
    contents = {
        "annotations": inputs["vsrl"],
        "coco": inputs["coco"],
        "predictions": inputs["detections"],
    }
    result = run(tmp_path, "vcoco", contents)
    assert result.exit_code == 0, result.output
    summary = written(tmp_path)["summary"]
    for scenario in (1, 2):
        expected = official[f"scenario_{scenario}"]["mean_without_point"]
        assert summary[f"role AP, scenario {scenario}"] == pytest.approx(expected)
    assert summary["agent AP"] == pytest.approx(official["agent"]["mean"])
