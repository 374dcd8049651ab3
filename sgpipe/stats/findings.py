"""What the measures come to, in sentences: what is in here, how good, what to drop, may one train on it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sgpipe.records import TRAINED_ON
from sgpipe.stats.calibration import Choice
from sgpipe.stats.distributions import AgreementMeasures
from sgpipe.stats.ground_truth import TruthMeasures
from sgpipe.stats.measures import Level, Measures
from sgpipe.stats.verdicts import Verdicts

Grade = Literal["good", "fair", "bad", "plain"]

_MANY_ERRORS, _MANY_BARE, _ILL = 0.05, 0.5, 0.05


@dataclass(frozen=True)
class Finding:
    """An answer to a question, and whether it is good news."""

    question: str
    grade: Grade
    text: str


def find(measures: Measures, asked: bool = True) -> list[Finding]:
    """The findings, by question; `asked`: say how to learn the precision, since it is not known."""
    return [*_content(measures), *_quality(measures, asked), *_to_drop(measures), *_training(measures)]


def find_precision(truth: TruthMeasures | None, verdicts: Verdicts | None) -> Iterator[Finding]:
    """What truth and people say about the precision."""
    question = "How good is it?"
    if truth is not None and truth.precision.value is not None:
        grade: Grade = "good" if truth.precision.low >= truth.target else "fair"
        yield Finding(question, grade, f"By the truth of {truth.images:,} images, {truth.precision} of the relations "
                      f"of confidence {truth.threshold:.2f} or more are right.")  # fmt: skip
        yield Finding(question, "plain", _advice(truth.suggested, truth.target))
    if verdicts is not None and verdicts.precision is not None:
        grade = "good" if (verdicts.low or 0) >= verdicts.target else "fair"
        yield Finding(question, grade, f"By people's verdicts on {verdicts.judged:,} relations, "
                      f"{verdicts.precision:.1%} ({verdicts.low:.1%} to {verdicts.high:.1%}) of "
                      f"{verdicts.covered:.0%} of the run are right.")  # fmt: skip
        yield Finding(question, "plain", _advice(verdicts.suggested, verdicts.target))


def _advice(suggested: Choice | None, target: float) -> str:
    if suggested is None:
        return f"No threshold makes {target:.0%} of the relations right."
    return (
        f"Of confidence {suggested.threshold:.3f} or more, at least {target:.0%} are right: "
        f"{suggested.kept:,} of the judged relations."
    )


def level_at(measures: Measures, threshold: float = TRAINED_ON) -> Level:
    """What a threshold of the table keeps."""
    return next(level for level in measures.thresholds if level.threshold == threshold)


def _content(measures: Measures) -> Iterator[Finding]:
    question, level = "What is in here?", level_at(measures)
    if not measures.rows:
        yield Finding(question, "bad", "Nothing: the run has no image yet.")
        return
    names = ", ".join(measures.datasets)
    splits = ", ".join(f"{split} {count:,}" for split, count in measures.images.items())
    yield Finding(question, "plain", f"{measures.rows:,} images of {names} ({splits}) with "
                  f"{measures.totals['objects']:,} boxes of {len(measures.categories):,} classes.")  # fmt: skip
    yield Finding(question, "plain", f"{measures.totals['relations']:,} relations of "
                  f"{measures.tail.kinds:,} predicates; {level.relations:,} of confidence {TRAINED_ON:.2f} or more, "
                  f"in {level.images:,} images, {level.per_image:.1f} each.")  # fmt: skip
    if measures.totals["captions"]:
        yield Finding(question, "plain", f"{measures.totals['captions']:,} captions, "
                      f"{measures.totals['different_captions']:,} of them different in their image.")  # fmt: skip
    if measures.tail.kinds:
        yield Finding(question, "plain", f"{measures.tail.half:,} predicates have half of the relations; "
                      f"{measures.person_subject_share:.0%} have a person as subject.")  # fmt: skip


def _quality(measures: Measures, asked: bool) -> Iterator[Finding]:
    question, confidence = "How good is it?", measures.confidence
    grade: Grade
    if confidence.scored and confidence.median is not None:
        grade = "bad" if (confidence.highest or 0) < TRAINED_ON else "plain"
        yield Finding(question, grade, f"Half of the confidences are {confidence.median:.2f} or more, the highest is "
                      f"{confidence.highest:.2f}.")  # fmt: skip
    if confidence.unscored:
        yield Finding(
            question, "plain", f"{confidence.unscored:,} relations have no confidence: people annotated them."
        )
    if confidence.scored and asked:
        yield Finding(question, "fair", "A confidence says how sure the tagger is, not how often it is right: judge a "
                      "sample with --review, or compare with annotations by --truth.")  # fmt: skip
    yield from _agreement(measures.agreement)
    ill = [check for check in measures.health if check.count]
    if ill:
        worst = max(ill, key=lambda check: check.share)
        grade = "fair" if worst.share < _ILL else "bad"
        yield Finding(question, grade, f"{len(ill)} of {len(measures.health)} health checks found something; the most: "
                      f"{worst.title} ({worst.share:.1%} of {worst.of}).")  # fmt: skip
    elif any(check.total for check in measures.health if check.of != "boxes"):
        yield Finding(question, "good", f"All {len(measures.health)} health checks found nothing.")
    else:
        yield Finding(question, "plain", "There are no labels that could be good.")


def _agreement(found: AgreementMeasures | None) -> Iterator[Finding]:
    if found is None or found.first is None or found.chance is None:
        return
    text = f"CLIP finds {found.first:.0%} of {found.scored:,} relations the best of their contrast texts"
    text += f" (by chance {found.chance:.0%})"
    if found.beats_swapped is not None:
        text += f", and prefers {found.beats_swapped:.0%} to the same with the roles exchanged"
    yield Finding("How good is it?", "plain", f"{text}.")


def _to_drop(measures: Measures) -> Iterator[Finding]:
    question, level = "What should I drop?", level_at(measures)
    below = measures.totals["relations"] - level.relations
    if below:
        yield Finding(question, "plain", f"{below:,} relations below {TRAINED_ON:.2f}; training does so by itself.")
    for check in sorted(measures.health, key=lambda check: -check.share):
        if check.count:
            yield Finding(question, "fair", f"{check.count:,} × {check.title}. {check.advice}")
    if measures.rows and not below and not any(check.count for check in measures.health):
        yield Finding(question, "good", "Nothing.")


def _training(measures: Measures) -> Iterator[Finding]:
    question = "May I train on it?"
    obstacles = list(_obstacles(measures))
    if not obstacles:
        yield Finding(question, "good", "Nothing here speaks against it.")
    yield from (Finding(question, grade, text) for grade, text in obstacles)


def _obstacles(measures: Measures) -> Iterator[tuple[Grade, str]]:
    level, errors = level_at(measures), sum(measures.errors.values())
    usable = measures.rows - errors
    if not level.relations:
        yield "bad", f"No: there is no relation of confidence {TRAINED_ON:.2f} or more."
    elif level.images < (1 - _MANY_BARE) * usable:
        yield "fair", f"Only {level.images / usable:.0%} of the images have a relation that training uses."
    if errors > _MANY_ERRORS * measures.rows:
        yield "fair", f"{errors / measures.rows:.0%} of the images are error rows: mend that and use --retry-failed."
    for check in measures.health:
        if check.share > _ILL and check.of in ("relations", "pairs"):
            yield "fair", f"Not before this is looked at: {check.title} ({check.share:.1%} of {check.of})."
