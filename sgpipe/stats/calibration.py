"""Relations that were judged correct or not: precision with confidence intervals, calibration, thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import ROUND_FLOOR, Decimal
from typing import TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgpipe.errors import UserError

_Z, _TAIL = 1.959964, 0.025  # 95%
_STEPS = 60  # of bisection
_MANY = 1e6  # judgements; of more, the incomplete beta function takes long
_OBSERVED = 0.6  # weight of the sample's own probability in a tail; mid-p's 0.5 covers 92% of high precisions
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
    """The lower (side -1) or upper (side 1) end of Wilson's interval for a share of `count`.

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
    """The precisions of several sets of relations, each from its own strata.

    Args:
        population: relations `[sets, strata]`; weights, so that fractions are allowed.
        judged, correct: how many of them were judged, and judged correct, `[sets, strata]`.
    """
    seen, right = (np.asarray(values, np.int64) for values in (judged, correct))
    size = np.maximum(np.asarray(population, np.float64), seen)
    total, covered = size.sum(1), np.where(seen > 0, size, 0).sum(1)
    share = covered / np.where(total > 0, total, 1)
    low, high = stratified_interval(np.where(seen > 0, size, 0), seen, right)
    values = (np.where(seen > 0, size, 0) * right / np.maximum(seen, 1)).sum(1) / np.where(covered > 0, covered, 1)
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
    """The lower and upper ends of the 95% interval of the share that is correct, `[sets]`; arguments `[sets, strata]`.

    A share P is in the interval unless the weighted mean of the sample is too far from it. How far it may be follows
    from the strata's shares p that are the most likely of those with mean P (Miettinen and Nurminen 1985): the variance
    V of the mean, with the finite population correction (Cochran 1977, section 2.6), makes the sample as good as
    P (1 - P) / V simple judgements (Korn and Graubard 1998). The binomial test of these must not have a tail below
    2.5%; as in a mid-p test (Lancaster 1961), only a part of the sample's own probability, 0.6, belongs to the tail.
    Few judgements count as fewer by half of Korn and Graubard's factor (z / t)², with Satterthwaite's degrees of
    freedom. The ends are whole numbers of relations, at least those judged correct, at most those not judged incorrect.
    """
    strata = _Strata(population, judged, correct)
    total = np.maximum(population.sum(1), 1e-12)
    ends = [strata.end(side) for side in (-1, 1)]
    low = np.maximum(np.floor(ends[0] * total + 1e-6), correct.sum(1)) / total
    high = np.minimum(np.ceil(ends[1] * total - 1e-6), total - (judged - correct).sum(1)) / total
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


class _Strata:
    """The strata of several sets, `[sets, strata]`, for `stratified_interval`."""

    def __init__(self, population: NDArray[np.float64], judged: NDArray[np.int64], correct: NDArray[np.int64]) -> None:
        total = np.maximum(population.sum(1, keepdims=True), 1e-12)
        open_ = (judged > 0) & (population - judged >= 0.5)  # a census has no sampling error
        self.share = correct / np.maximum(judged, 1)
        self.weight = np.where(open_, population, 0) / total
        self.fixed = (np.where(open_, 0, population) / total * self.share).sum(1)
        correction = (population - judged) / np.maximum(population - 1, 1e-12)
        self.judged = np.where(open_, judged / np.where(open_, correction, 1), 0)
        self.mean = self.fixed + (self.weight * self.share).sum(1)
        self.scale = self._small_sample_scale(judged, correct)

    def _small_sample_scale(self, judged: NDArray[np.int64], correct: NDArray[np.int64]) -> NDArray[np.float64]:
        from scipy.special import stdtrit

        smooth = (correct + 1) / (judged + 2)  # a unanimous stratum has some variance
        variance = self.weight**2 * smooth * (1 - smooth) / np.maximum(self.judged, 1)
        spread = (variance**2 / np.maximum(judged - 1, 1)).sum(1)
        freedom = np.where(spread > 0, variance.sum(1) ** 2 / np.where(spread > 0, spread, 1), 1e6)
        return (1 + (_Z / stdtrit(np.clip(freedom, 1, 1e6), 1 - _TAIL)) ** 2) / 2

    def end(self, side: int) -> NDArray[np.float64]:
        """The last share, below (side -1) or above (side 1) the mean, that the sample does not contradict."""
        widest = np.arcsinh(1e7 * (self.judged / np.where(self.weight > 0, self.weight, 1)).max(1, initial=0.0))
        near, far = np.zeros_like(widest), widest
        for _ in range(_STEPS):
            middle = (near + far) / 2
            _, tail = self._tail(-side * np.sinh(middle), side)
            near, far = np.where(tail >= _TAIL, middle, near), np.where(tail >= _TAIL, far, middle)
        return self._tail(-side * np.sinh(far), side)[0]

    def _tail(self, multiplier: NDArray[np.float64], side: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The mean that a Lagrange multiplier gives the strata, and the mid-p tail of the sample under it."""
        from scipy.special import betainc

        shares = self._most_likely(multiplier[:, None] * self.weight)
        mean = self.fixed + (self.weight * shares).sum(1)
        variance = (self.weight**2 * shares * (1 - shares) / np.where(self.judged > 0, self.judged, 1)).sum(1)
        spread = np.maximum(mean * (1 - mean), 1e-12)
        size = self.scale * spread / np.maximum(variance, spread / _MANY)
        toward, against = size * self.mean, size * (1 - self.mean)
        chance = mean
        if side > 0:
            toward, against, chance = against, toward, 1 - mean
        at_least = np.where(toward > 1e-9, betainc(np.maximum(toward, 1e-9), against + 1, chance), 1)
        above = np.where(against > 1e-9, betainc(toward + 1, np.maximum(against, 1e-9), chance), 0)
        return mean, _OBSERVED * at_least + (1 - _OBSERVED) * above

    def _most_likely(self, slope: NDArray[np.float64]) -> NDArray[np.float64]:
        """The root p of judged · share / p - judged · (1 - share) / (1 - p) = slope in [0, 1]."""
        both, correct = slope + self.judged, self.judged * self.share
        root = np.sqrt(np.maximum(both**2 - 4 * slope * correct, 0))
        upper = 2 * correct / np.where(both + root != 0, both + root, 1)
        lower = (both - root) / np.where(slope != 0, 2 * slope, 1)
        return np.clip(np.where(both > 0, upper, lower), 0, 1)


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

    def curve(self, thresholds: Sequence[float]) -> list[ThresholdChoice]:
        """The relations that each threshold keeps."""
        return [self.at(threshold) for threshold in thresholds]

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
                bins.append(
                    CalibrationBin(at / _BINS, (at + 1) / _BINS, float(self.confidence[inside].mean()), precision)
                )
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


def check_target(target: float) -> None:
    """Raises UserError: the target precision is not above 0 and at most 1."""
    if not 0 < target <= 1:
        raise UserError(f"precision {target}: expected a number above 0, at most 1")
