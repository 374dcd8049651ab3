"""The audit of a run: its measures, its comparison with ground truth, people's judgements and another run.

Its findings answer in sentences what the run contains, how good it is, what to drop, and whether to train on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from sgpipe.calibration import Calibration
from sgpipe.records import LEFT_OUT, TRAINING_CONFIDENCE
from sgpipe.stats.health import DOUBTS
from sgpipe.stats.judgements import NO_PLAN, JudgementMeasures, measure_judgements
from sgpipe.stats.measures import (
    AGREES,
    THRESHOLDS,
    TOTALS,
    AgreementMeasures,
    Level,
    Measures,
    OpinionMeasures,
    measure_database,
    use_probabilities,
)
from sgpipe.stats.precision import (
    FEWEST,
    GroundTruthMeasures,
    ScoreQuality,
    measure_against_ground_truth,
)
from sgpipe.storage.index import Database
from sgpipe.storage.run_folder import GroundTruth
from sgpipe.utils.console import count, isolated, listed, single_line

Grade = Literal["good", "fair", "bad", "plain"]

CONTENT, QUALITY = "What does it contain?", "How good is it?"
DROP, TRAINING = "What should I drop?", "Can I train on it?"
_ONE_PREDICATE = "All relations have the same predicate"
_MANY_ERRORS, _MANY_BARE, _ILL, _ILL_DATA = 0.05, 0.5, 0.05, 0.25


@dataclass(frozen=True)
class Finding:
    """An answer to a question, and whether it is good news."""

    question: str
    grade: Grade
    text: str


def find(measures: Measures, precision_unknown: bool = True) -> list[Finding]:
    """The findings, by question; `precision_unknown`: say how the precision can be measured."""
    return [*_content(measures), *_quality(measures, precision_unknown), *_to_drop(measures), *_training(measures)]


def find_precision(
    ground_truth: GroundTruthMeasures | None, judgements: JudgementMeasures | None, threshold_of: str
) -> Iterator[Finding]:
    """The precision according to ground truth and to people's judgements; `threshold_of`: see `Measures`."""
    if ground_truth is not None and ground_truth.precision.value is not None:
        grade: Grade = "good" if ground_truth.precision.low >= ground_truth.target else "fair"
        yield Finding(QUALITY, grade, f"Ground truth of {count(ground_truth.images, 'image')}: the precision of "
                      f"relations of {threshold_of} {ground_truth.threshold:.2f} or more is "
                      f"{ground_truth.precision}.")  # fmt: skip
        yield Finding(QUALITY, "plain", _advice(ground_truth, ground_truth.relations))
        yield from _opinion_quality(ground_truth.opinion, "ground truth")
    if judgements is not None:
        yield from _judged(judgements)
        yield from _opinion_quality(judgements.opinion, "people")


def _advice(found: GroundTruthMeasures | JudgementMeasures, judged: int) -> str:
    target, choice = percent(found.target), found.suggested
    if judged < FEWEST:
        return f"A suggested threshold needs at least {FEWEST} judged relations."
    if choice is None:
        return f"{count(judged, 'judged relation')} do not show a threshold with a precision of {target}."
    kept = count(choice.kept, "judged relation")
    if choice.relations is not None and isinstance(found, JudgementMeasures):
        kept = f"{choice.relations:,} of {count(found.relations_now, 'relation')}"
    if found.sure:
        return f"A threshold of {choice.text} keeps {kept}; at least {target} of them are correct: {choice.precision}."
    return (f"No threshold is shown to reach a precision of {target}. One of {choice.text} keeps {kept} and may reach "
            f"it: {choice.precision}.")  # fmt: skip


