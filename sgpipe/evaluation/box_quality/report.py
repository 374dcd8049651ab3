"""Box quality as tables, JSON, CSV and curves."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rlip_model.evaluation.inputs import Array
from sgpipe.errors import UserError
from sgpipe.evaluation.bootstrap import Resampling
from sgpipe.evaluation.box_quality.boxes import is_run, listed
from sgpipe.evaluation.box_quality.comparison import BoxQuality, compare_boxes
from sgpipe.evaluation.result import EvaluationResult, class_curve, count_notes
from sgpipe.files.stored_files import shown_path, uri_of
from sgpipe.recipe import DetectConfig, load_recipe
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

_BEST = "best F1"
_PLOTTED = {"IoU 0.5": 0, "IoU 0.75": 5}  # index of the IoU


def evaluate_boxes(detected: Path, truth: Path, threshold: float | None = None) -> EvaluationResult:
    """COCO's box AP and AR, and precision and recall at a score.

    Args:
        detected, truth: as for `compare_boxes`.
        threshold: minimum score of boxes for precision and recall; None: that of the run, or else of `sgpipe label`.

    Raises:
        UserError: as `compare_boxes`.
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise UserError(f"threshold {threshold}: expected a number from 0 to 1")
    quality = compare_boxes(detected, truth)
    level = own_threshold(detected) if threshold is None else threshold
    scores = quality.scores

    def summary(counts: Array | None = None) -> dict[str, float]:
        point, best = scores.at(level, counts), scores.best(counts)
        return {
            **scores.summary(counts),
            f"precision at {level:g}": point.precision,
            f"recall at {level:g}": point.recall,
            f"F1 at {level:g}": point.f1,
            _BEST: best.f1,
        }

    best = scores.best()
    curves = {
        name: class_curve(scores.matches[100], scores.numbers(slice(place, place + 1)))
        for name, place in _PLOTTED.items()
    }
    threshold_row = {f"threshold of {_BEST}": best.threshold, "precision there": best.precision}
    return EvaluationResult(
        "Box quality (COCO)",
        {"pred": str(shown_path(detected)), "truth": str(shown_path(truth)), "threshold": level},
        {**summary(), **threshold_row, "recall there": best.recall},
        scores.per_class,
        _notes(quality),
        counts=quality.counts,
        curves=curves,
        resampling=Resampling(quality.images, summary),
    )


def own_threshold(detected: Path) -> float:
    """The score above which the run kept boxes; of other files that of `sgpipe label`.

    Raises UserError: there is no such run.
    """
    if uri_of(detected) and is_run(detected):
        made = Manifest.load(detected).run.get("identity", {}).get("detect", {})
        return float(made.get("threshold", DetectConfig().threshold))
    recipe = detected / "recipe.yaml"
    return (load_recipe(recipe).detect if recipe.is_file() else DetectConfig()).threshold


_NOTES = {
    "images failed": ("image failed in the run: left out", "images failed in the run: left out"),
    "images without ground truth": ("image has no ground truth: left out", "images have no ground truth: left out"),
    "images repeated": (
        "image occurs again: only its first occurrence counts",
        "images occur again: only their first occurrences count",
    ),
    "ground truth images not in run": (
        "image of the ground truth is not in the run: left out, not counted as missed",
        "images of the ground truth are not in the run: left out, not counted as missed",
    ),
}


def _notes(quality: BoxQuality) -> list[str]:
    counts = quality.counts
    notes = [
        f"compared {count(counts['boxes'], 'box', 'boxes')} in {count(counts['images'], 'image')} with "
        f"{counts['ground truth boxes']:,} of the ground truth; crowds left out: {counts['ground truth crowds']:,}"
    ]
    notes += count_notes(counts, _NOTES)
    if quality.other_classes:
        boxes = count(sum(quality.other_classes.values()), "box", "boxes")
        notes.append(f"left out {boxes} of classes without ground truth here: {listed(quality.other_classes)}")
    if quality.missed_classes:
        notes.append(f"nothing was detected of {listed(quality.missed_classes)}; classes are matched by name")
    return notes + _score_notes(quality.lowest)


def _score_notes(lowest: float) -> list[str]:
    if np.isnan(lowest):
        return ["the boxes have no scores, so AP has one step; runs that detect boxes from now on keep their scores"]
    if lowest >= 0.01:
        return [
            f"the lowest score is {lowest:.3f}: AP counts boxes below it as missed; runs with --set detect.threshold=0 "
            "keep them"
        ]
    return []
