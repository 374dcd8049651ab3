"""How often the 95% intervals that sgpipe prints contain what they estimate, by simulation.

python -m benchmarks.interval_coverage

Each row of intervals draws 1,000 datasets (of ground truth 2,000) whose expected value is known, or
is the mean over all of them, and counts the intervals that contain it, or that lie above or below
it. 93 to 97% is right, more is cautious.

Each row of thresholds draws 2,000 samples of a run, and asks for a precision of 80%. A shown
threshold is wrong if it keeps relations, of the whole run, of a lower precision. What is promised
is that at most 5% of all samples show a wrong one. "Wrong of shown" can be more: where no threshold
has the precision, all that are shown are wrong, by whatever method. "Recall": the mean share of the
run's correct relations that the threshold keeps, 0 if none is shown. With a wave, precision does
not rise steadily with the confidence; if flat, confidence says nothing, and all relations have a
precision of 79%. On a plateau, all that is kept above some confidence has the precision that the
row names; a head of 8% of the relations has 95%.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import chain, product
from typing import Any

import numpy as np
from rich.table import Table

from benchmarks.measure import report
from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.scores import ClassScores, Tally
from sgpipe.calibration import lowest_shown
from sgpipe.errors import UserError
from sgpipe.evaluation.result import Resampling, compare_paired
from sgpipe.stats.calibrate import fit
from sgpipe.stats.plans import equal_shares
from sgpipe.stats.precision import JudgedRelations, estimate_clustered, estimate_stratified
from sgpipe.stats.thresholds import ONE_SIDE, candidates, suggest
from sgpipe.utils.odds import from_log_odds, log_odds

SIMULATIONS = 1000
MORE_SIMULATIONS = 2000  # of ground truth and thresholds
RESAMPLES = 100  # instead of 1,000, which takes ten times as long

# what is printed where, the data, the share of intervals that contain the expected value
Row = tuple[str, str, float]
Curve = Callable[[Array], Array]  # the precision of relations of a confidence
# of the run's relations, the least confident first
SHARES_ABOVE = 1 - (np.arange(20_000) + 0.5) / 20_000
EDGES = (0.1, 0.2, 0.3, 0.5, 0.7)  # of the bands of confidence
TARGET = 0.8  # precision
TOOLS = ("stats --truth", "stats --judgements", "calibrate, --precision")


def detections(
    rng: np.random.Generator, *, images: int, classes: int, targets_per_image: float, gain: float
) -> tuple[Resampling, Resampling]:
    """Two detectors on the same images; the first finds a share of `gain` more targets.

    Few classes are frequent and many are rare (Zipf), and frequent ones are easier. Both detectors
    fail on the same targets more often than by chance, and some images are harder than others.
    """
    rates = 1 / np.arange(1, classes + 1)
    rates *= targets_per_image / rates.sum()
    ease = np.linspace(0.75, 0.35, classes)
    target_image, target_class = _spread(rng, rates, images)
    shift = rng.normal(0, 0.5, images)
    luck = rng.random(len(target_image))
    score = rng.normal(1.2, 1, len(target_image))
    sides = []
    for luck_of_model in (ease + gain, ease):
        common = rng.random(len(luck)) < 0.6
        own_luck = np.where(common, luck, rng.random(len(luck)))
        own_score = np.where(common, score, rng.normal(1.2, 1, len(luck)))
        hits = np.flatnonzero(own_luck < luck_of_model[target_class])
        wrong_image, wrong_class = _spread(rng, rates + 0.02, images)
        image = np.concatenate((target_image[hits], wrong_image))
        scores = (
            np.concatenate((own_score[hits], rng.normal(0, 1, len(wrong_image)))) + shift[image]
        )
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
        resampled = scores.resampled(counts)
        recall = resampled.true_positives.sum() / max(resampled.targets.sum(), 1)
        return {"mAP": resampled.mean(), "recall of all targets": float(recall)}

    return Resampling([f"{number:06d}" for number in range(images)], summary)


def relations(
    rng: np.random.Generator, *, images: int, per_image: float
) -> tuple[Resampling, Resampling]:
    """The precision of two runs of 97% and 95%, whose mistakes cluster in some images."""
    sides = []
    for precision in (0.97, 0.95):
        predicted = rng.poisson(per_image, images)
        correct = rng.binomial(predicted, rng.beta(10 * precision, 10 * (1 - precision), images))

        def summary(
            counts: Array, predicted: Array = predicted, correct: Array = correct
        ) -> dict[str, float]:
            return {"precision": float(counts @ correct / (counts @ predicted))}

        sides.append(Resampling([f"{number:06d}" for number in range(images)], summary))
    return sides[0], sides[1]


def evaluations() -> Iterator[Row]:
    """`sgpipe eval … --compare`."""
    few = "20 classes, half with about 3 targets or fewer, 100 images"
    scenes: dict[str, tuple[Callable[..., tuple[Resampling, Resampling]], dict[str, Any]]] = {
        f"{few}, equal detectors": (
            detections,
            {"images": 100, "classes": 20, "targets_per_image": 1.2, "gain": 0.0},
        ),
        "60 classes, half with about 3 targets or fewer, 300 images": (
            detections,
            {"images": 300, "classes": 60, "targets_per_image": 1.2, "gain": 0.1},
        ),
        "40 classes, half with about 12 targets or fewer, 500 images": (
            detections,
            {"images": 500, "classes": 40, "targets_per_image": 2.0, "gain": 0.1},
        ),
        "precision of 97% and 95%, 300 relations in 100 images": (
            relations,
            {"images": 100, "per_image": 3.0},
        ),
    }
    for number, (data, (draw, settings)) in enumerate(scenes.items()):
        rng = np.random.default_rng(number)
        measured = [
            compare_paired(*draw(rng, **settings), resamples=RESAMPLES).measures
            for _ in range(SIMULATIONS)
        ]
        for name in measured[0]:
            measures = [measure[name] for measure in measured]
            yield (
                f"eval --compare: {name}",
                data,
                _covered([(measure.value, measure.interval) for measure in measures]),
            )
            differences = [
                (measure.difference, measure.difference_interval) for measure in measures
            ]
            yield f"eval --compare: difference of {name}", data, _covered(differences)


def plateau(precision: float) -> Curve:
    """No threshold has more."""
    return lambda confidence: precision * from_log_odds(2.5 * log_odds(confidence) + 1.5)


def head_and_plateau(precision: float) -> Curve:
    """The first 8% have 95%; from 20 to 50% of the relations, all that a threshold keeps has this
    precision.
    """

    def curve(confidence: Array) -> Array:
        between = (0.2 * precision - 0.08 * 0.95) / 0.12
        shares = SHARES_ABOVE
        parts = [shares < 0.08, shares < 0.2, shares < 0.5]
        return np.select(parts, [0.95, between, precision], 0.45 * precision)

    return curve


CURVES: dict[str, Curve] = {
    "steep": lambda confidence: from_log_odds(2 * log_odds(confidence) + 1),
    "gentle": lambda confidence: from_log_odds(0.7 * log_odds(confidence) + 0.5),
    "plateau of 93%": plateau(0.93),
    "wave": lambda confidence: np.clip(
        0.15 + 0.8 * confidence + 0.08 * np.sin(9 * confidence), 0, 1
    ),
    "flat": lambda confidence: np.full(len(confidence), 0.79),
    **{f"plateau of {100 * at:.3g}%": plateau(at) for at in (0.795, 0.785, 0.77)},
    **{
        f"head, then a plateau of {100 * at:.3g}%": head_and_plateau(at)
        for at in (0.795, 0.785, 0.77)
    },
}


class Run:
    """A run of 20,000 relations, most of low confidence, and random plans that sample its bands of
    confidence.
    """

    def __init__(self, curve: Curve) -> None:
        self.rng = np.random.default_rng(0)
        self.confidence = np.sort(self.rng.beta(0.7, 1.3, 20_000) * 0.96 + 0.02)
        self.correct = self.rng.random(len(self.confidence)) < curve(self.confidence)
        # of one, the others
        self.predicate = self.rng.random(len(self.confidence)) < 0.2 + 0.3 * self.confidence
        self.band = np.digitize(self.confidence, EDGES)
        self.sizes = np.bincount(self.band)
        self.above = np.cumsum(self.correct[::-1])[::-1] / np.arange(len(self.correct), 0, -1)

    def precision(self, threshold: float) -> float:
        """The precision of the relations that a threshold keeps."""
        return float(self.above[min(self._first(threshold), len(self.above) - 1)])

    def recall(self, threshold: float) -> float:
        """The share of the correct relations that a threshold keeps."""
        return float(self.correct[self._first(threshold) :].sum() / self.correct.sum())

    def _first(self, threshold: float) -> int:
        return int(np.searchsorted(self.confidence.astype(np.float32), np.float32(threshold)))

    def judge(self, number: int) -> Array:
        """The relations that people judge."""
        shares = equal_shares(self.sizes.tolist(), number)
        starts = np.cumsum(self.sizes) - self.sizes
        return np.concatenate([
            starts[band] + self.rng.choice(self.sizes[band], share, replace=False) for band, share in enumerate(shares)
        ])  # fmt: skip

    def suggest_by_truth(self, number: int) -> float | None:
        """The threshold that `sgpipe stats --truth` suggests, of images with one relation each."""
        judged = self.rng.choice(len(self.correct), number, replace=False)
        relations = JudgedRelations(
            self.confidence[judged].astype(np.float32), self.correct[judged]
        )
        choice = suggest(relations, TARGET)
        return None if choice is None else choice.threshold

    def suggest_by_people(self, judged: Array) -> float | None:
        """The threshold that `sgpipe stats --judgements` suggests."""
        confidence = self.confidence[judged].astype(np.float32)
        cuts = np.array(candidates(confidence), np.float32)
        in_band = self.band[judged][:, None] == np.arange(len(self.sizes))
        is_kept = confidence >= cuts[:, None]
        seen = is_kept.astype(int) @ in_band
        right = (is_kept & self.correct[judged]).astype(int) @ in_band
        bands = np.split(self.confidence.astype(np.float32), self.sizes.cumsum()[:-1])
        relations = np.stack([len(band) - np.searchsorted(band, cuts) for band in bands], 1)
        lows = [
            precision.low for precision in estimate_stratified(relations, seen, right, ONE_SIDE)
        ]
        highest = [
            precision.low for precision in estimate_stratified(relations, seen, seen, ONE_SIDE)
        ]
        at = lowest_shown(lows, highest, TARGET)
        return None if at is None else float(cuts[at])

    def calibrate(self, judged: Array) -> float | None:
        """The minimum confidence by a calibration with `--precision`."""
        images = np.arange(len(judged)).astype(str).astype(object)
        weight = (self.sizes / np.bincount(self.band[judged]))[self.band[judged]]
        with suppress(UserError):
            calibration = fit(
                {},
                JudgedRelations(self.confidence[judged], self.correct[judged], images, weight),
                "people",
            )
            return calibration.threshold(calibration.probability_for(TARGET))
        return None

    def estimate(self, judged: Array, chosen: Array) -> tuple[float, tuple[float, float]]:
        """The precision of some relations by the judged ones, as `sgpipe stats --judgements`
        estimates it.
        """
        judged_rows = judged[chosen[judged]]
        tallies = (
            np.bincount(self.band[rows], minlength=len(self.sizes))
            for rows in (judged_rows, judged_rows[self.correct[judged_rows]])
        )
        [estimate] = estimate_stratified(np.bincount(self.band[chosen], minlength=len(self.sizes))[None], *(
            tally[None] for tally in tallies
        ))  # fmt: skip
        return 0.0, (estimate.low, estimate.high)


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
                estimates = [run.estimate(judged, chosen) for judged in samples]
                yield (
                    f"plan: {part}",
                    f"{name}, {number} judgements",
                    _covered(estimates, run.correct[chosen].mean()),
                )


def ground_truth() -> Iterator[tuple[str, float, float, float, float]]:
    """`sgpipe stats --truth`: images may be alike or not; the expected precision is that of all
    such images.
    """
    rng = np.random.default_rng(0)
    settings = (
        (15, 10, 0.9),
        (40, 5, 0.97),
        (100, 5, 0.97),
        (300, 4, 0.97),
        (40, 12, 0.9),
        (1000, 3, 0.9),
    )
    for (images, relations, precision), alike in product(settings, (0.0, 0.2, 0.5, 0.8)):
        number = np.repeat(np.arange(images), relations)
        lows = []
        highs = []
        for _ in range(MORE_SIMULATIONS):
            chance = np.full(images, precision)
            if alike:
                strength = 1 / alike - 1
                chance = rng.beta(precision * strength, (1 - precision) * strength, images)
            estimate = estimate_clustered(rng.random(len(number)) < chance[number], number)
            lows.append(estimate.low)
            highs.append(estimate.high)
        below = float((np.array(lows) > precision).mean())
        above = float((np.array(highs) < precision).mean())
        width = float(np.mean(highs) - np.mean(lows))
        data = (
            f"{images} images of {relations} relations, precision {precision:.0%}, correlation in"
            f" an image {alike}"
        )
        yield data, 1 - below - above, below, above, width


def thresholds(
    curves: Iterable[str] = CURVES,
) -> Iterator[tuple[str, str, list[float], list[float]]]:
    """Thresholds for a precision: by `sgpipe stats`, and by a calibration with `--precision`.

    Yields what is printed where, the data, and of each shown threshold precision and recall.
    """
    for name in curves:
        run = Run(CURVES[name])
        for number in (100, 500, 2000):
            shown: dict[str, list[float]] = {tool: [] for tool in TOOLS}
            for _ in range(MORE_SIMULATIONS):
                judged = run.judge(number)
                chosen = (
                    run.suggest_by_truth(number),
                    run.suggest_by_people(judged),
                    run.calibrate(judged),
                )
                for tool, threshold in zip(TOOLS, chosen, strict=True):
                    if threshold is not None and threshold <= 1:
                        shown[tool].append(threshold)
            for tool, values in shown.items():
                yield (
                    tool,
                    f"{name}, {number} judged",
                    [run.precision(at) for at in values],
                    [*map(run.recall, values)],
                )


def threshold_row(tool: str, data: str, precisions: list[float], recalls: list[float]) -> list[str]:
    wrong = sum(precision < TARGET for precision in precisions)
    shares = (len(precisions) / MORE_SIMULATIONS, wrong / MORE_SIMULATIONS)
    of_shown = f"{wrong / len(precisions):.1%}" if precisions else "–"
    worst = f"{min(precisions):.1%}" if wrong else "–"
    return [
        tool,
        data,
        *(f"{share:.1%}" for share in shares),
        of_shown,
        worst,
        f"{sum(recalls) / MORE_SIMULATIONS:.2f}",
    ]


def _covered(
    estimates: list[tuple[float, tuple[float, float]]], expected: float | None = None
) -> float:
    """The share of intervals that contain what is expected, by default the mean of all estimates.

    Intervals that are not printed do not count.
    """
    if expected is None:
        expected = float(np.mean([value for value, _ in estimates]))
    bounds = np.array([interval for _, interval in estimates])
    bounds = bounds[~np.isnan(bounds[:, 0])]
    return float(((bounds[:, 0] <= expected) & (expected <= bounds[:, 1])).mean())


def main() -> None:
    intervals = Table("interval", "data", "nominal", f"measured, of {SIMULATIONS:,}")
    for name, data, covered in chain(plans(), evaluations()):
        intervals.add_row(name, data, "95%", f"{covered:.1%}")
    truth = Table(
        "stats --truth: precision", "intervals contain it", "lie above", "lie below", "mean width"
    )
    for data, *shares, width in ground_truth():
        truth.add_row(data, *(f"{share:.1%}" for share in shares), f"{width:.3f}")
    chosen = Table(
        "threshold", "data", "shown", "wrong", "wrong of shown", "worst precision", "recall"
    )
    for row in thresholds():
        chosen.add_row(*threshold_row(*row))
    report(str(__doc__), intervals, truth, chosen)


if __name__ == "__main__":
    main()
