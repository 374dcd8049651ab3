"""One function per benchmark: predictions, from a file or made by a model, in; `EvaluationResult`
out.

All raise UserError if an input is missing, invalid or would falsify the result; with a model,
EngineError as `predict`.
"""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from itertools import chain
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TypeVar

import numpy as np
from numpy.typing import NDArray

from rlip_model.evaluation import visual_genome
from rlip_model.evaluation.hico import HicoScores, HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import Setting, possible_interactions, split
from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage, PredictedPairs
from rlip_model.evaluation.open_images import (
    OpenImagesScores,
    OpenImagesSettings,
    PhraseOrder,
    evaluate_open_images,
)
from rlip_model.evaluation.recall import Recall
from rlip_model.evaluation.scores import ClassScores
from rlip_model.evaluation.suppression import PairSuppression
from rlip_model.evaluation.triplets import TripletClasses
from rlip_model.evaluation.vcoco import (
    Actions,
    People,
    PredictedPeople,
    VcocoScores,
    evaluate_vcoco,
)
from rlip_model.evaluation.vcoco_files import (
    people_images,
    read_actions,
    read_people,
    read_predicted_people,
)
from sgpipe.errors import UserError
from sgpipe.evaluation import inputs
from sgpipe.evaluation.plugin import Evaluator
from sgpipe.evaluation.result import EvaluationResult, Rows, ScoredImages, class_curve, class_rows
from sgpipe.files.image_roots import ImagePlace
from sgpipe.files.locations import Location, location, read_text
from sgpipe.files.model_cache import pin_model
from sgpipe.inference import predictions as inference
from sgpipe.inference.predictions import InferenceConfig, PredictConfig, RowGroup, Task
from sgpipe.plugins import code_identity, failures_told, load_instance
from sgpipe.recipe import named_model
from sgpipe.records import Record
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses
from sgpipe.sources.hoi import (
    HICO,
    OPEN_IMAGES,
    HoiaSchema,
    hico_source,
    open_images_source,
    read_classes,
)
from sgpipe.storage.run_records import Run
from sgpipe.utils.console import count

SPLIT = "test"  # the split of records that are only evaluated
MOST_PAIRS = 100  # per image of a scene graph, as the evaluator considers 100 triplets

Suppression = Literal["none", "published", "repaired"]
Name = TypeVar("Name", str, int)
_NamedGraph = tuple[str, visual_genome.PredictedGraph]


@dataclass(frozen=True)
class PredictionFiles:
    """A file of predictions, and the benchmark's annotations. classes: as for `read_classes`; None:
    the benchmark's.
    """

    predictions: Location
    annotations: Path
    classes: Path | None = None


@dataclass(frozen=True)
class ModelRun(InferenceConfig):
    """A model and the images to evaluate it on. Default annotations: the shards; classes: those of
    the data.
    """

    model: Location
    data: Location
    split: str | None = None
    images: ImagePlace | None = None
    annotations: Path | None = None
    classes: Path | None = None

    def hoia_schema(self) -> HoiaSchema | None:
        """Return that of `classes`, if set.

        Raises:
            UserError: as `read_classes`.
        """
        return read_classes(self.classes) if self.classes else None

    def config(self, task: Task) -> PredictConfig:
        """Return how the model predicts for a task.

        Raises:
            UserError: the data has no classes, or a store no such model.
        """
        schema = self.hoia_schema()
        classes = schema.classes if schema else inputs.data_classes(self.data)
        settings = {field.name: getattr(self, field.name) for field in fields(InferenceConfig)}
        name = named_model(str(self.model), "parseda")
        model = location(pin_model(name))  # one version on all machines
        return PredictConfig(model, classes, task, **settings)

    def row_groups(self) -> list[RowGroup]:
        return inference.list_row_groups(self.data, self.split, self.images)


