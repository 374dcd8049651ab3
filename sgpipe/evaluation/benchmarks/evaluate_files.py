"""One function per benchmark: files in, `EvaluationResult` out."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from shlex import quote
from typing import Any, Literal, Protocol, TypeVar

import numpy as np

from rlip_model.evaluation.hico import HicoScores, HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import SETTINGS, Setting, possible_interactions, split
from rlip_model.evaluation.inputs import Array, EvaluationError, EvaluationImage
from rlip_model.evaluation.open_images import OpenImagesSettings, PhraseOrder, evaluate_open_images
from rlip_model.evaluation.scores import ClassScores
from rlip_model.evaluation.suppression import PairSuppression
from rlip_model.evaluation.triplets import TripletClasses
from rlip_model.evaluation.vcoco import Actions, People, PredictedPeople, Scenario, VcocoScores, evaluate_vcoco
from rlip_model.evaluation.vcoco_files import AGENT, people_images, read_actions, read_people, read_predicted_people
from rlip_model.evaluation.visual_genome import GraphImage, GraphScores, Mode, evaluate_graphs, vg150_zero_shot
from sgpipe.errors import UserError
from sgpipe.evaluation.benchmarks.classes import read_classes
from sgpipe.evaluation.benchmarks.graphs import VG150_CLASSES, GraphClasses, GraphFiles
from sgpipe.evaluation.benchmarks.pairs import PairFiles
from sgpipe.evaluation.bootstrap import Resampling
from sgpipe.evaluation.result import EvaluationResult, Rows, ScoredImages, class_curve, class_rows
from sgpipe.files.text_files import read_text
from sgpipe.sources.annotated import AnnotationSource, DatasetClasses
from sgpipe.sources.hoi import HICO, OPEN_IMAGES, OpenImages, hico_source, read_hoia
from sgpipe.utils.console import count

SPLIT = "test"  # the split of records that are only evaluated

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


class ReadingNotes(Protocol):
    """What reading annotated images with their predictions fills."""

    notes: list[str]
    counts: ScoredImages


class EvaluationImages(ReadingNotes, Protocol):
    """Annotated images with their predictions."""

    def images(self) -> Iterator[EvaluationImage]: ...


def evaluate_hico_files(
    predictions: Path, annotations: Path, options: HicoOptions, classes: Path | None = None
) -> EvaluationResult:
    """HICO-DET, or files in its format with other classes.

    Raises:
        UserError: a file is missing or invalid, or has values that would falsify the result.
    """
    if classes is None:
        source, schema = hico_source(annotations, SPLIT), HICO
    else:
        schema = read_classes(classes)
        read = partial(read_hoia, annotations, schema, "hico", SPLIT)
        source = AnnotationSource("hico", SPLIT, read, {"annotations": annotations}, classes=schema.classes)
    files = PairFiles(source, predictions, schema, "hoi_prediction", _advice("hico", predictions, annotations, classes))
    return hico_result(files, schema.classes, options, str(predictions))


def _advice(
    benchmark: str, predictions: Path, annotations: Path, classes: Path | None = None, coco: Path | None = None
) -> str:
    """The two commands that predict and evaluate the classes of the annotations."""
    beside = annotations.with_name(f"{annotations.stem}_classes.json")  # as `sgpipe miniworld` writes it
    names = classes or (beside if beside.is_file() else Path("CLASSES.json"))
    files = f"--predictions {quote(str(predictions))} --annotations {quote(str(annotations))}"
    files += f" --coco {quote(str(coco))}" if coco else ""
    what, option = "list its classes for both commands", f" --classes {quote(str(names))}"
    if benchmark in ("openimages", "vcoco"):
        what, option = f"predict on shards of `sgpipe import {benchmark}`", ""
    predict = f"sgpipe predict MODEL --data SHARDS --form {benchmark}{option} --out {quote(str(predictions))}"
    mode = " --mode sgdet" if benchmark == "vg" else ""
    return f"{what}: `{predict}`, then `sgpipe eval {benchmark}{mode} {files}{option}`"


def hico_result(images: EvaluationImages, classes: DatasetClasses, options: HicoOptions, name: str) -> EvaluationResult:
    """HICO-DET's protocol. `name`: the source of the predictions. Raises UserError: as `evaluate_hico_files`."""
    official = classes == HICO.classes
    if not official and options.setting != "default":
        raise UserError(f"--setting {options.setting} groups HICO-DET's classes, but these are others")
    possible = possible_interactions() if official else np.ones((len(classes.relations), len(classes.objects)))
    settings = HicoSettings(possible, PairSuppression() if options.pair_nms else None, options.known_object)
    scored: list[str] = []
    with _explained(name):
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


