"""From the Parquet files of a split to detections: annotations by column, images only if nothing states their sizes."""

from __future__ import annotations

import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from itertools import repeat
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from sgpipe.errors import UserError
from sgpipe.files.parquet_images import ParquetImages, has_images, image_columns, row_name
from sgpipe.hub_config import BoxForm, HubConfig
from sgpipe.images import ImageError, open_header, upright_size
from sgpipe.records import HUB_DATASET
from sgpipe.sources.annotated import parse_id, replace_surrogates
from sgpipe.sources.detections import Detections
from sgpipe.sources.hub.boxes import choose_form, to_xywh
from sgpipe.sources.hub.columns import Columns, class_names, is_text, value_in_each, values_of
from sgpipe.sources.hub.files import EMBED, HubFiles
from sgpipe.utils.console import Reminder, count

_ROWS_PER_BATCH = 256


@dataclass(frozen=True)
class _File:
    """An open Parquet file, its name, and its columns."""

    name: str
    parquet: pq.ParquetFile
    columns: Columns

    @classmethod
    @contextmanager
    def open(cls, files: HubFiles, name: str, config: HubConfig) -> Iterator[_File]:
        """Raises UserError: it is not a Parquet file, a column is missing, or there are no images in it."""
        try:
            with pq.ParquetFile(files.open(name), pre_buffer=False) as parquet:
                columns = Columns.find(parquet.schema_arrow, config.columns, name)
                if not has_images(parquet, columns.image):
                    raise UserError(f"{name} has only the paths of its images, in {columns.image}: {EMBED}")
                yield cls(name, parquet, columns)
        except pa.ArrowException as error:
            raise UserError(f"{name} cannot be read as Parquet: {str(error).splitlines()[0]}") from None

    def batches(self, names: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """The columns that hold these; a column of columns is read whole, as Parquet's names of its parts vary."""
        columns = dict.fromkeys(name.partition(".")[0] for name in names)
        return self.parquet.iter_batches(_ROWS_PER_BATCH, columns=list(columns), use_threads=False)


def class_table(files: HubFiles, config: HubConfig) -> dict[int, str]:
    """Class names by number. Of classes that are names in the files, the numbers are those of the sorted names.

    Raises UserError: classes are numbers without names.
    """
    if config.classes is not None:
        return dict(enumerate(config.classes))
    names: set[str] = set()
    for name in (name for split in files.splits.values() for name in split):
        with _File.open(files, name, config) as file:
            stated = class_names(file.parquet.schema_arrow, files.card, file.columns.classes)
            if stated is not None:
                return dict(enumerate(map(replace_surrogates, stated)))
            for batch in file.batches([file.columns.classes]):
                values = values_of(batch, file.columns.classes)[1]
                if not is_text(values.type):
                    raise UserError(
                        f"{name}: the classes in {file.columns.classes} are numbers without names: give "
                        "--set 'source.hub.classes=[NAME, …]', in their order"
                    )
                names.update(pc.unique(values).drop_null().to_pylist())
    return dict(enumerate(sorted(replace_surrogates(name) for name in names if name.strip())))


def read_hub(
    files: HubFiles, split: str, config: HubConfig, names: dict[int, str]
) -> tuple[Detections, dict[str, Any]]:
    """The images and boxes of a split, in the order of its files, and where they come from.

    Raises UserError: a file is not readable, a column is missing, or the boxes lie in no form in their images.
    """
    reading = _Reading(Detections(HUB_DATASET, split, dict(names)), ParquetImages(files.open))
    by_number = not _have_ids(files, split, config)
    for name in files.splits[split]:
        with _File.open(files, name, config) as file:
            reading.add_file(file, by_number)
    detections = reading.detections
    if not detections.file_names:
        raise UserError(f"{files.root} has no rows in the split {split}")
    notes = _settle_boxes(detections, config.boxes, f"{config.dataset} ({split})") if detections.boxes else []
    return detections, {
        "annotations": config.dataset,
        "captions": config.columns.captions or "",
        "annotations_sha256": _digest(detections),
        **({"captions_sha256": _hash(detections.captions).hexdigest()} if config.columns.captions else {}),
        "notes": notes,
    }


def _have_ids(files: HubFiles, split: str, config: HubConfig) -> bool:
    """Whether a column has the ids of the images: one that the user names, or one in which no two are the same."""
    seen: set[Any] = set()
    rows = 0
    for name in files.splits[split]:
        with _File.open(files, name, config) as file:
            if file.columns.id is None or file.columns.surely_ids:
                return file.columns.id is not None
            for batch in file.batches([file.columns.id]):
                seen.update(map(parse_id, value_in_each(batch, file.columns.id)))
                rows += len(batch)
    return len(seen) == rows and None not in seen


@dataclass
class _Reading:
    """Detections of a split, whose boxes are still in the form of the files."""

    detections: Detections
    images: ParquetImages
    rows: int = 0
    reminder: Reminder = field(default_factory=Reminder)

    def add_file(self, file: _File, by_number: bool) -> None:
        """Add the rows of a file; `by_number`: their ids are their numbers in the split."""
        of, column = file.columns, _named_image(file)
        read = [of.boxes, of.classes, of.crowd, of.captions, of.width, of.height, None if by_number else of.id]
        at = 0
        for batch in file.batches([name for name in read if name]):
            numbers = range(self.rows, self.rows + len(batch))
            ids = numbers if by_number or of.id is None else value_in_each(batch, of.id)
            names = [row_name(file.name, row, column) for row in range(at, at + len(batch))]
            rows = np.array([self._add_image(*each) for each in zip(ids, names, _sizes(batch, of), strict=True)])
            with _naming(file.name, of):
                self._add_boxes(batch, of, rows)
            self._add_captions(batch, of, rows)
            at, self.rows = at + len(batch), self.rows + len(batch)
            self.reminder.say(f"{file.name}: {at:,} of {file.parquet.metadata.num_rows:,} rows are read")

    def _add_image(self, image_id: Any, name: str, size: tuple[Any, Any] | None) -> int:
        """The row of an image in the detections; -1: it is left out, as it has no id, or that of another one."""
        row, why = len(self.detections.file_names), ""
        if size is None:
            size, why = self._size_of(name)
        self.detections.add_image({"id": image_id, "file_name": name, "width": size[0], "height": size[1]})
        if row == len(self.detections.file_names):
            return -1
        if why:
            self.detections.errors[row] = f"source: {why}"
        return row

    def _size_of(self, name: str) -> tuple[tuple[int, int], str]:
        """Width and height that an image states itself, and why it has none."""
        try:
            with open_header(BytesIO(self.images.read_name(name)), name) as image:
                return upright_size(image), ""
        except FileNotFoundError:
            return (0, 0), f"the row has no image: {name}"
        except ImageError as error:
            return (0, 0), replace_surrogates(str(error))

    def _add_boxes(self, batch: pa.RecordBatch, of: Columns, rows: np.ndarray) -> None:
        (lengths, boxes), (classes_of, classes) = values_of(batch, of.boxes), values_of(batch, of.classes)
        crowds_of, crowds = values_of(batch, of.crowd) if of.crowd else (lengths, None)
        for i in np.flatnonzero((lengths != classes_of) | (lengths != crowds_of)):
            if rows[i] >= 0:
                others = count(classes_of[i], "class", "classes")
                if lengths[i] == classes_of[i]:
                    others = f"{count(crowds_of[i], 'value')} of {of.crowd}"
                self.detections.errors.setdefault(
                    int(rows[i]), f"source: it has {count(lengths[i], 'box', 'boxes')} and {others}"
                )
            rows[i] = -1
        kept, kept_class, kept_crowd = (np.repeat(rows, each) >= 0 for each in (lengths, classes_of, crowds_of))
        numbers, whole = _fours(boxes)
        self.detections.problems.malformed += int((~whole & kept).sum())
        chosen = kept & whole
        classes = _class_numbers(classes, self.detections.categories)[kept_class][whole[kept]]
        crowd = np.zeros(int(kept.sum()), bool) if crowds is None else _truths(crowds)[kept_crowd]
        self.detections.add_boxes(np.repeat(rows, lengths)[chosen], classes, crowd[whole[kept]], numbers[chosen])

    def _add_captions(self, batch: pa.RecordBatch, of: Columns, rows: np.ndarray) -> None:
        if of.captions is None:
            return
        lengths, texts = values_of(batch, of.captions)
        for row, text in zip(np.repeat(rows, lengths).tolist(), texts.to_pylist(), strict=True):
            if row >= 0:
                self.detections.add_text(row, text)


@contextmanager
def _naming(file: str, of: Columns) -> Iterator[None]:
    """Raises UserError: the columns of boxes and classes have other types."""
    try:
        yield
    except (pa.ArrowException, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{file}: {of.boxes} and {of.classes} are not boxes of four numbers and their classes ({reason})"
        ) from None


def _named_image(file: _File) -> str | None:
    """The column of images as names of rows state it: only if it is not the one that is read without a name."""
    return None if image_columns(file.parquet.schema_arrow) == [file.columns.image] else file.columns.image


def _sizes(batch: pa.RecordBatch, of: Columns) -> Iterator[tuple[Any, Any] | None]:
    """Width and height of each row as its columns state them; None: they state none."""
    if of.width is None or of.height is None:
        return repeat(None, len(batch))
    return zip(value_in_each(batch, of.width), value_in_each(batch, of.height), strict=True)


def _fours(boxes: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """The numbers of each box, `[boxes, 4]`, and whether it has four."""
    numbers = np.full((len(boxes), 4), np.nan)
    whole = np.asarray(pc.equal(pc.list_value_length(boxes), 4).fill_null(False), bool)
    flat = boxes.filter(pa.array(whole)).flatten().cast(pa.float64())
    numbers[whole] = flat.to_numpy(zero_copy_only=False).reshape(-1, 4)
    return numbers, whole


def _class_numbers(classes: pa.Array, names: Mapping[int, str]) -> np.ndarray:
    """The number of each class; -1, which no class has: it has none."""
    if is_text(classes.type):
        numbers = {name: number for number, name in names.items()}
        return np.array([numbers.get(replace_surrogates(name or ""), -1) for name in classes.to_pylist()], np.int64)
    return np.asarray(classes.cast(pa.int64(), safe=False).fill_null(-1)).astype(np.int64)


def _truths(values: pa.Array) -> np.ndarray:
    return np.asarray(values.cast(pa.bool_()).fill_null(False)).astype(bool)


def _settle_boxes(detections: Detections, form: BoxForm | Literal["auto"], name: str) -> list[str]:
    """Turn the boxes into those that the rest of sgpipe knows; returns what they were, in a line, if it was found out.

    Raises UserError: see `choose_form`.
    """
    boxes = np.asarray(detections.boxes).reshape(-1, 4)
    sizes = np.asarray(detections.sizes, np.float64).reshape(-1, 2)[np.asarray(detections.box_rows)]
    chosen, share = choose_form(boxes, sizes, form, name)
    detections.boxes = array("d", to_xywh(boxes, sizes, chosen).tobytes())
    if form == chosen:
        return []
    return [f"boxes are read as {chosen}: {share:.1%} lie in their images; --set source.hub.boxes=FORM reads others"]


def _digest(detections: Detections) -> str:
    """A hash of everything that decides the records of a split but its captions."""
    digest = _hash(detections.categories, list(detections.position), detections.file_names)
    categories = np.asarray(detections.box_categories, np.int64)  # as digests have been made since the first
    for values in (detections.sizes, detections.box_rows, categories, detections.box_crowds):
        digest.update(values.tobytes())
    digest.update(detections.boxes.tobytes())
    return digest.hexdigest()


def _hash(*values: Any) -> Any:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode())
