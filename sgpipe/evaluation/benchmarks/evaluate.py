"""One function per benchmark: predictions, from a file or made by a model, in; `EvaluationResult` out.

All raise UserError if an input is missing or invalid, or has values that would falsify the result; with a model,
EngineError as `predict`.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np

from rlip_model.evaluation.hico import HicoScores, HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import SETTINGS, Setting, possible_interactions, split
from rlip_model.evaluation.inputs import Array, EvaluationError, EvaluationImage, PredictedPairs
from rlip_model.evaluation.open_images import OpenImagesSettings, PhraseOrder, evaluate_open_images
from rlip_model.evaluation.scores import ClassScores
from rlip_model.evaluation.suppression import PairSuppression
from rlip_model.evaluation.triplets import TripletClasses
from rlip_model.evaluation.vcoco import (
    Actions,
    People,
    PeopleImage,
    PredictedPeople,
    Scenario,
    VcocoScores,
    evaluate_vcoco,
)
from rlip_model.evaluation.vcoco_files import AGENT, people_images, read_actions, read_people, read_predicted_people
from rlip_model.evaluation.visual_genome import (
    GraphImage,
    GraphScores,
    GroundTruthGraph,
    Mode,
    evaluate_graphs,
    vg150_zero_shot,
)
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks.graphs import VG150_CLASSES, GraphClasses, GraphFiles, read_graphs
from sgpipe.evaluation.benchmarks.pairs import (
    PairFiles,
    data_classes,
    read_annotations,
    read_classes,
    shard_annotations,
)
from sgpipe.evaluation.result import EvaluationResult, Resampling, Rows, ScoredImages, class_curve, class_rows
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.locations import location, text_of
from sgpipe.files.model_cache import pin_model
from sgpipe.files.text_files import read_text
from sgpipe.inference.rows import (
    ImageRow,
    InferenceConfig,
    PredictConfig,
    RowGroup,
    Task,
    coco_image_id,
    list_row_groups,
)
from sgpipe.inference.writers import PeopleConverter, predicted_graph
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses
from sgpipe.sources.hoi import HICO, OPEN_IMAGES, HoiaSchema, OpenImages, hico_source, read_hoia
from sgpipe.storage.shards import iter_records
from sgpipe.utils.boxes import xywh_to_xyxy
from sgpipe.utils.console import count

SPLIT = "test"  # the split of records that are only evaluated
MOST_PAIRS = 100  # per image of a scene graph, as the evaluator considers 100 triplets

Suppression = Literal["none", "published", "repaired"]


@dataclass(frozen=True)
class HicoOptions:
    """HICO-DET's protocol.

    setting: how classes are grouped. known_object: evaluate a class only on images with its object.
    pair_nms: suppress overlapping pairs.
    """

    setting: Setting = "default"
    known_object: bool = False
    pair_nms: bool = False

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise UserError(f"unknown setting {self.setting!r}: expected one of {', '.join(SETTINGS)}")


@dataclass(frozen=True)
class PredictionFiles:
    """A file of predictions, and the benchmark's annotations. classes: as for `read_classes`; None: the benchmark's."""

    predictions: Path
    annotations: Path
    classes: Path | None = None

    @property
    def name(self) -> str:
        return str(self.predictions)


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
        return text_of(self.model)

    def hoia_schema(self) -> HoiaSchema | None:
        """Return the HOIA schema of `classes`, if set. Raises UserError: as `read_classes`."""
        return read_classes(self.classes) if self.classes else None

    def config(self, task: Task) -> PredictConfig:
        """Raises UserError: the data has no classes, or a store no such model."""
        schema = self.hoia_schema()
        classes = schema.classes if schema else data_classes(self.data)
        how = {each.name: getattr(self, each.name) for each in fields(InferenceConfig)}
        model = location(pin_model(text_of(self.model)))  # one version on all machines
        return PredictConfig(model, classes, task, **how)

    def row_groups(self) -> list[RowGroup]:
        """Raises UserError: as `list_row_groups`."""
        return list_row_groups(self.data, self.split, self.images)


def score_hico(given: PredictionFiles | ModelRun, options: HicoOptions, *, zero_shot: bool = False) -> EvaluationResult:
    """Evaluate interactions of persons by HICO-DET's protocol, also of other classes.

    Args:
        zero_shot: with a model, leave out pairs whose subject looks like another class, as for models that were not
            fine-tuned.
    """
    images: PairFiles | ModelImages
    if isinstance(given, PredictionFiles):
        schema = read_classes(given.classes) if given.classes else HICO
        classes, source = schema.classes, _hico_source(given.annotations, given.classes)
        images = PairFiles(source, given.predictions, schema, "hoi_prediction")
    else:
        config = given.config("zero-shot hoi" if zero_shot else "hoi")
        classes = config.classes
        if given.annotations is None:
            source = shard_annotations(given.data, classes, given.split, persons_only=True)
        elif given.classes is None and classes != HICO.classes:
            raise UserError(
                f"{given.data} has other classes than HICO-DET: omit --annotations, or list the classes in --classes"
            )
        else:
            source = _hico_source(given.annotations, given.classes)
        images = ModelImages(source, config, given.row_groups())
    official = classes == HICO.classes
    if not official and options.setting != "default":
        raise UserError(f"--setting {options.setting} groups HICO-DET's classes, but these are others")
    possible = possible_interactions() if official else np.ones((len(classes.relations), len(classes.objects)))
    settings = HicoSettings(possible, PairSuppression() if options.pair_nms else None, options.known_object)
    scored: list[str] = []
    with _explained(given.name):
        scores = evaluate_hico(_noting(images.images(), scored), settings)
    groups, names = _hico_groups(options.setting) if official else ({}, {})

    def summary(scores: HicoScores) -> dict[str, float]:
        measures = scores.summary(split(options.setting))
        kept = measures if official else ("mAP", "mean max recall")
        return {names.get(name, name): measures[name] for name in kept}

    per_class = scores.per_class
    curves = {name: class_curve(per_class, group) for name, group in {"all classes": None, **groups}.items()}
    rows = class_rows(per_class, _triplet_names(per_class, settings.classes, classes))
    settings_row = {"setting": options.setting, "known_object": options.known_object, "pair_nms": options.pair_nms}
    title = "HICO-DET" if official else "HICO-DET's protocol"
    resampling = Resampling(scored, lambda counts: summary(scores.resampled(counts)), images.counts.unpredicted)
    return EvaluationResult(
        title,
        settings_row,
        summary(scores),
        rows,
        images.notes,
        curves=curves,
        resampling=resampling,
        **images.counts.as_result(),
    )


def _hico_source(annotations: Path, classes: Path | None) -> AnnotationSource:
    if classes is None:
        return hico_source(annotations, SPLIT)
    schema = read_classes(classes)
    read = partial(read_hoia, annotations, schema, "hico", SPLIT)
    return AnnotationSource("hico", SPLIT, read, {"annotations": annotations}, classes=schema.classes)


def score_open_images(given: PredictionFiles | ModelRun, suppression: Suppression = "none") -> EvaluationResult:
    """Evaluate scene graphs by Open Images' protocol."""
    images: PairFiles | ModelImages
    source = OpenImages(given.annotations, SPLIT).source() if given.annotations else None
    if isinstance(given, PredictionFiles):
        assert source is not None
        classes = OPEN_IMAGES.classes
        images = PairFiles(source, given.predictions, OPEN_IMAGES, "rel_prediction")
    else:
        config = given.config("scene graph")
        classes = config.classes
        source = source or shard_annotations(given.data, classes, given.split, persons_only=False)
        if source.classes != classes:
            raise UserError(f"{given.data} has other classes than {given.annotations}; omit --annotations")
        images = ModelImages(source, config, given.row_groups())
    order: PhraseOrder = "repaired" if suppression == "repaired" else "published"
    settings = OpenImagesSettings(
        len(classes.objects),
        len(classes.relations),
        PairSuppression() if suppression != "none" else None,
        order,
    )
    scored: list[str] = []
    with _explained(given.name):
        scores = evaluate_open_images(_noting(images.images(), scored), settings)
    relations, phrases = scores.relations[100], scores.phrases[100]
    rows = class_rows(relations, _triplet_names(relations, settings.classes, classes))
    curves = {"relations": class_curve(relations), "phrases": class_curve(phrases)}
    title = "Open Images V6" if classes == OPEN_IMAGES.classes else "Open Images' protocol"
    return EvaluationResult(
        title,
        {"nms": suppression},
        scores.summary(),
        rows,
        images.notes,
        curves=curves,
        resampling=Resampling(scored, lambda counts: scores.resampled(counts).summary(), images.counts.unpredicted),
        **images.counts.as_result(),
    )


