"""Candidate pairs: sgpipe's pair stage beside RLIPv2's procedure, on the same made-up images.

    python -m benchmarks.bench_pair [--images N] [--seed S]

An image has about 7.3 boxes, as in COCO, of up to three of COCO's classes, and as many triplets as ten captions
give: 20, with nouns of which half name a class of the image. The reference is the published procedure, written
out plainly: for each entity all synonyms of all present classes, for each ordered pair of boxes all triplets.
One process, one thread, units of 512 images; the best of three runs.
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
from sgpipe.stages.pair.stage import PairStage

NOUNS = ("man", "woman", "people", "street", "field", "room", "tree", "hair", "carpet", "kitchen", "group", "wall")
VERBS = ("on", "in", "near", "with", "holding", "riding", "sitting on", "wearing", "behind", "above", "under")
RUNS, UNIT = 3, 512


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
            Box(name, 1, tuple(box)) for name, box in zip(classes, np.hstack([corners, sides]).tolist(), strict=True)
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
                found = [name for name in present if any(part in span for part in synonyms[name])]
                classes.append(found[-1] if found else None)
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


def own(records: list[Record], stage: PairStage) -> int:
    """Run the stage unit by unit; the number of pairs and predicates it lists."""
    count = 0
    for start in range(0, len(records), UNIT):
        for record in stage(records[start : start + UNIT]):
            count += sum(len(pair.predicates) for pair in record.pairs)
            record.pairs = []
    return count


def stage_seconds(records: list[Record], **settings: str) -> tuple[float, int]:
    """Seconds of the stage with warm caches, and how many pairs and predicates it lists."""
    stage = PairStage(PairConfig.model_validate(settings), "coco", [])
    stage.setup()
    return best_seconds(lambda: own(records, stage)), own(records, stage)


def copying_seconds(records: list[Record]) -> float:
    """Seconds of only making the pairs again that the stage makes, one by one."""
    stage = PairStage(PairConfig(), "coco", [])
    stage.setup()
    pairs = [pair for record in stage(records) for pair in record.pairs]
    return best_seconds(lambda: [Pair(pair.subject, pair.object, list(pair.predicates)) for pair in pairs])


def crowded(boxes: int) -> tuple[float, int]:
    """Seconds and pairs for one image of so many boxes of one class, cut to the default 10,000 pairs."""
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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    records = make_records(arguments.images, arguments.seed)
    gc.freeze()  # the made-up images are not part of the work
    synonyms = {
        name: tuple(phrase for phrase in phrases if phrase[0] != "!")
        for name, phrases in packaged_synonyms("coco").items()
    }
    table = Table("procedure", "images/s", "candidates", title=f"{len(records):,} images")
    seconds = best_seconds(lambda: reference(records, synonyms))
    table.add_row("RLIPv2's, written out", f"{len(records) / seconds:,.0f}", f"{reference(records, synonyms):,}")
    of_match = {}
    for match in ("substring", "head"):
        of_match[match], candidates = stage_seconds(records, match=match)
        table.add_row(f"sgpipe, match: {match}", f"{len(records) / of_match[match]:,.0f}", f"{candidates:,}")
    for boxes in (1_000, 100_000):
        seconds, candidates = crowded(boxes)
        table.add_row(f"sgpipe, one image of {boxes:,} boxes", f"{1 / seconds:,.1f}", f"{candidates:,}")
    report(
        __doc__,
        table,
        f"Making the objects that the stage gives back takes {copying_seconds(records) / of_match['head']:.0%} of the "
        "time of `match: head`: the limit of whatever ends in Python objects. In the way: numpy calls on the few boxes "
        "of each image, and what each triplet says, in Python.",
    )


if __name__ == "__main__":
    main()
