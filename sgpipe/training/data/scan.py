"""What the shards of a training contain: the usable rows, and how often each name occurs.

The scan reads every annotation once, before the training; its result is small plain data for every
worker.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from random import Random

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.calibration import choose_threshold, load_calibration, stored
from sgpipe.errors import UserError
from sgpipe.files.image_roots import absolute
from sgpipe.files.locations import Location, absolute_location, opened_ahead
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.storage.datasets import load_manifest
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.shard_file import ShardFile
from sgpipe.storage.shards import IMAGE_COLUMN, flat, lengths, open_shard
from sgpipe.training.data.judged import Judged, judged_relations
from sgpipe.training.recipe import DataConfig, ShardsConfig
from sgpipe.utils.console import count

COLUMNS = (
    "image_id",
    "dataset",
    "split",
    "file_name",
    "width",
    "height",
    "objects",
    "relations",
    "status",
)

_Place = tuple[int, str, int]  # folder, file, row group
_Rows = dict[_Place, np.ndarray]  # [rows of the row group]: a bool each
_NO_ROWS = np.zeros(0, bool)


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards.

    Attributes:
        root: an absolute path, or a URI; of a dataset of runs, that of the first
        weight: its passes in an epoch
        images: the image folder of each split
        judged: relations that people judged; None: use those of the shards
    """

    root: str
    weight: float
    images: Mapping[str, str]
    judged: Judged | None = None


@dataclass(frozen=True)
class UsableRowGroup:
    """A row group of a shard.

    Attributes:
        folder: number of its folder
        group: its number in the file
        rows: number of its usable rows that are used
        usable: a bit per row, packed as by numpy: 1 for usable rows
    """

    folder: int
    file: str
    group: int
    rows: int
    usable: bytes = b""

    def usable_rows(self, rows: int) -> list[int]:
        """Return the indices of usable rows.

        Raises:
            UserError: the shard has fewer `rows` now than were scanned
        """
        indices = self._indices()
        if indices.max(initial=-1) >= rows:
            raise UserError(
                f"shard {self.file} has changed since the training started; start it again"
            )
        return indices.tolist()

    def divided(self, rows: int, rng: Random) -> tuple[UsableRowGroup, UsableRowGroup]:
        """Return the row group with random `rows` of its rows, and with the others."""
        indices = rng.sample(self._indices().tolist(), self.rows)
        return self._with_rows(indices[:rows]), self._with_rows(indices[rows:])

    def _with_rows(self, indices: Sequence[int]) -> UsableRowGroup:
        usable = np.zeros(8 * len(self.usable), bool)
        usable[indices] = True
        return replace(self, rows=len(indices), usable=np.packbits(usable).tobytes())

    def _indices(self) -> np.ndarray:
        return np.flatnonzero(np.unpackbits(np.frombuffer(self.usable, np.uint8)))


@dataclass(frozen=True)
class TrainingSet:
    """Where the usable rows are, and which names occur in them.

    A row is usable if it is not an error row and has a usable relation: one between objects that
    are not crowds, with a confidence of at least the threshold or without confidence.

    Attributes:
        objects: class names of the objects of all rows but error rows, counted as often as an epoch
            visits them
        relations: predicates of the usable relations, counted likewise
        notes: one line each for what is left out
    """

    folders: tuple[ShardFolder, ...]
    row_groups: tuple[UsableRowGroup, ...]
    threshold: float
    objects: LabelVocabulary
    relations: LabelVocabulary
    closed_labels: DatasetClasses | None
    notes: tuple[str, ...] = ()

    @property
    def rows(self) -> int:
        return sum(row_group.rows for row_group in self.row_groups)


