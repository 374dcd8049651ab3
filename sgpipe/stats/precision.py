"""Relations judged correct or not, also by ground truth: precision with intervals, calibration, thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.storage.run_folder import GroundTruth

_Z, _TAIL = 1.959964, 0.025  # 95%
FEWEST = 10  # judged relations that a suggested threshold needs
_BINS = 10


@dataclass(frozen=True)
class PrecisionEstimate:
    """How many judged relations are correct; `low` and `high` are Wilson's 95% interval of their share."""

    correct: int
    judged: int

    @property
    def value(self) -> float | None:
        return self.correct / self.judged if self.judged else None

    @property
    def low(self) -> float:
        return self._interval(-1)

    @property
    def high(self) -> float:
        return self._interval(1)

    def _interval(self, side: int) -> float:
        return wilson(self.correct / self.judged, self.judged, side) if self.judged else (side + 1) / 2

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, of {self.judged:,})"


def wilson(share: float, count: float, side: int) -> float:
    """Return the lower (side -1) or upper (side 1) end of Wilson's interval for a share of `count`.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return min(max((middle + side * half) / (1 + _Z**2 / count), 0.0), 1.0)


@dataclass(frozen=True)
class StratifiedEstimate:
    """The precision of relations of which a stratified sample was judged, each stratum weighted by its relations.

    Attributes:
        correct, judged: in the sample, not weighted.
        value: of the strata with a judged relation; None if there is none.
        low, high: the 95% interval of all relations; those of strata without a judged one may be correct or not.
        covered: share of the relations that are in strata with a judged one.
    """

    correct: int
    judged: int
    value: float | None
    low: float
    high: float
    covered: float

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, of {self.judged:,})"


Precision: TypeAlias = PrecisionEstimate | StratifiedEstimate


def estimate_stratified(population: ArrayLike, judged: ArrayLike, correct: ArrayLike) -> list[StratifiedEstimate]:
    """Return the precisions of several sets of relations, each from its own strata.

    Args:
        population: relations `[sets, strata]`; weights, so that fractions are allowed.
        judged, correct: how many of them were judged, and judged correct, `[sets, strata]`.
    """
    seen, right = (np.asarray(values, np.int64) for values in (judged, correct))
    size = np.maximum(np.asarray(population, np.float64), seen)
    known = np.where(seen > 0, size, 0)
    total, covered = size.sum(1), known.sum(1)
    share = covered / np.where(total > 0, total, 1)
    low, high = stratified_interval(known, seen, right)
    values = (known * right / np.maximum(seen, 1)).sum(1) / np.where(covered > 0, covered, 1)
    return [
        StratifiedEstimate(
            int(right[at].sum()),
            int(seen[at].sum()),
            float(values[at]) if covered[at] else None,
            float(low[at] * share[at]) if covered[at] else 0.0,
            float(1 - share[at] * (1 - high[at])) if covered[at] else 1.0,
            float(share[at]),
        )
        for at in range(len(size))
    ]


def stratified_interval(
    population: NDArray[np.float64], judged: NDArray[np.int64], correct: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return both ends of the 95% interval of the share that is correct, `[sets]`; arguments `[sets, strata]`.

    The exact interval (Clopper and Pearson 1934) of the effective sample size: as many simple judgements as have the
    variance of the stratified ones, fewer where strata have few (Korn and Graubard 1998). For the variance, each
    stratum gets half a correct and half an incorrect judgement more, so that a unanimous one has some.
    """
    from scipy.special import betaincinv, stdtrit

    total = np.maximum(population.sum(1), 1e-12)
    weight, seen = population / total[:, None], np.maximum(judged, 1)
    share = (correct + 0.5) / (judged + 1)
    left = np.maximum(population - judged, 0) / np.maximum(population - 1, 1)  # a census has no error
    variance = weight**2 * share * (1 - share) / seen * left
    spread = np.maximum((variance**2 / np.maximum(judged - 1, 1)).sum(1), 1e-30)
    freedom = np.clip(variance.sum(1) ** 2 / spread, 1, 1e6)  # Satterthwaite's
    middle = (weight * share).sum(1)
    size = middle * (1 - middle) / np.maximum(variance.sum(1), 1e-12) * (_Z / stdtrit(freedom, 1 - _TAIL)) ** 2
    mean = (weight * correct / seen).sum(1)
    right, wrong = size * mean, size * (1 - mean)
    low = np.where(right > 1e-9, betaincinv(np.maximum(right, 1e-9), wrong + 1, _TAIL), 0)
    high = np.where(wrong > 1e-9, betaincinv(right + 1, np.maximum(wrong, 1e-9), 1 - _TAIL), 1)
    low = np.maximum(low, correct.sum(1) / total)
    return low, np.minimum(np.maximum(high, low), 1 - (judged - correct).sum(1) / total)


