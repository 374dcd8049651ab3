"""Annotations and predictions of the benchmarks, joined by image; and class lists.

HICO-DET and Open Images have pairs of boxes: in HOIA format, in the Parquet files of `sgpipe
predict`, or in shards. Visual Genome has scene graphs: one JSON object per image.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

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
from sgpipe.files.locations import Location, open_shard_file
from sgpipe.inference.predictions import CLASSES, PERSON, RowGroup
from sgpipe.records import Record, from_table
from sgpipe.sources import fields
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses, ProblemCounts
from sgpipe.sources.fields import FieldError
from sgpipe.sources.hoi import HICO, OPEN_IMAGES, HoiaSchema
from sgpipe.storage.datasets import load_manifest
from sgpipe.storage.run_records import iter_tables
from sgpipe.storage.shards import read_file, read_row_group

_OTHER_CLASS = (
    "is not a class of the dataset; predict with its --classes FILE, or on shards of its `sgpipe"
    " import`"
)

_Item = dict[str, Any]  # of a file of predictions
_Numbers = Mapping[int | str, int]  # of classes, by what a file calls them

# Of an image: boxes `[boxes, 4]` pixel xyxy, labels; ends `[triplets, 2]`, places of boxes,
# predicates, scores.
_Triplets = tuple[Array, Array, Array, Array, Array]

_COLUMNS = (
    "image_id",
    "dataset",
    "split",
    "file_name",
    "width",
    "height",
    "objects",
    "relations",
    "status",
    "error",
)

# The names of VG150's object classes are not known here.
VG150_CLASSES = DatasetClasses(tuple(map(str, range(1, 151))), VG150_PREDICATES)


@contextmanager
def naming(place: str) -> Iterator[None]:
    """Name the file and the image in the errors of a reader."""
    try:
        yield
    except (FieldError, EvaluationError) as error:
        raise UserError(f"{place}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(f"{place}: a value is missing or of another type: {error!r}") from None


def _pairs(triplets: _Triplets, classes: DatasetClasses) -> PredictedPairs:
    """Return one row for each pair; a repeated triplet has its best score."""
    boxes, labels, ends, predicates, values = triplets
    _, first, row = np.unique(ends @ (len(boxes), 1), return_index=True, return_inverse=True)
    subjects, objects = ends[first].T
    scores = np.full((len(first), len(classes.relations)), NOT_PREDICTED, dtype=np.float32)
    np.maximum.at(scores, (row, predicates), values)
    return PredictedPairs(
        boxes[subjects], boxes[objects], labels[subjects], labels[objects], scores
    )


def no_pairs(classes: DatasetClasses) -> PredictedPairs:
    return _pairs(_triplets((), (), {}, {}), classes)


def read_pairs(
    source: AnnotationSource,
    predictions: Location,
    key: str,
    schema: HoiaSchema,
    scored: ScoredImages,
) -> Iterator[EvaluationImage]:
    """Yield all annotated images in the order of the annotations, with the predictions of a file.

    Args:
        source: of the annotations.
        predictions: in HOIA format, as of `sgpipe export RUN --to hico`, or of `sgpipe predict
            --out FILE.parquet`.
        key: of the relations in HOIA format, in files of predictions.
        schema: classes, whose numbers the file has if it does not list its own.
        scored: filled with counts and notes.

    Raises:
        UserError: a file is missing or invalid, or a predicted image is not annotated.
    """
    annotated = read_annotations(source)
    classes = schema.classes
    is_parquet = predictions.name.endswith(".parquet")
    numbers = _class_numbers(schema, classes)
    items: Iterable[_Item] = map(itemgetter(1), JsonStream(predictions))
    if is_parquet:
        numbers = _class_names(classes)
        items = _parquet_rows(predictions)
    lists_classes = is_parquet
    predicted: dict[str, _Triplets] = {}
    for item in items:
        name = _file_name(item, predictions)
        scored.add(name, annotated, str(predictions))
        with naming(f"{predictions}: image {name!r}"):
            if is_parquet:
                boxes, relations = _hoia_lists(item["triplets"])
            else:
                boxes, relations = _predicted_lists(item, key, schema.key)
            if CLASSES in item:
                lists_classes = True
                numbers = _class_numbers(HoiaSchema.of_class_list(item[CLASSES]), classes)
            predicted[name] = _triplets(boxes, relations, *numbers)
    scored.lack(annotated, missed=True)
    if not lists_classes:
        number, relation = next(iter(schema.relations.items()))
        scored.notes.append(
            f"{predictions} lists no classes: its numbers are taken for the annotations', such as"
            f" {number} for the relation {relation!r}; a model of other numbers would be scored"
            " wrongly"
        )
    nothing = no_pairs(classes)
    for name, ground_truth in annotated.items():
        pairs = _pairs(predicted[name], classes) if name in predicted else nothing
        yield EvaluationImage(name, ground_truth, pairs)


def _predicted_lists(item: _Item, key: str, labelled_key: str) -> tuple[list[Any], list[Any]]:
    """Return the boxes and relations of an image in HOIA format, which may be an exported run's.

    Raises:
        FieldError: one is missing, or the relations of a run have no scores.
    """
    if "predictions" in item or labelled_key not in item:
        return fields.array(item, "predictions"), fields.array(item, key)
    relations = fields.array(item, labelled_key)
    if not all("score" in fields.mapping(relation) for relation in relations):
        raise FieldError(
            f"'{labelled_key}' has relations without a 'score': expected predictions, or a run that"
            " a model labelled"
        )
    return fields.array(item, "annotations"), relations


def _file_name(item: _Item, predictions: Location) -> str:
    try:
        return fields.text(item, "file_name")
    except FieldError as error:
        expected = "expected one list with an object per image"
        raise UserError(f"{predictions}: an item: {error}; {expected}") from None


def _parquet_rows(path: Location) -> Iterator[_Item]:
    """Yield the rows of a file of `sgpipe predict --out FILE.parquet`, without error rows."""
    columns = ["file_name", "triplets"]
    try:
        with pq.ParquetFile(open_shard_file(path)) as file:
            for batch in file.iter_batches(512, columns=columns):
                rows = batch.select(columns).to_pylist()  # KeyError: one is missing
                yield from (row for row in rows if row["triplets"] is not None)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {os_error_reason(error)}") from None
    except (pa.ArrowException, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"{path} was not written by `sgpipe predict --out FILE.parquet` ({reason})"
        ) from None


def _hoia_lists(
    triplets: Sequence[_Item],
) -> tuple[list[Any], list[Any]]:
    """Return the boxes and relations of triplets as a HOIA file has them, with names for numbers.
    Raises FieldError.
    """
    pairs: dict[int, list[_Item]] = {}
    relations: list[_Item] = []
    for triplet in sorted(triplets, key=itemgetter("pair")):
        subject = {"bbox": triplet["subject_box"], "category_id": triplet["subject"]}
        object_ = {"bbox": triplet["object_box"], "category_id": triplet["object"]}
        boxes = [subject, object_]
        if pairs.setdefault(triplet["pair"], boxes) != boxes:
            raise FieldError("a pair has more than one subject or object")
        relation = {
            "subject_id": 2 * len(pairs) - 2,
            "object_id": 2 * len(pairs) - 1,
            "category_id": triplet["predicate"],
            "score": triplet["score"],
        }
        relations.append(relation)
    return list(chain.from_iterable(pairs.values())), relations


def _class_numbers(listed: HoiaSchema, classes: DatasetClasses) -> tuple[_Numbers, _Numbers]:
    """Return the numbers of objects and of relations by those of a file."""
    objects = _indices(listed.objects, classes.objects)
    return objects, _indices(listed.relations, classes.relations)


def _indices(listed: Mapping[int, str], names: Sequence[str]) -> _Numbers:
    return {number: names.index(name) for number, name in listed.items() if name in names}


def _class_names(classes: DatasetClasses) -> tuple[_Numbers, _Numbers]:
    """Return the numbers of objects and of relations by their names."""
    return _numbered(classes.objects), _numbered(classes.relations)


def _numbered(names: Iterable[str]) -> dict[int | str, int]:
    return {name: number for number, name in enumerate(names)}


def _triplets(
    boxes: Sequence[_Item],
    relations: Sequence[_Item],
    objects: _Numbers,
    predicates: _Numbers,
) -> _Triplets:
    ends = table([(item["subject_id"], item["object_id"]) for item in relations], (-1, 2), int)
    check_range("its predictions", "a box of a relation", ends, 0, len(boxes))
    scores = table([item["score"] for item in relations], (-1,), np.float32)
    if not np.isfinite(scores).all():
        raise FieldError(
            "a 'score' is NaN or infinite; remove the relation or fix the model's output"
        )
    corners = table([box["bbox"] for box in boxes], (-1, 4), np.float32)
    return corners, _classes(objects, boxes), ends, _classes(predicates, relations), scores


def _classes(numbers: _Numbers, items: Sequence[_Item]) -> Array:
    """Return the numbers of the classes of items.

    Raises:
        FieldError: a class is not one of the dataset.
    """
    classes = []
    for item in items:
        if item["category_id"] not in numbers:
            raise FieldError(f"category_id {item['category_id']!r} {_OTHER_CLASS}")
        classes.append(numbers[item["category_id"]])
    return np.array(classes, dtype=int)


def read_annotations(
    source: AnnotationSource,
    key: Literal["file_name", "image_id"] = "file_name",
    *,
    may_be_empty: bool = False,
) -> dict[str, ImageGroundTruth]:
    """Return the annotations by file name or id of the image.

    Raises:
        UserError: an image cannot be used or occurs twice, or there are no images, unless
            `may_be_empty`.
    """
    assert source.classes is not None
    objects, predicates = _class_names(source.classes)
    path = source.files["annotations"]
    problems = Counter[str]()
    annotated: dict[str, ImageGroundTruth] = {}
    for record in source.read(problems):
        name = getattr(record, key)
        if not record.ok:
            hint = "; --classes lists other classes" if "category_id" in str(record.error) else ""
            raise UserError(f"{path}: image {name!r}: {record.error}{hint}")
        if name in annotated:
            raise UserError(f"{path}: image {name!r} occurs twice")
        annotated[name] = _ground_truth(record, objects, predicates)
    _refuse_problems(path, problems)
    if not annotated and not may_be_empty:
        raise UserError(f"{path} contains no images")
    return annotated


def _refuse_problems(path: Location, problems: Counter[str]) -> None:
    occurred = +problems  # without those counted as 0
    if occurred:
        counts = [f"{number:,} {name.replace('_', ' ')}" for name, number in occurred.items()]
        raise UserError(f"{path} cannot be used for evaluation: {', '.join(counts)}")


def _ground_truth(record: Record, objects: _Numbers, predicates: _Numbers) -> ImageGroundTruth:
    """Return the boxes and relations of an image; `objects`, `predicates`: numbers of names."""
    corners = []
    for box in record.objects:
        x, y, width, height = box.bbox
        corners.append((x, y, x + width, y + height))
    classes = [objects[box.category] for box in record.objects]
    triplets = []
    for relation in record.relations:
        triplets.append((relation.subject, relation.object, predicates[relation.predicate]))
    return ImageGroundTruth.from_lists(corners, classes, triplets)


def data_classes(root: Location) -> DatasetClasses:
    """Return all classes of a run: its closed lists, then other names that occur, the most frequent
    first.

    Raises:
        UserError: the folder is not a run, or has neither.
    """
    lists = load_manifest(root).class_lists
    objects = Counter[str]()
    relations = Counter[str]()
    for rows in iter_tables(
        root, ("objects.list.element.category", "relations.list.element.predicate")
    ):
        _count_names(objects, pc.struct_field(pc.list_flatten(rows["objects"]), "category"))
        _count_names(relations, pc.struct_field(pc.list_flatten(rows["relations"]), "predicate"))
    if not (lists["objects"] or objects) or not (lists["relations"] or relations):
        raise UserError(
            f"{root} has no objects or no relations from which to list the classes; pass --classes"
        )
    return DatasetClasses(
        _listed_first(lists["objects"], objects), _listed_first(lists["relations"], relations)
    )


def _count_names(counts: Counter[str], names: pa.ChunkedArray) -> None:
    for item in pc.value_counts(names).to_pylist():
        counts[item["values"]] += item["counts"]


def _listed_first(names: Iterable[str], counts: Mapping[str, int]) -> tuple[str, ...]:
    """Return the names of a closed list, then others that occur, the most frequent first."""
    by_frequency = sorted(counts, key=lambda name: (-counts[name], name))
    return tuple(dict.fromkeys([*names, *by_frequency]))


def hoia_schema_of(classes: DatasetClasses) -> HoiaSchema:
    """Return the official numbers of HICO-DET's and Open Images' classes; other classes count from
    1.
    """
    for official in (HICO, OPEN_IMAGES):
        if official.classes == classes:
            return official
    objects = dict(enumerate(classes.objects, 1))
    return HoiaSchema(HICO.key, objects, dict(enumerate(classes.relations, 1)))


def shard_annotations(
    root: Location,
    classes: DatasetClasses,
    split: str | None = None,
    *,
    persons_only: bool,
    group: RowGroup | None = None,
) -> AnnotationSource:
    """Return the images of a run without error rows, to be read by `read_annotations`.

    Raises UserError, also while reading: the folder is not a run, is damaged, or has names that are
    not classes.

    Args:
        persons_only: leave out relations of other subjects, which HICO-DET does not have.
        group: only those of this one.
    """
    files: list[Location] = []
    if group is None:
        manifest = load_manifest(root)
        shards = [shard for shard in manifest.shards if split in (None, shard.split)]
        files = [manifest.location_of(shard.file) for shard in shards]

    def tables() -> Iterator[pa.Table]:
        if group is not None:
            yield read_row_group(group.file, group.group, _COLUMNS)
        for file in files:
            yield read_file(file, _COLUMNS)

    def read(problems: ProblemCounts) -> Iterator[Record]:
        for record in chain.from_iterable(map(from_table, tables())):
            if record.ok:
                if persons_only:
                    record = _relations_of_persons(record)
                _check_names(root, record, classes)
                yield record

    return AnnotationSource("shards", split or "all", read, {"annotations": root}, classes=classes)


def _relations_of_persons(record: Record) -> Record:
    relations = []
    for relation in record.relations:
        if record.objects[relation.subject].category == PERSON:
            relations.append(relation)
    return replace(record, relations=relations)


def _check_names(root: Location, record: Record, classes: DatasetClasses) -> None:
    """Check that all names of a record are classes.

    Raises:
        UserError: a name is not a class.
    """
    unknown = {box.category for box in record.objects} - {*classes.objects}
    unknown |= {relation.predicate for relation in record.relations} - {*classes.relations}
    if unknown:
        raise UserError(
            f"{root}: image {record.image_id}: {min(unknown)!r} is not a listed class; list all in"
            " --classes"
        )


def _class_map(content: object, classes: DatasetClasses) -> tuple[Array, Array]:
    """Return the numbers of objects and predicates by those of a file with a class list, from 1; of
    0 it is 0.

    Raises:
        FieldError: a class is not one of the dataset.
        ValueError, TypeError: the list has another form.
    """
    listed = HoiaSchema.of_class_list(content).classes
    objects = listed.objects if classes == VG150_CLASSES else classes.objects
    object_numbers = _places(listed.objects, objects)
    relation_numbers = _places(listed.relations, classes.relations)
    if len(objects) != len(classes.objects):
        sizes = f"{len(objects)} object classes, the dataset {len(classes.objects)}"
        raise FieldError(f"the file has {sizes}: see --classes")
    return object_numbers, relation_numbers


def _places(names: Sequence[str], known: Sequence[str]) -> Array:
    """Return the places of names among those that are known, from 1, after a 0.

    Raises:
        FieldError: a name is not known.
    """
    places = [0]
    for name in names:
        if name not in known:
            raise FieldError(f"{name!r} {_OTHER_CLASS}")
        places.append(1 + known.index(name))
    return np.array(places)


def read_predicted_graphs(
    predictions: Location, classes: DatasetClasses, annotated: Collection[str], scored: ScoredImages
) -> Iterator[tuple[str, PredictedGraph]]:
    """Yield predictions by image id, noted in `scored`.

    Raises:
        UserError: as `read_pairs`.
    """
    objects = np.arange(len(classes.objects) + 1)
    predicates = np.arange(len(classes.relations) + 1)
    for name, item in _graph_items(predictions):
        scored.add(name, annotated, str(predictions))
        with naming(f"{predictions}: image {name}"):
            if CLASSES in item:
                objects, predicates = _class_map(item[CLASSES], classes)
            labels = _field(item, "labels", (-1,), int)
            valid = (labels >= 1) & (labels < len(objects))  # the evaluator refuses others
            listed = _field(item, "predicate_scores", (-1, len(predicates)), np.float32)
            # 0 of what is not listed
            scores = np.zeros((len(listed), 1 + len(classes.relations)), listed.dtype)
            scores[:, predicates] = listed
            predicted = PredictedGraph(
                _field(item, "boxes", (-1, 4), np.float32),
                np.where(valid, objects[np.where(valid, labels, 0)], labels),
                _field(item, "scores", (-1,), np.float32),
                _field(item, "pairs", (-1, 2), int),
                scores,
            )
        yield name, predicted


def read_graphs(annotations: Path) -> dict[str, GroundTruthGraph]:
    """Return the annotated scene graphs by image id.

    Raises:
        UserError: the file is missing, invalid or empty.
    """
    annotated: dict[str, GroundTruthGraph] = {}
    for name, item in _graph_items(annotations):
        if name in annotated:
            raise UserError(f"{annotations}: image {name} occurs twice; remove one")
        with naming(f"{annotations}: image {name}"):
            boxes = _field(item, "boxes", (-1, 4), np.float32)
            labels = _field(item, "labels", (-1,), int)
            annotated[name] = GroundTruthGraph(
                boxes, labels, _field(item, "relations", (-1, 3), int)
            )
    if not annotated:
        raise UserError(f"{annotations} contains no images")
    return annotated


def _graph_items(path: Location) -> Iterator[tuple[str, _Item]]:
    for _, item in JsonStream(path):
        name = fields.identifier(item.get("image_id")) if isinstance(item, dict) else None
        if name is None:
            raise UserError(
                f"{path}: an item has no 'image_id'; expected a list of objects, one per image"
            )
        yield name, item


def _field(item: _Item, key: str, shape: tuple[int, ...], kind: type) -> Array:
    return table(fields.required(item, key), shape, kind)
