"""Differences between two evaluations of the same images, and their intervals."""

import math

import numpy as np
import pytest

from benchmarks.interval_coverage import detections
from sgpipe.errors import UserError
from sgpipe.evaluation.result import Difference, Resampling, compare_paired


def share(correct: np.ndarray, names: list[str] | None = None, unpredicted: frozenset[str] = frozenset()) -> Resampling:
    """The share of images that are correct."""
    names = names or [f"{number:03d}" for number in range(len(correct))]
    return Resampling(names, lambda counts: {"share": float(counts @ correct / counts.sum())}, unpredicted)


def compared(first: Resampling, second: Resampling, **options: int) -> Difference:
    return compare_paired(first, second, **options).measures["share"]


def test_intervals_of_shares_are_those_of_known_formulas() -> None:
    rng = np.random.default_rng(0)
    first, second = rng.random(401) < 0.6, rng.random(401) < 0.5
    own = compared(share(first), share(second), resamples=4000)
    assert own.difference_interval == pytest.approx(_t_interval(1.0 * first - second), abs=0.003)
    assert own.interval == pytest.approx(_t_interval(first), abs=0.003)
    certain = compared(share(np.arange(100) < 99), share(second[:100]), resamples=4000)
    assert certain.interval == pytest.approx((0.945, 0.998), abs=0.003)  # Wilson's, of 99 in 100


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    half = 1.966 * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


def test_pairs_that_agree_have_narrower_differences() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(200) < 0.6
    alike, unlike = first & (rng.random(200) < 0.9), rng.random(200) < 0.54
    near, far = compared(share(first), share(alike)), compared(share(first), share(unlike))
    assert near.shown
    assert np.ptp(near.difference_interval) < np.ptp(far.difference_interval) / 2


def test_intervals_contain_their_estimates_and_cover_where_classes_have_few_targets() -> None:
    """Mean average precision over 20 classes, half of which have three targets or fewer in 100 images."""
    rng = np.random.default_rng(1)
    values, intervals = [], []
    for _ in range(150):
        sides = detections(rng, images=100, classes=20, targets_per_image=1.2, gain=0.1)
        own = compare_paired(*sides, resamples=60).measures["mAP"]
        values.append((own.value, own.other, own.difference))
        intervals.append((own.interval, own.other_interval, own.difference_interval))
    estimates, bounds = np.array(values), np.array(intervals)
    assert ((bounds[..., 0] < estimates) & (estimates < bounds[..., 1])).all()
    expected = estimates.mean(0)
    covered = ((bounds[..., 0] <= expected) & (expected <= bounds[..., 1])).mean(0)
    assert (covered > 0.91).all(), covered
    assert (covered < 0.995).all(), covered


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


def test_nothing_is_shown_where_nothing_varies() -> None:
    same = share(np.random.default_rng(2).random(20))
    own = compared(same, same, resamples=20)
    assert (own.difference, own.difference_interval, own.shown) == (0, (0, 0), False)
    for images in (1, 20):
        extremes = compared(share(np.ones(images)), share(np.zeros(images)), resamples=20)
        assert extremes.difference == 1
        assert not extremes.shown
        assert np.isnan([extremes.interval, extremes.other_interval, extremes.difference_interval]).all()


def test_halves_in_which_a_measure_is_undefined_are_left_out() -> None:
    rare = np.array([1.0, 0, 0, 0, 0, 0])
    weights = np.array([1.0, 1, 0, 0, 0, 0])

    def summary(counts: np.ndarray) -> dict[str, float]:
        return {"rare": float(counts @ rare / (counts @ weights)) if counts @ weights else math.nan, "never": math.nan}

    measures = compare_paired(*[Resampling(list("abcdef"), summary)] * 2, resamples=50).measures
    low, high = measures["rare"].interval
    assert 0 < low < 0.5 < high < 1
    assert all(map(math.isnan, measures["never"].interval))
    assert not measures["never"].shown


def test_other_images_are_refused_with_their_number() -> None:
    values = np.ones(3)
    with pytest.raises(UserError, match="3 images on one side only, such as 'b'"):
        compare_paired(share(values, ["a", "b", "c"]), share(np.ones(2), ["a", "d"]))
    with pytest.raises(UserError, match="1 image on one side only"):
        compare_paired(share(values), share(values, unpredicted=frozenset({"001"})))
    with pytest.raises(UserError, match="none was scored"):
        compare_paired(share(np.ones(0)), share(np.ones(0)))
