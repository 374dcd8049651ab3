"""What the shards of a training contain: the usable rows, and how often each name occurs.

The scan reads every annotation once, before the training; its result is small plain data for every
worker.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.calibration import choose_threshold, load_calibration, stored
from sgpipe.errors import UserError
from sgpipe.files.image_roots import absolute
from sgpipe.files.locations import Location, absolute_location, location, opened_ahead
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.storage.judgements import JudgementLog, RelationKey
from sgpipe.storage.manifest import Manifest, run_images
from sgpipe.storage.run_folder import RunFiles
from sgpipe.storage.shards import IMAGE_COLUMN, flat, lengths, open_shard
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


@dataclass(frozen=True)
class ShardFolder:
    """A folder of shards (absolute, or a URI), its passes in an epoch, and where the images of each
    split are.

    `judged`: relations that people judged, by split and image id; None: use those of the shards.
    """

    root: str
    weight: float
    images: Mapping[str, str]
    judged: Judged | None = None


class JudgedRelation(NamedTuple):
    """A relation that people judged; `share`: of the visits of its image in which it is used."""

    subject: int
    object: int
    predicate: str
    right: bool
    share: float


Judged: TypeAlias = Mapping[tuple[str, str], Sequence[JudgedRelation]]  # by split and image id


def judged_relations(run: str) -> tuple[dict[tuple[str, str], list[JudgedRelation]], list[str]]:
    """Return what people agree on in a run, by split and image, and the problems of the file.

    A changed relation is wrong as it was, and right as it is now. A judgement that a plan asked for
    stands for as many relations as its stratum has for each; others, for as many as one of a plan
    does on average.

    Raises UserError: there is no run, or nothing in it was judged.
    """
    files = RunFiles(run)
    log = JudgementLog(files.judgements, str(files.manifest.run.get("fingerprint", "")))
    weights: dict[RelationKey, float] = {}
    for plan in log.plans.values():
        if plan.kind == "doubts":  # no random sample: each stands for itself
            continue
        asked = log.judged(plan.plan)
        strata = {
            question.key: question.stratum for question in plan.questions if question.key in asked
        }
        sizes = Counter(strata.values())
        each = {
            key: plan.strata[stratum].relations / sizes[stratum] for key, stratum in strata.items()
        }
        mean = sum(each.values()) / max(len(each), 1)
        weights |= {key: weight / mean for key, weight in each.items()}
    as_they_are: dict[RelationKey, tuple[bool, float]] = {}
    as_they_become: dict[RelationKey, tuple[bool, float]] = {}
    for state in log.current():
        left = state.resolve()
        if left is None:
            continue
        weight = weights.get(state.key, 1.0)
        as_they_are[state.key] = (state.key in left, weight)
        as_they_become |= dict.fromkeys(sorted(left), (True, weight))
    found = (
        as_they_are | as_they_become | as_they_are
    )  # in this order; what people say of a relation itself counts
    if not found:
        why = f": {log.problems[0]}" if log.problems else ""
        raise UserError(
            f"{run}: nobody has judged its relations{why}; do it in `sgpipe view {run}`"
        )
    most = max(weight for _, weight in found.values())
    images = dict[tuple[str, str], list[JudgedRelation]]()
    for key, (right, weight) in found.items():
        judged_relation = JudgedRelation(
            key.subject, key.object, key.predicate, right, weight / most
        )
        images.setdefault((key.split, key.image_id), []).append(judged_relation)
    return images, log.problems


@dataclass(frozen=True)
class UsableRowGroup:
    """The `group`-th row group of a shard of the `folder`-th folder, of which `rows` usable rows
    are used.

    `usable`: a bit per row of the row group, packed as by numpy: 1 for these.
    """

    folder: int
    file: str
    group: int
    rows: int
    usable: bytes = b""

    def usable_rows(self, rows: int) -> list[int]:
        """Return the indices of usable rows. Raises UserError if the shard has fewer `rows` now
        than were scanned.
        """
        indices = np.flatnonzero(np.unpackbits(np.frombuffer(self.usable, np.uint8)))
        if indices.max(initial=-1) >= rows:
            raise UserError(
                f"shard {self.file} has changed since the training started; start it again"
            )
        return indices.tolist()


@dataclass(frozen=True)
class TrainingSet:
    """Where the usable rows are, and which names occur in them.

    A row is usable if it is not an error row and has a usable relation: one between objects that
    are not crowds, with a confidence of at least the threshold or without confidence. objects,
    relations: class names of the objects of all rows but error rows, and predicates of the usable
    relations, counted as often as an epoch visits them. notes: one line each for what is left out.
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
    """The usable rows and relations of a table of a run, see `TrainingSet`; with `judged`, only
    judged relations.

    ok `[rows]`: False for error rows. usable_rows: their indices in the table, in order. objects,
    relations: the frequency of class names and of predicates. is_scored: whether a relation that is
    not judged has a confidence.

    Raises UserError: a relation refers to an object that its image does not have.
    """

    def __init__(
        self, path: Location, table: pa.Table, threshold: float, judged: Judged | None
    ) -> None:
        image, objects = flat(table["objects"])
        counts = lengths(table["objects"])
        self.ok = pc.equal(table["status"], "ok").to_numpy()
        crowd = pc.fill_null(pc.struct_field(objects, "iscrowd"), False).to_numpy(
            zero_copy_only=False
        )
        self.objects = _frequencies(objects, "category", ~crowd & self.ok[image])
        self.is_scored = False
        if judged is None:
            rows, relations = flat(table["relations"])
            confidence = pc.struct_field(relations, "confidence").to_numpy(
                zero_copy_only=False
            )  # NaN: none
            self.is_scored = not np.isnan(confidence).all()
            usable = ~(confidence < threshold) & self.ok[rows]
            for field in ("subject", "object"):
                ends = pc.fill_null(pc.struct_field(relations, field), -1).to_numpy(
                    zero_copy_only=False
                )
                bad = np.flatnonzero((ends < 0) | (ends >= counts[rows]))
                if len(bad):
                    of = f"shard {path}: image {table['image_id'][int(rows[bad[0]])]}"
                    raise UserError(
                        f"{of} has a relation with object {ends[bad[0]]}, which does not exist"
                    )
                usable &= ~crowd[(np.cumsum(counts) - counts)[rows] + ends]
            self.relations = _frequencies(relations, "predicate", usable)
            self.usable_rows = np.unique(rows[usable])
        else:
            keys = zip(*(table[name].to_pylist() for name in ("split", "image_id")), strict=True)
            usable_ends = [
                {*np.flatnonzero(~own)} for own in np.split(crowd, np.cumsum(counts)[:-1])
            ]
            of_rows = [
                judged.get(key, ()) if ok else () for key, ok in zip(keys, self.ok, strict=True)
            ]
            pairs = zip(of_rows, usable_ends, strict=False)
            known = [[each for each in own if {*each[:2]} <= ends] for own, ends in pairs]
            self.relations = Counter(each.predicate for own in known for each in own)
            self.usable_rows = np.flatnonzero(np.array([bool(own) for own in known], bool))


