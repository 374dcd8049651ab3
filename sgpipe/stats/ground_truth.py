"""A run compared with its ground truth: its precision, its calibration, and thresholds for a
precision.
"""

from dataclasses import dataclass

import numpy as np

from sgpipe.calibration import Calibration
from sgpipe.errors import check_share
from sgpipe.stats.precision import (
    CalibrationQuality,
    JudgedRelations,
    PrecisionEstimate,
    ScoreQuality,
    ThresholdChoice,
    score_quality,
)
from sgpipe.stats.thresholds import suggest
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import GroundTruth


@dataclass(frozen=True)
class PredicateThreshold:
    """A predicate: its precision at the threshold in use, and the suggested one for the target, if
    any.
    """

    predicate: str
    relations: int
    at_threshold: PrecisionEstimate
    suggested: ThresholdChoice | None


@dataclass(frozen=True)
class GroundTruthMeasures(CalibrationQuality):
    """A run compared with its ground truth: its precision at `threshold`, and thresholds for the
    precision `target`.
    """

    images: int
    relations: int
    threshold: float
    precision: PrecisionEstimate
    target: float
    suggested: ThresholdChoice | None
    predicates: list[PredicateThreshold]
    vlm_score: ScoreQuality | None


def measure_against_ground_truth(
    database: Database,
    ground_truth: GroundTruth,
    threshold: float,
    target: float,
    calibration: Calibration | None,
) -> GroundTruthMeasures:
    """Compare an open run with its ground truth; with a calibration of the tagger, everything is of
    its probabilities.

    Raises:
        UserError: the two have no image in common, or a number is out of range.
    """
    # Imports torch and spaCy, which takes seconds that other audits need not spend.
    from sgpipe.evaluation.label_quality import LabelQuality, label_quality

    def judged_by(quality: LabelQuality) -> JudgedRelations:
        rows = quality.relations
        return JudgedRelations(rows.confidence.astype(np.float32), rows.true_positive, rows.image)

    check_share("precision", target)
    result = label_quality(
        database.root, ground_truth, threshold=threshold, calibration=calibration
    )
    judged = judged_by(result)
    vlm_score = None
    if database.has_vlm_scores:
        vlm_score = score_quality(
            judged_by(label_quality(database.root, ground_truth, source="vlm_score")), judged
        )
    numbers = {name: number for number, name in enumerate(result.names)}
    predicates = []
    for row in result.predicates:
        part = judged[result.relations.predicate == numbers[row.predicate]]
        if len(part):
            precision = part.at(threshold).precision
            suggested = suggest(part, target)
            predicates.append(PredicateThreshold(row.predicate, len(part), precision, suggested))
    return GroundTruthMeasures(
        **vars(judged.calibration),
        images=result.counts["images compared"],
        relations=len(result.relations),
        threshold=threshold,
        precision=judged.at(threshold).precision,
        target=target,
        suggested=suggest(judged, target),
        predicates=sorted(predicates, key=lambda row: -row.relations),
        vlm_score=vlm_score,
    )
