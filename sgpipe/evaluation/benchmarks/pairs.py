"""Annotated and predicted pairs of boxes, joined by the file names of their images; and class lists.

Annotations and JSON predictions are in HOIA format (HICO-DET, Open Images); Parquet predictions are those of
`sgpipe predict --out FILE.parquet`. Shards can be read as annotations, too.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
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
    ImageGroundTruth,
    PredictedPairs,
    check_range,
    table,
)
from sgpipe.errors import UserError
from sgpipe.evaluation.result import ScoredImages
from sgpipe.files.json_stream import JsonStream
from sgpipe.inference.rows import PERSON
from sgpipe.inference.writers import CLASSES
from sgpipe.records import Record, from_table
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, FieldError, ProblemCounts, list_field, text_field
from sgpipe.sources.hoi import HICO, OPEN_IMAGES, HoiaSchema
from sgpipe.sources.hoi import read_classes as read_classes
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_tables, read_file
from sgpipe.utils.console import count

OTHER_CLASS = (
    "is not a class of the dataset; predict with its classes: --classes FILE, or shards of its `sgpipe import`"
)


def read_pairs(
    source: AnnotationSource, predictions: Path, schema: HoiaSchema, key: str, found: ScoredImages
) -> Iterator[EvaluationImage]:
    """All annotated images in the order of the annotations, with the predictions of a file.

    Args:
        schema: the classes, and the category ids of predictions that do not list their own. key: of their relations.
        found: filled with counts and notes.

    Raises UserError: a file is missing or invalid, or a predicted image is not annotated.
    """
    annotated = read_annotations(source)
    if predictions.suffix == ".parquet":
        read = read_prediction_table(predictions, schema.classes)
    else:
        read = _read_prediction_list(predictions, schema, key, found)
    predicted: dict[str, Prediction] = {}
    repeated = 0
    for name, prediction in read:
        if name not in annotated:
            raise UserError(
                f"{predictions}: image {name!r} is not in {source.files['annotations']}; "
                "pass the annotation file of the predicted images"
            )
        repeated += name in predicted
        predicted.setdefault(name, prediction)
    if not predicted:
        raise UserError(f"{predictions} contains no predictions")
    if repeated:
        found.notes.append(f"{count(repeated, 'prediction')} of an image that already had one: only the first counts")
    found.miss(annotated, predicted)
    for prediction in predicted.values():
        found.add(prediction.scores)
    for name, ground_truth in annotated.items():
        prediction = predicted.get(name) or Prediction.nothing()
        yield EvaluationImage(name, ground_truth, prediction.pairs(len(schema.relations)))


def _read_prediction_list(
    path: Path, schema: HoiaSchema, key: str, found: ScoredImages
) -> Iterator[tuple[str, Prediction]]:
    """The file name and prediction of each image of a JSON list."""
    numbers, has_own_list = _class_indices(schema, schema.classes), False
    for _, item in JsonStream(path):
        try:
            name = text_field(item, "file_name")
        except FieldError as error:
            raise UserError(f"{path}: an item: {error}; expected one list with an object per image") from None
        try:
            if CLASSES in item:
                numbers, has_own_list = _class_indices(listed_schema(item[CLASSES]), schema.classes), True
            yield name, _listed_prediction(list_field(item, "predictions"), list_field(item, key), *numbers)
        except (FieldError, EvaluationError) as error:
            raise UserError(f"{path}: image {name!r}: {error}") from None
        except (KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{path}: image {name!r}: expected boxes with 'bbox' and 'category_id' and relations with "
                f"'subject_id', 'object_id', 'category_id' and 'score', but {error!r}"
            ) from None
    if not has_own_list:
        number, name = next(iter(schema.relations.items()))
        found.notes.append(
            f"{path} lists no classes: its numbers are taken for the annotations', such as {number} for the relation "
            f"{name!r}; a model of other numbers would be scored wrongly"
        )


def _class_indices(schema: HoiaSchema, classes: DatasetClasses) -> tuple[dict[int, int | str], ...]:
    """By category id of objects and of relations: the index among the classes, or the name of another class."""
    return tuple(
        {number: names.index(name) if name in names else name for number, name in listed.items()}
        for listed, names in ((schema.objects, classes.objects), (schema.relations, classes.relations))
    )


def _listed_prediction(
    boxes: Sequence[Any],
    relations: Sequence[Any],
    objects: Mapping[int, int | str],
    predicates: Mapping[int, int | str],
) -> Prediction:
    def index(indices: Mapping[int, int | str], category: Any) -> int:
        known = indices.get(category, f"category_id {category}")
        if isinstance(known, str):
            raise FieldError(f"{known!r} {OTHER_CLASS}")
        return known

    classes = [index(objects, box["category_id"]) for box in boxes]
    triplets = [(item["subject_id"], item["object_id"], index(predicates, item["category_id"])) for item in relations]
    ends = table(triplets, (-1, 3), int)
    check_range("its predictions", "a box of a relation", ends[:, :2], 0, len(boxes))
    scores = table([item["score"] for item in relations], (-1,), np.float32)
    if not np.isfinite(scores).all():
        raise FieldError("a 'score' is NaN or infinite; remove the relation or fix the model's output")
    return Prediction(table([box["bbox"] for box in boxes], (-1, 4), np.float32), np.array(classes, int), ends, scores)


def listed_schema(content: Any) -> HoiaSchema:
    """The class list of a file of predictions. Raises FieldError: it has another form."""
    try:
        return HoiaSchema.of_class_list(content["objects"], content["relations"])
    except (ValueError, TypeError, KeyError, AttributeError):
        raise FieldError(
            f'its {CLASSES!r} are not {{"objects": {{number: name}}, "relations": {{number: name}}}}, each name once'
        ) from None


def read_annotations(source: AnnotationSource) -> dict[str, ImageGroundTruth]:
    """The annotations by file name of the image.

    Raises UserError: an image cannot be used or occurs twice, or there are no images.
    """
    assert source.classes is not None
    objects = {name: index for index, name in enumerate(source.classes.objects)}
    predicates = {name: index for index, name in enumerate(source.classes.relations)}
    path, problems = source.files["annotations"], Counter[str]()
    annotated: dict[str, ImageGroundTruth] = {}
    for record in source.read(problems):
        if not record.ok:
            hint = "; --classes lists other classes" if "category_id" in str(record.error) else ""
            raise UserError(f"{path}: image {record.file_name!r}: {record.error}{hint}")
        if record.file_name in annotated:
            raise UserError(f"{path}: image {record.file_name!r} occurs twice")
        corners = [(x, y, x + w, y + h) for x, y, w, h in (box.bbox for box in record.objects)]
        classes = [objects[box.category] for box in record.objects]
        triplets = [(item.subject, item.object, predicates[item.predicate]) for item in record.relations]
        annotated[record.file_name] = ImageGroundTruth.from_lists(corners, classes, triplets)
    if problems:
        counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in problems.items())
        raise UserError(f"{path} cannot be used for evaluation: {counts}")
    if not annotated:
        raise UserError(f"{path} contains no images")
    return annotated


_ROWS_AT_ONCE = 512
_BOX = 4  # numbers per box


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image: boxes and their classes `[boxes]`, and triplets `[triplets, 3]` with scores."""

    boxes: Array
    classes: Array
    triplets: Array
    scores: Array

    @classmethod
    def nothing(cls) -> Prediction:
        return cls(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros((0, 3), dtype=int), np.zeros(0))

    def pairs(self, num_predicates: int) -> PredictedPairs:
        """One row for each pair of boxes. A repeated triplet counts once, with its best score."""
        ends, number = np.unique(self.triplets[:, :2], axis=0, return_inverse=True)
        scores = np.full((len(ends), num_predicates), NOT_PREDICTED, dtype=np.float32)
        np.maximum.at(scores, (number.reshape(-1), self.triplets[:, 2]), self.scores)
        subjects, objects = ends.T
        return PredictedPairs(
            self.boxes[subjects], self.boxes[objects], self.classes[subjects], self.classes[objects], scores
        )


