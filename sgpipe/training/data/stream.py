"""The steps of a training or a validation: which images, what is true in them, and the texts that label them.

All workers go through the same rows and choose the same texts; each keeps its share of every step.

The texts that label a step: all classes of the dataset, or those of the step's images and sampled others.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from rlip_model.text import NO_OBJECTS
from rlip_model.training.annotations import SceneAnnotation
from rlip_model.training.sampling import LabelVocabulary, NegativeSampling, Strategy, Texts, extend, union
from sgpipe.errors import UserError
from sgpipe.training.data.contents import Labels, TrainSet
from sgpipe.training.data.order import Epoch, generator, one_pass, shuffled_epoch
from sgpipe.training.data.rows import Row, scene_graph, walk
from sgpipe.training.recipe import DataConfig


@dataclass(frozen=True)
class Item:
    """An image that is still to be read.

    Args:
        folder: index into the folders of the set.
        size: width and height of the original image, in pixels.
        embedded: the image file, if the shard holds it.
        graph: of the original image, but named as in the flipped image if it shall be flipped.
        rng: draws whatever else is random about the image.
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


@dataclass(frozen=True)
class Step:
    """A worker's share of the images of a step, and the texts of all of them.

    Args:
        spoken: the texts as the network reads them, perhaps in other words.
    """

    epoch: int
    index: int
    texts: Texts
    spoken: Texts
    items: tuple[Item, ...]


@dataclass(frozen=True)
class Stream:
    """The steps of all epochs.

    Args:
        batch: images per step, of all workers together.
        most_relations: of an image, the first ones; as many as the network has pairs of queries, or, for the
            R-Tagger, queries.
        rank, world: which worker this is, of how many.
        training: False to go through all images once per epoch in the order of the shards, unchanged.

    Raises:
        UserError: workers cannot share a batch evenly, or there are fewer images than one.
    """

    trainset: TrainSet
    data: DataConfig
    batch: int
    seed: int
    most_relations: int
    rank: int = 0
    world: int = 1
    training: bool = True

    def __post_init__(self) -> None:
        if self.training and self.batch % self.world:
            raise UserError(f"a batch of {self.batch} cannot be shared evenly by {self.world} workers; change either")
        if self.training and not self.steps_per_epoch:
            rows = len(self._order(0))
            raise UserError(f"an epoch has only {rows} images, fewer than a batch of {self.batch}; make it smaller")

    @cached_property
    def steps_per_epoch(self) -> int:
        """In training, images that do not fill a batch are left for other epochs."""
        rows = len(self._order(0))
        return rows // self.batch if self.training else -(-rows // self.batch)

    @cached_property
    def _texts(self) -> ClosedTexts | SampledTexts:
        return text_choice(self.trainset, self.data)

    def _order(self, epoch: int) -> Epoch:
        if not self.training:
            return one_pass(self.trainset)
        return shuffled_epoch(self.trainset, self.data.shuffle, self.seed, epoch)

    def steps(self, epoch: int = 0, step: int = 0) -> Iterator[Step]:
        """Step after step without end, from a step of an epoch on. Raises UserError: as `walk`."""
        while True:
            yield from self.epoch(epoch, step)
            epoch, step = epoch + 1, 0

    def epoch(self, epoch: int, step: int = 0) -> Iterator[Step]:
        """The steps of an epoch from a step on. Raises UserError: as `walk`."""
        rows = walk(self.trainset, self._order(epoch), step * self.batch)
        for index in range(step, self.steps_per_epoch):
            yield self._step(epoch, index, list(islice(rows, self.batch)))

    def _step(self, epoch: int, index: int, rows: list[Row]) -> Step:
        first = index * self.batch
        items = [self._item(row, generator("image", self.seed, epoch, first + n)) for n, row in enumerate(rows)]
        rng = generator("texts", self.seed, epoch, index)
        texts = self._texts.choose([item.graph for item in items], rng)
        spoken = reworded(texts, self.data.wordings, rng) if self.training else texts
        share = self._share(first, len(rows))
        return Step(epoch, index, texts, spoken, tuple(replace(items[n], embedded=rows[n].embedded()) for n in share))

    def _share(self, first: int, rows: int) -> Sequence[int]:
        """Which rows of a step are this worker's; of validations, whose last step may be short, every `world`th."""
        if self.training:
            share = self.batch // self.world
            return range(self.rank * share, (self.rank + 1) * share)
        return [n for n in range(rows) if (first + n) % self.world == self.rank]

    def _item(self, row: Row, rng: random.Random) -> Item:
        values = row.values()
        graph = scene_graph(values, self.trainset.threshold)
        graph = replace(graph, relations=graph.relations[: self.most_relations])
        augment = self.data.augment if self.training else None
        flip = rng.random() < (augment.flip if augment else 0)
        if flip:
            flipped = graph.with_flipped_texts()
            flip = self._texts.hold(flipped)  # a closed list may know "left of" and not "right of"
            graph = flipped if flip else graph
        size = values["width"], values["height"]
        image = (values["image_id"], values["dataset"], row.folder, values["split"], values["file_name"])
        return Item(*image, size, None, graph, flip, rng)


