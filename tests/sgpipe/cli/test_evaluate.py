"""`sgpipe eval`: files, runs, comparisons, and the figures of the official evaluators for the same predictions."""

import csv
import gzip
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner, Result

from rlip_model.evaluation.hico_classes import possible_interactions
from sgpipe.cli.main import app
from sgpipe.evaluation.label_quality import label_quality, label_report
from sgpipe.records import Box, Record, Relation
from sgpipe.sources.vocabulary import category_names
from sgpipe.storage.run_folder import GroundTruth
from tests.sgpipe.stats.runs import make_shards

PERSON, BIKE = {"bbox": [0, 0, 9, 9], "category_id": 1}, {"bbox": [50, 50, 59, 59], "category_id": 2}
RIDE, HOLD = 77, 37  # of HICO-DET, from 1


def relation(verb: int, **more: Any) -> dict[str, Any]:
    return {"subject_id": 0, "object_id": 1, "category_id": verb, **more}


def annotated(name: str = "HICO_test2015_00000001.jpg", verb: int = RIDE) -> dict[str, Any]:
    return {"file_name": name, "annotations": [PERSON, BIKE], "hoi_annotation": [relation(verb)]}


def predicted(name: str = "HICO_test2015_00000001.jpg", verb: int = RIDE, **more: Any) -> dict[str, Any]:
    found = [relation(verb, **{"score": 0.9, **more})]
    return {"file_name": name, "predictions": [PERSON, BIKE], "hoi_prediction": found}


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
    assert "scored 2 images: 1 with predictions, 1 without predictions" in result.output
    content = written(tmp_path)
    assert json.loads(hico(tmp_path, images, [predicted()], "--json").stdout) == content
    assert content["summary"]["mAP"] == pytest.approx(0.5)
    assert content["summary"]["mAP rare"] is None
    rows = list(csv.DictReader((tmp_path / "out.csv").open()))
    cells = [(row["predicate"], row["object"], row["hits"]) for row in rows]
    assert cells == [("hold", "bicycle", "0"), ("ride", "bicycle", "1")]


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


IMAGES = 12


def name(number: int) -> str:
    return f"HICO_test2015_{number:08d}.jpg"


def evaluate(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["eval", *arguments, "--resamples", "40"])


def hico_files(folder: Path) -> dict[str, str]:
    """The other predictions lack every third interaction."""
    named = [(name(number), RIDE if number % 2 else HOLD) for number in range(IMAGES)]
    contents = {
        "annotations": [annotated(*each) for each in named],
        "new": [predicted(*each) for each in named],
        "old": [predicted(each, verb + (number % 3 == 0)) for number, (each, verb) in enumerate(named)],
    }
    for key, content in contents.items():
        (folder / f"{key}.json").write_text(json.dumps(content))
    return {key: str(folder / f"{key}.json") for key in contents}


def test_hico_compared(tmp_path: Path) -> None:
    files = hico_files(tmp_path)
    options = ["hico", "--predictions", files["new"], "--annotations", files["annotations"], "--compare", files["old"]]
    result = json.loads(evaluate(*options, "--json").stdout)
    content = result["comparison"]
    assert (content["other"], content["images"], content["resamples"], content["seed"]) == (files["old"], 12, 40, 0)
    measure = content["measures"]["mAP"]
    low, high = measure["difference_interval"]
    assert measure["value"] == 1
    assert measure["difference"] == pytest.approx(1 - measure["other"])
    assert 0 < low < measure["difference"] < high
    assert measure["shown"] is True
    rare = content["measures"]["mAP rare"]
    assert (rare["value"], rare["difference"], rare["interval"], rare["shown"]) == (None, None, [None, None], False)


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
        image = Record(str(number), "coco", "val", f"{number}.jpg", 100, 50, boxes, relations=relations)
        records.append(image)
    return make_shards(folder, records)


