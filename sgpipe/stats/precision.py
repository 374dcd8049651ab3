"""Relations judged correct or not: their precision with intervals, and how far confidences are from
it.

benchmarks/interval_coverage.py measures how often the intervals contain the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from statistics import NormalDist

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgpipe.utils.odds import Floats

_TAIL = 0.025  # how often either end of a 95% interval misses
_FEW = {  # Student's t of these tails with 1, 2, … degrees of freedom
    0.025: (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469),
    0.05: (6.3138, 2.9200, 2.3534, 2.1318, 2.0150, 1.9432),
}
_NORMAL = NormalDist()
_BINS = 10
_TINY = 1e-9


@dataclass(frozen=True)
class PrecisionEstimate:
    """How many judged relations are correct, and the precision that they show, with its 95%
    interval.

    Of a stratified sample, `value` is of the strata with a judged relation, weighted by their
    relations (`covered`: their share of all), None if there is none; the interval is of all
    relations.
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


def estimate(correct: int, judged: int) -> PrecisionEstimate:
    """Return the precision with Wilson's interval."""
    if not judged:
        return PrecisionEstimate(0, 0, None, 0.0, 1.0)
    share = correct / judged
    low = float(wilson(share, judged, -1))
    high = float(wilson(share, judged, 1))
    return PrecisionEstimate(correct, judged, share, low, high)


def wilson(share: ArrayLike, count: ArrayLike, side: int, tail: float = _TAIL) -> Floats:
    """Return the lower (side -1) or upper (side 1) ends of Wilson's (1927) intervals for shares of
    `count`.
    """
    share = np.asarray(share, np.float64)
    count = np.asarray(count, np.float64)
    z = -_NORMAL.inv_cdf(tail)
    half = z * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    return np.clip((share + z**2 / (2 * count) + side * half) / (1 + z**2 / count), 0, 1)


def estimate_clustered(
    correct: NDArray[np.bool_],
    images: NDArray[np.int64],
    weight: Floats | None = None,
    left: float = 1.0,
    tail: float = _TAIL,
) -> PrecisionEstimate:
    """Return the precision of relations of a random sample of images, with Wilson's interval for
    the effective size.

    Args:
        correct: whether each relation is correct, `[relations]`.
        images: numbers of their images, `[relations]`; empty if the relations are independent.
        weight: of each relation, `[relations]`; None: all weigh the same.
        left: the share of all images that is not in the sample, which is drawn without replacement.
        tail: how often either end misses.
    """
    if not len(correct):
        return estimate(0, 0)
    weight = np.ones(len(correct)) if weight is None else weight
    share = float(np.average(correct, weights=weight))
    equal = weight.sum() ** 2 / (weight @ weight)  # as many of equal weight say as much
    size = equal / max(design_effect(correct, images, weight, tail) * left, _TINY)
    low = float(wilson(share, size, -1, tail))
    high = float(wilson(share, size, 1, tail))
    return PrecisionEstimate(int(correct.sum()), len(correct), share, low, high)


def design_effect(
    correct: NDArray[np.bool_],
    images: NDArray[np.int64],
    weight: Floats | None = None,
    tail: float = _TAIL,
) -> float:
    """Return how many relations say as much as one independent relation; arguments as of
    `estimate_clustered`.

    With a correlation ρ of relations of an image, it is 1 + ρ (m - 1) for m relations in each (Kish
    1965). Images with both outcomes tell what ρ is. If there are few, as near a precision of 1, the
    data underrate it. So ρ counts as if one more image had shown that all its relations are alike;
    Student's t makes up for few images.
    """
    if not len(images):
        return 1.0
    weight = np.ones(len(correct)) if weight is None else weight
    together = np.bincount(images, weight)
    alike = float(together @ together / (weight @ weight))  # the effect if ρ is 1
    if alike <= 1 + _TINY:  # no image has two relations
        return 1.0
    # so that equal ones vary, too
    near = (weight @ correct + weight.mean() / 2) / (weight.sum() + weight.mean())
    residuals = weight * (correct - near)
    sums = np.bincount(images, residuals)
    observed = float(sums @ sums / (residuals @ residuals))
    correlation = min(max((observed - 1) / (alike - 1), 0.0), 1.0)
    with_correct = len(np.unique(images[correct]))
    with_wrong = len(np.unique(images[~correct]))
    telling = min(with_correct, with_wrong)
    correlation = (telling * correlation + 1) / (telling + 1)
    freedom = max(int(np.count_nonzero(together)) - 1, 1)
    return (1 + correlation * (alike - 1)) * (_student(freedom, tail) / -_NORMAL.inv_cdf(tail)) ** 2


def _student(freedom: int, tail: float) -> float:
    """Return the upper quantile of Student's t, by Fisher's expansion (1941), which needs no
    scipy.
    """
    if freedom <= len(_FEW[tail]):
        return _FEW[tail][freedom - 1]
    z = -_NORMAL.inv_cdf(tail)
    terms = (
        z,
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
    )
    return sum(term / freedom**power for power, term in enumerate(terms))


