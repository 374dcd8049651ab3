"""The steps of a training or a validation: which images, their annotations, and the label texts of each image.

All workers visit the same rows. A step is cut into groups of images that share one list of texts; the groups do not
depend on the workers, who choose the same texts and keep their shares of every step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice, pairwise

from rlip_model.text import NO_OBJECTS
from rlip_model.training.annotations import SceneAnnotation
from rlip_model.training.sampling import LabelVocabulary, NegativeSampling, Strategy, Texts, extend, union
from sgpipe.errors import UserError
from sgpipe.training.data.order import Epoch, generator, one_pass, shuffled_epoch
from sgpipe.training.data.rows import TrainingRow, iter_epoch, scene_graph
from sgpipe.training.data.training_set import ClosedLabels, TrainingSet
from sgpipe.training.recipe import DataConfig


@dataclass(frozen=True)
class TrainingItem:
    """An image that has not been read yet.

    Args:
        folder: index into the folders of the training set.
        size: width and height of the original image, in pixels.
        embedded: the image file, if the shard contains it.
        graph: annotations of the original image; if it is to be flipped, already with the names after the flip.
        rng: for all further random choices about the image.
    """

    image_id: str
    dataset: str
    folder: int
    split: str
    file_name: str
    size: tuple[int, int]
    embedded: bytes | None
    graph: SceneAnnotation
    flip: bool
    rng: random.Random

    @property
    def width(self) -> int:
        return self.size[0]

    @property
    def height(self) -> int:
        return self.size[1]


@dataclass(frozen=True)
class StepPart:
    """Images of one group, which a worker computes together.

    Args:
        texts: the names that label the group.
        network_texts: the same texts as the network reads them, possibly reworded.
        items: may be empty, so that all workers have equally many parts.
    """

    texts: Texts
    network_texts: Texts
    items: tuple[TrainingItem, ...]


@dataclass(frozen=True)
class TrainingStep:
    """A worker's share of a step, in the parts that it computes one after another."""

    epoch: int
    index: int
    parts: tuple[StepPart, ...]

    @property
    def items(self) -> tuple[TrainingItem, ...]:
        """The images of all parts."""
        return tuple(item for part in self.parts for item in part.items)


