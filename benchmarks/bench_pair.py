"""Candidate pairs: sgpipe's pair stage and RLIPv2's procedure, on the same synthetic records.

    python -m benchmarks.bench_pair [--images N] [--seed S]

An image has about 7.3 boxes, as in COCO, of up to three COCO classes, and 20 triplets, as many as
ten captions give. Half of the nouns name a class of the image. The reference is a plain
implementation of the published procedure: for each noun all synonyms of all classes in the image,
for each ordered pair of boxes all triplets. One process, one thread, work units of 512 images; best
of three runs.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations

import numpy as np
from rich.table import Table

from benchmarks.measure import report
from sgpipe.recipe import PairConfig
from sgpipe.records import Box, Pair, Record, Triplet
from sgpipe.sources.vocabulary import category_names, packaged_synonyms
from sgpipe.stages.pair import PairStage

NOUNS = (
    "man",
    "woman",
    "people",
    "street",
    "field",
    "room",
    "tree",
    "hair",
    "carpet",
    "kitchen",
    "group",
    "wall",
)
VERBS = (
    "on",
    "in",
    "near",
    "with",
    "holding",
    "riding",
    "sitting on",
    "wearing",
    "behind",
    "above",
    "under",
)
RUNS = 3
UNIT = 512


def make_records(images: int, seed: int) -> list[Record]:
    """Records with boxes and triplets; half of the nouns name a class of the image."""
    random = np.random.default_rng(seed)
    names = list(category_names("coco").values())
    share = 1 / np.arange(1, len(names) + 1)
    share /= share.sum()
    records = []
    for image in range(images):
        count = min(93, 1 + int(random.geometric(1 / 6.3)))
        few = random.choice(names, size=3, p=share)
        classes = random.choice(few, size=count).tolist()
        sides = random.uniform(10, 200, (count, 2))
        corners = random.uniform(0, 1, (count, 2)) * (640, 480) * 0.6
        boxes = [
            Box(name, 1, tuple(box))
            for name, box in zip(classes, np.hstack([corners, sides]).tolist(), strict=True)
        ]
        nouns = [str(random.choice(classes if random.random() < 0.5 else NOUNS)) for _ in range(40)]
        verbs = random.choice(VERBS, size=20).tolist()
        triplets = [
            Triplet(
                nouns[2 * i],
                verbs[i],
                nouns[2 * i + 1],
                nouns[2 * i].split()[-1],
                nouns[2 * i + 1].split()[-1],
                verbs[i],
                0,
            )
            for i in range(20)
        ]
        records.append(Record(str(image), "coco", "val", "", 640, 480, boxes, triplets=triplets))
    return records


def reference(records: list[Record], synonyms: dict[str, tuple[str, ...]]) -> int:
    """RLIPv2's procedure: every synonym for every entity, every triplet for every pair of boxes."""
    count = 0
    for record in records:
        entries: list[list[list[int] | str | None]] = []
        present = list(dict.fromkeys(box.category for box in record.objects))
        triplets = []
        for triplet in record.triplets:
            classes: list[str | None] = []
            for span in (triplet.subject.lower(), triplet.object.lower()):
                matches = [name for name in present if any(part in span for part in synonyms[name])]
                classes.append(matches[-1] if matches else None)
            statement = (classes[0], triplet.predicate, classes[1])
            if all(classes) and statement not in triplets:
                triplets.append(statement)
        for i, j in permutations(range(len(record.objects)), 2):
            pair = record.objects[i].category, record.objects[j].category
            for subject, text, object_ in triplets:
                if (subject, object_) == pair:
                    entries.append([[i, j], text])
        count += len(entries)
    return count


def best_seconds(run: Callable[[], object]) -> float:
    seconds = []
    for _ in range(RUNS):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def ours(records: list[Record], stage: PairStage) -> int:
    """Run the stage on each work unit; returns the number of candidates (pair and predicate)."""
    count = 0
    for start in range(0, len(records), UNIT):
        for record in stage(records[start : start + UNIT]):
            count += sum(len(pair.predicates) for pair in record.pairs)
            record.pairs = []
    return count


def stage_seconds(records: list[Record], **settings: str) -> tuple[float, int]:
    """Seconds of the stage with warm caches, and the number of candidates."""
    stage = PairStage(PairConfig.model_validate(settings), "coco", [])
    stage.setup()
    return best_seconds(lambda: ours(records, stage)), ours(records, stage)


def object_seconds(records: list[Record]) -> float:
    """Seconds for creating only the `Pair` objects that the stage returns."""
    stage = PairStage(PairConfig(), "coco", [])
    stage.setup()
    pairs = [pair for record in stage(records) for pair in record.pairs]
    return best_seconds(
        lambda: [Pair(pair.subject, pair.object, list(pair.predicates)) for pair in pairs]
    )


def crowded(boxes: int) -> tuple[float, int]:
    """Seconds and pairs for one image with `boxes` boxes of one class, limited to the default
    10,000 pairs.
    """
    sides = np.random.default_rng(0).uniform(0, 400, (boxes, 4))
    objects = [Box("person", 1, tuple(box)) for box in sides.tolist()]
    triplet = Triplet("man", "near", "woman", "man", "woman", "near", 0)
    record = Record("1", "coco", "val", "", 800, 800, objects, triplets=[replace(triplet)])
    stage = PairStage(PairConfig(), "coco", [])
    stage.setup()
    seconds = best_seconds(lambda: stage([record]))
    pairs: list[Pair] = record.pairs
    return seconds, len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    records = make_records(arguments.images, arguments.seed)
    gc.freeze()  # excludes the input records from garbage collection
    synonyms = {
        name: tuple(phrase for phrase in phrases if phrase[0] != "!")
        for name, phrases in packaged_synonyms("coco").items()
    }
    table = Table("procedure", "images/s", "candidates", title=f"{len(records):,} images")
    seconds = best_seconds(lambda: reference(records, synonyms))
    table.add_row(
        "RLIPv2's procedure", f"{len(records) / seconds:,.0f}", f"{reference(records, synonyms):,}"
    )
    for match in ("substring", "head"):
        seconds, candidates = stage_seconds(records, match=match)
        table.add_row(
            f"sgpipe, match: {match}", f"{len(records) / seconds:,.0f}", f"{candidates:,}"
        )
    object_share = object_seconds(records) / seconds
    for boxes in (1_000, 100_000):
        seconds, candidates = crowded(boxes)
        table.add_row(
            f"sgpipe, one image of {boxes:,} boxes", f"{1 / seconds:,.1f}", f"{candidates:,}"
        )
    report(
        __doc__,
        table,
        f"Creating the returned Python objects takes {object_share:.0%} of the time of `match:"
        " head`. The rest is mostly numpy calls on the few boxes of each image and the Python code"
        " per triplet.",
    )


if __name__ == "__main__":
    main()
