"""Conclusions from the measures, in sentences: contents, quality, what to drop, and whether to train on the run."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.calibration import FEWEST, ThresholdChoice
from sgpipe.stats.distributions import AgreementMeasures
from sgpipe.stats.ground_truth import GroundTruthMeasures
from sgpipe.stats.judged import NO_PLAN
from sgpipe.stats.measures import Level, Measures
from sgpipe.stats.opinion import AGREES, OpinionMeasures, OpinionQuality
from sgpipe.stats.verdicts import Verdicts
from sgpipe.utils.console import count, isolated, single_line

Grade = Literal["good", "fair", "bad", "plain"]

CONTENT, QUALITY = "What does it contain?", "How good is it?"
DROP, TRAINING = "What should I drop?", "Can I train on it?"
_ONE_PREDICATE = "All relations have the same predicate"
_MANY_ERRORS, _MANY_BARE, _ILL = 0.05, 0.5, 0.05


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
    ground_truth: GroundTruthMeasures | None, verdicts: Verdicts | None, threshold_of: str
) -> Iterator[Finding]:
    """The precision according to ground truth and to human verdicts; `threshold_of`: see `Measures`."""
    if ground_truth is not None and ground_truth.precision.value is not None:
        grade: Grade = "good" if ground_truth.precision.low >= ground_truth.target else "fair"
        yield Finding(QUALITY, grade, f"Ground truth of {count(ground_truth.images, 'image')}: the precision of "
                      f"relations of {threshold_of} {ground_truth.threshold:.2f} or more is "
                      f"{ground_truth.precision}.")  # fmt: skip
        yield Finding(QUALITY, "plain", _advice(ground_truth.suggested, ground_truth.target))
        yield from _opinion_quality(ground_truth.opinion, "ground truth")
    if verdicts is not None:
        yield from _judged(verdicts)
        yield from _opinion_quality(verdicts.opinion, "people")


def _advice(suggested: ThresholdChoice | None, target: float) -> str:
    if suggested is None:
        return f"No threshold reaches a precision of {percent(target)}."
    return (
        f"A threshold of {suggested.text} reaches a precision of {percent(target)} and keeps "
        f"{count(suggested.kept, 'judged relation')}."
    )


def _judged(verdicts: Verdicts) -> Iterator[Finding]:
    if verdicts.precision is None:
        nothing = "The file of verdicts says of no relation whether it is right or wrong."
        yield Finding(
            QUALITY, "fair", nothing if verdicts.judgements is None else f"{NO_PLAN[0].upper()}{NO_PLAN[1:]}."
        )
        return
    grade: Grade = "good" if (verdicts.low or 0) >= verdicts.target else "fair"
    value, interval = f"{verdicts.precision:.1%}", f"{verdicts.low:.1%} to {verdicts.high:.1%}"
    if verdicts.covered == 1:
        text = f"the precision of the run is {value} ({interval})"
    else:
        text = f"the precision of the judged {verdicts.strata}, {share_text(verdicts.covered)} of the run, is {value}; "
        text += f"that of the run is {interval}"
    text = f"Human verdicts on {count(verdicts.judged, 'relation')}: {text}"
    strata = verdicts.strata.capitalize()
    yield Finding(QUALITY, grade, f"{text}. {strata} are weighted by their number of relations.")
    yield Finding(QUALITY, "plain", _weighted_advice(verdicts))
    yield from (Finding(QUALITY, "fair", text) for text in verdict_caveats(verdicts))


def _weighted_advice(verdicts: Verdicts) -> str:
    target, choice = percent(verdicts.target), verdicts.suggested
    if choice is not None and verdicts.sure:
        return (f"A threshold of {choice.text} keeps {_kept(choice, verdicts)}; at least {target} of them are correct: "
                f"{choice.precision}.")  # fmt: skip
    if verdicts.judged < FEWEST:
        return f"A suggested threshold needs at least {FEWEST} judged relations."
    if choice is None:
        return f"No threshold reaches a precision of {target}."
    return (f"No threshold is sure to reach a precision of {target}. One of {choice.text} keeps "
            f"{_kept(choice, verdicts)} and may reach it: {choice.precision}.")  # fmt: skip


def _kept(choice: ThresholdChoice, verdicts: Verdicts) -> str:
    return f"{choice.relations or 0:,} of {count(verdicts.relations_now, 'relation')}"


def verdict_caveats(verdicts: Verdicts) -> Iterator[str]:
    """What a reader must know about the sample, in sentences."""
    if verdicts.judgements is not None:
        yield verdicts.judgements.text
        yield from verdicts.judgements.problems
    if verdicts.unsure and verdicts.if_unsure_wrong is not None:
        answers = count(verdicts.unsure, "unsure answer does", "unsure answers do")
        yield (f"{answers} not count: with all of them wrong the precision would be {verdicts.if_unsure_wrong:.1%}, "
               f"with all right {verdicts.if_unsure_right:.1%}.")  # fmt: skip
    if verdicts.open:
        yield (f"{count(verdicts.open, 'question has', 'questions have')} no answer. They come in random order, so "
               "the answered ones are a random sample unless difficult ones were skipped.")  # fmt: skip
    if not verdicts.sized:
        yield "The file does not say how many relations each band had: those of the run as it is now are the weights."
    elif verdicts.relations != verdicts.relations_now:
        yield (f"The run had {count(verdicts.relations, 'relation')} when the page was written and has "
               f"{verdicts.relations_now:,} now: the figures hold for those of then.")  # fmt: skip


def share_text(share: float) -> str:
    """A share as a whole percentage that says 0% and 100% only of none and all."""
    if 0 < share < 0.005:
        return "less than 1%"
    return "more than 99%" if 0.995 <= share < 1 else f"{share:.0%}"


def percent(share: float) -> str:
    """A target with all its digits: 80%, 99.5%."""
    return f"{100 * share:.6g}%"


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
        yield Finding(QUALITY, "fair", "A confidence says how sure the tagger is, not how often it is correct: review "
                      "a sample with --review, or compare with annotations with --truth.")  # fmt: skip
    yield from _agreement(measures.agreement)
    yield from _opinion(measures.opinion)
    ill = [check for check in measures.health if check.count]
    if ill:
        worst = max(ill, key=lambda check: check.share)
        grade = "fair" if worst.share < _ILL else "bad"
        yield Finding(QUALITY, grade, f"{len(ill)} of {len(measures.health)} health checks found problems, most often: "
                      f"{worst.title} ({worst.share:.1%} of {worst.of}).")  # fmt: skip
    elif is_checked(measures):
        yield Finding(QUALITY, "good", f"All {len(measures.health)} health checks passed.")
    elif measures.totals["relations"] and measures.rows > sum(measures.errors.values()):
        yield Finding(QUALITY, "plain", "There are no captions to check, and the relations are below the threshold.")
    else:
        yield Finding(QUALITY, "plain", "There are no relations or captions to check.")


def is_checked(measures: Measures) -> bool:
    """Whether there is anything that the health checks could find wrong, besides boxes and error rows."""
    usable = measures.rows > sum(measures.errors.values())
    return usable and any(check.total for check in measures.health if check.of != "boxes")


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


def _opinion_quality(quality: OpinionQuality | None, by: str) -> Iterator[Finding]:
    if quality is None or quality.auc is None or quality.calibration_error is None:
        return
    text = (
        f"Second opinion, judged by {by} on {count(quality.judged, 'relation')}: a correct relation has a higher "
        f"probability than an incorrect one in {quality.auc:.1%} of pairs (AUC)"
    )
    if quality.confidence_auc is not None:
        text += f"; of the confidence that is {quality.confidence_auc:.1%}"
    yield Finding(QUALITY, "plain", f"{text}. Its calibration error is {quality.calibration_error:.3f}.")


def _to_drop(measures: Measures) -> Iterator[Finding]:
    below = measures.totals["relations"] - level_at(measures).relations
    if below:
        yield Finding(DROP, "plain", f"{count(below, 'relation')} below {TRAINING_CONFIDENCE:.2f}, which training "
                      "ignores anyway.")  # fmt: skip
    for check in sorted(measures.health, key=lambda check: -check.share):
        if check.count:
            yield Finding(DROP, "fair", f"{check.count:,} × {check.title}. {check.advice}")
    if (
        measures.rows > sum(measures.errors.values())
        and not below
        and not any(check.count for check in measures.health)
    ):
        yield Finding(DROP, "good", "Nothing.")


def _training(measures: Measures) -> Iterator[Finding]:
    obstacles = list(_obstacles(measures))
    if not obstacles:
        yield Finding(TRAINING, "good", "No problems found.")
    yield from (Finding(TRAINING, grade, text) for grade, text in obstacles)


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
        if check.share > _ILL and check.of in ("relations", "pairs"):
            yield "fair", f"Check this first: {check.title} ({check.share:.1%} of {check.of})."