def score_hico(
    evaluated: PredictionFiles | ModelRun,
    *,
    setting: Setting = "default",
    known_object: bool = False,
    pair_nms: bool = False,
    zero_shot: bool = False,
) -> EvaluationResult:
    """Evaluate interactions of persons by HICO-DET's protocol, also of other classes.

    Args:
        setting: how classes are grouped.
        known_object: evaluate a class only on images with its object.
        pair_nms: suppress overlapping pairs.
        zero_shot: with a model that was not fine-tuned, leave out subjects that look like another
            class.
    """
    scored_images = ScoredImages()
    classes, images = _pairs(
        evaluated, "zero-shot hoi" if zero_shot else "hoi", HICO, scored_images
    )
    official = classes == HICO.classes
    if not official and setting != "default":
        raise UserError(f"--setting {setting} groups HICO-DET's classes, but these are others")
    possible = np.ones((len(classes.relations), len(classes.objects)))
    if official:
        possible = possible_interactions()
    settings = HicoSettings(possible, PairSuppression() if pair_nms else None, known_object)
    with _explained(evaluated):
        scores = evaluate_hico(scored_images.named(images), settings)
    groups = {}
    if official:
        parts = split(setting)
        rare, non_rare = (
            ("rare", "non-rare") if setting in ("default", "NF") else ("unseen", "seen")
        )
        groups = {rare: parts.rare, non_rare: parts.non_rare}
    curves = {"all classes": class_curve(scores.per_class)}
    for name, group in groups.items():
        curves[name] = class_curve(scores.per_class, group)

    def summary(scores: HicoScores) -> dict[str, float]:
        means = {f"mAP {name}": scores.per_class.mean(group) for name, group in groups.items()}
        return {
            "mAP": scores.per_class.mean(),
            **means,
            "mean max recall": scores.per_class.mean_max_recall(),
        }

    return scored_images.result(
        "HICO-DET" if official else "HICO-DET's protocol",
        {"setting": setting, "known_object": known_object, "pair_nms": pair_nms},
        scores,
        summary,
        class_rows(scores.per_class, _triplet_names(scores.per_class, settings.classes, classes)),
        curves,
    )


def score_open_images(
    evaluated: PredictionFiles | ModelRun, suppression: Suppression = "none"
) -> EvaluationResult:
    """Evaluate scene graphs by Open Images' protocol."""
    scored_images = ScoredImages()
    classes, images = _pairs(evaluated, "scene graph", OPEN_IMAGES, scored_images)
    order: PhraseOrder = "repaired" if suppression == "repaired" else "published"
    nms = PairSuppression() if suppression != "none" else None
    settings = OpenImagesSettings(len(classes.objects), len(classes.relations), nms, order)
    with _explained(evaluated):
        scores = evaluate_open_images(scored_images.named(images), settings)
    relations = scores.relations[100]
    phrases = scores.phrases[100]
    return scored_images.result(
        "Open Images V6" if classes == OPEN_IMAGES.classes else "Open Images' protocol",
        {"nms": suppression},
        scores,
        OpenImagesScores.summary,
        class_rows(relations, _triplet_names(relations, settings.classes, classes)),
        {"relations": class_curve(relations), "phrases": class_curve(phrases)},
    )


def score_vcoco(
    evaluated: PredictionFiles | ModelRun, coco: Path, possible: Location | None = None
) -> EvaluationResult:
    """Evaluate by V-COCO's protocol, with its own vcoco_test.json.

    Args:
        coco: the COCO instances of its images.
        possible: with a model, a run such as the training set: what never occurs in it is scored 0.
            Without one, all occurs.

    Raises:
        UserError: a file is malformed, or lacks images.
    """
    assert evaluated.annotations is not None
    scored = ScoredImages()
    actions, people = _read_vcoco(evaluated.annotations, coco)
    if isinstance(evaluated, PredictionFiles):
        predicted = _read_predicted_people(evaluated.predictions, actions)
    else:
        config = evaluated.config("hoi")
        occurs = None if possible is None else _occurring_pairs(possible, config.classes)
        convert = inference.people_converter(config.classes, actions, occurs)
        predictions = _predictions(evaluated, config, people, inference.coco_image_id, scored)
        predicted = {image: convert(pairs) for image, pairs in predictions}
    with _explained(evaluated):
        scores = evaluate_vcoco(scored.named(people_images(people, predicted, actions)), actions)
    scored.predicted = {*predicted}
    scored.lack(people, missed=True)
    scored.unpredicted = frozenset()  # its format has no item for an image without persons

    rows: Rows = []
    curves = {}
    for kind, part, names in _vcoco_parts(scores, actions):
        labels = [{"kind": kind, "class": names[number]} for number in part.classes.tolist()]
        rows += class_rows(part, labels)
        curves[kind] = class_curve(part)
    return scored.result("V-COCO", {}, scores, _vcoco_summary, rows, curves)


