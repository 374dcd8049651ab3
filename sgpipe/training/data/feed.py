"""A worker's share of the training and validation batches, read and prepared by threads ahead of their use."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, replace
from functools import cached_property
from threading import Lock

from PIL import Image

from rlip_model.dense_head import LabelledBoxes
from rlip_model.training.annotations import label_scene
from rlip_model.training.augment import prepare
from rlip_model.training.batches import TrainingBatch, TrainingExample, collate
from rlip_model.training.pairs import tagger_triplets
from rlip_model.training.sampling import Texts, relabelled
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImageRoots, IndexFolder
from sgpipe.files.locations import location
from sgpipe.images import ImageError, open_row_image
from sgpipe.training.data.scan import TrainingSet
from sgpipe.training.data.stream import StepPart, StepStream, TrainingItem, TrainingStep
from sgpipe.training.recipe import DataConfig
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import prefetch_generator, start_early


@dataclass(frozen=True)
class ShardFeed:
    """Feeds `rlip_model.training.loop.Trainer` from shards with the steps of `stream`.

    most_pairs: see `ExamplePreparation`. pinned: in memory that a GPU copies at once.

    Raises UserError while batches are read: no image can be read, or shards have changed since the scan.
    """

    stream: StepStream
    validation_set: TrainingSet | None = None
    most_pairs: int | None = None
    pinned: bool = False

    @cached_property
    def reader(self) -> ImageReader:
        """Reads the training images, and counts those that it skips."""
        return ImageReader(self.stream.training_set, self.stream.world_size)

    @property
    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch

    def read(self, epoch: int = 0, step: int = 0) -> AbstractContextManager[Iterator[list[TrainingBatch]]]:
        """Return the parts of endless steps, starting at a step of an epoch; use it in a `with` statement."""
        preparation = ExamplePreparation(self.reader, self.stream.data, self.stream.most_relations, self.most_pairs)
        return prefetch_generator(batches(self.stream.steps(epoch, step), preparation, pinned=self.pinned))

    def validation(self) -> AbstractContextManager[Iterator[TrainingBatch]] | None:
        """This worker's share of the validation images, if any: as many batches as others', some perhaps empty."""
        return None if self.validation_set is None else prefetch_generator(self._validation(self.validation_set))

    def _validation(self, validation_set: TrainingSet) -> Generator[TrainingBatch, None, None]:
        stream = replace(self.stream, training_set=validation_set, training=False)
        reader = ImageReader(validation_set, stream.world_size)
        settings = stream.data.model_copy(update={"augment": None})
        preparation = ExamplePreparation(reader, settings, stream.most_relations, self.most_pairs)
        with closing(batches(stream.epoch(0), preparation)) as steps:
            for parts in steps:
                yield from parts


@dataclass(frozen=True)
class ExamplePreparation:
    """Turns an image and its annotations into a training example.

    Args:
        most_triplets: a detector learns from the first ones of an image, whose relations are merged before.
        most_pairs: number of pairs of an R-Tagger, which also learns from unrelated pairs; None: another network.
    """

    reader: ImageReader
    data: DataConfig
    most_triplets: int
    most_pairs: int | None = None

    def example(self, item: TrainingItem, texts: Texts) -> TrainingExample | None:
        """Return the example; None if the image cannot be read. Raises UserError: see `ImageReader.open`."""
        image = self.reader.open(item)
        if image is None:
            return None
        size, data = (item.width, item.height), self.data
        targets = label_scene(item.graph, *size, len(item.graph.relations))
        pixel_values, targets = prepare(
            image, targets, data.augment, data.short_side, data.long_side, item.rng, item.flip
        )
        height, width = pixel_values.shape[1:]
        if self.most_pairs is None:
            triplets = targets.labelled_triplets(width, height, self.most_triplets)
        else:
            most, first = self.most_pairs, data.related_first
            triplets = tagger_triplets(targets, width, height, most, item.rng, related_first=first)
        boxes = LabelledBoxes(*targets.boxes_and_labels(width, height, texts.objects))
        return TrainingExample(item.image_id, pixel_values, relabelled(triplets, texts), size, boxes)


_StartedPart = tuple[StepPart, list[Future[TrainingExample | None]]]


def batches(
    steps: Iterator[TrainingStep], preparation: ExamplePreparation, *, pinned: bool = False
) -> Generator[list[TrainingBatch], None, None]:
    """Return the parts of each step, while threads, on which they do not depend, read the next steps."""
    pool = ThreadPoolExecutor(preparation.data.threads, thread_name_prefix="images")

    def start(step: TrainingStep) -> list[_StartedPart]:
        return [
            (part, [pool.submit(preparation.example, item, part.texts) for item in part.items]) for part in step.parts
        ]

    def collated(part: StepPart, futures: Sequence[Future[TrainingExample | None]]) -> TrainingBatch:
        readable = [example for future in futures if (example := future.result()) is not None]
        batch = collate(readable, part.network_texts, skipped=len(futures) - len(readable))
        return batch.pinned() if pinned else batch

    try:  # nothing here keeps the last step's images
        started = start_early(start, steps, preparation.data.prefetch + 1)
        yield from ([collated(*each) for each in parts] for parts in started)
    finally:
        pool.shutdown(cancel_futures=True)


_FAILURES_BEFORE_REFUSAL = 32


class ImageReader:
    """Reads the images of a training set, which `world_size` workers share; safe to use from several threads.

    It counts those `read` and `skipped`.
    """

    def __init__(self, training_set: TrainingSet, world_size: int = 1) -> None:
        self.read = self.skipped = 0
        self._roots = [folder.root for folder in training_set.folders]
        self._images = [
            ImageRoots(folder.images, IndexFolder(location(folder.root))) for folder in training_set.folders
        ]
        self._most_failures = max(1, min(_FAILURES_BEFORE_REFUSAL, training_set.rows // world_size))
        self._lock = Lock()

    def open(self, item: TrainingItem) -> Image.Image | None:
        """Return the RGB image, of the annotated size; None: unreadable. Raises UserError: so are all first ones."""
        try:
            image = open_row_image(self._images[item.folder], item, item.embedded)
        except ImageError as error:
            with self._lock:
                self.skipped += 1
                if not self.read and self.skipped >= self._most_failures:
                    place = self._images[item.folder].locations.get(item.split, self._roots[item.folder])
                    images = f"the first {count(self._most_failures, 'image')} cannot be read from {place}"
                    raise UserError(f"{images} ({error}); if they moved, pass --images") from None
            return None
        with self._lock:
            self.read += 1
        return image