def estimate_stratified(
    population: ArrayLike, judged: ArrayLike, correct: ArrayLike, tail: float = _TAIL
) -> list[PrecisionEstimate]:
    """Return the precisions of sets of relations (or weights), some of them judged, and correct;
    `[sets, strata]`.
    """
    seen = np.asarray(judged, np.int64)
    right = np.asarray(correct, np.int64)
    size = np.maximum(np.asarray(population, np.float64), seen)
    known = np.where(seen > 0, size, 0)
    total = size.sum(1)
    covered = known.sum(1)
    share = covered / np.where(total > 0, total, 1)
    low, high = stratified_interval(known, seen, right, tail=tail)
    values = (known * right / np.maximum(seen, 1)).sum(1) / np.where(covered > 0, covered, 1)
    low = low * share
    high = 1 - share * (1 - high)
    estimates = []
    for number in range(len(share)):
        estimate = PrecisionEstimate(
            correct=int(right[number].sum()),
            judged=int(seen[number].sum()),
            value=float(values[number]) if share[number] else None,
            low=float(low[number]),
            high=float(high[number]),
            covered=float(share[number]),
        )
        estimates.append(estimate)
    return estimates


def stratified_interval(
    population: Floats,
    judged: NDArray[np.int64],
    correct: NDArray[np.int64],
    design: float = 1.0,
    tail: float = _TAIL,
) -> tuple[Floats, Floats]:
    """Return both ends of the interval of the share that is correct, `[sets]`; arguments `[sets,
    strata]`.

    The exact interval (Clopper and Pearson 1934) of the effective sample size: as many simple
    judgements as have the variance of the stratified ones, fewer where strata have few (Korn and
    Graubard 1998). For the variance, each stratum gets half a correct and half an incorrect
    judgement more, so that a unanimous one has some.

    Args:
        design: as of `design_effect`.
        tail: how often either end misses; the interval is one of 95% by default.
    """
    from scipy.special import betaincinv, ndtri, stdtrit

    total = np.maximum(population.sum(1), 1e-12)
    weight = population / total[:, None]
    seen = np.maximum(judged, 1)
    share = (correct + 0.5) / (judged + 1)
    # a census has no error
    left = np.maximum(population - judged, 0) / np.maximum(population - 1, 1)
    variance = weight**2 * share * (1 - share) / seen * left
    spread = np.maximum((variance**2 / np.maximum(judged - 1, 1)).sum(1), 1e-30)
    freedom = np.clip(variance.sum(1) ** 2 / spread, 1, 1e6)  # Satterthwaite's
    middle = (weight * share).sum(1)
    students = ndtri(1 - tail) / stdtrit(freedom, 1 - tail)
    size = middle * (1 - middle) / np.maximum(variance.sum(1), 1e-12) * students**2 / design
    mean = (weight * correct / seen).sum(1)
    right = size * mean
    wrong = size * (1 - mean)
    low = np.where(right > 1e-9, betaincinv(np.maximum(right, 1e-9), wrong + 1, tail), 0)
    high = np.where(wrong > 1e-9, betaincinv(right + 1, np.maximum(wrong, 1e-9), 1 - tail), 1)
    low = np.maximum(low, correct.sum(1) / total)
    return low, np.minimum(np.maximum(high, low), 1 - (judged - correct).sum(1) / total)


@dataclass(frozen=True)
class CalibrationBin:
    """Relations with a confidence from `start` to `stop`: their mean confidence and their
    precision.
    """

    start: float
    stop: float
    confidence: float
    precision: PrecisionEstimate


def perfect_error(confidence: ArrayLike, judged: ArrayLike, weight: ArrayLike) -> float:
    """Return the expected calibration error that so few judgements show on average if the
    confidences are exact.

    The mean distance of a binomial share from its chance is De Moivre's (1730). `[bins]`: mean
    confidence, judged relations (with unequal weights, as many equal ones as have the same
    variance), and weight.
    """

    counts = np.maximum(np.rint(judged), 1).astype(int).tolist()
    distances = list(map(_mean_distance, np.asarray(confidence).tolist(), counts))
    return float(np.average(distances, weights=np.asarray(weight)))


def _mean_distance(chance: float, number: int) -> float:
    """Return the mean distance of the share of `number` draws that succeed from their chance."""
    above = math.floor(number * chance) + 1  # the fewest successes that are more than expected
    if not 0 < chance < 1 or above > number:
        return 0.0
    ways = math.lgamma(number + 1) - math.lgamma(above + 1) - math.lgamma(number - above + 1)
    likely = math.exp(ways + above * math.log(chance) + (number - above) * math.log1p(-chance))
    return 2 * above * (1 - chance) * likely / number


