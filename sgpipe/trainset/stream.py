"""The steps of a training or a validation: which pictures, what is true in them, and the texts that label them.

All workers go through the same rows and choose the same texts; each keeps its share of every step.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import islice

from rlip_model.training.annotations import SceneGraph
from rlip_model.training.sampling import Texts
from sgpipe.errors import UserError
from sgpipe.train_recipe import DataConfig
from sgpipe.trainset.contents import TrainSet
from sgpipe.trainset.order import Epoch, generator, one_pass, shuffled_epoch
from sgpipe.trainset.rows import Row, scene_graph, walk
from sgpipe.trainset.texts import ClosedTexts, SampledTexts, reworded, text_choice


@dataclass(frozen=True)
class Item:
    """A picture that is still to be read.

    Args:
        folder: index into the folders of the set.
        size: width and height of the original image, in pixels.
        embedded: the image file, if the shard holds it.
        graph: of the original image, but named as in the flipped picture if it shall be flipped.
        rng: draws whatever else is random about the picture.
    """

    image_id: str
    dataset: str
    folder: int
    split: str
    file_name: str
    size: tuple[int, int]
    embedded: bytes | None
    graph: SceneGraph
    flip: bool
    rng: random.Random


@dataclass(frozen=True)
class Step:
    """A worker's share of the pictures of a step, and the texts of all of them.

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
        batch: pictures per step, of all workers together.
        most_relations: of a picture, the first ones; as many as the network has pairs of queries, or, for the
            R-Tagger, queries.
        rank, world: which worker this is, of how many.
        training: False to go through all pictures once per epoch in the order of the shards, unchanged.

    Raises:
        UserError: workers cannot share a batch evenly, or there are fewer pictures than one.
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
            raise UserError(f"an epoch has only {rows} pictures, fewer than a batch of {self.batch}; make it smaller")

    @cached_property
    def steps_per_epoch(self) -> int:
        """In training, pictures that do not fill a batch are left for other epochs."""
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
        items = [self._item(row, generator("picture", self.seed, epoch, first + n)) for n, row in enumerate(rows)]
        rng = generator("texts", self.seed, epoch, index)
        texts = self._texts.choose([item.graph for item in items], rng)
        spoken = reworded(texts, self.data.wordings, rng) if self.training else texts
        share = self._share(first, len(rows))
        return Step(epoch, index, texts, spoken, tuple(replace(items[n], embedded=rows[n].picture()) for n in share))

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
            mirrored = graph.mirrored()
            flip = self._texts.hold(mirrored)  # a closed list may know "left of" and not "right of"
            graph = mirrored if flip else graph
        size = values["width"], values["height"]
        picture = (values["image_id"], values["dataset"], row.folder, values["split"], values["file_name"])
        return Item(*picture, size, None, graph, flip, rng)
