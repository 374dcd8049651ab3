"""Annotations and predictions of the benchmarks, joined by image; and class lists.

HICO-DET and Open Images have pairs of boxes: in HOIA format, in the Parquet files of `sgpipe predict`, or in shards.
Visual Genome has scene graphs: one JSON object per image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

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
from rlip_model.evaluation.visual_genome import VG150_PREDICATES, GroundTruthGraph, PredictedGraph
from sgpipe.errors import UserError, os_error_reason
from sgpipe.evaluation.result import ScoredImages
from sgpipe.files.json_stream import JsonStream
from sgpipe.inference.predictions import CLASSES, PERSON
from sgpipe.records import Record, from_table
from sgpipe.sources import fields
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts
from sgpipe.sources.fields import FieldError
from sgpipe.sources.hoi import HICO, OPEN_IMAGES, HoiaSchema
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.shards import iter_tables, read_file

_OTHER_CLASS = (
    "is not a class of the dataset; predict with its classes: --classes FILE, or shards of its `sgpipe import`"
)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Name the file and the image in the errors of a reader."""
    try:
        yield
    except (FieldError, EvaluationError) as error:
        raise UserError(f"{place}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{place}: a value is missing or of another type: {error!r}") from None


def read_pairs(
    source: AnnotationSource, predictions: Path, key: str, schema: HoiaSchema, found: ScoredImages
) -> Iterator[EvaluationImage]:
    """Yield all annotated images in the order of the annotations, with the predictions of a file.

    Args:
        key, schema: as for `read_triplets`. found: filled with counts and notes.

    Raises UserError: a file is missing or invalid, or a predicted image is not annotated.
    """
    annotated, classes = read_annotations(source), schema.classes
    predicted: dict[str, Triplets] = {}
    for name, triplets in read_triplets(predictions, key, schema, found.notes):
        if triplets is not None:
            found.add(name, annotated, str(predictions))
            predicted[name] = triplets
    found.miss(annotated)
    for name, ground_truth in annotated.items():
        with naming(f"{predictions}: image {name!r}"):
            pairs = predicted[name].pairs(classes) if name in predicted else no_pairs(classes)
        yield EvaluationImage(name, ground_truth, pairs)


class Triplets(NamedTuple):
    """The triplets that a file predicts for an image, by its own lists of classes.

    `[triplets]`: pair, equal where subject and object are the same boxes; subject, object and predicate, indices into
    the lists; score. `[triplets, 4]` pixel xyxy: subject_box, object_box.
    """

    objects: tuple[str, ...]
    predicates: tuple[str, ...]
    pair: Array
    subject: Array
    object: Array
    predicate: Array
    score: Array
    subject_box: Array
    object_box: Array

    def pairs(self, classes: DatasetClasses) -> PredictedPairs:
        """Return one row for each pair; a repeated triplet has its best score. Raises FieldError: another class."""
        numbers = []
        for names, own, known in (
            (self.objects, self.subject, classes.objects),
            (self.objects, self.object, classes.objects),
            (self.predicates, self.predicate, classes.relations),
        ):
            numbers.append(_class_numbers(names, known)[own])
            if (numbers[-1] < 0).any():
                raise FieldError(f"{names[own[numbers[-1].argmin()]]!r} {_OTHER_CLASS}")
        subjects, objects, predicates = numbers
        pairs, first, row = np.unique(self.pair, return_index=True, return_inverse=True)
        scores = np.full((len(pairs), len(classes.relations)), NOT_PREDICTED, dtype=np.float32)
        np.maximum.at(scores, (row, predicates), self.score)
        return PredictedPairs(self.subject_box[first], self.object_box[first], subjects[first], objects[first], scores)


@lru_cache(maxsize=8)
def _class_numbers(names: tuple[str, ...], classes: tuple[str, ...]) -> Array:
    """`[names]`, the index of each among the classes, or -1."""
    known = {name: number for number, name in enumerate(classes)}
    return np.array([known.get(name, -1) for name in names], dtype=int)


def no_pairs(classes: DatasetClasses) -> PredictedPairs:
    boxes, numbers = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=int)
    return PredictedPairs(boxes, boxes, numbers, numbers, np.zeros((0, len(classes.relations)), dtype=np.float32))


