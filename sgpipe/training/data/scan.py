"""Scan the shards before training: find the usable rows, and count how often each name occurs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.calibration import Calibration, Thresholds, choose_thresholds, load_calibration
from sgpipe.errors import UserError
from sgpipe.files.remote import name_of, opened_ahead
from sgpipe.storage.manifest import Manifest, run_images
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, read_file
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
    closed = data.labels == "full"
    return scan(data.train, thresholds(data), closed=closed, limit=data.limit, limit_seed=data.limit_seed)


def thresholds(data: DataConfig) -> Thresholds:
    """The minimum confidences of relations. Raises UserError: the calibration cannot be used, or fits no shards."""
    if data.calibration is not None:
        calibration = load_calibration(data.calibration)
        for config in (*data.train, *data.val):
            _check_tagger(calibration, Manifest.load(config.shards), config)
    return choose_thresholds(data.calibration, data.threshold, data.precision)


def _check_tagger(calibration: Calibration, manifest: Manifest, config: ShardsConfig) -> None:
    """Raises UserError: the shards have confidences of another tagger."""
    for shard in manifest.shards:
        column = read_file(manifest.root / shard.file, ["relations.list.element.confidence"])["relations"]
        confidence = pc.struct_field(pc.list_flatten(column), "confidence")
        if confidence.null_count < len(confidence):
            calibration.check_run(manifest.run, config.shards)
            return


def scan_validation(data: DataConfig, training: TrainingSet) -> TrainingSet | None:
    """Scan the shards to validate on, if any. Raises UserError: see `scan`; or their class lists differ."""
    if not data.val:
        return None
    validation = scan(data.val, training.threshold, closed=data.labels == "full")
    if validation.closed_labels != training.closed_labels:
        raise UserError(
            f"{data.val[0].shards} has other classes than {data.train[0].shards}; validate on shards with the same ones"
        )
    return validation


def scan(
    configs: Sequence[ShardsConfig],
    threshold: Thresholds | float,
    *,
    closed: bool = False,
    limit: int | None = None,
    limit_seed: int | None = None,
) -> TrainingSet:
    """Read the annotations of every row group with one in memory at a time: once, or twice if rows are chosen first.

    A random limit shuffles all rows and keeps them up to the N-th usable one. So the rows do not depend on the sizes of
    row groups, those of a lower limit are among them, and a row is hardly ever replaced because others became usable.

    Args:
        threshold: minimum confidence of a relation.
        closed: use the closed class lists of the datasets, which must agree.
        limit: number of usable rows of all folders, after the limits of folders; see `DataConfig`.

    Raises:
        UserError: a folder is not a run, a shard is missing or damaged, a split does not exist or has no usable row, or
            an image folder is unknown. With `closed`: class lists are missing or differ, or do not have a name that
            occurs.
    """
    threshold = Thresholds(threshold) if isinstance(threshold, float | int) else threshold
    if not configs:
        raise UserError("data.train is not set (--data)")
    kept = None
    if (limit and limit_seed is not None) or any(config.limit for config in configs):
        kept = _choose_rows(configs, threshold, limit, limit_seed)
    scanner = _Scanner(threshold, limit if kept is None else None, kept)
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


_Place = tuple[int, str, int]  # folder, file, row group
_Rows = dict[_Place, np.ndarray]  # [rows of the row group]: a bool each


class _Scanner:
    """Collects what the scanned shards contain.

    left: usable rows until the limit; only: rows to scan, None: all.
    """

    def __init__(self, threshold: Thresholds, limit: int | None = None, only: _Rows | None = None) -> None:
        self.threshold = threshold
        self.left, self.only = limit, only
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
            paths = [Path(folder.root) / entry.file for entry in entries]
            with closing(opened_ahead(paths)) as contents:
                for path in paths:
                    if self.left == 0:
                        break  # no further shard is fetched
                    self._scan_shard(folder, split, path, next(contents))
            if self.left != 0 and self.only is None and len(self.row_groups) == usable:
                only_errors = self.rows - rows == self.errors - errors
                raise self._nothing_usable(f"split {split} of {config.shards}", only_errors)

    def _nothing_usable(self, split: str, only_errors: bool) -> UserError:
        if only_errors:
            return UserError(f"{split} has only error rows; `sgpipe stats` lists the errors")
        lower = "data.threshold or data.precision" if self.threshold.by_predicate else "data.threshold"
        return UserError(f"no image of {split} has a relation with {self.threshold}; lower {lower}")

    def _scan_shard(self, folder: ShardFolder, split: str, path: Path, content: BinaryIO | None) -> None:
        for group, table in self._read_row_groups(folder, split, path, content):
            try:
                self._add(str(path), group, table)
            except UserError as error:
                raise UserError(f"shard {name_of(path)}: {error}") from None

    def _read_row_groups(
        self, folder: ShardFolder, split: str, path: Path, content: BinaryIO | None
    ) -> Iterator[tuple[int, pa.Table]]:
        with open_shard(path, COLUMNS, content) as file:
            if IMAGE_COLUMN not in file.schema_arrow.names:
                run_images(folder.root, split, folder.images.get(split))
            for group in range(file.num_row_groups):
                if self.left != 0 and self._wanted(self._place(str(path), group)):
                    yield group, file.read_row_group(group, columns=list(COLUMNS))

    def _place(self, file: str, group: int) -> _Place:
        return len(self.folders) - 1, file, group

    def _wanted(self, place: _Place) -> bool:
        return self.only is None or bool(self.only.get(place, np.zeros(0, bool)).any())

    def _add(self, file: str, group: int, table: pa.Table) -> None:
        kept = None if self.only is None else self.only[self._place(file, group)]
        if kept is not None:
            table = table.filter(pa.array(kept))
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
        bits = None if kept is None or kept.all() else np.packbits(kept).tobytes()
        self._count(filtered, UsableRowGroup(len(self.folders) - 1, file, group, usable, bits))

    def _count(self, filtered: TrainingFilter, row_group: UsableRowGroup) -> None:
        self.rows += len(filtered.ok)
        self.errors += int((~filtered.ok).sum())
        if row_group.rows:
            self.row_groups.append(row_group)

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


class _Survey(_Scanner):
    """Finds out which rows are usable, and which of them the limits keep."""

    def __init__(self, threshold: Thresholds) -> None:
        super().__init__(threshold)
        self.usable: _Rows = {}
        self.kept: _Rows = {}

    def scan_folder(self, manifest: Manifest, config: ShardsConfig) -> None:
        """Also apply the limit of the folder."""
        self.left = config.limit if config.limit_seed is None else None
        before = len(self.usable)
        super().scan_folder(manifest, config)
        self.limit(config.limit, config.limit_seed, list(self.usable)[before:])

    def _add(self, file: str, group: int, table: pa.Table) -> None:
        filtered, place = TrainingFilter(table, self.threshold), self._place(file, group)
        rows = filtered.usable_rows
        self.usable[place] = np.zeros(len(table), bool)
        self.usable[place][rows] = True
        self.kept[place] = np.ones(len(table), bool)
        self._count(filtered, UsableRowGroup(*place, len(rows)))
        if self.left is not None:
            self.left = max(self.left - len(rows), 0)

    def limit(self, limit: int | None, seed: int | None, places: Sequence[_Place]) -> None:
        """Of these row groups, keep only rows up to the `limit`-th usable one: in order, or shuffled by the seed."""
        if limit is None:
            return
        kept = np.concatenate([self.kept[place] for place in places])
        usable = np.concatenate([self.usable[place] for place in places]) & kept
        order = np.arange(len(usable)) if seed is None else _permutation(len(usable), seed)
        last = int(np.searchsorted(usable[order].cumsum(), limit))
        kept[order[last + 1 :]] = False
        ends = np.cumsum([len(self.kept[place]) for place in places])
        self.kept.update(zip(places, np.split(kept, ends[:-1]), strict=True))


def _choose_rows(
    configs: Sequence[ShardsConfig], threshold: Thresholds, limit: int | None, limit_seed: int | None
) -> _Rows:
    """The rows that the limits of the folders, and then that of all of them, keep."""
    survey = _Survey(threshold)
    for config in configs:
        survey.scan_folder(Manifest.load(config.shards), config)
    survey.limit(limit, limit_seed, list(survey.kept))
    return survey.kept


def _permutation(count: int, seed: int) -> np.ndarray:
    """A permutation of `range(count)`; numpy promises that that of a RandomState never changes."""
    return np.random.RandomState(np.random.MT19937(seed)).permutation(count)
