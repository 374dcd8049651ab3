"""What the shards of a training contain: small plain data, which is sent to every worker."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.calibration import Thresholds
from sgpipe.errors import UserError
from sgpipe.files.image_roots import absolute
from sgpipe.files.remote import absolute_run
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.training.recipe import DataConfig, ShardsConfig
from sgpipe.utils.console import count


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
class ClosedLabels:
    """The object classes and predicates of a dataset with closed class lists."""

    objects: tuple[str, ...]
    relations: tuple[str, ...]


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
    threshold: Thresholds
    objects: LabelVocabulary
    relations: LabelVocabulary
    closed_labels: ClosedLabels | None
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
    return ShardFolder(absolute_run(config.shards), config.weight, images)


def read_closed_labels(manifest: Manifest, config: ShardsConfig) -> ClosedLabels:
    """The closed class lists of the run's dataset. Raises UserError: the run has none."""
    lists = manifest.run.get("labels")
    if not lists:
        raise UserError(f"{config.shards} has no closed class lists; train on it with data.labels=sampled")
    return ClosedLabels(tuple(lists["objects"]), tuple(lists["relations"]))


def check_closed_labels(
    config: ShardsConfig, labels: ClosedLabels, objects: Iterable[str], relations: Iterable[str]
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
    sampled = training_set.closed_labels is None and not miniature
    return [*_left_out(training_set), *(_small_vocabularies(training_set, data.negative_texts) if sampled else [])]


def _left_out(training_set: TrainingSet) -> list[str]:
    errors, without = training_set.error_rows, training_set.rows_without_relations
    total = training_set.rows + errors + without
    lines = []
    if errors:
        lines.append(
            f"{errors:,} of {count(total, 'row')} {'is an error row' if errors == 1 else 'are error rows'}: left out"
        )
    if without:
        relation = f"relation with {training_set.threshold}"
        lines.append(
            f"{without:,} of {count(total, 'row')} {'has' if without == 1 else 'have'} no {relation}: left out"
        )
    return lines


def _small_vocabularies(training_set: TrainingSet, texts: int) -> list[str]:
    """Of a list of texts, two thirds are object classes; see `data.negative_texts`."""
    objects, predicates = len(training_set.objects.names), len(training_set.relations.names)
    wanted = int(texts * 2 / 3)
    few = [
        *([count(objects, "object class", "object classes")] if objects < wanted else []),
        *([count(predicates, "predicate")] if predicates < texts - wanted else []),
    ]
    if not few:
        return []
    return [f"the data has only {' and '.join(few)}, so every step compares its images with all of them"]