@pytest.mark.parametrize(
    ("command", "measure"), [(["labels", "--pred"], "recall at 0.2"), (["boxes"], "AP50")], ids=["labels", "boxes"]
)
def test_runs_are_compared(tmp_path: Path, command: list[str], measure: str) -> None:
    truth, other = shards(tmp_path / "truth", lambda _: True), shards(tmp_path / "other", lambda number: number % 2 > 0)
    same = shards(tmp_path / "same", lambda _: True)
    options = [*command, str(same), "--truth", str(truth), "--compare"]
    result = evaluate(*options, str(other), "--json")
    assert result.exit_code == 0, result.output
    own = json.loads(result.stdout)["comparison"]["measures"][measure]
    low, high = own["difference_interval"]
    assert own["value"] == pytest.approx(1)
    assert 0 < low < own["difference"] < high < 1
    assert own["shown"] is True
    few = shards(tmp_path / "few", lambda _: True, 10)
    assert "images on one side only" in refused(evaluate(*options, str(few)))


def test_labels_of_resampled_images_beside_runs_in_which_they_are_repeated(tmp_path: Path) -> None:
    def quality(folder: Path, drawn: list[int]) -> Any:
        rng = np.random.default_rng(1)
        shift, confidence = rng.random(6) < 0.4, rng.random((6, 3))
        texts = rng.choice(["near", "on", "under"], (2, 6, 3))
        runs = []
        for side in range(2):
            records = []
            for place, image in enumerate(drawn):
                left = 60.0 if side and shift[image] else 40.0
                boxes = [Box("dog", 18, (5.0, 5.0, 20.0, 20.0)), Box("cup", 47, (left, 5.0, 20.0, 20.0))]
                relations = [
                    Relation(row % 2, 1 - row % 2, str(texts[side, image, row]), float(confidence[image, row]))
                    for row in range(3)
                ]
                records.append(Record(str(place), "coco", "val", f"{place}.jpg", 100, 50, boxes, relations=relations))
            runs.append(make_shards(folder / str(side), records))
        return label_report(label_quality(runs[1], GroundTruth(runs[0])))

    once = quality(tmp_path / "once", list(range(6)))
    rng = np.random.default_rng(2)
    for number in range(3):
        drawn = np.sort(rng.integers(0, 6, 6))
        expected = quality(tmp_path / str(number), drawn.tolist()).summary
        found = once.resampling.summary(np.bincount(drawn, minlength=6))
        assert found == pytest.approx(expected, nan_ok=True)


