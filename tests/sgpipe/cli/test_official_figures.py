"""The evaluation commands give the figures of the official evaluators, for the same predictions."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlip_model.evaluation.hico_classes import possible_interactions
from sgpipe.sources.vocabulary import category_names
from tests.sgpipe.cli.test_evaluate import hico, run, written


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
    return [
        {
            "subject_id": found["sub_ids"][pair],
            "object_id": found["obj_ids"][pair],
            "category_id": predicate + first,
            "score": score,
        }
        for pair, predicate, score in zip(
            pairs.tolist(), predicates.tolist(), scores.reshape(-1)[best].tolist(), strict=True
        )
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
    keys = {
        "pred_labels": "labels",
        "pred_scores": "scores",
        "rel_pair_idxs": "pairs",
        "pred_rel_scores": "predicate_scores",
    }
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
