"""A trained model evaluated on the images of shards, by the protocol of each benchmark."""

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
from sgpipe.evaluation.benchmarks.classes import data_classes, read_classes, shard_annotations
from sgpipe.evaluation.benchmarks.evaluate_files import (
    SPLIT,
    HicoOptions,
    Suppression,
    graph_result,
    hico_result,
    open_images_result,
    read_vcoco,
    vcoco_result,
)
from sgpipe.evaluation.benchmarks.graphs import GraphClasses, read_graphs
from sgpipe.evaluation.benchmarks.pairs import read_annotations
from sgpipe.evaluation.result import EvaluationResult, ScoredImages
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.model_cache import pin_model
from sgpipe.files.stored_files import shown_path, uri_of
from sgpipe.inference.predictor import InferenceConfig, PredictConfig, Task, predict
from sgpipe.inference.rows import ImageRow, RowGroup, coco_image_id, list_row_groups
from sgpipe.inference.writers.json_lists import PeopleConverter, predicted_graph
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses
from sgpipe.sources.hoi import HICO, HoiaSchema, OpenImages, hico_source, read_hoia
from sgpipe.storage.shards import iter_records
from sgpipe.utils.boxes import xywh_to_xyxy
from sgpipe.utils.console import count


@dataclass(frozen=True)
class ModelRun(InferenceConfig):
    """A model and the images to evaluate it on.

    annotations: the benchmark's file; without it, the shards are the ground truth.
    classes: as for `read_classes`; without it, those of the data.
    """

    model: Path
    data: Path
    split: str | None = None
    images: ImagePlace | None = None
    annotations: Path | None = None
    classes: Path | None = None

    @property
    def name(self) -> str:
        """What is evaluated, as results name it."""
        return str(shown_path(self.model))

    def hoia_schema(self) -> HoiaSchema | None:
        """The HOIA schema of `classes`, if given. Raises UserError: as `read_classes`."""
        return read_classes(self.classes) if self.classes else None

    def config(self, task: Task) -> PredictConfig:
        """Raises UserError: the data has no classes, or a store no such model."""
        schema = self.hoia_schema()
        classes = schema.classes if schema else data_classes(self.data)
        how = {each.name: getattr(self, each.name) for each in fields(InferenceConfig)}
        model = Path(pin_model(uri_of(self.model) or str(self.model)))  # one version on all machines
        return PredictConfig(model, classes, task, **how)

    def row_groups(self) -> list[RowGroup]:
        """Raises UserError: as `list_row_groups`."""
        return list_row_groups(self.data, self.split, self.images)


def evaluate_hico_model(run: ModelRun, options: HicoOptions, *, zero_shot: bool = False) -> EvaluationResult:
    """Evaluate interactions of persons by HICO-DET's protocol.

    Args:
        zero_shot: leave out pairs whose subject looks like another class, as for models that were not fine-tuned.

    Raises:
        UserError: an input is missing or invalid.
        EngineError: as `predict`.
    """
    config = run.config("zero-shot hoi" if zero_shot else "hoi")
    if run.annotations is None:
        source = shard_annotations(run.data, config.classes, run.split, persons_only=True)
    elif schema := run.hoia_schema():
        read = partial(read_hoia, run.annotations, schema, "hico", SPLIT)
        source = AnnotationSource("hico", SPLIT, read, {"annotations": run.annotations}, classes=schema.classes)
    else:
        _must_be(config, HICO, run)
        source = hico_source(run.annotations, SPLIT)
    return hico_result(ModelImages(source, config, run.row_groups()), config.classes, options, run.name)


def evaluate_open_images_model(run: ModelRun, suppression: Suppression) -> EvaluationResult:
    """Evaluate scene graphs by Open Images' protocol. Raises UserError, EngineError: as `evaluate_hico_model`."""
    config = run.config("scene graph")
    if run.annotations is None:
        source = shard_annotations(run.data, config.classes, run.split, persons_only=False)
    else:
        source = OpenImages(run.annotations, SPLIT).source()
        if source.classes != config.classes:
            raise UserError(f"{run.data} has other classes than {run.annotations}; omit --annotations")
    return open_images_result(ModelImages(source, config, run.row_groups()), config.classes, suppression, run.name)


def _must_be(config: PredictConfig, schema: HoiaSchema, run: ModelRun) -> None:
    if config.classes != schema.classes:
        raise UserError(
            f"{run.data} has other classes than HICO-DET: omit --annotations, or list the classes in --classes"
        )


@dataclass
class ModelImages:
    """Annotated images with predictions that a model makes while they are read; reading fills `notes` and `counts`."""

    source: AnnotationSource
    config: PredictConfig
    row_groups: Sequence[RowGroup]
    notes: list[str] = field(default_factory=list)
    counts: ScoredImages = field(default_factory=ScoredImages)

    def images(self) -> Iterator[EvaluationImage]:
        """All annotated images; those that the shards lack or that cannot be read have no predictions.

        Raises:
            UserError: an input is missing or invalid, an image is not annotated, or no image can be read.
        """
        annotated, seen = read_annotations(self.source), set[str]()
        for row, pairs in predict_readable(self.config, self.row_groups, self.notes):
            name = row.file_name
            if name not in annotated:
                raise UserError(f"image {name!r} is not in {self.source.files['annotations']}")
            if name in seen:
                raise UserError(f"image {name!r} occurs twice; choose a split with --split")
            seen.add(name)
            self.counts.add(pairs)
            yield EvaluationImage(name, annotated[name], pairs)
        self.counts.unpredicted = frozenset(annotated.keys() - seen)
        self.counts.missing = missing = len(annotated) - len(seen)
        if missing:
            self.notes.append(
                f"no predictions for {missing:,} of {count(len(annotated), 'annotated image')}: counted as missed"
            )
        nothing = _nothing(len(self.config.classes.relations))
        yield from (
            EvaluationImage(name, ground_truth, nothing) for name, ground_truth in annotated.items() if name not in seen
        )


