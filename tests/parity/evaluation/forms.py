"""Images of the reference files as the evaluators take them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.evaluation.scores import ClassScores
from rlip_model.evaluation.triplets import TripletClasses


def pair_images(
    images: Iterable[dict[str, Any]], section: str, triplets: str, num_predicates: int, sparse: bool = False
) -> list[EvaluationImage]:
    """`triplets`: the key of the true ones; `sparse`: scores are [pair, predicate, score], others 0."""
    return [_pair_image(image["gt"], image["pred"], section, triplets, num_predicates, sparse) for image in images]


def small_set(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The few images of the model's reference folder, in the form of the others."""
    return [{"gt": truth, "pred": found} for truth, found in zip(content["gts"], content["preds"], strict=True)]


def _pair_image(
    truth: dict[str, Any], found: dict[str, Any], name: str, triplets: str, num_predicates: int, sparse: bool
) -> EvaluationImage:
    boxes = np.array(found["boxes"], dtype=np.float32).reshape(-1, 4)
    labels = np.array(found["labels"], dtype=int)
    subjects, objects = (np.array(found[key], dtype=int) for key in ("sub_ids", "obj_ids"))
    if sparse:
        scores = np.zeros((len(subjects), num_predicates), dtype=np.float32)
        for pair, predicate, score in found["verb_scores"]:
            scores[pair, predicate] = score
    else:
        scores = np.array(found["verb_scores"], dtype=np.float32).reshape(-1, num_predicates)
    return EvaluationImage(
        name,
        ImageGroundTruth.from_lists(truth["boxes"], truth["labels"], truth[triplets]),
        PredictedPairs(boxes[subjects], boxes[objects], labels[subjects], labels[objects], scores),
    )


def class_table(scores: ClassScores, classes: TripletClasses) -> dict[str, dict[str, Any]]:
    """The official columns: column, class, number; none without classes."""
    names = [str(labels) for labels in classes.labels(scores.classes).tolist()]
    columns = {
        "gt": scores.targets,
        "n_pred": scores.detections,
        "tp": scores.true_positives,
        "ap": scores.average_precision,
        "max_recall": scores.max_recall,
    }
    return {column: dict(zip(names, values.tolist(), strict=True)) for column, values in columns.items() if names}