def _judged(judged: JudgementMeasures) -> Iterator[Finding]:
    if judged.precision is None:
        yield Finding(QUALITY, "fair", f"{NO_PLAN[0].upper()}{NO_PLAN[1:]}.")
        return
    grade: Grade = "good" if (judged.low or 0) >= judged.target else "fair"
    value, interval = f"{judged.precision:.1%}", f"{judged.low:.1%} to {judged.high:.1%}"
    if judged.covered == 1:
        text = f"the precision of the run is {value} ({interval})"
    else:
        text = f"the precision of the judged {judged.strata}, {share_text(judged.covered)} of the run, is {value}; "
        text += f"that of the run is {interval}"
    text = f"People judged {count(judged.judged, 'relation')}: {text}"
    strata = judged.strata.capitalize()
    yield Finding(QUALITY, grade, f"{text}. {strata} are weighted by their number of relations.")
    yield Finding(QUALITY, "plain", _advice(judged, judged.judged))
    yield from (Finding(QUALITY, "fair", text) for text in judgement_caveats(judged))


def judgement_caveats(judged: JudgementMeasures) -> Iterator[str]:
    """What a reader must know about the sample, in sentences."""
    yield judged.judgements.text
    yield from judged.judgements.problems
    if judged.unsure and judged.if_unsure_wrong is not None:
        unsure = count(judged.unsure, "unsure judgement does", "unsure judgements do")
        yield (f"{unsure} not count: with all of them wrong the precision would be {judged.if_unsure_wrong:.1%}, "
               f"with all right {judged.if_unsure_right:.1%}.")  # fmt: skip
    if judged.open:
        yield (f"{count(judged.open, 'question is', 'questions are')} open. They come in random order, so the judged "
               "ones are a random sample unless difficult ones were skipped.")  # fmt: skip
    if judged.relations != judged.relations_now:
        yield (f"The run had {count(judged.relations, 'relation')} when the plan was made and has "
               f"{judged.relations_now:,} now: the figures are of those of then.")  # fmt: skip


def share_text(share: float) -> str:
    """A share as a whole percentage that says 0% and 100% only of none and all."""
    rounded = f"{share:.0%}"
    if rounded == "0%" and share:
        return "less than 1%"
    return "more than 99%" if rounded == "100%" and share < 1 else rounded


def percent(share: float) -> str:
    """A target with all its digits: 80%, 99.5%."""
    return f"{100 * share:.6g}%"


def error_text(error: float, perfect: float | None) -> str:
    """A calibration error beside that of exact confidences, as few judgements show a large one in any case."""
    return f"{error:.3f}" + ("" if perfect is None else f" (exact ones would show {perfect:.3f})")


def level_at(measures: Measures, threshold: float = TRAINING_CONFIDENCE) -> Level:
    """What one of the measured thresholds keeps."""
    return next(level for level in measures.thresholds if level.threshold == threshold)


def _content(measures: Measures) -> Iterator[Finding]:
    totals, level = measures.totals, level_at(measures)
    if not measures.rows:
        yield Finding(CONTENT, "bad", "Nothing: the run has no images yet.")
        return
    names = ", ".join(_name(name) for name in measures.datasets)
    splits = ", ".join(f"{_name(split)} {images:,}" for split, images in measures.images.items())
    boxes = count(totals["objects"], "box", "boxes")
    of_classes = f" of {count(len(measures.categories), 'class', 'classes')}" if measures.categories else ""
    yield Finding(CONTENT, "plain", f"{count(measures.rows, 'image')} of {names} ({splits}) with {boxes}{of_classes}.")
    yield Finding(CONTENT, "plain", _relations(measures, level))
    if totals["captions"]:
        distinct = f", of which {totals['different_captions']:,} are distinct within their image"
        yield Finding(CONTENT, "plain", f"{count(totals['captions'], 'caption')}"
                      f"{distinct if totals['different_captions'] > 1 else ''}.")  # fmt: skip
    if left_out := [f"{totals[f'{name}_left_out']:,} {what}" for name, what in LEFT_OUT.items()
                    if totals[f"{name}_left_out"]]:  # fmt: skip
        yield Finding(CONTENT, "fair", f"Left out: {listed(left_out)}.")
    if measures.tail.kinds:
        most = count(measures.tail.half, "predicate accounts", "predicates account")
        half = f"{most} for half of the relations" if measures.tail.kinds > 1 else _ONE_PREDICATE
        yield Finding(CONTENT, "plain", f"{half}; {share_text(measures.person_subject_share)} of the relations have a "
                      "person as subject.")  # fmt: skip