def golden(oracle: Path, name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    folder = oracle / "golden" / "evaluation"
    inputs = json.loads(gzip.decompress((folder / f"{name}.inputs.json.gz").read_bytes()))
    return inputs, json.loads((folder / f"{name}.expected.json").read_text())


def boxes(part: dict[str, Any], categories: list[int]) -> list[dict[str, Any]]:
    pairs = zip(part["boxes"], part["labels"], strict=True)
    return [{"bbox": box, "category_id": categories[label]} for box, label in pairs]


def best_hundred(found: dict[str, Any], scores: np.ndarray, first: int) -> list[dict[str, Any]]:
    """The best 100, as the official evaluators keep them, padded with score 0; `first`: category_id of predicate 0."""
    best = np.argsort(-scores.reshape(-1), kind="stable")[:100]
    pairs, predicates = np.divmod(best, scores.shape[1])
    values = zip(pairs.tolist(), predicates.tolist(), scores.reshape(-1)[best].tolist(), strict=True)
    return [
        {"subject_id": found["sub_ids"][pair], "object_id": found["obj_ids"][pair], "category_id": predicate + first}
        | {"score": score}
        for pair, predicate, score in values
    ]


def true_relations(rows: list[list[int]], first: int) -> list[dict[str, Any]]:
    return [{"subject_id": s, "object_id": o, "category_id": predicate + first} for s, o, predicate in rows]


def hico_scores(found: dict[str, Any]) -> np.ndarray:
    scores = np.zeros((len(found["sub_ids"]), 117), dtype=np.float32)
    for pair, verb, score in found["verb_scores"]:
        scores[pair, verb] = score
    labels = np.array(found["labels"], dtype=int)[np.array(found["obj_ids"], dtype=int)]
    return scores * possible_interactions().T[labels]


@pytest.mark.parametrize(
    ("setting", "options"), [("default", []), ("pair_nms", ["--pair-nms"]), ("UC-RF", ["--setting", "UC-RF"])]
)
def test_hico_gives_the_official_figures(oracle: Path, tmp_path: Path, setting: str, options: list[str]) -> None:
    inputs, expected = golden(oracle, "hico/real500")
    categories, annotations, predictions = list(category_names("coco")), [], []
    for image in inputs["images"]:
        name, truth, found = image["filename"], image["gt"], image["pred"]
        relations = true_relations(truth["hois"], 1)
        annotations.append({"file_name": name, "annotations": boxes(truth, categories), "hoi_annotation": relations})
        best = best_hundred(found, hico_scores(found), 1)
        predictions.append({"file_name": name, "predictions": boxes(found, categories), "hoi_prediction": best})
    result = hico(tmp_path, annotations, predictions, *options)
    assert result.exit_code == 0, result.output
    official = expected["settings"][setting]["metrics"]
    assert list(written(tmp_path)["summary"].values()) == pytest.approx(list(official.values()))


@pytest.mark.parametrize(
    ("setting", "nms"), [("default", "none"), ("nms", "published"), ("nms_phrase_order_repaired", "repaired")]
)
def test_open_images_gives_the_official_figures(oracle: Path, tmp_path: Path, setting: str, nms: str) -> None:
    inputs, expected = golden(oracle, "openimages/main300")
    categories, annotations, predictions = list(range(601)), [], []
    for image in inputs["images"]:
        name, truth, found = image["filename"], image["gt"], image["pred"]
        relations = true_relations(truth["rels"], 0)
        annotations.append({"file_name": name, "annotations": boxes(truth, categories), "rel_annotations": relations})
        scores = np.array(found["verb_scores"], dtype=np.float32).reshape(-1, 30)
        best = best_hundred(found, scores, 0)
        predictions.append({"file_name": name, "predictions": boxes(found, categories), "rel_prediction": best})
    contents = {"annotations": annotations, "predictions": predictions}
    assert run(tmp_path, "openimages", contents, "--nms", nms).exit_code == 0
    assert written(tmp_path)["summary"] == pytest.approx(expected["settings"][setting]["metrics"])


def test_vcoco_gives_the_official_figures(oracle: Path, tmp_path: Path) -> None:
    inputs, expected = golden(oracle, "vcoco/main300")
    contents = {"annotations": inputs["vsrl"], "coco": inputs["coco"], "predictions": inputs["detections"]}
    result = run(tmp_path, "vcoco", contents)
    assert result.exit_code == 0, result.output
    summary, official = written(tmp_path)["summary"], expected["official"]
    for scenario in (1, 2):
        assert summary[f"role AP, scenario {scenario}"] == pytest.approx(
            official[f"scenario_{scenario}"]["mean_without_point"]
        )
    assert summary["agent AP"] == pytest.approx(official["agent"]["mean"])


@pytest.mark.parametrize("mode", ["predcls", "sgdet"])
def test_visual_genome_gives_the_official_figures(oracle: Path, tmp_path: Path, mode: str) -> None:
    inputs, expected = golden(oracle, f"vg/{mode}")
    keys = {"pred_labels": "labels", "pred_scores": "scores", "rel_pair_idxs": "pairs"}
    keys["pred_rel_scores"] = "predicate_scores"
    annotations, predictions = [], []
    for number, image in enumerate(inputs["images"]):
        true = {"relations" if key == "relation_tuple" else key: value for key, value in image["gt"].items()}
        annotations.append({"image_id": number, **true})
        predictions.append({"image_id": number, **{keys.get(key, key): value for key, value in image["pred"].items()}})
    result = run(tmp_path, "vg", {"annotations": annotations, "predictions": predictions}, "--mode", mode)
    assert result.exit_code == 0, result.output
    summary, official = written(tmp_path)["summary"], expected["metrics"]
    for ours, theirs in (("R@50", "recall@50"), ("ng-mR@100", "ng_mean_recall@100"), ("zR@20", "zeroshot_recall@20")):
        assert summary[ours] == pytest.approx(official[theirs])
    rows = {row["predicate"]: row["R@100"] for row in written(tmp_path)["per_class"]}
    assert rows == pytest.approx(expected["mean_recall_list_100"])
