"""What an export reads and writes: the rows of a run, one row group at a time, and JSON files of
any size.
"""

from __future__ import annotations

import json
import math
import os
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from functools import cache, cached_property
from itertools import chain, compress
from pathlib import Path
from typing import IO, Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.calibration import Calibration, load_calibration, stored
from sgpipe.errors import ImageError, UserError, add_filename
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.locations import Location, text_sha256
from sgpipe.files.roots import FolderRoot
from sgpipe.images import read_image
from sgpipe.records import (
    IMAGE_FIELDS,
    NO_OBJECT,
    ORIGINS,
    Record,
    Relation,
    from_table,
    origins_pattern,
)
from sgpipe.storage.certificate import Certificate
from sgpipe.storage.datasets import load_manifest
from sgpipe.storage.manifest import ShardEntry
from sgpipe.storage.shards import IMAGE_COLUMN, embedded_images, open_shard

COORDINATES = {
    "pixel": "in pixels",
    "normalised": "as shares of the sides",
    "0-1000": "as thousandths of the sides",
}
# `json.dumps` with options makes one for each value.
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


@dataclass(frozen=True)
class FormatOptions:
    """Options of `sgpipe export` that only some formats have; see `Format.options`.

    Attributes:
        embed: whether to store the image files.
        images: where the images are now, if they have moved.
        images_url: what addresses of images begin with.
        coordinates, templates, seed, parquet: of instructions.
    """

    embed: bool = False
    images: ImagePlace | None = None
    images_url: str | None = None
    coordinates: str = "pixel"
    templates: Path | None = None
    seed: int | None = None
    parquet: bool = False

    def named(self) -> list[str]:
        """Return the options that differ from their defaults, as `Format.options` names them."""
        default = FormatOptions()
        names = [option.name for option in fields(self)]
        changed = [name for name in names if getattr(self, name) != getattr(default, name)]
        return [name.replace("_", "-") for name in changed]


