"""Class lists and class numbers of benchmarks and datasets, and shards read as a benchmark's annotations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pyarrow.compute as pc

from sgpipe.errors import UserError
from sgpipe.records import Record, from_table
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts
from sgpipe.sources.hoi import HICO, OPEN_IMAGES, HoiaSchema
from sgpipe.sources.hoi import read_classes as read_classes
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_tables, read_file

PERSON = "person"


def data_classes(root: Path) -> DatasetClasses:
    """All classes of a run: its closed lists, or else the names that occur, the most frequent first.

    Raises UserError: the folder is not a run, or has neither.
    """
    if lists := Manifest.load(root).run.get("labels"):
        return DatasetClasses(tuple(lists["objects"]), tuple(lists["relations"]))
    objects, relations = Counter[str](), Counter[str]()
    for table in iter_tables(root, ("objects.list.element.category", "relations.list.element.predicate")):
        for names, column, key in ((objects, "objects", "category"), (relations, "relations", "predicate")):
            values = pc.struct_field(pc.list_flatten(table[column]), key)
            names.update({item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()})
    if not objects or not relations:
        raise UserError(f"{root} has no objects or no relations from which to list the classes; give --classes")
    return DatasetClasses(_most_frequent_first(objects), _most_frequent_first(relations))


def _most_frequent_first(names: Counter[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (-names[name], name)))


def hoia_schema_of(classes: DatasetClasses) -> HoiaSchema:
    """The official numbers of HICO-DET's and Open Images' classes; other classes count from 1."""
    for official in (HICO, OPEN_IMAGES):
        if official.classes == classes:
            return official
    return HoiaSchema(HICO.key, dict(enumerate(classes.objects, 1)), dict(enumerate(classes.relations, 1)))


_COLUMNS = ("image_id", "dataset", "split", "file_name", "width", "height", "objects", "relations", "status", "error")


def shard_annotations(
    root: Path, classes: DatasetClasses, split: str | None = None, *, persons_only: bool
) -> AnnotationSource:
    """The images of a run without error rows, to be read by `read_annotations`.

    Args:
        persons_only: leave out relations whose subject is not a person, which HICO-DET does not have.

    Raises:
        UserError, also while reading: the folder is not a run, is damaged, or has names that are not classes.
    """
    Manifest.load(root)
    read = partial(_records, root, classes, split, persons_only)
    return AnnotationSource("shards", split or "all", read, {"annotations": root}, classes=classes)


def _records(
    root: Path, classes: DatasetClasses, split: str | None, persons_only: bool, problems: ProblemCounts
) -> Iterator[Record]:
    known = {"object": set(classes.objects), "relation": set(classes.relations)}
    for shard in Manifest.load(root).shards:
        if split not in (None, shard.split):
            continue
        for record in from_table(read_file(root / shard.file, _COLUMNS)):
            if not record.ok:
                continue
            if persons_only:
                persons = [box.category == PERSON for box in record.objects]
                record = replace(record, relations=[item for item in record.relations if persons[item.subject]])
            names = {
                "object": {box.category for box in record.objects},
                "relation": {item.predicate for item in record.relations},
            }
            for kind, own in names.items():
                if unknown := sorted(own - known[kind]):
                    raise UserError(
                        f"{root}: image {record.image_id}: {kind} {unknown[0]!r} is not a listed class; "
                        "list all classes in --classes"
                    )
            yield record