def predict_readable(
    config: PredictConfig, row_groups: Sequence[RowGroup], notes: list[str]
) -> Iterator[tuple[ImageRow, PredictedPairs]]:
    """Predictions for the images that can be read; the number of others is noted.

    Raises:
        UserError: no image can be read; also as `predict`.
        EngineError: as `predict`.
    """
    readable, failed = 0, list[str]()
    for prediction in predict(config, row_groups):
        if prediction.pairs is None:
            failed.append(prediction.error or "")
        else:
            readable += 1
            yield prediction.row, prediction.pairs
    if not readable:
        raise UserError(f"no image could be read: {failed[0] if failed else 'the data has no images'}")
    if failed:
        notes.append(f"{count(len(failed), 'image')} could not be read; the first: {failed[0]}")


def _nothing(num_predicates: int) -> PredictedPairs:
    boxes, objects = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=int)
    scores: Array = np.zeros((0, num_predicates), dtype=np.float32)
    return PredictedPairs(boxes, boxes, objects, objects, scores)


MOST_PAIRS = 100  # per image, as the evaluator considers 100 triplets


def evaluate_vcoco_model(
    run: ModelRun, annotations: Path, coco: Path, possible: Path | None = None
) -> EvaluationResult:
    """Evaluate by V-COCO's protocol, with its own annotation files.

    Args:
        possible: as for `occurring`; by default all combinations are possible.

    Raises: UserError, EngineError: as `evaluate_hico_model`.
    """
    config = run.config("hoi")
    actions, people = read_vcoco(annotations, coco)
    converter = PeopleConverter(config.classes, actions, occurring(possible, config.classes) if possible else None)
    predicted: dict[int, PredictedPeople] = {}
    notes: list[str] = []
    for row, pairs in predict_readable(config, run.row_groups(), notes):
        number = coco_image_id(row)
        if number not in people:
            raise UserError(f"image {number} is not in {annotations}; choose a split with --split")
        predicted[number] = converter.convert(pairs)
    return vcoco_result(people, predicted, actions, notes, run.name)


def occurring(root: Path, classes: DatasetClasses) -> Array:
    """`[relations, objects]`, True for combinations that occur in a run, such as the training set.

    Raises UserError: the folder is not a run.
    """
    occurs = np.zeros((len(classes.relations), len(classes.objects)), dtype=bool)
    for record in iter_records(root):
        for relation in record.relations:
            object_ = record.objects[relation.object].category
            if relation.predicate in classes.relations and object_ in classes.objects:
                occurs[classes.relations.index(relation.predicate), classes.objects.index(object_)] = True
    return occurs


def evaluate_graphs_model(run: ModelRun) -> EvaluationResult:
    """Evaluate scene graphs (sgdet) by Visual Genome's protocol, of VG150 or other classes.

    Raises: UserError, EngineError: as `evaluate_hico_model`.
    """
    config = run.config("scene graph")
    classes = GraphClasses.of(config.classes)
    if run.annotations is not None:
        annotated = read_graphs(run.annotations)
    else:
        annotated = _shard_graphs(
            shard_annotations(run.data, config.classes, run.split, persons_only=False), config.classes
        )
    images = _ModelGraphs(run, config, annotated)
    return graph_result(images.images(), classes, "sgdet", images, run.name)


@dataclass
class _ModelGraphs:
    """As `ModelImages`, for scene graphs. Images without predictions are left out."""

    run: ModelRun
    config: PredictConfig
    annotated: dict[str, GroundTruthGraph]
    notes: list[str] = field(default_factory=list)
    counts: ScoredImages = field(default_factory=ScoredImages)

    def images(self) -> Iterator[GraphImage]:
        seen: set[str] = set()
        for row, pairs in predict_readable(self.config, self.run.row_groups(), self.notes):
            name = row.image_id
            if name not in self.annotated:
                raise UserError(f"image {name} is not annotated; choose a split with --split")
            if name in seen:
                raise UserError(f"image {name} occurs twice; choose a split with --split")
            seen.add(name)
            self.counts.add(pairs)
            yield GraphImage(f"image {name}", self.annotated[name], predicted_graph(pairs, MOST_PAIRS))
        self.counts.left_out = missing = len(self.annotated) - len(seen)
        if missing:
            total = count(len(self.annotated), "annotated image")
            self.notes.append(f"no predictions for {missing:,} of {total}: left out (official protocol)")


def _shard_graphs(source: AnnotationSource, classes: DatasetClasses) -> dict[str, GroundTruthGraph]:
    """The annotated scene graphs by image id."""
    indices = [{name: index for index, name in enumerate(names, 1)} for names in (classes.objects, classes.relations)]
    graphs = {}
    for record in source.read(Counter()):
        boxes = xywh_to_xyxy(np.array([box.bbox for box in record.objects], dtype=np.float32).reshape(-1, 4))
        objects = np.array([indices[0][box.category] for box in record.objects], dtype=int)
        relations = [(item.subject, item.object, indices[1][item.predicate]) for item in record.relations]
        graphs[record.image_id] = GroundTruthGraph(boxes, objects, np.array(relations, dtype=int).reshape(-1, 3))
    return graphs
