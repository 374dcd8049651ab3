"""Compare what is not the network with a reference folder: `python -m tests.parity.misc FOLDER`."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rlip_model.image import resized
from rlip_model.settings import Strategy
from rlip_model.targets import Triplets
from rlip_model.training.annotations import SceneAnnotation, SceneObject, SceneRelation, label_scene
from rlip_model.training.sampling import (
    LabelledBatch,
    LabelledTriplets,
    LabelVocabulary,
    NegativeSampling,
    merge,
)
from tests.parity.evaluation import hico, open_images, vcoco
from tests.parity.golden import NotGoldenError, Report, compare_folders

STRATEGIES: dict[str, Strategy] = {"freq": "frequency", "random": "uniform"}
CHECKED = ("label_merge_and_sampling.json", "vg_annotation_to_target.json", "evaluators.json")


def check_folder(folder: Path) -> Report:
    if not any((folder / name).is_file() for name in CHECKED):
        raise NotGoldenError(
            f"{folder} is not a reference folder: it has no {' or '.join(CHECKED)}"
        )
    report = Report(small=True)
    for name, check in zip(
        CHECKED, (check_sampling, check_annotation, check_evaluators), strict=True
    ):
        if (folder / name).is_file():
            check(json.loads((folder / name).read_text()), report)
    return report


def check_sampling(content: dict[str, Any], report: Report) -> None:
    """Texts and labels of a merged batch, for every number of negative texts."""
    images = list(map(labelled, content["inputs"]))
    objects, relations = (
        LabelVocabulary.from_counts(content[f"{part}_freq"]) for part in ("object", "relationship")
    )
    for name, case in content["cases"].items():
        first, _, second = case["strategy"].partition("+")
        strategies = STRATEGIES[first], STRATEGIES[second or first]
        sampling = NegativeSampling(objects, relations, case["negative_text_sampling"], *strategies)
        merged = merge(images, sampling, random.Random(case["python_random_seed"]))
        compare_batch(f"sampling, {name}", merged, case, report)


def labelled(image: dict[str, Any]) -> LabelledTriplets:
    count = len(image["obj_labels"])
    relations = len(image["verb_classes"])
    ends = [torch.tensor(image[key], dtype=torch.long) for key in ("sub_labels", "obj_labels")]
    labels = torch.tensor(image["verb_labels"]).reshape(count, relations)
    triplets = Triplets(torch.zeros(count, 4), torch.zeros(count, 4), *ends, labels)
    return LabelledTriplets(triplets, tuple(image["obj_classes"]), tuple(image["verb_classes"]))


def compare_batch(
    section: str, batch: LabelledBatch, expected: dict[str, Any], report: Report
) -> None:
    report.require(section, "object texts", list(batch.texts.objects) == expected["obj_texts"])
    report.require(section, "relation texts", list(batch.texts.relations) == expected["verb_texts"])
    report.require(section, "images", len(batch.triplets) == len(expected["targets"]))
    for index, (ours, theirs) in enumerate(zip(batch.triplets, expected["targets"], strict=False)):
        compare_labels(f"{section}, image {index}", ours, theirs, report)


def compare_labels(
    section: str, triplets: Triplets, expected: dict[str, Any], report: Report
) -> None:
    report.require(
        section, "subject labels", triplets.subject_labels.tolist() == expected["sub_labels"]
    )
    report.require(
        section, "object labels", triplets.object_labels.tolist() == expected["obj_labels"]
    )
    report.require(
        section, "relation labels", triplets.relation_labels.tolist() == expected["verb_labels"]
    )


def scene_annotation(image: Mapping[str, Any], threshold: float = 0.0) -> SceneAnnotation:
    """An entry of scene_graphs.json with one name per object, without relations of a confidence
    below the threshold.
    """
    objects = [
        SceneObject(item["object_id"], item["names"], (item["x"], item["y"], item["w"], item["h"]))
        for item in image["objects"]
    ]
    relations = [
        SceneRelation(
            item["subject_id"], item["object_id"], item["predicate"], item.get("confidence")
        )
        for item in image["relationships"]
        if item.get("confidence") is None or item["confidence"] >= threshold
    ]
    return SceneAnnotation(image["image_id"], tuple(objects), tuple(relations))


def check_annotation(content: dict[str, Any], report: Report) -> None:
    """Targets of an annotated image, as in validation: resized, not augmented."""
    width, height = content["image_size_wh"]
    new_width, new_height = resized(width, height)
    (annotation,) = content["annotation"]
    graph = scene_annotation(annotation, content["relation_threshold"])
    for name, case in content["cases"].items():
        section = f"annotation, {name}"
        expected = case["target"]
        scene = label_scene(graph, width, height, case["num_queries"] // 2)
        scene = scene.resized(new_width / width, new_height / height)
        labelled = scene.labelled_triplets(new_width, new_height)
        report.require(section, "size", [new_height, new_width] == expected["size"])
        report.require(section, "image_id", graph.image_id == expected["image_id"])
        report.require(section, "labels", scene.labels.tolist() == expected["labels"])
        report.require(
            section, "object texts", list(labelled.object_texts) == expected["obj_classes"]
        )
        report.require(
            section, "relation texts", list(labelled.relation_texts) == expected["verb_classes"]
        )
        compare_labels(section, labelled.triplets, expected, report)
        normalised = scene.resized(1 / new_width, 1 / new_height).boxes
        boxes = torch.cat(
            ((normalised[:, :2] + normalised[:, 2:]) / 2, normalised[:, 2:] - normalised[:, :2]), 1
        )
        report.compare(section, "boxes", boxes, torch.tensor(expected["boxes"]))
        report.compare(
            section,
            "subject boxes",
            labelled.triplets.subject_boxes,
            torch.tensor(expected["sub_boxes"]),
        )
        report.compare(
            section,
            "object boxes",
            labelled.triplets.object_boxes,
            torch.tensor(expected["obj_boxes"]),
        )


def check_evaluators(content: dict[str, Any], report: Report) -> None:
    """RLIPv2's evaluators on a few random predictions."""
    hico.check_small(content["hico"], "evaluators, hico", report)
    vcoco.check_small(
        content["vcoco_in_training_evaluator"], "evaluators, vcoco in training", report
    )
    open_images.check_small(content["oi_sgg"], "evaluators, open images", report)


def main(arguments: list[str]) -> int:
    return compare_folders("misc", check_folder, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
