import pytest

from sgpipe.stats.measures import measure_long_tail


def test_equal_counts_have_no_inequality():
    tail = measure_long_tail([7] * 16)
    assert (tail.kinds, tail.total, tail.half) == (16, 112, 8)
    assert tail.gini == pytest.approx(0)
    assert tail.entropy == pytest.approx(4)
    assert tail.effective_kinds == pytest.approx(16)
    assert tail.head_share == pytest.approx(10 / 16)


def test_one_that_has_nearly_everything():
    tail = measure_long_tail([1, 1, 1, 997])
    # Mean absolute difference over all ordered pairs, divided by twice the mean: the definition of the coefficient.
    counts = [1, 1, 1, 997]
    gini = sum(abs(a - b) for a in counts for b in counts) / 16 / (2 * 250)
    assert tail.gini == pytest.approx(gini)
    assert (tail.half, tail.singletons) == (1, 3)
    assert str(measure_long_tail([5]).entropy) == "0.0"
    assert tail.entropy < 0.05


def test_nothing():
    assert measure_long_tail([]).kinds == measure_long_tail([]).total == 0