@dataclass(frozen=True)
class CalibrationQuality:
    """The expected calibration error (ECE), the mean distance between confidence and precision,
    weighted by bin size.

    `perfect_error`: what exact confidences would show on average with as many judgements. None
    without judgements.
    """

    calibration_error: float | None
    perfect_error: float | None
    reliability: list[CalibrationBin]


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold and the precision of the `kept` judged relations; `relations`: those of the run,
    if counted.

    `at_least`: the precision that a suggested threshold shows with 95% confidence, the lower end of
    one side only.
    """

    threshold: float
    kept: int
    precision: PrecisionEstimate
    relations: int | None = None
    at_least: float | None = None

    @property
    def text(self) -> str:
        """The threshold with all its decimals, at least three: as --threshold, it keeps exactly
        these relations.
        """
        digits = np.format_float_positional(self.threshold, trim="-").partition(".")[2]
        return f"{self.threshold:.{max(3, len(digits))}f}"


def short_threshold(confidence: float) -> float:
    """Return a confidence rounded down to three significant digits, so that a threshold of it keeps
    the confidence.
    """
    if confidence <= 0:
        return 0.0
    short = float(f"{confidence:.3g}")
    # shards store 0.7 as 0.69999999, and a threshold of 0.7 keeps it
    if np.float32(short) > np.float32(confidence):
        short = float(f"{short - 10.0 ** (math.floor(math.log10(confidence)) - 2):.3g}")
    return short


@dataclass(frozen=True, eq=False)
class JudgedRelations:
    """Confidences of judged relations, whether they are correct, images (or none), and weights; all
    `[relations]`.
    """

    confidence: NDArray[np.floating]
    correct: NDArray[np.bool_]
    images: NDArray[np.generic] = field(default_factory=lambda: np.zeros(0, np.int64))
    weight: Floats = field(default_factory=lambda: np.zeros(0))

    def __len__(self) -> int:
        return len(self.correct)

    @cached_property
    def _bin(self) -> NDArray[np.int64]:
        return np.clip((self.confidence.astype(np.float64) * _BINS).astype(int), 0, _BINS - 1)

    @cached_property
    def image_numbers(self) -> NDArray[np.int64]:
        """The images as numbers from 0, `[relations]`; empty if they are unknown."""
        return np.unique(self.images, return_inverse=True)[1].astype(np.int64)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> JudgedRelations:
        images = self.images[chosen] if len(self.images) else self.images
        weight = self.weight[chosen] if len(self.weight) else self.weight
        return JudgedRelations(self.confidence[chosen], self.correct[chosen], images, weight)

    def at(self, threshold: float) -> ThresholdChoice:
        passing = self.confidence >= np.float32(threshold)
        return ThresholdChoice(threshold, int(passing.sum()), self.precision(passing))

    def precision(self, chosen: NDArray[np.bool_], tail: float = _TAIL) -> PrecisionEstimate:
        return estimate_clustered(self.correct[chosen], self._images_of(chosen), tail=tail)

    def _images_of(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Return the numbers of the images of some relations, or none, if they are unknown."""
        return self.image_numbers[chosen] if len(self.images) else self.image_numbers

    @cached_property
    def calibration(self) -> CalibrationQuality:
        """How far confidences are from precision, in ten bins of equal width, without the empty
        ones.
        """
        bins = []
        independent = []  # relations that say as much as those of the bin
        means = []
        judged = []
        distances = []
        for at in np.unique(self._bin).tolist():
            inside = self._bin == at
            mean = float(self.confidence[inside].mean())
            precision = self.precision(inside)
            bins.append(CalibrationBin(at / _BINS, (at + 1) / _BINS, mean, precision))
            design = design_effect(self.correct[inside], self._images_of(inside))
            independent.append(precision.judged / design)
            means.append(mean)
            judged.append(precision.judged)
            distances.append(abs(mean * precision.judged - precision.correct))
        if not bins:
            return CalibrationQuality(None, None, [])
        perfect = perfect_error(means, independent, judged)
        return CalibrationQuality(sum(distances) / len(self.correct), perfect, bins)


@dataclass(frozen=True)
class ScoreQuality(CalibrationQuality):
    """How well a model's scores tell correct from incorrect relations, of those that are `judged`
    and have a score.

    `auc`: see `area_under_roc`; `confidence_auc`: that of the confidence, of all judged relations.
    """

    judged: int
    auc: float | None
    confidence_auc: float | None


def score_quality(scored: JudgedRelations, confidence: JudgedRelations) -> ScoreQuality:
    """Compare scores of judged relations with their confidences; some of the relations may lack a
    score.
    """
    return ScoreQuality(
        **vars(scored.calibration),
        judged=len(scored.correct),
        auc=area_under_roc(scored.confidence, scored.correct),
        confidence_auc=area_under_roc(confidence.confidence, confidence.correct),
    )


def area_under_roc(scores: NDArray[np.float32], correct: NDArray[np.bool_]) -> float | None:
    """Return the share of pairs of a correct and an incorrect relation in which the correct one has
    the higher score.

    Equal scores count half (Mann and Whitney 1947). None without such a pair.
    """
    right = int(correct.sum())
    pairs = right * (len(correct) - right)
    if not pairs:
        return None
    _, at, times = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(times) - (times - 1) / 2  # equal scores share the mean of their ranks
    return float((ranks[at][correct].sum() - right * (right + 1) / 2) / pairs)