def read_triplets(path: Path, key: str, schema: HoiaSchema, notes: list[str]) -> Iterator[tuple[str, Triplets | None]]:
    """Yield the file name of each image and its triplets; None for an image that could not be read.

    Args:
        path: a HOIA file, or one of `sgpipe predict --out FILE.parquet`.
        key: of the relations of a HOIA file.
        schema: the classes of a HOIA file that does not list its own.
        notes: added to, for the reader.

    Raises UserError: the file is missing or damaged, or a value is missing, not finite or of another kind.
    """
    if path.suffix == ".parquet":
        yield from _parquet_triplets(path)
        return
    has_own_list, name = False, None
    for _, item in JsonStream(path):
        try:
            name = fields.text(item, "file_name")
        except FieldError as error:
            raise UserError(f"{path}: an item: {error}; expected one list with an object per image") from None
        with naming(f"{path}: image {name!r}"):
            if CLASSES in item:
                schema, has_own_list = HoiaSchema.of_class_list(**item[CLASSES]), True
            triplets = _hoia_triplets(schema, fields.array(item, "predictions"), fields.array(item, key))
        yield name, triplets
    if name is not None and not has_own_list:
        number, name = next(iter(schema.relations.items()))
        notes.append(
            f"{path} lists no classes: its numbers are taken for the annotations', such as {number} for the relation "
            f"{name!r}; a model of other numbers would be scored wrongly"
        )


def _hoia_triplets(schema: HoiaSchema, boxes: Sequence[Any], relations: Sequence[Any]) -> Triplets:
    def places(numbers: Mapping[int, str], items: Sequence[Any]) -> Array:
        """`[items]`, the place of the class of each in a list of classes."""
        known = {number: place for place, number in enumerate(numbers)}
        found = [known.get(item["category_id"], -1) for item in items]
        if -1 in found:
            raise FieldError(f"category_id {items[found.index(-1)]['category_id']!r} {_OTHER_CLASS}")
        return np.array(found, dtype=int)

    classes, predicates = places(schema.objects, boxes), places(schema.relations, relations)
    ends = table([(item["subject_id"], item["object_id"]) for item in relations], (-1, 2), int)
    check_range("its predictions", "a box of a relation", ends, 0, len(boxes))
    scores = table([item["score"] for item in relations], (-1,), np.float32)
    if not np.isfinite(scores).all():
        raise FieldError("a 'score' is NaN or infinite; remove the relation or fix the model's output")
    corners = table([box["bbox"] for box in boxes], (-1, 4), np.float32)
    pair, (subject, object_) = ends[:, 0] * len(boxes) + ends[:, 1], ends.T
    names = tuple(schema.objects.values()), tuple(schema.relations.values())
    return Triplets(
        *names, pair, classes[subject], classes[object_], predicates, scores, corners[subject], corners[object_]
    )


_ROWS_AT_ONCE = 512


def _parquet_triplets(path: Path) -> Iterator[tuple[str, Triplets | None]]:
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE, columns=["file_name", "triplets"]):
                yield from _batch_triplets(path, batch)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {os_error_reason(error)}") from None
    except (pa.ArrowException, KeyError) as error:
        raise UserError(
            f"{path} was not written by `sgpipe predict --out FILE.parquet` ({str(error).splitlines()[0]})"
        ) from None


