"""What the shards of a training contain: the usable rows, and how often each name occurs.

The scan reads every annotation once, before the training; its result is small plain data for every worker.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.calibration import Calibration, choose_threshold, load_calibration, stored
from sgpipe.errors import UserError
from sgpipe.files.image_roots import absolute
from sgpipe.files.locations import Location, absolute_location, location, opened_ahead, text_of
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.storage.manifest import Manifest, ShardEntry, run_images
from sgpipe.storage.shards import IMAGE_COLUMN, open_shard, read_file
from sgpipe.training.recipe import DataConfig, ShardsConfig
from sgpipe.utils.console import count

COLUMNS = ("image_id", "dataset", "split", "file_name", "width", "height", "objects", "relations", "status")


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards.

    Args:
        root: absolute path, or the URI of a store.
        weight: passes over its shards in an epoch.
        images: where the images of each split are (absolute), as far as known.
    """

    root: str
    weight: float
    images: Mapping[str, str]


@dataclass(frozen=True)
class UsableRowGroup:
    """A row group with usable rows.

    Args:
        folder: index into the folders of the training set.
        file: absolute path of the shard.
        group: index of the row group in the shard.
        rows: number of usable rows; if the row group has more, only the first ones are used.
        kept: a bit per row of the row group, packed as by numpy: 0 for rows that a limit leaves out; None: no limit.
    """

    folder: int
    file: str
    group: int
    rows: int
    kept: bytes | None = None


@dataclass(frozen=True)
class TrainingSet:
    """Where the usable rows are, and which names occur in them.

    A row is usable if it is not an error row and has a usable relation: one between objects that are not crowds, with
    a confidence of at least the threshold or without confidence.

    Args:
        threshold: minimum confidence of a relation.
        objects: class names of the objects of all rows but error rows, counted as often as an epoch visits them.
        relations: predicates of the usable relations, likewise.
        closed_labels: the class lists of the datasets, if the recipe uses closed lists.
        error_rows: number of error rows.
        rows_without_relations: number of other rows without a usable relation.
    """

    folders: tuple[ShardFolder, ...]
    row_groups: tuple[UsableRowGroup, ...]
    threshold: float
    objects: LabelVocabulary
    relations: LabelVocabulary
    closed_labels: DatasetClasses | None
    error_rows: int
    rows_without_relations: int

    @property
    def rows(self) -> int:
        """Number of usable rows."""
        return sum(row_group.rows for row_group in self.row_groups)


def shards_by_split(manifest: Manifest, config: ShardsConfig) -> dict[str, list[ShardEntry]]:
    """The shards of the configured splits, in the configured order.

    Raises UserError: the folder has no shards, or no such split.
    """
    splits = sorted({shard.split for shard in manifest.shards})
    if not splits:
        raise UserError(f"{config.shards} has no shards yet; create some with `sgpipe generate` or `sgpipe import`")
    unknown = [name for name in config.splits or () if name not in splits]
    if unknown:
        raise UserError(f"{config.shards} has no split {unknown[0]!r}; it has {', '.join(splits)}")
    chosen = splits if config.splits is None else list(dict.fromkeys(config.splits))
    return {split: [shard for shard in manifest.shards if shard.split == split] for split in chosen}


def shard_folder(manifest: Manifest, config: ShardsConfig, splits: Iterable[str]) -> ShardFolder:
    """The folder with the images of these splits, as far as they are known."""
    places = {split: config.images or manifest.image_roots.locations.get(split) for split in splits}
    images = {split: absolute(os.path.expanduser(place)) for split, place in places.items() if place}
    return ShardFolder(text_of(absolute_location(config.shards)), config.weight, images)


def read_closed_labels(manifest: Manifest, config: ShardsConfig) -> DatasetClasses:
    """The closed class lists of the run's dataset. Raises UserError: the run has none."""
    lists = manifest.run.get("labels")
    if not lists:
        raise UserError(f"{config.shards} has no closed class lists; train on it with data.labels=sampled")
    return DatasetClasses(tuple(lists["objects"]), tuple(lists["relations"]))


def check_closed_labels(
    config: ShardsConfig, labels: DatasetClasses, objects: Iterable[str], relations: Iterable[str]
) -> None:
    """Raises UserError: a name that occurs in the folder is not in the class lists."""
    for kind, names, known in (("object", objects, labels.objects), ("relation", relations, labels.relations)):
        unknown = sorted(set(names) - set(known))
        if unknown:
            raise UserError(
                f"{config.shards}: {kind} {unknown[0]!r} is not one of the {len(known)} classes of its dataset; "
                "train on it with data.labels=sampled, or import it again"
            )


