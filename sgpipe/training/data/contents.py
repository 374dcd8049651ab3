"""What a set of shards holds for training: small, plain, and sent to every worker.

The folders of shards that a training names: which of their splits, which labels, and where the images are.

What a user should know about the data before a training starts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from rlip_model.training.sampling import LabelVocabulary
from sgpipe.errors import UserError
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.training.recipe import DataConfig, ShardsConfig


@dataclass(frozen=True)
class Folder:
    """A run's folder, how often an epoch passes over it, and its image folder by split (absolute paths)."""

    root: str
    weight: float
    images: Mapping[str, str]


@dataclass(frozen=True)
class Chunk:
    """A row group of a shard (absolute path): `rows` of its rows are usable, the first ones, if it has more."""

    folder: int
    file: str
    group: int
    rows: int


@dataclass(frozen=True)
class Labels:
    """All class names of a dataset with closed lists."""

    objects: tuple[str, ...]
    relations: tuple[str, ...]


@dataclass(frozen=True)
class TrainSet:
    """Where the usable rows are, and what names occur.

    A row is usable if it is no error row and has a relation that counts: of at least the threshold, or without
    confidence, between objects that are not crowds.

    Args:
        threshold: as a float32, as which confidences are stored.
        objects, relations: names of objects of all but error rows, and of relations that count.
        labels: closed lists that all folders agree on, if they were asked for.
        errors, bare: rows that are not usable: error rows, and rows without a relation that counts.
    """

    folders: tuple[Folder, ...]
    chunks: tuple[Chunk, ...]
    threshold: float
    objects: LabelVocabulary
    relations: LabelVocabulary
    labels: Labels | None
    errors: int
    bare: int

    @property
    def rows(self) -> int:
        """Usable rows."""
        return sum(chunk.rows for chunk in self.chunks)


def shards_by_split(manifest: Manifest, config: ShardsConfig) -> dict[str, list[ShardEntry]]:
    """The shards of the splits that are asked for, in the order asked for.

    Raises UserError: there is no shard, or no such split.
    """
    there = sorted({shard.split for shard in manifest.shards})
    if not there:
        raise UserError(f"{config.shards} holds no shards yet; `sgpipe generate` or `sgpipe import` makes some")
    unknown = [name for name in config.splits or () if name not in there]
    if unknown:
        raise UserError(f"{config.shards} has no split {unknown[0]!r}; it has {', '.join(there)}")
    wanted = there if config.splits is None else list(dict.fromkeys(config.splits))
    return {split: [shard for shard in manifest.shards if shard.split == split] for split in wanted}


def describe(manifest: Manifest, config: ShardsConfig, splits: Iterable[str]) -> Folder:
    """The folder with the image folders of these splits, as far as they are known."""
    roots = {split: config.images or manifest.image_folders.get(split) for split in splits}
    images = {split: str(root.expanduser().absolute()) for split, root in roots.items() if root}
    return Folder(str(config.shards.expanduser().absolute()), config.weight, images)


def closed_labels(manifest: Manifest, config: ShardsConfig) -> Labels:
    """All class names of the run's dataset.

    Raises UserError: the run has no such lists.
    """
    lists = manifest.run.get("labels")
    if not lists:
        raise UserError(f"{config.shards} has no closed lists of labels; train on it with data.labels=sampled")
    return Labels(tuple(lists["objects"]), tuple(lists["relations"]))


def check_names(config: ShardsConfig, labels: Labels, objects: Iterable[str], relations: Iterable[str]) -> None:
    """Raises UserError: the folder has a name that is not among the labels."""
    for kind, names, known in (("object", objects, labels.objects), ("relation", relations, labels.relations)):
        strange = sorted(set(names) - set(known))
        if strange:
            raise UserError(
                f"{config.shards}: {kind} {strange[0]!r} is not among the {len(known)} labels of its dataset; "
                "train on it with data.labels=sampled, or import it again"
            )


def remarks(trainset: TrainSet, data: DataConfig) -> list[str]:
    """One line each: rows that are left out, fewer names than texts that were asked for."""
    return [*_left_out(trainset), *([] if trainset.labels else _few_names(trainset, data.negative_texts))]


def _left_out(trainset: TrainSet) -> list[str]:
    lines = []
    total = trainset.rows + trainset.errors + trainset.bare
    if trainset.errors:
        lines.append(f"{trainset.errors:,} of {total:,} images are error rows and left out")
    if trainset.bare:
        relation = f"relation of confidence >= {trainset.threshold:.4g}"
        lines.append(f"{trainset.bare:,} of {total:,} images have no {relation} and are left out")
    return lines


def _few_names(trainset: TrainSet, texts: int) -> list[str]:
    objects, relations = int(texts * 2 / 3), texts - int(texts * 2 / 3)
    kinds: tuple[tuple[str, LabelVocabulary, int], ...] = (
        ("objects", trainset.objects, objects),
        ("relations", trainset.relations, relations),
    )
    return [
        f"names of {kind}: only {len(names.names):,}, fewer than the {wanted:,} texts asked for: all are used"
        for kind, names, wanted in kinds
        if len(names.names) < wanted
    ]