def _read_vcoco(annotations: Path, coco: Path) -> tuple[Actions, dict[int, People]]:
    """Return V-COCO's actions, and the people of its images.

    Raises:
        UserError: a file is malformed, or the COCO instances lack an image.
    """
    verbs = _read_json(annotations)
    instances = _read_json(coco)
    with inputs.naming(f"{annotations} and {coco}"):
        images = dict.fromkeys(chain.from_iterable(verb["image_id"] for verb in verbs))
        known_images = {image["id"] for image in instances["images"]}
        for image in images:
            if image not in known_images:
                raise UserError(
                    f"{coco} lacks image {image} of {annotations}; use"
                    " instances_vcoco_all_2014.json"
                )
        actions = read_actions(verbs)
        people = read_people(instances, verbs)
        return actions, {image: people[image] for image in people if image in images}


def _read_predicted_people(path: Location, actions: Actions) -> dict[int, PredictedPeople]:
    detections = _read_json(path)
    if not isinstance(detections, list) or not detections:
        raise UserError(f"{path} contains no predictions: expected a list of detections")
    with inputs.naming(str(path)):
        return read_predicted_people(detections, actions)


def _occurring_pairs(run: Location, classes: DatasetClasses) -> NDArray[np.bool_]:
    """Return `[predicates, objects]`: whether a relation of the run has both."""
    pairs: set[tuple[str, str]] = set()
    for table in Run(run).relation_tables():
        predicates = table["predicate"].to_pylist()
        pairs.update(zip(predicates, table["object_category"].to_pylist(), strict=True))
    rows = []
    for predicate in classes.relations:
        rows.append([(predicate, object_) in pairs for object_ in classes.objects])
    return np.array(rows)


def _vcoco_parts(
    scores: VcocoScores, actions: Actions
) -> list[tuple[str, ClassScores, Sequence[str]]]:
    """Return the kinds of classes that are scored: their title, scores and names."""
    parts: list[tuple[str, ClassScores, Sequence[str]]] = []
    for scenario, roles in scores.roles.items():
        parts.append((f"role, scenario {scenario}", roles, actions.role_names()))
    parts.append(("agent", scores.agents, actions.names))
    return parts


def _vcoco_summary(scores: VcocoScores) -> dict[str, float]:
    means = {}
    for scenario in scores.roles:
        title = f"role AP, scenario {scenario}"
        means[title] = scores.role_mean(scenario)
        means[f"{title}, with point"] = scores.role_mean(scenario, without_point=False)
    return {**means, "agent AP": scores.agent_mean()}


def score_graphs(
    evaluated: PredictionFiles | ModelRun, mode: visual_genome.Mode = "sgdet"
) -> EvaluationResult:
    """Evaluate scene graphs by Visual Genome's protocol, of VG150 or other classes; those of a
    model in mode sgdet.
    """
    scored_images = ScoredImages()
    classes, annotated, predictions = _graphs(evaluated, scored_images)
    images = (
        visual_genome.GraphImage(f"image {name}", annotated[name], predicted)
        for name, predicted in predictions
    )
    names = classes.relations
    sizes = (len(classes.objects), names)
    official = sizes == (len(inputs.VG150_CLASSES.objects), inputs.VG150_CLASSES.relations)
    with _explained(evaluated):
        scores = visual_genome.evaluate_graphs(
            scored_images.named(images),
            mode,
            zero_shot=visual_genome.vg150_zero_shot() if official else None,
            num_objects=len(classes.objects),
            num_predicates=len(names),
        )
        scored_images.lack(annotated, missed=False)
    rows: Rows = [{"predicate": name} for name in names]
    _add_recalls(rows, "", scores.constrained)
    _add_recalls(rows, "ng-", scores.unconstrained)

    def summary(scores: visual_genome.GraphScores) -> dict[str, float]:
        measures = scores.summary()
        if official:
            return measures
        return {name: value for name, value in measures.items() if "zR@" not in name}

    title = "Visual Genome" if official else "Visual Genome's protocol"
    return scored_images.result(title, {"mode": mode}, scores, summary, rows)


