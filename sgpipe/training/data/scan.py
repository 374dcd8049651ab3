"""Scan the shards before training: find the usable rows, and count how often each name occurs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.errors import UserError
from sgpipe.storage.manifest import Manifest, existing_images
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard
from sgpipe.training.data.rows import COLUMNS, TrainingFilter
from sgpipe.training.data.training_set import (
    ClosedLabels,
    ShardFolder,
    TrainingSet,
    UsableRowGroup,
    check_closed_labels,
    read_closed_labels,
    shard_folder,
    shards_by_split,
)
from sgpipe.training.recipe import DataConfig, ShardsConfig


def scan_training(data: DataConfig) -> TrainingSet:
    """Scan the shards to train on. Raises UserError: see `scan`."""
    return scan(data.train, data.threshold, closed=data.labels == "full", limit=data.limit)


def scan_validation(data: DataConfig, training: TrainingSet) -> TrainingSet | None:
    """Scan the shards to validate on, if any. Raises UserError: see `scan`; or their class lists differ."""
    if not data.val:
        return None
    validation = scan(data.val, data.threshold, closed=data.labels == "full")
    if validation.closed_labels != training.closed_labels:
        raise UserError(
            f"{data.val[0].shards} has other classes than {data.train[0].shards}; validate on shards with the same ones"
        )
    return validation


def scan(
    configs: Sequence[ShardsConfig], threshold: float, *, closed: bool = False, limit: int | None = None
) -> TrainingSet:
    """Read the annotations of every row group once, with one row group in memory at a time.

    Args:
        threshold: minimum confidence of a relation.
        closed: use the closed class lists of the datasets, which must agree.
        limit: number of usable rows after which the scan ends.

    Raises:
        UserError: a folder is not a run, a shard is missing or damaged, a split does not exist or has no usable row, or
            an image folder is unknown. With `closed`: class lists are missing or differ, or do not have a name that
            occurs.
    """
    if not configs:
        raise UserError("no shards to train on: give --data FOLDER (in a recipe: data.train)")
    scanner = _Scanner(threshold, limit)
    labels: ClosedLabels | None = None
    for config in configs:
        manifest = Manifest.load(config.shards)
        scanner.scan_folder(manifest, config)
        if closed:
            own = read_closed_labels(manifest, config)
            if labels not in (None, own):
                raise UserError(f"{config.shards} has other classes than {configs[0].shards}; train on them separately")
            check_closed_labels(config, own, scanner.objects, scanner.relations)
            labels = own
    return scanner.result(labels)


class _Scanner:
    """Collects what the scanned shards contain; left: usable rows until the limit."""

    def __init__(self, threshold: float, limit: int | None) -> None:
        self.threshold = float(np.float32(threshold))
        self.left = limit
        self.folders: list[ShardFolder] = []
        self.row_groups: list[UsableRowGroup] = []
        self.objects: dict[str, float] = {}
        self.relations: dict[str, float] = {}
        self.rows = self.errors = 0

    def scan_folder(self, manifest: Manifest, config: ShardsConfig) -> None:
        shards = shards_by_split(manifest, config)
        folder = shard_folder(manifest, config, shards)
        self.folders.append(folder)
        for split, entries in shards.items():
            usable, rows, errors = len(self.row_groups), self.rows, self.errors
            for entry in entries:
                self._scan_shard(folder, split, entry.file)
            if self.left != 0 and len(self.row_groups) == usable:
                only_errors = self.rows - rows == self.errors - errors
                raise self._nothing_usable(f"split {split} of {config.shards}", only_errors)

    def _nothing_usable(self, split: str, only_errors: bool) -> UserError:
        if only_errors:
            return UserError(f"{split} has only error rows; `sgpipe stats` lists the errors")
        least = f"{self.threshold:.4g}"
        return UserError(f"no image of {split} has a relation with confidence >= {least}; lower data.threshold")

    def _scan_shard(self, folder: ShardFolder, split: str, name: str) -> None:
        path = Path(folder.root) / name
        for group, table in self._read_row_groups(folder, split, path):
            try:
                self._add(str(path), group, table)
            except UserError as error:
                raise UserError(f"shard {path}: {error}") from None

    def _read_row_groups(self, folder: ShardFolder, split: str, path: Path) -> Iterator[tuple[int, pa.Table]]:
        if self.left == 0:
            return
        with open_shard(path, COLUMNS) as file:
            if IMAGE_COLUMN not in file.schema_arrow.names:
                existing_images(folder.root, split, folder.images.get(split))
            for group in range(file.num_row_groups):
                if self.left != 0:
                    yield group, file.read_row_group(group, columns=list(COLUMNS))

    def _add(self, file: str, group: int, table: pa.Table) -> None:
        filtered = TrainingFilter(table, self.threshold)
        usable = len(filtered.usable_rows)
        if self.left is not None:
            if usable >= self.left:
                usable = self.left
                filtered = TrainingFilter(table.slice(0, int(filtered.usable_rows[usable - 1]) + 1), self.threshold)
            self.left -= usable
        weight = self.folders[-1].weight
        for total, names in ((self.objects, filtered.object_names()), (self.relations, filtered.relation_names())):
            for name, count in names.items():
                total[name] = total.get(name, 0) + weight * count
        self.rows += len(filtered.ok)
        self.errors += int((~filtered.ok).sum())
        if usable:
            self.row_groups.append(UsableRowGroup(len(self.folders) - 1, file, group, usable))

    def result(self, labels: ClosedLabels | None) -> TrainingSet:
        usable = sum(row_group.rows for row_group in self.row_groups)
        return TrainingSet(
            tuple(self.folders),
            tuple(self.row_groups),
            self.threshold,
            LabelVocabulary.from_counts(self.objects),
            LabelVocabulary.from_counts(self.relations),
            labels,
            error_rows=self.errors,
            rows_without_relations=self.rows - self.errors - usable,
        )
