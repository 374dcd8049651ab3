"""What people's judgements say about a run: its precision, and the thresholds that reach one.

Only judgements that a sampling plan of the whole run asked for count, of several plans those of the one with the most.
Each stands for as many relations as its stratum has per judgement.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError, check_share
from sgpipe.stats.plans import StratumPrecision, judgements_of, measure_plan, stratum_sql
from sgpipe.stats.precision import (
    JudgedRelations,
    PrecisionEstimate,
    ScoreQuality,
    ThresholdChoice,
    estimate_stratified,
    score_quality,
)
from sgpipe.stats.recall import RecallMeasures, measure_recall
from sgpipe.storage.index import Database, open_run
from sgpipe.storage.judgements import JudgementLog, PlannedQuestion, SamplingPlan

NO_PLAN = (
    "no plan that samples the whole run has judgements, and other judgements are not a random sample: make one on the "
    "page Judge of `sgpipe view`"
)


@dataclass(frozen=True)
class JudgementMeasures:
    """What people's judgements of a sample say; all but the plain counts are weighted by the relations of the strata.

    Attributes:
        plan: whose precision is that of the run; None: no plan has judgements.
        precision: of the relations in judged strata, without those that are `unsure` or `open`.
        low, high: the 95% interval of the precision of the run; relations of other strata may be correct or not.
        covered: share of the run's relations that are in judged strata.
        relations: the run's when the plan was made. `relations_now`: the run's now.
        strata: "bands" (of confidence) or "predicates"; `bands`: the strata.
        predicates: the precision of each judged predicate, the most judged first.
        suggested: the lowest threshold whose whole interval is not below the `target`.
        problems: lines that are left out, and why.
        vlm_score: not weighted.
        recall: by the recall plan with the most answers.
    """

    plan: str | None
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
    curve: list[ThresholdChoice]
    target: float
    suggested: ThresholdChoice | None
    problems: list[str]
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
    plan = _plan_of_run(log)
    sample = _Sample(database, plan, log, calibration)
    judged, right, unsure = (sample.tally(chosen) for chosen in (sample.is_judged, sample.right, sample.unsure))
    sets = ([judged, judged + unsure, judged + unsure], [right, right, right + unsure])
    [whole, if_wrong, if_right] = estimate_stratified([sample.weights] * 3, *sets)  # also if the unsure ones were
    choices = sample.choices([*thresholds, *sample.judged.candidates()])
    curve, candidates = choices[: len(thresholds)], choices[len(thresholds) :]
    recalls = [measure_recall(each, log, database.rows) for each in log.recall_plans.values()]
    return JudgementMeasures(
        plan=plan.plan if plan else None,
        judged=whole.judged,
        unsure=sample.given.count("unsure"),
        open=sample.given.count(None),
        precision=whole.value,
        low=None if whole.value is None else whole.low,
        high=None if whole.value is None else whole.high,
        covered=whole.covered,
        if_unsure_wrong=if_wrong.value,
        if_unsure_right=if_right.value,
        relations=round(sample.weights.sum()),
        relations_now=int(sample.counts.sum()),
        strata=sample.kind,
        bands=measure_plan(plan, log).strata if plan else [],
        predicates=sample.predicates(),
        curve=curve,
        target=target,
        suggested=next((choice for choice in candidates if choice.precision.low >= target), None),
        problems=log.problems,
        vlm_score=sample.vlm_score(),
        recall=max(recalls, key=lambda found: found.answered, default=None),
    )


def judge_by_people(run: Path, file: Path) -> JudgedRelations:
    """Return the relations with a confidence that people judged as a plan of the whole run asked.

    `weight`: how many relations each stands for. Raises UserError: there is no such plan.
    """
    with open_run(run) as database:
        log = _open_log(database, file)
        if (plan := _plan_of_run(log)) is None:
            raise UserError(f"{file}: {NO_PLAN}")
        return _Sample(database, plan, log).scored()


def _open_log(database: Database, file: Path) -> JudgementLog:
    log = JudgementLog(file, str(database.run.get("fingerprint", "")), read_only=True)
    if log.problems and not log.plans and not log.recall_plans and next(log.current(), None) is None:
        raise UserError(log.problems[0])
    return log


def _plan_of_run(log: JudgementLog) -> SamplingPlan | None:
    """Return the plan of the whole run with the most judgements; None: none has any."""

    def judged(plan: SamplingPlan) -> int:
        return sum(each in ("right", "wrong") for each in judgements_of(plan, log))

    of_run = (plan for plan in log.plans.values() if plan.kind in ("bands", "predicates"))
    best = max(of_run, key=judged, default=None)
    return best if best and judged(best) else None


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
        for stratum, number in database.rows(f"select {self._stratum} as stratum, count(*) from relations group by 1"):
            self.counts[stratum] = number
        self.weights = np.array([*(stratum.relations for stratum in strata), self.counts[-1]], np.float64)
        self._scale = self.weights / np.maximum(self.counts, 1)
        self._at = np.array([question.stratum for question in self._questions], int)
        self.given = judgements_of(plan, log) if plan else []
        given = np.array(self.given, object)
        self.right, self.unsure = given == "right", given == "unsure"
        self.is_judged = self.right | (given == "wrong")
        confidence = np.array([question.confidence for question in self._questions], np.float32)
        self._has_confidence = np.array([question.confidence is not None for question in self._questions], bool)
        if calibration is not None:
            confidence = calibration.probabilities(confidence).astype(np.float32)
        self._confidence = np.where(self._has_confidence, confidence, np.float32(1))
        self.judged = JudgedRelations(self._confidence[self.is_judged], self.right[self.is_judged])

    def scored(self) -> JudgedRelations:
        """Return the judged relations that have a confidence."""
        chosen = self.is_judged & self._has_confidence
        images = np.array([question.image_id for question in self._questions], object)[chosen]
        weight = (self.weights / np.maximum(self.tally(chosen), 1))[self._at[chosen]]
        confidence = self._confidence[chosen].astype(np.float64)
        return JudgedRelations(confidence, self.right[chosen], images, weight)

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
        known = self.is_judged & ~np.isnan(found)
        return score_quality(JudgedRelations(found[known].astype(np.float32), self.right[known]), self.judged)

    def predicates(self) -> dict[str, PrecisionEstimate]:
        """Return the precision of each judged predicate, weighted by its relations in each stratum."""
        own = np.array([question.predicate for question in self._questions], object)
        names = [name for name, _ in Counter(own[self.is_judged].tolist()).most_common()]
        if not names:
            return {}
        counts = np.zeros((len(names), len(self.weights)))
        query = f"""select predicate::varchar as name, {self._stratum} as stratum, count(*) from relations
            where name in (select unnest(?::varchar[])) group by all"""
        for name, stratum, number in self._database.rows(query, [names]):
            counts[names.index(name), stratum] = number
        judged, right = (
            [self.tally(chosen & (own == name)) for name in names] for chosen in (self.is_judged, self.right)
        )
        return dict(zip(names, estimate_stratified(counts * self._scale, judged, right), strict=True))

    def choices(self, thresholds: Sequence[float]) -> list[ThresholdChoice]:
        """Return what each threshold keeps; relations without a confidence pass every one."""
        cuts, at = np.unique(np.array(thresholds, np.float32), return_inverse=True)
        counts = np.zeros((len(cuts), len(self.weights)), np.int64)  # of the run's relations between two thresholds
        query = f"""select cut, stratum, count(*)
            from (select certainty, {self._stratum} as stratum from relations) placed
            asof join (select unnest(?::float[]) as cut) on certainty >= cut group by all"""
        for cut, stratum, number in self._database.rows(query, [cuts.tolist()]):
            counts[np.searchsorted(cuts, np.float32(cut)), stratum] = number
        above = np.cumsum(counts[::-1], axis=0)[::-1][at]
        kept = [self._confidence >= np.float32(threshold) for threshold in thresholds]
        judged, right = ([self.tally(own & keeps) for keeps in kept] for own in (self.is_judged, self.right))
        found = zip(thresholds, estimate_stratified(above * self._scale, judged, right), above, strict=True)
        return [ThresholdChoice(least, own.judged, own, int(number.sum())) for least, own, number in found]

    def tally(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(self._at[chosen], minlength=len(self.weights))