def score_vcoco(given: PredictionFiles | ModelRun, coco: Path, possible: Path | None = None) -> EvaluationResult:
    """Evaluate by V-COCO's protocol, with its own vcoco_test.json and the COCO instances of its images.

    Args:
        possible: with a model, as for `occurring`; by default all combinations are possible.
    """
    assert given.annotations is not None
    actions, people = read_vcoco(given.annotations, coco)
    notes: list[str] = []
    if isinstance(given, PredictionFiles):
        predicted = _read_predicted(given, actions)
    else:
        predicted = _predict_people(given, actions, people, possible, notes)
    scored: list[str] = []
    with _explained(given.name):
        scores = evaluate_vcoco(_noting(people_images(people, predicted, actions), scored), actions)
    counts = ScoredImages(len(predicted))
    notes += counts.miss(people, predicted)
    curves = {f"role, scenario {number}": class_curve(part) for number, part in scores.roles.items()}
    curves["agent"] = class_curve(scores.agents)
    # Its format has no item for an image without persons, so which images lack predictions is not known.
    resampling = Resampling(scored, lambda counts: _vcoco_summary(scores.resampled(counts)))
    return EvaluationResult(
        "V-COCO",
        {},
        _vcoco_summary(scores),
        _vcoco_rows(scores),
        notes,
        curves=curves,
        resampling=resampling,
        **counts.as_result(),
    )


