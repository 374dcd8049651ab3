"""How often the 95% intervals that sgpipe prints contain what they estimate, by simulation.

python -m benchmarks.interval_coverage

Each row draws 1,000 data sets whose expected value is known, or is the mean over all of them, and counts the intervals
that contain it. 93 to 97% is right, more is cautious.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rich.table import Table

from benchmarks.measure import report
from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.scores import ClassScores, Tally
from sgpipe.evaluation.result import Resampling, compare_paired

SIMULATIONS = 1000
RESAMPLES = 100  # instead of 1,000, which takes ten times as long

Row = tuple[str, str, float]  # what is printed where, the data, the share of intervals that contain the expected value


def detections(
    rng: np.random.Generator, *, images: int, classes: int, targets_per_image: float, gain: float
) -> tuple[Resampling, Resampling]:
    """Two detectors on the same images; the first finds a share of `gain` more targets.

    Few classes are frequent and many are rare (Zipf), and frequent ones are easier. Both detectors fail on the same
    targets more often than by chance, and some images are harder than others.
    """
    rates = 1 / np.arange(1, classes + 1)
    rates *= targets_per_image / rates.sum()
    ease = np.linspace(0.75, 0.35, classes)
    target_image, target_class = _spread(rng, rates, images)
    shift = rng.normal(0, 0.5, images)
    luck, score = rng.random(len(target_image)), rng.normal(1.2, 1, len(target_image))
    sides = []
    for found in (ease + gain, ease):
        common = rng.random(len(luck)) < 0.6
        own_luck = np.where(common, luck, rng.random(len(luck)))
        own_score = np.where(common, score, rng.normal(1.2, 1, len(luck)))
        hits = np.flatnonzero(own_luck < found[target_class])
        wrong_image, wrong_class = _spread(rng, rates + 0.02, images)
        image = np.concatenate((target_image[hits], wrong_image))
        scores = np.concatenate((own_score[hits], rng.normal(0, 1, len(wrong_image)))) + shift[image]
        matches = np.concatenate((hits, np.full(len(wrong_image), -1)))
        tally = Tally()
        predicted = np.concatenate((target_class[hits], wrong_class))
        tally.add(target_class, predicted, scores, matches, (target_image, image))
        sides.append(_resampling(tally.class_scores(), images))
    return sides[0], sides[1]


def _spread(rng: np.random.Generator, rates: Array, images: int) -> tuple[Array, Array]:
    """Image and class of things whose numbers are Poisson with these rates `[classes]`."""
    counts = rng.poisson(rates, (images, len(rates)))
    image, kind = np.indices(counts.shape)
    return np.repeat(image, counts.reshape(-1)), np.repeat(kind, counts.reshape(-1))


def _resampling(scores: ClassScores, images: int) -> Resampling:
    def summary(counts: Array) -> dict[str, float]:
        own = scores.resampled(counts)
        recall = own.true_positives.sum() / max(own.targets.sum(), 1)
        return {"mAP": own.mean(), "recall of all targets": float(recall)}

    return Resampling([f"{number:06d}" for number in range(images)], summary)


def relations(rng: np.random.Generator, *, images: int, per_image: float) -> tuple[Resampling, Resampling]:
    """The precision of two runs of 97% and 95%, whose mistakes cluster in some images."""
    sides = []
    for precision in (0.97, 0.95):
        predicted = rng.poisson(per_image, images)
        correct = rng.binomial(predicted, rng.beta(10 * precision, 10 * (1 - precision), images))

        def summary(counts: Array, predicted: Array = predicted, correct: Array = correct) -> dict[str, float]:
            return {"precision": float(counts @ correct / (counts @ predicted))}

        sides.append(Resampling([f"{number:06d}" for number in range(images)], summary))
    return sides[0], sides[1]


def evaluations() -> Iterator[Row]:
    """`sgpipe eval … --compare`."""
    few = "20 classes, half with about 3 targets or fewer, 100 images"
    scenes = {
        f"{few}, equal detectors": (detections, {"images": 100, "classes": 20, "targets_per_image": 1.2, "gain": 0.0}),
        "60 classes, half with about 3 targets or fewer, 300 images": (
            detections,
            {"images": 300, "classes": 60, "targets_per_image": 1.2, "gain": 0.1},
        ),
        "40 classes, half with about 12 targets or fewer, 500 images": (
            detections,
            {"images": 500, "classes": 40, "targets_per_image": 2.0, "gain": 0.1},
        ),
        "precision of 97% and 95%, 300 relations in 100 images": (relations, {"images": 100, "per_image": 3.0}),
    }
    for number, (data, (draw, settings)) in enumerate(scenes.items()):
        rng = np.random.default_rng(number)
        found = [compare_paired(*draw(rng, **settings), resamples=RESAMPLES).measures for _ in range(SIMULATIONS)]
        for name in found[0]:
            own = [each[name] for each in found]
            yield f"eval --compare: {name}", data, _covered([(each.value, each.interval) for each in own])
            differences = [(each.difference, each.difference_interval) for each in own]
            yield f"eval --compare: difference of {name}", data, _covered(differences)


def _covered(estimates: list[tuple[float, tuple[float, float]]]) -> float:
    """The share of intervals that contain the mean of all estimates; those that are not printed do not count."""
    expected = np.mean([value for value, _ in estimates])
    bounds = np.array([interval for _, interval in estimates])
    bounds = bounds[~np.isnan(bounds[:, 0])]
    return float(((bounds[:, 0] <= expected) & (expected <= bounds[:, 1])).mean())


def main() -> None:
    table = Table("interval", "data", "nominal", f"measured, of {SIMULATIONS:,}")
    for name, data, covered in evaluations():
        table.add_row(name, data, "95%", f"{covered:.1%}")
    report(str(__doc__), table)


if __name__ == "__main__":
    main()
