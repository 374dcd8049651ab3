"""Relations of which it is known whether they are right: precision with intervals, calibration, thresholds."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError

_Z = 1.959964  # 95 %
_FEWEST = 10  # judged relations that a suggested threshold must rest on
_BINS = 10


@dataclass(frozen=True)
class Precision:
    """So many of so many are right; `low` and `high`: Wilson's interval of 95 %."""

    right: int
    judged: int

    @property
    def value(self) -> float | None:
        return self.right / self.judged if self.judged else None

    @property
    def low(self) -> float:
        return self._interval(-1)

    @property
    def high(self) -> float:
        return self._interval(1)

    def _interval(self, side: int) -> float:
        return wilson(self.right / self.judged, self.judged, side) if self.judged else (side + 1) / 2

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.1%} ({self.low:.1%} to {self.high:.1%}, of {self.judged:,})"


def wilson(share: float, count: float, side: int) -> float:
    """The lower (side -1) or upper (side 1) end of Wilson's interval of a share among `count`.

    Source: Wilson 1927, Probable inference, the law of succession, and statistical inference.
    """
    middle = share + _Z**2 / (2 * count)
    half = _Z * math.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2))
    return min(max((middle + side * half) / (1 + _Z**2 / count), 0.0), 1.0)


@dataclass(frozen=True)
class Bin:
    """Relations with a confidence from `start` to `stop`: their mean confidence, and how many are right."""

    start: float
    stop: float
    confidence: float
    precision: Precision


@dataclass(frozen=True)
class Choice:
    """A threshold, how many of the judged relations it keeps, and how many of these are right."""

    threshold: float
    kept: int
    precision: Precision


@dataclass(frozen=True, eq=False)
class Judged:
    """Judged relations.

    Args:
        confidence: `[relations]`; `right`: `[relations]`, bool.
    """

    confidence: NDArray[np.float32]
    right: NDArray[np.bool_]

    def at(self, threshold: float) -> Choice:
        """What a threshold keeps."""
        kept = self.confidence >= np.float32(threshold)
        count = int(kept.sum())
        return Choice(threshold, count, Precision(int(self.right[kept].sum()), count))

    def curve(self, thresholds: Sequence[float]) -> list[Choice]:
        """What each threshold keeps."""
        return [self.at(threshold) for threshold in thresholds]

    def reliability(self) -> list[Bin]:
        """Ten bins of equal width; empty ones are left out."""
        place = np.minimum((self.confidence.astype(np.float64) * _BINS).astype(int), _BINS - 1)
        bins = []
        for at in range(_BINS):
            inside = place == at
            if count := int(inside.sum()):
                precision = Precision(int(self.right[inside].sum()), count)
                bins.append(Bin(at / _BINS, (at + 1) / _BINS, float(self.confidence[inside].mean()), precision))
        return bins

    def calibration_error(self) -> float | None:
        """Mean distance of confidence and precision over the bins, weighted by their size (ECE); None of nothing."""
        bins = self.reliability()
        total = sum(part.precision.judged for part in bins)
        distances = (abs(part.confidence * part.precision.judged - part.precision.right) for part in bins)
        return sum(distances) / total if total else None

    def suggest(self, target: float) -> Choice | None:
        """The lowest threshold whose relations are right as often as `target` says; None if there is none.

        It rests on ten relations at least.

        Raises UserError: the target is not between 0 and 1.
        """
        if not 0 < target <= 1:
            raise UserError(f"precision {target}: expected a number above 0, at most 1")
        order = np.argsort(-self.confidence, kind="stable")
        confidence = self.confidence[order].astype(np.float64)
        counts = np.arange(1, len(order) + 1)
        enough = (np.cumsum(self.right[order]) / counts >= target) & (counts >= _FEWEST)
        enough &= np.append(confidence[1:] < confidence[:-1], True)[: len(order)]  # equal ones are kept together
        return self.at(float(confidence[np.flatnonzero(enough)[-1]])) if enough.any() else None
