"""`sgpipe calibrate`: learn from judged relations how probable it is that a relation is correct.

A calibration of half of the images, by a hash, is judged by the other half: its error there, and
what a target precision keeps. The file is made from all images. The curve is Platt scaling of all
relations; curves of each predicate, and isotonic regression, keep about as many relations at the
same precision.
"""

import hashlib
import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import (
    Calibration,
    rounded,
    scoring_of_run,
    unscored_reason,
)
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality import label_quality
from sgpipe.evaluation.result import EvaluationResult, Rows
from sgpipe.files.locations import Location
from sgpipe.stats.precision import (
    JudgedRelations,
    design_effect,
    perfect_error,
    stratified_interval,
)
from sgpipe.stats.thresholds import ONE_SIDE, candidates
from sgpipe.storage.datasets import load_manifest
from sgpipe.storage.header import RunHeader
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.utils.console import count
from sgpipe.utils.odds import Floats, from_log_odds, log_odds

_FEWEST = 50  # judged relations that a calibration needs
_TARGETS = (0.8, 0.9, 0.95, 0.98)
_BINS = 10
# of Newton's method
_STEPS = 100
_CLOSE = 1e-9


def judge_by_truth(run: Location, ground_truth: GroundTruth) -> JudgedRelations:
    """Judge every relation of a run by ground truth: it is correct if that has it."""
    quality = label_quality(run, ground_truth)
    relations = quality.relations[~quality.relations.annotated]
    images = np.array(
        [quality.images[number].image_id for number in relations.image.tolist()], object
    )
    confidence = relations.confidence.astype(np.float64)
    return JudgedRelations(confidence, relations.true_positive, images, np.ones(len(relations)))


def calibrate(
    run: Location,
    judgements: JudgedRelations,
    by: Literal["ground truth", "people"] = "ground truth",
) -> tuple[Calibration, EvaluationResult]:
    """Return the calibration of a run's tagger, and the report on how one of half of the images
    does on the other half.

    The curve is not weighted: a sample by confidence does not change how probable a confidence is,
    and in simulated samples a weighted curve has a larger error.

    Args:
        judgements: with the ids of their images, and weights.

    Raises:
        UserError: there are too few judgements, or of one kind only, or confidences do not tell
            them apart.
    """
    header = load_manifest(run).run
    assumed = unscored_reason(header)
    if assumed:
        raise UserError(f"{run} has no scores to calibrate: {assumed}")
    outside = judgements.confidence[~((judgements.confidence >= 0) & (judgements.confidence <= 1))]
    if len(outside):
        raise UserError(f"{run} has a confidence of {outside[0]:g}: expected numbers from 0 to 1")
    if len(judgements) < _FEWEST:
        judged = count(len(judgements), "judged relation")
        needs = f"a calibration needs at least {_FEWEST} with a confidence"
        raise UserError(f"{run} has {judged}; {needs}: judge more, or label more images")
    held_out = np.array(
        [hashlib.sha256(image.encode()).digest()[0] % 2 for image in judgements.images], bool
    )
    half = judgements[~held_out]
    other = judgements[held_out]
    if not all(0 < part.correct.sum() < len(part) for part in (half, other)):
        needs = "a calibration needs correct and incorrect ones in each half of the images"
        raise UserError(
            f"{run}, {count(len(judgements), 'judged relation')}: {needs}; judge more relations"
        )
    by_half = fit(header, half, by)
    calibration = fit(header, judgements, by)
    before, ece_before, _ = _reliability("confidence", other.confidence, other)
    after, ece_after, ece_exact = _reliability(
        "probability", by_half.probabilities(other.confidence), other
    )
    summary = {
        "ECE of confidences": ece_before,
        "ECE of probabilities": ece_after,
        "ECE that exact probabilities would show": ece_exact,
        "slope": calibration.slope,
        "offset": calibration.offset,
    }
    images = count(len(set(other.images)), "image")
    note = (
        f"the errors, and what is kept, are of the {images} of one half, by a calibration of the"
        f" other half with {count(len(half), 'judged relation')}; the file is made from all"
        f" {count(len(judgements), 'judged relation')}"
    )
    targets = [_kept(target, by_half, other) for target in _TARGETS]
    tables = {"reliability": [*before, *after], "kept for a target precision": targets}
    settings = {"run": calibration.run, "judged_by": calibration.judged_by}
    counts = {
        "images": calibration.images,
        "judged": calibration.judged,
        "judged held out": len(other),
    }
    return calibration, EvaluationResult(
        "Calibration", settings, summary, [], [note], tables, counts
    )


