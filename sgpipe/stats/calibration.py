"""Relations that were judged correct or not: precision with confidence intervals, calibration, thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError

_Z = 1.959964  # 95%
_FEWEST = 10  # judged relations that a suggested threshold needs
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
class CalibrationBin:
    """Relations with a confidence from `start` to `stop`: their mean confidence and their precision."""

    start: float
    stop: float
    confidence: float
    precision: PrecisionEstimate


@dataclass(frozen=True)
class ThresholdChoice:
    """A threshold, how many of the judged relations it keeps, and their precision."""

    threshold: float
    kept: int
    precision: PrecisionEstimate


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

        Raises UserError: the target is not above 0 and at most 1.
        """
        if not 0 < target <= 1:
            raise UserError(f"precision {target}: expected a number above 0, at most 1")
        order = np.argsort(-self.confidence, kind="stable")
        confidence = self.confidence[order].astype(np.float64)
        counts = np.arange(1, len(order) + 1)
        enough = (np.cumsum(self.correct[order]) / counts >= target) & (counts >= _FEWEST)
        enough &= np.append(confidence[1:] < confidence[:-1], True)[: len(order)]  # equal confidences are kept together
        return self.at(float(confidence[np.flatnonzero(enough)[-1]])) if enough.any() else None
