"""`sgpipe train layout`: a layout model from any run with annotated relations."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import permutations
from pathlib import Path

import numpy as np

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, location
from sgpipe.records import TRAINING_CONFIDENCE, Record
from sgpipe.stages.tag.layout.calibrate import MAX_IMAGES, fit_temperatures, with_temperatures
from sgpipe.stages.tag.layout.candidates import image_layout
from sgpipe.stages.tag.layout.fit import LayoutExample, LayoutSettings, fit_layout
from sgpipe.stages.tag.layout.model import LayoutModel
from sgpipe.stages.tag.layout.scene import ImageLayout
from sgpipe.storage.run_records import iter_records
from sgpipe.utils.console import Progress, count

FEWEST_IMAGES = 10
MOST_IMAGES = 20_000  # drawn at random of more
MOST_BOXES = 100  # images with more are left out, as their pairs would be most of all
MOST_PREDICATES = 200  # the most frequent; of others only that the pair interacts is learned
HELD_OUT = 10  # one image in ten measures the model, if there are enough
FEWEST_HELD_OUT = 5


@dataclass(frozen=True)
class LayoutTraining:
    """What was trained.

    Attributes:
        images: with relations, those held out among them
        of_images: with relations in the runs
        pairs: that interact
        predicates: that the model knows
        held_out: images that measured the model
        precision: share of the held-out pairs of probability 0.5 or more that interact; None: not
            measured
        recall: share of the held-out pairs that interact and have this probability; None: not
            measured
        seconds: that it took
    """

    images: int
    of_images: int
    pairs: int
    predicates: int
    held_out: int
    precision: float | None
    recall: float | None
    seconds: float


def train_layout(
    runs: Sequence[str],
    out: Path,
    progress: Progress,
    *,
    limit: int | None = None,
    seed: int = 0,
    epochs: int | None = None,
) -> LayoutTraining:
    """Train a layout model on the annotated relations of runs, and those of confidence 0.2 or more.

    Memory does not grow with the runs: of more images with relations, 20,000 are drawn by the seed.
    Images without relations are left out, as nobody may have annotated them.

    Raises:
        UserError: `out` has files; not a run; too few images have relations, or no pair of boxes is
            without one
    """
    began = time.monotonic()
    if out.exists() and any(out.iterdir()):
        raise UserError(f"--out {out} is not empty: choose another folder")
    sources = [location(run) for run in runs]
    examples, total = _sample(sources, limit or MOST_IMAGES, seed)
    if len(examples) < FEWEST_IMAGES:
        few = f"{count(len(examples), 'image')} with relations between boxes"
        raise UserError(
            f"--data {' '.join(runs)}: {few}; a layout model needs at least {FEWEST_IMAGES}"
        )
    examples = _with_frequent_predicates(examples)
    fitted = list(examples)
    held_out = []
    if len(examples) >= HELD_OUT * FEWEST_HELD_OUT:
        held_out = examples[::HELD_OUT]
        del fitted[::HELD_OUT]
    progress.say(f"training on {count(len(fitted), 'image')} of {total:,} with relations")
    settings = LayoutSettings(seed=seed)
    if epochs is not None:
        settings = replace(settings, epochs=epochs, min_steps=0)
    model = fit_layout(fitted, settings)
    if len(fitted) <= MAX_IMAGES:
        progress.say("measuring by cross-validation how sure the model may be")
        model = with_temperatures(model, fit_temperatures(fitted, settings))
    model.save(out)
    precision, recall = _measure(model, held_out)
    return LayoutTraining(
        images=len(examples),
        of_images=total,
        pairs=sum(len(example.relations) for example in examples),
        predicates=len(model.actions),
        held_out=len(held_out),
        precision=precision,
        recall=recall,
        seconds=time.monotonic() - began,
    )


def _sample(runs: Sequence[Location], size: int, seed: int) -> tuple[list[LayoutExample], int]:
    """Return at most `size` random examples, in the order of the runs, and how many there are."""
    rng = random.Random(seed)
    sample: list[tuple[int, LayoutExample]] = []
    total = 0
    for run in runs:
        for example in _examples(iter_records(run, "objects", "relations")):
            if len(sample) < size:
                sample.append((total, example))
            else:
                position = rng.randrange(total + 1)
                if position < size:
                    sample[position] = (total, example)
            total += 1
    sample.sort(key=lambda numbered: numbered[0])
    return [example for _, example in sample], total


def _examples(records: Iterable[Record]) -> Iterator[LayoutExample]:
    """Yield the images with relations between boxes; crowds are no boxes."""
    for record in records:
        boxes = []
        for index, box in enumerate(record.objects):
            if not (box.iscrowd or box.is_nothing):
                boxes.append(index)
        if len(boxes) > MOST_BOXES:
            continue
        predicates = _predicates_of_pairs(record, boxes)
        if predicates:
            image = image_layout(record, ())
            classes = [record.objects[index].category for index in boxes]
            layout = ImageLayout(image.boxes[boxes], classes, record.width, record.height)
            relations = [
                (subject, texts, object_) for (subject, object_), texts in predicates.items()
            ]
            yield LayoutExample(layout, relations)


def _predicates_of_pairs(record: Record, boxes: Sequence[int]) -> dict[tuple[int, int], list[str]]:
    """Return the sure predicates of each pair of these boxes, by their positions among them."""
    positions = {index: position for position, index in enumerate(boxes)}
    predicates: dict[tuple[int, int], list[str]] = {}
    for relation in record.relations:
        is_sure = relation.confidence is None or relation.confidence >= TRAINING_CONFIDENCE
        subject = positions.get(relation.subject)
        object_ = positions.get(relation.object)
        if not is_sure or subject is None or object_ is None or subject == object_:
            continue
        predicates.setdefault((subject, object_), []).append(relation.predicate)
    return predicates


def _with_frequent_predicates(examples: Sequence[LayoutExample]) -> list[LayoutExample]:
    """Return the examples with the most frequent predicates only; all pairs still interact."""
    frequencies = Counter[str]()
    for example in examples:
        for _, texts, _ in example.relations:
            frequencies.update(texts)
    by_frequency = sorted(frequencies, key=lambda text: (-frequencies[text], text))
    frequent = {*by_frequency[:MOST_PREDICATES]}
    reduced = []
    for example in examples:
        relations = []
        for subject, texts, object_ in example.relations:
            relations.append((subject, [text for text in texts if text in frequent], object_))
        reduced.append(replace(example, relations=relations))
    return reduced


def _measure(
    model: LayoutModel, examples: Sequence[LayoutExample]
) -> tuple[float | None, float | None]:
    """Return precision and recall of the pairs of probability 0.5 or more."""
    labelled = 0
    correct = 0
    interacting = 0
    for example in examples:
        pairs = list(permutations(range(len(example.layout.classes)), 2))
        scores = model.score(example.layout, np.array(pairs, np.int64))
        related = {(subject, object_) for subject, _, object_ in example.relations}
        probable = [pairs[row] for row in np.flatnonzero(scores.interacts >= 0.5)]
        labelled += len(probable)
        correct += len(related.intersection(probable))
        interacting += len(related)
    precision = correct / labelled if labelled else None
    recall = correct / interacting if interacting else None
    return precision, recall
