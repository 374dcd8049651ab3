"""What a worker is fed with: its share of the batches of training and validation."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

from rlip_model.training.batches import Batch
from sgpipe.errors import UserError
from sgpipe.train_recipe import DataConfig
from sgpipe.trainset.ahead import Ahead
from sgpipe.trainset.contents import TrainSet
from sgpipe.trainset.loader import Preparation, batches
from sgpipe.trainset.pictures import Pictures
from sgpipe.trainset.stream import Stream


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
        batch: pictures per step, of all workers together.
        most_relations: see `Stream`.
        most_pairs: see `Preparation`.

    Raises:
        UserError: a batch cannot be shared evenly, or there are fewer pictures than one. When batches are used: no
            picture can be read, or shards changed since they were scanned.
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
        pictures = self.stream.batch // self.share.world
        if pictures % self.share.accumulate:
            raise UserError(
                f"a worker's {pictures} pictures of a step cannot be computed in {self.share.accumulate} equal parts; "
                "change optimisation.batch or optimisation.accumulate"
            )

    @cached_property
    def stream(self) -> Stream:
        """The steps of the training."""
        share = self.share
        return Stream(self.training, self.data, self.batch, self.seed, self.most_relations, share.rank, share.world)

    @cached_property
    def pictures(self) -> Pictures:
        """Of the training; says how many were skipped, and why."""
        return Pictures(self.training, self.share.world)

    @property
    def steps_per_epoch(self) -> int:
        return self.stream.steps_per_epoch

    def read(self, epoch: int = 0, step: int = 0) -> Ahead[list[Batch]]:
        """The parts of step after step without end, from a step of an epoch on; to be closed by `with`."""
        data = self.data
        preparation = Preparation(
            self.pictures, data.augment, data.short_side, data.long_side, self.most_pairs, data.related_first
        )
        steps = self.stream.steps(epoch, step)
        return Ahead(batches(steps, preparation, data.threads, data.prefetch, self.share.accumulate))

    def validation(self) -> Ahead[Batch] | None:
        """This worker's share of all pictures to validate on, of which every worker gets as many batches.

        Some batches may be empty. None if there is nothing to validate on.
        """
        return None if self.validating is None else Ahead(self._validation(self.validating))

    def _validation(self, trainset: TrainSet) -> Generator[Batch, None, None]:
        data, share = self.data, self.share
        batch = self.batch // share.accumulate
        stream = Stream(trainset, data, batch, self.seed, self.most_relations, share.rank, share.world, training=False)
        pictures = Pictures(trainset, share.world)
        preparation = Preparation(pictures, None, data.short_side, data.long_side, self.most_pairs, data.related_first)
        with closing(batches(stream.epoch(0), preparation, data.threads, data.prefetch)) as steps:
            for [whole] in steps:
                yield whole
