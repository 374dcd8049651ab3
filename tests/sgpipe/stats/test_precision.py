import numpy as np
import pytest

from sgpipe.stats.plans import equal_shares
from sgpipe.stats.precision import (
    JudgedRelations,
    ThresholdChoice,
    design_effect,
    estimate,
    estimate_clustered,
    estimate_stratified,
    perfect_error,
    short_threshold,
    stratified_interval,
    wilson,
)

RISING = (0.1, 0.3, 0.45, 0.6, 0.75, 0.92)
ORDINARY = {
    "even": ((5_000,) * 6, RISING, 20),
    "skewed": ((50_000, 9_000, 5_000, 3_000, 1_500, 600), RISING, 300),
    "one band judged whole": ((500, 12, 8, 5), (0.6, 0.5, 0.5, 0.8), 60),
    "all right": ((3_000, 200, 40, 8), (1.0,) * 4, 60),
}


def judged(*pairs: tuple[float, bool]) -> JudgedRelations:
    return JudgedRelations(
        np.array([c for c, _ in pairs], np.float32), np.array([r for _, r in pairs], bool)
    )


def test_wilson_is_the_published_interval():
    # Newcombe 1998, table I, method 3: 81 of 263, 15 of 148, 0 of 20, 1 of 29.
    for correct, total, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
    ):
        assert wilson(correct / total, total, -1) == pytest.approx(low, abs=1e-4)
        assert wilson(correct / total, total, 1) == pytest.approx(high, abs=1e-4)
    assert str(estimate(1, 29)) == "3.4% (0.6% to 17.2%, of 29)"
    nothing = estimate(0, 0)
    assert (nothing.value, nothing.low, nothing.high, str(nothing)) == (None, 0.0, 1.0, "–")


def test_few_judgements_show_an_error_although_confidences_are_exact():
    rng = np.random.default_rng(0)
    confidence = np.array([0.05, 0.3, 0.55, 0.92])
    number = np.array([3, 10, 40, 15])
    shares = rng.binomial(number, confidence, (20_000, 4)) / number
    simulated = np.average(abs(shares - confidence), weights=number, axis=1).mean()
    assert perfect_error(confidence, number, number) == pytest.approx(simulated, abs=0.001)
    relations = JudgedRelations(np.repeat(confidence, number), np.zeros(number.sum(), bool))
    assert relations.calibration.perfect_error == pytest.approx(simulated, abs=0.001)
    assert judged().calibration.perfect_error is None


@pytest.mark.parametrize(
    ("images", "relations", "precision"),
    [(15, 10, 0.9), (40, 5, 0.97), (100, 5, 0.97), (300, 4, 0.97)],
)
@pytest.mark.parametrize("correlation", [0.05, 0.5])
def test_intervals_hold_for_few_images_and_near_1(images, relations, precision, correlation):
    """benchmarks/interval_coverage.py has more cases; without images as clusters, 60 to 85 of 100
    hold.
    """
    rng = np.random.default_rng(0)
    strength = 1 / correlation - 1
    number = np.repeat(np.arange(images), relations)
    holding = 0
    for _ in range(400):
        chance = rng.beta(precision * strength, (1 - precision) * strength, images)
        correct = rng.random(len(number)) < chance[number]
        interval = estimate_clustered(correct, number)
        holding += interval.low <= precision <= interval.high
    assert holding / 400 > 0.915  # 93 of 100, less three standard errors


def test_the_design_effect_in_known_cases():
    rng = np.random.default_rng(0)
    alone = np.arange(400)
    images = np.repeat(np.arange(200), 2)
    correct = rng.random(400) < 0.7
    assert design_effect(correct, alone) == design_effect(correct, alone[:0]) == 1
    assert design_effect(correct, images) < 1.3
    assert 1.9 < design_effect(np.repeat(correct[:200], 2), images) < 2.1
    # As nothing shows that relations of an image differ, each of 20 images says as much as one
    # relation.
    sure = estimate_clustered(np.ones(100, bool), np.repeat(np.arange(20), 5))
    assert sure.low < estimate(20, 20).low
    assert estimate_clustered(np.ones(9, bool), np.zeros(9, int)).low < 0.05  # of a single image
    weighted = estimate_clustered(correct, images, np.full(400, 3.0))
    assert weighted == estimate_clustered(correct, images)
    assert estimate_clustered(correct, images, left=1e-9).low == pytest.approx(
        correct.mean(), abs=1e-3
    )