def _frequencies(items: pa.Array, field: str, mask: np.ndarray) -> Mapping[str, int]:
    counts = pc.value_counts(pc.struct_field(items, field).filter(pa.array(mask)))
    return {item["values"]: item["counts"] for item in counts.to_pylist()}


def scan_training(data: DataConfig) -> TrainingSet:
    """Scan the shards to train on. Raises UserError: see `scan`."""
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
    """Scan the shards to validate on, if any. Raises UserError: see `scan`; or their class lists
    differ.
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
    """Read the annotations of every row group with one in memory at a time: once, or twice if a
    limit chooses rows.

    threshold, calibration: minimum confidence of a relation; the file for the tagger of shards with
    confidences.
    closed: use the closed class lists of the datasets, which must agree. limit: number of usable
    rows of all folders but judged ones, after the limits of folders.

    Raises UserError: a folder is not a run, a shard is damaged, a split does not exist or has no
    usable row, an image folder is unknown, the calibration is of another tagger, or `closed` lists
    differ, or lack a name that occurs.
    """
    threshold = stored(threshold)
    if not configs:
        raise UserError("data.train is not set (--data)")
    is_limited = limit or any(config.limit for config in configs)
    kept = _choose_rows(configs, threshold, limit, limit_seed) if is_limited else None
    folders = list[ShardFolder]()
    row_groups = list[UsableRowGroup]()
    notes = list[str]()
    rows = 0
    objects = defaultdict[str, float](float)
    relations = defaultdict[str, float](float)
    labels: DatasetClasses | None = None
    for config in configs:
        folder = ScannedFolder(len(folders), config)
        folders.append(folder.folder)
        unused = sum(map(len, (folder.folder.judged or {}).values()))
        is_scored = False
        with closing(folder.row_groups(threshold, kept)) as found:
            for place, filtered in found:
                is_scored |= filtered.is_scored
                unused -= sum(filtered.relations.values())
                for total, names in ((objects, filtered.objects), (relations, filtered.relations)):
                    for name, times in names.items():
                        total[name] += config.weight * times
                rows += len(filtered.ok)
                usable = len(filtered.usable_rows)
                if usable:
                    bits = np.packbits(np.bincount(filtered.usable_rows) > 0).tobytes()
                    row_groups.append(UsableRowGroup(*place, usable, bits))
        if calibration is not None and is_scored:
            load_calibration(calibration).check_run(folder.manifest.run, config.shards)
        if config.judged:
            name = f"judged relations of {config.shards}"
            why = "their images are not used, or lack the objects"
            if not any(group.folder == folder.number for group in row_groups):
                raise UserError(f"no {name} can be used: {'; '.join([why, *folder.problems[:1]])}")
            notes += [f"left out {unused:,} {name}: {why}"] if unused > 0 else []
            notes += folder.problems
        if closed:
            own = folder.closed_labels(objects, relations)
            if labels not in (None, own):
                raise UserError(
                    f"{config.shards} has other classes than {configs[0].shards}; train on them"
                    " separately"
                )
            labels = own
    left_out = rows - sum(row_group.rows for row_group in row_groups)
    if left_out:
        why = f"error rows, or no relation with confidence >= {threshold:.4g}"
        notes.insert(0, f"left out {left_out:,} of {count(rows, 'row')}: {why}")
    vocabularies = LabelVocabulary.from_counts(objects), LabelVocabulary.from_counts(relations)
    return TrainingSet(
        tuple(folders), tuple(row_groups), threshold, *vocabularies, labels, tuple(notes)
    )


class ScannedFolder:
    """A folder of shards while it is scanned; `number`: its index. `problems`: of its judgements,
    one line each.
    """

    def __init__(self, number: int, config: ShardsConfig) -> None:
        """Raises UserError: the folder is not a run, or has no such split."""
        self.number = number
        self.config = config
        self.manifest = Manifest.load(config.shards)
        there = sorted({shard.split for shard in self.manifest.shards})
        splits = there if config.splits is None else list(dict.fromkeys(config.splits))
        if not splits or {*splits} - {*there}:
            asked = ", ".join(splits) or "any split"
            known = ", ".join(there) or "no shards yet"
            raise UserError(f"{config.shards} has no shards of {asked}: there are {known}")
        self.shards = {
            split: [shard for shard in self.manifest.shards if shard.split == split]
            for split in splits
        }
        places = {
            split: config.images or self.manifest.image_roots.locations.get(split)
            for split in self.shards
        }
        images = {
            split: absolute(os.path.expanduser(place)) for split, place in places.items() if place
        }
        judged, self.problems = (
            judged_relations(str(config.shards)) if config.judged else (None, [])
        )
        self.folder = ShardFolder(
            str(absolute_location(config.shards)), config.weight, images, judged
        )

    def row_groups(
        self, threshold: float, only: _Rows | None
    ) -> Generator[tuple[_Place, TrainingFilter], None, None]:
        """Return the row groups, one in memory at a time; `only`: those rows of them. Raises
        UserError: see `scan`.
        """
        wanted = {(number, file) for number, file, _ in only or ()}
        for split, entries in self.shards.items():
            has_usable = False
            paths = [location(self.folder.root) / entry.file for entry in entries]
            paths = [path for path in paths if only is None or (self.number, str(path)) in wanted]
            with closing(opened_ahead(paths)) as contents:
                for path in paths:
                    with open_shard(path, COLUMNS, next(contents)) as file:
                        if IMAGE_COLUMN not in file.schema_arrow.names:
                            run_images(self.folder.root, split, self.folder.images.get(split))
                        for group in range(file.num_row_groups):
                            place = self.number, str(path), group
                            if only is not None and not only.get(place, np.zeros(0, bool)).any():
                                continue
                            table = file.read_row_group(group, columns=list(COLUMNS))
                            rows = table if only is None else table.filter(only[place])
                            filtered = TrainingFilter(path, rows, threshold, self.folder.judged)
                            if only is not None:
                                filtered.usable_rows = np.flatnonzero(only[place])[
                                    filtered.usable_rows
                                ]
                            has_usable |= len(filtered.usable_rows) > 0
                            yield place, filtered
            if only is None and not has_usable and self.folder.judged is None:
                what = f"is without an error and has a relation with confidence >= {threshold:.4g}"
                hint = "see `sgpipe stats`, or lower data.threshold or data.precision"
                raise UserError(f"no image of split {split} of {self.config.shards} {what}; {hint}")

    def closed_labels(self, objects: Iterable[str], relations: Iterable[str]) -> DatasetClasses:
        """Return the class lists of the dataset. Raises UserError: there are none, or they lack one
        of these names.
        """
        shards = self.config.shards
        lists = self.manifest.run.get("labels")
        if not lists:
            raise UserError(
                f"{shards} has no closed class lists; train on it with data.labels=sampled"
            )
        labels = DatasetClasses(tuple(lists["objects"]), tuple(lists["relations"]))
        for kind, names, known in (
            ("object", objects, labels.objects),
            ("relation", relations, labels.relations),
        ):
            unknown = sorted(set(names) - set(known))
            if unknown:
                which = (
                    f"{kind} {unknown[0]!r} is not one of the {len(known)} classes of its dataset"
                )
                raise UserError(f"{shards}: {which}; train on it with data.labels=sampled")
        return labels


def _choose_rows(
    configs: Sequence[ShardsConfig], threshold: float, limit: int | None, limit_seed: int | None
) -> _Rows:
    """Return the rows that the limits of the folders, and then that of all of them, keep.

    A random limit shuffles all rows and keeps them up to the N-th usable one. So the rows do not
    depend on the sizes of row groups, those of a lower limit are among them, and a row is hardly
    ever replaced because others became usable.
    """
    kept: _Rows = {}
    usable: _Rows = {}

    def keep(places: Sequence[_Place], limit: int | None, seed: int | None) -> None:
        if limit is None or not places:
            return
        all_kept = np.concatenate([kept[place] for place in places])
        all_usable = np.concatenate([usable[place] for place in places]) & all_kept
        order = np.arange(len(all_usable))
        if seed is not None:  # numpy promises that a permutation of a RandomState never changes
            order = np.random.RandomState(np.random.MT19937(seed)).permutation(len(all_usable))
        last = int(np.searchsorted(all_usable[order].cumsum(), limit))
        all_kept[order[last + 1 :]] = False
        ends = np.cumsum([len(kept[place]) for place in places])
        kept.update(zip(places, np.split(all_kept, ends[:-1]), strict=True))

    for number, config in enumerate(configs):
        before = len(kept)
        found = 0
        own = config.limit or config.judged
        most, seed = (config.limit, config.limit_seed) if own else (limit, limit_seed)
        with closing(ScannedFolder(number, config).row_groups(threshold, None)) as row_groups:
            for place, filtered in row_groups:
                kept[place] = np.ones(len(filtered.ok), bool)
                usable[place] = np.isin(np.arange(len(filtered.ok)), filtered.usable_rows)
                found += len(filtered.usable_rows)
                if most and seed is None and found >= most:
                    break  # no further shard is fetched
        keep(list(kept)[before:], config.limit, config.limit_seed)
    keep([place for place in kept if not configs[place[0]].judged], limit, limit_seed)
    return kept
