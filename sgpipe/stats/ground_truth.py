"""A run compared with its ground truth: precision, calibration, and thresholds that reach a precision."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgpipe.calibration import Calibration
from sgpipe.files.locations import Location
from sgpipe.stats.precision import (
    CalibrationBin,
    JudgedRelations,
    Precision,
    ScoreQuality,
    ThresholdChoice,
    score_quality,
)
from sgpipe.storage.run_folder import GroundTruth


@dataclass(frozen=True)
class PredicateThreshold:
    """A predicate: its precision at the threshold in use, and the threshold that reaches the target, if any does."""

    predicate: str
    relations: int
    at_threshold: Precision
    suggested: ThresholdChoice | None


@dataclass(frozen=True)
class GroundTruthMeasures:
    """A run compared with its ground truth.

    Attributes:
        images, relations: how many were compared.
        threshold, precision, recall: at the threshold in use. `related_precision` counts only pairs that the ground
            truth relates in some way; it is more telling where the ground truth is incomplete.
        average_precision: of all relations in one ranking.
        calibration_error: mean distance between confidence and precision.
        target: the precision for which thresholds are suggested.
        opinion: how good the second opinion is; None: the run has none.
    """

    images: int
    relations: int
    threshold: float
    precision: Precision
    recall: float | None
    related_precision: float | None
    average_precision: float | None
    calibration_error: float | None
    reliability: list[CalibrationBin]
    curve: list[ThresholdChoice]
    target: float
    suggested: ThresholdChoice | None
    predicates: list[PredicateThreshold]
    opinion: ScoreQuality | None = None


def measure_against_ground_truth(
    run: Location,
    ground_truth: GroundTruth,
    threshold: float,
    target: float,
    thresholds: Sequence[float],
    calibration: Calibration | None = None,
    *,
    has_opinion: bool = False,
) -> GroundTruthMeasures:
    """Compare a run with its ground truth.

    Args:
        target: the precision for which thresholds are suggested.
        thresholds: those of the curve.
        calibration: of the tagger; everything is of its probabilities then.
        has_opinion: whether the run has a second opinion.

    Raises UserError: a folder is not a run, the two have no image in common, or a number is out of range.
    """
    # Imports torch and spaCy, which takes seconds that other audits need not spend.
    from sgpipe.evaluation.label_quality.comparison import label_quality

    result = label_quality(run, ground_truth, threshold=threshold, calibration=calibration)
    relations = result.relations
    judged = JudgedRelations(relations.confidence.astype(np.float32), relations.true_positive)
    numbers = {name: number for number, name in enumerate(result.names)}
    opinion, rows = None, []
    if has_opinion:
        scored = label_quality(run, ground_truth, source="opinion").relations
        opinion = score_quality(JudgedRelations(scored.confidence.astype(np.float32), scored.true_positive), judged)
    for row in result.predicates:
        own = relations.predicate == numbers[row.predicate]
        part = JudgedRelations(judged.confidence[own], judged.correct[own])
        if own.any():
            rows.append(
                PredicateThreshold(row.predicate, int(own.sum()), part.at(threshold).precision, part.suggest(target))
            )
    return GroundTruthMeasures(
        images=result.counts["images compared"],
        relations=len(relations),
        threshold=threshold,
        precision=judged.at(threshold).precision,
        recall=_without_nan(result.at_threshold.recall),
        related_precision=_without_nan(result.related_precision),
        average_precision=_without_nan(result.average_precision),
        calibration_error=judged.calibration_error(),
        reliability=judged.reliability(),
        curve=[judged.at(each) for each in thresholds],
        target=target,
        suggested=judged.suggest(target),
        predicates=sorted(rows, key=lambda row: -row.relations),
        opinion=opinion,
    )


def _without_nan(value: float) -> float | None:
    """None for NaN, the mean of nothing: JSON has no NaN."""
    return None if math.isnan(value) else value