def read_prediction_table(path: Path, classes: DatasetClasses) -> Iterator[tuple[str, Prediction]]:
    """The file name and prediction of each image, except for images that could not be read.

    Raises UserError: as `prediction_columns`; a name is not a class, or a pair has several subjects or objects.
    """
    objects, predicates = ({name: number for number, name in enumerate(each)} for each in vars(classes).values())
    for name, columns in prediction_columns(path):
        if columns is None:
            continue
        try:
            pairs, first, row = np.unique(columns["pair"], return_index=True, return_inverse=True)
            ends = [(columns[end], columns[f"{end}_box"]) for end in ("subject", "object")]
            for own, boxes in ends:
                other = (own[first][row] != own) | (boxes[first][row] != boxes).any(1)
                if other.any():
                    raise FieldError(f"pair {pairs[row[other.argmax()]]} has more than one subject or object")
            numbers = [_class_number(objects, each) for own, _ in ends for each in own[first]]
            named = [_class_number(predicates, each) for each in columns["predicate"]]
        except FieldError as error:
            raise UserError(f"{path}: image {name!r}: {error}") from None
        boxes = np.concatenate([boxes[first] for _, boxes in ends])
        triplets = np.stack((row, row + len(pairs), np.array(named, dtype=int)), axis=1)
        yield name, Prediction(boxes, np.array(numbers, dtype=int), triplets, columns["score"])


