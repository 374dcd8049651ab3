"""What people's judgements say about a run: its precision, and the thresholds that reach one.

Only judgements that a sampling plan of the whole run asked for count, of several plans those of the one with the most.
Each stands for as many relations as its stratum has per judgement.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError, check_share
from sgpipe.stats.plans import PlanProgress, StratumPrecision, count_states, judgements_of, measure_plan, stratum_sql
from sgpipe.stats.precision import (
    JudgedRelations,
    PrecisionEstimate,
    ScoreQuality,
    ThresholdChoice,
    estimate_stratified,
    perfect_error,
    score_quality,
)
from sgpipe.stats.recall import RecallMeasures, measure_recall
from sgpipe.storage.index import Database, open_run
from sgpipe.storage.judgements import JudgementLog, PlannedQuestion, SamplingPlan
from sgpipe.utils.console import count

NO_PLAN = (
    "no plan that samples the whole run has judgements, and other judgements are not a random sample: make one on the "
    "page Judge of `sgpipe view`"
)


@dataclass(frozen=True)
class JudgementSummary:
    """A file of judgements: the plan whose precision is that of the run, if any, and the counts of `count_states`.

    `outside`: relations that were not judged because a plan asked. `problems`: lines that are left out, and why.
    """

    plan: str | None
    plans: list[PlanProgress]
    counts: dict[str, int]
    outside: int
    problems: list[str]

    @property
    def text(self) -> str:
        """The counts in a sentence."""
        states = ("right", "wrong", "changed", "unsure", "conflict", "added")
        parts = [f"{self.counts[name]:,} {'in conflict' if name == 'conflict' else name}" for name in states]
        judged = count(self.counts["relations"], "relation")
        return f"{judged} judged ({', '.join(parts)}); {self.outside:,} of them outside the plan."


@dataclass(frozen=True)
class JudgementMeasures:
    """What people's judgements of a sample say; all but the plain counts are weighted by the relations of the strata.

    Attributes:
        precision: of the relations in judged strata, without those that are `unsure` or `open`.
        low, high: the 95% interval of the precision of the run; relations of other strata may be correct or not.
        covered: share of the run's relations that are in judged strata.
        relations: the run's when the plan was made. `relations_now`: the run's now.
        strata: "bands" (of confidence) or "predicates"; `bands`: the strata.
        calibration_error: mean distance of confidence and precision of bands; `perfect_error`: of exact confidences.
        suggested: the lowest threshold whose interval (`sure`), or else whose precision, is not below the `target`.
        vlm_score: not weighted.
        recall: by the recall plan with the most answers.
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
    strata: str
    bands: list[StratumPrecision]
    predicates: dict[str, PrecisionEstimate]
    calibration_error: float | None
    perfect_error: float | None
    curve: list[ThresholdChoice]
    target: float
    suggested: ThresholdChoice | None
    sure: bool
    judgements: JudgementSummary
    vlm_score: ScoreQuality | None = None
    recall: RecallMeasures | None = None


def measure_judgements(
    database: Database, file: Path, target: float, thresholds: Sequence[float], calibration: Calibration | None = None
) -> JudgementMeasures:
    """Estimate the precision of an open run from a file of judgements, and the threshold that reaches the `target`.

    `thresholds`: those of the curve. `calibration`: whose probabilities the database has as certainties.

    Raises UserError: the file has no line about this run, or the target is out of range.
    """
    check_share("precision", target)
    log = _open_log(database, file)
    summary, plan = _summarise(log)
    sample = _Sample(database, plan, log, calibration)
    bands = next((own.strata for own in summary.plans if own.plan == summary.plan), [])
    [whole, wrong, right] = sample.estimate_run()
    choices = sample.choices([*thresholds, *sample.judged.candidates()])
    curve, candidates = choices[: len(thresholds)], choices[len(thresholds) :]
    error, perfect = sample.calibration_errors(bands)
    sure = next((choice for choice in candidates if choice.precision.low >= target), None)
    recalls = [measure_recall(each, log, database.rows) for each in log.recall_plans.values()]
    return JudgementMeasures(
        judged=whole.judged,
        unsure=sample.given.count("unsure"),
        open=sample.given.count(None),
        precision=whole.value,
        low=None if whole.value is None else whole.low,
        high=None if whole.value is None else whole.high,
        covered=whole.covered,
        if_unsure_wrong=wrong.value,
        if_unsure_right=right.value,
        relations=round(sample.weights.sum()),
        relations_now=int(sample.counts.sum()),
        strata=sample.kind,
        bands=bands,
        predicates=sample.estimate_predicates(),
        calibration_error=error,
        perfect_error=perfect,
        curve=curve,
        target=target,
        suggested=sure or next((each for each in candidates if (each.precision.value or 0) >= target), None),
        sure=sure is not None,
        judgements=summary,
        vlm_score=sample.vlm_score(),
        recall=max(recalls, key=lambda found: found.answered, default=None),
    )