@dataclass(frozen=True)
class StepStream:
    """The steps of all epochs.

    Args:
        batch: images per step, over all workers.
        most_relations: only the first ones of an image are used: as many as the network has pairs of queries or, for
            the R-Tagger, queries. With closed class lists all are used, as published.
        rank, world_size: index of this worker, and number of workers.
        training: False: visit all images once per epoch, in the order of the shards, unchanged.
        accumulate: parts into which a worker cuts its share, besides those of different groups.

    Raises:
        UserError: the batch cannot be divided evenly between the workers, or an epoch has fewer images than a batch.
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
        if self.training and self.batch % self.world_size:
            raise UserError(
                f"a batch of {self.batch} cannot be divided evenly between {self.world_size} workers; change "
                "optimisation.batch or workers.count"
            )
        if self.training and not self.steps_per_epoch:
            rows = len(self._order(0))
            raise UserError(
                f"an epoch has only {rows} image{'' if rows == 1 else 's'}, fewer than a batch of {self.batch}; lower "
                "optimisation.batch"
            )

    @cached_property
    def steps_per_epoch(self) -> int:
        """In training, images that do not fill a batch are left out of the epoch."""
        rows = len(self._order(0))
        return rows // self.batch if self.training else -(-rows // self.batch)

    @cached_property
    def _texts(self) -> ClosedTexts | SampledTexts:
        return make_text_choice(self.training_set, self.data)

    def _order(self, epoch: int) -> Epoch:
        if not self.training:
            return one_pass(self.training_set)
        step = self.batch if self.data.similar_shapes else None
        return shuffled_epoch(self.training_set, self.data.shuffle, self.seed, epoch, step)

    def steps(self, epoch: int = 0, step: int = 0) -> Iterator[TrainingStep]:
        """Endless steps, starting at a step of an epoch. Raises UserError: see `iter_epoch`."""
        while True:
            yield from self.epoch(epoch, step)
            epoch, step = epoch + 1, 0

    def epoch(self, epoch: int, step: int = 0) -> Iterator[TrainingStep]:
        """The steps of an epoch, starting at `step`. Raises UserError: see `iter_epoch`."""
        rows = iter_epoch(self.training_set, self._order(epoch), step * self.batch)
        for index in range(step, self.steps_per_epoch):
            yield self._step(epoch, index, list(islice(rows, self.batch)))

    @cached_property
    def group(self) -> int:
        """Images that share a list of texts. With closed class lists, all lists are the same."""
        group = self.data.text_group if self.training_set.closed_labels is None else None
        return min(group or self.batch, self.batch)

    def _step(self, epoch: int, index: int, rows: list[TrainingRow]) -> TrainingStep:
        first = index * self.batch
        # "picture" is part of the seed: another word would change every training.
        items = [self._item(row, generator("picture", self.seed, epoch, first + n)) for n, row in enumerate(rows)]
        texts: dict[int, tuple[Texts, Texts]] = {}
        parts = []
        for part in cut(len(rows), self.group, self.rank, self.world_size, self.accumulate):
            group = min(part.start, len(rows) - 1) // self.group
            if group not in texts:
                members = items[group * self.group : (group + 1) * self.group]
                texts[group] = self._choose(members, epoch, index * -(-self.batch // self.group) + group)
            own = tuple(replace(items[n], embedded=rows[n].embedded()) for n in part)
            parts.append(StepPart(*texts[group], own))
        return TrainingStep(epoch, index, tuple(parts))

    def _choose(self, group: Sequence[TrainingItem], epoch: int, number: int) -> tuple[Texts, Texts]:
        """The texts of a group, the `number`-th of the epoch, and how the network reads them."""
        rng = generator("texts", self.seed, epoch, number)
        texts = self._texts.choose([item.graph for item in group], rng)
        return texts, reworded(texts, self.data.wordings, rng) if self.training else texts

    def _item(self, row: TrainingRow, rng: random.Random) -> TrainingItem:
        values = row.values()
        graph = scene_graph(values, self.training_set.threshold)
        if self.training_set.closed_labels is None:
            graph = replace(graph, relations=graph.relations[: self.most_relations])
        augment = self.data.augment if self.training else None
        flip = rng.random() < (augment.flip if augment else 0)
        if flip:
            flipped = graph.with_flipped_texts()
            flip = self._texts.contain(flipped)  # a closed list may have "left of", but not "right of"
            graph = flipped if flip else graph
        size = values["width"], values["height"]
        image = (values["image_id"], values["dataset"], row.folder, values["split"], values["file_name"])
        return TrainingItem(*image, size, None, graph, flip, rng)


def cut(images: int, group: int, rank: int, world_size: int, accumulate: int = 1) -> list[range]:
    """The parts of a worker's share of the images of a step: none has images of two groups.

    All workers get equally many parts; the last ones may be empty. Shares differ only if the images cannot be divided
    evenly.
    """
    every = [_cut(images, group, worker, world_size, accumulate) for worker in range(world_size)]
    own, most = every[rank], max(map(len, every))
    stop = min((rank + 1) * -(-images // world_size), images)
    return own + [range(stop, stop)] * (most - len(own))


def _cut(images: int, group: int, rank: int, world_size: int, accumulate: int) -> list[range]:
    share = -(-images // world_size)
    start, stop = (min(end * share, images) for end in (rank, rank + 1))
    starts = sorted({*range(start, stop, -(-share // accumulate)), *range(-(-start // group) * group, stop, group)})
    return [range(*ends) for ends in pairwise([*starts, stop])]


@dataclass(frozen=True)
class ClosedTexts:
    """The texts of every group are all classes of the dataset."""

    labels: ClosedLabels

    def contain(self, graph: SceneAnnotation) -> bool:
        """Whether all names of an image are classes."""
        objects, relations = set(self.labels.objects), set(self.labels.relations)
        return objects.issuperset(_objects(graph)) and relations.issuperset(_relations(graph))

    def choose(self, images: Sequence[SceneAnnotation], rng: random.Random) -> Texts:
        return Texts((*self.labels.objects, NO_OBJECTS), self.labels.relations)


@dataclass(frozen=True)
class SampledTexts:
    """The texts of a group are the names of its images by first occurrence, then names sampled from the vocabulary."""

    sampling: NegativeSampling

    def contain(self, graph: SceneAnnotation) -> bool:
        """Any name can be a text."""
        return True

    def choose(self, images: Sequence[SceneAnnotation], rng: random.Random) -> Texts:
        """Samples objects first, then relations."""
        sampling = self.sampling
        objects = union(map(_objects, images))
        relations = union(map(_relations, images))
        objects = _extended(objects, sampling.objects, sampling.num_objects, sampling.object_strategy, rng)
        relations = _extended(relations, sampling.relations, sampling.num_relations, sampling.relation_strategy, rng)
        return Texts((*objects, NO_OBJECTS), tuple(relations))


def make_text_choice(training_set: TrainingSet, data: DataConfig) -> ClosedTexts | SampledTexts:
    """How the texts of a group are chosen: from closed lists, if the training set has them, or by sampling."""
    if training_set.closed_labels is not None:
        return ClosedTexts(training_set.closed_labels)
    return SampledTexts(
        NegativeSampling(
            training_set.objects,
            training_set.relations,
            data.negative_texts,
            data.object_strategy,
            data.relation_strategy,
        )
    )


def reworded(texts: Texts, wordings: Mapping[str, Sequence[str]], rng: random.Random) -> Texts:
    """The same relations, each in one of its wordings (all equally likely), but never as another relation's text."""
    relations = list(texts.relations)
    for index, text in enumerate(texts.relations):
        alternatives = [wording for wording in wordings.get(text, ()) if wording not in relations]
        if alternatives:
            relations[index] = rng.choice([text, *alternatives])
    return Texts(texts.objects, tuple(relations))


def _objects(graph: SceneAnnotation) -> Iterator[str]:
    return (item.name for item in graph.objects)


def _relations(graph: SceneAnnotation) -> Iterator[str]:
    return (item.predicate for item in graph.relations)


def _extended(
    names: Sequence[str], vocabulary: LabelVocabulary, target: int, strategy: Strategy, rng: random.Random
) -> list[str]:
    """As `extend`, but if the target covers all names they are taken as they are: sampling rare names takes long."""
    all_names = list(dict.fromkeys([*names, *vocabulary.names]))
    return all_names if len(all_names) <= target else extend(names, vocabulary, target, strategy, rng)
