"""Images of the reference files as the evaluators take them, and nested numbers, ours beside
theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.evaluation.scores import ClassScores
from rlip_model.evaluation.triplets import TripletClasses
from tests.parity.golden import Report, Row

TOLERANCE = 1e-6
# of how they were made
NOT_FIGURES = {
    "env",
    "mode",
    "seconds_official",
    "cpu_seconds_official",
    "printed",
}


def compare(report: Report, section: str, ours: Any, theirs: Any, name: str = "") -> None:
    """One row per list or table of numbers, with the largest difference. What only one side has
    fails.
    """
    if is_table(theirs) and is_table(ours):
        _compare_numbers(report, section, name, ours, theirs)
    elif isinstance(theirs, Mapping) and isinstance(ours, Mapping):
        numbers = {
            key: value
            for key, value in theirs.items()
            if key not in NOT_FIGURES and is_number(value)
        }
        if numbers:
            our_numbers = {key: value for key, value in ours.items() if is_number(value)}
            _compare_numbers(report, section, name, our_numbers, numbers)
        for key in _keys(theirs, ours):
            if key not in numbers and not (key in ours and is_number(ours[key])):
                inner = f"{name} {key}".strip()
                if key not in theirs or key not in ours:
                    only = "computed" if key in ours else "official"
                    report.require(section, f"{inner}: only {only}", False)
                else:
                    compare(report, section, ours[key], theirs[key], inner)
    else:
        report.require(section, f"{name}: of another form", False)


def is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def is_table(value: Any) -> bool:
    items = (
        value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else [{}]
    )
    return all(map(is_number, items))


def _keys(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterable[str]:
    return [key for key in {**theirs, **ours} if key not in NOT_FIGURES]


def _compare_numbers(report: Report, section: str, name: str, ours: Any, theirs: Any) -> None:
    our_numbers = dict(_numbered(ours))
    other = dict(_numbered(theirs))
    differences = {
        key: _difference(our_numbers[key], other[key]) for key in our_numbers.keys() & other.keys()
    }
    differences.update((key, math.inf) for key in our_numbers.keys() ^ other.keys())
    worst = max(differences, key=lambda key: differences[key], default=None)
    largest = 0.0 if worst is None else differences[worst]
    place = f"{name} ({len(other)} numbers{f', {worst}' if largest > TOLERANCE else ''})"
    report.rows.append(Row(section, place.strip(), largest, TOLERANCE, largest <= TOLERANCE))


def _numbered(values: Any) -> Iterator[tuple[Any, float]]:
    items = values.items() if isinstance(values, Mapping) else enumerate(values)
    return ((key, math.nan if value is None else float(value)) for key, value in items)


def _difference(ours: float, theirs: float) -> float:
    """Absolute; two NaN are equal, one is infinitely far."""
    if math.isnan(ours) or math.isnan(theirs):
        return 0.0 if math.isnan(ours) and math.isnan(theirs) else math.inf
    return 0.0 if ours == theirs else abs(ours - theirs)


def by_class(rows: list[dict[str, Any]], key: str) -> dict[str, dict[str, Any]]:
    """Rows with a class each as columns: column name, class, number."""
    columns: dict[str, dict[str, Any]] = {}
    for row in rows:
        for column, value in row.items():
            if column != key:
                columns.setdefault(column, {})[str(row[key])] = value
    return columns


def stable_settings(
    report: Report, section: str, settings: Mapping[str, Any], stable: str
) -> dict[str, Any]:
    """The settings to compare: where some sorted stably, only they."""
    chosen = {name: value for name, value in settings.items() if stable in name} or dict(settings)
    left_out = [name for name in settings if name not in chosen]
    report.skipped += [
        f"{section}, {name}: there numpy sorted equal scores as it liked" for name in left_out
    ]
    return chosen


def pair_images(
    images: Iterable[dict[str, Any]],
    section: str,
    triplets: str,
    num_predicates: int,
    sparse: bool = False,
) -> list[EvaluationImage]:
    """`triplets`: the key of the true ones; `sparse`: scores are [pair, predicate, score], others
    0.
    """
    return [
        _pair_image(image["gt"], image["pred"], section, triplets, num_predicates, sparse)
        for image in images
    ]


def small_set(content: dict[str, Any]) -> list[dict[str, Any]]:
    """The few images of the model's reference folder, in the form of the others."""
    return [
        {"gt": truth, "pred": pred}
        for truth, pred in zip(content["gts"], content["preds"], strict=True)
    ]


def _pair_image(
    truth: dict[str, Any],
    prediction: dict[str, Any],
    name: str,
    triplets: str,
    num_predicates: int,
    sparse: bool,
) -> EvaluationImage:
    boxes = np.array(prediction["boxes"], dtype=np.float32).reshape(-1, 4)
    labels = np.array(prediction["labels"], dtype=int)
    subjects, objects = (np.array(prediction[key], dtype=int) for key in ("sub_ids", "obj_ids"))
    if sparse:
        scores = np.zeros((len(subjects), num_predicates), dtype=np.float32)
        for pair, predicate, score in prediction["verb_scores"]:
            scores[pair, predicate] = score
    else:
        scores = np.array(prediction["verb_scores"], dtype=np.float32).reshape(-1, num_predicates)
    pairs = PredictedPairs(
        boxes[subjects], boxes[objects], labels[subjects], labels[objects], scores
    )
    return EvaluationImage(
        name, ImageGroundTruth.from_lists(truth["boxes"], truth["labels"], truth[triplets]), pairs
    )


def class_table(scores: ClassScores, classes: TripletClasses) -> dict[str, dict[str, Any]]:
    """The official columns: column, class, number; none without classes."""
    names = list(map(str, classes.labels(scores.classes).tolist()))
    columns = {
        "gt": scores.targets, "n_pred": scores.detections, "tp": scores.true_positives,
        "ap": scores.average_precision, "max_recall": scores.max_recall,
    }  # fmt: skip
    return {
        column: dict(zip(names, values.tolist(), strict=True))
        for column, values in columns.items()
        if names
    }
