"""How long a device waits for the host, and what the host computes per image.

    python -m benchmarks.bench_waiting [--images N] [--rounds N] [--threads N] [--data FOLDER]

The tag and the caption stage label COCO's JPEGs from a folder, with a simulated device in place of
their network: it takes a given time per batch, one batch after another, and the host sleeps until
its batch is done, without Python's lock. What the tagger computes of an image on a device,
PyTorch's device "meta" does not compute.

Utilization, the best of N rounds: the time of all batches as a share of the stage's time. With 0
io_threads images are opened between the batches. CPU time per image: the least of N rounds for each
image, without threads.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice, permutations
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from rich.table import Table
from torch import Tensor

from benchmarks.measure import best, report
from rlip_model.backbone import ImageFeatures
from rlip_model.image import normalised, resized, to_pixels
from rlip_model.text import LabelFeatures
from sgpipe.calibration import threshold_of_recipe
from sgpipe.images import open_row_image
from sgpipe.recipe import CaptionConfig, PairConfig, Resources, TagConfig
from sgpipe.records import Pair, Record
from sgpipe.sources.coco import CocoInstances, load_coco_instances
from sgpipe.stages.base import Stage
from sgpipe.stages.caption.blip import BlipCaptioner, ImagePreparation
from sgpipe.stages.caption.stage import CaptionStage
from sgpipe.stages.tag.stage import TagStage
from sgpipe.utils.gpu import GPU_THREADS, GpuMemory

SPLIT = "val2017"
PREDICATES = ["next to", "on"]
MOST_PAIRS = 50
TAGGER_SECONDS = 0.02
CAPTIONER_SECONDS = 0.1
GROUP = 8


class Device:
    """Takes some seconds per batch, and begins the next as soon as one is done."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.batches = 0
        self.done = 0.0
        self._lock = threading.Lock()

    def compute(self) -> None:
        """Returns when the batch is done."""
        with self._lock:
            self.batches += 1
            self.done = done = max(self.done, time.perf_counter()) + self.seconds
        time.sleep(max(done - time.perf_counter(), 0))


class SimulatedTagger:
    """In place of an `RTagger`; no relation is above the threshold."""

    def __init__(self, device: Device) -> None:
        self.device = device

    def encode_texts(self, texts: Sequence[str]) -> None:
        """Nothing to encode."""

    def encode_labels(self, objects: Sequence[str], predicates: Sequence[str]) -> LabelFeatures:
        return LabelFeatures(torch.zeros(1, len(predicates), 1), 0)

    def encode_image(self, pixels: Tensor) -> ImageFeatures:
        self.device.compute()
        return ImageFeatures(pixels, pixels, pixels, pixels, ())

    def fuse(self, image: ImageFeatures, labels: LabelFeatures) -> LabelFeatures:
        return labels

    def score_pairs(self, labels: LabelFeatures, groups: Sequence[Any], owners: object) -> Tensor:
        pairs = max(len(group.subject_boxes) for group in groups)
        return torch.zeros(len(groups), pairs, labels.features.shape[1])


class SimulatedCaptioner(BlipCaptioner):
    """BLIP on a device that computes groups of images: pixels are prepared and stacked as for a
    GPU.
    """

    def __init__(self, config: CaptionConfig, device: Device) -> None:
        super().__init__(config)
        self.simulated = device
        self.device = torch.device("meta")
        self.gpu_threads = GPU_THREADS if config.resources.io_threads else 0
        self.memory = GpuMemory(self.device, "", GPU_THREADS, GROUP)
        self.prepare = ImagePreparation(384)

    def text(self, ids: list[int]) -> str:
        return "a photograph"

    def _caption(self, group: Sequence[tuple[Tensor, int]]) -> list[list[list[int]]]:
        torch.stack([pixels for pixels, _ in group])
        self.simulated.compute()
        return [[[1]]] * len(group)


def tag_stage(roots: dict[str, Path], names: Sequence[str], device: Device, threads: int) -> Stage:
    config = TagConfig(tagger="simulated", device="cpu", resources=Resources(io_threads=threads))
    stage: Any = TagStage(config, roots, list(names))
    stage.texts = {name: name for name in names}
    stage.object_names = sorted(names)
    stage.threshold = threshold_of_recipe(config, PairConfig())
    stage.device = torch.device("meta")
    stage.dtype = torch.float32
    stage.group_size = config.group_size
    stage.threads = threads
    stage.gpu_threads = GPU_THREADS if threads else 0
    stage.memory = GpuMemory(stage.device, "", GPU_THREADS)
    stage.tagger = SimulatedTagger(device)
    return stage


