"""HICO-DET at full size: how long the evaluation takes, and how much memory.

    python -m benchmarks.bench_hico_eval [--images N] [--queries N] [--seed N]

Images, annotations and detections are random, but as large as the real test set: 9,546 images with
33,405 ground-truth interactions of the 600 classes, 100 pairs each scored for 117 verbs; a pair is
the jittered boxes of a ground-truth interaction with its class, or random. They are generated
during the evaluation, as predictions come out of a network; the time for generating them is
measured separately and left out, its memory is not.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context

import numpy as np
from rich.table import Table

from benchmarks.measure import report
from rlip_model.evaluation.hico import HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import CLASSES, NUM_OBJECTS, NUM_VERBS, class_numbers, split
from rlip_model.evaluation.inputs import Array, EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.evaluation.suppression import PairSuppression

TRUE_PER_IMAGE = 33_405 / 9_546  # on average, in HICO-DET's test set
WIDTH = 640.0
HEIGHT = 480.0
SETTINGS = {
    "default": HicoSettings(),
    "known object": HicoSettings(known_object=True),
    "default, pair NMS": HicoSettings(suppression=PairSuppression()),
}


@dataclass(frozen=True)
class Stopwatch:
    wall: float
    cpu: float

    @classmethod
    def now(cls) -> Stopwatch:
        return cls(time.perf_counter(), time.process_time())

    def since(self, start: Stopwatch) -> Stopwatch:
        return Stopwatch(self.wall - start.wall, self.cpu - start.cpu)


@dataclass(frozen=True)
class Measured:
    """took: drawing left out; peak: resident memory of the process in bytes, drawing and imports
    included.
    """

    took: Stopwatch
    peak: float
    summary: dict[str, float]
    classes: int


def draw(images: int, queries: int, seed: int) -> Iterator[EvaluationImage]:
    """The same images for the same seed."""
    random = np.random.default_rng(seed)
    labels = CLASSES.labels(class_numbers())
    frequency = 1 / np.arange(1, len(labels) + 1)  # few classes are frequent, as in HICO-DET
    frequency = random.permutation(frequency / frequency.sum())
    for number in range(images):
        count = 1 + random.poisson(TRUE_PER_IMAGE - 1)
        classes = labels[random.choice(len(labels), count, p=frequency)]
        boxes = _boxes(random, 2 * count)
        true = np.stack((np.arange(count), np.arange(count, 2 * count), classes[:, 2]), -1)
        truth = ImageGroundTruth(boxes, np.append(classes[:, 0], classes[:, 1]), true)
        yield EvaluationImage(f"{number:08}.jpg", truth, _find(random, truth, queries))


def _boxes(random: np.random.Generator, count: int) -> Array:
    sides = random.uniform(20, 300, (count, 2))
    corner = random.uniform(0, 1, (count, 2)) * ((WIDTH, HEIGHT) - sides)
    return np.concatenate((corner, corner + sides), 1).astype(np.float32)


def _find(random: np.random.Generator, truth: ImageGroundTruth, queries: int) -> PredictedPairs:
    """Half of the pairs are near true ones, the others are anywhere; scores are small, but for a
    few verbs.
    """
    near = random.integers(0, len(truth.triplets), queries // 2)
    subjects, objects, verbs = truth.triplets[near].T
    subject_boxes = _boxes(random, queries)
    object_boxes = _boxes(random, queries)
    jitter = random.normal(0, 8, (2, len(near), 4)).astype(np.float32)
    for boxes, ends, noise in zip(
        (subject_boxes, object_boxes), (subjects, objects), jitter, strict=True
    ):
        moved = truth.boxes[ends] + noise
        boxes[: len(near)] = np.concatenate(
            (moved[:, :2], np.maximum(moved[:, 2:], moved[:, :2])), 1
        )
    labels = random.integers(0, NUM_OBJECTS, queries)
    labels[: len(near)] = truth.labels[objects]
    scores = random.random((queries, NUM_VERBS), dtype=np.float32) ** 8
    scores[np.arange(len(near)), verbs] = random.random(len(near), dtype=np.float32)
    return PredictedPairs(subject_boxes, object_boxes, np.zeros(queries, dtype=int), labels, scores)


def exhaust(images: Iterable[EvaluationImage]) -> Stopwatch:
    start = Stopwatch.now()
    for _ in images:
        pass
    return Stopwatch.now().since(start)


def measure(setting: str, images: int, queries: int, seed: int) -> Measured:
    drawing = exhaust(draw(images, queries, seed))
    start = Stopwatch.now()
    scores = evaluate_hico(draw(images, queries, seed), SETTINGS[setting])
    took = Stopwatch.now().since(start).since(drawing)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Measured(took, peak, scores.summary(split("default")), len(scores.per_class.classes))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=9_546)
    parser.add_argument("--queries", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    columns = (
        "setting",
        "seconds",
        "CPU seconds",
        "peak memory, MB",
        "classes",
        "mAP",
        "rare",
        "non-rare",
    )
    title = (
        f"{arguments.images:,} images x {arguments.queries} pairs x {NUM_VERBS} verbs, one process"
    )
    table = Table(*columns, title=title)
    for setting in SETTINGS:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            evaluated = pool.submit(
                measure, setting, arguments.images, arguments.queries, arguments.seed
            ).result()
        means = (f"{evaluated.summary[name]:.4f}" for name in ("mAP", "mAP rare", "mAP non-rare"))
        times = (
            f"{evaluated.took.wall:.1f}",
            f"{evaluated.took.cpu:.1f}",
            f"{evaluated.peak / 1e6:,.0f}",
        )
        table.add_row(setting, *times, str(evaluated.classes), *means)
    report(
        __doc__,
        table,
        "RLIPv2's evaluator took 168 s to build and 42 s to evaluate data of this size, and 3.2 GB,"
        " on a machine of two cores that was busy. The scores of synthetic detections are"
        " meaningless.",
        "Nearly all of the memory is Python, PyTorch and numpy: predictions are read as a stream,"
        " and only the class, score and match of the 100 best triplets of each image are kept. The"
        " bottleneck is sorting the 11,700 scores of each image.",
    )


if __name__ == "__main__":
    main()