class TrainingFilter:
    """The usable rows and relations of a table of a run, see `TrainingSet`.

    Attributes:
        ok: `[rows]`, False for error rows
        usable_rows: indices in the table, in order
        objects: frequency of class names
        relations: frequency of predicates; with judgements, of judged relations only
        is_scored: whether a relation that is not judged has a confidence
    """

    def __init__(
        self, path: Location, table: pa.Table, threshold: float, judged: Judged | None
    ) -> None:
        """Filter a row group.

        Raises:
            UserError: a relation refers to an object that its image does not have.
        """
        rows, objects = flat(table["objects"])
        self.ok = pc.equal(table["status"], "ok").to_numpy()
        is_crowd = _numpy(pc.fill_null(pc.struct_field(objects, "iscrowd"), False))
        self.objects = _frequencies(objects, "category", ~is_crowd & self.ok[rows])
        self.is_scored = False
        if judged is None:
            self._use_relations(path, table, threshold, is_crowd)
        else:
            self._use_judgements(table, judged, is_crowd)

    def _use_relations(
        self, path: Location, table: pa.Table, threshold: float, is_crowd: np.ndarray
    ) -> None:
        counts = lengths(table["objects"])
        first_object = np.cumsum(counts) - counts
        rows, relations = flat(table["relations"])
        confidence = _numpy(pc.struct_field(relations, "confidence"))  # NaN: none
        self.is_scored = not np.isnan(confidence).all()
        usable = ~(confidence < threshold) & self.ok[rows]
        for role in ("subject", "object"):
            ends = _numpy(pc.fill_null(pc.struct_field(relations, role), -1))
            missing = np.flatnonzero((ends < 0) | (ends >= counts[rows]))
            if len(missing):
                image = table["image_id"][int(rows[missing[0]])]
                raise UserError(
                    f"shard {path}: image {image} has a relation with object"
                    f" {ends[missing[0]]}, which does not exist"
                )
            usable &= ~is_crowd[first_object[rows] + ends]
        self.relations = _frequencies(relations, "predicate", usable)
        self.usable_rows = np.unique(rows[usable])

    def _use_judgements(self, table: pa.Table, judged: Judged, is_crowd: np.ndarray) -> None:
        """Use judged relations between objects that are not crowds."""
        splits = table["split"].to_pylist()
        image_ids = table["image_id"].to_pylist()
        crowds_of_rows = np.split(is_crowd, np.cumsum(lengths(table["objects"]))[:-1])
        predicates = Counter[str]()
        usable_rows = []
        for row in np.flatnonzero(self.ok).tolist():
            objects = set(np.flatnonzero(~crowds_of_rows[row]).tolist())
            relations = [
                relation
                for relation in judged.get((splits[row], image_ids[row]), ())
                if {relation.subject, relation.object} <= objects
            ]
            predicates.update(relation.predicate for relation in relations)
            if relations:
                usable_rows.append(row)
        self.relations = predicates
        self.usable_rows = np.array(usable_rows, dtype=int)


def _numpy(column: pa.Array) -> np.ndarray:
    return column.to_numpy(zero_copy_only=False)


def _frequencies(items: pa.Array, field: str, mask: np.ndarray) -> Mapping[str, int]:
    counts = pc.value_counts(pc.struct_field(items, field).filter(pa.array(mask)))
    return {item["values"]: item["counts"] for item in counts.to_pylist()}


def scan_training(data: DataConfig) -> TrainingSet:
    """Scan the shards to train on.

    Raises:
        UserError: as `scan`
    """
    threshold = choose_threshold(data.calibration, data.threshold, data.precision)
    closed = data.labels == "full"
    return scan(
        data.train,
        threshold,
        data.calibration,
        closed=closed,
        limit=data.limit,
        limit_seed=data.limit_seed,
    )


def scan_validation(data: DataConfig, training: TrainingSet) -> TrainingSet | None:
    """Scan the shards to validate on, if any.

    Raises:
        UserError: as `scan`, or their class lists differ
    """
    if not data.val:
        return None
    validation = scan(data.val, training.threshold, data.calibration, closed=data.labels == "full")
    if validation.closed_labels != training.closed_labels:
        raise UserError(
            f"{data.val[0].shards} has other classes than {data.train[0].shards}: they must be the"
            " same"
        )
    return validation


