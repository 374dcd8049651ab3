"""What a set of shards holds for training: small, plain, and sent to every worker."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rlip_model.training.sampling import Vocabulary


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
    objects: Vocabulary
    relations: Vocabulary
    labels: Labels | None
    errors: int
    bare: int

    @property
    def rows(self) -> int:
        """Usable rows."""
        return sum(chunk.rows for chunk in self.chunks)
