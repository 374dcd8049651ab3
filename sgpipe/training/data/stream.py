"""The steps of a training or a validation, read and prepared by threads ahead of their use.

A step says which images, their annotations, and the label texts of each image. Workers read what
they need for their shares of every step: their own images with annotations, and the names in others
that share texts with them. So they choose the same texts, and their number changes nothing.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from threading import Lock
from typing import TypeAlias, cast

import pyarrow as pa
from PIL import Image

from rlip_model.dense_head import LabelledBoxes
from rlip_model.text import NO_OBJECTS
from rlip_model.training.annotations import SceneAnnotation, SceneObject, SceneRelation, label_scene
from rlip_model.training.augment import prepare
from rlip_model.training.batches import TrainingBatch, TrainingExample, collate
from rlip_model.training.pairs import tagger_triplets
from rlip_model.training.sampling import NegativeSampling, Texts, batch_texts, relabelled
from sgpipe.errors import UnavailableImageError, UserError
from sgpipe.files.image_roots import ImageRoots, IndexFolder
from sgpipe.files.locations import location
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Record, RelationOrigin
from sgpipe.storage.shards import IMAGE_COLUMN
from sgpipe.training.data.judged import JudgedRelation
from sgpipe.training.data.order import (
    Epoch,
    EpochRow,
    RowGroupReader,
    RowValues,
    divide,
    generator,
    iter_epoch,
    shuffled_epoch,
)
from sgpipe.training.data.scan import TrainingSet
from sgpipe.training.recipe import DataConfig
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import prefetch_generator, start_early

_FAILURES_BEFORE_REFUSAL = 32
_UNDIVIDED = 4  # images of a step that are not divided between lanes without groups
_MOST_LANES = 64
_NO_BOX = (0.0, 0.0, 0.0, 0.0)
# A worker's share of a step, computed one after another.
TrainingStep: TypeAlias = "tuple[StepPart, ...]"
_FutureExample: TypeAlias = Future[TrainingExample | None]
_Names: TypeAlias = "tuple[tuple[str, ...], tuple[str, ...]]"  # of objects, and predicates
_IMAGE_FIELDS = ("image_id", "dataset", "split", "file_name", "width", "height")


def scene_graph(values: RowValues, threshold: float) -> SceneAnnotation:
    """Return objects but crowds, and sure relations between them.

    The id of an object is its index in the row; boxes are xywh in pixels, or zeros where only names
    were read.
    """
    objects = tuple(
        SceneObject(index, item["category"], tuple(item.get("bbox", _NO_BOX)))
        for index, item in enumerate(values["objects"] or ())
        if not item["iscrowd"]
    )
    known = {item.object_id for item in objects}
    relations = []
    for item in values["relations"] or ():
        subject = item["subject"]
        object_ = item["object"]
        confidence = item["confidence"]
        is_sure = confidence is None or confidence >= threshold
        if is_sure and subject in known and object_ in known:
            relation = SceneRelation(
                subject, object_, item["predicate"], confidence, item["origin"]
            )
            relations.append(relation)
    return SceneAnnotation(values["image_id"], objects, tuple(relations))


@dataclass(frozen=True)
class TrainingItem:
    """An image of a folder of the training set, before it is read.

    Attributes:
        embedded: its file in Arrow, if the shard contains it, as only one worker needs it
        graph: with the names after a flip, if the image is to be flipped
        rng: makes all further random choices about the image
    """

    folder: int
    image: Record
    embedded: pa.StructScalar | None
    graph: SceneAnnotation
    flip: bool
    rng: random.Random


@dataclass(frozen=True)
class StepPart:
    """Images of one group, if any, computed together; the network reads `network_texts`, possibly
    reworded.
    """

    texts: Texts
    network_texts: Texts
    items: tuple[TrainingItem, ...]


@dataclass(frozen=True)
class StepStream:
    """The steps of all epochs.

    Attributes:
        batch: images per step, over all workers
        max_relations: only the first ones of an image are used; with closed class lists all, as
            published
        training: False: visit all images once per epoch, in the order of the shards, unchanged
        accumulate: parts into which a worker cuts its share, besides those of different groups

    Raises:
        UserError: the batch cannot be divided evenly between the workers, or an epoch has fewer
            images than a batch
    """

    training_set: TrainingSet
    data: DataConfig
    batch: int
    seed: int
    max_relations: int
    rank: int = 0
    world_size: int = 1
    training: bool = True
    accumulate: int = 1

    def __post_init__(self) -> None:
        if not self.training:
            return
        check_batch(self.batch, self.world_size, self.accumulate)
        if not self.steps_per_epoch:
            images = count(len(self._order(0)), "image")
            raise UserError(
                f"an epoch has only {images}, less than a batch of {self.batch}: lower"
                " optimisation.batch"
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """In training, images that do not fill a batch are left out of the epoch."""
        if self.training:
            return self._images // self.batch
        return -(-self._images // self.batch)

    @cached_property
    def _images(self) -> int:
        """Images of an epoch, with those that do not fill a batch."""
        return len(self._order(0))

    def _order(self, epoch: int) -> Epoch:
        if not self.training:
            return Epoch(self.training_set.row_groups)  # whatever the weights of the folders
        return shuffled_epoch(self.training_set, self.data.shuffle, self.seed, epoch)

    def steps(self, epoch: int = 0, step: int = 0) -> Iterator[TrainingStep]:
        """Yield endless steps, starting at a step of an epoch.

        Raises:
            UserError: as `iter_epoch`
        """
        while True:
            yield from self.epoch(epoch, step)
            epoch = epoch + 1
            step = 0

    def epoch(self, epoch: int, step: int = 0) -> Iterator[TrainingStep]:
        """Yield the steps of an epoch, starting at a step. Raises as `steps`."""
        sizes = [len(places) for places in self._lanes]
        orders = divide(self._order(epoch), sizes, self.steps_per_epoch)
        readers = self._lane_readers()
        lanes = []
        for number, reader in readers.items():
            places = self._lanes[number]
            position = step * len(places)
            lane = iter_epoch(
                self.training_set, orders[number], position, reader, lanes=len(readers)
            )
            lanes.append((places, lane))
        for index in range(step, self.steps_per_epoch):
            rows: dict[int, EpochRow] = {}
            for places, lane in lanes:
                rows.update(zip(places, lane, strict=False))
            yield self._step(epoch, index, rows)

    def _lane_readers(self) -> dict[int, RowGroupReader]:
        """Return what reads each lane that this worker needs, by its number: all columns of those
        with its own images, the names of those that share texts with them.
        """
        own = self._own_places(self.batch)
        named = self._named_places(self.batch)
        reader = RowGroupReader()
        name_reader = RowGroupReader(only_names=True)
        readers = {}
        for number, places in enumerate(self._lanes):
            if own.intersection(places):
                readers[number] = reader
            elif named.intersection(places):
                readers[number] = name_reader
        return readers

    @cached_property
    def _lanes(self) -> list[range]:
        """The places in a step that each lane of an epoch supplies.

        A lane has a text group of each step or, without groups, one image, so that a worker reads
        the row groups of its own images alone. Small steps have few workers, and one lane.
        """
        size = self.batch
        if self.training and self.data.text_group:
            size = min(self.data.text_group, self.batch)
        elif self.training and self.batch > _UNDIVIDED:
            size = -(-self.batch // _MOST_LANES)
        return [range(start, min(start + size, self.batch)) for start in range(0, self.batch, size)]

    def _own_places(self, images: int) -> frozenset[int]:
        """Return the places in a step of this many images that this worker computes."""
        own = set[int]()
        for part in self._cut(images):
            own.update(part)
        return frozenset(own)

    def _named_places(self, images: int) -> frozenset[int]:
        """Return the places whose names decide the texts of this worker's images."""
        named = set[int]()
        if self.training_set.closed_labels is not None:
            return frozenset(named)
        for part in self._cut(images):
            if part:
                start = part.start // self.group * self.group
                named.update(range(start, min(start + self.group, images)))
        return frozenset(named)

    def _cut(self, images: int) -> list[range]:
        return cut(images, self.group, self.rank, self.world_size, self.accumulate)

    @cached_property
    def group(self) -> int:
        """Images that share a list of texts. With closed class lists, all lists are the same."""
        group = self.data.text_group if self.training_set.closed_labels is None else None
        return min(group or self.batch, self.batch)

    def _step(self, epoch: int, index: int, rows: Mapping[int, EpochRow]) -> TrainingStep:
        """Return this worker's share of a step, of which it has the rows of some places."""
        first = index * self.batch
        images = min(self.batch, self._images - first)
        own = self._own_places(images)
        items: dict[int, TrainingItem] = {}
        names: dict[int, _Names] = {}
        for place in sorted(own | self._named_places(images)):
            row = rows[place]
            # "picture" is part of the seed: another word would change every training.
            rng = generator("picture", self.seed, epoch, first + place)
            values = row.values()
            graph, flip = self._annotations(row.folder, values, rng)
            names[place] = graph.names()
            if place in own:
                image = Record(*(values[name] for name in _IMAGE_FIELDS))
                embedded = values.get(IMAGE_COLUMN)
                items[place] = TrainingItem(row.folder, image, embedded, graph, flip, rng)
        texts: dict[int, tuple[Texts, Texts]] = {}
        parts = []
        for part in self._cut(images):
            group = min(part.start, images - 1) // self.group
            if group not in texts:
                places = range(group * self.group, (group + 1) * self.group)
                group_names = [names[place] for place in places if place in names]
                number = index * -(-self.batch // self.group) + group
                texts[group] = self._choose(group_names, epoch, number)
            parts.append(StepPart(*texts[group], tuple(items[place] for place in part)))
        return tuple(parts)

    def _choose(self, names: Sequence[_Names], epoch: int, number: int) -> tuple[Texts, Texts]:
        """Return the texts of the `number`-th group, and how the network reads them.

        Args:
            names: in each of its images
        """
        rng = generator("texts", self.seed, epoch, number)
        closed = self.training_set.closed_labels
        if closed is not None:
            texts = Texts((*closed.objects, NO_OBJECTS), closed.relations)
        else:
            sampling = NegativeSampling(
                self.training_set.objects,
                self.training_set.relations,
                self.data.negative_texts,
                self.data.object_strategy,
                self.data.relation_strategy,
            )
            objects = [objects for objects, _ in names]
            predicates = [predicates for _, predicates in names]
            texts = batch_texts(objects, predicates, sampling, rng, take_all=True)
        return texts, self._reworded(texts, rng)

    def _reworded(self, texts: Texts, rng: random.Random) -> Texts:
        """Return the texts with relations in random wordings that are not other relations."""
        if not self.training:
            return texts
        relations = list(texts.relations)
        for index, text in enumerate(texts.relations):
            wordings = self.data.wordings.get(text, ())
            new = [wording for wording in wordings if wording not in relations]
            if new:
                relations[index] = rng.choice([text, *new])
        return Texts(texts.objects, tuple(relations))

    def _annotations(
        self, folder: int, values: RowValues, rng: random.Random
    ) -> tuple[SceneAnnotation, bool]:
        """Return the annotations of an image of a folder, with the names after a flip, and whether
        it is flipped.
        """
        graph = scene_graph(values, self.training_set.threshold)
        judged = self.training_set.folders[folder].judged
        if judged is not None:
            graph = _with_judgements(graph, judged[values["split"], values["image_id"]], rng)
        if self.training and self.data.origins:
            graph = _sample_origins(graph, self.data.origins, rng)
        if self.training_set.closed_labels is None:
            graph = replace(graph, relations=graph.relations[: self.max_relations])
        if self._draws_flip(rng):
            flipped = graph.with_flipped_texts()
            if self._has_names(flipped):
                return flipped, True
        return graph, False

    def _draws_flip(self, rng: random.Random) -> bool:
        """Draw whether an image is flipped; the number is drawn even if no image is."""
        chance = rng.random()
        augment = self.data.augment
        return self.training and augment is not None and chance < augment.flip

    def _has_names(self, graph: SceneAnnotation) -> bool:
        """Return whether the texts can have all names: a closed list may lack "right of"."""
        closed = self.training_set.closed_labels
        if closed is None:
            return True
        objects, predicates = graph.names()
        return {*objects} <= {*closed.objects} and {*predicates} <= {*closed.relations}


def _with_judgements(
    graph: SceneAnnotation, judgements: Sequence[JudgedRelation], rng: random.Random
) -> SceneAnnotation:
    """Return the objects with a random choice of judged relations, by their shares."""
    objects = {item.object_id for item in graph.objects}
    relations = []
    for judged in judgements:
        if rng.random() < judged.share and {judged.subject, judged.object} <= objects:
            relation = SceneRelation(
                judged.subject, judged.object, judged.predicate, origin="person", right=judged.right
            )
            relations.append(relation)
    return replace(graph, relations=tuple(relations), judged=True)


def _sample_origins(
    graph: SceneAnnotation, shares: Mapping[RelationOrigin, float], rng: random.Random
) -> SceneAnnotation:
    """Keep a random share of the relations of each origin; of several, the largest counts."""
    relations = []
    for relation in graph.relations:
        origins = cast(list[RelationOrigin], relation.origin.split("+"))
        share = max(shares.get(origin, 1.0) for origin in origins)
        if rng.random() < share:
            relations.append(relation)
    return replace(graph, relations=tuple(relations))


def cut(images: int, group: int, rank: int, world_size: int, accumulate: int = 1) -> list[range]:
    """Return a worker's parts of a step, none with images of two groups.

    All workers have equally many parts; the last ones may be empty.
    """
    share = -(-images // world_size)
    parts: list[list[range]] = []
    for worker in range(world_size):
        start = min(worker * share, images)
        stop = min((worker + 1) * share, images)
        starts = {*range(start, stop, -(-share // accumulate))}
        starts |= {*range(-(-start // group) * group, stop, group)}
        parts.append([range(*ends) for ends in pairwise([*sorted(starts), stop])])
    end = min((rank + 1) * share, images)
    missing = max(map(len, parts)) - len(parts[rank])
    return parts[rank] + [range(end, end)] * missing


def check_batch(batch: int, workers: int, accumulate: int = 1) -> None:
    """Check that a batch can be divided.

    Raises:
        UserError: a batch cannot be divided evenly between the workers and their parts.
    """
    if batch % (workers * accumulate):
        by = f"between {count(workers, 'worker')} with {count(accumulate, 'part')} each"
        hint = "change optimisation.batch, optimisation.accumulate or workers.count"
        raise UserError(f"a batch of {batch} cannot be divided evenly {by}; {hint}")


@dataclass(frozen=True)
class ShardFeed:
    """Feeds `rlip_model.training.loop.Trainer` from shards with the steps of `stream`.

    Attributes:
        max_pairs: number of pairs of an R-Tagger, which also learns from unrelated pairs; None: a
            detector, which learns from the first relations of an image
        pinned: in memory that a GPU copies at once

    Raises:
        UnavailableError, StoreError: while batches are read: an image or a shard cannot be read for
            now
        UserError: likewise: no image can be read, or shards have changed since the scan
    """

    stream: StepStream
    validation_set: TrainingSet | None = None
    max_pairs: int | None = None
    pinned: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch

    def read(
        self, epoch: int = 0, step: int = 0
    ) -> AbstractContextManager[Iterator[list[TrainingBatch]]]:
        """Return the parts of endless steps from a step of an epoch, for a `with` statement."""
        return prefetch_generator(self._batches(self.stream, self.stream.steps(epoch, step)))

    def validation(self) -> AbstractContextManager[Iterator[TrainingBatch]] | None:
        """Return this worker's share of the validation images, if any.

        All workers have equally many batches; some may be empty.
        """
        if self.validation_set is None:
            return None
        data = self.stream.data.model_copy(update={"augment": None})
        stream = replace(self.stream, training_set=self.validation_set, training=False, data=data)
        return prefetch_generator(self._validation_batches(stream))

    def _validation_batches(self, stream: StepStream) -> Generator[TrainingBatch, None, None]:
        for parts in self._batches(stream, stream.epoch(0)):
            yield from parts

    def _batches(
        self, stream: StepStream, steps: Iterator[TrainingStep]
    ) -> Generator[list[TrainingBatch], None, None]:
        """Yield the parts of each step, while threads read the images of the next steps."""
        data = stream.data
        reader = ImageReader(stream.training_set, stream.world_size)
        pool = ThreadPoolExecutor(data.threads, thread_name_prefix="images")

        def start(step: TrainingStep) -> list[tuple[StepPart, list[_FutureExample]]]:
            example = partial(self.example, data, reader)
            started = []
            for part in step:
                futures = [pool.submit(example, item, part.texts) for item in part.items]
                started.append((part, futures))
            return started

        def collated(part: StepPart, futures: Sequence[_FutureExample]) -> TrainingBatch:
            examples = [future.result() for future in futures]
            readable = [example for example in examples if example is not None]
            batch = collate(readable, part.network_texts, skipped=len(futures) - len(readable))
            return batch.pinned() if self.pinned and stream.training else batch

        try:  # nothing here keeps the last step's images
            started = start_early(start, steps, data.prefetch + 1)
            yield from ([collated(*part) for part in parts] for parts in started)
        finally:
            pool.shutdown(cancel_futures=True)

    def example(
        self, data: DataConfig, reader: ImageReader, item: TrainingItem, texts: Texts
    ) -> TrainingExample | None:
        """Return the training example of an image and its annotations; None: unreadable.

        Raises:
            UserError, StoreError: as `ImageReader.open`
        """
        image = reader.open(item)
        if image is None:
            return None
        size = item.image.width, item.image.height
        targets = label_scene(item.graph, *size, len(item.graph.relations))
        sides = data.short_side, data.long_side
        pixel_values, targets = prepare(image, targets, data.augment, *sides, item.rng, item.flip)
        height, width = pixel_values.shape[1:]
        if self.max_pairs is None:
            triplets = targets.labelled_triplets(width, height, self.stream.max_relations)
        else:
            triplets = tagger_triplets(
                targets,
                width,
                height,
                self.max_pairs,
                item.rng,
                related_first=data.related_first,
            )
        boxes = LabelledBoxes(*targets.boxes_and_labels(width, height, texts.objects))
        return TrainingExample(
            item.image.image_id, pixel_values, relabelled(triplets, texts), size, boxes
        )


class ImageReader:
    """Reads the images that `world_size` workers share; safe to use from several threads."""

    def __init__(self, training_set: TrainingSet, world_size: int = 1) -> None:
        self._roots = [folder.root for folder in training_set.folders]
        self._images = [
            ImageRoots(folder.images, IndexFolder(location(folder.root)))
            for folder in training_set.folders
        ]
        self._max_failures = max(1, min(_FAILURES_BEFORE_REFUSAL, training_set.rows // world_size))
        self._failures = 0
        self._has_read = False
        self._lock = Lock()

    def open(self, item: TrainingItem) -> Image.Image | None:
        """Return the RGB image, of the annotated size; None: unreadable.

        Raises:
            UnavailableImageError, StoreError: it cannot be read for now
            UserError: none of the first images can be read
        """
        stored = item.embedded.as_py() if item.embedded is not None else None
        content = stored["bytes"] if stored else None
        try:
            image = open_row_image(self._images[item.folder], item.image, content)
        except UnavailableImageError:
            raise
        except ImageError as error:
            self._count_failure(item, error)
            return None
        self._has_read = True
        return image

    def _count_failure(self, item: TrainingItem, error: ImageError) -> None:
        with self._lock:
            self._failures += 1
            is_too_many = not self._has_read and self._failures >= self._max_failures
        if is_too_many:
            root = self._roots[item.folder]
            place = self._images[item.folder].locations.get(item.image.split, root)
            raise UserError(
                f"the first {count(self._max_failures, 'image')} cannot be read from {place}"
                f" ({error}); if they moved, pass --images"
            ) from None