def data_warnings(training_set: TrainingSet, data: DataConfig, *, miniature: bool = False) -> list[str]:
    """One line each for rows that are left out and for vocabularies smaller than the requested number of texts.

    The data of `miniature` networks always has few texts.
    """
    errors, without = training_set.error_rows, training_set.rows_without_relations
    total = count(training_set.rows + errors + without, "row")
    reasons = {"error rows": errors, f"no relation with confidence >= {training_set.threshold:.4g}": without}
    lines = [f"left out {rows:,} of {total}: {why}" for why, rows in reasons.items() if rows]
    objects, predicates = len(training_set.objects.names), len(training_set.relations.names)
    wanted = int(data.negative_texts * 2 / 3)  # of object classes
    few = objects < wanted or predicates < data.negative_texts - wanted
    if few and training_set.closed_labels is None and not miniature:
        names = f"{count(objects, 'object class', 'object classes')} and {count(predicates, 'predicate')}"
        lines.append(f"the data has only {names}: a step may compare its images with all of them")
    return lines


class FlatColumn:
    """A column of lists of structs as one flat list of structs; null lists count as empty."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        array = column.combine_chunks()
        self.lengths: np.ndarray = pc.fill_null(pc.list_value_length(array), 0).to_numpy(zero_copy_only=False)
        self.rows = np.repeat(np.arange(len(self.lengths)), self.lengths)  # row of each struct
        self._structs = array.flatten()

    def __getitem__(self, field: str) -> pa.Array:
        return pc.struct_field(self._structs, field)


@dataclass(frozen=True)
class TrainingFilter:
    """The usable rows and relations of a table; `TrainingSet` defines both.

    Args:
        table: with the columns image_id, objects, relations and status.
        threshold: minimum confidence of a relation; relations without confidence are always usable.
    """

    table: pa.Table
    threshold: float

    @cached_property
    def ok(self) -> np.ndarray:
        """`[rows]`: False for error rows."""
        return pc.equal(self.table["status"], "ok").to_numpy()

    @cached_property
    def _objects(self) -> FlatColumn:
        return FlatColumn(self.table["objects"])

    @cached_property
    def _relations(self) -> FlatColumn:
        return FlatColumn(self.table["relations"])

    @cached_property
    def _crowd(self) -> np.ndarray:
        """`[all objects]`"""
        return pc.fill_null(self._objects["iscrowd"], False).to_numpy(zero_copy_only=False)

    @cached_property
    def _usable_relations(self) -> np.ndarray:
        """`[all relations]`"""
        confidence = self._relations["confidence"].to_numpy(zero_copy_only=False)  # NaN: no confidence
        unsure = confidence < self.threshold
        crowd = self._crowd[self._ends("subject")] | self._crowd[self._ends("object")]
        return ~unsure & ~crowd & self.ok[self._relations.rows]

    def _ends(self, field: str) -> np.ndarray:
        """`[all relations]`: indices into all objects.

        Raises UserError: a relation refers to an object that its image does not have.
        """
        ends = pc.fill_null(self._relations[field], -1).to_numpy(zero_copy_only=False)
        rows, lengths = self._relations.rows, self._objects.lengths
        bad = np.flatnonzero((ends < 0) | (ends >= lengths[rows]))
        if len(bad):
            image = self.table["image_id"][int(rows[bad[0]])]
            raise UserError(f"image {image} has a relation with object {ends[bad[0]]}, which does not exist")
        return (np.cumsum(lengths) - lengths)[rows] + ends

    @cached_property
    def usable_rows(self) -> np.ndarray:
        """`[usable rows]`: their indices in the table, in order."""
        return np.unique(self._relations.rows[self._usable_relations])

    def object_names(self) -> dict[str, int]:
        """The frequency of each class name, in order of first occurrence."""
        return _frequencies(self._objects["category"], ~self._crowd & self.ok[self._objects.rows])

    def relation_names(self) -> dict[str, int]:
        """The frequency of each predicate of usable relations, in order of first occurrence."""
        return _frequencies(self._relations["predicate"], self._usable_relations)


def _frequencies(names: pa.Array, mask: np.ndarray) -> dict[str, int]:
    counts = pc.value_counts(names.filter(pa.array(mask)))
    return {item["values"]: item["counts"] for item in counts.to_pylist()}


def scan_training(data: DataConfig) -> TrainingSet:
    """Scan the shards to train on. Raises UserError: see `scan`."""
    closed = data.labels == "full"
    return scan(data.train, minimum_confidence(data), closed=closed, limit=data.limit, limit_seed=data.limit_seed)


def minimum_confidence(data: DataConfig) -> float:
    """The minimum confidence of relations. Raises UserError: the calibration cannot be used, or fits no shards."""
    if data.calibration is not None:
        calibration = load_calibration(data.calibration)
        for config in (*data.train, *data.val):
            _check_tagger(calibration, Manifest.load(config.shards), config)
    return choose_threshold(data.calibration, data.threshold, data.precision)


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
    threshold: float,
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

    Raises UserError: a folder is not a run, a shard is missing or damaged, a split does not exist or has no usable row,
    or an image folder is unknown. With `closed`: class lists are missing or differ, or do not have a name that occurs.
    """
    threshold = stored(threshold)
    if not configs:
        raise UserError("data.train is not set (--data)")
    kept = None
    if (limit and limit_seed is not None) or any(config.limit for config in configs):
        kept = _choose_rows(configs, threshold, limit, limit_seed)
    scanner = _Scanner(threshold, limit if kept is None else None, kept)
    labels: DatasetClasses | None = None
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
    """Collects what the scanned shards contain. left: usable rows until the limit; only: rows to scan, None: all."""

    def __init__(self, threshold: float, limit: int | None = None, only: _Rows | None = None) -> None:
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
            paths = [location(folder.root) / entry.file for entry in entries]
            with closing(opened_ahead(paths)) as contents:
                for path in paths:
                    if self.left == 0:
                        break  # no further shard is fetched
                    self._scan_shard(folder, split, path, next(contents))
            if self.left != 0 and self.only is None and len(self.row_groups) == usable:
                name = f"split {split} of {config.shards}"
                if self.rows - rows == self.errors - errors:
                    raise UserError(f"{name} has only error rows; `sgpipe stats` lists the errors")
                raise UserError(
                    f"no image of {name} has a relation with confidence >= {self.threshold:.4g}; lower data.threshold "
                    "or data.precision"
                )

    def _scan_shard(self, folder: ShardFolder, split: str, path: Location, content: BinaryIO | None) -> None:
        with open_shard(path, COLUMNS, content) as file:
            if IMAGE_COLUMN not in file.schema_arrow.names:
                run_images(folder.root, split, folder.images.get(split))
            for group in range(file.num_row_groups):
                place = self._place(str(path), group)
                if self.left == 0 or not (self.only is None or self.only.get(place, np.zeros(0, bool)).any()):
                    continue
                table = file.read_row_group(group, columns=list(COLUMNS))
                try:
                    self._add(text_of(path), group, table)
                except UserError as error:
                    raise UserError(f"shard {path}: {error}") from None

    def _place(self, file: str, group: int) -> _Place:
        return len(self.folders) - 1, file, group

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
            for name, times in names.items():
                total[name] = total.get(name, 0) + weight * times
        bits = None if kept is None or kept.all() else np.packbits(kept).tobytes()
        self._count(filtered, UsableRowGroup(len(self.folders) - 1, file, group, usable, bits))

    def _count(self, filtered: TrainingFilter, row_group: UsableRowGroup) -> None:
        self.rows += len(filtered.ok)
        self.errors += int((~filtered.ok).sum())
        if row_group.rows:
            self.row_groups.append(row_group)

    def result(self, labels: DatasetClasses | None) -> TrainingSet:
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

    def __init__(self, threshold: float) -> None:
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
        order = np.arange(len(usable))
        if seed is not None:  # numpy promises that a permutation of a RandomState never changes
            order = np.random.RandomState(np.random.MT19937(seed)).permutation(len(usable))
        last = int(np.searchsorted(usable[order].cumsum(), limit))
        kept[order[last + 1 :]] = False
        ends = np.cumsum([len(self.kept[place]) for place in places])
        self.kept.update(zip(places, np.split(kept, ends[:-1]), strict=True))


def _choose_rows(configs: Sequence[ShardsConfig], threshold: float, limit: int | None, limit_seed: int | None) -> _Rows:
    """The rows that the limits of the folders, and then that of all of them, keep."""
    survey = _Survey(threshold)
    for config in configs:
        survey.scan_folder(Manifest.load(config.shards), config)
    survey.limit(limit, limit_seed, list(survey.kept))
    return survey.kept
