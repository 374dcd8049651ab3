"""`sgpipe train layout`: a layout model from any run with annotated relations."""

from __future__ import annotations

import random
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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
from sgpipe.storage.shards import iter_records
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
    places = [location(run) for run in runs]
    examples, found = _sample(places, limit or MOST_IMAGES, seed)
    if len(examples) < FEWEST_IMAGES:
        few = f"{count(len(examples), 'image')} with relations between boxes"
        raise UserError(
            f"--data {' '.join(runs)}: {few}; a layout model needs at least {FEWEST_IMAGES}"
        )
    examples = _with_frequent_predicates(examples)
    held_out = examples[::HELD_OUT] if len(examples) >= HELD_OUT * FEWEST_HELD_OUT else []
    fitted = [
        example for number, example in enumerate(examples) if not held_out or number % HELD_OUT
    ]
    progress.say(f"training on {count(len(fitted), 'image')} of {found:,} with relations")
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
        of_images=found,
        pairs=sum(len(example.relations) for example in examples),
        predicates=len(model.actions),
        held_out=len(held_out),
        precision=precision,
        recall=recall,
        seconds=time.monotonic() - began,
    )


def _sample(places: Sequence[Location], size: int, seed: int) -> tuple[list[LayoutExample], int]:
    """Return at most `size` random examples, in the order of the runs, and how many there are."""
    chance = random.Random(seed)
    kept: list[tuple[int, LayoutExample]] = []
    found = 0
    for example in _examples(record for place in places for record in iter_records(place)):
        if len(kept) < size:
            kept.append((found, example))
        else:
            position = chance.randrange(found + 1)
            if position < size:
                kept[position] = (found, example)
        found += 1
    kept.sort(key=lambda numbered: numbered[0])
    return [example for _, example in kept], found


def _examples(records: Iterable[Record]) -> Iterator[LayoutExample]:
    """Yield the images with relations between boxes; crowds are no boxes."""
    for record in records:
        usable = [
            index for index, box in enumerate(record.objects) if not (box.iscrowd or box.is_nothing)
        ]
        if len(usable) > MOST_BOXES:
            continue
        positions = {index: position for position, index in enumerate(usable)}
        pairs: dict[tuple[int, int], list[str]] = {}
        for relation in record.relations:
            ends = positions.get(relation.subject), positions.get(relation.object)
            trusted = relation.confidence is None or relation.confidence >= TRAINING_CONFIDENCE
            if trusted and ends[0] is not None and ends[1] is not None and ends[0] != ends[1]:
                pairs.setdefault((ends[0], ends[1]), []).append(relation.predicate)
        if pairs:
            whole = image_layout(record, ())
            classes = [record.objects[index].category for index in usable]
            layout = ImageLayout(whole.boxes[usable], classes, record.width, record.height)
            relations = [
                (subject, predicates, thing) for (subject, thing), predicates in pairs.items()
            ]
            yield LayoutExample(layout, relations)


def _with_frequent_predicates(examples: Sequence[LayoutExample]) -> list[LayoutExample]:
    """Return the examples without all but the most frequent predicates; their pairs still
    interact.
    """
    numbers = Counter(
        text for example in examples for _, texts, _ in example.relations for text in texts
    )
    frequent = {
        text
        for text, _ in sorted(numbers.items(), key=lambda item: (-item[1], item[0]))[
            :MOST_PREDICATES
        ]
    }
    fewer = []
    for example in examples:
        relations = [
            (subject, [text for text in texts if text in frequent], thing)
            for subject, texts, thing in example.relations
        ]
        fewer.append(replace(example, relations=relations))
    return fewer


def _measure(
    model: LayoutModel, examples: Sequence[LayoutExample]
) -> tuple[float | None, float | None]:
    """Return precision and recall of the pairs of probability 0.5 or more, of subjects that the
    model knows.
    """
    labelled = correct = interacting = 0
    for example in examples:
        indices = range(len(example.layout.classes))
        pairs = [(subject, thing) for subject in indices for thing in indices if subject != thing]
        scores = model.score(example.layout, np.array(pairs, np.int64))
        related = {(subject, thing) for subject, _, thing in example.relations}
        probable = [
            pair
            for pair, value in zip(pairs, scores.interacts.tolist(), strict=True)
            if value >= 0.5
        ]
        labelled += len(probable)
        correct += len(related.intersection(probable))
        interacting += len(related)
    return (
        correct / labelled if labelled else None,
        correct / interacting if interacting else None,
    )
