"""V-COCO as validated by RLIPv2 during training: 11-point AP of verbs, on the same detections as for HICO-DET.

It is not comparable with the numbers in papers, which `rlip_model.evaluation.vcoco` computes. Verbs with two roles are
two classes. The label after the last object stands for "no object", which every verb may have. A target without an
object is matched by its person alone. Predictions in an image without ground-truth boxes are false positives.
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
    "hold_obj", "stand", "sit_instr", "ride_instr", "walk", "look_obj", "hit_instr", "hit_obj", "eat_obj", "eat_instr",
    "jump_instr", "lay_instr", "talk_on_phone_instr", "carry_obj", "throw_obj", "catch_obj", "cut_instr", "cut_obj",
    "run", "work_on_computer_instr", "ski_instr", "surf_instr", "skateboard_instr", "smile", "drink_instr", "kick_obj",
    "point_instr", "read_obj", "snowboard_instr",
)  # fmt: skip
LEFT_OUT = ("stand", "walk", "run", "smile", "point_instr")  # of "mAP_thesis": no object, or too few instances


@dataclass(frozen=True)
class VcocoTrainingScores:
    """per_class: class numbers are indices into `verbs`."""

    verbs: tuple[str, ...]
    per_class: ClassScores

    def summary(self) -> dict[str, float]:
        """Measures under the published names: AP of every verb with targets, their mean, and "mAP_thesis".

        The latter leaves out `LEFT_OUT` and counts verbs without targets as 0.
        """
        scored = zip(self.per_class.classes.tolist(), self.per_class.average_precision.tolist(), strict=True)
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
    """Evaluate a dataset, read as a stream.

    Args:
        images: scores are final (verb x object); verbs are indices into `verbs`, labels go from 0 to that of "no
            object".
        possible: `[verbs, objects]`, 0 for impossible combinations, without a column for "no object".
        verbs: "<action>_<role>" or "<action>".

    Raises:
        EvaluationError: labels out of range, values that are not finite, inverted boxes.
    """
    possible = np.append(possible, np.ones((len(verbs), 1)), 1)
    tally = Tally()
    for block in blocks(images):
        for image in block:
            image.ground_truth.check(image.name, possible.shape[1], len(verbs), objectless=True)
            image.predicted.check(image.name, possible.shape[1], len(verbs))
        target, predicted = ground_truth_triplets(block), best_triplets(block, MOST_DETECTIONS, possible)
        matches = match(predicted, target, _groups(predicted, len(verbs)), _groups(target, len(verbs)))
        tally.add(target.predicates, predicted.predicates, predicted.scores, matches)
    return VcocoTrainingScores(tuple(verbs), tally.class_scores())


def _groups(triplets: TripletTable, num_verbs: int) -> Array:
    return triplets.image * num_verbs + triplets.predicates
