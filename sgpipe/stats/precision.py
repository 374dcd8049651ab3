"""Relations judged correct or not, also by ground truth: precision with intervals, calibration, thresholds.

benchmarks/interval_coverage.py measures how often the intervals contain the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgpipe.calibration import Calibration, Floats
from sgpipe.errors import check_share
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import GroundTruth

_Z, _TAIL = 1.959964, 0.025  # 95%
_FEW = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469)  # Student's t for 95% with 1, 2, … degrees of freedom
FEWEST = 10  # judged relations that a suggested threshold needs
_BINS = 10


@dataclass(frozen=True)
class PrecisionEstimate:
    """How many judged relations are correct, and the precision that they show, with its 95% interval.

    Of a stratified sample, `value` is of the strata with a judged relation, weighted by their relations (`covered`:
    their share of all), None if there is none; the interval is of all relations.
    """

    correct: int
    judged: int
    value: float | None
    low: float
    high: float
    covered: float = 1.0

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, of {self.judged:,})"


def estimate(correct: int, judged: int, design: float = 1.0) -> PrecisionEstimate:
    """Return the precision with Wilson's interval; `design`: as of `JudgedRelations`."""
    if not judged:
        return PrecisionEstimate(0, 0, None, 0.0, 1.0)
    share = correct / judged
    low, high = (float(wilson(share, judged / design, side)) for side in (-1, 1))
    return PrecisionEstimate(correct, judged, share, low, high)


def wilson(share: ArrayLike, count: ArrayLike, side: int) -> Floats:
    """Return the lower (side -1) or upper (side 1) ends of Wilson's (1927) intervals for shares of `count`."""
    share, count = np.asarray(share, np.float64), np.asarray(count, np.float64)
    half = _Z * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return np.clip((share + _Z**2 / (2 * count) + side * half) / (1 + _Z**2 / count), 0, 1)


def estimate_stratified(population: ArrayLike, judged: ArrayLike, correct: ArrayLike) -> list[PrecisionEstimate]:
    """Return the precisions of sets of relations (or weights), some of them judged, and correct; `[sets, strata]`."""
    seen, right = (np.asarray(values, np.int64) for values in (judged, correct))
    size = np.maximum(np.asarray(population, np.float64), seen)
    known = np.where(seen > 0, size, 0)
    total, covered = size.sum(1), known.sum(1)
    share = covered / np.where(total > 0, total, 1)
    low, high = stratified_interval(known, seen, right)
    values = (known * right / np.maximum(seen, 1)).sum(1) / np.where(covered > 0, covered, 1)
    ends = low * share, 1 - share * (1 - high)
    columns = (each.tolist() for each in (right.sum(1), seen.sum(1), values, *ends, share))
    return [PrecisionEstimate(r, n, v if s else None, a, b, s) for r, n, v, a, b, s in zip(*columns, strict=True)]


def stratified_interval(
    population: Floats, judged: NDArray[np.int64], correct: NDArray[np.int64], design: float = 1.0, tail: float = _TAIL
) -> tuple[Floats, Floats]:
    """Return both ends of the interval of the share that is correct, `[sets]`; arguments `[sets, strata]`.

    `design`: as of `JudgedRelations`. `tail`: how often either end misses; the interval is one of 95% by default.

    The exact interval (Clopper and Pearson 1934) of the effective sample size: as many simple judgements as have the
    variance of the stratified ones, fewer where strata have few (Korn and Graubard 1998). For the variance, each
    stratum gets half a correct and half an incorrect judgement more, so that a unanimous one has some.
    """
    from scipy.special import betaincinv, ndtri, stdtrit

    total = np.maximum(population.sum(1), 1e-12)
    weight, seen = population / total[:, None], np.maximum(judged, 1)
    share = (correct + 0.5) / (judged + 1)
    left = np.maximum(population - judged, 0) / np.maximum(population - 1, 1)  # a census has no error
    variance = weight**2 * share * (1 - share) / seen * left
    spread = np.maximum((variance**2 / np.maximum(judged - 1, 1)).sum(1), 1e-30)
    freedom = np.clip(variance.sum(1) ** 2 / spread, 1, 1e6)  # Satterthwaite's
    middle = (weight * share).sum(1)
    students = ndtri(1 - tail) / stdtrit(freedom, 1 - tail)
    size = middle * (1 - middle) / np.maximum(variance.sum(1), 1e-12) * students**2 / design
    mean = (weight * correct / seen).sum(1)
    right, wrong = size * mean, size * (1 - mean)
    low = np.where(right > 1e-9, betaincinv(np.maximum(right, 1e-9), wrong + 1, tail), 0)
    high = np.where(wrong > 1e-9, betaincinv(right + 1, np.maximum(wrong, 1e-9), 1 - tail), 1)
    low = np.maximum(low, correct.sum(1) / total)
    return low, np.minimum(np.maximum(high, low), 1 - (judged - correct).sum(1) / total)


@dataclass(frozen=True)
class CalibrationBin:
    """Relations with a confidence from `start` to `stop`: their mean confidence and their precision."""

    start: float
    stop: float
    confidence: float
    precision: PrecisionEstimate