def caption_stage(roots: dict[str, Path], device: Device, threads: int) -> Stage:
    config = CaptionConfig(
        captioner="simulated", resources=Resources(io_threads=threads), batch_size=GROUP
    )
    stage = CaptionStage(config, roots, 0)
    stage.threads = threads
    stage.captioner = SimulatedCaptioner(config, device)
    return stage


def make_records(instances: CocoInstances, folder: Path, count: int) -> list[Record]:
    """Records with candidate pairs; the images of the folder are repeated."""
    file_names = {path.name for path in folder.iterdir()}
    numbers = [
        number
        for number, row in instances.position.items()
        if instances.file_names[row] in file_names
    ]
    records = [
        instances.record(numbers[index % len(numbers)], "coco", SPLIT, Counter())
        for index in range(count)
    ]
    for record in records:
        pairs = islice(permutations(range(len(record.objects)), 2), MOST_PAIRS)
        record.pairs = [Pair(first, second, PREDICATES) for first, second in pairs]
    return [record for record in records if record.pairs]


def utilization(
    make: Callable[[Device, int], Stage], seconds: float, threads: int, records: list[Record]
) -> float:
    device = Device(seconds)
    stage = make(device, threads)
    began = time.perf_counter()
    stage(records)
    return device.batches * seconds / (time.perf_counter() - began)


def host_table(roots: dict[str, Path], records: Sequence[Record], rounds: int) -> Table:
    images = [open_row_image(roots, record) for record in records]
    enlarged = [image.resize(resized(*image.size), Image.Resampling.BILINEAR) for image in images]
    parts: dict[str, tuple[Callable[[Any], object], Sequence[Any]]] = {
        "read and decode": (lambda record: open_row_image(roots, record), records),
        "resize": (
            lambda image: image.resize(resized(*image.size), Image.Resampling.BILINEAR),
            images,
        ),
        "normalise": (normalised, enlarged),
    }
    table = Table("part", "CPU ms per image", title="input of the tagger, 800 pixels")
    total = {
        name: sum(best(partial(way, argument), rounds) for argument in arguments)
        for name, (way, arguments) in parts.items()
    }
    total["all, for a CPU"] = sum(total.values())
    for_gpu = sum(best(partial(_bytes, roots, record), rounds) for record in records)
    total["all, for a GPU, which enlarges and normalises"] = for_gpu
    for name, taken in total.items():
        table.add_row(name, f"{1000 * taken / len(records):.1f}")
    return table


def _bytes(roots: dict[str, Path], record: Record) -> Tensor:
    image = open_row_image(roots, record)
    return to_pixels(image, resized(*image.size))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--data", type=Path, default=Path(os.environ.get("SGPIPE_ORACLE", ""), "data/coco_mini")
    )
    options = parser.parse_args()
    folder = options.data / f"images_{SPLIT}"
    if not folder.is_dir():
        raise SystemExit(
            f"no such folder: {folder}; --data names one with COCO's images and annotations"
        )
    instances = load_coco_instances(options.data / f"instances_{SPLIT}.json")
    roots = {SPLIT: folder}
    names = instances.categories.values()
    records = make_records(instances, folder, options.images)
    ways: dict[str, tuple[Callable[[Device, int], Stage], float]] = {
        f"tag, {1000 * TAGGER_SECONDS:g} ms per image": (
            partial(tag_stage, roots, names),
            TAGGER_SECONDS,
        ),
        f"caption, {1000 * CAPTIONER_SECONDS:g} ms per {GROUP} images": (
            partial(caption_stage, roots),
            CAPTIONER_SECONDS,
        ),
    }
    table = Table(
        "stage, simulated device",
        "io_threads: 0",
        f"io_threads: {options.threads}",
        title="utilization",
    )
    for name, (make, seconds) in ways.items():
        shares = []
        for threads in (0, options.threads):
            best_round = max(
                utilization(make, seconds, threads, records) for _ in range(options.rounds)
            )
            shares.append(f"{best_round:.1%}")
        table.add_row(name, *shares)
    report(__doc__, table, host_table(roots, records[:24], options.rounds))


if __name__ == "__main__":
    main()
