"""The audit of a run: its measures, and how it compares with ground truth, people and another run.

Its findings answer in sentences what the run contains, how good it is, what to drop, and whether to
train on it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sgpipe.calibration import Calibration
from sgpipe.records import LEFT_OUT, TRAINING_CONFIDENCE
from sgpipe.stats.ground_truth import GroundTruthMeasures, measure_against_ground_truth
from sgpipe.stats.judged_precision import NO_PLAN, JudgementMeasures, measure_judgements
from sgpipe.stats.measures import (
    DOUBTS,
    LIKELY,
    MISSING,
    THRESHOLDS,
    TOTALS,
    Level,
    Measures,
    measure_database,
)
from sgpipe.stats.precision import ScoreQuality
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.utils.console import count, isolated, listed, single_line

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    from sgpipe.stats.doubts import Doubts

Grade = Literal["good", "fair", "bad", "plain"]
_Answers = Iterator[tuple[Grade, str]]

_MANY_ERRORS = 0.05
_MANY_BARE = 0.5
_ILL = 0.05
_ILL_DATA = 0.25
_PREDICATES = 15


@dataclass(frozen=True)
class Finding:
    question: str
    grade: Grade
    text: str


def _content(measures: Measures) -> _Answers:
    totals = measures.totals
    if not measures.rows:
        yield "bad", "Nothing: the run has no images yet."
        return
    names = ", ".join(map(name_text, measures.datasets))
    splits = ", ".join(
        f"{name_text(split)} {images:,}" for split, images in measures.images.items()
    )
    boxes = count(totals["objects"], "box", "boxes")
    yield "plain", f"{count(measures.rows, 'image')} of {names} ({splits}) with {boxes}."
    yield from _relations(measures)
    left_out = []
    for key, noun in LEFT_OUT.items():
        number = totals[f"{key}_left_out"]
        if number:
            left_out.append(f"{number:,} {noun}")
    if left_out:
        yield "fair", f"Left out: {listed(left_out)}."
    for loss in measures.losses:
        if loss.is_noteworthy:
            text = str(loss)
            yield "fair", f"{text[0].upper()}{text[1:]}."


def _relations(measures: Measures) -> _Answers:
    level = level_at(measures)
    relations = measures.totals["relations"]
    if not relations:
        yield "plain", "No relations."
        return
    text = f"{count(relations, 'relation')} with {count(measures.tail.kinds, 'predicate')}"
    if measures.confidence.scored:
        minimum = f"{measures.threshold_of} {TRAINING_CONFIDENCE:.2f}"
        text += f"; {level.relations:,} of {minimum} or more"
    where = f"in {count(level.images, 'image')}, {level.per_image:.1f} per image that has any"
    yield "plain", f"{text}, {where}."
    if len(measures.origins) > 1:
        yield "plain", f"{origins_text(measures.origins)}."


def origins_text(origins: Mapping[str, int]) -> str:
    numbers = [f"{name} {number:,}" for name, number in origins.items()]
    return f"Origin of the relations: {listed(numbers)}"


def name_text(name: str) -> str:
    """Letters that are written from right to left may turn round what follows in a sentence."""
    return single_line(name) if name.isascii() else isolated(name)


def _quality(audit: Audit) -> _Answers:
    yield from _confidence(audit)
    yield from _scores(audit.measures)
    if audit.ground_truth is not None:
        yield from _against_truth(audit.ground_truth, audit.measures.threshold_of)
    if audit.judgements is not None:
        yield from _judged(audit.judgements, audit.estimate_total)
        yield from _vlm_quality(audit.judgements.vlm_score, "people")
    if audit.doubts is not None:
        yield from _doubted(audit.doubts)
    yield _health(audit.measures)


def _confidence(audit: Audit) -> _Answers:
    measures = audit.measures
    confidence = measures.confidence
    if measures.assumed is not None:
        text = f"Nothing scored the relations: {measures.assumed}. Confidence 1 says nothing."
        yield "fair", text
    elif confidence.median is not None and confidence.highest is not None:
        grade: Grade = "bad" if confidence.highest < TRAINING_CONFIDENCE else "plain"
        text = f"The median confidence is {confidence.median:.2f}, the highest"
        yield grade, f"{text} {confidence.highest:.2f}."
    if confidence.unscored:
        relations = count(confidence.unscored, "relation")
        yield "plain", f"{relations} without a confidence: annotated by people."
    is_judged = any((audit.ground_truth, audit.judgements, measures.assumed))
    if confidence.scored and measures.threshold_of == "confidence" and not is_judged:
        text = (
            "A confidence says how sure the tagger is, not how often it is correct: judge a sample"
            " in `sgpipe view`, or compare with annotations with --truth."
        )
        yield "fair", text


def _against_truth(truth: GroundTruthMeasures, threshold_of: str) -> _Answers:
    if truth.precision.value is None:
        return
    grade: Grade = "good" if truth.precision.low >= truth.target else "fair"
    relations = f"relations of {threshold_of} {truth.threshold:.2f} or more"
    images = count(truth.images, "image")
    text = f"Ground truth of {images}: the precision of {relations} is {truth.precision}."
    yield grade, text
    yield "plain", _advice(truth, truth.relations, "")
    yield from _vlm_quality(truth.vlm_score, "ground truth")


def _health(measures: Measures) -> tuple[Grade, str]:
    """Return how many health checks found problems."""
    checks = len(measures.health)
    failed = [check.share for check in measures.health if check.count]
    if failed:
        text = f"{len(failed)} of {checks} health checks found problems."
        return "fair" if max(failed) < _ILL else "bad", text
    if any(check.total for check in measures.health if check.of not in ("boxes", "images")):
        return "good", f"All {checks} health checks passed."
    return "plain", "There are no relations or captions to check."


def _doubted(doubts: Doubts) -> _Answers:
    relations = count(doubts.relations, "annotated relation")
    improbable = f"{doubts.improbable_count:,} of {relations} of persons"
    missing = f"{count(doubts.missing_count, 'pair')} that nobody annotated"
    text = f"The layout model finds {improbable} improbable, and {missing} probable"
    yield "plain", f"{text}: judge them in `sgpipe view`, on the page Judge."
    for note in doubts.notes:
        yield "fair", f"{note[0].upper()}{note[1:]}."


def _scores(measures: Measures) -> _Answers:
    clip = measures.clip_score
    vlm = measures.vlm_score
    if clip is not None and clip.first is not None:
        text = (
            f"CLIP ranks the text of {clip.first:.0%} of {count(clip.scored, 'relation')} above all"
            f" contrast texts (by chance {clip.chance:.0%})"
        )
        if clip.beats_swapped is not None:
            text += (
                f", and that of {clip.beats_swapped:.0%} above the same text with the roles swapped"
            )
        yield "plain", f"{text}."
    if vlm is not None and vlm.likely is not None:
        text = (
            f"Vision-language model: {vlm.likely:.0%} of {count(vlm.scored, 'relation')} have a"
            f" probability of {LIKELY:.2f} or more, {vlm.mean:.2f} on average"
        )
        if vlm.correlation is not None and not math.isnan(vlm.correlation):
            text += f"; its rank correlation with the confidence is {vlm.correlation:.2f}"
        yield "plain", f"{text}."


def _advice(measures: GroundTruthMeasures | JudgementMeasures, judged: int, total: str) -> str:
    """Say which threshold has the target precision; `total`: the relations of the run, in words."""
    target = percent(measures.target)
    choice = measures.suggested
    if choice is None:
        relations = count(judged, "judged relation")
        return f"{relations} do not show a threshold with a precision of {target}."
    if choice.relations is None:
        relations = count(choice.kept, "judged relation")
    else:
        relations = f"{choice.relations:,} of {total}"
    return (
        f"A threshold of {choice.text} keeps {relations}; with 95% confidence, at least"
        f" {target} of them are correct ({choice.precision.value:.1%} of the judged ones)."
    )


def _judged(judged: JudgementMeasures, estimate_total: bool) -> _Answers:
    if judged.recall:
        for sentence in judged.recall.describe(estimate_total):
            yield "plain", sentence
    for problem in judged.problems:
        yield "fair", problem
    precision = judged.precision
    if precision.value is None:
        yield "fair", f"{NO_PLAN[0].upper()}{NO_PLAN[1:]}."
        return
    text = (
        f"People judged {count(precision.judged, 'relation')}: the precision of the judged"
        f" {judged.strata}, {share_text(precision.covered)} of the run, is {precision.value:.1%},"
        " weighted by their relations; that of the run is"
        f" {precision.low:.1%} to {precision.high:.1%} (95% interval)."
    )
    grade: Grade = "good" if precision.low >= judged.target else "fair"
    yield grade, text
    yield "plain", _advice(judged, precision.judged, count(judged.relations_now, "relation"))
    if judged.unsure and judged.if_unsure_right is not None:
        unsure = count(judged.unsure, "relation has", "relations have")
        text = (
            f"{unsure} no majority that says right or wrong, and are taken as wrong: with all of"
            " them right "
        )
        yield "fair", f"{text}the precision would be {judged.if_unsure_right:.1%}."
    if judged.open:
        text = (
            f"{count(judged.open, 'question is', 'questions are')} open. They come in random order,"
            " so the judged "
        )
        yield "fair", f"{text}ones are a random sample unless difficult ones were skipped."
    if judged.relations != judged.relations_now:
        text = f"The run had {count(judged.relations, 'relation')} when the plan was made and has "
        yield "fair", f"{text}{judged.relations_now:,} now: the figures are of those of then."


def _vlm_quality(quality: ScoreQuality | None, by: str) -> _Answers:
    if quality is None or quality.auc is None or quality.calibration_error is None:
        return
    text = (
        f"Vision-language model, judged by {by} on {count(quality.judged, 'relation')}: a correct"
        " relation has a "
    )
    text += f"higher score than an incorrect one in {quality.auc:.1%} of pairs (AUC)"
    if quality.confidence_auc is not None:
        text += f"; of the confidence that is {quality.confidence_auc:.1%}"
    error = error_text(quality.calibration_error, quality.perfect_error)
    yield "plain", f"{text}. Its calibration error is {error}."


def _to_drop(measures: Measures) -> _Answers:
    below = measures.totals["relations"] - level_at(measures).relations
    present = [check for check in measures.health if check.count and check.name not in MISSING]
    ill = sorted(present, key=lambda check: -check.share)
    if below:
        relations = f"{count(below, 'relation')} below {TRAINING_CONFIDENCE:.2f}"
        yield "plain", f"{relations}, which training ignores anyway."
    for check in ill:
        yield "fair", f"{check.count:,} × {check.title}. {check.advice}"
    has_images = measures.rows > sum(measures.errors.values())
    if has_images and not below and not ill:
        yield "good", "Nothing."


def _obstacles(measures: Measures) -> _Answers:
    level = level_at(measures)
    errors = sum(measures.errors.values())
    usable = measures.rows - errors
    obstacles: list[tuple[Grade, str]] = []
    if not level.relations:
        text = (
            f"No: no relation has a {measures.threshold_of} of {TRAINING_CONFIDENCE:.2f} or more."
        )
        obstacles.append(("bad", text))
    elif level.images < (1 - _MANY_BARE) * usable:
        share = share_text(level.images / usable)
        text = f"Only {share} of the images have a relation that training uses."
        obstacles.append(("fair", text))
    if errors > _MANY_ERRORS * measures.rows:
        share = share_text(errors / measures.rows)
        text = f"{share} of the images are error rows: fix the cause, then --retry-failed."
        obstacles.append(("fair", text))
    obstacles += _failed_checks(measures)
    yield from obstacles or [("good", "No problems found.")]


def _failed_checks(measures: Measures) -> _Answers:
    """Yield the health checks whose share of problems is above their limit."""
    for check in measures.health:
        is_missing = check.name in MISSING
        limit = _ILL if is_missing or check.of in ("relations", "pairs") else _ILL_DATA
        if check.share > limit:
            text = f"Check this first: {check.title} ({check.share:.1%} of {check.of})."
            if is_missing:
                text += f" {check.advice}"
            yield "bad" if check.name in DOUBTS else "fair", text


def share_text(share: float) -> str:
    """Return a share as a whole percentage that says 0% and 100% only of none and all."""
    inexact = {"0%": "less than 1%", "100%": "more than 99%"} if 0 < share < 1 else {}
    return inexact.get(f"{share:.0%}", f"{share:.0%}")


def percent(share: float) -> str:
    """Return a target with all its digits: 80%, 99.5%."""
    return f"{100 * share:.6g}%"


def error_text(error: float, perfect: float | None) -> str:
    """Return a calibration error beside that of exact confidences."""
    return f"{error:.3f}" + ("" if perfect is None else f" (exact ones would show {perfect:.3f})")


def level_at(measures: Measures, threshold: float = TRAINING_CONFIDENCE) -> Level:
    return next(level for level in measures.thresholds if level.threshold == threshold)


@dataclass(frozen=True)
class Comparison:
    """What changed, as pairs of a number in the run `other` and in this one.

    `predicates`: shares, of those that changed most; `gained`, `lost`: of only one run. `health`:
    shares, if any.
    """

    other: str
    counts: dict[str, tuple[int, int]]
    predicates: dict[str, tuple[float, float]]
    gained: int
    lost: int
    health: dict[str, tuple[float, float]]


def compare(other: Measures, this: Measures) -> Comparison:
    before = max(other.totals["relations"], 1)
    now = max(this.totals["relations"], 1)
    shares = {}
    for name in other.predicates | this.predicates:
        share_before = other.predicates.get(name, 0) / before
        share_now = this.predicates.get(name, 0) / now
        if share_before != share_now:
            shares[name] = (share_before, share_now)
    changed = sorted(shares, key=lambda name: (-abs(shares[name][1] - shares[name][0]), name))
    counts = _counts(this)
    checks = zip(other.health, this.health, strict=True)
    return Comparison(
        other="other run" if other.run in (None, "", this.run) else other.run,
        counts={name: (number, counts[name]) for name, number in _counts(other).items()},
        predicates={name: shares[name] for name in changed[:_PREDICATES]},
        gained=len(this.predicates.keys() - other.predicates.keys()),
        lost=len(other.predicates.keys() - this.predicates.keys()),
        health={a.title: (a.share, b.share) for a, b in checks if a.count or b.count},
    )


def _counts(measures: Measures) -> dict[str, int]:
    return {
        "images": measures.rows,
        "error rows": sum(measures.errors.values()),
        **{name: measures.totals[key] for key, name in TOTALS.items()},
        f"images with a relation of confidence ≥ {TRAINING_CONFIDENCE:.2f}": (
            level_at(measures).images
        ),
        "predicates": measures.tail.kinds,
        "triplet kinds": measures.triplet_kinds,
    }


@dataclass(frozen=True)
class Audit:
    """The audit of one run; parts that were not asked for are None.

    `estimate_total`: findings say how many relations there are if two people miss them
    independently.
    """

    measures: Measures
    ground_truth: GroundTruthMeasures | None = None
    judgements: JudgementMeasures | None = None
    comparison: Comparison | None = None
    estimate_total: bool = False
    doubts: Doubts | None = None

    @property
    def findings(self) -> list[Finding]:
        answers = {
            "What does it contain?": _content(self.measures),
            "How good is it?": _quality(self),
            "What should I drop?": _to_drop(self.measures),
            "Can I train on it?": _obstacles(self.measures),
        }
        findings = []
        for question, graded in answers.items():
            findings += [Finding(question, grade, text) for grade, text in graded]
        return findings

    def as_dict(self) -> dict[str, object]:
        """Return the audit as plain values; the measures are at the top level."""
        values = _values(self.measures)
        parts = {
            "ground_truth": self.ground_truth,
            "comparison": self.comparison,
            "doubts": self.doubts,
        }
        for name, part in parts.items():
            if part is not None:
                values[name] = _plain(part)
        if self.judgements is not None:
            precision = self.judgements.precision
            is_known = precision.value is not None
            values["judgements"] = _values(self.judgements) | {
                "precision": precision.value,
                "low": precision.low if is_known else None,
                "high": precision.high if is_known else None,
                "judged": precision.judged,
                "covered": precision.covered,
            }
        return values | {"findings": _plain(self.findings)}


def audit(
    database: Database,
    threshold: float = TRAINING_CONFIDENCE,
    ground_truth: GroundTruth | None = None,
    judgements: Path | None = None,
    target: float = 0.8,
    other: Measures | None = None,
    calibration: Calibration | None = None,
    estimate_total: bool = False,
    doubts: int | None = None,
) -> Audit:
    """Audit an open run.

    Args:
        database: of the run.
        threshold: of the relations whose health and precision are measured; with a calibration, a
            probability.
        ground_truth: to compare with.
        judgements: a file of people's judgements.
        target: the precision for which thresholds are suggested.
        other: measures of a run to compare with.
        calibration: of the confidences.
        estimate_total: as of `Audit`.
        doubts: how many of each kind the layout model lists; None: it is not asked.
    """
    measures = measure_database(database, threshold, calibration)
    truth = None
    judged = None
    if ground_truth is not None:
        truth = measure_against_ground_truth(database, ground_truth, threshold, target, calibration)
    if judgements is not None:
        judged = measure_judgements(database, judgements, target, THRESHOLDS, calibration)
    comparison = None if other is None else compare(other, measures)
    doubted = None
    if doubts is not None:
        # Imports spaCy, which takes a second that other audits need not spend.
        from sgpipe.stats.doubts import find_doubts

        doubted = find_doubts(database.root, doubts)
    return Audit(measures, truth, judged, comparison, estimate_total, doubted)


def _values(part: DataclassInstance) -> dict[str, object]:
    """Return the fields and properties of a dataclass as plain values."""
    properties = [name for name, member in vars(type(part)).items() if isinstance(member, property)]
    names = [*(field.name for field in fields(part)), *properties]
    return {name: _plain(getattr(part, name)) for name in names}


def _plain(value: object) -> object:
    """Return a value in which dataclasses are dictionaries."""
    if is_dataclass(value) and not isinstance(value, type):
        return _values(value)
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value
