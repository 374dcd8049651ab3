"""How often the 95% intervals that sgpipe prints contain what they estimate, by simulation.

python -m benchmarks.interval_coverage

Each row draws 1,000 datasets whose expected value is known, or is the mean over all of them, and counts the intervals
that contain it. 93 to 97% is right, more is cautious.

Rows of thresholds count the samples whose threshold keeps relations, of the whole run, with the precision that was
asked for, or that show no threshold. With a wave, precision does not rise steadily with the confidence; on a plateau,
no relation is more precise than 93%; if flat, confidence says nothing, and all relations have a precision of 79%.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import chain
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.measure import report
from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.scores import ClassScores, Tally
from sgpipe.calibration import from_log_odds, log_odds
from sgpipe.errors import UserError
from sgpipe.evaluation.result import Resampling, compare_paired
from sgpipe.stats.calibrate import fit
from sgpipe.stats.plans import equal_shares
from sgpipe.stats.precision import JudgedRelations, estimate_stratified

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
    scenes: dict[str, tuple[Callable[..., tuple[Resampling, Resampling]], dict[str, Any]]] = {
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


Curve = Callable[[Array], Array]  # the precision of relations of a confidence
CURVES: dict[str, Curve] = {
    "steep": lambda confidence: from_log_odds(2 * log_odds(confidence) + 1),
    "gentle": lambda confidence: from_log_odds(0.7 * log_odds(confidence) + 0.5),
    "plateau": lambda confidence: 0.93 * from_log_odds(2.5 * log_odds(confidence) + 1.5),
    "wave": lambda confidence: np.clip(0.15 + 0.8 * confidence + 0.08 * np.sin(9 * confidence), 0, 1),
    "flat": lambda confidence: np.full(len(confidence), 0.79),
}
EDGES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of the bands of confidence
TARGET = 0.8  # precision


class Run:
    """A run of 20,000 relations, most of low confidence, and random plans that sample its bands of confidence."""

    def __init__(self, curve: Curve) -> None:
        self.rng = np.random.default_rng(0)
        self.confidence = np.sort(self.rng.beta(0.7, 1.3, 20_000) * 0.96 + 0.02)
        self.correct = self.rng.random(len(self.confidence)) < curve(self.confidence)
        self.predicate = self.rng.random(len(self.confidence)) < 0.2 + 0.3 * self.confidence  # of one, the others
        self.band = np.digitize(self.confidence, EDGES)
        self.sizes = np.bincount(self.band)
        self.above = np.cumsum(self.correct[::-1])[::-1] / np.arange(len(self.correct), 0, -1)

    def precision(self, threshold: float) -> float:
        """The precision of the relations that a threshold keeps."""
        first = int(np.searchsorted(self.confidence.astype(np.float32), np.float32(threshold)))
        return float(self.above[min(first, len(self.above) - 1)])

    def judge(self, number: int) -> Array:
        """The relations that people judge."""
        shares = equal_shares(self.sizes.tolist(), number)
        starts = np.cumsum(self.sizes) - self.sizes
        return np.concatenate([
            starts[band] + self.rng.choice(self.sizes[band], share, replace=False) for band, share in enumerate(shares)
        ])  # fmt: skip

    def suggest(self, judged: Array) -> float | None:
        """The threshold that `sgpipe stats --judgements` suggests."""
        confidence, correct, band = self.confidence[judged], self.correct[judged], self.band[judged]
        cuts = np.array(JudgedRelations(confidence.astype(np.float32), correct).candidates())
        bands = np.arange(len(self.sizes))[None, :, None]
        kept = (confidence >= cuts[:, None])[:, None] & (band == bands)
        above = [
            len(rows) - np.searchsorted(rows, cuts) for rows in np.split(self.confidence, self.sizes.cumsum()[:-1])
        ]
        population, tallies = np.stack(above, 1), (kept.sum(2), (kept & correct).sum(2))
        for start in range(0, len(cuts), 20):  # the lowest first
            part = slice(start, start + 20)
            found = estimate_stratified(population[part], *(tally[part] for tally in tallies))
            for cut, each in zip(cuts[part], found, strict=True):
                if each.low >= TARGET:
                    return float(cut)
        return None

    def estimate(self, judged: Array, chosen: Array) -> tuple[float, tuple[float, float]]:
        """The precision of some relations by the judged ones, as `sgpipe stats --judgements` estimates it."""
        own = judged[chosen[judged]]
        tallies = (np.bincount(self.band[rows], minlength=len(self.sizes)) for rows in (own, own[self.correct[own]]))
        [found] = estimate_stratified(np.bincount(self.band[chosen], minlength=len(self.sizes))[None], *(
            tally[None] for tally in tallies
        ))  # fmt: skip
        return 0.0, (found.low, found.high)


def plans() -> Iterator[Row]:
    """The page Judge of `sgpipe view`, and `sgpipe stats --judgements`."""
    for name in ("steep", "gentle"):
        run = Run(CURVES[name])
        parts = {
            "precision of the run": np.ones(len(run.band), bool),
            "precision of a band": run.band == 3,
            "precision of a predicate": run.predicate,
            "precision at a threshold": run.confidence >= 0.6,
        }
        for number in (60, 300):
            samples = [run.judge(number) for _ in range(SIMULATIONS)]
            for part, chosen in parts.items():
                found = [run.estimate(judged, chosen) for judged in samples]
                yield f"plan: {part}", f"{name}, {number} judgements", _covered(found, run.correct[chosen].mean())


def ground_truth() -> Iterator[Row]:
    """`sgpipe stats --truth`: images may be alike or not; the expected precision is that of all such images."""
    rng = np.random.default_rng(0)
    for images, each, alike in ((200, 5, 0.0), (200, 5, 0.5), (40, 12, 0.5), (1000, 3, 0.2)):
        found = []
        for _ in range(SIMULATIONS):
            chance = rng.beta(9 * (1 / alike - 1) / 10, (1 / alike - 1) / 10, images) if alike else np.full(images, 0.9)
            correct = rng.random((images, each)) < chance[:, None]
            judged = JudgedRelations(np.full(correct.size, 0.5), correct.reshape(-1), np.arange(images).repeat(each))
            precision = judged.at(0).precision
            found.append((0.0, (precision.low, precision.high)))
        data = f"{images} images of {each} relations, precision 90%, correlation in an image {alike}"
        yield "--truth: precision", data, _covered(found, 0.9)


def thresholds() -> Iterator[Row]:
    """Thresholds that are chosen for a precision: by `sgpipe stats`, and by a calibration with `--precision`."""
    for name, curve in CURVES.items():
        run = Run(curve)
        for number in (100, 500):
            names = np.arange(number).astype(str).astype(object)
            found: dict[str, list[float]] = {
                "stats --truth: suggested threshold": [],
                "stats --judgements: suggested threshold": [],
                "calibrate: --precision": [],
            }
            for _ in range(SIMULATIONS):
                plain = run.rng.choice(len(run.correct), number, replace=False)
                relations = JudgedRelations(run.confidence[plain].astype(np.float32), run.correct[plain])
                if (choice := relations.suggest(TARGET)) is not None:
                    found["stats --truth: suggested threshold"].append(run.precision(choice.threshold))
                judged = run.judge(number)
                if (low := run.suggest(judged)) is not None:
                    found["stats --judgements: suggested threshold"].append(run.precision(low))
                weight = (run.sizes / np.bincount(run.band[judged]))[run.band[judged]]
                own = JudgedRelations(run.confidence[judged], run.correct[judged], names, weight)
                with suppress(UserError):
                    calibration = fit({}, own, "people")
                    chosen = calibration.threshold(calibration.probability_for(TARGET))
                    found["calibrate: --precision"].append(run.precision(chosen))
            for what, precisions in found.items():
                shown, missed = len(precisions) / SIMULATIONS, [each for each in precisions if each < TARGET]
                worst = f", the worst has {min(missed):.1%}" if missed else ""
                data = f"{name}, {number} judgements, {TARGET:.0%}; {shown:.0%} show a threshold{worst}"
                yield what, data, 1 - len(missed) / SIMULATIONS


def _covered(estimates: list[tuple[float, tuple[float, float]]], expected: float | None = None) -> float:
    """The share of intervals that contain what is expected, by default the mean of all estimates.

    Intervals that are not printed do not count.
    """
    if expected is None:
        expected = float(np.mean([value for value, _ in estimates]))
    bounds = np.array([interval for _, interval in estimates])
    bounds = bounds[~np.isnan(bounds[:, 0])]
    return float(((bounds[:, 0] <= expected) & (expected <= bounds[:, 1])).mean())


def main() -> None:
    table = Table("interval", "data", "nominal", f"measured, of {SIMULATIONS:,}")
    for name, data, covered in chain(plans(), ground_truth(), thresholds(), evaluations()):
        table.add_row(name, data, "95%", f"{covered:.1%}")
    report(str(__doc__), table)


if __name__ == "__main__":
    main()
