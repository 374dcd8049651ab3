"""`sgpipe calibrate`: learn from judged relations how probable it is that a relation is correct.

The calibration is one of half of the images at first, which the other half judges: its error there, and what a target
precision keeps. A hash of the image decides its half, so that the halves are the same every time. The file that is
written then is made from all images.

Platt scaling of all relations, with an offset for each predicate that is shrunk towards 0 (empirical Bayes), has the
lowest error on held-out miniworld images of the curves that were compared: isotonic regression of all relations, of
each predicate, of each with a prior of all, and a slope of each predicate.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import (
    Calibration,
    ExpectedPrecision,
    Floats,
    HeldOut,
    PredicateCalibration,
    from_log_odds,
    log_odds,
    rounded,
    scoring_of_run,
    why_assumed,
)
from sgpipe.errors import UserError
from sgpipe.evaluation.label_quality.comparison import label_quality
from sgpipe.evaluation.label_quality.synonyms import predicate_vocabulary
from sgpipe.evaluation.result import EvaluationResult, Rows
from sgpipe.stats.calibration import FEWEST
from sgpipe.stats.verdicts import read_judgements
from sgpipe.storage.database import open_run
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.utils.console import count

_FEWEST = 50  # judged relations that a calibration needs
_SPREADS = (0.1, 0.2, 0.4, 0.7, 1.0, 1.5, 2.5)  # standard deviations of the offsets of predicates, in log odds
_LEVELS = (0.0, *(round(1 / (1 + math.exp(-step / 5)), 4) for step in range(-35, 30)))  # 0.001 to 0.997
_TARGETS = (0.8, 0.9, 0.95, 0.98)
_BINS = 10
_STEPS, _CLOSE = 100, 1e-9  # of Newton's method


@dataclass(frozen=True, eq=False)
class Judgements:
    """Judged relations with a confidence; arrays `[relations]`.

    Attributes:
        by: who judged them.
        names: the predicates, `[predicates]`. wordings: the texts of each.
        held_out: whether the image is of the half that evaluates. images: the images.
        predicate: indices into the names.
        weight: how many relations each stands for. Errors, precisions and what is kept are weighted. The curve is not:
            a sample by confidence does not change how probable a confidence is, and in simulated reviews a weighted
            curve has a larger error.
    """

    by: Literal["ground truth", "verdicts"]
    names: Sequence[str]
    wordings: Sequence[Sequence[str]]
    images: NDArray[np.object_]
    predicate: NDArray[np.int64]
    confidence: Floats
    correct: NDArray[np.bool_]
    weight: Floats

    def __len__(self) -> int:
        return len(self.correct)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Judgements:
        return replace(
            self,
            images=self.images[chosen],
            predicate=self.predicate[chosen],
            confidence=self.confidence[chosen],
            correct=self.correct[chosen],
            weight=self.weight[chosen],
        )

    @property
    def held_out(self) -> NDArray[np.bool_]:
        return np.array([hashlib.sha256(image.encode()).digest()[0] % 2 for image in self.images], bool)

    def probability(self, calibration: Calibration) -> Floats:
        return calibration.probabilities(self.names, self.predicate, self.confidence)


def judge_by_truth(run: Path, ground_truth: GroundTruth) -> Judgements:
    """Every relation of a run, judged by ground truth: it is correct if that has it.

    Raises UserError: as `label_quality`.
    """
    quality = label_quality(run, ground_truth)
    relations = quality.relations[~quality.relations.annotated]
    images = np.array([quality.images[number].image_id for number in relations.image.tolist()], object)
    weight, confidence = np.ones(len(relations)), relations.confidence.astype(np.float64)
    columns = (images, relations.predicate, confidence, relations.true_positive, weight)
    return Judgements("ground truth", quality.names, quality.wordings, *columns)


def judge_by_verdicts(run: Path, file: Path) -> Judgements:
    """The relations of a run that people judged on a page of `sgpipe stats --review`.

    Raises UserError: the file is no such export, or belongs to another run.
    """
    with open_run(run) as database:
        sample = read_judgements(database, file)
    vocabulary = predicate_vocabulary()
    numbers = np.array([vocabulary.number(text) for text in sample.predicates], np.int64)
    columns = (sample.images, numbers, sample.confidence, sample.correct, sample.weight)
    return Judgements("verdicts", vocabulary.names, vocabulary.wordings, *columns)


def calibrate(run: Path, judgements: Judgements) -> tuple[Calibration, EvaluationResult]:
    """The calibration of a run's tagger, and the report on how one of half of the images does on the other half.

    Raises UserError: there are too few judgements, or of one kind only, or confidences are out of range or do not tell
        correct from incorrect relations.
    """
    header = Manifest.load(run).run
    if assumed := why_assumed(header):
        raise UserError(f"{run} has no scores to calibrate: {assumed}")
    _check(run, judgements)
    held_out = judgements.held_out
    half, other = judgements[~held_out], judgements[held_out]
    for part in (half, other):
        _check_both(part.correct, f"of {run} in one half of the images")
    by_half = _fit(header, half)
    errors = [_calibration_error(each, other) for each in (other.confidence, other.probability(by_half))]
    measured = HeldOut(
        images=len(set(other.images)), judged=len(other), ece_before=rounded(errors[0]), ece_after=rounded(errors[1])
    )
    calibration = _fit(header, judgements).model_copy(update={"held_out": measured})
    return calibration, _report(calibration, by_half, half, other)


def _check(run: Path, judgements: Judgements) -> None:
    if not len(judgements):
        raise UserError(f"no relation of {run} that was judged has a confidence: there is nothing to calibrate")
    outside = judgements.confidence[~((judgements.confidence >= 0) & (judgements.confidence <= 1))]
    if len(outside):
        raise UserError(f"{run} has a confidence of {outside[0]:g}: expected numbers from 0 to 1")
    if len(judgements) < _FEWEST:
        judged = count(len(judgements), "judged relation")
        raise UserError(f"{run} has {judged}; a calibration needs at least {_FEWEST}: judge more, or label more images")
    _check_both(judgements.correct, f"of {run}")


def _check_both(correct: NDArray[np.bool_], which: str) -> None:
    if correct.all() or not correct.any():
        kind = "no judged relation" if not len(correct) else "only correct" if correct.all() else "only incorrect"
        found = kind if not len(correct) else f"{kind} ones among {count(len(correct), 'judged relation')}"
        raise UserError(f"{found} {which}: a calibration needs correct and incorrect ones; judge more relations")


def _fit(header: dict[str, object], judgements: Judgements) -> Calibration:
    """Raises UserError: higher confidences are not more often correct."""
    slope, offset = _fit_all(judgements)
    if rounded(slope) <= 0:
        raise UserError(
            "relations of higher confidence are not more often correct, so nothing can be learned from confidences; "
            "judge more relations"
        )
    number, total = len(judgements.names), np.bincount(judgements.predicate, minlength=len(judgements.names))
    right = np.bincount(judgements.predicate, judgements.correct, minlength=number)
    offsets = _fit_offsets(judgements, slope * log_odds(judgements.confidence) + offset, total >= FEWEST)
    fitted = Calibration(
        run=str(header.get("name", "")),
        tagger=scoring_of_run(header),
        judged_by=judgements.by,
        images=len(set(judgements.images)),
        judged=len(judgements),
        correct=int(judgements.correct.sum()),
        slope=rounded(slope),
        offset=rounded(offset),
        lowest=math.floor(1e6 * judgements.confidence.min()) / 1e6,
        predicates={
            judgements.names[at]: PredicateCalibration(
                judged=int(total[at]),
                correct=int(right[at]),
                offset=rounded(offsets[at]),
                texts=tuple(judgements.wordings[at]),
            )
            for at in np.argsort(-total, kind="stable").tolist()
            if total[at] >= FEWEST
        },
        levels=(ExpectedPrecision(threshold=0, precision=1, kept=1),),
    )
    return fitted.model_copy(update={"levels": _levels(judgements.probability(fitted), judgements.weight)})


def _fit_all(judgements: Judgements) -> tuple[float, float]:
    """Slope and offset of Platt scaling, by Newton's method; with Platt's targets no probability becomes 0 or 1."""
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


def _fit_offsets(judgements: Judgements, odds: Floats, enough: NDArray[np.bool_]) -> Floats:
    """The offsets of predicates, `[predicates]`, those without enough judgements 0.

    They are normally distributed around 0; the spread is the one of largest evidence (Laplace's approximation).
    """
    predicate = judgements.predicate
    weight = enough[predicate].astype(float)
    best, chosen = -np.inf, np.zeros(len(enough))
    for spread in _SPREADS:
        offsets = np.zeros(len(enough))
        for _ in range(_STEPS):
            chance = from_log_odds(odds + offsets[predicate])
            slope = np.bincount(predicate, weight * (judgements.correct - chance), len(enough)) - offsets / spread**2
            curvature = np.bincount(predicate, weight * chance * (1 - chance), len(enough)) + spread**-2
            step = np.clip(slope / curvature, -1, 1)
            offsets += step
            if np.abs(step).max(initial=0) < _CLOSE:
                break
        logs = np.log(np.where(judgements.correct, chance, 1 - chance) + 1e-12)
        prior = offsets**2 / spread**2 / 2 + np.log(spread) + np.log(curvature) / 2
        evidence = float((weight * logs).sum() - prior[enough].sum())
        if evidence > best:
            best, chosen = evidence, offsets
    return chosen


def _levels(probability: Floats, weight: Floats) -> tuple[ExpectedPrecision, ...]:
    """What thresholds keep, without those that keep nothing."""
    levels = []
    for threshold in _LEVELS:
        kept = np.where(probability >= threshold, weight, 0)
        if kept.any():
            precision, share = (kept * probability).sum() / kept.sum(), kept.sum() / weight.sum()
            levels.append(ExpectedPrecision(threshold=threshold, precision=rounded(precision), kept=rounded(share)))
    return tuple(levels)


def _bins(probability: Floats, judgements: Judgements) -> list[tuple[int, float, float, float, int]]:
    """The number of each bin of equal width, its weight, mean probability, precision and judged relations."""
    index = np.minimum((probability * _BINS).astype(int), _BINS - 1)
    rows = []
    for at in range(_BINS):
        weight = judgements.weight[index == at]
        if total := float(weight.sum()):
            mean, precision = (
                float((weight * values[index == at]).sum() / total) for values in (probability, judgements.correct)
            )
            rows.append((at, total, mean, precision, len(weight)))
    return rows


def _calibration_error(probability: Floats, judgements: Judgements) -> float:
    """Expected calibration error (ECE) in ten bins of equal width."""
    bins = _bins(probability, judgements)
    return sum(weight * abs(mean - precision) for _, weight, mean, precision, _ in bins) / judgements.weight.sum()


def _report(calibration: Calibration, by_half: Calibration, half: Judgements, other: Judgements) -> EvaluationResult:
    measured = calibration.held_out
    assert measured is not None
    reliability: Rows = []
    for name, probability in (("confidence", other.confidence), ("probability", other.probability(by_half))):
        for at, weight, mean, precision, judged in _bins(probability, other):
            row = {"value": name, "from": at / _BINS, "to": (at + 1) / _BINS, "mean": mean, "precision": precision}
            reliability.append(row | {"share": weight / other.weight.sum(), "judged": judged})
    predicates = [
        {"predicate": name, "judged": own.judged, "correct": own.correct, "offset": own.offset}
        for name, own in calibration.predicates.items()
    ]
    summary = {
        "ECE of confidences": measured.ece_before,
        "ECE of probabilities": measured.ece_after,
        "slope": calibration.slope,
        "offset": calibration.offset,
    }
    kept = [_kept(target, by_half, half, other) for target in _TARGETS]
    tables = {"reliability": reliability, "kept for a target precision": kept}
    settings = {"run": calibration.run, "judged_by": calibration.judged_by}
    counts = {"images": calibration.images, "judged": calibration.judged, "judged held out": measured.judged}
    return EvaluationResult("Calibration", settings, summary, predicates, _notes(calibration, half), tables, counts)


def _kept(target: float, by_half: Calibration, half: Judgements, other: Judgements) -> dict[str, float]:
    """What the half's thresholds for a precision keep of the other half, and what its best single threshold keeps."""
    row = {"target": target}
    try:
        chosen = other.probability(by_half) >= by_half.probability_for(target)
    except UserError:
        chosen = np.zeros(len(other), bool)
    order = np.argsort(-half.confidence, kind="stable")
    weight = np.cumsum(half.weight[order])
    reached = np.flatnonzero(np.cumsum((half.weight * half.correct)[order]) >= target * weight)
    single = half.confidence[order][reached[-1]] if len(reached) else np.inf
    total = other.weight.sum()
    for name, keeps in (("", chosen), (" of one raw threshold", other.confidence >= single)):
        own = other.weight[keeps].sum()
        row[f"precision{name}"] = float((other.weight * other.correct)[keeps].sum() / own) if own else math.nan
        row[f"kept{name}"] = float(own / total)
    return row


def _notes(calibration: Calibration, half: Judgements) -> list[str]:
    measured = calibration.held_out
    assert measured is not None
    notes = [
        f"the errors, and what is kept, are of the {count(measured.images, 'image')} of one half, by a calibration of "
        f"the other half with {count(len(half), 'judged relation')}; the file is made from all "
        f"{count(calibration.judged, 'judged relation')}"
    ]
    if few := calibration.judged - sum(own.judged for own in calibration.predicates.values()):
        notes.append(
            f"{count(few, 'judged relation')} of predicates with fewer than {FEWEST}: these have the curve of all "
            "predicates"
        )
    return notes