def prediction_columns(path: Path) -> Iterator[tuple[str, dict[str, Array] | None]]:
    """The file name of each image, and its triplets by column; None of an image that could not be read.

    The file is that of `sgpipe predict --out FILE.parquet`. Columns `[triplets]`: pair, subject, predicate, object,
    score; subject_box and object_box `[triplets, 4]` pixel xyxy.

    Raises UserError: the file is missing, damaged or of another kind, or a value is missing or not finite.
    """
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["file_name", "triplets"]):
                yield from _prediction_columns(path, batch)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error).splitlines()[0]
        raise UserError(f"{path} cannot be read: {reason}") from None
    except (pa.ArrowException, KeyError) as error:
        raise UserError(
            f"{path} was not written by `sgpipe predict --out FILE.parquet` ({str(error).splitlines()[0]})"
        ) from None


def _prediction_columns(path: Path, batch: pa.RecordBatch) -> Iterator[tuple[str, dict[str, Array] | None]]:
    names, lists = batch["file_name"].to_pylist(), batch["triplets"]
    lengths = np.array(pc.fill_null(pc.list_value_length(lists), 0))
    image, rows = np.repeat(np.arange(len(names)), lengths), lists.flatten()

    def check(wrong: Any, what: str) -> None:
        if wrong.any():
            raise UserError(f"{path}: image {names[image[wrong.argmax()]]!r}: {what}")

    columns = {}
    for key in ("pair", "subject", "predicate", "object", "score", "subject_box", "object_box"):
        column = pc.struct_field(rows, key)
        check(np.array(column.is_null()), f"a triplet has no {key!r}")
        if key.endswith("_box"):
            values = column.flatten()
            check(np.array(pc.list_value_length(column)) != _BOX, "a box is not four numbers")
            boxes = np.array(values, dtype=np.float32).reshape(-1, _BOX)
            check(np.array(values.is_null()).reshape(-1, _BOX).any(1), "a box is not four numbers")
            check(~np.isfinite(boxes).all(1), "a box or score is NaN or infinite")
            columns[key] = boxes
        else:
            columns[key] = np.array(column, dtype=np.float32 if key == "score" else None)
    check(~np.isfinite(columns["score"]), "a box or score is NaN or infinite")
    ends = np.cumsum(lengths)
    for name, start, end, known in zip(names, ends - lengths, ends, lists.is_valid().to_pylist(), strict=True):
        yield name, {key: column[start:end] for key, column in columns.items()} if known else None


def _class_number(numbers: Mapping[str, int], name: str) -> int:
    if name not in numbers:
        raise FieldError(f"{name!r} {OTHER_CLASS}")
    return numbers[name]


def data_classes(root: Path) -> DatasetClasses:
    """All classes of a run: its closed lists, or else the names that occur, the most frequent first.

    Raises UserError: the folder is not a run, or has neither.
    """
    if lists := Manifest.load(root).run.get("labels"):
        return DatasetClasses(tuple(lists["objects"]), tuple(lists["relations"]))
    objects, relations = Counter[str](), Counter[str]()
    for rows in iter_tables(root, ("objects.list.element.category", "relations.list.element.predicate")):
        for names, column, key in ((objects, "objects", "category"), (relations, "relations", "predicate")):
            values = pc.struct_field(pc.list_flatten(rows[column]), key)
            names.update({item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()})
    if not objects or not relations:
        raise UserError(f"{root} has no objects or no relations from which to list the classes; pass --classes")
    return DatasetClasses(
        *(tuple(sorted(names, key=lambda name: (-names[name], name))) for names in (objects, relations))
    )


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

    Raises UserError, also while reading: the folder is not a run, is damaged, or has names that are not classes.
    """
    shards = [shard for shard in Manifest.load(root).shards if split in (None, shard.split)]

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for record in (one for shard in shards for one in from_table(read_file(root / shard.file, _COLUMNS)) if one.ok):
            if persons_only:
                persons = [box.category == PERSON for box in record.objects]
                record = replace(record, relations=[item for item in record.relations if persons[item.subject]])
            names = {box.category for box in record.objects} - {*classes.objects}
            if unknown := names | {item.predicate for item in record.relations} - {*classes.relations}:
                raise UserError(
                    f"{root}: image {record.image_id}: {min(unknown)!r} is not a listed class; list all in --classes"
                )
            yield record

    return AnnotationSource("shards", split or "all", read, {"annotations": root}, classes=classes)