def _graphs(
    evaluated: PredictionFiles | ModelRun, scored: ScoredImages
) -> tuple[DatasetClasses, Mapping[str, visual_genome.GroundTruthGraph], Iterator[_NamedGraph]]:
    """Return the classes, the annotated graphs by image, and the predicted ones."""
    if isinstance(evaluated, PredictionFiles):
        classes = inputs.VG150_CLASSES
        if evaluated.classes:
            classes = read_classes(evaluated.classes).classes
        annotated = inputs.read_graphs(evaluated.annotations)
        return (
            classes,
            annotated,
            inputs.read_predicted_graphs(evaluated.predictions, classes, annotated, scored),
        )
    config = evaluated.config("scene graph")
    if evaluated.annotations is not None:
        annotated = inputs.read_graphs(evaluated.annotations)
    else:
        annotated = _graphs_of_shards(evaluated, config.classes)
    pairs = _predictions(evaluated, config, annotated, lambda row: row.image_id, scored)
    graphs = ((name, inference.predicted_graph(pair, MOST_PAIRS)) for name, pair in pairs)
    return config.classes, annotated, graphs


def _graphs_of_shards(
    run: ModelRun, classes: DatasetClasses
) -> dict[str, visual_genome.GroundTruthGraph]:
    """Return what the shards annotate, with numbers from 1, as the evaluator counts classes."""
    source = inputs.shard_annotations(run.data, classes, run.split, persons_only=False)
    graphs = {}
    for name, annotation in inputs.read_annotations(source, "image_id").items():
        relations = np.add(annotation.triplets, (0, 0, 1))
        labels = annotation.labels + 1
        graphs[name] = visual_genome.GroundTruthGraph(annotation.boxes, labels, relations)
    return graphs


def _add_recalls(rows: Rows, prefix: str, recall: Recall) -> None:
    """Add the recall of each predicate at each number of triplets to the rows of the predicates."""
    for triplets, shares in recall.per_predicate.items():
        for row, share in zip(rows, shares.tolist(), strict=True):
            row[f"{prefix}R@{triplets}"] = share


def score_plugin(
    evaluated: PredictionFiles | ModelRun, reference: str, options: Mapping[str, object]
) -> EvaluationResult:
    """Evaluate relations by an `Evaluator` of the user's own."""
    evaluator = load_instance("evaluator", reference, Evaluator)
    scored_images = ScoredImages()
    is_hico = evaluator.form == "hico"
    task: Task = "hoi" if is_hico else "scene graph"
    schema = HICO if is_hico else OPEN_IMAGES
    classes, read = _pairs(evaluated, task, schema, scored_images)
    sizes = (len(classes.objects), len(classes.relations))
    images = []
    with _explained(evaluated):
        for image in scored_images.named(read):
            image.ground_truth.check(image.name, *sizes)
            image.predicted.check(image.name, *sizes)
            images.append(image)

    def measured(scores: _Images) -> Mapping[str, float]:
        with failures_told("evaluator", reference):
            return _checked_measures(
                evaluator.measure(scores.images, classes, **options), reference
            )

    settings = {"code": code_identity("evaluator", reference)}
    settings |= {name: str(value) for name, value in options.items()}
    return scored_images.result(evaluator.name, settings, _Images(images), measured, [])


def _checked_measures(measures: object, evaluator: str) -> dict[str, float]:
    """Return what an evaluator of the user's own measures.

    Raises:
        UserError: it is something else than numbers by name.
    """
    if not isinstance(measures, Mapping):
        raise UserError(
            f"evaluator {evaluator} returns {reprlib.repr(measures)}: expected numbers by their"
            ' names, such as {"recall": 0.5}'
        )
    checked: dict[str, float] = {}
    for name, value in measures.items():
        if not isinstance(value, SupportsFloat):
            raise UserError(
                f"evaluator {evaluator} returns {name!r}: {reprlib.repr(value)}, expected a number"
            )
        checked[str(name)] = int(value) if isinstance(value, Integral) else float(value)
    return checked