def _batch_triplets(path: Path, batch: pa.RecordBatch) -> Iterator[tuple[str, Triplets | None]]:
    names, lists = batch["file_name"].to_pylist(), batch["triplets"]
    lengths = np.array(pc.fill_null(pc.list_value_length(lists), 0))
    image, rows = np.repeat(np.arange(len(names)), lengths), lists.flatten()

    def check(wrong: Any, what: str) -> None:
        if wrong.any():
            raise UserError(f"{path}: image {names[image[wrong.argmax()]]!r}: {what}")

    columns = {}
    for key in Triplets._fields[2:]:
        column = pc.struct_field(rows, key)
        check(np.array(column.is_null()), f"a triplet has no {key!r}")
        if key.endswith("_box"):
            check(np.array(pc.list_value_length(column)) != 4, "a box is not four numbers")
            column = np.array(column.flatten(), dtype=np.float32).reshape(-1, 4)
        columns[key] = column
    ends = pa.chunked_array([columns["subject"], columns["object"]]).combine_chunks().dictionary_encode()
    columns["subject"], columns["object"] = np.split(np.array(ends.indices), 2)
    predicates = columns["predicate"].dictionary_encode()
    columns["predicate"], columns["pair"] = np.array(predicates.indices), np.array(columns["pair"])
    columns["score"] = np.array(columns["score"], dtype=np.float32)
    boxes = np.column_stack((columns["subject_box"], columns["object_box"]))
    check(~np.isfinite(np.column_stack((columns["score"], boxes))).all(1), "a box or score is NaN or infinite")
    _, first, row = np.unique(image * (columns["pair"].max(initial=0) + 1) + columns["pair"], True, True)
    both = np.column_stack((columns["subject"], columns["object"], boxes))
    check((both[first][row] != both).any(1), "a pair has more than one subject or object")
    lists_of_names = tuple(ends.dictionary.to_pylist()), tuple(predicates.dictionary.to_pylist())
    stops = np.cumsum(lengths)
    for name, start, stop, known in zip(names, stops - lengths, stops, lists.is_valid().to_pylist(), strict=True):
        yield name, Triplets(*lists_of_names, *(each[start:stop] for each in columns.values())) if known else None


def read_annotations(
    source: AnnotationSource, key: Literal["file_name", "image_id"] = "file_name"
) -> dict[str, ImageGroundTruth]:
    """Return the annotations by file name or id of the image.

    Raises UserError: an image cannot be used or occurs twice, or there are no images.
    """
    assert source.classes is not None
    objects, predicates = ({name: number for number, name in enumerate(each)} for each in vars(source.classes).values())
    path, problems = source.files["annotations"], Counter[str]()
    annotated: dict[str, ImageGroundTruth] = {}
    for record in source.read(problems):
        name = getattr(record, key)
        if not record.ok:
            hint = "; --classes lists other classes" if "category_id" in str(record.error) else ""
            raise UserError(f"{path}: image {name!r}: {record.error}{hint}")
        if name in annotated:
            raise UserError(f"{path}: image {name!r} occurs twice")
        corners = [(x, y, x + w, y + h) for x, y, w, h in (box.bbox for box in record.objects)]
        classes = [objects[box.category] for box in record.objects]
        triplets = [(item.subject, item.object, predicates[item.predicate]) for item in record.relations]
        annotated[name] = ImageGroundTruth.from_lists(corners, classes, triplets)
    if wrong := +problems:  # not those counted as 0
        counts = ", ".join(f"{number:,} {name.replace('_', ' ')}" for name, number in wrong.items())
        raise UserError(f"{path} cannot be used for evaluation: {counts}")
    if not annotated:
        raise UserError(f"{path} contains no images")
    return annotated


def data_classes(root: Path) -> DatasetClasses:
    """Return all classes of a run: its closed lists, then other names that occur, the most frequent first.

    Raises UserError: the folder is not a run, or has neither.
    """
    lists = Manifest.load(root).run.get("labels") or {"objects": [], "relations": []}
    objects, relations = Counter[str](), Counter[str]()
    for rows in iter_tables(root, ("objects.list.element.category", "relations.list.element.predicate")):
        for names, column, key in ((objects, "objects", "category"), (relations, "relations", "predicate")):
            values = pc.struct_field(pc.list_flatten(rows[column]), key)
            names.update({item["values"]: item["counts"] for item in pc.value_counts(values).to_pylist()})
    if not (lists["objects"] or objects) or not (lists["relations"] or relations):
        raise UserError(f"{root} has no objects or no relations from which to list the classes; pass --classes")
    both = (sorted(names, key=lambda name: (-names[name], name)) for names in (objects, relations))
    return DatasetClasses(*(tuple(dict.fromkeys([*lists[k], *own])) for k, own in zip(lists, both, strict=True)))


def hoia_schema_of(classes: DatasetClasses) -> HoiaSchema:
    """Return the official numbers of HICO-DET's and Open Images' classes; other classes count from 1."""
    own = HoiaSchema(HICO.key, dict(enumerate(classes.objects, 1)), dict(enumerate(classes.relations, 1)))
    return next((official for official in (HICO, OPEN_IMAGES) if official.classes == classes), own)


