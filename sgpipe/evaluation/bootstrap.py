"""Paired bootstrap over images: how sure the difference between two evaluations of the same images is.

A resample draws as many images as there are, with replacement (Efron and Tibshirani, 1993), the same for both
evaluations, and computes the measures of each anew. Intervals contain the middle 95% of the resamples.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import Array
from sgpipe.errors import UserError
from sgpipe.utils.console import count

RESAMPLES = 1000
_TAILS = (0.025, 0.975)

Interval = tuple[float, float]


@dataclass(frozen=True)
class Resampling:
    """The measures of an evaluation as a function of how often each image occurs.

    images: names of the scored images. summary: takes `[images]` integers in their order. unpredicted: those of them
    without predictions, where a file can tell them from images in which nothing was detected.
    """

    images: Sequence[str]
    summary: Callable[[Array], Mapping[str, float]]
    unpredicted: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Difference:
    """A measure of two evaluations, and the first minus the second, with 95% intervals; NaN if it is undefined."""

    value: float
    interval: Interval
    other: float
    other_interval: Interval
    difference: float
    difference_interval: Interval

    @property
    def shown(self) -> bool:
        """Whether the interval of the difference excludes 0."""
        low, high = self.difference_interval
        return low > 0 or high < 0


@dataclass(frozen=True)
class PairedComparison:
    """The differences between an evaluation and the one named `other`, by measure."""

    other: str
    images: int
    resamples: int
    seed: int
    measures: Mapping[str, Difference]

    def rows(self) -> list[dict[str, Any]]:
        """A row of a table for each measure."""
        return [
            {
                "measure": name,
                "value": own.value,
                "95% interval": _text(own.interval),
                "other": own.other,
                "95% interval of other": _text(own.other_interval),
                "difference": own.difference,
                "95% interval of difference": _text(own.difference_interval),
                "shown": "yes" if own.shown else "no",
            }
            for name, own in self.measures.items()
        ]

    def as_dict(self) -> dict[str, Any]:
        """As in the JSON of a result."""
        measures = {name: {**vars(own), "shown": own.shown} for name, own in self.measures.items()}
        return {**vars(self), "measures": measures}


def paired_bootstrap(
    first: Resampling, second: Resampling, *, other: str = "other", resamples: int = RESAMPLES, seed: int = 0
) -> PairedComparison:
    """Compare two evaluations of the same images.

    Args:
        first, second: `EvaluationResult.resampling` of each.
        other: the name of the second, for the reader.

    Returns:
        the measures that both have; the order of the images does not matter.

    Raises:
        UserError: the images differ, or there are none.
    """
    _refuse_different(first, second)
    places = [np.argsort(np.array(each.images)) for each in (first, second)]
    images = len(first.images)
    rng = np.random.default_rng(seed)
    names = _common_measures(first, second)
    samples = np.empty((2, resamples + 1, len(names)))
    for row in range(resamples + 1):
        drawn = rng.integers(0, images, images) if row else np.arange(images)  # row 0: the images themselves
        counts = np.bincount(drawn, minlength=images)
        for side, (each, order) in enumerate(zip((first, second), places, strict=True)):
            own = np.empty_like(counts)
            own[order] = counts
            summary = each.summary(own)
            samples[side, row] = [summary[name] for name in names]
    return PairedComparison(other, images, resamples, seed, _differences(names, samples))


def _refuse_different(first: Resampling, second: Resampling) -> None:
    if not first.images:
        raise UserError("--compare needs images, but none was scored")
    for what, own, others in (
        ("scored", set(first.images), set(second.images)),
        ("with predictions", set(first.images) - first.unpredicted, set(second.images) - second.unpredicted),
    ):
        if only := own ^ others:
            raise UserError(
                f"--compare needs the same images on both sides, but {count(len(own - others), 'image')} {what} on one "
                f"side {'is' if len(own - others) == 1 else 'are'} not on the other, and {len(others - own):,} the "
                f"other way round, such as {min(only)!r}; evaluate both on the same images"
            )


def _common_measures(first: Resampling, second: Resampling) -> list[str]:
    ones = np.ones(len(first.images), dtype=int)
    others = second.summary(ones)
    return [name for name in first.summary(ones) if name in others]


def _differences(names: Sequence[str], samples: Array) -> dict[str, Difference]:
    """`samples`: `[2, 1 + resamples, measures]`."""
    table = np.concatenate((samples, samples[:1] - samples[1:]))
    result = {}
    for column, name in enumerate(names):
        first, second, difference = table[:, :, column]
        result[name] = Difference(
            value=float(first[0]),
            interval=_interval(first[1:]),
            other=float(second[0]),
            other_interval=_interval(second[1:]),
            difference=float(difference[0]),
            difference_interval=_interval(difference[1:]),
        )
    return result


def _interval(values: Array) -> Interval:
    """The middle 95%; resamples in which the measure is undefined are left out."""
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, _TAILS)
    return float(low), float(high)


def _text(interval: Interval) -> str:
    return "–" if np.isnan(interval[0]) else f"{interval[0]:.4f} to {interval[1]:.4f}"