def _read_predicted(given: PredictionFiles, actions: Actions) -> dict[int, PredictedPeople]:
    predictions, annotations = given.predictions, given.annotations
    detections = _read_json(predictions)
    if not isinstance(detections, list) or not detections:
        raise UserError(f"{predictions} contains no predictions: expected a list of detections")
    own = [key for key in detections[0] if str(key).endswith(f"_{AGENT}")] if isinstance(detections[0], dict) else []
    if own and (missing := {f"{name}_{AGENT}" for name in actions.names} - set(own)):
        raise UserError(
            f"{predictions} has no {min(missing)!r}, which is an action of {annotations}; predict on shards of "
            "`sgpipe import vcoco`"
        )
    with _explained(predictions):
        try:
            return read_predicted_people(detections, actions)
        except (KeyError, TypeError) as error:
            raise UserError(f"{predictions}: expected detections in V-COCO's format: {error!r}") from None


def _predict_people(
    given: ModelRun, actions: Actions, people: Collection[int], possible: Path | None, notes: list[str]
) -> dict[int, PredictedPeople]:
    config = given.config("hoi")
    converter = PeopleConverter(config.classes, actions, occurring(possible, config.classes) if possible else None)
    predicted: dict[int, PredictedPeople] = {}
    for row, pairs in predict_readable(config, given.row_groups(), notes):
        number = coco_image_id(row)
        if number not in people:
            raise UserError(f"image {number} is not in {given.annotations}; choose a split with --split")
        predicted[number] = converter.convert(pairs)
    return predicted


def read_vcoco(annotations: Path, coco: Path) -> tuple[Actions, dict[int, People]]:
    """The actions, and the persons of each annotated image. Raises UserError: a file is missing or invalid."""
    verbs, instances = _read_json(annotations), _read_json(coco)
    try:
        annotated = dict.fromkeys(image for verb in verbs for image in verb["image_id"])
        known = {image["id"] for image in instances["images"]}
        if missing := [image for image in annotated if image not in known]:
            raise UserError(f"{coco} lacks image {missing[0]} of {annotations}; use instances_vcoco_all_2014.json")
        people = read_people(instances, verbs)
        return read_actions(verbs), {image: own for image, own in people.items() if image in annotated}
    except EvaluationError as error:
        raise UserError(f"{annotations} with {coco}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise UserError(
            f"{annotations} and {coco} are not V-COCO's annotations with the COCO instances of its images: {error!r}"
        ) from None


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


def score_graphs(given: PredictionFiles | ModelRun, mode: Mode = "sgdet") -> EvaluationResult:
    """Evaluate scene graphs by Visual Genome's protocol, of VG150 or other classes; those of a model in mode sgdet."""
    images: GraphFiles | ModelGraphs
    if isinstance(given, PredictionFiles):
        classes = GraphClasses.of(read_classes(given.classes).classes) if given.classes else VG150_CLASSES
        images = GraphFiles(given.annotations, given.predictions, classes)
    else:
        config = given.config("scene graph")
        classes = GraphClasses.of(config.classes)
        if given.annotations is not None:
            annotated = read_graphs(given.annotations)
        else:
            source = shard_annotations(given.data, config.classes, given.split, persons_only=False)
            annotated = _shard_graphs(source, config.classes)
        images = ModelGraphs(annotated, config, given.row_groups())
    names = classes.predicates
    official = classes == VG150_CLASSES
    zero_shot = vg150_zero_shot() if official else None
    scored: list[str] = []
    with _explained(given.name):
        scores = evaluate_graphs(
            _noting(images.images(), scored),
            mode,
            zero_shot=zero_shot,
            num_objects=classes.num_objects,
            num_predicates=len(names),
        )
    rows: Rows = [{"predicate": name} for name in names]
    for prefix, recall in (("", scores.constrained), ("ng-", scores.unconstrained)):
        for most, shares in recall.per_predicate.items():
            for row, share in zip(rows, shares.tolist(), strict=True):
                row[f"{prefix}R@{most}"] = share

    def summary(scores: GraphScores) -> dict[str, float]:
        return {key: value for key, value in scores.summary().items() if official or "zR@" not in key}

    title = "Visual Genome" if official else "Visual Genome's protocol"
    resampling = Resampling(scored, lambda counts: summary(scores.resampled(counts)))
    return EvaluationResult(
        title, {"mode": mode}, summary(scores), rows, images.notes, resampling=resampling, **images.counts.as_result()
    )


