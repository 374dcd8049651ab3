"""Predictions by name, as `sgpipe predict --out FILE.parquet` writes them: pairs of boxes with scores again."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlip_model.evaluation.inputs import NOT_FOUND, Array, Pairs
from sgpipe.errors import UserError
from sgpipe.sources.annotated import ClassLists

_ROWS_AT_ONCE = 512
_BOX = 4  # numbers of a box


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one image: boxes and labels `[boxes]`, and triplets `[triplets, 3]` with scores."""

    boxes: Array
    labels: Array
    triplets: Array
    scores: Array

    def pairs(self, num_predicates: int) -> Pairs:
        """With a row for each pair of boxes. A triplet that is there twice counts once, with its best score."""
        ends, number = np.unique(self.triplets[:, :2], axis=0, return_inverse=True)
        scores = np.full((len(ends), num_predicates), NOT_FOUND, dtype=np.float32)
        np.maximum.at(scores, (number.reshape(-1), self.triplets[:, 2]), self.scores)
        subjects, objects = ends.T
        return Pairs(self.boxes[subjects], self.boxes[objects], self.labels[subjects], self.labels[objects], scores)


def read_prediction_table(path: Path, classes: ClassLists) -> Iterator[tuple[str, Prediction]]:
    """Each image's file name and what was predicted for it; those whose pictures could not be read are left out.

    Raises UserError: the file is missing, damaged or another; something in it has no number, or an unknown name.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["file_name", "triplets"]):
                yield from _images(path, batch, classes)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}") from None
    except (pa.ArrowException, KeyError) as error:
        raise UserError(
            f"{path} is not a file of `sgpipe predict --out FILE.parquet` ({str(error).splitlines()[0]})"
        ) from None


def _images(path: Path, batch: pa.RecordBatch, classes: ClassLists) -> Iterator[tuple[str, Prediction]]:
    names = batch.column("file_name").to_pylist()
    lists = batch.column("triplets")
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    columns = _columns(path, pc.list_flatten(lists), np.repeat(np.array(names, dtype=object), counts), classes)
    starts = np.cumsum(counts) - counts
    for name, start, count, there in zip(names, starts, counts, lists.is_valid().to_pylist(), strict=True):
        if there:
            yield name, _prediction(path, name, [column[start : start + count] for column in columns])


def _columns(path: Path, triplets: pa.StructArray, images: Array, classes: ClassLists) -> list[Array]:
    """Of all triplets: pair, score, numbers of subject, predicate and object, and both boxes."""
    arrays = {name: triplets.field(name) for name in (field.name for field in triplets.type)}
    for name, array in arrays.items():
        if array.null_count:
            raise UserError(f"{path}: image {images[array.is_null().index(True).as_py()]!r}: a triplet has no {name!r}")
    known = {"subject": classes.objects, "predicate": classes.relations, "object": classes.objects}
    numbers = [_numbers(path, arrays[name], images, names) for name, names in known.items()]
    boxes = [_boxes(path, arrays[name], images) for name in ("subject_box", "object_box")]
    return [arrays["pair"].to_numpy(), arrays["score"].to_numpy(), *numbers, *boxes]


def _numbers(path: Path, names: pa.Array, images: Array, known: Sequence[str]) -> Array:
    numbers = pc.index_in(names, pa.array(known, names.type))
    if numbers.null_count:
        place = numbers.is_null().index(True).as_py()
        raise UserError(f"{path}: image {images[place]!r}: {names[place].as_py()!r} is none of the dataset's classes")
    return np.asarray(numbers.to_numpy(), dtype=int)


def _boxes(path: Path, boxes: pa.ListArray, images: Array) -> Array:
    corners = pc.list_flatten(boxes)
    wrong = pc.list_value_length(boxes).to_numpy() != _BOX
    wrong[pc.list_parent_indices(boxes).to_numpy()[corners.is_null().to_numpy(zero_copy_only=False)]] = True
    if wrong.any():
        raise UserError(f"{path}: image {images[wrong.argmax()]!r}: a box is not four numbers")
    return np.asarray(corners.to_numpy(), dtype=np.float32).reshape(-1, _BOX)


def _prediction(path: Path, image: str, columns: list[Array]) -> Prediction:
    pair, scores, subjects, predicates, objects, subject_boxes, object_boxes = columns
    if not np.isfinite(scores).all():
        raise UserError(f"{path}: image {image!r}: a score is NaN or infinite")
    kept, first, place = np.unique(pair, return_index=True, return_inverse=True)
    ends = np.column_stack((subjects, objects, subject_boxes, object_boxes))
    differs = (ends != ends[first][place]).any(1)
    if differs.any():
        raise UserError(f"{path}: image {image!r}: pair {pair[differs][0]} has more than one subject or object")
    return Prediction(
        np.concatenate((subject_boxes[first], object_boxes[first])),
        np.concatenate((subjects[first], objects[first])),
        np.column_stack((place, place + len(kept), predicates)),
        scores,
    )
