"""V-COCO as RLIPv2 validates on it during training: 11-point AP of verbs, on the same detections as HICO-DET's.

Not comparable with what papers report, which `vcoco` computes. Verbs with two roles are two classes; the label after
the last object's stands for "no object", which every verb may have. A true interaction without object is found by
its person alone. What is found in an image without true boxes is wrong.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rlip_model.evaluation.inputs import Array, EvaluationImage
from rlip_model.evaluation.scores import ClassScores, Tally, mean
from rlip_model.evaluation.triplets import TripletTable, best_triplets, blocks, ground_truth_triplets, match

MOST_DETECTIONS = 100  # per image
VERBS = (
    "hold_obj",
    "stand",
    "sit_instr",
    "ride_instr",
    "walk",
    "look_obj",
    "hit_instr",
    "hit_obj",
    "eat_obj",
    "eat_instr",
    "jump_instr",
    "lay_instr",
    "talk_on_phone_instr",
    "carry_obj",
    "throw_obj",
    "catch_obj",
    "cut_instr",
    "cut_obj",
    "run",
    "work_on_computer_instr",
    "ski_instr",
    "surf_instr",
    "skateboard_instr",
    "smile",
    "drink_instr",
    "kick_obj",
    "point_instr",
    "read_obj",
    "snowboard_instr",
)
LEFT_OUT = ("stand", "walk", "run", "smile", "point_instr")  # of "mAP_thesis": no object, or too few instances


@dataclass(frozen=True)
class VcocoTrainingScores:
    """per_class: classes are places in `verbs`."""

    verbs: tuple[str, ...]
    per_class: ClassScores

    def summary(self) -> dict[str, float]:
        """AP of every verb that is true somewhere, their mean, and that of the verbs with well-known roles, 0 for
        those true nowhere: by the published names."""
        found = zip(self.per_class.classes.tolist(), self.per_class.average_precision.tolist(), strict=True)
        precisions = {self.verbs[number]: precision for number, precision in found}
        thesis = [precisions.get(verb, 0.0) for verb in self.verbs if verb not in LEFT_OUT]
        return {
            **{f"AP_{verb}": precision for verb, precision in precisions.items()},
            "mAP_all": self.per_class.mean(),
            "mAP_thesis": mean(np.array(thesis)),
        }


def evaluate_vcoco_training(
    images: Iterable[EvaluationImage], possible: Array, verbs: Sequence[str] = VERBS
) -> VcocoTrainingScores:
    """Scores of a data set, read as a stream.

    Args:
        images: scores are final (verb x object), verbs places in `verbs`, labels from 0 to that of "no object".
        possible: `[verbs, objects]`, 0 for what cannot be, without a column for "no object".
        verbs: "<action>_<role>" or "<action>".

    Raises:
        EvaluationError: labels out of range, numbers that are not finite, boxes inside out.
    """
    possible = np.append(possible, np.ones((len(verbs), 1)), 1)
    tally = Tally()
    for block in blocks(images):
        for image in block:
            image.ground_truth.check(image.name, possible.shape[1], len(verbs), objectless=True)
            image.predicted.check(image.name, possible.shape[1], len(verbs))
        true, found = ground_truth_triplets(block), best_triplets(block, MOST_DETECTIONS, possible)
        claims = match(found, true, _groups(found, len(verbs)), _groups(true, len(verbs)))
        tally.add(true.predicates, found.predicates, found.scores, claims)
    return VcocoTrainingScores(tuple(verbs), tally.class_scores())


def _groups(triplets: TripletTable, num_verbs: int) -> Array:
    return triplets.image * num_verbs + triplets.predicates