@dataclass(frozen=True)
class _Images:
    """Images that are measured together."""

    images: Sequence[EvaluationImage]

    def resampled(self, counts: NDArray[np.int_]) -> _Images:
        """Return each image as often as it is counted."""
        numbers = np.repeat(np.arange(len(self.images)), counts)
        return _Images([self.images[number] for number in numbers.tolist()])


def _triplet_names(
    scores: ClassScores, numbers: TripletClasses, classes: DatasetClasses
) -> list[dict[str, str]]:
    objects = classes.objects
    relations = classes.relations
    return [
        {"subject": objects[subject], "predicate": relations[predicate], "object": objects[object_]}
        for subject, object_, predicate in numbers.labels(scores.classes).tolist()
    ]


def _read_json(path: Location) -> Any:
    try:
        return json.loads(read_text(path, "file"))  # whole: item by item it takes twice the time
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON, or is cut short: {error}") from None


@contextmanager
def _explained(evaluated: PredictionFiles | ModelRun) -> Iterator[None]:
    """Turn errors of an evaluator into UserErrors."""
    try:
        yield
    except EvaluationError as error:
        name = evaluated.predictions if isinstance(evaluated, PredictionFiles) else evaluated.model
        raise UserError(f"{name}: {error}") from None


def _predictions(
    evaluated: ModelRun,
    config: PredictConfig,
    annotated: Collection[Name],
    name_of: Callable[[Record], Name],
    scored: ScoredImages,
) -> Iterator[tuple[Name, PredictedPairs]]:
    """Yield the names and predictions of the images that can be read; the number of others is
    noted.
    """
    from sgpipe.inference.predictor import predict  # it imports PyTorch

    failed = list[str]()
    for prediction in predict(config, evaluated.row_groups()):
        if prediction.pairs is None:
            failed.append(prediction.error or "")
            continue
        name = name_of(prediction.row)
        scored.add(name, annotated, f"{evaluated.data} (choose a split with --split)")
        yield name, prediction.pairs
    first = failed[0] if failed else "the data has no images"
    if not scored.predicted:
        raise UserError(f"no image could be read: {first}")
    if failed:
        scored.notes.append(f"{count(len(failed), 'image')} could not be read; the first: {first}")


def _pairs(
    evaluated: PredictionFiles | ModelRun, task: Task, official: HoiaSchema, scored: ScoredImages
) -> tuple[DatasetClasses, Iterator[EvaluationImage]]:
    """Return the classes and the annotated images; official: those of HICO-DET or Open Images."""
    is_hico = official is HICO
    source_of = hico_source if is_hico else open_images_source
    source = None
    if evaluated.annotations is not None:
        source = source_of(evaluated.annotations, SPLIT, evaluated.classes)
    if isinstance(evaluated, PredictionFiles):
        assert source is not None
        schema = read_classes(evaluated.classes) if evaluated.classes else official
        key = "hoi_prediction" if is_hico else "rel_prediction"
        return schema.classes, inputs.read_pairs(source, evaluated.predictions, key, schema, scored)
    config = evaluated.config(task)
    source = source or inputs.shard_annotations(
        evaluated.data, config.classes, evaluated.split, persons_only=is_hico
    )
    if source.classes != config.classes:
        hint = "omit --annotations, or list them in --classes"
        raise UserError(f"{evaluated.data} has other classes than {evaluated.annotations}: {hint}")
    return config.classes, _predicted_pairs(evaluated, config, source, scored)


def _predicted_pairs(
    evaluated: ModelRun, config: PredictConfig, source: AnnotationSource, scored: ScoredImages
) -> Iterator[EvaluationImage]:
    """Yield all annotated images; those that the shards lack or that cannot be read have no
    predictions.
    """
    annotated = inputs.read_annotations(source)
    for name, pairs in _predictions(
        evaluated, config, annotated, lambda row: row.file_name, scored
    ):
        yield EvaluationImage(name, annotated[name], pairs)
    scored.lack(annotated, missed=True)
    for name, ground_truth in annotated.items():
        if name in scored.unpredicted:
            yield EvaluationImage(name, ground_truth, inputs.no_pairs(config.classes))
