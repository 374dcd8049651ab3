"""The result of an evaluation: its curves and plot, and differences of two with their intervals."""

import math
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.interval_coverage import detections
from rlip_model.evaluation.precision import area
from rlip_model.evaluation.scores import ClassScores
from sgpipe.errors import UserError
from sgpipe.evaluation.result import (
    Difference,
    EvaluationResult,
    Resampling,
    class_curve,
    compare_paired,
    precision_at,
)
from tests.values import values_of


def scores(targets: int, correct: np.ndarray) -> ClassScores:
    """Scores of a class with a number of targets and the correctness of its detections."""
    counts = np.array([targets]), np.array([len(correct)]), np.array([correct.sum()])
    return ClassScores(np.array([10]), *counts, np.zeros(1), np.zeros(len(correct)), correct)


def test_precision_is_the_best_at_this_recall_or_a_larger_one() -> None:
    precision = precision_at(np.array([0.3, 0.6]), np.array([1.0, 0.5]))
    assert precision.tolist() == [1] * 31 + [0.5] * 30 + [0] * 40


def test_the_area_below_a_curve_is_the_average_precision() -> None:
    rng = np.random.default_rng(0)
    for count in (50, 200):
        hits = rng.random(3 * count) < 0.3
        hits &= np.cumsum(hits) <= count
        assert class_curve(scores(count, hits)).mean() == pytest.approx(area(hits, count), abs=0.01)


def test_the_plot_has_a_line_and_a_legend_entry_for_each_group_and_escapes_names() -> None:
    curves = {"<script>": np.ones(101), "rare": np.zeros(101)}
    root = ElementTree.fromstring(EvaluationResult("A & B", {}, {}, [], [], curves=curves).as_svg())
    name = root.tag.removesuffix("svg")
    lines = [line.get("points", "").split() for line in root.iter(f"{name}polyline")]
    assert list(map(len, lines)) == [101, 101]
    top, bottom = (float(line[0].split(",")[1]) for line in lines)
    assert top < bottom
    texts = values_of(root.iter(f"{name}text"), "text")
    assert {"A & B", "recall", "precision", "<script>: 1.000", "rare: 0.000"} <= set(texts)


def share(
    correct: np.ndarray, names: list[str] | None = None, unpredicted: frozenset[str] = frozenset()
) -> Resampling:
    """The share of images that are correct."""
    names = names or [f"{number:03d}" for number in range(len(correct))]
    return Resampling(
        names, lambda counts: {"share": float(counts @ correct / counts.sum())}, unpredicted
    )


def compared(first: Resampling, second: Resampling, **options: int) -> Difference:
    return compare_paired(first, second, **options).measures["share"]


def test_intervals_of_shares_are_those_of_known_formulas() -> None:
    rng = np.random.default_rng(0)
    first = rng.random(401) < 0.6
    second = rng.random(401) < 0.5
    measure = compared(share(first), share(second), resamples=4000)
    assert measure.difference_interval == pytest.approx(
        _t_interval(1.0 * first - second), abs=0.003
    )
    assert measure.interval == pytest.approx(_t_interval(first), abs=0.003)
    certain = compared(share(np.arange(100) < 99), share(second[:100]), resamples=4000)
    assert certain.interval == pytest.approx((0.945, 0.998), abs=0.003)  # Wilson's, of 99 in 100


def _t_interval(values: np.ndarray) -> tuple[float, float]:
    half = 1.966 * values.std(ddof=1) / math.sqrt(len(values))
    return values.mean() - half, values.mean() + half


@pytest.mark.slow
def test_intervals_contain_their_estimates_and_cover_where_classes_have_few_targets() -> None:
    """Mean average precision over 20 classes, half of which have three targets or fewer in 100
    images.
    """
    rng = np.random.default_rng(1)
    measures = []
    for _ in range(150):
        sides = detections(rng, images=100, classes=20, targets_per_image=1.2, gain=0.1)
        measures.append(compare_paired(*sides, resamples=60).measures["mAP"])
    estimates = np.array(values_of(measures, "value", "other", "difference"))
    bounds = np.array(values_of(measures, "interval", "other_interval", "difference_interval"))
    assert ((bounds[..., 0] < estimates) & (estimates < bounds[..., 1])).all()
    expected = estimates.mean(0)
    covered = ((bounds[..., 0] <= expected) & (expected <= bounds[..., 1])).mean(0)
    assert (covered > 0.91).all(), covered
    assert (covered < 0.995).all(), covered


def test_the_order_of_images_and_of_the_two_sides_does_not_matter() -> None:
    rng = np.random.default_rng(1)
    first = rng.integers(0, 2, 30)
    second = rng.integers(0, 2, 30)
    order = rng.permutation(30)
    names = [f"{number:03d}" for number in order]
    once = compared(share(first), share(second), resamples=50)
    assert compared(share(first), share(second[order], names), resamples=50) == once
    turned = compared(share(second), share(first), resamples=50)
    assert turned.interval == once.other_interval
    assert turned.difference_interval == pytest.approx(
        [-once.difference_interval[1], -once.difference_interval[0]]
    )
    assert compared(share(first), share(second), resamples=50, seed=1) != once


def test_nothing_is_shown_where_nothing_varies() -> None:
    values = share(np.random.default_rng(2).random(20))
    measure = compared(values, values, resamples=20)
    assert (measure.difference, measure.difference_interval, measure.shown) == (0, (0, 0), False)
    for images in (1, 20):
        extremes = compared(share(np.ones(images)), share(np.zeros(images)), resamples=20)
        assert extremes.difference == 1
        assert not extremes.shown
        assert np.isnan(
            [extremes.interval, extremes.other_interval, extremes.difference_interval]
        ).all()


def test_halves_in_which_a_measure_is_undefined_are_left_out() -> None:
    rare = np.array([1.0, 0, 0, 0, 0, 0])
    weights = np.array([1.0, 1, 0, 0, 0, 0])

    def summary(counts: np.ndarray) -> dict[str, float]:
        return {
            "rare": float(counts @ rare / (counts @ weights)) if counts @ weights else math.nan,
            "never": math.nan,
        }

    measures = compare_paired(*[Resampling(list("abcdef"), summary)] * 2, resamples=50).measures
    low, high = measures["rare"].interval
    assert 0 < low < 0.5 < high < 1
    assert all(map(math.isnan, measures["never"].interval))
    assert not measures["never"].shown


def test_other_images_are_refused_with_their_number() -> None:
    three = share(np.ones(3))
    lacking = share(np.ones(3), unpredicted=frozenset({"001"}))
    for first, second, message in (
        (
            share(np.ones(3), ["a", "b", "c"]),
            share(np.ones(2), ["a", "d"]),
            "3 images on one side only, such as 'b'",
        ),
        (three, lacking, "1 image on one side only"),
        (share(np.ones(0)), share(np.ones(0)), "none was scored"),
    ):
        with pytest.raises(UserError, match=message):
            compare_paired(first, second)
