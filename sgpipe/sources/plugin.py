"""A source of the user's own: annotations in a form that sgpipe does not know."""

from __future__ import annotations

import reprlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.plugins import code_identity, failures_told, load_instance
from sgpipe.records import Record, type_fault
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, drop_nameless, error_row
from sgpipe.sources.fields import FieldError
from sgpipe.utils.console import count


@dataclass(frozen=True)
class Source:
    """A form of annotations, for `sgpipe import package.module:SOURCE`.

    Args:
        name: of the form, which the README of an import states.
        read: gets the file or folder of `--annotations` and the name of the split, and yields a
            `Record` for each image, in an order that is always the same. A width and height of 0
            are read from the image. `record.fail("import", "why")` makes an error row.
    """

    name: str
    read: Callable[[Path, str], Iterable[Record]]


def plugin_source(reference: str, annotations: Location, split: str) -> AnnotationSource:
    """Return what a source of the user's own reads.

    Raises:
        UserError: there is no such source, or the annotations are in a store.
    """
    source = load_instance("source", reference, Source)
    if not isinstance(annotations, Path):
        raise UserError(f"--annotations {annotations}: {reference} reads files of this machine")
    place = annotations

    def read(problems: ProblemCounts) -> Iterator[Record]:
        with failures_told("source", reference):
            records: object = source.read(place, split)
            if not isinstance(records, Iterable):
                raise UserError(
                    f"source {reference} returns {records!r}: read must yield a sgpipe.Record for"
                    " each image"
                )
            for record in records:
                yield _checked(record, reference, split, problems)

    options = {"source": code_identity("source", reference)}
    return AnnotationSource(source.name, split, read, {"annotations": place}, options)


def _checked(item: object, reference: str, split: str, problems: ProblemCounts) -> Record:
    """Return what a source yields, without names that are blank.

    Raises:
        UserError: it is not a record of the split, or a value is not of its type.
    """
    if not isinstance(item, Record):
        raise UserError(
            f"source {reference} yields {reprlib.repr(item)}: expected a sgpipe.Record for each"
            " image"
        )
    fault = type_fault(item)
    if fault is None and item.split != split:
        fault = f"split is {item.split!r}, expected {split!r}, which read gets"
    if fault is not None:
        raise UserError(f"source {reference}: image {item.image_id!r}: {fault}")
    with error_row(item):
        _check_relations(item)
        drop_nameless(item, problems)
    return item


def _check_relations(record: Record) -> None:
    """Check the relations of a record that code of others made.

    Raises:
        FieldError: a relation has an object that the record does not have, or no possible
            confidence.
    """
    objects = len(record.objects)
    for relation in record.relations:
        for index in (relation.subject, relation.object):
            if not 0 <= index < objects:
                raise FieldError(
                    f"object {index} of a relation is not among the image's"
                    f" {count(objects, 'object')}"
                )
        if relation.confidence is not None and not 0 <= relation.confidence <= 1:
            raise FieldError(f"confidence {relation.confidence} of a relation: expected 0 to 1")
