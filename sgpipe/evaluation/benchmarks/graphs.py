"""Annotated and predicted scene graphs of Visual Genome, one JSON object per image, joined by `image_id`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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


@dataclass
class GraphFiles:
    """An annotation file and a prediction file; reading fills `notes` and `counts`."""

    annotations: Path
    predictions: Path
    classes: GraphClasses
    notes: list[str] = field(default_factory=list)
    counts: ScoredImages = field(default_factory=ScoredImages)

    def images(self) -> Iterator[GraphImage]:
        """The annotated images that have predictions, in the order of the predictions.

        Raises UserError: a file is missing or invalid, or a predicted image is not annotated.
        """
        annotated = read_graphs(self.annotations)
        seen: set[str] = set()
        numbers = _Numbers.own(self.classes)
        for name, item in _items(self.predictions):
            if name not in annotated:
                raise UserError(f"{self.predictions}: image {name} is not in {self.annotations}")
            if name in seen:
                raise UserError(f"{self.predictions}: image {name} occurs twice; remove one")
            seen.add(name)
            numbers = self._listed(name, item[CLASSES]) if CLASSES in item else numbers
            predicted = self._prediction(name, item, numbers)
            self.counts.add(predicted.pairs)
            yield GraphImage(f"image {name}", annotated[name], predicted)
        if not seen:
            raise UserError(f"{self.predictions} contains no predictions")
        self.notes += self.counts.leave_out(annotated, seen)

    def _prediction(self, name: str, item: Mapping[str, Any], numbers: _Numbers) -> PredictedGraph:
        try:
            boxes = table(required_field(item, "boxes"), (-1, 4), np.float32)
            labels = table(required_field(item, "labels"), (-1,), int)
            scores = table(required_field(item, "predicate_scores"), (-1, 1 + len(numbers.predicates)), np.float32)
            return PredictedGraph(
                boxes,
                numbers.labels(labels),
                table(required_field(item, "scores"), (-1,), np.float32),
                table(required_field(item, "pairs"), (-1, 2), int),
                numbers.scores(scores, len(self.classes.predicates)),
            )
        except (FieldError, EvaluationError) as error:
            raise UserError(f"{self.predictions}: image {name}: {error}") from None

    def _listed(self, name: str, content: Any) -> _Numbers:
        """The numbers of predictions with a class list. Raises UserError: a class is none of the dataset."""
        try:
            listed = listed_schema(content).classes
        except FieldError as error:
            raise UserError(f"{self.predictions}: image {name}: {error}") from None
        objects = self.classes.objects or listed.objects  # the names of VG150's object classes are not known here
        unknown = [each for each in listed.relations if each not in self.classes.predicates]
        unknown += [each for each in listed.objects if each not in objects]
        if unknown:
            raise UserError(f"{self.predictions}: {unknown[0]!r} {OTHER_CLASS}")
        if len(objects) != self.classes.num_objects:
            counts = f"{count(len(objects), 'object class', 'object classes')}, the dataset {self.classes.num_objects}"
            raise UserError(f"{self.predictions} has {counts}; --classes lists other classes")
        return _Numbers(
            tuple(1 + objects.index(each) for each in listed.objects),
            tuple(1 + self.classes.predicates.index(each) for each in listed.relations),
        )


@dataclass(frozen=True)
class _Numbers:
    """The dataset's numbers, from 1, of the classes that predictions number from 1."""

    objects: tuple[int, ...]
    predicates: tuple[int, ...]

    @classmethod
    def own(cls, classes: GraphClasses) -> _Numbers:
        return cls(tuple(range(1, 1 + classes.num_objects)), tuple(range(1, 1 + len(classes.predicates))))

    def labels(self, labels: Array) -> Array:
        """`[boxes]`; labels that are out of range stay, for the evaluator to refuse."""
        valid = (labels >= 1) & (labels <= len(self.objects))
        mapped: Array = np.where(valid, np.array((0, *self.objects))[np.where(valid, labels, 0)], labels)
        return mapped

    def scores(self, scores: Array, num_predicates: int) -> Array:
        """`[pairs, 1 + predicates]`, the background first; a predicate that was not predicted has score 0."""
        mapped: Array = np.zeros((len(scores), 1 + num_predicates), dtype=scores.dtype)
        mapped[:, (0, *self.predicates)] = scores
        return mapped


def read_graphs(annotations: Path) -> dict[str, GroundTruthGraph]:
    """The annotated scene graphs by image id.

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