def test_calibration_is_measured_by_bins():
    perfect = judged(*[(0.25, n < 1) for n in range(4)], *[(0.75, n < 3) for n in range(4)])
    assert perfect.calibration.calibration_error == pytest.approx(0)
    assert [(part.start, part.precision.correct) for part in perfect.calibration.reliability] == [
        (0.2, 1),
        (0.7, 3),
    ]
    assert judged((1.0, False)).calibration.calibration_error == 1
    assert judged().calibration.calibration_error is None


def simulated_coverage(
    sizes, precisions, number: int, samples: int, seed: int
) -> tuple[float, float]:
    """How often the 95% interval holds the truth, and its mean width, over samples of a run with
    these bands.
    """
    rng = np.random.default_rng(seed)
    shares = equal_shares(sizes, number)
    sizes, judged = np.array(sizes), np.array([shares[band] for band in range(len(sizes))])
    correct = np.round(sizes * np.array(precisions)).astype(int)
    drawn = zip(correct, sizes - correct, judged, strict=True)
    drawn_samples = np.stack([rng.hypergeometric(*numbers, samples) for numbers in drawn], 1)
    kinds, times = np.unique(drawn_samples, axis=0, return_counts=True)
    low, high = stratified_interval(
        *(np.broadcast_to(v, kinds.shape) for v in (sizes.astype(float), judged)), kinds
    )
    truth = correct.sum() / sizes.sum()
    inside = (low <= truth + 1e-9) & (truth <= high + 1e-9)
    return (inside * times).sum() / samples, ((high - low) * times).sum() / samples


@pytest.mark.parametrize("name", ORDINARY)
def test_the_interval_of_a_stratified_sample_holds_the_truth_in_95_of_100_samples(name):
    """benchmarks/interval_coverage.py has more cases."""
    coverage, width = simulated_coverage(*ORDINARY[name], samples=300, seed=1)
    assert coverage >= 0.93
    assert width < 0.6


def test_the_interval_of_a_stratified_sample_in_known_cases():
    # One large stratum: hardly wider than the exact (Clopper-Pearson) interval, 0.2527 to 0.3677.
    [estimate] = estimate_stratified([[1e9]], [[263]], [[81]])
    assert 0.2520 < estimate.low < 0.2530 < 0.3675 < estimate.high < 0.3685
    # A census has no error, and half of one less than a sample of a large run.
    assert (
        str(estimate_stratified([[20, 4]], [[20, 4]], [[15, 1]])[0])
        == "66.7% (66.7% to 66.7%, of 24)"
    )
    [small, large] = estimate_stratified([[40], [1e6]], [[20], [20]], [[10], [10]])
    assert large.low < small.low < 0.5 < small.high < large.high
    # Weights: 10 of 10 in a band of 90 and 0 of 10 in a band of 10.
    [estimate] = estimate_stratified([[90, 10]], [[10, 10]], [[10, 0]])
    assert estimate.value == pytest.approx(0.9)
    assert estimate.high == pytest.approx(0.9)  # the band of 10 was judged whole
    # What no judgement covers may be correct or not.
    [estimate] = estimate_stratified([[50, 50]], [[50, 0]], [[50, 0]])
    assert (estimate.value, estimate.low, estimate.high, estimate.covered) == (1, 0.5, 1, 0.5)
    [nothing] = estimate_stratified([[50]], [[0]], [[0]])
    assert (nothing.value, nothing.low, nothing.high, str(nothing)) == (None, 0, 1, "–")


@pytest.mark.parametrize(
    "digits", ["0.9", "0.7", "0.1", "0.60412", "0.0043", "0.00041234", "1", "0", "0.9999"]
)
def test_a_short_threshold_keeps_its_confidence_and_is_shown_as_it_is(digits):
    confidence = np.float32(digits)
    short = short_threshold(float(confidence))
    assert np.float32(short) <= confidence
    assert short == pytest.approx(float(digits), rel=1e-2)
    text = ThresholdChoice(short, 0, estimate(0, 0)).text
    assert float(text) == short
    assert len(text.lstrip("0.")) <= 3 or short == 1
