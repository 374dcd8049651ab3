import numpy as np
import pytest

from sgpipe.errors import UserError
from sgpipe.stats.calibration import JudgedRelations, PrecisionEstimate, wilson


def judged(*pairs: tuple[float, bool]) -> JudgedRelations:
    return JudgedRelations(np.array([c for c, _ in pairs], np.float32), np.array([r for _, r in pairs], bool))


def test_wilson_is_the_published_interval():
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for correct, total, low, high in ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611)):
        assert wilson(correct / total, total, -1) == pytest.approx(low, abs=1e-4)
        assert wilson(correct / total, total, 1) == pytest.approx(high, abs=1e-4)
    assert str(PrecisionEstimate(1, 29)) == "3.4% (0.6% to 17.2%, of 29)"
    nothing = PrecisionEstimate(0, 0)
    assert (nothing.value, nothing.low, nothing.high, str(nothing)) == (None, 0.0, 1.0, "–")


def test_thresholds_compare_as_shards_store():
    kept = judged((0.2, True), (0.1, False)).at(0.2)
    assert (kept.kept, kept.precision.correct) == (1, 1)


def test_the_lowest_threshold_that_reaches_the_target():
    above = [(0.9, True)] * 9 + [(0.8, False)]  # 90 %
    below = [(0.5, True)] * 6 + [(0.5, False)] * 4  # together 75 %
    relations = judged(*above, *below, (0.1, False))
    choice = relations.suggest(0.9)
    assert (choice.threshold, choice.kept) == (pytest.approx(0.8), 10)
    assert relations.suggest(0.75).threshold == pytest.approx(0.5)
    assert relations.suggest(0.75).kept == 20  # equal confidences stay together
    assert relations.suggest(0.95) is None  # nine are too few to rest on
    assert judged().suggest(0.5) is None
    with pytest.raises(UserError, match="expected a number above 0"):
        relations.suggest(0)


def test_calibration_is_measured_by_bins():
    perfect = judged(*[(0.25, n < 1) for n in range(4)], *[(0.75, n < 3) for n in range(4)])
    assert perfect.calibration_error() == pytest.approx(0)
    assert [(part.start, part.precision.correct) for part in perfect.reliability()] == [(0.2, 1), (0.7, 3)]
    assert judged((1.0, False)).calibration_error() == 1
    assert judged().calibration_error() is None
