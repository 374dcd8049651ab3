"""What the verdicts of a review say about the run: each one stands for the relations of its confidence band."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError
from sgpipe.stats.calibration import (
    JudgedRelations,
    StratifiedEstimate,
    ThresholdChoice,
    check_target,
    estimate_stratified,
)
from sgpipe.stats.judged import NO_PLAN, JudgementSummary, read_review
from sgpipe.stats.opinion import OpinionQuality, opinion_quality, opinions_on
from sgpipe.stats.review import ConfidenceBand, Review, Stratum, band_of, sample_bands
from sgpipe.storage.database import Database


@dataclass(frozen=True)
class BandVerdict:
    """A band of confidence, or another stratum of the sample, and the precision of its judged relations."""

    band: Stratum
    precision: StratifiedEstimate


@dataclass(frozen=True)
class PredicateVerdict:
    """A predicate and its precision, weighted by its relations in each band."""

    predicate: str
    precision: StratifiedEstimate


@dataclass(frozen=True)
class Verdicts:
    """Human verdicts on a sample of relations; all but the plain counts are weighted by the relations of the bands.

    Attributes:
        judged: relations judged right or wrong; those that are `unsure` or `open` do not count.
        precision: of the relations in judged bands. None if no band was judged.
        low, high: the 95% interval of the precision of the run; relations of bands without a verdict may be correct or
            not.
        covered: share of the run's relations that are in judged bands.
        if_unsure_wrong, if_unsure_right: the precision if all unsure answers were wrong, or right.
        relations: the run's when the page was written. `relations_now`: the run's now.
        sized: whether the file says how many relations each band had; if not, those of the run count.
        calibration_error: mean distance between the mean confidence and the precision of each band; None: it has none,
            or the sample is one by predicates.
        suggested: the lowest threshold whose 95% interval is not below the `target`, which then is `sure`; without one,
            the lowest threshold whose precision is not below it.
        judgements: what else a file of judgements says; None for a file that a page exported.
        opinion: how good the second opinion on the judged relations is, not weighted; None: the run has none.
    """

    judged: int
    unsure: int
    open: int
    precision: float | None
    low: float | None
    high: float | None
    covered: float
    if_unsure_wrong: float | None
    if_unsure_right: float | None
    relations: int
    relations_now: int
    sized: bool
    bands: list[BandVerdict]
    predicates: list[PredicateVerdict]
    calibration_error: float | None
    curve: list[ThresholdChoice]
    target: float
    suggested: ThresholdChoice | None
    sure: bool
    judgements: JudgementSummary | None = None
    opinion: OpinionQuality | None = None

    @property
    def strata(self) -> str:
        """What the strata of the sample are."""
        return "predicates" if any(not isinstance(row.band, ConfidenceBand) for row in self.bands) else "bands"


def measure_verdicts(
    database: Database,
    file: Path,
    target: float,
    thresholds: Sequence[float],
    calibration: Calibration | None = None,
) -> Verdicts:
    """Estimate the precision of an open run from exported verdicts, or from a file of judgements.

    Args:
        target: the precision for which a threshold is suggested.
        thresholds: those of the curve.
        calibration: whose probabilities the database has as certainties; bands stay those of confidences.

    Raises UserError: the file is neither, belongs to another run, or the target is out of range.
    """
    check_target(target)
    read = read_review(file, str(database.run.get("fingerprint", "")))
    review = read.review
    sample = _Sample(database, review, read.strata, calibration)
    [whole, wrong, right, *bands] = estimate_stratified(*sample.run_and_bands())
    names = [name for name, _ in Counter(sample.names[sample.is_judged].tolist()).most_common()]
    predicates = estimate_stratified(*sample.by_predicate(names)) if names else []
    candidates = sample.judged.candidates()
    choices = sample.choices([*thresholds, *candidates])
    curve, candidate_choices = choices[: len(thresholds)], choices[len(thresholds) :]
    sure = next((choice for choice in candidate_choices if choice.precision.low >= target), None)
    return Verdicts(
        judged=whole.judged,
        unsure=review.answers.count("unsure"),
        open=review.answers.count(None),
        precision=whole.value,
        low=None if whole.value is None else whole.low,
        high=None if whole.value is None else whole.high,
        covered=whole.covered,
        if_unsure_wrong=wrong.value,
        if_unsure_right=right.value,
        relations=round(sample.weights.sum()),
        relations_now=int(sample.counts.sum()),
        sized=sample.sized,
        bands=[BandVerdict(band, precision) for band, precision in zip(sample.bands, bands, strict=True)],
        predicates=[PredicateVerdict(name, found) for name, found in zip(names, predicates, strict=True)],
        calibration_error=sample.calibration_error(bands),
        curve=curve,
        target=target,
        suggested=sure or next((c for c in candidate_choices if (c.precision.value or 0) >= target), None),
        sure=sure is not None,
        judgements=read.summary,
        opinion=sample.opinion(review),
    )


@dataclass(frozen=True, eq=False)
class JudgedSample:
    """The relations with a confidence that people judged right or wrong, arrays `[relations]`.

    Attributes:
        images: ids. predicates: texts.
        weight: how many relations of its band each stands for.
    """

    images: NDArray[np.object_]
    predicates: list[str]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    weight: NDArray[np.float64]


def read_judgements(database: Database, file: Path) -> JudgedSample:
    """The judged relations of a file of verdicts or judgements on an open run.

    Raises UserError: as `read_review`, or there are no answers to a plan of the whole run.
    """
    read = read_review(file, str(database.run.get("fingerprint", "")))
    if read.summary is not None and read.summary.plan is None:
        raise UserError(f"{file}: {NO_PLAN}")
    return _Sample(database, read.review, read.strata).judgements(read.review)


_Table = tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]


class _Sample:
    """The judged relations of a review and the relations of the run that they stand for.

    The strata are the bands of the review, and last the relations that are in none.

    Attributes:
        counts: the run's relations now, `[strata]`.
        weights: the relations that the verdicts stand for, as the file says, `[strata]`.
    """

    def __init__(
        self,
        database: Database,
        review: Review,
        strata: Sequence[Stratum] | None,
        calibration: Calibration | None = None,
    ) -> None:
        self._database = database
        self.sized = strata is not None and all(band.relations is not None for band in strata)
        bands = list(sample_bands(database, 0).values()) if strata is None else strata
        scored = [band for band in bands if isinstance(band, ConfidenceBand)]
        self._stratum = _stratum(bands)
        self.counts, self._means = self._count_bands(len(bands))
        relations = [n if b.relations is None else b.relations for b, n in zip(bands, self.counts[:-1], strict=True)]
        self.bands = [replace(band, relations=int(n)) for band, n in zip(bands, relations, strict=True)]
        self.weights = np.array([*relations, self.counts[-1]], np.float64)
        self._scale = self.weights / np.maximum(self.counts, 1)
        numbers = [band_of(question.confidence, scored) if question.band is None else question.band
                   for question in review.questions]  # fmt: skip
        self._band = np.array(numbers, int)
        answers = np.array(review.answers, object)
        self.names = np.array([question.predicate for question in review.questions], object)
        self._right, self._unsure = answers == "right", answers == "unsure"
        self.is_judged = self._right | (answers == "wrong")
        confidence = [1.0 if question.confidence is None else question.confidence for question in review.questions]
        self._confidence = np.array(confidence, np.float32)
        if calibration is not None:
            found = calibration.probabilities(self.names.tolist(), range(len(self.names)), self._confidence)
            certain = [question.confidence is None for question in review.questions]
            self._confidence = np.where(certain, 1, found).astype(np.float32)
        self.judged = JudgedRelations(self._confidence[self.is_judged], self._right[self.is_judged])

    def judgements(self, review: Review) -> JudgedSample:
        """The judged relations that have a confidence."""
        scored = np.array([question.confidence is not None for question in review.questions], bool)
        chosen = self.is_judged & scored
        band = self._band[chosen]
        weight = self.weights / np.maximum(self._tally(chosen), 1)
        return JudgedSample(
            np.array([question.image_id for question in review.questions], object)[chosen],
            self.names[chosen].tolist(),
            self._confidence[chosen].astype(np.float64),
            self._right[chosen],
            weight[band],
        )

    def opinion(self, review: Review) -> OpinionQuality | None:
        """How good the second opinion on the judged relations is; None without one."""
        asked = [(q.image_id, q.subject, q.predicate, q.object, q.confidence) for q in review.questions]
        found = np.array(opinions_on(self._database, asked), np.float64)  # NaN where there is none
        known = self.is_judged & ~np.isnan(found)
        if not known.any():
            return None
        return opinion_quality(JudgedRelations(found[known].astype(np.float32), self._right[known]), self.judged)

    def run_and_bands(self) -> _Table:
        """The run, the run if the unsure answers were wrong, the same if they were right, and each band."""
        judged, right, unsure = (self._tally(chosen) for chosen in (self.is_judged, self._right, self._unsure))
        each = np.eye(len(self.bands), len(self.weights), dtype=int)
        population = np.concatenate([[self.weights] * 3, each * self.weights])
        return (
            population,
            np.concatenate([[judged, judged + unsure, judged + unsure], each * judged]),
            np.concatenate([[right, right, right + unsure], each * right]),
        )

    def by_predicate(self, names: Sequence[str]) -> _Table:
        """The relations of each predicate."""
        at = {name: number for number, name in enumerate(names)}
        population = np.zeros((len(names), len(self.weights)))
        query = f"select predicate::varchar, {self._stratum} as stratum, count(*) from relations group by all"
        for name, stratum, number in self._database.rows(query):
            if name in at:
                population[at[name], stratum] = number * self._scale[stratum]
        judged = np.array([self._tally(self.is_judged & (self.names == name)) for name in names])
        return population, judged, np.array([self._tally(self._right & (self.names == name)) for name in names])

    def choices(self, thresholds: Sequence[float]) -> list[ThresholdChoice]:
        """What each threshold keeps; relations without a confidence pass every one."""
        if not len(thresholds):
            return []
        above = self._count_above(np.array(thresholds, np.float32))
        kept = [self._confidence >= np.float32(threshold) for threshold in thresholds]
        judged = np.array([self._tally(self.is_judged & keeps) for keeps in kept])
        right = np.array([self._tally(self._right & keeps) for keeps in kept])
        estimates = estimate_stratified(above * self._scale, judged, right)
        return [
            ThresholdChoice(threshold, estimate.judged, estimate, int(counts.sum()))
            for threshold, estimate, counts in zip(thresholds, estimates, above, strict=True)
        ]

    def calibration_error(self, estimates: Sequence[StratifiedEstimate]) -> float | None:
        """The mean over bands, weighted by their relations, without those that have no verdict or no confidence."""
        if not all(isinstance(band, ConfidenceBand) for band in self.bands):
            return None
        rows = [
            (weight, abs(mean - estimate.value))
            for weight, mean, estimate in zip(self.weights, self._means, estimates, strict=False)
            if estimate.value is not None and mean is not None
        ]
        total = sum(weight for weight, _ in rows)
        return sum(weight * distance for weight, distance in rows) / total if total else None

    def _tally(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(self._band[chosen], minlength=len(self.weights))

    def _count_bands(self, bands: int) -> tuple[NDArray[np.int64], list[float | None]]:
        counts = np.zeros(bands + 1, np.int64)
        means: list[float | None] = [None] * (bands + 1)
        mean = "avg(certainty) filter (confidence is not null)::double"
        query = f"select {self._stratum} as stratum, count(*), {mean} from relations group by all"
        for stratum, number, mean in self._database.rows(query):
            counts[stratum], means[stratum] = number, mean
        return counts, means

    def _count_above(self, thresholds: NDArray[np.float32]) -> NDArray[np.int64]:
        """The run's relations of at least each threshold, `[thresholds, strata]`."""
        cuts = np.unique(thresholds)
        self._database.execute("create or replace table cuts (cut float)")
        self._database.insert("cuts", [(float(cut),) for cut in cuts])
        counts = np.zeros((len(cuts), len(self.weights)), np.int64)
        query = f"""select cut, stratum, count(*)
            from (select certainty, {self._stratum} as stratum from relations) placed
            asof join cuts on certainty >= cut group by all"""
        for cut, stratum, number in self._database.rows(query):
            counts[np.searchsorted(cuts, np.float32(cut)), stratum] = number
        return np.cumsum(counts[::-1], axis=0)[::-1][np.searchsorted(cuts, thresholds)]


def _stratum(bands: Sequence[Stratum]) -> str:
    """SQL for the number of a relation's band; that after the last if it is in none."""
    whens = " ".join(f"when {band.condition()} then {number}" for number, band in enumerate(bands))
    return f"(case {whens} else {len(bands)} end)" if bands else "0"