@dataclass(frozen=True, eq=False)
class Judgements:
    """Judged relations with a confidence; arrays `[relations]`; `weight`: how many relations each stands for.

    The curve of a calibration is not weighted: a sample by confidence does not change how probable a confidence is, and
    in simulated samples a weighted curve has a larger error.
    """

    by: Literal["ground truth", "people"]
    images: NDArray[np.object_]
    confidence: NDArray[np.float64]
    correct: NDArray[np.bool_]
    weight: NDArray[np.float64]

    def __len__(self) -> int:
        return len(self.correct)

    def __getitem__(self, chosen: NDArray[np.bool_]) -> Judgements:
        images, confidence = self.images[chosen], self.confidence[chosen]
        return Judgements(self.by, images, confidence, self.correct[chosen], self.weight[chosen])

    @property
    def held_out(self) -> NDArray[np.bool_]:
        return np.array([hashlib.sha256(image.encode()).digest()[0] % 2 for image in self.images], bool)


def judge_by_people(run: Path, file: Path) -> Judgements:
    """Return the relations that people judged as a plan of the whole run asked. Raises UserError if there is none."""
    with open_run(run) as database:
        log = _open_log(database, file)
        _, plan = _summarise(log)
        if plan is None:
            raise UserError(f"{file}: {NO_PLAN}")
        return _Sample(database, plan, log).scored()


def _open_log(database: Database, file: Path) -> JudgementLog:
    if not file.is_file():
        raise UserError(f"{file} does not exist, or is not a file")
    log = JudgementLog(file, str(database.run.get("fingerprint", "")), read_only=True)
    if log.problems and not log.plans and not log.recall_plans and next(log.current(), None) is None:
        raise UserError(log.problems[0])
    return log


def _summarise(log: JudgementLog) -> tuple[JudgementSummary, SamplingPlan | None]:
    """Return what the file contains, and the plan whose precision is that of the run."""
    progress = {name: measure_plan(plan, log) for name, plan in log.plans.items() if not plan.certificate}
    of_run = [plan for plan in log.plans.values() if plan.kind in ("bands", "predicates")]
    judged = [plan for plan in of_run if progress[plan.plan].precision.judged]
    best = max(judged, key=lambda plan: progress[plan.plan].precision.judged, default=None)
    states = list(log.current())
    asked = {key for plan in log.plans for key in log.judged(plan)}
    outside = sum(state.key not in asked for state in states)
    plans = list(progress.values())
    return JudgementSummary(best.plan if best else None, plans, count_states(states), outside, log.problems), best