@dataclass(frozen=True)
class CalibrationBin:
    """Relations with a confidence from `start` to `stop`: their mean confidence and their precision."""

    start: float
    stop: float
    confidence: float
    precision: PrecisionEstimate


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and the precision of what it keeps.

    Attributes:
        kept: how many of the judged relations it keeps. `relations`: how many of the run; None if that was not counted.
    """

    threshold: float
    kept: int
    precision: Precision
    relations: int | None = None

    @property
    def text(self) -> str:
        """The threshold as a user can give it to --threshold, which keeps exactly these relations."""
        return threshold_text(self.threshold)


def threshold_text(threshold: float) -> str:
    """A threshold with at least three decimals, and all that it has."""
    digits = np.format_float_positional(threshold, trim="-").partition(".")[2]
    return f"{threshold:.{max(3, len(digits))}f}"


def short_threshold(confidence: float) -> float:
    """A confidence rounded down to three significant digits, so that a threshold of it keeps the confidence."""
    if confidence <= 0:
        return 0.0
    exact = Decimal(float(confidence))
    short = exact.quantize(Decimal(1).scaleb(exact.adjusted() - 2), ROUND_FLOOR)
    above = short + Decimal(1).scaleb(exact.adjusted() - 2)
    # Shards store 0.7 as 0.69999999, and a threshold of 0.7 keeps it.
    return float(above if np.float32(above) <= np.float32(confidence) else short)


@dataclass(frozen=True, eq=False)
class JudgedRelations:
    """The confidences of judged relations, and whether they are correct; both `[relations]`."""

    confidence: NDArray[np.float32]
    correct: NDArray[np.bool_]

    def at(self, threshold: float) -> ThresholdChoice:
        """The relations that a threshold keeps."""
        kept = self.confidence >= np.float32(threshold)
        count = int(kept.sum())
        return ThresholdChoice(threshold, count, PrecisionEstimate(int(self.correct[kept].sum()), count))

    def candidates(self) -> list[float]:
        """Thresholds of three significant digits that keep ten relations or more, each other ones; the lowest first."""
        values = np.sort(self.confidence)[::-1][FEWEST - 1 :]
        return sorted({short_threshold(float(value)) for value in np.unique(values)})

    def reliability(self) -> list[CalibrationBin]:
        """Ten bins of equal width, without the empty ones."""
        index = np.minimum((self.confidence.astype(np.float64) * _BINS).astype(int), _BINS - 1)
        bins = []
        for at in range(_BINS):
            inside = index == at
            if count := int(inside.sum()):
                precision = PrecisionEstimate(int(self.correct[inside].sum()), count)
                mean = float(self.confidence[inside].mean())
                bins.append(CalibrationBin(at / _BINS, (at + 1) / _BINS, mean, precision))
        return bins

    def calibration_error(self) -> float | None:
        """Expected calibration error (ECE): mean distance between confidence and precision, weighted by bin size."""
        bins = self.reliability()
        total = sum(part.precision.judged for part in bins)
        distances = (abs(part.confidence * part.precision.judged - part.precision.correct) for part in bins)
        return sum(distances) / total if total else None

    def suggest(self, target: float) -> ThresholdChoice | None:
        """The lowest threshold with a precision of at least `target`, based on ten relations or more; None without any.

        The threshold has three significant digits.

        Raises UserError: the target is not above 0 and at most 1.
        """
        check_target(target)
        thresholds = np.array(self.candidates())
        order = np.argsort(self.confidence, kind="stable")
        first = np.searchsorted(self.confidence[order], thresholds.astype(np.float32))
        correct = np.append(np.cumsum(self.correct[order][::-1])[::-1], 0)
        enough = correct[first] >= target * (len(order) - first)
        return self.at(float(thresholds[np.argmax(enough)])) if enough.any() else None


@dataclass(frozen=True)
class ScoreQuality:
    """How well a model's scores, such as those of the second opinion, tell correct from incorrect relations.

    Attributes:
        judged: relations that are judged and have a score.
        auc: how probable it is that a correct relation has a higher score than an incorrect one (area under the ROC
            curve); None without either kind. `confidence_auc`: the same of the confidence, of all judged relations.
        calibration_error: mean distance between score and precision.
    """

    judged: int
    auc: float | None
    confidence_auc: float | None
    calibration_error: float | None
    reliability: list[CalibrationBin]


def score_quality(scored: JudgedRelations, confidence: JudgedRelations) -> ScoreQuality:
    """Compare scores of judged relations with their confidences; some of the relations may lack a score."""
    return ScoreQuality(
        judged=len(scored.correct),
        auc=area_under_roc(scored.confidence, scored.correct),
        confidence_auc=area_under_roc(confidence.confidence, confidence.correct),
        calibration_error=scored.calibration_error(),
        reliability=scored.reliability(),
    )


def area_under_roc(scores: NDArray[np.float32], correct: NDArray[np.bool_]) -> float | None:
    """Return the share of pairs of a correct and an incorrect relation in which the correct one has the higher score.

    Equal scores count half (Mann and Whitney 1947). None without such a pair.
    """
    from scipy.stats import rankdata

    right = int(correct.sum())
    pairs = right * (len(correct) - right)
    if not pairs:
        return None
    return float((rankdata(scores)[correct].sum() - right * (right + 1) / 2) / pairs)


def check_target(target: float) -> None:
    """Raises UserError: the target precision is not above 0 and at most 1."""
    if not 0 < target <= 1:
        raise UserError(f"precision {target}: expected a number above 0, at most 1")


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
