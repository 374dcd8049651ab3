import math

import numpy as np
import pytest

from sgpipe.errors import UserError
from sgpipe.evaluation.result import Difference, Resampling, paired_bootstrap


def share(correct: np.ndarray, names: list[str] | None = None, unpredicted: frozenset[str] = frozenset()) -> Resampling:
    """The share of images that are correct."""
    names = names or [f"{number:03d}" for number in range(len(correct))]
    return Resampling(names, lambda counts: {"share": float(counts @ correct / counts.sum())}, unpredicted)


def compared(first: Resampling, second: Resampling, **options: int) -> Difference:
    return paired_bootstrap(first, second, **options).measures["share"]


def test_intervals_contain_what_they_are_of_and_are_narrower_for_pairs_that_agree() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.6
    alike, unlike = first & (rng.random(200) < 0.9), rng.random(200) < 0.54
    near, far = compared(share(first), share(alike)), compared(share(first), share(unlike))
    for own in (near, far):
        assert own.difference == pytest.approx(own.value - own.other)
        for value, (low, high) in (
            (own.value, own.interval),
            (own.other, own.other_interval),
            (own.difference, own.difference_interval),
        ):
            assert low < value < high
    assert near.shown
    assert np.ptp(near.difference_interval) < np.ptp(far.difference_interval) / 2


def test_the_order_of_images_and_of_the_two_sides_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    first, second, order = rng.integers(0, 2, 30), rng.integers(0, 2, 30), rng.permutation(30)
    names = [f"{number:03d}" for number in order]
    once = compared(share(first), share(second), resamples=50)
    assert compared(share(first), share(second[order], names), resamples=50) == once
    turned = compared(share(second), share(first), resamples=50)
    assert turned.interval == once.other_interval
    assert turned.difference_interval == pytest.approx([-once.difference_interval[1], -once.difference_interval[0]])
    assert compared(share(first), share(second), resamples=50, seed=1) != once


def test_an_evaluation_does_not_differ_from_itself() -> None:
    same = share(np.random.default_rng(2).random(20))
    own = compared(same, same, resamples=20)
    assert (own.difference, own.difference_interval, own.shown) == (0, (0, 0), False)


def test_resamples_in_which_a_measure_is_undefined_are_left_out() -> None:
    rare = np.arange(4) == 0

    def summary(counts: np.ndarray) -> dict[str, float]:
        return {"rare": 1.0 if counts @ rare else math.nan, "never": math.nan}

    measures = paired_bootstrap(*[Resampling(list("abcd"), summary)] * 2, resamples=50).measures
    assert measures["rare"].interval == (1, 1)
    assert all(map(math.isnan, measures["never"].interval))
    assert not measures["never"].shown


def test_other_images_are_refused_with_their_number() -> None:
    values = np.ones(3)
    with pytest.raises(UserError, match=r"2 images scored on one side are not on the other, and 1 the other way round"):
        paired_bootstrap(share(values, ["a", "b", "c"]), share(np.ones(2), ["a", "d"]))
    with pytest.raises(UserError, match=r"1 image with predictions on one side is not on the other"):
        paired_bootstrap(share(values), share(values, unpredicted=frozenset({"001"})))
    with pytest.raises(UserError, match="none was scored"):
        paired_bootstrap(share(np.ones(0)), share(np.ones(0)))


def test_intervals_contain_the_true_difference_in_about_95_of_100_experiments() -> None:
    rng = np.random.default_rng(3)
    hits, experiments = 0, 120
    for _ in range(experiments):
        first = rng.random(80) < 0.7
        second = np.where(rng.random(80) < 0.5, first, rng.random(80) < 0.5)  # agrees in half of the images
        low, high = compared(share(first), share(second), resamples=100).difference_interval
        hits += low <= 0.1 <= high
    assert 0.89 <= hits / experiments <= 0.99
