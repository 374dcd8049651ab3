"""Shards as the annotations of a benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.evaluation.classes import PERSON
from sgpipe.records import Record, from_table
from sgpipe.shards.manifest import Manifest
from sgpipe.shards.read import read_file
from sgpipe.sources.annotated import AnnotationSource, ClassLists, ProblemCounts

_COLUMNS = ("image_id", "dataset", "split", "file_name", "width", "height", "objects", "relations", "status", "error")


def shard_truth(root: Path, classes: ClassLists, split: str | None = None, *, persons_only: bool) -> AnnotationSource:
    """The images of shards that are no error rows, to be read by `read_truths`.

    Args:
        persons_only: leave out relations whose subject is no person, as HICO-DET has none.

    Raises:
        UserError, also while it is read: the folder is no run, is damaged, or has names that are no classes.
    """
    Manifest.load(root)
    read = partial(_records, root, classes, split, persons_only)
    return AnnotationSource("shards", split or "all", read, {"annotations": root}, classes=classes)


def _records(
    root: Path, classes: ClassLists, split: str | None, persons_only: bool, problems: ProblemCounts
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
                if strange := sorted(own - known[kind]):
                    raise UserError(
                        f"{root}: image {record.image_id}: {kind} {strange[0]!r} is none of the {len(known[kind])} "
                        "classes; give others by --classes"
                    )
            yield record
