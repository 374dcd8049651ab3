"""What a worker is fed with: its share of the batches of training and validation.

From steps to batches: images read, changed and put together by threads, ahead of who asks for them.

Reading the images of a training; those that cannot be read are skipped and counted.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from io import BytesIO
from pathlib import Path
from threading import Lock

from PIL import Image

from rlip_model.training.annotations import label_scene
from rlip_model.training.augment import Augmentation, prepare
from rlip_model.training.batches import TrainingBatch, TrainingExample, collate
from rlip_model.training.pairs import tagger_triplets
from rlip_model.training.sampling import Texts, relabelled
from sgpipe.errors import UserError
from sgpipe.images import ImageError, decode, is_upright, resolve
from sgpipe.training.data.contents import Folder, TrainSet
from sgpipe.training.data.prefetcher import Ahead
from sgpipe.training.data.stream import Item, Step, Stream
from sgpipe.training.recipe import DataConfig


@dataclass(frozen=True)
class Share:
    """Which worker this is, of how many, and in how many parts it computes its share of a step."""

    rank: int = 0
    world: int = 1
    accumulate: int = 1


@dataclass(frozen=True)
class ShardFeed:
    """A `rlip_model.training.loop.Feed` from shards.

    Args:
        training, validating: what to train and to validate on, as scanned.
        batch: images per step, of all workers together.
        most_relations: see `Stream`.
        most_pairs: see `Preparation`.

    Raises:
        UserError: a batch cannot be shared evenly, or there are fewer images than one. When batches are used: no
            image can be read, or shards changed since they were scanned.
    """

    training: TrainSet
    validating: TrainSet | None
    data: DataConfig
    batch: int
    seed: int
    most_relations: int
    most_pairs: int | None = None
    share: Share = Share()

    def __post_init__(self) -> None:
        per_worker = self.stream.batch // self.share.world
        if per_worker % self.share.accumulate:
            raise UserError(
                f"a worker's {per_worker} images of a step cannot be computed in {self.share.accumulate} equal parts; "
                "change optimisation.batch or optimisation.accumulate"
            )

    @cached_property
    def stream(self) -> Stream:
        """The steps of the training."""
        share = self.share
        return Stream(self.training, self.data, self.batch, self.seed, self.most_relations, share.rank, share.world)

    @cached_property
    def reader(self) -> ImageReader:
        """Of the training; says how many were skipped, and why."""
        return ImageReader(self.training, self.share.world)

    @property
    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch

    def read(self, epoch: int = 0, step: int = 0) -> Ahead[list[TrainingBatch]]:
        """The parts of step after step without end, from a step of an epoch on; to be closed by `with`."""
        data = self.data
        preparation = Preparation(
            self.reader, data.augment, data.short_side, data.long_side, self.most_pairs, data.related_first
        )
        steps = self.stream.steps(epoch, step)
        return Ahead(batches(steps, preparation, data.threads, data.prefetch, self.share.accumulate))

    def validation(self) -> Ahead[TrainingBatch] | None:
        """This worker's share of all images to validate on, of which every worker gets as many batches.

        Some batches may be empty. None if there is nothing to validate on.
        """
        return None if self.validating is None else Ahead(self._validation(self.validating))

    def _validation(self, trainset: TrainSet) -> Generator[TrainingBatch, None, None]:
        data, share = self.data, self.share
        batch = self.batch // share.accumulate
        stream = Stream(trainset, data, batch, self.seed, self.most_relations, share.rank, share.world, training=False)
        reader = ImageReader(trainset, share.world)
        preparation = Preparation(reader, None, data.short_side, data.long_side, self.most_pairs, data.related_first)
        with closing(batches(stream.epoch(0), preparation, data.threads, data.prefetch)) as steps:
            for [whole] in steps:
                yield whole


@dataclass(frozen=True)
class Preparation:
    """What is made of an image and its targets.

    Args:
        augment: None to change only the size, to `short_side` and at most `long_side` pixels.
        most_pairs: of an R-Tagger, which learns from unrelated pairs too; None: of another network.
        related_first: see `tagger_triplets`.
    """

    reader: ImageReader
    augment: Augmentation | None
    short_side: int
    long_side: int
    most_pairs: int | None = None
    related_first: bool = False

    def example(self, item: Item, texts: Texts) -> TrainingExample | None:
        """None if the image cannot be read. Raises UserError: as `ImageReader.open`."""
        image = self.reader.open(item)
        if image is None:
            return None
        targets = label_scene(item.graph, *item.size, len(item.graph.relations))
        pixel_values, targets = prepare(
            image, targets, self.augment, self.short_side, self.long_side, item.rng, item.flip
        )
        height, width = pixel_values.shape[1:]
        if self.most_pairs is None:
            triplets = targets.labelled_triplets(width, height)
        else:
            triplets = tagger_triplets(
                targets, width, height, self.most_pairs, item.rng, related_first=self.related_first
            )
        return TrainingExample(item.image_id, pixel_values, relabelled(triplets, texts), item.size)


def batches(
    steps: Iterator[Step], preparation: Preparation, threads: int, prefetch: int, parts: int = 1
) -> Generator[list[TrainingBatch], None, None]:
    """The batches of each step, in so many equal parts, while the next `prefetch` steps are read by threads.

    They do not depend on the number of threads.
    """
    pool = ThreadPoolExecutor(threads, thread_name_prefix="images")
    pending: deque[tuple[Step, list[Future[TrainingExample | None]]]] = deque()
    try:
        for step in steps:
            pending.append((step, [pool.submit(preparation.example, item, step.texts) for item in step.items]))
            if len(pending) > prefetch:
                yield _collated(*pending.popleft(), parts)
        while pending:
            yield _collated(*pending.popleft(), parts)
    finally:
        pool.shutdown(cancel_futures=True)


def _collated(step: Step, examples: list[Future[TrainingExample | None]], parts: int) -> list[TrainingBatch]:
    """The parts; a step without any item, of a validation, is an empty batch."""
    size = max(1, len(examples) // parts)
    cuts = [examples[at : at + size] for at in range(0, len(examples), size)] or [[]]
    return [_batch([future.result() for future in cut], step.spoken) for cut in cuts]


def _batch(examples: list[TrainingExample | None], texts: Texts) -> TrainingBatch:
    there = [example for example in examples if example is not None]
    return collate(there, texts, skipped=len(examples) - len(there))


_REASONS = 5
_ENOUGH = 32


class ImageReader:
    """The images of a set, to be read by several threads.

    Args:
        world: workers that share the images.

    Attributes:
        read, skipped: how many could be read, and how many could not.
        reasons: why the first few could not.
    """

    def __init__(self, trainset: TrainSet, world: int = 1) -> None:
        self.read = self.skipped = 0
        self.reasons: list[str] = []
        self._folders = trainset.folders
        self._enough = max(1, min(_ENOUGH, trainset.rows // world))
        self._lock = Lock()

    def open(self, item: Item) -> Image.Image | None:
        """The image as RGB, of the annotated size; None if it cannot be read.

        Raises UserError: none of the first images could be read.
        """
        folder = self._folders[item.folder]
        try:
            image = _open(folder, item)
        except ImageError as error:
            with self._lock:
                self._skip(folder, item, str(error))
            return None
        with self._lock:
            self.read += 1
        return image

    def _skip(self, folder: Folder, item: Item, reason: str) -> None:
        self.skipped += 1
        if len(self.reasons) < _REASONS and reason not in self.reasons:
            self.reasons.append(reason)
        if not self.read and self.skipped >= self._enough:
            place = folder.images.get(item.split, folder.root)
            raise UserError(
                f"none of the first {self.skipped} images could be read from {place} ({self.reasons[0]}); "
                "give the right image folder by --images"
            )


def _open(folder: Folder, item: Item) -> Image.Image:
    upright = is_upright(item.dataset)
    if item.embedded is not None:
        return decode(BytesIO(item.embedded), item.size, f"{item.file_name} of {folder.root}", upright=upright)
    root = folder.images.get(item.split)
    if root is None:
        raise ImageError(f"the shards of {folder.root} hold no image of image {item.image_id}")
    path = resolve(Path(root), item.file_name)
    return decode(path, item.size, str(path), upright=upright)