@dataclass(frozen=True)
class ClosedTexts:
    """All classes of the dataset, always."""

    labels: Labels

    def hold(self, graph: SceneAnnotation) -> bool:
        """Whether all names of an image are classes."""
        objects, relations = set(self.labels.objects), set(self.labels.relations)
        return objects.issuperset(_objects(graph)) and relations.issuperset(_relations(graph))

    def choose(self, images: Sequence[SceneAnnotation], rng: random.Random) -> Texts:
        return Texts((*self.labels.objects, NO_OBJECTS), self.labels.relations)


@dataclass(frozen=True)
class SampledTexts:
    """The names of the images, in order of first appearance, then names that are drawn from the vocabulary."""

    sampling: NegativeSampling

    def hold(self, graph: SceneAnnotation) -> bool:
        """Any name can be a text."""
        return True

    def choose(self, images: Sequence[SceneAnnotation], rng: random.Random) -> Texts:
        """Draws objects first, then relations."""
        how = self.sampling
        objects = union(map(_objects, images))
        relations = union(map(_relations, images))
        objects = _extended(objects, how.objects, how.num_objects, how.object_strategy, rng)
        relations = _extended(relations, how.relations, how.num_relations, how.relation_strategy, rng)
        return Texts((*objects, NO_OBJECTS), tuple(relations))


def text_choice(trainset: TrainSet, data: DataConfig) -> ClosedTexts | SampledTexts:
    """How the recipe wants steps to be labelled: by closed lists, which the set then holds, or by samples."""
    if trainset.labels is not None:
        return ClosedTexts(trainset.labels)
    return SampledTexts(
        NegativeSampling(
            trainset.objects,
            trainset.relations,
            data.negative_texts,
            data.object_strategy,
            data.relation_strategy,
        )
    )


def reworded(texts: Texts, wordings: Mapping[str, Sequence[str]], rng: random.Random) -> Texts:
    """The same relations, each said in one of its ways, all equally likely; never as another one of them."""
    said = list(texts.relations)
    for place, text in enumerate(texts.relations):
        ways = [way for way in wordings.get(text, ()) if way not in said]
        if ways:
            said[place] = rng.choice([text, *ways])
    return Texts(texts.objects, tuple(said))


def _objects(graph: SceneAnnotation) -> Iterator[str]:
    return (item.name for item in graph.objects)


def _relations(graph: SceneAnnotation) -> Iterator[str]:
    return (item.predicate for item in graph.relations)


def _extended(
    names: Sequence[str], vocabulary: LabelVocabulary, wanted: int, strategy: Strategy, rng: random.Random
) -> list[str]:
    """As `extend`; but where all names are wanted they are taken as they are, since drawing rare ones takes long."""
    everything = list(dict.fromkeys([*names, *vocabulary.names]))
    return everything if len(everything) <= wanted else extend(names, vocabulary, wanted, strategy, rng)