def scan(
    configs: Sequence[ShardsConfig],
    threshold: float,
    calibration: Location | None = None,
    *,
    closed: bool = False,
    limit: int | None = None,
    limit_seed: int | None = None,
) -> TrainingSet:
    """Read the annotations of every row group with one in memory at a time.

    They are read once, or twice if a limit chooses rows.

    Args:
        threshold: minimum confidence of a relation
        calibration: the file for the tagger of shards with confidences
        closed: use the closed class lists of the datasets, which must agree
        limit: number of usable rows of all folders but judged ones, after the limits of folders
        limit_seed: chooses them at random; None: the first ones

    Raises:
        UserError: a folder is not a run, a shard is damaged, a split does not exist or has no
            usable row, an image folder is unknown, the calibration is of another tagger, or
            `closed` lists differ, or lack a name that occurs
    """
    threshold = stored(threshold)
    if not configs:
        raise UserError("data.train is not set (--data)")
    selected = None
    if limit or any(config.limit for config in configs):
        selected = _choose_rows(configs, threshold, limit, limit_seed)
    totals = _Totals()
    labels: DatasetClasses | None = None
    for config in configs:
        folder = ScannedFolder(len(totals.folders), config)
        is_scored = totals.add(folder, threshold, selected)
        if calibration is not None and is_scored:
            load_calibration(calibration).check_run(folder.manifest.run, config.shards)
        if closed:
            folder_labels = folder.closed_labels(totals.objects, totals.relations)
            if labels not in (None, folder_labels):
                raise UserError(
                    f"{config.shards} has other classes than {configs[0].shards}; train on them"
                    " separately"
                )
            labels = folder_labels
    return totals.training_set(threshold, labels)


class _Totals:
    """What the folders that were scanned contain together.

    Attributes:
        rows: number of rows, also of those that are not usable
        objects, relations: frequencies of names, times the weights of folders
        notes: on the runs of a dataset, and on judged relations
    """

    def __init__(self) -> None:
        self.folders: list[ShardFolder] = []
        self.row_groups: list[UsableRowGroup] = []
        self.rows = 0
        self.objects = defaultdict[str, float](float)
        self.relations = defaultdict[str, float](float)
        self.notes: list[str] = []

    def add(self, folder: ScannedFolder, threshold: float, selected: _Rows | None) -> bool:
        """Read the annotations of a folder; return whether any relation has a confidence."""
        self.folders.append(folder.folder)
        self.notes += folder.manifest.notes
        weight = folder.config.weight
        is_scored = False
        used_relations = 0
        usable_rows = 0
        with closing(folder.row_groups(threshold, selected)) as row_groups:
            for place, filtered in row_groups:
                is_scored |= filtered.is_scored
                used_relations += sum(filtered.relations.values())
                _add_frequencies(self.objects, filtered.objects, weight)
                _add_frequencies(self.relations, filtered.relations, weight)
                self.rows += len(filtered.ok)
                rows = len(filtered.usable_rows)
                usable_rows += rows
                if rows:
                    bits = np.packbits(np.bincount(filtered.usable_rows) > 0).tobytes()
                    self.row_groups.append(UsableRowGroup(*place, rows, bits))
        if folder.folder.judged is not None:
            unused = sum(map(len, folder.folder.judged.values())) - used_relations
            self.notes += folder.judgement_notes(usable_rows, unused)
        return is_scored

    def training_set(self, threshold: float, labels: DatasetClasses | None) -> TrainingSet:
        notes = self.notes
        left_out = self.rows - sum(row_group.rows for row_group in self.row_groups)
        if left_out:
            why = f"error rows, or no relation with confidence >= {threshold:.4g}"
            notes = [f"left out {left_out:,} of {count(self.rows, 'row')}: {why}", *notes]
        return TrainingSet(
            folders=tuple(self.folders),
            row_groups=tuple(self.row_groups),
            threshold=threshold,
            objects=LabelVocabulary.from_counts(self.objects),
            relations=LabelVocabulary.from_counts(self.relations),
            closed_labels=labels,
            notes=tuple(notes),
        )


