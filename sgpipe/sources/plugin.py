"""What a source is, of sgpipe or of the user's own: a form of annotations."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.locations import Location
from sgpipe.plugins import code_identity, failures_told, load_instance
from sgpipe.records import Record, type_fault
from sgpipe.sources.annotated import AnnotationSource, ProblemCounts, drop_nameless, error_row
from sgpipe.sources.fields import FieldError
from sgpipe.utils.console import count

Options: TypeAlias = Mapping[str, object]

_PLACES = ("annotations", "split", "images")  # parameters of `open` that are not options


def _no_records(annotations: Path, split: str) -> Iterable[Record]:
    return ()


@dataclass(frozen=True)
class Source:
    """A form of annotations, for `sgpipe import package.module:SOURCE`.

    Further parameters of `read` and `open` are options of the command.

    Args:
        name: of the form, which the README of an import states.
        read: gets the file or folder of `--annotations` and the name of the split, and yields a
            `Record` for each image, in an order that is always the same. A width and height of 0
            are read from the image. `record.fail("import", "why")` makes an error row.
        open: in place of `read`, for sources that have classes or files of their own, or count what
            they drop: gets `annotations`, `split` and, if it has such a parameter, `images`, where
            the images are, and returns an `AnnotationSource`.
        is_unsplit: without --split, where no name tells it, the images are of the split "all".
        has_own_splits: these are not those of the folders of its images.
        states_split: the annotations state the split of each image, unless there is a --split.
    """

    name: str
    read: Callable[..., Iterable[Record]] = _no_records
    open: Callable[..., AnnotationSource] | None = None
    is_unsplit: bool = True
    has_own_splits: bool = False
    states_split: bool = False

    def __post_init__(self) -> None:
        if self.open is None and self.read is _no_records:
            raise UserError(f"source {self.name}: expected `read` or `open`")

    @property
    def options(self) -> list[inspect.Parameter]:
        """The parameters that are options of the command."""
        code = self.open or self.read
        parameters = list(inspect.signature(code, eval_str=True).parameters.values())
        if self.open is None:
            return parameters[2:]
        return [item for item in parameters if item.name not in _PLACES]

    def opened(
        self, annotations: Location, split: str | None, images: ImagePlace, options: Options
    ) -> AnnotationSource:
        """Return what it reads. Raises UserError: the annotations cannot be used."""
        if self.open is None:
            return self._opened_records(annotations, str(split), options)
        places = {"annotations": annotations, "split": split, "images": images}
        wanted = inspect.signature(self.open).parameters
        places = {name: place for name, place in places.items() if name in wanted}
        return self.open(**places, **options)

    def _opened_records(
        self, annotations: Location, split: str, options: Options
    ) -> AnnotationSource:
        files = {"annotations": annotations}
        values = dict(options)
        for name, value in options.items():
            if isinstance(value, Path):
                files[name] = value
                del values[name]

        def read(problems: ProblemCounts) -> Iterable[Record]:
            return self.read(annotations, split, **options)

        return AnnotationSource(self.name, split, read, files, values)


def plugin_source(
    reference: str, annotations: Location, split: str, images: ImagePlace, options: Options
) -> AnnotationSource:
    """Return what a source of the user's own reads.

    Raises:
        UserError: there is no such source, or the annotations are in a store.
    """
    source = load_instance("source", reference, Source)
    if not isinstance(annotations, Path):
        raise UserError(f"--annotations {annotations}: {reference} reads files of this machine")
    with failures_told("source", reference):
        opened: object = source.opened(annotations, split, images, options)
    if not isinstance(opened, AnnotationSource):
        raise UserError(
            f"source {reference} returns {reprlib.repr(opened)}: open must return a"
            " sgpipe.AnnotationSource"
        )
    return _checked_source(opened, reference)


def _checked_source(source: AnnotationSource, reference: str) -> AnnotationSource:
    """Return a source of the user's own whose records are checked, with its code as an option."""

    def read(problems: ProblemCounts) -> Iterator[Record]:
        with failures_told("source", reference):
            records: object = source.read(problems)
            if not isinstance(records, Iterable):
                raise UserError(
                    f"source {reference} returns {records!r}: read must yield a sgpipe.Record for"
                    " each image"
                )
            for record in records:
                yield _checked(record, reference, source.split, problems)

    code = {"source": code_identity("source", reference)}
    return replace(source, read=read, options={**source.options, **code})


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