def _name(name: str) -> str:
    """A name of the data within a sentence; letters that are written from right to left may turn round what follows."""
    return single_line(name) if name.isascii() else isolated(name)


def _relations(measures: Measures, level: Level) -> str:
    """How many relations there are, and how many of them training uses."""
    total = measures.totals["relations"]
    if not total:
        return "No relations."
    text = f"{count(total, 'relation')} with {count(measures.tail.kinds, 'predicate')}"
    where = f"in {count(level.images, 'image')}, {level.per_image:.1f} per image that has any"
    if not measures.confidence.scored:
        return f"{text}, {where}."
    if not level.relations:
        return f"{text}; none of {measures.threshold_of} {TRAINING_CONFIDENCE:.2f} or more."
    of = f"of {measures.threshold_of} {TRAINING_CONFIDENCE:.2f} or more"
    return f"{text}; {level.relations:,} {of}, {where}."


def _quality(measures: Measures, precision_unknown: bool) -> Iterator[Finding]:
    confidence = measures.confidence
    grade: Grade
    if measures.assumed is not None:
        yield Finding(QUALITY, "fair", f"Nothing scored the relations: {measures.assumed}. Confidence 1 says nothing.")
    elif confidence.scored and confidence.median is not None:
        grade = "bad" if (confidence.highest or 0) < TRAINING_CONFIDENCE else "plain"
        yield Finding(QUALITY, grade, f"The median confidence is {confidence.median:.2f}, the highest "
                      f"{confidence.highest:.2f}.")  # fmt: skip
    if confidence.unscored:
        have = count(confidence.unscored, "relation has", "relations have")
        them = "it" if confidence.unscored == 1 else "them"
        yield Finding(QUALITY, "plain", f"{have} no confidence: people annotated {them}.")
    if confidence.scored and precision_unknown and measures.assumed is None:
        yield Finding(QUALITY, "fair", "A confidence says how sure the tagger is, not how often it is correct: judge a "
                      "sample in `sgpipe view`, or compare with annotations with --truth.")  # fmt: skip
    yield from _agreement(measures.agreement)
    yield from _opinion(measures.opinion)
    ill = [check for check in measures.health if check.count]
    usable = measures.rows > sum(measures.errors.values())
    if ill:
        worst = max(ill, key=lambda check: check.share)
        grade = "fair" if worst.share < _ILL else "bad"
        yield Finding(QUALITY, grade, f"{len(ill)} of {len(measures.health)} health checks found problems, most often: "
                      f"{worst.title} ({worst.share:.1%} of {worst.of}).")  # fmt: skip
    elif usable and any(check.total for check in measures.health if check.of != "boxes"):
        yield Finding(QUALITY, "good", f"All {len(measures.health)} health checks passed.")
    elif usable and measures.totals["relations"]:
        yield Finding(QUALITY, "plain", "There are no captions to check, and the relations are below the threshold.")
    else:
        yield Finding(QUALITY, "plain", "There are no relations or captions to check.")


def _agreement(agreement: AgreementMeasures | None) -> Iterator[Finding]:
    if agreement is None or agreement.first is None or agreement.chance is None:
        return
    text = (
        f"CLIP ranks the text of {agreement.first:.0%} of {count(agreement.scored, 'relation')} above all contrast "
        f"texts (by chance {agreement.chance:.0%})"
    )
    if agreement.beats_swapped is not None:
        text += f", and that of {agreement.beats_swapped:.0%} above the same text with the roles swapped"
    yield Finding(QUALITY, "plain", f"{text}.")


def _opinion(opinion: OpinionMeasures | None) -> Iterator[Finding]:
    if opinion is None or opinion.agrees is None:
        return
    text = (
        f"Second opinion: {opinion.agrees:.0%} of {count(opinion.scored, 'relation')} have a probability of "
        f"{AGREES:.2f} or more, {opinion.mean:.2f} on average"
    )
    if opinion.correlation is not None and opinion.correlation == opinion.correlation:
        text += f"; its rank correlation with the confidence is {opinion.correlation:.2f}"
    yield Finding(QUALITY, "plain", f"{text}.")