class _Named(Protocol):
    @property
    def name(self) -> str: ...


_AnyImage = TypeVar("_AnyImage", bound=_Named)


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


def evaluate_open_images_files(
    predictions: Path, annotations: Path, suppression: Suppression = "none"
) -> EvaluationResult:
    """Open Images V6 scene graphs. Raises UserError: as `evaluate_hico_files`."""
    source = OpenImages(annotations, SPLIT).source()
    advice = _advice("openimages", predictions, annotations)
    files = PairFiles(source, predictions, OPEN_IMAGES, "rel_prediction", advice)
    return open_images_result(files, OPEN_IMAGES.classes, suppression, str(predictions))


def open_images_result(
    images: EvaluationImages, classes: DatasetClasses, suppression: Suppression, name: str
) -> EvaluationResult:
    """Open Images' protocol; arguments as for `hico_result`."""
    order: PhraseOrder = "repaired" if suppression == "repaired" else "published"
    settings = OpenImagesSettings(
        len(classes.objects),
        len(classes.relations),
        PairSuppression() if suppression != "none" else None,
        order,
    )
    scored: list[str] = []
    with _explained(name):
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


def evaluate_vcoco_files(predictions: Path, annotations: Path, coco: Path) -> EvaluationResult:
    """V-COCO, with its own vcoco_test.json and the COCO instances. Raises UserError: as `evaluate_hico_files`."""
    actions, people = read_vcoco(annotations, coco)
    detections = _read_json(predictions)
    if not isinstance(detections, list) or not detections:
        raise UserError(f"{predictions} contains no predictions: expected a list of detections")
    own = [key for key in detections[0] if str(key).endswith(f"_{AGENT}")] if isinstance(detections[0], dict) else []
    if own and (missing := {f"{name}_{AGENT}" for name in actions.names} - set(own)):
        advice = _advice("vcoco", predictions, annotations, coco=coco)
        raise UserError(f"{predictions} has no {min(missing)!r}, which is an action of {annotations}; {advice}")
    with _explained(predictions):
        try:
            predicted = read_predicted_people(detections, actions)
        except (KeyError, TypeError) as error:
            raise UserError(f"{predictions}: expected detections in V-COCO's format: {error!r}") from None
    return vcoco_result(people, predicted, actions, [], str(predictions))


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


def vcoco_result(
    people: Mapping[int, People],
    predicted: Mapping[int, PredictedPeople],
    actions: Actions,
    notes: list[str],
    name: str,
) -> EvaluationResult:
    """V-COCO's protocol; arguments as for `hico_result`. Raises UserError: as `evaluate_hico_files`."""
    scored: list[str] = []
    with _explained(name):
        scores = evaluate_vcoco(_noting(people_images(people, predicted, actions), scored), actions)
    counts = ScoredImages(len(predicted), missing=len(people) - len(predicted))
    if counts.missing:
        total = count(len(people), "annotated image")
        notes.append(f"no predictions for {counts.missing:,} of {total}: counted as missed")
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


def evaluate_graph_files(
    predictions: Path, annotations: Path, mode: Mode, classes: Path | None = None
) -> EvaluationResult:
    """Scene graphs of Visual Genome (VG150) or of other classes. Raises UserError: as `evaluate_hico_files`."""
    graph_classes = GraphClasses.of(read_classes(classes).classes) if classes else VG150_CLASSES
    advice = _advice("vg", predictions, annotations, classes)
    files = GraphFiles(annotations, predictions, graph_classes, advice)
    return graph_result(files.images(), graph_classes, mode, files, str(predictions))


def graph_result(
    images: Iterable[GraphImage], classes: GraphClasses, mode: Mode, read: ReadingNotes, name: str
) -> EvaluationResult:
    """The protocol of Visual Genome's scene graphs.

    Args:
        read: what reading the images fills.

    Raises UserError: as `evaluate_hico_files`.
    """
    names = classes.predicates
    official = classes == VG150_CLASSES
    zero_shot = vg150_zero_shot() if official else None
    scored: list[str] = []
    with _explained(name):
        scores = evaluate_graphs(
            _noting(images, scored),
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
        title, {"mode": mode}, summary(scores), rows, read.notes, resampling=resampling, **read.counts.as_result()
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
