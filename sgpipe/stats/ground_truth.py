"""How good the confidences are where the truth is known: precision, calibration, thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sgpipe.stats.calibration import Bin, Choice, Judged, Precision


@dataclass(frozen=True)
class KnownTruth:
    """Shards of what is true of the images of a run.

    Attributes:
        wanted: shards of what should be found; None: all that is true.
        image_data: Visual Genome's image_data.json, where that is the truth of COCO's images.
    """

    true: Path
    wanted: Path | None = None
    image_data: Path | None = None


@dataclass(frozen=True)
class PredicateChoice:
    """A predicate: its precision at the threshold in use, and the threshold that reaches the target, if any does."""

    predicate: str
    relations: int
    at_threshold: Precision
    suggested: Choice | None


@dataclass(frozen=True)
class TruthMeasures:
    """A run compared with the truth.

    Attributes:
        images, relations: that could be compared.
        threshold, precision, recall: at the threshold in use; `related_precision` counts only pairs that the truth
            relates in some way, and says more where the truth is incomplete.
        average_precision: of all relations in one ranking.
        calibration_error: mean distance of confidence and precision.
        target: the precision that thresholds are suggested for.
    """

    images: int
    relations: int
    threshold: float
    precision: Precision
    recall: float | None
    related_precision: float | None
    average_precision: float | None
    calibration_error: float | None
    reliability: list[Bin]
    curve: list[Choice]
    target: float
    suggested: Choice | None
    predicates: list[PredicateChoice]


def measure_truth(
    run: Path,
    truth: KnownTruth,
    threshold: float,
    target: float,
    thresholds: Sequence[float],
) -> TruthMeasures:
    """Compare a run with the truth.

    Args:
        target: the precision that thresholds are suggested for; `thresholds`: of the curve.

    Raises UserError: a folder is no run, they have no image in common, or a number is out of range.
    """
    from sgpipe.evaluation.label_quality.comparison import (
        label_quality,  # torch and spaCy: seconds that other audits need not spend
    )

    found = label_quality(run, truth.true, wanted=truth.wanted, threshold=threshold, image_data=truth.image_data)
    relations = found.relations
    judged = Judged(relations.confidence.astype(np.float32), relations.right)
    numbers = {name: number for number, name in enumerate(found.names)}
    rows = []
    for row in found.predicates:
        own = relations.predicate == numbers[row.predicate]
        part = Judged(judged.confidence[own], judged.right[own])
        if own.any():
            rows.append(
                PredicateChoice(row.predicate, int(own.sum()), part.at(threshold).precision, part.suggest(target))
            )
    return TruthMeasures(
        images=found.counts["images compared"],
        relations=len(relations),
        threshold=threshold,
        precision=judged.at(threshold).precision,
        recall=_known(found.at_threshold.recall),
        related_precision=_known(found.related_precision),
        average_precision=_known(found.average_precision),
        calibration_error=judged.calibration_error(),
        reliability=judged.reliability(),
        curve=judged.curve(thresholds),
        target=target,
        suggested=judged.suggest(target),
        predicates=sorted(rows, key=lambda row: -row.relations),
    )


def _known(value: float) -> float | None:
    """A mean of nothing is None: JSON has no NaN."""
    return None if math.isnan(value) else value
