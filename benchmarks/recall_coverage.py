"""How often the 95% intervals of recall plans contain the truth, by simulation.

python -m benchmarks.recall_coverage

Plans: 1,000 random samples of the images of one run, whose recall is known. Relations of an image are alike: "alike" is
the correlation of whether the run has two of them. "Parts": 40% of the images have more boxes than a question shows, so
that a named relation stands for up to six. People: two name 1,000 times the relations of some images, each with a
chance that differs from image to image where they are "alike"; the truth is how many relations there are. Where few
are missed, the interval is cautious: their number is a whole one. "Seen by both": each person sees the same 80% of the
relations, which no such estimate can know of.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, product
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from benchmarks.measure import report
from sgpipe.stats.recall import estimate_recall, measure_recall, recapture
from sgpipe.storage.judgements import BlindAnswer, BlindQuestion, JudgementLog, RecallPlan

IMAGES, SIMULATIONS = 3000, 1000
Row = tuple[str, str, float]


def chances(rng: np.random.Generator, mean: float, alike: float, images: int) -> NDArray[Any]:
    """A chance for each image: Beta with this correlation within an image."""
    if not alike:
        return np.full(images, mean)
    return rng.beta(mean * (1 / alike - 1), (1 - mean) * (1 / alike - 1), images)


def plans(simulations: int = SIMULATIONS, only: int | None = None) -> Iterator[Row]:
    """The recall of a run, and of a predicate that few images have."""
    rng = np.random.default_rng(0)
    settings = product((0.5, 0.8, 0.95), (0.0, 0.3), ((30, 3.0), (100, 3.0), (100, 0.3), (300, 1.5)), (False, True))
    for recall, alike, (asked, each), parts in list(settings)[:only]:
        named = rng.poisson(each * rng.gamma(2, 0.5, IMAGES))
        has = rng.binomial(named, chances(rng, recall, alike, IMAGES))
        weight = np.where(rng.random(IMAGES) < 0.4, rng.uniform(1, 6, IMAGES), 1.0) if parts else np.ones(IMAGES)
        truth, covered = float(weight @ has / (weight @ named)), 0
        for _ in range(simulations):
            own = rng.choice(IMAGES, asked, replace=False)
            at = np.repeat(np.arange(asked), named[own])
            number = np.arange(len(at)) - np.repeat(np.cumsum(named[own]) - named[own], named[own])
            found = estimate_recall(number < has[own][at], at, weight[own][at], 1.0 if parts else 1 - asked / IMAGES)
            covered += found.low <= truth <= found.high
        data = f"{asked} images, {each:g} relations each, recall {recall:.0%}, alike {alike:g}{', parts' * parts}"
        yield "plan: recall", data, covered / simulations


def parts_of_all(simulations: int = SIMULATIONS, only: int | None = None) -> Iterator[Row]:
    """The recall of a small run of whose images all are answered, but only about some of the boxes."""
    rng = np.random.default_rng(2)
    common = {"at": "", "by": "a", "run": "", "plan": "p"}
    for recall, alike in list(product((0.5, 0.8, 0.95), (0.0, 0.3)))[:only]:
        answers, relations, named = {}, [], 0
        for image, chance in enumerate(map(float, chances(rng, recall, alike, 40))):
            ends = {(int(a), int(b)) for a, b in rng.integers(20, size=(rng.poisson(30), 2)) if a != b}
            said = [{"subject": a, "object": b, "predicate": "on"} for a, b in ends]
            place = {"split": "s", "image_id": str(image)}
            answer = BlindAnswer.model_validate({**common, **place, "id": str(image), "relations": said})
            answers["s", str(image)] = {"a": answer}
            relations += [("s", str(image), *pair, "on") for pair in ends if rng.random() < chance]
            named += len(ends)
        log = cast(JudgementLog, SimpleNamespace(blind_answers=lambda _, answers=answers: answers))
        covered = 0
        for _ in range(simulations):
            asked = [(*place, rng.choice(20, 8, replace=False).tolist(), 190 / 28) for place in answers]
            values = {**common, "seed": 0, "kind": "recall", "images": 40}
            plan = RecallPlan.model_validate({**values, "questions": [BlindQuestion(*each) for each in asked]})
            found = measure_recall(plan, log, lambda *_, relations=relations: relations).recall
            covered += found.low <= len(relations) / named <= found.high
        data = f"all of 40 images, 8 of 20 boxes each, recall {recall:.0%}, alike {alike:g}"
        yield "plan: recall", data, covered / simulations


def people(simulations: int = SIMULATIONS, only: int | None = None) -> Iterator[Row]:
    """How many relations there are by capture and recapture."""
    rng = np.random.default_rng(1)
    settings = [*product(((0.5, 0.6), (0.7, 0.7), (0.9, 0.8), (0.95, 0.95)), (0.0, 0.3), (30, 100), (1.0,))]
    for (first, second), alike, images, seen in [*settings, ((0.9, 0.8), 0.0, 100, 0.8)][:only]:
        there = rng.poisson(3.0 * rng.gamma(2, 0.5, images))
        at = np.repeat(np.arange(images), there)
        visible = np.arange(len(at)) % 5 < 5 * seen
        covered = 0
        for _ in range(simulations):
            one, other = ((rng.random(len(at)) < chances(rng, p, alike, images)[at]) & visible for p in (first, second))
            parts = (np.bincount(at[each], minlength=images) for each in (one & other, one & ~other, other & ~one))
            found = recapture(("a", "b"), *parts)
            known = int((one | other).sum())
            covered += found is not None and known / found.high - 1e-9 <= len(at) <= known / found.low + 1e-9
        data = f"{len(at)} relations in {images} images, named {first:.0%} and {second:.0%}, alike {alike:g}"
        yield "people: relations in all", data + (", seen by both" if seen < 1 else ""), covered / simulations


def main() -> None:
    table = Table("interval", "data", "nominal", f"measured, of {SIMULATIONS:,}")
    for name, data, covered in chain(plans(), parts_of_all(), people()):
        table.add_row(name, data, "95%", f"{covered:.1%}")
    report(str(__doc__), table)


if __name__ == "__main__":
    main()