def _opinion_quality(quality: ScoreQuality | None, by: str) -> Iterator[Finding]:
    if quality is None or quality.auc is None or quality.calibration_error is None:
        return
    text = (
        f"Second opinion, judged by {by} on {count(quality.judged, 'relation')}: a correct relation has a higher "
        f"probability than an incorrect one in {quality.auc:.1%} of pairs (AUC)"
    )
    if quality.confidence_auc is not None:
        text += f"; of the confidence that is {quality.confidence_auc:.1%}"
    error = error_text(quality.calibration_error, quality.perfect_error)
    yield Finding(QUALITY, "plain", f"{text}. Its calibration error is {error}.")


def _to_drop(measures: Measures) -> Iterator[Finding]:
    below = measures.totals["relations"] - level_at(measures).relations
    if below:
        yield Finding(DROP, "plain", f"{count(below, 'relation')} below {TRAINING_CONFIDENCE:.2f}, which training "
                      "ignores anyway.")  # fmt: skip
    for check in sorted(measures.health, key=lambda check: -check.share):
        if check.count:
            yield Finding(DROP, "fair", f"{check.count:,} × {check.title}. {check.advice}")
    usable = measures.rows > sum(measures.errors.values())
    if usable and not below and not any(check.count for check in measures.health):
        yield Finding(DROP, "good", "Nothing.")


def _training(measures: Measures) -> Iterator[Finding]:
    obstacles = [Finding(TRAINING, grade, text) for grade, text in _obstacles(measures)]
    yield from obstacles or [Finding(TRAINING, "good", "No problems found.")]


def _obstacles(measures: Measures) -> Iterator[tuple[Grade, str]]:
    level, errors = level_at(measures), sum(measures.errors.values())
    usable = measures.rows - errors
    if not level.relations:
        yield "bad", f"No: no relation has a {measures.threshold_of} of {TRAINING_CONFIDENCE:.2f} or more."
    elif level.images < (1 - _MANY_BARE) * usable:
        yield "fair", f"Only {share_text(level.images / usable)} of the images have a relation that training uses."
    if errors > _MANY_ERRORS * measures.rows:
        yield (
            "fair",
            f"{share_text(errors / measures.rows)} of the images are error rows: fix the cause, then --retry-failed.",
        )
    for check in measures.health:
        if check.share > (_ILL if check.of in ("relations", "pairs") else _ILL_DATA):
            grade: Grade = "bad" if check.name in DOUBTS else "fair"
            yield grade, f"Check this first: {check.title} ({check.share:.1%} of {check.of})."


@dataclass(frozen=True)
class Audit:
    """The audit of one run; parts that were not asked for are None.

    calibrated: a sentence on the calibration by whose probabilities relations were chosen.
    """

    measures: Measures
    ground_truth: GroundTruthMeasures | None = None
    judgements: JudgementMeasures | None = None
    comparison: Comparison | None = None
    calibrated: str | None = None

    @property
    def findings(self) -> list[Finding]:
        """The conclusions, by question."""
        unknown = self.ground_truth is None and self.judgements is None and self.calibrated is None
        findings = find(self.measures, precision_unknown=unknown)
        precision = list(find_precision(self.ground_truth, self.judgements, self.measures.threshold_of))
        if self.calibrated is not None:
            precision.insert(0, Finding(QUALITY, "plain", self.calibrated))
        at = max((index for index, finding in enumerate(findings) if finding.question == QUALITY), default=0)
        return [*findings[:at], *precision, *findings[at:]]

    def as_dict(self) -> dict[str, Any]:
        """The audit as plain values; the measures are at the top level."""
        parts = {"ground_truth": self.ground_truth, "verdicts": self.judgements, "comparison": self.comparison}
        present = {name: part for name, part in parts.items() if part is not None}
        return {**_plain(self.measures), **_plain(present), "findings": _plain(self.findings)}


