"""The steps of a training or a validation, read and prepared by threads ahead of their use.

A step says which images, their annotations, and the label texts of each image.
Row groups are shuffled, and those of a window, which are in memory together, share a second shuffle
of their rows. Every random choice has its own generator, seeded by what it chooses: a reader can
jump to any position, and workers, who choose the same texts for groups of images and keep their
shares of every step, change nothing.
"""

from __future__ import annotations

import random
from bisect import bisect_right
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import accumulate, islice, pairwise
from threading import Lock
from typing import Any, TypeAlias

import pyarrow as pa
from PIL import Image

from rlip_model.dense_head import LabelledBoxes
from rlip_model.text import NO_OBJECTS
from rlip_model.training.annotations import SceneAnnotation, SceneObject, SceneRelation, label_scene
from rlip_model.training.augment import prepare
from rlip_model.training.batches import TrainingBatch, TrainingExample, collate
from rlip_model.training.pairs import tagger_triplets
from rlip_model.training.sampling import NegativeSampling, Texts, batch_texts, relabelled
from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImageRoots, IndexFolder
from sgpipe.files.locations import is_uri, location
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Record
from sgpipe.storage.shards import IMAGE_COLUMN, read_row_group
from sgpipe.training.data.scan import COLUMNS, TrainingSet, UsableRowGroup
from sgpipe.training.recipe import DataConfig
from sgpipe.utils.console import count
from sgpipe.utils.prefetch import prefetch, prefetch_generator, start_early

_FETCHED = 8  # row groups of a store at once


_FAILURES_BEFORE_REFUSAL = 32


def generator(*key: object) -> random.Random:
    """Return a random generator seeded by the key, the same on every machine."""
    return random.Random(" ".join(map(str, key)))