class ExportRows:
    """The rows of a run, which of its relations to export, and where its images are.

    Attributes:
        threshold: the minimum confidence or, with a calibration, probability: the `measure`.
        options: those of the format.
        image_root: where the images of a split are. Raises UserError: this is not known, or they
            are missing.
        left_out: what an export has to leave out, by kind; the formats add to it.
        note: printed for the user: how to use the files.
    """

    def __init__(
        self,
        root: Location,
        threshold: float,
        calibration: Location | None = None,
        certificate: Certificate | None = None,
        origins: Collection[str] = ORIGINS,
        options: FormatOptions | None = None,
    ) -> None:
        """Open a run, and choose what of it is exported.

        Raises:
            UserError: the folder is not a run, or is an empty one, or the calibration is of another
                tagger.
        """
        self.options = options or FormatOptions()
        self.root = root
        self.origins = origins
        self.certificate = certificate
        self.calibration_file = calibration
        self.threshold = stored(threshold)
        self.manifest = load_manifest(root)
        self.left_out = Counter[str]()
        self.note = ""
        self.splits = list(dict.fromkeys(shard.split for shard in self.manifest.shards))
        self.totals = sum((Counter(shard.counts) for shard in self.manifest.shards), Counter[str]())
        # Finding one takes as long as all else of an image.
        self.image_root = cache(lambda split: self.manifest.image_root(split, self.options.images))
        if not self.manifest.shards:
            raise UserError(f"{root} contains no images yet")
        self.measure = "confidence"
        self.calibration: Calibration | None = None
        # Minimum confidences by predicate; None: of all.
        self.minima: dict[str | None, float] = {None: self.threshold}
        if certificate is not None:
            self.minima = {group.predicate: stored(group.threshold) for group in certificate.sets}
        if calibration is not None:
            self._calibrate(calibration, threshold)

    def _calibrate(self, file: Location, probability: float) -> None:
        """Let a minimum probability choose the relations."""
        self.measure = "probability"
        self.calibration = load_calibration(file)
        self.minima = {None: self.calibration.threshold(probability)}
        if self.census.scored:
            self.calibration.check_run(self.manifest.run, self.root)

    @property
    def identity(self) -> dict[str, Any]:
        """What an export changes of a run, for whoever imports it."""
        exported: dict[str, Any] = {
            "threshold": self.threshold,
            "relations": self.census.predicates.total(),
            "of": self.totals["relations"],
        }
        if len(self.origins) < len(ORIGINS):
            exported["origins"] = sorted(self.origins)
        if self.certificate is not None:
            exported["certificate"] = self.certificate.model_dump(
                include={"precision", "confidence", "by"}
            )
        if self.calibration_file is not None:
            exported["calibration"] = text_sha256(self.calibration_file)
        return {"exported": exported}

    @property
    def names(self) -> list[list[str]]:
        """The classes, without the missing object, and the predicates: the closed lists, and what
        else occurs.
        """
        lists = self.manifest.class_lists
        census = self.census
        classes = {name for _, name in census.categories - census.nothing}
        objects = [*lists["objects"], *sorted(classes)]
        relations = [*lists["relations"], *sorted(census.predicates)]
        return [list(dict.fromkeys(objects)), list(dict.fromkeys(relations))]

    def shards(self, split: str) -> list[ShardEntry]:
        return [shard for shard in self.manifest.shards if shard.split == split]

    def records(self, split: str, *columns: str) -> Iterator[Record]:
        """Yield the images of a split without error rows.

        Args:
            columns: of the nested ones, those that are read.
        """
        for shard in self.shards(split):
            for table in iter_groups(
                self.manifest.location_of(shard.file), (*IMAGE_FIELDS, *columns)
            ):
                yield from filter(_is_ok, from_table(table))

    def records_with_images(
        self, split: str, *columns: str
    ) -> Iterator[tuple[Record, bytes | None]]:
        """As `records`, each with its image file if these are embedded; None: it cannot be read."""
        if not self.options.embed:
            for record in self.records(split, *columns):
                yield record, None
            return
        for shard in self.shards(split):
            path = self.manifest.location_of(shard.file)
            with open_shard(path) as file:
                present = [IMAGE_COLUMN] if IMAGE_COLUMN in file.schema_arrow.names else []
            for table in iter_groups(path, (*IMAGE_FIELDS, *columns, *present)):
                records = from_table(table.drop_columns(present))
                for record, content in zip(records, embedded_images(table), strict=True):
                    if record.ok:
                        yield record, self.read_image(record, content)

    def image_folder(self, split: str, options: str = "--embed") -> Path:
        """Return the same for programs that read only folders.

        Raises:
            UserError: it is none; pass `options` instead.
        """
        root = self.image_root(split)
        if not isinstance(root, FolderRoot):
            raise UserError(f"the images are in {root.location}, not in a folder: pass {options}")
        return root.folder

    def image_path(self, record: Record) -> str | None:
        """Return the path or URI of an image; None: its name leads out of its folder, and it is
        left out.
        """
        with self.unreadable_left_out():
            return self.image_root(record.split).where(record.file_name)
        return None

    def read_image(self, record: Record, content: bytes | None = None) -> bytes | None:
        """Return the file of an image, by default that in its root; None: it cannot be read, and is
        left out.
        """
        with self.unreadable_left_out():
            return content or read_image(self.image_root(record.split), record)
        return None

    @contextmanager
    def unreadable_left_out(self) -> Iterator[None]:
        try:
            yield
        except ImageError:
            self.left_out["images that cannot be read"] += 1

    def keeps(self, predicate: str, confidence: float | None) -> bool:
        """Return whether a relation is exported: annotations are, which have no confidence; with a
        certificate by predicate, other predicates are not."""
        minimum = self.minima.get(predicate, self.minima.get(None))
        return minimum is not None and (confidence is None or confidence >= minimum)

    def renumber(self, record: Record, usable: Sequence[bool]) -> dict[int, int]:
        """Return new indices of the usable objects by their index in the record; the others are
        left out.
        """
        indices = [index for index, is_usable in enumerate(usable) if is_usable]
        self.left_out["objects that the format cannot hold"] += len(usable) - len(indices)
        return {index: new_index for new_index, index in enumerate(indices)}

    def relations(self, record: Record, indices: Mapping[int, int]) -> list[Relation]:
        """Return the relations to export, with new indices of their objects.

        Those of other objects are left out.
        """
        chosen = list(compress(record.relations, self.choose(record)))
        relations: list[Relation] = []
        for relation in chosen:
            if {relation.subject, relation.object} <= indices.keys():
                subject = indices[relation.subject]
                object_ = indices[relation.object]
                relations.append(replace(relation, subject=subject, object=object_))
        self.left_out["relations that the format cannot hold"] += len(chosen) - len(relations)
        return relations

    def choose(self, record: Record) -> list[bool]:
        """Return which relations are to be exported; the others are left out."""
        chosen: list[bool] = []
        candidates = 0
        for relation in record.relations:
            is_candidate = not set(relation.origins).isdisjoint(self.origins)
            is_confident = self.keeps(relation.predicate, relation.confidence)
            candidates += is_candidate
            chosen.append(is_candidate and is_confident)
        self.left_out["relations of other origins"] += len(chosen) - candidates
        self.left_out["relations below the threshold"] += candidates - sum(chosen)
        return chosen

    @cached_property
    def census(self) -> Census:
        """The names and ids that occur; read once."""
        census = Census()
        for shard in self.manifest.shards:
            for table in iter_groups(
                self.manifest.location_of(shard.file),
                ("image_id", "objects", "relations", "status"),
            ):
                census.add(table.filter(pc.equal(table["status"], "ok")), self.minima, self.origins)
        return census