def _add_frequencies(
    total: defaultdict[str, float], frequencies: Mapping[str, int], weight: float
) -> None:
    for name, frequency in frequencies.items():
        total[name] += weight * frequency


class ScannedFolder:
    """A folder of shards while it is scanned.

    Attributes:
        number: its index
        problems: of its judgements, one line each
    """

    def __init__(self, number: int, config: ShardsConfig) -> None:
        """Open a folder of shards.

        Raises:
            UserError: the folder is not a run, or has no such split.
        """
        self.number = number
        self.config = config
        self.manifest = load_manifest(absolute_location(config.shards))
        self.shards = self._shards_of_splits()
        images = {}
        for split in self.shards:
            root = config.images or self.manifest.image_roots.locations.get(split)
            if root:
                images[split] = absolute(os.path.expanduser(root))
        judged = None
        self.problems: list[str] = []
        if config.judged:
            judged, self.problems = judged_relations(str(config.shards))
        root = str(self.manifest.first_run)
        self.folder = ShardFolder(root, config.weight, images, judged)

    def _shards_of_splits(self) -> dict[str, list[ShardEntry]]:
        """Return the shards of each split to read."""
        available: dict[str, list[ShardEntry]] = {}
        for shard in sorted(self.manifest.shards, key=lambda shard: shard.split):
            available.setdefault(shard.split, []).append(shard)
        splits = list(available) if self.config.splits is None else self.config.splits
        if not splits or not available.keys() >= {*splits}:
            asked = ", ".join(dict.fromkeys(splits)) or "any split"
            known = ", ".join(available) or "no shards yet"
            raise UserError(f"{self.config.shards} has no shards of {asked}: there are {known}")
        return {split: available[split] for split in splits}

    def judgement_notes(self, usable_rows: int, unused: int) -> list[str]:
        """Return notes on judged relations, of which `unused` are left out.

        Raises:
            UserError: none can be used
        """
        name = f"judged relations of {self.config.shards}"
        why = "their images are not used, or lack the objects"
        if not usable_rows:
            raise UserError(f"no {name} can be used: {'; '.join([why, *self.problems[:1]])}")
        notes = [f"left out {unused:,} {name}: {why}"] if unused > 0 else []
        return notes + self.problems

    def row_groups(
        self, threshold: float, selected: _Rows | None
    ) -> Generator[tuple[_Place, TrainingFilter], None, None]:
        """Yield the row groups, one in memory at a time.

        Args:
            selected: rows to which the row groups are reduced; None: all

        Raises:
            UserError: as `scan`
        """
        for split in self.shards:
            has_usable = False
            with closing(self._split_row_groups(split, threshold, selected)) as row_groups:
                for place, filtered in row_groups:
                    has_usable |= len(filtered.usable_rows) > 0
                    yield place, filtered
            if selected is None and not has_usable and self.folder.judged is None:
                raise UserError(
                    f"no image of split {split} of {self.config.shards} is without an error and has"
                    f" a relation with confidence >= {threshold:.4g}; see `sgpipe stats`, or lower"
                    " data.threshold or data.precision"
                )

    def _split_row_groups(
        self, split: str, threshold: float, selected: _Rows | None
    ) -> Generator[tuple[_Place, TrainingFilter], None, None]:
        paths = [self.manifest.location_of(shard.file) for shard in self.shards[split]]
        if selected is not None:
            files = {file for number, file, _ in selected if number == self.number}
            paths = [path for path in paths if str(path) in files]
        with closing(opened_ahead(paths)) as contents:
            for path, content in zip(paths, contents, strict=True):
                with open_shard(path, COLUMNS, content) as shard:
                    if IMAGE_COLUMN not in shard.schema_arrow.names:
                        self.manifest.image_root(split, self.folder.images.get(split))
                    yield from self._shard_row_groups(path, shard, threshold, selected)

    def _shard_row_groups(
        self, path: Location, shard: ShardFile, threshold: float, selected: _Rows | None
    ) -> Generator[tuple[_Place, TrainingFilter], None, None]:
        rows = None
        for group in range(shard.num_row_groups):
            place = (self.number, str(path), group)
            if selected is not None:
                rows = selected.get(place, _NO_ROWS)
                if not rows.any():
                    continue
            table = shard.read_row_group(group, columns=list(COLUMNS))
            yield place, self._filter(path, table, threshold, rows)

    def _filter(
        self, path: Location, table: pa.Table, threshold: float, selected: np.ndarray | None
    ) -> TrainingFilter:
        """Filter a row group, or its `selected` rows."""
        if selected is None:
            return TrainingFilter(path, table, threshold, self.folder.judged)
        filtered = TrainingFilter(path, table.filter(selected), threshold, self.folder.judged)
        filtered.usable_rows = np.flatnonzero(selected)[filtered.usable_rows]
        return filtered

    def closed_labels(self, objects: Iterable[str], relations: Iterable[str]) -> DatasetClasses:
        """Return the class lists of the dataset.

        Raises:
            UserError: there are none, or they lack one of these names
        """
        shards = self.config.shards
        lists = self.manifest.run.get("labels")
        if not lists:
            raise UserError(
                f"{shards} has no closed class lists; train on it with data.labels=sampled"
            )
        labels = DatasetClasses(tuple(lists["objects"]), tuple(lists["relations"]))
        self._check_classes("object", objects, labels.objects)
        self._check_classes("relation", relations, labels.relations)
        return labels

    def _check_classes(self, kind: str, names: Iterable[str], classes: Sequence[str]) -> None:
        unknown = sorted(set(names) - set(classes))
        if unknown:
            raise UserError(
                f"{self.config.shards}: {kind} {unknown[0]!r} is not one of the {len(classes)}"
                " classes of its dataset; train on it with data.labels=sampled"
            )


