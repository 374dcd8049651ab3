"""A trained network on the images of shards, evaluated as the benchmarks do.

A trained network evaluated as V-COCO and as Visual Genome do, whose evaluators want other things than pairs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import Array, EvaluationImage, PredictedPairs
from rlip_model.evaluation.vcoco import PredictedPeople
from rlip_model.evaluation.visual_genome import GraphImage, GroundTruthGraph
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks.classes import data_classes, read_classes, shard_truth
from sgpipe.evaluation.benchmarks.evaluate_files import (
    SPLIT,
    GraphClasses,
    HicoOptions,
    Suppression,
    graph_result,
    hico_result,
    open_images_result,
    vcoco_result,
    vcoco_truth,
)
from sgpipe.evaluation.benchmarks.graphs import read_graphs
from sgpipe.evaluation.benchmarks.pairs import read_truths
from sgpipe.evaluation.result import EvaluationResult
from sgpipe.inference.predictor import InferenceConfig, PredictConfig, Task
from sgpipe.inference.rows import ImageRow, RowGroup, coco_image_id, list_row_groups
from sgpipe.inference.workers import predict
from sgpipe.inference.writers.graphs import predicted_graph
from sgpipe.inference.writers.vcoco import PeopleConverter
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses
from sgpipe.sources.hoi import HICO, HoiaSchema, hico_source, read_hoia
from sgpipe.sources.open_images import OpenImages
from sgpipe.storage.shards import iter_records


@dataclass(frozen=True)
class ModelRun(InferenceConfig):
    """A network and the images it is to be asked about.

    annotations: the benchmark's file; without it, the shards tell what is true. classes: see `read_classes`; without
    it, those of the data.
    """

    model: Path
    data: Path
    split: str | None = None
    images: Path | None = None
    annotations: Path | None = None
    classes: Path | None = None

    def numbering(self) -> HoiaSchema | None:
        """Of the annotations and predictions, if it is not the benchmark's. Raises UserError."""
        return read_classes(self.classes) if self.classes else None

    def config(self, task: Task) -> PredictConfig:
        """Raises UserError: the data has no classes."""
        numbering = self.numbering()
        classes = numbering.classes if numbering else data_classes(self.data)
        how = {each.name: getattr(self, each.name) for each in fields(InferenceConfig)}
        return PredictConfig(self.model, classes, task, **how)

    def row_groups(self) -> list[RowGroup]:
        """Raises UserError: as `list_row_groups`."""
        return list_row_groups(self.data, self.split, self.images)


def evaluate_hico_model(run: ModelRun, options: HicoOptions, *, zero_shot: bool = False) -> EvaluationResult:
    """HICO-DET, or as HICO-DET, what a network finds persons do.

    Args:
        zero_shot: leave out pairs whose subject looks like something else, as for networks that were not fine-tuned.

    Raises:
        UserError: an input is missing or wrong.
        EngineError: as `predict`.
    """
    config = run.config("zero-shot hoi" if zero_shot else "hoi")
    if run.annotations is None:
        source = shard_truth(run.data, config.classes, run.split, persons_only=True)
    elif numbering := run.numbering():
        read = partial(read_hoia, run.annotations, numbering, "hico", SPLIT)
        source = AnnotationSource("hico", SPLIT, read, {"annotations": run.annotations}, classes=numbering.classes)
    else:
        _must_be(config, HICO, run)
        source = hico_source(run.annotations, SPLIT)
    return hico_result(ModelImages(source, config, run.row_groups()), config.classes, options, str(run.model))


def evaluate_open_images_model(run: ModelRun, suppression: Suppression) -> EvaluationResult:
    """Open Images V6, or as Open Images, scene graphs that a network finds. Raises UserError, EngineError."""
    config = run.config("scene graph")
    if run.annotations is None:
        source = shard_truth(run.data, config.classes, run.split, persons_only=False)
    else:
        source = OpenImages(run.annotations, SPLIT).source()
        if source.classes != config.classes:
            raise UserError(f"{run.data} has other classes than {run.annotations}; leave out --annotations")
    return open_images_result(
        ModelImages(source, config, run.row_groups()), config.classes, suppression, str(run.model)
    )


def _must_be(config: PredictConfig, numbering: HoiaSchema, run: ModelRun) -> None:
    if config.classes != numbering.classes:
        raise UserError(
            f"{run.data} has other classes than HICO-DET: leave out --annotations, or give theirs by --classes"
        )


@dataclass
class ModelImages:
    """Annotated images, and what a network finds in them while it is asked. notes: filled by reading."""

    source: AnnotationSource
    config: PredictConfig
    row_groups: Sequence[RowGroup]
    notes: list[str] = field(default_factory=list)

    def images(self) -> Iterator[EvaluationImage]:
        """Every annotated image; one whose image cannot be read, or that the shards lack, has no predictions.

        Raises:
            UserError: an input is missing or wrong, an image is not annotated, or none can be read.
        """
        truths, seen = read_truths(self.source), set[str]()
        for row, pairs in readable(self.config, self.row_groups, self.notes):
            name = row.file_name
            if name not in truths:
                raise UserError(f"image {name!r} is not in {self.source.files['annotations']}")
            if name in seen:
                raise UserError(f"image {name!r} is there twice; choose a split by --split")
            seen.add(name)
            yield EvaluationImage(name, truths[name], pairs)
        if missing := len(truths) - len(seen):
            self.notes.append(f"{missing:,} of {len(truths):,} annotated images have no predictions: all missed")
        nothing = _nothing(len(self.config.classes.relations))
        yield from (EvaluationImage(name, truth, nothing) for name, truth in truths.items() if name not in seen)


