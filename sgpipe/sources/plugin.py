"""A source of the user's own: annotations in a form that sgpipe does not know."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.plugins import code_identity, failures_told, load_instance
from sgpipe.records import Record
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
            for record in source.read(place, split):
                if not isinstance(record, Record):
                    raise UserError(f"source {reference} yields something else than sgpipe.Record")
                with error_row(record):
                    _check_relations(record)
                    drop_nameless(record, problems)
                yield record

    options = {"source": code_identity("source", reference)}
    return AnnotationSource(source.name, split, read, {"annotations": place}, options)


def _check_relations(record: Record) -> None:
    """Raises FieldError: a relation has an object that the record does not have."""
    objects = len(record.objects)
    for relation in record.relations:
        for index in (relation.subject, relation.object):
            if not 0 <= index < objects:
                raise FieldError(
                    f"object {index} of a relation is not among the image's"
                    f" {count(objects, 'object')}"
                )