def _choose_rows(
    configs: Sequence[ShardsConfig], threshold: float, limit: int | None, limit_seed: int | None
) -> _Rows:
    """Return the rows that the limits of the folders, and then that of all of them, keep.

    A random limit shuffles all rows and keeps them up to the N-th usable one. So the rows do not
    depend on the sizes of row groups, those of a lower limit are among them, and a row is hardly
    ever replaced because others became usable.
    """
    selected: _Rows = {}
    usable: _Rows = {}
    for number, config in enumerate(configs):
        # after which no further shard is fetched
        enough_rows = None if limit_seed is not None else limit
        if config.limit or config.judged:
            enough_rows = None if config.limit_seed is not None else config.limit
        places = []
        usable_rows = 0
        with closing(ScannedFolder(number, config).row_groups(threshold, None)) as row_groups:
            for place, filtered in row_groups:
                places.append(place)
                selected[place] = np.ones(len(filtered.ok), bool)
                usable[place] = np.isin(np.arange(len(filtered.ok)), filtered.usable_rows)
                usable_rows += len(filtered.usable_rows)
                if enough_rows is not None and usable_rows >= enough_rows:
                    break
        _apply_limit(selected, usable, places, config.limit, config.limit_seed)
    places = [place for place in selected if not configs[place[0]].judged]
    _apply_limit(selected, usable, places, limit, limit_seed)
    return selected


def _apply_limit(
    selected: _Rows, usable: _Rows, places: Sequence[_Place], limit: int | None, seed: int | None
) -> None:
    """Keep the selected rows of these row groups up to the `limit`-th usable one."""
    if limit is None or not places:
        return
    all_selected = np.concatenate([selected[place] for place in places])
    all_usable = np.concatenate([usable[place] for place in places]) & all_selected
    order = np.arange(len(all_usable))
    if seed is not None:  # numpy promises that a permutation of a RandomState never changes
        order = np.random.RandomState(np.random.MT19937(seed)).permutation(len(all_usable))
    last = int(np.searchsorted(all_usable[order].cumsum(), limit))
    all_selected[order[last + 1 :]] = False
    ends = np.cumsum([len(selected[place]) for place in places])
    selected.update(zip(places, np.split(all_selected, ends[:-1]), strict=True))
