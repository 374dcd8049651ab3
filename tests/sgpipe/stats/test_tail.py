import json

import pytest

from sgpipe.stats.tail import measure_tail


def test_equal_counts_have_no_inequality():
    tail = measure_tail([7] * 16)
    assert (tail.kinds, tail.total, tail.half) == (16, 112, 8)
    assert tail.gini == pytest.approx(0)
    assert tail.entropy == pytest.approx(4)
    assert tail.effective_kinds == pytest.approx(16)
    assert tail.head_share == pytest.approx(10 / 16)


def test_one_that_has_nearly_everything():
    tail = measure_tail([1, 1, 1, 997])
    # Mean absolute difference over all ordered pairs, divided by twice the mean: the definition of the coefficient.
    counts = [1, 1, 1, 997]
    gini = sum(abs(a - b) for a in counts for b in counts) / 16 / (2 * 250)
    assert tail.gini == pytest.approx(gini)
    assert (tail.half, tail.singletons) == (1, 3)
    assert tail.entropy < 0.05


def test_nothing():
    assert measure_tail([]).kinds == measure_tail([]).total == 0


def test_the_published_frequencies_have_the_published_totals(oracle):
    """5.83 M relations of 1,141 kinds at 0.20, 3.00 M at 0.25, of which few have most."""
    tails = {}
    for threshold in ("20", "25"):
        name = f"RLIPv2_train2017_threshold{threshold}_Tagger2_Noi24_20e_keep_names_freq.json"
        frequencies = json.loads((oracle / "data" / "priors" / name).read_text())
        tails[threshold] = measure_tail(list(frequencies["relationship_freq"].values()))
    assert (tails["20"].total, tails["20"].kinds) == (5_828_544, 1_141)
    assert 2.95e6 < tails["25"].total < 3.05e6
    assert tails["25"].kinds <= tails["20"].kinds
    assert tails["20"].half < 40
    assert tails["20"].gini > 0.8