class _Sample:
    """The questions of a plan, how each is judged (`given`), and the relations of the run that they stand for.

    `[strata + 1]`, the last entry being those in no stratum: `counts`, the run's relations now, and `weights`, the
    relations that the judgements stand for, as the plan says.
    """

    def __init__(
        self, database: Database, plan: SamplingPlan | None, log: JudgementLog, calibration: Calibration | None = None
    ) -> None:
        self._database = database
        self._questions: Sequence[PlannedQuestion] = plan.questions if plan else ()
        strata = plan.strata if plan else []
        self.kind = "predicates" if plan and plan.kind == "predicates" else "bands"
        self._stratum = stratum_sql(strata, self.kind)
        self.counts = np.zeros(len(strata) + 1, np.int64)
        self._means: list[float | None] = [None] * len(self.counts)
        query = f"""select {self._stratum} as stratum, count(*), avg(certainty) filter (confidence is not null)::double
            from relations group by all"""
        for stratum, number, mean in database.rows(query):
            self.counts[stratum], self._means[stratum] = number, mean
        self.weights = np.array([*(stratum.relations for stratum in strata), self.counts[-1]], np.float64)
        self._scale = self.weights / np.maximum(self.counts, 1)
        self._at = np.array([question.stratum for question in self._questions], int)
        self._names = np.array([question.predicate for question in self._questions], object)
        self.given = judgements_of(plan, log) if plan else []
        given = np.array(self.given, object)
        self._right, self._unsure = given == "right", given == "unsure"
        self._is_judged = self._right | (given == "wrong")
        confidence = np.array([question.confidence for question in self._questions], np.float32)
        self._has_confidence = np.array([question.confidence is not None for question in self._questions], bool)
        if calibration is not None:
            confidence = calibration.probabilities(confidence).astype(np.float32)
        self._confidence = np.where(self._has_confidence, confidence, np.float32(1))
        self.judged = JudgedRelations(self._confidence[self._is_judged], self._right[self._is_judged])

    def scored(self) -> Judgements:
        """Return the judged relations that have a confidence."""
        chosen = self._is_judged & self._has_confidence
        images = np.array([question.image_id for question in self._questions], object)[chosen]
        weight = (self.weights / np.maximum(self._tally(chosen), 1))[self._at[chosen]]
        confidence = self._confidence[chosen].astype(np.float64)
        return Judgements("people", images, confidence, self._right[chosen], weight)

    def vlm_score(self) -> ScoreQuality | None:
        """Return how good the vision-language model's scores are (means if repeated); None without any."""
        if not self._database.has_vlm_scores or not self._questions:
            return None
        images = list({question.image_id for question in self._questions})
        rows = self._database.rows(
            """select split::varchar, image_id, subject, object, predicate::varchar, avg(vlm_score)::double
            from relations join images using (image) where image_id in (select unnest(?::varchar[])) group by all""",
            [images],
        )
        scores = {tuple(key): vlm_score for *key, vlm_score in rows}
        found = np.array([scores.get(tuple(question.key)) for question in self._questions], np.float64)
        known = self._is_judged & ~np.isnan(found)
        if not known.any():
            return None
        return score_quality(JudgedRelations(found[known].astype(np.float32), self._right[known]), self.judged)

    def estimate_run(self) -> list[PrecisionEstimate]:
        """Return the precision of the run, that if all unsure were wrong, and that if they were right."""
        judged, right, unsure = (self._tally(chosen) for chosen in (self._is_judged, self._right, self._unsure))
        answered = judged + unsure
        return estimate_stratified([self.weights] * 3, [judged, answered, answered], [right, right, right + unsure])

    def estimate_predicates(self) -> dict[str, PrecisionEstimate]:
        """Return the precision of each judged predicate, weighted by its relations in each stratum."""
        names = [name for name, _ in Counter(self._names[self._is_judged].tolist()).most_common()]
        if not names:
            return {}
        at = {name: number for number, name in enumerate(names)}
        population = np.zeros((len(names), len(self.weights)))
        query = f"select predicate::varchar, {self._stratum} as stratum, count(*) from relations group by all"
        for name, stratum, number in self._database.rows(query):
            if name in at:
                population[at[name], stratum] = number * self._scale[stratum]
        judged, right = (
            [self._tally(chosen & (self._names == name)) for name in names] for chosen in (self._is_judged, self._right)
        )
        return dict(zip(names, estimate_stratified(population, judged, right), strict=True))

    def choices(self, thresholds: Sequence[float]) -> list[ThresholdChoice]:
        """Return what each threshold keeps; relations without a confidence pass every one."""
        above = self._count_above(np.array(thresholds, np.float32))
        kept = [self._confidence >= np.float32(threshold) for threshold in thresholds]
        judged, right = ([self._tally(own & keeps) for keeps in kept] for own in (self._is_judged, self._right))
        found = zip(thresholds, estimate_stratified(above * self._scale, judged, right), above, strict=True)
        return [ThresholdChoice(least, own.judged, own, int(number.sum())) for least, own, number in found]

    def calibration_errors(self, bands: Sequence[StratumPrecision]) -> tuple[float | None, float | None]:
        """Return the mean distance of confidence and precision over judged bands, and that of exact confidences."""
        rows = [
            (weight, mean, own.precision.value, own.precision.judged)
            for weight, mean, own in zip(self.weights, self._means, bands, strict=False)
            if own.precision.value is not None and mean is not None and self.kind == "bands"
        ]
        if not rows:
            return None, None
        weight, mean, value, judged = np.array(rows, np.float64).T
        return float(np.average(abs(mean - value), weights=weight)), perfect_error(mean, judged, weight)

    def _tally(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(self._at[chosen], minlength=len(self.weights))

    def _count_above(self, thresholds: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the run's relations of at least each threshold, `[thresholds, strata]`."""
        cuts = np.unique(thresholds)
        counts = np.zeros((len(cuts), len(self.weights)), np.int64)
        query = f"""select cut, stratum, count(*)
            from (select certainty, {self._stratum} as stratum from relations) placed
            asof join (select unnest(?::float[]) as cut) on certainty >= cut group by all"""
        for cut, stratum, number in self._database.rows(query, [cuts.tolist()]):
            counts[np.searchsorted(cuts, np.float32(cut)), stratum] = number
        return np.cumsum(counts[::-1], axis=0)[::-1][np.searchsorted(cuts, thresholds)]
