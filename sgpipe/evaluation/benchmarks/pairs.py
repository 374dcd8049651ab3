"""True and predicted pairs of boxes in HOIA form (HICO-DET, Open Images), joined by their images' file names.

Predictions by name, as `sgpipe predict --out FILE.parquet` writes them: pairs of boxes with scores again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from rlip_model.evaluation.inputs import (
    NOT_PREDICTED,
    Array,
    EvaluationError,
    EvaluationImage,
    GroundTruth,
    PredictedPairs,
    check_range,
    table,
)
from sgpipe.errors import UserError
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, FieldError, list_field, text_field
from sgpipe.sources.hoi import HoiaSchema
from sgpipe.utils.json_stream import JsonStream


@dataclass
class PairFiles:
    """An annotation file and one of predictions, read once.

    numbering: of the category_ids in the predictions; key: what their list of relations is called.
    notes: filled by reading.
    """

    source: AnnotationSource
    predictions: Path
    numbering: HoiaSchema
    key: str
    notes: list[str] = field(default_factory=list)

    def images(self) -> Iterator[EvaluationImage]:
        """Every annotated image, in the order of the annotations, with what was predicted for it.

        Raises:
            UserError: a file is missing or wrong, or predictions are of images that are not annotated.
        """
        truths = read_truths(self.source)
        found = self._read_predictions(truths)
        if missing := len(truths) - len(found):
            self.notes.append(f"{missing:,} of {len(truths):,} annotated images have no predictions: all missed")
        nothing = Prediction(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros((0, 3), dtype=int), np.zeros(0))
        for name, truth in truths.items():
            yield EvaluationImage(name, truth, found.get(name, nothing).pairs(len(self.numbering.relations)))

    def _read_predictions(self, truths: Mapping[str, GroundTruth]) -> dict[str, Prediction]:
        found: dict[str, Prediction] = {}
        repeated = 0
        for name, prediction in self._predictions():
            if name not in truths:
                raise UserError(
                    f"{self.predictions}: image {name!r} is not in {self.source.files['annotations']}; "
                    "give the annotations of the predicted images"
                )
            repeated += name in found
            found.setdefault(name, prediction)
        if not found:
            raise UserError(f"{self.predictions} holds no predictions")
        if repeated:
            self.notes.append(f"{repeated:,} predictions are of images that had some: only the first of each counts")
        return found

    def _predictions(self) -> Iterator[tuple[str, Prediction]]:
        """Image by image, with its file name."""
        if self.predictions.suffix == ".parquet":
            yield from read_prediction_table(self.predictions, self.numbering.classes)
            return
        reader = _PredictionReader(self.predictions, self.numbering, self.key)
        for _, item in JsonStream(self.predictions):
            yield reader.read(item)


@dataclass(frozen=True)
class _PredictionReader:
    path: Path
    numbering: HoiaSchema
    key: str

    def read(self, item: Any) -> tuple[str, Prediction]:
        """Raises UserError."""
        name = "?"
        try:
            name = text_field(item, "file_name")
            return name, self._prediction(name, list_field(item, "predictions"), list_field(item, self.key))
        except (FieldError, EvaluationError) as error:
            raise UserError(f"{self.path}: image {name!r}: {error}") from None
        except (KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{self.path}: image {name!r}: expected boxes with 'bbox' and 'category_id' and relations with "
                f"'subject_id', 'object_id', 'category_id' and 'score', but {error!r}"
            ) from None

    def _prediction(self, name: str, boxes: Sequence[Any], relations: Sequence[Any]) -> Prediction:
        objects = {number: place for place, number in enumerate(self.numbering.objects)}
        predicates = {number: place for place, number in enumerate(self.numbering.relations)}
        labels = [_place(objects, box["category_id"], "an object") for box in boxes]
        triplets = [
            (item["subject_id"], item["object_id"], _place(predicates, item["category_id"], "a relation"))
            for item in relations
        ]
        ends = table(triplets, (-1, 3), int)
        check_range("its predictions", "a box of a relation", ends[:, :2], 0, len(boxes))
        scores = table([item["score"] for item in relations], (-1,), np.float32)
        if not np.isfinite(scores).all():
            raise FieldError("a 'score' is NaN or infinite; leave the relation out or mend the model's output")
        corners = table([box["bbox"] for box in boxes], (-1, 4), np.float32)
        return Prediction(corners, table(labels, (-1,), int), ends, scores)


def _place(places: Mapping[int, int], category: Any, what: str) -> int:
    if category not in places:
        raise FieldError(f"category_id {category!r} of {what} is none of the dataset's")
    return places[category]


def read_truths(source: AnnotationSource) -> dict[str, GroundTruth]:
    """The annotations by the images' file names.

    Raises:
        UserError: an image cannot be used, is there twice, or there is none.
    """
    assert source.classes is not None
    objects = {name: place for place, name in enumerate(source.classes.objects)}
    predicates = {name: place for place, name in enumerate(source.classes.relations)}
    path, problems = source.files["annotations"], Counter[str]()
    truths: dict[str, GroundTruth] = {}
    for record in source.read(problems):
        if not record.ok:
            raise UserError(f"{path}: image {record.file_name!r}: {record.error}")
        if record.file_name in truths:
            raise UserError(f"{path}: image {record.file_name!r} is there twice")
        corners = [(x, y, x + w, y + h) for x, y, w, h in (box.bbox for box in record.objects)]
        labels = [objects[box.category] for box in record.objects]
        triplets = [(item.subject, item.object, predicates[item.predicate]) for item in record.relations]
        truths[record.file_name] = GroundTruth.from_lists(corners, labels, triplets)
    if problems:
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in problems.items())
        raise UserError(f"{path} cannot be used for evaluation: {counts}")
    if not truths:
        raise UserError(f"{path} holds no images")
    return truths


_ROWS_AT_ONCE = 512
_BOX = 4  # numbers of a box


@dataclass(frozen=True)
class Prediction:
    """What was predicted for one image: boxes and labels `[boxes]`, and triplets `[triplets, 3]` with scores."""

    boxes: Array
    labels: Array
    triplets: Array
    scores: Array

    def pairs(self, num_predicates: int) -> PredictedPairs:
        """With a row for each pair of boxes. A triplet that is there twice counts once, with its best score."""
        ends, number = np.unique(self.triplets[:, :2], axis=0, return_inverse=True)
        scores = np.full((len(ends), num_predicates), NOT_PREDICTED, dtype=np.float32)
        np.maximum.at(scores, (number.reshape(-1), self.triplets[:, 2]), self.scores)
        subjects, objects = ends.T
        return PredictedPairs(
            self.boxes[subjects], self.boxes[objects], self.labels[subjects], self.labels[objects], scores
        )


def read_prediction_table(path: Path, classes: DatasetClasses) -> Iterator[tuple[str, Prediction]]:
    """Each image's file name and what was predicted for it; those whose images could not be read are left out.

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


def _images(path: Path, batch: pa.RecordBatch, classes: DatasetClasses) -> Iterator[tuple[str, Prediction]]:
    names = batch.column("file_name").to_pylist()
    lists = batch.column("triplets")
    counts = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    columns = _columns(path, pc.list_flatten(lists), np.repeat(np.array(names, dtype=object), counts), classes)
    starts = np.cumsum(counts) - counts
    for name, start, count, there in zip(names, starts, counts, lists.is_valid().to_pylist(), strict=True):
        if there:
            yield name, _prediction(path, name, [column[start : start + count] for column in columns])


def _columns(path: Path, triplets: pa.StructArray, images: Array, classes: DatasetClasses) -> list[Array]:
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