def fit(
    header: RunHeader, judgements: JudgedRelations, by: Literal["ground truth", "people"]
) -> Calibration:
    """Return the calibration of a run.

    Raises:
        UserError: higher confidences are not more often correct.
    """
    slope, offset = _platt(judgements)
    if rounded(slope) <= 0:
        raise UserError(
            "relations of higher confidence are not more often correct, so nothing can be learned"
            " from confidences; judge more relations"
        )
    fitted = Calibration(
        run=str(header.get("name", "")),
        tagger=scoring_of_run(header),
        judged_by=by,
        images=len(set(judgements.images)),
        judged=len(judgements),
        correct=int(judgements.correct.sum()),
        slope=rounded(slope),
        offset=rounded(offset),
        lowest=math.floor(1e6 * judgements.confidence.min()) / 1e6,
        levels=((0, 1, 1),),
    )
    levels = _levels(fitted.probabilities(judgements.confidence), judgements)
    return fitted.model_copy(update={"levels": levels})


def _platt(judgements: JudgedRelations) -> tuple[float, float]:
    """Slope and offset, by Newton's method; with Platt's targets no probability becomes 0 or 1."""
    right = int(judgements.correct.sum())
    wrong = len(judgements) - right
    target = np.where(judgements.correct, (right + 1) / (right + 2), 1 / (wrong + 2))
    inputs = np.stack([log_odds(judgements.confidence), np.ones(len(judgements))], axis=1)
    values = np.array([1.0, 0.0])
    for _ in range(_STEPS):
        chance = from_log_odds(inputs @ values)
        curvature = (inputs * (chance * (1 - chance))[:, None]).T @ inputs
        step = np.linalg.lstsq(curvature + _CLOSE * np.eye(2), inputs.T @ (target - chance))[0]
        values += step / max(1.0, float(np.abs(step).max()))
        if np.abs(step).max() < _CLOSE:
            break
    return float(values[0]), float(values[1])


def _levels(
    probability: Floats, judgements: JudgedRelations
) -> tuple[tuple[float, float, float], ...]:
    """Return levels as of `Calibration`.

    Without the curve, what the judgements show is too high if no relation is that precise.
    Relations of one weight are a stratum.
    """
    weights, stratum = np.unique(judgements.weight, return_inverse=True)
    levels = []
    for threshold in (*candidates(probability), 0.0):
        passing = probability >= threshold
        correct = judgements.correct[passing]
        judged = np.bincount(stratum[passing], minlength=len(weights))
        right = np.bincount(stratum[passing], correct, len(weights)).astype(np.int64)
        many = 1e9 * weights * judged  # like data to come, of which nothing is judged
        images = judgements.image_numbers[passing]
        weight = judgements.weight[passing]
        shown = []
        for answers, tally in ((correct, right), (np.ones(len(correct), bool), judged)):
            design = design_effect(answers, images, weight, ONE_SIDE)
            [low], _ = stratified_interval(many[None], judged[None], tally[None], design, ONE_SIDE)
            shown.append(float(low))
        expected = float(np.average(probability[passing], weights=weight))
        levels.append((threshold, rounded(min(shown[0], expected)), rounded(shown[1])))
    return tuple(levels)


def _reliability(
    value: str, probability: NDArray[np.floating], judgements: JudgedRelations
) -> tuple[Rows, float, float]:
    """Return rows of ten bins, without empty ones, the expected calibration error, and that of
    exact values.
    """
    index = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    rows: Rows = []
    effective = []  # judgements of equal weight that say as much
    means = []
    distances = []
    shares = []
    for at in np.unique(index).tolist():
        inside = index == at
        weight = judgements.weight[inside]
        mean = np.average(probability[inside], weights=weight)
        precision = np.average(judgements.correct[inside], weights=weight)
        row = {
            "value": value,
            "from": at / _BINS,
            "to": (at + 1) / _BINS,
            "mean": mean,
            "precision": precision,
        }
        rows.append(row | {"share": weight.sum() / judgements.weight.sum(), "judged": len(weight)})
        effective.append(weight.sum() ** 2 / (weight**2).sum())
        means.append(mean)
        distances.append(abs(mean - precision))
        shares.append(weight.sum() / judgements.weight.sum())
    error = rounded(np.array(shares) @ np.array(distances))
    return rows, error, rounded(perfect_error(means, effective, shares))


def _kept(target: float, by_half: Calibration, other: JudgedRelations) -> dict[str, float]:
    try:
        chosen = by_half.probabilities(other.confidence) >= by_half.probability_for(target)
    except UserError:
        chosen = np.zeros(len(other), bool)
    weight = other.weight[chosen].sum()
    correct = (other.weight * other.correct)[chosen].sum()
    precision = float(correct / weight) if weight else math.nan
    return {"target": target, "precision": precision, "kept": float(weight / other.weight.sum())}