def audit(
    database: Database,
    threshold: float = TRAINING_CONFIDENCE,
    ground_truth: GroundTruth | None = None,
    judgements: Path | None = None,
    target: float = 0.8,
    other: Measures | None = None,
    calibration: Calibration | None = None,
) -> Audit:
    """Audit an open run.

    Args:
        threshold: minimum confidence of the relations whose health and precision are measured.
        judgements: file of people's judgements.
        target: the precision for which thresholds are suggested.
        other: measures of another run to compare with.
        calibration: of the tagger; thresholds are probabilities then.

    Raises UserError: a shard or file cannot be read or used, or a number is out of range.
    """
    calibrated = None
    if calibration is not None:
        use_probabilities(database, calibration)
        calibrated = f"Thresholds are probabilities, by the calibration of {calibration.run!r}."
    measures = measure_database(database, threshold)
    parts = Audit(measures, calibrated=calibrated)
    if ground_truth is not None:
        settings = (threshold, target, THRESHOLDS, calibration)
        against = measure_against_ground_truth(database.root, ground_truth, *settings, has_opinion=database.has_opinion)
        parts = replace(parts, ground_truth=against)
    if judgements is not None:
        judged = measure_judgements(database, judgements, target, THRESHOLDS, calibration)
        parts = replace(parts, judgements=judged)
    return parts if other is None else replace(parts, comparison=compare(other, measures))


def _plain(value: Any) -> Any:
    """Dataclasses as dictionaries, including their properties."""
    if is_dataclass(value):
        names = [field.name for field in fields(value)]
        names += [name for name, member in vars(type(value)).items() if isinstance(member, property)]
        return {name: _plain(getattr(value, name)) for name in names}
    if isinstance(value, BaseModel):
        return value.model_dump()
    if isinstance(value, dict):
        return {name: _plain(part) for name, part in value.items()}
    return [_plain(part) for part in value] if isinstance(value, list) else value


_PREDICATES = 15


@dataclass(frozen=True)
class Change:
    """A number in the other run and in this one."""

    name: str
    before: float
    after: float

    @property
    def text(self) -> str:
        """The difference, also relative to the number before."""
        difference = self.after - self.before
        if not difference:
            return "–"
        return f"{difference:+,}" + (f" ({difference / self.before:+.0%})" if self.before else "")


@dataclass(frozen=True)
class Comparison:
    """What changed from the run `other` to this one.

    Attributes:
        counts: numbers of images, boxes, relations and so on.
        predicates: the predicates whose share changed most. `gained` and `lost`: predicates only in one of the runs.
        health: shares of the checks that found something in either run.
    """

    other: str
    counts: list[Change]
    predicates: list[Change]
    gained: int
    lost: int
    health: list[Change]


def compare(other: Measures, this: Measures) -> Comparison:
    """Compare two runs."""
    names = {**other.predicates, **this.predicates}
    shares = [Change(name, _share(other, name), _share(this, name)) for name in names]
    shares.sort(key=lambda change: (-abs(change.after - change.before), change.name))
    health = [Change(a.title, a.share, b.share) for a, b in zip(other.health, this.health, strict=True)]
    return Comparison(
        other="other run" if other.run in (None, "", this.run) else other.run,
        counts=[Change(name, before, _counts(this)[name]) for name, before in _counts(other).items()],
        predicates=[change for change in shares if change.before != change.after][:_PREDICATES],
        gained=len(this.predicates.keys() - other.predicates.keys()),
        lost=len(other.predicates.keys() - this.predicates.keys()),
        health=[change for change in health if change.before or change.after],
    )


def _counts(measures: Measures) -> dict[str, int]:
    level = level_at(measures)
    return {
        "images": measures.rows,
        "error rows": sum(measures.errors.values()),
        **{name: measures.totals[key] for key, name in TOTALS.items()},
        f"images with a relation of confidence ≥ {TRAINING_CONFIDENCE:.2f}": level.images,
        "predicates": measures.tail.kinds,
        "triplet kinds": measures.triplet_kinds,
    }


def _share(measures: Measures, predicate: str) -> float:
    return measures.predicates.get(predicate, 0) / max(measures.totals["relations"], 1)
