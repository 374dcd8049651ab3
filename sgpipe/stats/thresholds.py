"""Thresholds that are promised: the lowest ones that judged relations show to have a precision.

Thresholds are tested from the strictest down, each with 95% confidence, and the first that is not
shown ends the search (Maurer, Hothorn and Lehmacher 1995). Their order depends on the confidences
only, not on which relations are correct. So a wrong threshold can be shown only if the first wrong
one in this order is, which happens in at most 5% of samples, however many are tested. If no
threshold has the precision, all that are shown in these samples are wrong.
benchmarks/interval_coverage.py measures it.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import lowest_shown
from sgpipe.stats.precision import (
    JudgedRelations,
    PrecisionEstimate,
    ThresholdChoice,
    short_threshold,
)

ONE_SIDE = 0.05  # how often the lower end alone misses
FEWEST = 10  # judged relations that a threshold keeps
_FIRST = 0.62  # the strictest threshold keeps n to the power of this of n relations
_STEP = 1.2  # each keeps a fifth more relations than the one before


def candidates(confidence: NDArray[np.floating]) -> list[float]:
    """Return thresholds of three significant digits, the strictest first, down to one that keeps
    all relations.
    """
    number = len(confidence)
    if number < FEWEST:
        return []
    falling = np.sort(confidence)[::-1]
    first = max(FEWEST, number**_FIRST)
    steps = int(np.log(number / first) / np.log(_STEP)) + 1
    sizes = np.append(first * _STEP ** np.arange(steps), number)
    places = np.minimum(np.rint(sizes).astype(int), number) - 1
    return sorted({short_threshold(float(value)) for value in falling[places]}, reverse=True)


def suggest(relations: JudgedRelations, target: float) -> ThresholdChoice | None:
    """Return the lowest threshold that shows a precision of `target`; None: no threshold does."""
    thresholds = candidates(relations.confidence)
    all_correct = JudgedRelations(
        relations.confidence, np.ones(len(relations), bool), relations.images
    )
    choices = []
    estimates = []
    if_all_correct = []
    for threshold in thresholds:
        passing = relations.confidence >= np.float32(threshold)
        choices.append(relations.at(threshold))
        estimates.append(relations.precision(passing, ONE_SIDE))
        if_all_correct.append(all_correct.precision(passing, ONE_SIDE))
    return choose(choices, estimates, if_all_correct, target)


def choose(
    choices: Sequence[ThresholdChoice],
    estimates: Sequence[PrecisionEstimate],
    if_all_correct: Sequence[PrecisionEstimate],
    target: float,
) -> ThresholdChoice | None:
    """Return the choice of `lowest_shown`; None: no threshold shows a precision of `target`.

    Args:
        choices: what each threshold keeps, the strictest first.
        estimates: the precision that it shows.
        if_all_correct: what it would show if all judged relations were correct.
        target: the precision.
    """
    lows = [estimate.low for estimate in estimates]
    highest = [estimate.low for estimate in if_all_correct]
    number = lowest_shown(lows, highest, target)
    return None if number is None else replace(choices[number], at_least=lows[number])
