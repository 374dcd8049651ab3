import numpy as np
import pytest

from rlip_model.evaluation.matching import NO_MATCH
from rlip_model.evaluation.precision import area
from rlip_model.evaluation.scores import Tally


def tally(*blocks: tuple[list[int], list[tuple[int, float, int]]]) -> Tally:
    """Blocks: classes of true ones, and detections as class, score, claim."""
    found = Tally()
    for true, detections in blocks:
        rows = list(zip(*detections, strict=True)) or [(), (), ()]
        columns = (np.array(column, dtype=kind) for column, kind in zip(rows, (int, np.float32, int), strict=True))
        found.add(np.array(true, dtype=int), *columns)
    return found


def test_classes_that_are_true_nowhere_neither_count_nor_claim() -> None:
    scores = tally(([3], [(8, 0.9, 0), (3, 0.5, 0)])).class_scores()
    assert scores.classes.tolist() == [3]
    assert scores.detections.tolist() == [1]
    assert scores.mean() == pytest.approx(1)


def test_equal_scores_stay_in_order_or_are_turned_round() -> None:
    equal = tally(([1], [(1, 0.5, 0), (1, 0.5, NO_MATCH), (1, 0.9, NO_MATCH)]))
    assert equal.class_scores(area).average_precision.tolist() == [1 / 2]
    assert equal.class_scores(area, last_first=True).average_precision == pytest.approx([1 / 3])
