"""V-COCO's official figures, and RLIPv2's of validation in training: 11-point AP, not comparable
with papers.

Verbs with two roles are two classes; the label after the last object stands for "no object", which
every verb may have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array, EvaluationImage
from rlip_model.evaluation.scores import ClassScores, Tally, mean
from rlip_model.evaluation.triplets import (
    TripletTable,
    best_triplets,
    blocks,
    ground_truth_triplets,
    match,
)
from rlip_model.evaluation.vcoco import VcocoScores, evaluate_vcoco
from rlip_model.evaluation.vcoco_files import (
    people_images,
    read_actions,
    read_people,
    read_predicted_people,
)
from tests.parity.evaluation.compare import compare, pair_images, small_set, stable_settings
from tests.parity.golden import Report

MOST_DETECTIONS = 100  # per image
VERBS = (
    "hold_obj", "stand", "sit_instr", "ride_instr", "walk", "look_obj", "hit_instr", "hit_obj", "eat_obj", "eat_instr",
    "jump_instr", "lay_instr", "talk_on_phone_instr", "carry_obj", "throw_obj", "catch_obj", "cut_instr", "cut_obj",
    "run", "work_on_computer_instr", "ski_instr", "surf_instr", "skateboard_instr", "smile", "drink_instr", "kick_obj",
    "point_instr", "read_obj", "snowboard_instr",
)  # fmt: skip
# of "mAP_thesis": no object, or too few instances
LEFT_OUT = (
    "stand",
    "walk",
    "run",
    "smile",
    "point_instr",
)


def check_set(
    inputs: dict[str, Any], expected: dict[str, Any], section: str, report: Report
) -> None:
    scores = scores_of(
        inputs["coco"], inputs["vsrl"], inputs["detections"], dict.fromkeys(inputs["image_ids"])
    )
    settings = {name: figures for name, figures in expected.items() if name != "env"}
    for name, theirs in stable_settings(report, section, settings, "stable").items():
        compare(report, f"{section}, {name}", figures_of(scores), theirs)


def scores_of(
    coco: dict[str, Any],
    verbs: list[dict[str, Any]],
    detections: list[dict[str, Any]],
    images: Collection[int],
) -> VcocoScores:
    actions = read_actions(verbs)
    people = read_people(coco, verbs)
    predicted_people = read_predicted_people(
        [item for item in detections if item["image_id"] in images], actions
    )
    chosen = {image: people[image] for image in images}
    return evaluate_vcoco(people_images(chosen, predicted_people, actions), actions)


def figures_of(scores: VcocoScores) -> dict[str, Any]:
    names = scores.actions.names
    columns = {"per_action": scores.agent_precisions(), "npos": scores.positives}
    agent = {
        column: dict(zip(names, values.tolist(), strict=True)) for column, values in columns.items()
    }
    figures: dict[str, Any] = {"agent": {"mean": scores.agent_mean(), **agent}}
    for scenario in scores.roles:
        precisions = scores.role_precisions(scenario).tolist()
        figures[f"scenario_{scenario}"] = {
            "mean": scores.role_mean(scenario, without_point=False),
            "mean_without_point": scores.role_mean(scenario),
            "per_role": dict(zip(scores.actions.role_names(), precisions, strict=True)),
        }
    return figures


def check_micro(case: dict[str, Any], section: str, report: Report) -> None:
    """Rows are persons: [annotation, does "hold", role's annotation]; all of them stand and
    walk.
    """
    persons, labels, objects = map(list, zip(*case["rows"], strict=True))
    everyone = [1] * len(persons)
    verbs = [verb("hold", persons, labels, {"obj": objects})]
    verbs += [verb(action, persons, everyone, {}) for action in ("stand", "walk")]
    coco = {"images": [{"id": 1, "width": 640, "height": 480}], "annotations": case["annotations"]}
    detections = []
    for person, object_, score in case["dets"]:
        agents = {f"{action}_agent": score for action in ("hold", "stand", "walk")}
        detections.append(
            {"image_id": 1, "person_box": person, "hold_obj": [*object_, score], **agents}
        )
    scores = scores_of(coco, verbs, detections, [1])
    ours = {
        f"S{scenario}_hold_obj": float(scores.role_precisions(scenario)[0])
        for scenario in scores.roles
    }
    agents = dict(zip(scores.actions.names, scores.agent_precisions().tolist(), strict=True))
    compare(report, section, {**ours, "agent": agents}, case["expected"])


def verb(
    name: str, persons: list[int], labels: list[int], roles: dict[str, list[int]]
) -> dict[str, Any]:
    objects = [*persons, *(number for numbers in roles.values() for number in numbers)]
    ids = {"ann_id": persons, "label": labels, "role_object_id": objects}
    return {"action_name": name, "role_name": ["agent", *roles], **ids}


def check_training(
    inputs: dict[str, Any], expected: dict[str, Any], section: str, report: Report
) -> None:
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


@dataclass(frozen=True)
class VcocoTrainingScores:
    """per_class: class numbers are indices into `verbs`."""

    verbs: tuple[str, ...]
    per_class: ClassScores

    def summary(self) -> dict[str, float]:
        """AP of each verb with targets, their mean, and "mAP_thesis": without `LEFT_OUT`, 0 without
        targets.
        """
        scored = zip(
            self.per_class.classes.tolist(), self.per_class.average_precision.tolist(), strict=True
        )
        precisions = {self.verbs[number]: precision for number, precision in scored}
        thesis = [precisions.get(verb, 0.0) for verb in self.verbs if verb not in LEFT_OUT]
        return {
            **{f"AP_{verb}": precision for verb, precision in precisions.items()},
            "mAP_all": self.per_class.mean(),
            "mAP_thesis": mean(np.array(thesis)),
        }


def evaluate_vcoco_training(
    images: Iterable[EvaluationImage], possible: Array, verbs: Sequence[str] = VERBS
) -> VcocoTrainingScores:
    """Of a stream with final scores; `possible[verb, object]`: 0 where impossible, without a column
    for "no object".
    """
    possible = np.append(possible, np.ones((len(verbs), 1)), 1)
    tally = Tally()
    for block in blocks(images):
        for image in block:
            image.ground_truth.check(image.name, possible.shape[1], len(verbs), objectless=True)
            image.predicted.check(image.name, possible.shape[1], len(verbs))
        target = ground_truth_triplets(block)
        predicted = best_triplets(block, MOST_DETECTIONS, possible)
        matches = match(
            predicted, target, _groups(predicted, len(verbs)), _groups(target, len(verbs))
        )
        tally.add(target.predicates, predicted.predicates, predicted.scores, matches)
    return VcocoTrainingScores(tuple(verbs), tally.class_scores())


def _groups(triplets: TripletTable, num_verbs: int) -> Array:
    return triplets.image * num_verbs + triplets.predicates
