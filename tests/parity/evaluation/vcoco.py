"""V-COCO's official figures, and those of validation during training."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import numpy as np

from rlip_model.evaluation.vcoco import VcocoScores, evaluate_vcoco
from rlip_model.evaluation.vcoco_files import people_images, read_actions, read_people, read_predicted_people
from tests.parity.evaluation.compare import compare, stable_settings
from tests.parity.evaluation.forms import pair_images, small_set
from tests.parity.evaluation.vcoco_training import VERBS, evaluate_vcoco_training
from tests.parity.golden import Report


def check_set(inputs: dict[str, Any], expected: dict[str, Any], section: str, report: Report) -> None:
    scores = scores_of(inputs["coco"], inputs["vsrl"], inputs["detections"], dict.fromkeys(inputs["image_ids"]))
    settings = {name: figures for name, figures in expected.items() if name != "env"}
    for name, theirs in stable_settings(report, section, settings, "stable").items():
        compare(report, f"{section}, {name}", figures_of(scores), theirs)


def scores_of(
    coco: dict[str, Any], verbs: list[dict[str, Any]], detections: list[dict[str, Any]], images: Collection[int]
) -> VcocoScores:
    actions = read_actions(verbs)
    people = read_people(coco, verbs)
    found = read_predicted_people([item for item in detections if item["image_id"] in images], actions)
    chosen = {image: people[image] for image in images}
    return evaluate_vcoco(people_images(chosen, found, actions), actions)


def figures_of(scores: VcocoScores) -> dict[str, Any]:
    names = scores.actions.names
    figures: dict[str, Any] = {
        "agent": {
            "mean": scores.agent_mean(),
            "per_action": dict(zip(names, scores.agent_precisions().tolist(), strict=True)),
            "npos": dict(zip(names, scores.positives.tolist(), strict=True)),
        }
    }
    for scenario in scores.roles:
        precisions = scores.role_precisions(scenario).tolist()
        figures[f"scenario_{scenario}"] = {
            "mean": scores.role_mean(scenario, without_point=False),
            "mean_without_point": scores.role_mean(scenario),
            "per_role": dict(zip(scores.actions.role_names(), precisions, strict=True)),
        }
    return figures


def check_micro(case: dict[str, Any], section: str, report: Report) -> None:
    """Rows are persons: [annotation, does "hold", role's annotation]; all of them stand and walk."""
    persons, labels, objects = (list(column) for column in zip(*case["rows"], strict=True))
    everyone = [1] * len(persons)
    verbs = [verb("hold", persons, labels, {"obj": objects})]
    verbs += [verb(action, persons, everyone, {}) for action in ("stand", "walk")]
    coco = {"images": [{"id": 1, "width": 640, "height": 480}], "annotations": case["annotations"]}
    detections = [
        {
            "image_id": 1,
            "person_box": person,
            "hold_obj": [*object_, score],
            **{f"{action}_agent": score for action in ("hold", "stand", "walk")},
        }
        for person, object_, score in case["dets"]
    ]
    scores = scores_of(coco, verbs, detections, [1])
    ours = {f"S{scenario}_hold_obj": float(scores.role_precisions(scenario)[0]) for scenario in scores.roles}
    agents = dict(zip(scores.actions.names, scores.agent_precisions().tolist(), strict=True))
    compare(report, section, {**ours, "agent": agents}, case["expected"])


def verb(name: str, persons: list[int], labels: list[int], roles: dict[str, list[int]]) -> dict[str, Any]:
    return {
        "action_name": name,
        "role_name": ["agent", *roles],
        "ann_id": persons,
        "label": labels,
        "role_object_id": [*persons, *(number for numbers in roles.values() for number in numbers)],
    }


def check_training(inputs: dict[str, Any], expected: dict[str, Any], section: str, report: Report) -> None:
    verbs = inputs["verb_classes"]
    images = pair_images(inputs["images"], section, "hois", len(verbs))
    scores = evaluate_vcoco_training(images, np.array(inputs["correct_mat"]), verbs)
    truths = zip(scores.per_class.classes.tolist(), scores.per_class.targets.tolist(), strict=True)
    counts = {verbs[number]: count for number, count in truths}
    ours = {"metrics": scores.summary(), "n_gt": {**dict.fromkeys(verbs, 0), **counts}}
    compare(report, section, ours, expected)


def check_small(content: dict[str, Any], section: str, report: Report) -> None:
    """The few objects and images of the model's reference folder."""
    images = pair_images(small_set(content), section, "hois", len(VERBS))
    scores = evaluate_vcoco_training(images, np.array(content["correct_mat"]))
    compare(report, section, scores.summary(), content["result"])
