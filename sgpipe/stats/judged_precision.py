"""Precision by the judgements of people: of all relations, and of those above each threshold."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError, check_share
from sgpipe.files.locations import Location
from sgpipe.stats.plans import PlanProgress, StratumPrecision, stratum_sql
from sgpipe.stats.precision import (
    JudgedRelations,
    PrecisionEstimate,
    ScoreQuality,
    ThresholdChoice,
    estimate_stratified,
    score_quality,
)
from sgpipe.stats.recall import RecallMeasures, measure_recall
from sgpipe.stats.thresholds import ONE_SIDE, candidates, choose
from sgpipe.storage.index import Database, open_run
from sgpipe.storage.judgement_lines import SamplingPlan
from sgpipe.storage.judgements import JudgementLog

NO_PLAN = (
    "no plan that samples the whole run has judgements, and other judgements are not a random"
    " sample: make one on the page Judge of `sgpipe view`"
)
_NOTHING = SamplingPlan(
    plan="none", at="", by="nobody", run="", seed=0, kind="bands", strata=[], questions=[]
)


@dataclass(frozen=True)
class JudgementMeasures:
    """What people's judgements of a sample say.

    All but the plain counts are weighted by the relations of the strata.

    Attributes:
        plan: whose precision is that of the run, without what is `open`; None: no plan has
            judgements.
        unsure: questions without a verdict, which count as wrong. if_unsure_right: the precision if
            they were right.
        relations, relations_now: the run's when the plan was made, and now.
        strata: "bands" (of confidence) or "predicates"; `bands`: the strata. predicates: the most
            judged first.
        suggested: the lowest threshold that shows the precision `target`.
        problems: lines that are left out, and why. vlm_score: not weighted.
        recall: by the recall plan with the most answers.
    """

    plan: str | None
    unsure: int
    open: int
    precision: PrecisionEstimate
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
    database: Database,
    file: Path,
    target: float,
    thresholds: Sequence[float],
    calibration: Calibration | None = None,
) -> JudgementMeasures:
    """Estimate the precision of an open run from people's judgements.

    Args:
        database: of the run.
        file: of judgements.
        target: the precision for which a threshold is suggested.
        thresholds: of the curve.
        calibration: whose probabilities the database has as certainties.

    Raises:
        UserError: the file has no line about this run, or the target is out of range.
    """
    check_share("precision", target)
    log, plan = _read_log(database, file)
    sample = _Sample(database, plan or _NOTHING, log, calibration)
    judged = sample.tally(sample.judged)
    right = sample.tally(sample.right)
    unsure = sample.tally(np.array(sample.answers, object) == "unsure")
    [precision, if_right] = estimate_stratified(
        [sample.sizes] * 2, [judged] * 2, [right, right + unsure]
    )
    recalls = [measure_recall(recall, log, database.rows) for recall in log.recall_plans.values()]
    return JudgementMeasures(
        plan=plan.plan if plan else None,
        unsure=sample.unsure,
        open=sample.open,
        precision=precision,
        if_unsure_right=if_right.value,
        relations=round(sample.sizes.sum()),
        relations_now=int(sample.counts.sum()),
        strata=sample.plan.kind,
        bands=sample.strata,
        predicates=sample.predicates(),
        curve=sample.choices(thresholds),
        target=target,
        suggested=sample.suggest(target),
        problems=log.problems,
        vlm_score=sample.vlm_score() if plan and database.has_vlm_scores else None,
        recall=max(recalls, key=lambda recall: recall.answered, default=None),
    )


def judge_by_people(run: Location, file: Path) -> JudgedRelations:
    """Return relations with confidences and weights, judged by a plan of the whole run.

    Raises:
        UserError: no plan of the whole run has judgements.
    """
    with open_run(run) as database:
        log, plan = _read_log(database, file)
        if plan is None:
            raise UserError(f"{file}: {NO_PLAN}")
        return _Sample(database, plan, log).scored()


def _read_log(database: Database, file: Path) -> tuple[JudgementLog, SamplingPlan | None]:
    """Return a file of judgements, and the plan of the whole run with the most judgements.

    The plan is None if none has any.

    Raises:
        UserError: no line of the file is about this run.
    """
    log = JudgementLog(file, database.fingerprint)
    is_empty = not log.plans and not log.recall_plans and next(log.current(), None) is None
    if log.problems and is_empty:
        raise UserError(log.problems[0])
    best = None
    most_judged = 0
    for plan in log.plans.values():
        if plan.kind in ("bands", "predicates"):
            judged = int(PlanProgress(plan, log).judged.sum())
            if judged > most_judged:
                best = plan
                most_judged = judged
    return log, best


class _Sample(PlanProgress):
    """The answers to a plan of a whole run, and the relations of the run that they stand for.

    `sizes` and `counts`, the run's relations now, have one more entry, of those in no stratum.
    `relations`: the judged ones, without weights; those without a confidence have 1.
    """

    def __init__(
        self,
        database: Database,
        plan: SamplingPlan,
        log: JudgementLog,
        calibration: Calibration | None = None,
    ) -> None:
        super().__init__(plan, log)
        self._database = database
        self._sql = stratum_sql(plan.strata, plan.kind)
        self.counts = np.zeros(len(plan.strata) + 1, np.int64)
        for stratum, number in database.rows(
            f"select {self._sql} as stratum, count(*) from relations group by 1"
        ):
            self.counts[stratum] = number
        self.sizes = np.append(self.sizes, self.counts[-1])
        self._scale = self.sizes / np.maximum(self.counts, 1)
        confidence = np.array([question.confidence for question in plan.questions], np.float32)
        self._scored = ~np.isnan(confidence)
        if calibration is not None:
            confidence = calibration.probabilities(confidence).astype(np.float32)
        self._confidence = np.where(self._scored, confidence, np.float32(1))
        self.relations = JudgedRelations(self._confidence[self.judged], self.right[self.judged])

    def scored(self) -> JudgedRelations:
        chosen = self.judged & self._scored
        images = np.array([question.image_id for question in self.plan.questions], object)[chosen]
        weight = (self.sizes / np.maximum(self.tally(chosen), 1))[self.stratum[chosen]]
        confidence = self._confidence[chosen].astype(np.float64)
        return JudgedRelations(confidence, self.right[chosen], images, weight)

    def vlm_score(self) -> ScoreQuality:
        """By the mean of repeated scores."""
        rows = self._database.rows(
            """select split::varchar, image_id, subject, object, predicate::varchar, avg(vlm_score)::double
            from relations join images using (image) where image_id in (select unnest(?::varchar[])) group by all""",
            [list({question.image_id for question in self.plan.questions})],
        )
        scores = {tuple(key): vlm_score for *key, vlm_score in rows}
        vlm_scores = np.array(
            [scores.get(tuple(question.key)) for question in self.plan.questions], np.float64
        )
        known = self.judged & ~np.isnan(vlm_scores)
        scored = JudgedRelations(vlm_scores[known].astype(np.float32), self.right[known])
        return score_quality(scored, self.relations)

    def predicates(self) -> dict[str, PrecisionEstimate]:
        predicates = np.array([question.predicate for question in self.plan.questions], object)
        names = [name for name, _ in Counter(predicates[self.judged].tolist()).most_common()]
        if not names:
            return {}
        counts = np.zeros((len(names), len(self.sizes)))
        query = f"""select predicate::varchar as name, {self._sql} as stratum, count(*) from relations
            where name in (select unnest(?::varchar[])) group by all"""
        for name, stratum, number in self._database.rows(query, [names]):
            counts[names.index(name), stratum] = number
        estimates = self._estimate(counts, [predicates == name for name in names])
        return dict(zip(names, estimates, strict=True))

    def choices(self, thresholds: Sequence[float]) -> list[ThresholdChoice]:
        """Return what each threshold keeps; relations without a confidence pass every one."""
        relations = self._above(thresholds)
        precisions = self._estimate(relations, self._passing(thresholds))
        choices = []
        numbers = relations.sum(1).tolist()
        for threshold, precision, number in zip(thresholds, precisions, numbers, strict=True):
            choices.append(ThresholdChoice(threshold, precision.judged, precision, number))
        return choices

    def suggest(self, target: float) -> ThresholdChoice | None:
        """Return the lowest threshold that shows a precision of `target`, if one does."""
        thresholds = candidates(self.relations.confidence)
        if not thresholds:
            return None
        sizes = self._above(thresholds) * self._scale
        passing = self._passing(thresholds)
        judged = self._tallies(self.judged, passing)
        right = self._tallies(self.right, passing)
        estimates = estimate_stratified(sizes, judged, right, ONE_SIDE)
        if_all_right = estimate_stratified(sizes, judged, judged, ONE_SIDE)
        return choose(self.choices(thresholds), estimates, if_all_right, target)

    def _above(self, thresholds: Sequence[float]) -> NDArray[np.int64]:
        """The relations of the run that each threshold keeps, `[thresholds, strata]`."""
        cuts, position = np.unique(np.array(thresholds, np.float32), return_inverse=True)
        # of the run's relations between two thresholds
        counts = np.zeros((len(cuts), len(self.sizes)), np.int64)
        query = f"""select cut, stratum, count(*)
            from (select certainty, {self._sql} as stratum from relations) placed
            asof join (select unnest(?::float[]) as cut) on certainty >= cut group by all"""
        for cut, stratum, number in self._database.rows(query, [cuts.tolist()]):
            counts[np.searchsorted(cuts, np.float32(cut)), stratum] = number
        above: NDArray[np.int64] = np.cumsum(counts[::-1], axis=0)[::-1][position]
        return above

    def _passing(self, thresholds: Sequence[float]) -> list[NDArray[np.bool_]]:
        """The questions whose relations each threshold keeps."""
        return [self._confidence >= np.float32(threshold) for threshold in thresholds]

    def _tallies(
        self, chosen: NDArray[np.bool_], sets: Sequence[NDArray[np.bool_]]
    ) -> NDArray[np.int64]:
        return np.array([self.tally(chosen & questions) for questions in sets])

    def _estimate(
        self, counts: NDArray[np.int64 | np.float64], sets: Sequence[NDArray[np.bool_]]
    ) -> list[PrecisionEstimate]:
        """Estimate precisions of sets of questions.

        Args:
            counts: relations of the run that each set stands for, `[sets, strata]`.
        """
        judged = self._tallies(self.judged, sets)
        return estimate_stratified(counts * self._scale, judged, self._tallies(self.right, sets))
