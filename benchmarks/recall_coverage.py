"""How often the 95% intervals of recall plans contain the truth, by simulation.

python -m benchmarks.recall_coverage

Plans: 2,000 random samples of the images of one run, whose recall is known. Relations of an image
are alike: "alike" is the correlation of whether the run has two of them. "Parts": 40% of the images
have more boxes than a question shows, so that a named relation stands for up to six.

People: two name 2,000 times the relations of some images. The truth is how many exist; the bound
that is printed should exceed it in at most 5%. "Named" and "bound" are mean shares of the truth:
what both people together named, and the bound. With `--estimate-total`, an estimate for independent
misses is printed, too; the last column is how often its interval holds. "Hard" images (every third)
are named 0.4 times as often as all are, and others 1.3 times; "hard" relations (every fifth) a
quarter as often, others 1.15 times.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain, product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.measure import report
from sgpipe.stats.precision import estimate_clustered
from sgpipe.stats.recall import measure_recall, recapture
from sgpipe.storage.judgement_lines import BlindAnswer, BlindQuestion, RecallPlan
from sgpipe.storage.judgements import JudgementLog

IMAGES = 3000
SIMULATIONS = 2000
Row = tuple[str, str, float]
Bound = tuple[str, str, float, float, float, float]  # misses, data, and the columns of the table


def chances(rng: np.random.Generator, mean: float, alike: float, images: int) -> NDArray[Any]:
    """A chance for each image: Beta with this correlation within an image."""
    if not alike:
        return np.full(images, mean)
    return rng.beta(mean * (1 / alike - 1), (1 - mean) * (1 / alike - 1), images)


def plans(simulations: int = SIMULATIONS, only: int | None = None) -> Iterator[Row]:
    """The recall of a run, and of a predicate that few images have."""
    rng = np.random.default_rng(0)
    settings = product(
        (0.5, 0.8, 0.95), (0.0, 0.3), ((30, 3.0), (100, 3.0), (100, 0.3), (300, 1.5)), (False, True)
    )
    for recall, alike, (asked, mean_named), parts in list(settings)[:only]:
        named = rng.poisson(mean_named * rng.gamma(2, 0.5, IMAGES))
        has = rng.binomial(named, chances(rng, recall, alike, IMAGES))
        weight = (
            np.where(rng.random(IMAGES) < 0.4, rng.uniform(1, 6, IMAGES), 1.0)
            if parts
            else np.ones(IMAGES)
        )
        truth = float(weight @ has / (weight @ named))
        covered = 0
        for _ in range(simulations):
            sampled = rng.choice(IMAGES, asked, replace=False)
            at = np.repeat(np.arange(asked), named[sampled])
            number = np.arange(len(at)) - np.repeat(
                np.cumsum(named[sampled]) - named[sampled], named[sampled]
            )
            estimate = estimate_clustered(
                number < has[sampled][at],
                at,
                weight[sampled][at],
                1.0 if parts else 1 - asked / IMAGES,
            )
            covered += estimate.low <= truth <= estimate.high
        data = (
            f"{asked} images, {mean_named:g} relations each, recall {recall:.0%}, alike"
            f" {alike:g}{', parts' * parts}"
        )
        yield "plan: recall", data, covered / simulations


def parts_of_all(simulations: int = SIMULATIONS, only: int | None = None) -> Iterator[Row]:
    """The recall of a small run of whose images all are answered, but only about some of the
    boxes.
    """
    rng = np.random.default_rng(2)
    common = {"at": "", "by": "a", "run": "", "plan": "p"}
    for recall, alike in list(product((0.5, 0.8, 0.95), (0.0, 0.3)))[:only]:
        answers = {}
        relations = []
        named = 0
        for image, chance in enumerate(map(float, chances(rng, recall, alike, 40))):
            ends = {
                (int(a), int(b)) for a, b in rng.integers(20, size=(rng.poisson(30), 2)) if a != b
            }
            said = [{"subject": a, "object": b, "predicate": "on"} for a, b in ends]
            place = {"split": "s", "image_id": str(image)}
            answer = BlindAnswer.model_validate(
                {**common, **place, "id": str(image), "relations": said}
            )
            answers["s", str(image)] = {"a": answer}
            relations += [("s", str(image), *pair, "on") for pair in ends if rng.random() < chance]
            named += len(ends)
        log = cast(JudgementLog, SimpleNamespace(blind_answers=lambda _, answers=answers: answers))
        covered = 0
        for _ in range(simulations):
            asked = [
                (*place, rng.choice(20, 8, replace=False).tolist(), 190 / 28) for place in answers
            ]
            values = {**common, "seed": 0, "kind": "recall", "images": 40}
            plan = RecallPlan.model_validate(
                {**values, "questions": [BlindQuestion(*question) for question in asked]}
            )
            estimate = measure_recall(plan, log, lambda *_, relations=relations: relations).recall
            covered += estimate.low <= len(relations) / named <= estimate.high
        data = f"all of 40 images, 8 of 20 boxes each, recall {recall:.0%}, alike {alike:g}"
        yield "plan: recall", data, covered / simulations


def people(simulations: int = SIMULATIONS, only: int | None = None) -> Iterator[Bound]:
    """What two people name, and how many relations exist at least."""
    rng = np.random.default_rng(1)
    settings = product(
        HARD, ((0.5, 0.6), (0.7, 0.7), (0.9, 0.8), (0.9, 0.5), (0.3, 0.3)), (10, 30, 100)
    )
    for (name, hard), (first, second), images in list(settings)[:only]:
        existing = rng.poisson(3.0 * rng.gamma(2, 0.5, images))
        image = np.repeat(np.arange(images), existing)
        bounds = []
        estimates = []
        named = []
        for _ in range(simulations):
            ease_first = hard(rng, image, first)
            ease_second = hard(rng, image, second)
            one = rng.random(len(image)) < ease_first
            other = rng.random(len(image)) < ease_second
            parts = (
                np.bincount(image[part], minlength=images)
                for part in (one & other, one & ~other, other & ~one)
            )
            estimate = recapture(("a", "b"), *parts)
            if estimate is None:
                continue
            total = estimate.if_independent
            bounds.append(estimate.at_least)
            estimates.append(total.low <= len(image) <= total.high)
            named.append(int((one | other).sum()))
        over = float((np.array(bounds) > len(image)).mean())
        shares = [float(np.mean(numbers)) / len(image) for numbers in (named, bounds)]
        data = f"{len(image)} relations in {images} images, named {first:.0%} and {second:.0%}"
        yield name, data, over, shares[0], shares[1], float(np.mean(estimates))


def _independent(rng: np.random.Generator, image: NDArray[Any], chance: float) -> NDArray[Any]:
    return np.full(len(image), chance)


def _own_images(rng: np.random.Generator, image: NDArray[Any], chance: float) -> NDArray[Any]:
    """Images are hard for one person, and others for the other."""
    return chances(rng, chance, 0.3, int(image[-1]) + 1)[image]


def _hard_images(rng: np.random.Generator, image: NDArray[Any], chance: float) -> NDArray[Any]:
    """Every third image is hard, for both."""
    return np.where(image % 3 == 0, 0.4 * chance, np.minimum(1.3 * chance, 0.98))


def _hard_relations(rng: np.random.Generator, image: NDArray[Any], chance: float) -> NDArray[Any]:
    """Every fifth relation is hard, for both."""
    return np.where(np.arange(len(image)) % 5 == 0, chance / 4, np.minimum(1.15 * chance, 0.98))


def _unseen_relations(rng: np.random.Generator, image: NDArray[Any], chance: float) -> NDArray[Any]:
    """Nobody sees every fifth relation."""
    return np.where(np.arange(len(image)) % 5 == 0, 0.0, chance)


HARD: tuple[tuple[str, Callable[[np.random.Generator, NDArray[Any], float], NDArray[Any]]], ...] = (
    ("independent misses", _independent),
    ("images hard for one", _own_images),
    ("images hard for both", _hard_images),
    ("relations hard for both", _hard_relations),
    ("relations that nobody sees", _unseen_relations),
)


def main() -> None:
    table = Table("interval", "data", "nominal", f"measured, of {SIMULATIONS:,}")
    for name, data, covered in chain(plans(), parts_of_all()):
        table.add_row(name, data, "95%", f"{covered:.1%}")
    heads = (
        "misses",
        "data",
        "bound exceeds the truth",
        "named",
        "bound",
        "the estimate's 95% interval holds",
    )
    bounds = Table(*heads)
    for name, data, *shares in people():
        bounds.add_row(name, data, *(f"{share:.1%}" for share in shares))
    report(str(__doc__), table, bounds)


if __name__ == "__main__":
    main()