def _vcoco_summary(scores: VcocoScores) -> dict[str, float]:
    summary = {}
    for scenario in scores.roles:
        summary[f"role AP, scenario {scenario}"] = scores.role_mean(scenario)
        summary[f"role AP, scenario {scenario}, with point"] = scores.role_mean(scenario, without_point=False)
    return {**summary, "agent AP": scores.agent_mean()}


def _vcoco_rows(scores: VcocoScores) -> Rows:
    parts: list[tuple[str, ClassScores, list[str]]] = []
    scenarios: list[Scenario] = list(scores.roles)
    for scenario in scenarios:
        parts.append((f"role, scenario {scenario}", scores.roles[scenario], scores.actions.role_names()))
    parts.append(("agent", scores.agents, list(scores.actions.names)))
    return [
        row
        for kind, part, names in parts
        for row in class_rows(part, [{"kind": kind, "class": names[number]} for number in part.classes.tolist()])
    ]


def _triplet_names(scores: ClassScores, numbers: TripletClasses, classes: DatasetClasses) -> list[dict[str, str]]:
    objects, relations = classes.objects, classes.relations
    return [
        {"subject": objects[subject], "predicate": relations[predicate], "object": objects[object_]}
        for subject, object_, predicate in numbers.labels(scores.classes).tolist()
    ]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(read_text(path, "file"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


@contextmanager
def _explained(predictions: Path | str) -> Iterator[None]:
    """Turn an error of an evaluator into a UserError."""
    try:
        yield
    except EvaluationError as error:
        raise UserError(f"{predictions}: {error}") from None


_AnyImage = TypeVar("_AnyImage", EvaluationImage, GraphImage, PeopleImage)


def _noting(images: Iterable[_AnyImage], names: list[str]) -> Iterator[_AnyImage]:
    """The images; their names are added to `names` as they are read."""
    for image in images:
        names.append(image.name)
        yield image


def _hico_groups(setting: Setting) -> tuple[dict[str, Array], dict[str, str]]:
    """The classes by group, and the names of measures that are renamed."""
    names = ("rare", "non-rare") if setting in ("default", "NF") else ("unseen", "seen")
    parts = split(setting)
    renamed = {f"mAP {old}": f"mAP {new}" for old, new in zip(("rare", "non-rare"), names, strict=True)}
    return dict(zip(names, (parts.rare, parts.non_rare), strict=True)), renamed


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

        Raises UserError: an input is missing or invalid, an image is not annotated, or no image can be read.
        """
        annotated, seen = read_annotations(self.source), set[str]()
        for row, pairs in predict_readable(self.config, self.row_groups, self.notes):
            name = row.file_name
            _check_name(name, annotated, seen, self.source.files["annotations"])
            self.counts.add(pairs)
            yield EvaluationImage(name, annotated[name], pairs)
        self.notes += self.counts.miss(annotated, seen)
        boxes, objects = np.zeros((0, 4), dtype=np.float32), np.zeros(0, dtype=int)
        scores = np.zeros((0, len(self.config.classes.relations)), dtype=np.float32)
        nothing = PredictedPairs(boxes, boxes, objects, objects, scores)
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
    from sgpipe.inference.predictor import predict  # it imports PyTorch

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


@dataclass
class ModelGraphs:
    """As `ModelImages`, for scene graphs. Images without predictions are left out."""

    annotated: dict[str, GroundTruthGraph]
    config: PredictConfig
    row_groups: Sequence[RowGroup]
    notes: list[str] = field(default_factory=list)
    counts: ScoredImages = field(default_factory=ScoredImages)

    def images(self) -> Iterator[GraphImage]:
        seen: set[str] = set()
        for row, pairs in predict_readable(self.config, self.row_groups, self.notes):
            _check_name(row.image_id, self.annotated, seen, "the annotations")
            self.counts.add(pairs)
            yield GraphImage(f"image {row.image_id}", self.annotated[row.image_id], predicted_graph(pairs, MOST_PAIRS))
        self.notes += self.counts.leave_out(self.annotated, seen)


def _check_name(name: str, annotated: Collection[str], seen: set[str], place: object) -> None:
    """Raise UserError if an image is not annotated or occurs twice."""
    if name not in annotated:
        raise UserError(f"image {name!r} is not in {place}; choose a split with --split")
    if name in seen:
        raise UserError(f"image {name!r} occurs twice; choose a split with --split")
    seen.add(name)


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