_COLUMNS = ("image_id", "dataset", "split", "file_name", "width", "height", "objects", "relations", "status", "error")


def shard_annotations(
    root: Path, classes: DatasetClasses, split: str | None = None, *, persons_only: bool
) -> AnnotationSource:
    """Return the images of a run without error rows, to be read by `read_annotations`.

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


# The names of VG150's object classes are not known here.
VG150_CLASSES = DatasetClasses(tuple(map(str, range(1, 151))), VG150_PREDICATES)


def _class_map(content: Any, classes: DatasetClasses) -> tuple[Array, Array]:
    """Return the numbers of objects and predicates by those of a file with a class list, from 1; of 0 it is 0.

    Raises FieldError: a class is not one of the dataset; ValueError, TypeError: the list has another form.
    """
    listed = HoiaSchema.of_class_list(**content).classes
    objects = listed.objects if classes == VG150_CLASSES else classes.objects
    both = ((listed.objects, objects), (listed.relations, classes.relations))
    if unknown := [name for own, known in both for name in own if name not in known]:
        raise FieldError(f"{unknown[0]!r} {_OTHER_CLASS}")
    if len(objects) != len(classes.objects):
        raise FieldError(
            f"the file has {len(objects)} object classes, the dataset {len(classes.objects)}: see --classes"
        )
    first, second = (np.array([0, *(1 + known.index(each) for each in own)]) for own, known in both)
    return first, second


def read_predicted_graphs(
    predictions: Path, classes: DatasetClasses, annotated: Collection[str], found: ScoredImages
) -> Iterator[tuple[str, PredictedGraph]]:
    """Yield the predictions of a file by image id; these are kept in `found`.

    Raises UserError: the file is missing or invalid, or a predicted image is not annotated.
    """
    numbers = np.arange(len(classes.objects) + 1), np.arange(len(classes.relations) + 1)
    for name, item in _graph_items(predictions):
        found.add(name, annotated, str(predictions))
        with naming(f"{predictions}: image {name}"):
            numbers = _class_map(item[CLASSES], classes) if CLASSES in item else numbers
            predicted = _predicted_graph(item, *numbers, len(classes.relations))
        yield name, predicted


def _predicted_graph(item: Mapping[str, Any], objects: Array, predicates: Array, num_predicates: int) -> PredictedGraph:
    """objects, predicates: the dataset's numbers by those of the item."""
    labels = _field(item, "labels", (-1,), int)
    given = _field(item, "predicate_scores", (-1, len(predicates)), np.float32)
    scores = np.zeros((len(given), 1 + num_predicates), dtype=given.dtype)  # a predicate that is not listed has score 0
    scores[:, predicates] = given
    valid = (labels >= 1) & (labels < len(objects))  # the evaluator refuses others
    return PredictedGraph(
        _field(item, "boxes", (-1, 4), np.float32),
        np.where(valid, objects[np.where(valid, labels, 0)], labels),
        _field(item, "scores", (-1,), np.float32),
        _field(item, "pairs", (-1, 2), int),
        scores,
    )


def read_graphs(annotations: Path) -> dict[str, GroundTruthGraph]:
    """Return the annotated scene graphs by image id. Raises UserError: the file is missing, invalid or empty."""
    annotated: dict[str, GroundTruthGraph] = {}
    for name, item in _graph_items(annotations):
        if name in annotated:
            raise UserError(f"{annotations}: image {name} occurs twice; remove one")
        with naming(f"{annotations}: image {name}"):
            boxes, labels = _field(item, "boxes", (-1, 4), np.float32), _field(item, "labels", (-1,), int)
            annotated[name] = GroundTruthGraph(boxes, labels, _field(item, "relations", (-1, 3), int))
    if not annotated:
        raise UserError(f"{annotations} contains no images")
    return annotated


def _graph_items(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the id of each image and what the file has of it."""
    for _, item in JsonStream(path):
        name = fields.identifier(item.get("image_id")) if isinstance(item, dict) else None
        if name is None:
            raise UserError(f"{path}: an item has no 'image_id'; expected a list of objects, one per image")
        yield name, item


def _field(item: Mapping[str, Any], key: str, shape: tuple[int, ...], kind: Any) -> Array:
    return table(fields.required(item, key), shape, kind)