@dataclass(frozen=True)
class Epoch:
    """Visits to `rows` usable rows of row groups, `window` of them shuffled together by `key`;
    None: in their order.
    """

    visits: tuple[UsableRowGroup, ...]
    window: int = 1
    key: str | None = None

    def __len__(self) -> int:
        return self.ends[-1]

    @cached_property
    def ends(self) -> list[int]:
        """The number of rows before each window, and of all."""
        starts = range(0, len(self.visits), self.window)
        rows = (sum(visit.rows for visit in self.visits[at : at + self.window]) for at in starts)
        return list(accumulate(rows, initial=0))

    def order(self, window: int, usable: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
        """Return the rows of a window in order, as (index of the visit in the window, row of its
        table); `usable`: such rows of each visit.
        """
        if self.key is None:
            return [(visit, row) for visit, rows in enumerate(usable) for row in rows]
        rng = generator("window", self.key, window)
        visits = self.visits[window * self.window :]
        drawn = [
            (index, row)
            for index, (visit, rows) in enumerate(zip(visits, usable, strict=False))
            for row in (rows if visit.rows == len(rows) else rng.sample(rows, visit.rows))
        ]
        rng.shuffle(drawn)
        return drawn


def shuffled_epoch(training_set: TrainingSet, window: int, seed: int, epoch: int) -> Epoch:
    """Return a shuffled epoch that passes over every folder as often as its weight says.

    With weight 2.5, an epoch visits all rows of a row group twice and a random half of them,
    another one in each epoch, a third time.
    """
    rng = generator("visits", seed, epoch)
    visits = []
    for index, folder in enumerate(training_set.folders):
        own = [row_group for row_group in training_set.row_groups if row_group.folder == index]
        rng.shuffle(own)
        whole = int(folder.weight)
        # Rounded so that the sum is the fraction of all rows.
        ends = [
            round(end * (folder.weight - whole))
            for end in accumulate((each.rows for each in own), initial=0)
        ]
        parts = [
            replace(each, rows=end - start)
            for each, (start, end) in zip(own, pairwise(ends), strict=True)
        ]
        visits += own * whole + [part for part in parts if part.rows]
    rng.shuffle(visits)
    return Epoch(tuple(visits), window, f"{seed} {epoch}")


def iter_epoch(
    training_set: TrainingSet, epoch: Epoch, position: int = 0
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows of an epoch from a position on, with the index of the folder; images remain in
    Arrow.

    Raises UserError, StoreError: a shard is lost or changed.
    """
    window = bisect_right(epoch.ends, position) - 1
    groups = epoch.visits[window * epoch.window :]
    skipped = position - epoch.ends[window]
    in_store = any(
        is_uri(folder.root) for folder in training_set.folders
    )  # threads read one window in advance

    def read(group: UsableRowGroup) -> pa.Table:
        return read_row_group(location(group.file), group.group, COLUMNS, (IMAGE_COLUMN,))

    with prefetch(read, groups, _FETCHED if in_store else 0, epoch.window + 1) as read_tables:
        for start in range(0, len(groups), epoch.window):
            own = groups[start : start + epoch.window]
            tables = list(islice(read_tables, epoch.window))
            usable = [
                group.usable_rows(len(table)) for group, table in zip(own, tables, strict=True)
            ]
            plain = [table.select(COLUMNS) for table in tables]
            for visit, index in epoch.order(window, usable)[skipped:]:
                values = plain[visit].slice(index, 1).to_pylist()[0]
                if IMAGE_COLUMN in tables[visit].column_names:
                    values[IMAGE_COLUMN] = tables[visit][IMAGE_COLUMN][index]
                yield own[visit].folder, values
            window = window + 1
            skipped = 0


def scene_graph(values: Mapping[str, Any], threshold: float) -> SceneAnnotation:
    """Return objects but crowds (id: index in the row; box: xywh in pixels), and sure relations
    between them.
    """
    objects = tuple(
        SceneObject(index, item["category"], tuple(item["bbox"]))
        for index, item in enumerate(values["objects"] or ())
        if not item["iscrowd"]
    )
    kept = {item.object_id for item in objects}
    relations = tuple(
        SceneRelation(
            item["subject"], item["object"], item["predicate"], item["confidence"], item["origin"]
        )
        for item in values["relations"] or ()
        if item["subject"] in kept
        and item["object"] in kept
        and (item["confidence"] is None or item["confidence"] >= threshold)
    )
    return SceneAnnotation(values["image_id"], objects, relations)


@dataclass(frozen=True)
class TrainingItem:
    """An image of a folder of the training set, before it is read.

    `embedded`: its file in Arrow, if the shard contains it, as only one worker needs it. `graph`
    has the names after a flip, if it is to be flipped. `rng` makes all further random choices about
    the image.
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


TrainingStep: TypeAlias = tuple[
    StepPart, ...
]  # a worker's share of a step, computed one after another


@dataclass(frozen=True)
class StepStream:
    """The steps of all epochs.

    batch: images per step, over all workers. most_relations: only the first ones of an image are
    used; with closed class lists all, as published. training: False: visit all images once per
    epoch, in the order of the shards, unchanged. accumulate: parts into which a worker cuts its
    share, besides those of different groups.

    Raises UserError: the batch cannot be divided evenly between the workers, or an epoch has fewer
    images than a batch.
    """

    training_set: TrainingSet
    data: DataConfig
    batch: int
    seed: int
    most_relations: int
    rank: int = 0
    world_size: int = 1
    training: bool = True
    accumulate: int = 1

    def __post_init__(self) -> None:
        if self.training:
            check_batch(self.batch, self.world_size, self.accumulate)
            if not self.steps_per_epoch:
                own = count(len(self._order(0)), "image")
                raise UserError(
                    f"an epoch has only {own}, less than a batch of {self.batch}: lower"
                    " optimisation.batch"
                )

    @cached_property
    def steps_per_epoch(self) -> int:
        """In training, images that do not fill a batch are left out of the epoch."""
        rows = len(self._order(0))
        return rows // self.batch if self.training else -(-rows // self.batch)

    def _order(self, epoch: int) -> Epoch:
        if not self.training:
            return Epoch(self.training_set.row_groups)  # whatever the weights of the folders
        return shuffled_epoch(self.training_set, self.data.shuffle, self.seed, epoch)

    def steps(self, epoch: int = 0, step: int = 0) -> Iterator[TrainingStep]:
        """Endless steps, starting at a step of an epoch. Raises UserError: see `iter_epoch`."""
        while True:
            yield from self.epoch(epoch, step)
            epoch = epoch + 1
            step = 0

    def epoch(self, epoch: int, step: int = 0) -> Iterator[TrainingStep]:
        rows = iter_epoch(self.training_set, self._order(epoch), step * self.batch)
        for index in range(step, self.steps_per_epoch):
            yield self._step(epoch, index, list(islice(rows, self.batch)))

    @cached_property
    def group(self) -> int:
        """Images that share a list of texts. With closed class lists, all lists are the same."""
        group = self.data.text_group if self.training_set.closed_labels is None else None
        return min(group or self.batch, self.batch)

    def _step(self, epoch: int, index: int, rows: list[tuple[int, dict[str, Any]]]) -> TrainingStep:
        first = index * self.batch
        # "picture" is part of the seed: another word would change every training.
        items = [
            self._item(*row, generator("picture", self.seed, epoch, first + n))
            for n, row in enumerate(rows)
        ]
        texts: dict[int, tuple[Texts, Texts]] = {}
        parts = []
        for part in cut(len(rows), self.group, self.rank, self.world_size, self.accumulate):
            group = min(part.start, len(rows) - 1) // self.group
            if group not in texts:
                members = items[group * self.group : (group + 1) * self.group]
                texts[group] = self._choose(
                    members, epoch, index * -(-self.batch // self.group) + group
                )
            parts.append(StepPart(*texts[group], tuple(items[n] for n in part)))
        return tuple(parts)

    def _choose(
        self, group: Sequence[TrainingItem], epoch: int, number: int
    ) -> tuple[Texts, Texts]:
        """Return the texts of a group, the `number`-th of the epoch, and how the network reads
        them.
        """
        rng = generator("texts", self.seed, epoch, number)
        training_set = self.training_set
        data = self.data
        if training_set.closed_labels is not None:
            texts = Texts(
                (*training_set.closed_labels.objects, NO_OBJECTS),
                training_set.closed_labels.relations,
            )
        else:
            strategies = data.object_strategy, data.relation_strategy
            sampling = NegativeSampling(
                training_set.objects, training_set.relations, data.negative_texts, *strategies
            )
            names = [item.graph.names() for item in group]
            objects, predicates = ([name[kind] for name in names] for kind in (0, 1))
            texts = batch_texts(objects, predicates, sampling, rng, whole=True)
        wordings = data.wordings if self.training else {}
        relations = list(texts.relations)
        for index, text in enumerate(
            texts.relations
        ):  # in a random wording that is not another relation's text
            others = [wording for wording in wordings.get(text, ()) if wording not in relations]
            if others:
                relations[index] = rng.choice([text, *others])
        return texts, Texts(texts.objects, tuple(relations))

    def _item(self, folder: int, values: dict[str, Any], rng: random.Random) -> TrainingItem:
        labels = self.training_set.closed_labels
        judged = self.training_set.folders[folder].judged
        graph = scene_graph(values, self.training_set.threshold)
        if judged is not None:
            kept = {item.object_id for item in graph.objects}
            relations = tuple(
                SceneRelation(
                    each.subject, each.object, each.predicate, origin="person", right=each.right
                )
                for each in judged[values["split"], values["image_id"]]
                if rng.random() < each.share and {each.subject, each.object} <= kept
            )
            graph = replace(graph, relations=relations, judged=True)
        weights: Mapping[Any, float] = self.data.origins if self.training else {}
        if weights:
            chances = (
                max(weights.get(name, 1.0) for name in relation.origin.split("+"))
                for relation in graph.relations
            )
            pairs = zip(graph.relations, chances, strict=True)
            graph = replace(
                graph, relations=tuple(each for each, chance in pairs if rng.random() < chance)
            )
        if labels is None:
            graph = replace(graph, relations=graph.relations[: self.most_relations])
        augment = self.data.augment if self.training else None
        flip = rng.random() < (augment.flip if augment else 0)
        if flip:
            flipped = graph.with_flipped_texts()
            names = flipped.names()  # a closed list may have "left of", but not "right of"
            flip = labels is None or (
                {*names[0]} <= {*labels.objects} and {*names[1]} <= {*labels.relations}
            )
            graph = flipped if flip else graph
        image = Record(
            *(
                values[name]
                for name in ("image_id", "dataset", "split", "file_name", "width", "height")
            )
        )
        return TrainingItem(folder, image, values.get(IMAGE_COLUMN), graph, flip, rng)


def cut(images: int, group: int, rank: int, world_size: int, accumulate: int = 1) -> list[range]:
    """Return a worker's parts of a step, none with images of two groups: as many as others', the
    last ones empty.
    """
    every: list[list[range]] = []
    share = -(-images // world_size)
    for worker in range(world_size):
        start, stop = (min(end * share, images) for end in (worker, worker + 1))
        starts = {
            *range(start, stop, -(-share // accumulate)),
            *range(-(-start // group) * group, stop, group),
        }
        every.append([range(*ends) for ends in pairwise([*sorted(starts), stop])])
    own = every[rank]
    end = min((rank + 1) * share, images)
    return own + [range(end, end)] * (max(map(len, every)) - len(own))


def check_batch(batch: int, workers: int, accumulate: int = 1) -> None:
    """Raises UserError: a batch cannot be divided evenly between the workers and their parts."""
    if batch % (workers * accumulate):
        by = f"between {count(workers, 'worker')} with {count(accumulate, 'part')} each"
        hint = "change optimisation.batch, optimisation.accumulate or workers.count"
        raise UserError(f"a batch of {batch} cannot be divided evenly {by}; {hint}")


@dataclass(frozen=True)
class ShardFeed:
    """Feeds `rlip_model.training.loop.Trainer` from shards with the steps of `stream`.

    most_pairs: number of pairs of an R-Tagger, which also learns from unrelated pairs; None: a
    detector, which learns from the first relations of an image. pinned: in memory that a GPU copies
    at once.

    Raises UserError while batches are read: no image can be read, or shards have changed since the
    scan.
    """

    stream: StepStream
    validation_set: TrainingSet | None = None
    most_pairs: int | None = None
    pinned: bool = False

    @property
    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch

    def read(
        self, epoch: int = 0, step: int = 0
    ) -> AbstractContextManager[Iterator[list[TrainingBatch]]]:
        """Return the parts of endless steps, starting at a step of an epoch; use it in a `with`
        statement.
        """
        return prefetch_generator(self._batches(self.stream, self.stream.steps(epoch, step)))

    def validation(self) -> AbstractContextManager[Iterator[TrainingBatch]] | None:
        """This worker's share of the validation images, if any: as many batches as others', some
        perhaps empty.
        """
        if self.validation_set is None:
            return None
        data = self.stream.data.model_copy(update={"augment": None})
        stream = replace(self.stream, training_set=self.validation_set, training=False, data=data)
        return prefetch_generator(
            batch for step in self._batches(stream, stream.epoch(0)) for batch in step
        )

    def _batches(
        self, stream: StepStream, steps: Iterator[TrainingStep]
    ) -> Generator[list[TrainingBatch], None, None]:
        """Return the parts of each step, while threads, on which they do not depend, read the next
        steps.
        """
        data = stream.data
        reader = ImageReader(stream.training_set, stream.world_size)
        pool = ThreadPoolExecutor(data.threads, thread_name_prefix="images")

        def start(
            step: TrainingStep,
        ) -> list[tuple[StepPart, list[Future[TrainingExample | None]]]]:
            example = partial(self.example, data, reader)
            return [
                (part, [pool.submit(example, item, part.texts) for item in part.items])
                for part in step
            ]

        def collated(
            part: StepPart, futures: Sequence[Future[TrainingExample | None]]
        ) -> TrainingBatch:
            readable = [example for future in futures if (example := future.result()) is not None]
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
        """Return the training example of an image and its annotations; None: unreadable. Raises as
        `reader`.
        """
        image = reader.open(item)
        if image is None:
            return None
        size = item.image.width, item.image.height
        targets = label_scene(item.graph, *size, len(item.graph.relations))
        sides = data.short_side, data.long_side
        pixel_values, targets = prepare(image, targets, data.augment, *sides, item.rng, item.flip)
        height, width = pixel_values.shape[1:]
        if self.most_pairs is None:
            triplets = targets.labelled_triplets(width, height, self.stream.most_relations)
        else:
            most_pairs = self.most_pairs
            first = data.related_first
            triplets = tagger_triplets(
                targets, width, height, most_pairs, item.rng, related_first=first
            )
        boxes = LabelledBoxes(*targets.boxes_and_labels(width, height, texts.objects))
        return TrainingExample(
            item.image.image_id, pixel_values, relabelled(triplets, texts), size, boxes
        )


class ImageReader:
    """Reads the images of a training set, which `world_size` workers share; safe to use from
    several threads.
    """

    def __init__(self, training_set: TrainingSet, world_size: int = 1) -> None:
        self._roots = [folder.root for folder in training_set.folders]
        self._images = [
            ImageRoots(folder.images, IndexFolder(location(folder.root)))
            for folder in training_set.folders
        ]
        self._most_failures = max(1, min(_FAILURES_BEFORE_REFUSAL, training_set.rows // world_size))
        self._failures = 0
        self._has_read = False
        self._lock = Lock()

    def open(self, item: TrainingItem) -> Image.Image | None:
        """Return the RGB image, of the annotated size; None: unreadable. Raises UserError: so are
        all first ones.
        """
        stored = item.embedded.as_py() if item.embedded is not None else None
        try:
            image = open_row_image(
                self._images[item.folder], item.image, stored and stored["bytes"]
            )
        except ImageError as error:
            with self._lock:
                self._failures += 1
                if not self._has_read and self._failures >= self._most_failures:
                    place = self._images[item.folder].locations.get(
                        item.image.split, self._roots[item.folder]
                    )
                    images = (
                        f"the first {count(self._most_failures, 'image')} cannot be read from"
                        f" {place}"
                    )
                    raise UserError(f"{images} ({error}); if they moved, pass --images") from None
            return None
        self._has_read = True
        return image
