"""What an export is made of: the rows of a run, one row group in memory at a time.

Writing JSON files that are too large for memory, item by item.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from sgpipe.errors import UserError
from sgpipe.records import SCHEMA, Record, Relation, from_table
from sgpipe.storage.manifest import Manifest, ShardEntry
from sgpipe.storage.shards import open_shard

_IMAGE = ("image_id", "dataset", "split", "file_name", "width", "height", "status")


class Labels:
    """A run, and the least confidence of the relations that are wanted of it.

    `left_out` counts what an export has to leave out, by what it is; the forms add to it.
    """

    def __init__(self, root: Path, threshold: float) -> None:
        """Raises UserError: it is no run, or an empty one."""
        self.root = root
        self.threshold = float(np.float32(threshold))  # as confidences are stored: 0.7 is not below 0.7
        self.manifest = Manifest.load(root)
        self.left_out: Counter[str] = Counter()
        if not self.manifest.shards:
            raise UserError(f"{root} holds no images yet")

    @property
    def splits(self) -> list[str]:
        return list(dict.fromkeys(shard.split for shard in self.manifest.shards))

    def shards(self, split: str) -> list[ShardEntry]:
        return [shard for shard in self.manifest.shards if shard.split == split]

    def records(self, split: str, *columns: str) -> Iterator[Record]:
        """The images of a split that are no error rows; of what is nested, only these columns are filled."""
        for shard in self.shards(split):
            for table in iter_groups(self.root / shard.file, (*_IMAGE, *columns)):
                yield from (record for record in from_table(table) if record.ok)

    def wants(self, confidence: float | None) -> bool:
        """What people annotated has no confidence, and is always wanted."""
        return confidence is None or confidence >= self.threshold

    def places(self, record: Record, usable: Sequence[bool]) -> dict[int, int]:
        """The place of each usable object among them, by its index in the record; the others are left out."""
        kept = [index for index, good in enumerate(usable) if good]
        self.left_out["objects that the form cannot hold"] += len(usable) - len(kept)
        return {index: place for place, index in enumerate(kept)}

    def relations(self, record: Record, places: dict[int, int]) -> list[Relation]:
        """The wanted relations between objects that have a place, which they mean by it; the others are left out."""
        wanted = [relation for relation in record.relations if self.wants(relation.confidence)]
        kept = [
            Relation(places[relation.subject], places[relation.object], relation.predicate, relation.confidence)
            for relation in wanted
            if relation.subject in places and relation.object in places
        ]
        self.left_out["relations below the threshold"] += len(record.relations) - len(wanted)
        self.left_out["relations that the form cannot hold"] += len(wanted) - len(kept)
        return kept

    @cached_property
    def census(self) -> Census:
        """Which names and ids there are; read once."""
        census = Census()
        for shard in self.manifest.shards:
            for table in iter_groups(self.root / shard.file, ("image_id", "objects", "relations", "status")):
                census.add(table.filter(pc.equal(table["status"], "ok")), self.threshold)
        return census


@dataclass
class Census:
    """Names and ids of a run.

    Attributes:
        categories: (id, name), by how many objects have them.
        predicates: of the wanted relations, by how many have them.
        numbered: whether every image id is a whole number.
    """

    categories: Counter[tuple[int, str]] = field(default_factory=Counter)
    predicates: Counter[str] = field(default_factory=Counter)
    numbered: bool = True

    def add(self, table: pa.Table, threshold: float) -> None:
        objects, relations = (pc.list_flatten(table[name].combine_chunks()) for name in ("objects", "relations"))
        classes = pa.table({name: pc.struct_field(objects, name) for name in ("category_id", "category")})
        for row in classes.group_by(["category_id", "category"]).aggregate([([], "count_all")]).to_pylist():
            self.categories[row["category_id"], row["category"]] += row["count_all"]
        certain = pc.fill_null(pc.struct_field(relations, "confidence"), 1.0)
        wanted = pc.struct_field(relations, "predicate").filter(pc.greater_equal(certain, threshold))
        for row in pc.value_counts(wanted).to_pylist():
            self.predicates[row["values"]] += row["counts"]
        self.numbered &= all(isinstance(as_number(image_id), int) for image_id in table["image_id"].to_pylist())


def iter_groups(path: Path, columns: Iterable[str] = ()) -> Iterator[pa.Table]:
    """The row groups of a shard, with these columns or all. Raises UserError: as `open_shard`."""
    wanted = list(columns)
    with open_shard(path, wanted or SCHEMA.names) as file:
        for group in range(file.num_row_groups):
            yield file.read_row_group(group, columns=wanted or None)


def as_number(image_id: str) -> int | str:
    """The whole number that an id is written as; any other id as it is."""
    number = int(image_id) if image_id.isascii() and image_id.isdigit() and len(image_id) < 19 else image_id
    return number if str(number) == image_id else image_id


def plain(value: float) -> float | int:
    """A number as files have it: 7, not 7.0."""
    return int(value) if float(value).is_integer() else value


class Members(NamedTuple):
    """An object of these keys and values, which are asked for when their turn comes."""

    pairs: Iterable[tuple[str, Any]]


def write_json(path: Path, value: Members | Iterator[Any]) -> None:
    """Write a new file and sync it to the disk. Iterators become arrays and `Members` objects, one item a line.

    Raises UserError: a number is not finite.
    """
    with path.open("x", encoding="utf-8") as file:
        _write(file, value)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def _write(file: IO[str], value: Any) -> None:
    if isinstance(value, Members):
        file.write("{")
        for number, (key, inner) in enumerate(value.pairs):
            file.write(f"{',' if number else ''}\n{_text(key)}: ")
            _write(file, inner)
        file.write("}")
    elif isinstance(value, Iterator):
        file.write("[")
        for number, item in enumerate(value):
            file.write(f"{',' if number else ''}\n{_text(item)}")
        file.write("]")
    else:
        file.write(_text(value))


def _text(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False)
    except ValueError:
        raise UserError(f"{str(value)[:80]} holds a number that is not finite; `sgpipe verify` says where") from None