def perfect_error(confidence: ArrayLike, judged: ArrayLike, weight: ArrayLike) -> float:
    """Return the expected calibration error that so few judgements show on average if the confidences are exact.

    The mean distance of a binomial share from its chance is De Moivre's (1730). `[bins]`: mean confidence, judged
    relations (with unequal weights, as many equal ones as have the same variance), and weight.
    """

    def distance(chance: float, number: int) -> float:
        least = math.floor(number * chance) + 1
        if not 0 < chance < 1 or least > number:
            return 0.0
        ways = math.lgamma(number + 1) - math.lgamma(least + 1) - math.lgamma(number - least + 1)
        likely = math.exp(ways + least * math.log(chance) + (number - least) * math.log1p(-chance))
        return 2 * least * (1 - chance) * likely / number

    counts = np.maximum(np.rint(judged), 1).astype(int).tolist()
    return float(np.average(list(map(distance, np.asarray(confidence).tolist(), counts)), weights=np.asarray(weight)))


@dataclass(frozen=True)
class CalibrationQuality:
    """The expected calibration error (ECE), the mean distance between confidence and precision, weighted by bin size.

    `perfect_error`: what exact confidences would show on average with as many judgements. None without judgements.
    """

    calibration_error: float | None
    perfect_error: float | None
    reliability: list[CalibrationBin]


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and the precision of the `kept` judged relations; `relations`: those of the run, if counted."""

    threshold: float
    kept: int
    precision: PrecisionEstimate
    relations: int | None = None

    @property
    def text(self) -> str:
        """The threshold with all its decimals, at least three: as --threshold, it keeps exactly these relations."""
        digits = np.format_float_positional(self.threshold, trim="-").partition(".")[2]
        return f"{self.threshold:.{max(3, len(digits))}f}"


def short_threshold(confidence: float) -> float:
    """Return a confidence rounded down to three significant digits, so that a threshold of it keeps the confidence."""
    if confidence <= 0:
        return 0.0
    short = float(f"{confidence:.3g}")
    if np.float32(short) > np.float32(confidence):  # shards store 0.7 as 0.69999999, and a threshold of 0.7 keeps it
        short = float(f"{short - 10.0 ** (math.floor(math.log10(confidence)) - 2):.3g}")
    return short


@dataclass(frozen=True, eq=False)
class JudgedRelations:
    """Confidences of judged relations, whether they are correct, images (or none), and weights; all `[relations]`."""

    confidence: NDArray[Any]
    correct: NDArray[np.bool_]
    images: NDArray[Any] = field(default_factory=lambda: np.zeros(0, np.int64))
    weight: Floats = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.correct)

    @cached_property
    def _bin(self) -> NDArray[np.int64]:
        return np.clip((self.confidence.astype(np.float64) * _BINS).astype(int), 0, _BINS - 1)

    @cached_property
    def design(self) -> float:
        """How many judgements say as little as one independent one: relations of an image are often alike."""
        if not len(self.images):
            return 1.0
        at = self._bin
        mean = np.bincount(at, self.correct, _BINS) / np.maximum(np.bincount(at, minlength=_BINS), 1)
        return design_effect(self.correct - mean[at], self.images)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> JudgedRelations:
        own = (values[chosen] if len(values) else values for values in (self.images, self.weight))
        return JudgedRelations(self.confidence[chosen], self.correct[chosen], *own)

    def at(self, threshold: float) -> ThresholdChoice:
        kept = self.confidence >= np.float32(threshold)
        count = int(kept.sum())
        return ThresholdChoice(threshold, count, estimate(int(self.correct[kept].sum()), count, self.design))

    def candidates(self) -> list[float]:
        """Thresholds of three significant digits that keep ten relations or more, the lowest first.

        Only the lowest, unless correct relations have higher confidences than incorrect ones (5% level): of many
        thresholds that keep equally precise relations, one would look better by chance.
        """
        values = np.sort(self.confidence)[::-1][FEWEST - 1 :]
        thresholds = sorted({short_threshold(float(value)) for value in np.unique(values)})
        area, right = area_under_roc(self.confidence, self.correct), int(self.correct.sum())
        if area is None:
            return thresholds[:1]
        error = math.sqrt(self.design * (len(self.correct) + 1) / (12 * right * (len(self.correct) - right)))
        return thresholds if area > 0.5 + 1.645 * error else thresholds[:1]

    @cached_property
    def calibration(self) -> CalibrationQuality:
        """How far confidences are from precision, in ten bins of equal width, without the empty ones."""
        bins = []
        for at in np.unique(self._bin).tolist():
            inside = self._bin == at
            precision = estimate(int(self.correct[inside].sum()), int(inside.sum()), self.design)
            mean = float(self.confidence[inside].mean())
            bins.append(CalibrationBin(at / _BINS, (at + 1) / _BINS, mean, precision))
        if not bins:
            return CalibrationQuality(None, None, [])
        distances = (abs(part.confidence * part.precision.judged - part.precision.correct) for part in bins)
        judged = np.array([part.precision.judged for part in bins])
        perfect = perfect_error([part.confidence for part in bins], judged / self.design, judged)
        return CalibrationQuality(sum(distances) / len(self.correct), perfect, bins)

    def suggest(self, target: float) -> ThresholdChoice | None:
        """Return the lowest threshold whose whole interval has a precision of `target` or more; None without any."""
        thresholds = np.array(self.candidates())
        order = np.argsort(self.confidence, kind="stable")
        first = np.searchsorted(self.confidence[order], thresholds.astype(np.float32))
        correct, kept = np.append(np.cumsum(self.correct[order][::-1])[::-1], 0)[first], len(order) - first
        sure = wilson(correct / kept, kept / self.design, -1) >= target
        return self.at(float(thresholds[np.argmax(sure)])) if sure.any() else None


def design_effect(residuals: Floats, images: NDArray[np.int64]) -> float:
    """Return the variance of a sum of residuals over that without correlation inside images, at least 1.

    Few images tell little about it: Student's t makes up for that, by Fisher's expansion (1941), which needs no scipy.
    """
    squares, n, z = float((residuals**2).sum()), max(len(np.unique(images)) - 1, 1), _Z
    if not squares:
        return 1.0
    ratio = float((np.bincount(images, residuals) ** 2).sum()) / squares
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    student = z + first / n + second / n**2 + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    if n <= len(_FEW):
        student = _FEW[n - 1]
    return max(ratio * (1 + 1 / n) * (student / z) ** 2, 1.0)


@dataclass(frozen=True)
class ScoreQuality(CalibrationQuality):
    """How well a model's scores tell correct from incorrect relations, of those that are `judged` and have a score.

    `auc`: see `area_under_roc`; `confidence_auc`: that of the confidence, of all judged relations.
    """

    judged: int
    auc: float | None
    confidence_auc: float | None


def score_quality(scored: JudgedRelations, confidence: JudgedRelations) -> ScoreQuality:
    """Compare scores of judged relations with their confidences; some of the relations may lack a score."""
    areas = [area_under_roc(each.confidence, each.correct) for each in (scored, confidence)]
    return ScoreQuality(**vars(scored.calibration), judged=len(scored.correct), auc=areas[0], confidence_auc=areas[1])


def area_under_roc(scores: NDArray[np.float32], correct: NDArray[np.bool_]) -> float | None:
    """Return the share of pairs of a correct and an incorrect relation in which the correct one has the higher score.

    Equal scores count half (Mann and Whitney 1947). None without such a pair.
    """
    right = int(correct.sum())
    pairs = right * (len(correct) - right)
    if not pairs:
        return None
    _, at, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(times) - (times - 1) / 2  # equal scores share the mean of their ranks
    return float((ranks[at][correct].sum() - right * (right + 1) / 2) / pairs)


@dataclass(frozen=True)
class PredicateThreshold:
    """A predicate: its precision at the threshold in use, and the threshold that surely reaches the target, if any."""

    predicate: str
    relations: int
    at_threshold: PrecisionEstimate
    suggested: ThresholdChoice | None


@dataclass(frozen=True)
class GroundTruthMeasures(CalibrationQuality):
    """A run compared with its ground truth: its precision at `threshold`, and thresholds for the precision `target`."""

    images: int
    relations: int
    threshold: float
    precision: PrecisionEstimate
    target: float
    suggested: ThresholdChoice | None
    predicates: list[PredicateThreshold]
    vlm_score: ScoreQuality | None


def measure_against_ground_truth(
    database: Database, ground_truth: GroundTruth, threshold: float, target: float, calibration: Calibration | None
) -> GroundTruthMeasures:
    """Compare an open run with its ground truth; with a calibration of the tagger, everything is of its probabilities.

    Raises UserError: the two have no image in common, or a number is out of range.
    """
    # Imports torch and spaCy, which takes seconds that other audits need not spend.
    from sgpipe.evaluation.label_quality import LabelQuality, label_quality

    def judged_by(found: LabelQuality) -> JudgedRelations:
        rows = found.relations
        return JudgedRelations(rows.confidence.astype(np.float32), rows.true_positive, rows.image)

    check_share("precision", target)
    result = label_quality(database.root, ground_truth, threshold=threshold, calibration=calibration)
    judged, vlm_score = judged_by(result), None
    if database.has_vlm_scores:
        vlm_score = score_quality(judged_by(label_quality(database.root, ground_truth, source="vlm_score")), judged)
    numbers = {name: number for number, name in enumerate(result.names)}
    predicates = []
    for row in result.predicates:
        own = result.relations.predicate == numbers[row.predicate]
        if own.any():
            part = judged[own]
            precision = part.at(threshold).precision
            predicates.append(PredicateThreshold(row.predicate, len(part.correct), precision, part.suggest(target)))
    return GroundTruthMeasures(
        **vars(judged.calibration),
        images=result.counts["images compared"],
        relations=len(result.relations),
        threshold=threshold,
        precision=judged.at(threshold).precision,
        target=target,
        suggested=judged.suggest(target),
        predicates=sorted(predicates, key=lambda row: -row.relations),
        vlm_score=vlm_score,
    )
