"""One look through the shards before training: where the usable rows are, and which names occur how often."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.errors import UserError
from sgpipe.storage.manifest import Manifest, existing_images
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard
from sgpipe.training.data.contents import (
    Chunk,
    Folder,
    Labels,
    TrainSet,
    check_names,
    closed_labels,
    describe,
    shards_by_split,
)
from sgpipe.training.data.rows import COLUMNS, Counted
from sgpipe.training.recipe import DataConfig, ShardsConfig


def scan_training(data: DataConfig) -> TrainSet:
    """What there is to train on. Raises UserError: as `scan`."""
    return scan(data.train, data.threshold, closed=data.labels == "full", limit=data.limit)


def scan_validation(data: DataConfig, training: TrainSet) -> TrainSet | None:
    """What there is to validate on, if anything. Raises UserError: as `scan`, or it has other labels."""
    if not data.val:
        return None
    found = scan(data.val, data.threshold, closed=data.labels == "full")
    if found.labels != training.labels:
        raise UserError(f"{data.val[0].shards} has other labels than {data.train[0].shards}; validate on the same ones")
    return found


def scan(
    configs: Sequence[ShardsConfig], threshold: float, *, closed: bool = False, limit: int | None = None
) -> TrainSet:
    """Read what is needed of every row group once, one in memory at a time.

    Args:
        threshold: least confidence of a relation.
        closed: the labels are the closed lists of the datasets, which have to agree.
        limit: as if the shards ended with the usable row of this number.

    Raises:
        UserError: a folder that is no run, a missing or damaged shard, a split that is not there or has no usable
            row, unknown image folders; with `closed`: no lists, other lists, or a name that is not in them.
    """
    if not configs:
        raise UserError("no shards to train on: give --data FOLDER (in a recipe: data.train)")
    search = _Search(threshold, limit)
    labels: Labels | None = None
    for config in configs:
        manifest = Manifest.load(config.shards)
        search.folder(manifest, config)
        if closed:
            own = closed_labels(manifest, config)
            if labels not in (None, own):
                raise UserError(f"{config.shards} has other labels than {configs[0].shards}; train on them apart")
            check_names(config, own, search.objects, search.relations)
            labels = own
    return search.result(labels)


class _Search:
    """What has been found so far."""

    def __init__(self, threshold: float, limit: int | None) -> None:
        self.threshold = float(np.float32(threshold))
        self.left = limit
        self.folders: list[Folder] = []
        self.chunks: list[Chunk] = []
        self.objects: Counter[str] = Counter()
        self.relations: Counter[str] = Counter()
        self.rows = self.errors = 0

    def folder(self, manifest: Manifest, config: ShardsConfig) -> None:
        shards = shards_by_split(manifest, config)
        folder = describe(manifest, config, shards)
        self.folders.append(folder)
        for split, entries in shards.items():
            chunks, rows, errors = len(self.chunks), self.rows, self.errors
            for entry in entries:
                self._shard(folder, split, entry.file)
            if self.left != 0 and len(self.chunks) == chunks:
                raise UserError(self._why_nothing(f"split {split} of {config.shards}", rows, errors))

    def _why_nothing(self, split: str, rows: int, errors: int) -> str:
        if self.rows - rows == self.errors - errors:
            return f"{split} has only error rows; `sgpipe stats` tells why"
        return f"no image of {split} has a relation of confidence >= {self.threshold:.4g}; lower data.threshold"

    def _shard(self, folder: Folder, split: str, name: str) -> None:
        path = Path(folder.root) / name
        for group, table in self._row_groups(folder, split, path):
            try:
                self._add(Chunk(len(self.folders) - 1, str(path), group, 0), table)
            except UserError as error:
                raise UserError(f"shard {path}: {error}") from None

    def _row_groups(self, folder: Folder, split: str, path: Path) -> Iterator[tuple[int, pa.Table]]:
        if self.left == 0:
            return
        with open_shard(path, COLUMNS) as file:
            if IMAGE_COLUMN not in file.schema_arrow.names:
                existing_images(folder.root, split, folder.images.get(split))
            for group in range(file.num_row_groups):
                if self.left != 0:
                    yield group, file.read_row_group(group, columns=list(COLUMNS))

    def _add(self, chunk: Chunk, table: pa.Table) -> None:
        counted = Counted(table, self.threshold)
        usable = len(counted.usable)
        if self.left is not None:
            if usable >= self.left:
                usable = self.left
                counted = Counted(table.slice(0, int(counted.usable[usable - 1]) + 1), self.threshold)
            self.left -= usable
        self.objects.update(counted.object_names())
        self.relations.update(counted.relation_names())
        self.rows += len(counted.ok)
        self.errors += int((~counted.ok).sum())
        if usable:
            self.chunks.append(Chunk(chunk.folder, chunk.file, chunk.group, usable))

    def result(self, labels: Labels | None) -> TrainSet:
        found = sum(chunk.rows for chunk in self.chunks)
        return TrainSet(
            tuple(self.folders),
            tuple(self.chunks),
            self.threshold,
            LabelVocabulary.from_counts(self.objects),
            LabelVocabulary.from_counts(self.relations),
            labels,
            errors=self.errors,
            bare=self.rows - self.errors - found,
        )