def readable(
    config: PredictConfig, row_groups: Sequence[RowGroup], notes: list[str]
) -> Iterator[tuple[ImageRow, PredictedPairs]]:
    """What is found in the images that can be read; how many cannot is noted.

    Raises: as `predict`, and UserError: none can be read.
    """
    count, failed = 0, list[str]()
    for found in predict(config, row_groups):
        if found.pairs is None:
            failed.append(found.error or "")
        else:
            count += 1
            yield found.row, found.pairs
    if not count:
        raise UserError(f"no image could be read: {failed[0] if failed else 'there is none'}")
    if failed:
        notes.append(f"{len(failed):,} rows have no image that could be read; the first: {failed[0]}")


def _nothing(num_predicates: int) -> PredictedPairs:
    boxes, labels = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=int)
    scores: Array = np.zeros((0, num_predicates), dtype=np.float32)
    return PredictedPairs(boxes, boxes, labels, labels, scores)


MOST_PAIRS = 100  # of an image: the evaluator looks at so many triplets, and they lie in as many pairs at most


def evaluate_vcoco_model(
    run: ModelRun, annotations: Path, coco: Path, possible: Path | None = None
) -> EvaluationResult:
    """V-COCO; what it annotates is in its own files only.

    Args:
        possible: see `occurring`; by default everything can be.

    Raises: UserError, EngineError: as `evaluate_hico_model`.
    """
    config = run.config("hoi")
    actions, people = vcoco_truth(annotations, coco)
    converter = PeopleConverter(config.classes, actions, occurring(possible, config.classes) if possible else None)
    found: dict[int, PredictedPeople] = {}
    notes: list[str] = []
    for row, pairs in readable(config, run.row_groups(), notes):
        number = coco_image_id(row)
        if number not in people:
            raise UserError(f"image {number} is not in {annotations}; choose a split by --split")
        found[number] = converter.convert(pairs)
    return vcoco_result(people, found, actions, notes, str(run.model))


def occurring(root: Path, classes: DatasetClasses) -> Array:
    """`[relations, objects]`, True for what occurs in shards, such as those of the training set.

    Raises UserError: the folder is no run.
    """
    found = np.zeros((len(classes.relations), len(classes.objects)), dtype=bool)
    for record in iter_records(root):
        for relation in record.relations:
            object_ = record.objects[relation.object].category
            if relation.predicate in classes.relations and object_ in classes.objects:
                found[classes.relations.index(relation.predicate), classes.objects.index(object_)] = True
    return found


def evaluate_graphs_model(run: ModelRun) -> EvaluationResult:
    """Visual Genome's scene graphs (sgdet), of VG150 or of any other classes.

    Raises: UserError, EngineError: as `evaluate_hico_model`.
    """
    config, notes = run.config("scene graph"), list[str]()
    classes = GraphClasses.of(config.classes)
    if run.annotations is not None:
        truths = read_graphs(run.annotations)
    else:
        truths = _shard_graphs(shard_truth(run.data, config.classes, run.split, persons_only=False), config.classes)
    return graph_result(_images(run, config, truths, notes), classes, "sgdet", notes, str(run.model))


def _images(
    run: ModelRun, config: PredictConfig, truths: dict[str, GroundTruthGraph], notes: list[str]
) -> Iterator[GraphImage]:
    seen: set[str] = set()
    for row, pairs in readable(config, run.row_groups(), notes):
        if row.image_id not in truths:
            raise UserError(f"image {row.image_id} is not annotated; choose a split by --split")
        if row.image_id in seen:
            raise UserError(f"image {row.image_id} is there twice; choose a split by --split")
        seen.add(row.image_id)
        yield GraphImage(f"image {row.image_id}", truths[row.image_id], predicted_graph(pairs, MOST_PAIRS))
    if missing := len(truths) - len(seen):
        notes.append(f"{missing:,} of {len(truths):,} annotated images have no predictions: left out, as officially")


def _shard_graphs(source: AnnotationSource, classes: DatasetClasses) -> dict[str, GroundTruthGraph]:
    """By image id."""
    places = [{name: place for place, name in enumerate(names, 1)} for names in (classes.objects, classes.relations)]
    graphs = {}
    for record in source.read(Counter()):
        boxes = np.array([box.bbox for box in record.objects], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([places[0][box.category] for box in record.objects], dtype=int)
        relations = [(item.subject, item.object, places[1][item.predicate]) for item in record.relations]
        graphs[record.image_id] = GroundTruthGraph(boxes, labels, np.array(relations, dtype=int).reshape(-1, 3))
    return graphs