@dataclass
class Census:
    """The names and ids that occur in a run, by how many objects or exported relations have them.

    `categories`: (id, name) of classes; `nothing`: those that stand for the missing object of a
    relation. `scored`: relations with a confidence. `numbered`: whether all image ids are integers.
    """

    categories: Counter[tuple[int, str]] = field(default_factory=Counter)
    nothing: Counter[tuple[int, str]] = field(default_factory=Counter)
    predicates: Counter[str] = field(default_factory=Counter)
    origins: Counter[str] = field(default_factory=Counter)
    scored: int = 0
    numbered: bool = True

    def add(
        self, table: pa.Table, minima: Mapping[str | None, float], origins: Collection[str]
    ) -> None:
        self._add_objects(pc.list_flatten(table["objects"].combine_chunks()))
        relations = pc.list_flatten(table["relations"].combine_chunks())
        is_of_origins = pc.match_substring_regex(
            pc.struct_field(relations, "origin"), origins_pattern(origins)
        )
        self._add_relations(relations.filter(is_of_origins), minima)
        image_ids = map(as_number, table["image_id"].to_pylist())
        self.numbered &= all(isinstance(image_id, int) for image_id in image_ids)

    def _add_objects(self, objects: pa.Array) -> None:
        names = ["category_id", "category"]
        classes = pa.table({name: pc.struct_field(objects, name) for name in names})
        for row in classes.group_by(names).aggregate([([], "count_all")]).to_pylist():
            self.categories[row["category_id"], row["category"]] += row["count_all"]
        is_nothing = pc.equal(pc.struct_field(objects, "category"), NO_OBJECT)
        for item in objects.filter(is_nothing).to_pylist():
            self.nothing[item["category_id"], item["category"]] += not any(item["bbox"])

    def _add_relations(self, relations: pa.Array, minima: Mapping[str | None, float]) -> None:
        confidences = pc.struct_field(relations, "confidence")
        predicates = pc.struct_field(relations, "predicate")
        if None in minima:
            confident = pc.greater_equal(confidences, pa.scalar(minima[None], pa.float32()))
        else:
            minimum = [minima.get(name, math.inf) for name in predicates.to_pylist()]
            lowest = pa.array(minimum, pa.float32())
            confident = pc.and_kleene(pc.greater_equal(confidences, lowest), pc.is_finite(lowest))
        self.scored += pc.sum(confident).as_py() or 0
        exported = relations.filter(pc.fill_null(confident, True))
        _add_counts(self.predicates, pc.struct_field(exported, "predicate"))
        _add_counts(self.origins, pc.struct_field(exported, "origin"))


def _is_ok(record: Record) -> bool:
    return record.ok


def _add_counts(counts: Counter[str], names: pa.Array) -> None:
    for row in pc.value_counts(names).to_pylist():
        counts[row["values"]] += row["counts"]


def iter_groups(path: Location, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Yield the row groups of a shard with these columns.

    Raises:
        UserError: as `open_shard`.
    """
    with open_shard(path, columns) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=list(columns))


def as_number(image_id: str) -> int | str:
    """Return an id as an integer if it is one; otherwise unchanged."""
    if not (image_id.isascii() and image_id.isdigit() and len(image_id) < 19):
        return image_id
    number = int(image_id)
    return number if str(number) == image_id else image_id


def plain(value: float) -> float | int:
    """Return a number as JSON files show it: 7, not 7.0."""
    return int(value) if float(value).is_integer() else value


class Members(NamedTuple):
    """A JSON object of these keys and values, which are evaluated one by one while writing."""

    pairs: Iterable[tuple[str, Any]]


@contextmanager
def new_file(path: Path) -> Iterator[IO[bytes]]:
    """Yield a new file, which is synced to disk when the block ends."""
    with add_filename(path), path.open("xb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def write_json(path: Path, value: Members | Iterator[Any]) -> None:
    """Write and sync a file: iterators as arrays, `Members` as objects, an item a line.

    Raises:
        UserError: NaN.
    """
    with new_file(path) as file:
        file.writelines(piece.encode() for piece in chain(_pieces(value), "\n"))


def _pieces(value: Any) -> Iterator[str]:
    if isinstance(value, Members):
        yield "{"
        for number, (key, inner) in enumerate(value.pairs):
            yield f"{',' if number else ''}\n{_text(key)}: "
            yield from _pieces(inner)
        yield "}"
    elif isinstance(value, Iterator):
        yield "["
        for number, item in enumerate(value):
            yield f"{',' if number else ''}\n{_text(item)}"
        yield "]"
    else:
        yield _text(value)


def _text(value: Any) -> str:
    try:
        return _ENCODER.encode(value)
    except ValueError:
        raise UserError(
            f"{str(value)[:80]} contains a number that is not finite; `sgpipe verify` says where"
        ) from None
