"""Annotated and predicted scene graphs of Visual Genome, one JSON object per image, joined by `image_id`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rlip_model.evaluation.inputs import Array, EvaluationError, table
from rlip_model.evaluation.visual_genome import VG150_PREDICATES, GraphImage, GroundTruthGraph, PredictedGraph
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks.pairs import OTHER_CLASS, listed_schema
from sgpipe.evaluation.result import ScoredImages
from sgpipe.files.json_stream import JsonStream
from sgpipe.inference.writers import CLASSES
from sgpipe.sources.annotated import DatasetClasses, FieldError, parse_id, required_field
from sgpipe.utils.console import count


@dataclass(frozen=True)
class GraphClasses:
    """The number of object classes, and the predicates in the order of their numbers from 1.

    objects: the names of the object classes, if they are known.
    """

    num_objects: int
    predicates: tuple[str, ...]
    objects: tuple[str, ...] = field(default=(), compare=False)

    @classmethod
    def of(cls, classes: DatasetClasses) -> GraphClasses:
        return cls(len(classes.objects), classes.relations, classes.objects)


VG150_CLASSES = GraphClasses(150, VG150_PREDICATES)


def read_graph_files(
    annotations: Path, predictions: Path, classes: GraphClasses, found: ScoredImages
) -> Iterator[GraphImage]:
    """Yield the annotated images that have predictions, in the order of the predictions.

    Args:
        found: filled with counts and notes.

    Raises UserError: a file is missing or invalid, or a predicted image is not annotated.
    """
    annotated = read_graphs(annotations)
    seen: set[str] = set()
    numbers = _Numbers(np.arange(classes.num_objects + 1), np.arange(len(classes.predicates) + 1))
    for name, item in _items(predictions):
        if name not in annotated:
            raise UserError(f"{predictions}: image {name} is not in {annotations}")
        if name in seen:
            raise UserError(f"{predictions}: image {name} occurs twice; remove one")
        seen.add(name)
        try:
            numbers = _listed(classes, item[CLASSES]) if CLASSES in item else numbers
            predicted = _prediction(item, numbers, len(classes.predicates))
        except (FieldError, EvaluationError) as error:
            raise UserError(f"{predictions}: image {name}: {error}") from None
        found.add(predicted.pairs)
        yield GraphImage(f"image {name}", annotated[name], predicted)
    if not seen:
        raise UserError(f"{predictions} contains no predictions")
    found.leave_out(annotated, seen)


class _Numbers(NamedTuple):
    """The dataset's numbers by those of the predictions, from 1; number 0 is 0."""

    objects: Array
    predicates: Array


def _listed(classes: GraphClasses, content: Any) -> _Numbers:
    """Return the numbers of predictions with a class list. Raises FieldError: a class is not one of the dataset."""
    listed = listed_schema(content).classes
    objects = classes.objects or listed.objects  # the names of VG150's object classes are not known here
    unknown = [each for each in listed.relations if each not in classes.predicates]
    unknown += [each for each in listed.objects if each not in objects]
    if unknown:
        raise FieldError(f"{unknown[0]!r} {OTHER_CLASS}")
    if len(objects) != classes.num_objects:
        counts = f"{count(len(objects), 'object class', 'object classes')}, the dataset {classes.num_objects}"
        raise FieldError(f"the file has {counts}; --classes lists other classes")
    return _Numbers(
        np.array([0, *(1 + objects.index(each) for each in listed.objects)]),
        np.array([0, *(1 + classes.predicates.index(each) for each in listed.relations)]),
    )


def _prediction(item: Mapping[str, Any], numbers: _Numbers, num_predicates: int) -> PredictedGraph:
    """Raises FieldError, EvaluationError: a value is missing or has another form."""
    labels = table(required_field(item, "labels"), (-1,), int)
    given = table(required_field(item, "predicate_scores"), (-1, len(numbers.predicates)), np.float32)
    scores = np.zeros((len(given), 1 + num_predicates), dtype=given.dtype)  # a predicate that is not listed has score 0
    scores[:, numbers.predicates] = given
    valid = (labels >= 1) & (labels < len(numbers.objects))  # the evaluator refuses others
    return PredictedGraph(
        table(required_field(item, "boxes"), (-1, 4), np.float32),
        np.where(valid, numbers.objects[np.where(valid, labels, 0)], labels),
        table(required_field(item, "scores"), (-1,), np.float32),
        table(required_field(item, "pairs"), (-1, 2), int),
        scores,
    )


def read_graphs(annotations: Path) -> dict[str, GroundTruthGraph]:
    """Return the annotated scene graphs by image id.

    Raises UserError: the file is missing, invalid or empty, or an image occurs twice.
    """
    annotated: dict[str, GroundTruthGraph] = {}
    for name, item in _items(annotations):
        if name in annotated:
            raise UserError(f"{annotations}: image {name} occurs twice; remove one")
        annotated[name] = _graph(annotations, name, item)
    if not annotated:
        raise UserError(f"{annotations} contains no images")
    return annotated


def _items(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for _, item in JsonStream(path):
        name = parse_id(item.get("image_id")) if isinstance(item, dict) else None
        if name is None:
            raise UserError(f"{path}: an item has no 'image_id'; expected a list of objects, one per image")
        yield name, item


def _graph(path: Path, name: str, item: Mapping[str, Any]) -> GroundTruthGraph:
    try:
        return GroundTruthGraph(
            table(required_field(item, "boxes"), (-1, 4), np.float32),
            table(required_field(item, "labels"), (-1,), int),
            table(required_field(item, "relations"), (-1, 3), int),
        )
    except (FieldError, EvaluationError) as error:
        raise UserError(
            f"{path}: image {name}: {error}; expected 'image_id', 'boxes', 'labels' and 'relations' "
            "(to evaluate on shards: --model MODEL --data SHARDS)"
        ) from None
