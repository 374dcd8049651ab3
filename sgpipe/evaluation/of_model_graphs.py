"""A trained network evaluated as V-COCO and as Visual Genome do, whose evaluators want other things than pairs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import Array
from rlip_model.evaluation.vcoco import FoundPeople
from rlip_model.evaluation.visual_genome import Graph, GraphImage
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks import GraphClasses, graph_result, vcoco_result, vcoco_truth
from sgpipe.evaluation.graphs import read_graphs
from sgpipe.evaluation.of_model import ModelRun, readable
from sgpipe.evaluation.result import EvaluationResult
from sgpipe.evaluation.shard_truth import shard_truth
from sgpipe.predict import PredictConfig
from sgpipe.predict_graphs import found_graph
from sgpipe.predict_people import PeopleReader
from sgpipe.predict_rows import image_number
from sgpipe.shards.read import iter_records
from sgpipe.sources.annotated import AnnotationSource, ClassLists

MOST_PAIRS = 100  # of a picture: the evaluator looks at so many triplets, and they lie in as many pairs at most


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
    reader = PeopleReader(config.classes, actions, occurring(possible, config.classes) if possible else None)
    found: dict[int, FoundPeople] = {}
    notes: list[str] = []
    for row, pairs in readable(config, run.units(), notes):
        number = image_number(row)
        if number not in people:
            raise UserError(f"image {number} is not in {annotations}; choose a split by --split")
        found[number] = reader.read(pairs)
    return vcoco_result(people, found, actions, notes, str(run.model))


def occurring(root: Path, classes: ClassLists) -> Array:
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


def _images(run: ModelRun, config: PredictConfig, truths: dict[str, Graph], notes: list[str]) -> Iterator[GraphImage]:
    seen: set[str] = set()
    for row, pairs in readable(config, run.units(), notes):
        if row.image_id not in truths:
            raise UserError(f"image {row.image_id} is not annotated; choose a split by --split")
        if row.image_id in seen:
            raise UserError(f"image {row.image_id} is there twice; choose a split by --split")
        seen.add(row.image_id)
        yield GraphImage(f"image {row.image_id}", truths[row.image_id], found_graph(pairs, MOST_PAIRS))
    if missing := len(truths) - len(seen):
        notes.append(f"{missing:,} of {len(truths):,} annotated images have no predictions: left out, as officially")


def _shard_graphs(source: AnnotationSource, classes: ClassLists) -> dict[str, Graph]:
    """By image id."""
    places = [{name: place for place, name in enumerate(names, 1)} for names in (classes.objects, classes.relations)]
    graphs = {}
    for record in source.read(Counter()):
        boxes = np.array([box.bbox for box in record.objects], dtype=np.float32).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        labels = np.array([places[0][box.category] for box in record.objects], dtype=int)
        relations = [(item.subject, item.object, places[1][item.predicate]) for item in record.relations]
        graphs[record.image_id] = Graph(boxes, labels, np.array(relations, dtype=int).reshape(-1, 3))
    return graphs
