"""One function per benchmark: files in, `EvaluationResult` out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

from rlip_model.evaluation.hico import HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import CLASSES, SETTINGS, Setting, split
from rlip_model.evaluation.inputs import EvaluationError
from rlip_model.evaluation.open_images import OpenImagesSettings, PhraseOrder, evaluate_open_images
from rlip_model.evaluation.scores import ClassScores
from rlip_model.evaluation.suppression import PairSuppression
from rlip_model.evaluation.triplets import TripletClasses
from rlip_model.evaluation.vcoco import Scenario, VcocoScores, evaluate_vcoco
from rlip_model.evaluation.vcoco_files import people_images, read_actions, read_found_people, read_people
from rlip_model.evaluation.visual_genome import VG150_PREDICATES, Mode, evaluate_graphs, vg150_zero_shot
from sgpipe.errors import UserError
from sgpipe.evaluation.graphs import GraphFiles
from sgpipe.evaluation.pairs import PairFiles
from sgpipe.evaluation.result import EvaluationResult, Rows, class_rows
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.hoi import HICO, Numbering, hico_source
from sgpipe.sources.open_images import OpenImages
from sgpipe.vocabulary import category_names, relation_names

OPEN_IMAGES = Numbering("rel_annotations", category_names("open_images"), relation_names("open_images"))
SPLIT = "test"  # of records that are only evaluated

Suppression = Literal["none", "published", "repaired"]


def evaluate_hico_files(
    predictions: Path, annotations: Path, setting: Setting = "default", *, known_object: bool, pair_nms: bool
) -> EvaluationResult:
    """HICO-DET.

    Raises:
        UserError: a file is missing or wrong, or has something in it that would make numbers wrong.
    """
    if setting not in SETTINGS:
        raise UserError(f"unknown setting {setting!r}: expected one of {', '.join(SETTINGS)}")
    files = PairFiles(hico_source(annotations, SPLIT), predictions, HICO, "hoi_prediction")
    settings = HicoSettings(suppression=PairSuppression() if pair_nms else None, known_object=known_object)
    with _explained(predictions):
        scores = evaluate_hico(files.images(), settings)
    summary = scores.summary(split(setting))
    if setting not in ("default", "NF"):
        names = {"mAP rare": "mAP unseen", "mAP non-rare": "mAP seen"}
        summary = {names.get(name, name): value for name, value in summary.items()}
    rows = class_rows(scores.per_class, _triplet_names(scores.per_class, CLASSES, files.source))
    options = {"setting": setting, "known_object": known_object, "pair_nms": pair_nms}
    return EvaluationResult("HICO-DET", options, summary, rows, files.notes)


def evaluate_open_images_files(
    predictions: Path, annotations: Path, suppression: Suppression = "none"
) -> EvaluationResult:
    """Open Images V6 scene graphs; classes are listed for relations. Raises UserError, as above."""
    source = OpenImages(annotations, SPLIT).source()
    files = PairFiles(source, predictions, OPEN_IMAGES, "rel_prediction")
    order: PhraseOrder = "repaired" if suppression == "repaired" else "published"
    settings = OpenImagesSettings(
        len(OPEN_IMAGES.objects),
        len(OPEN_IMAGES.relations),
        PairSuppression() if suppression != "none" else None,
        order,
    )
    with _explained(predictions):
        scores = evaluate_open_images(files.images(), settings)
    relations = scores.relations[100]
    rows = class_rows(relations, _triplet_names(relations, settings.classes, source))
    return EvaluationResult("Open Images V6", {"nms": suppression}, scores.summary(), rows, files.notes)


def evaluate_vcoco_files(predictions: Path, annotations: Path, coco: Path) -> EvaluationResult:
    """V-COCO, from its own files: vcoco_test.json and the COCO instances it refers to. Raises UserError, as above."""
    verbs, instances, detections = (_read_json(path) for path in (annotations, coco, predictions))
    try:
        actions = read_actions(verbs)
        annotated = dict.fromkeys(image for verb in verbs for image in verb["image_id"])
        people = read_people(instances, verbs)
        chosen = {image: own for image, own in people.items() if image in annotated}
        missing = next((image for image in annotated if image not in people), None)
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{annotations} and {coco} are not V-COCO's annotations with the COCO instances of its images: {error!r}"
        ) from None
    if missing is not None:
        raise UserError(f"{coco} lacks image {missing} of {annotations}; use instances_vcoco_all_2014.json")
    if not isinstance(detections, list) or not detections:
        raise UserError(f"{predictions} holds no predictions: expected a list of detections")
    with _explained(predictions):
        try:
            found = read_found_people(detections, actions)
        except (KeyError, TypeError) as error:
            raise UserError(f"{predictions}: expected detections as V-COCO's evaluator takes them: {error!r}") from None
        scores = evaluate_vcoco(people_images(chosen, found, actions), actions)
    notes = []
    if empty := len(chosen) - len(found):
        notes.append(f"{empty:,} of {len(chosen):,} annotated images have no predictions: all missed")
    return EvaluationResult("V-COCO", {}, _vcoco_summary(scores), _vcoco_rows(scores), notes)


def evaluate_graph_files(predictions: Path, annotations: Path, mode: Mode) -> EvaluationResult:
    """Visual Genome (VG150) scene graphs; classes are predicates. Raises UserError, as above."""
    files = GraphFiles(annotations, predictions)
    with _explained(predictions):
        scores = evaluate_graphs(files.images(), mode, zero_shot=vg150_zero_shot())
    rows: Rows = [{"predicate": name} for name in VG150_PREDICATES]
    for prefix, recall in (("", scores.constrained), ("ng-", scores.unconstrained)):
        for most, shares in recall.per_predicate.items():
            for row, share in zip(rows, shares.tolist(), strict=True):
                row[f"{prefix}R@{most}"] = share
    return EvaluationResult("Visual Genome", {"mode": mode}, scores.summary(), rows, files.notes)


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


def _triplet_names(scores: ClassScores, classes: TripletClasses, source: AnnotationSource) -> list[dict[str, str]]:
    assert source.classes is not None
    objects, relations = source.classes.objects, source.classes.relations
    return [
        {"subject": objects[subject], "predicate": relations[predicate], "object": objects[object_]}
        for subject, object_, predicate in classes.labels(scores.classes).tolist()
    ]


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}") from None


@contextmanager
def _explained(predictions: Path) -> Iterator[None]:
    """Raises UserError for what an evaluator refuses."""
    try:
        yield
    except EvaluationError as error:
        raise UserError(f"{predictions}: {error}") from None
