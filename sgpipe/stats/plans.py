"""Sampling plans: which relations people are asked about, and what their judgements say about all
of them.

A plan is a stratified random sample. Only judgements of its questions are used, since what people
judge in passing is not a random sample. Questions come in random order, so those that are judged
are a random sample, too. Each stands for as many relations as its stratum has per judgement. Of
several plans of a run, that with the most judgements counts.
"""

import hashlib
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sgpipe.calibration import Calibration
from sgpipe.errors import UserError, check_share
from sgpipe.files.locations import Location
from sgpipe.stats.precision import (
    JudgedRelations,
    PrecisionEstimate,
    ScoreQuality,
    ThresholdChoice,
    estimate_stratified,
    score_quality,
)
from sgpipe.stats.recall import RecallMeasures, Rows, measure_recall
from sgpipe.stats.thresholds import ONE_SIDE, candidates, choose
from sgpipe.storage.health_rules import quoted
from sgpipe.storage.index import Database, open_run
from sgpipe.storage.judgements import (
    MOST_QUESTIONS,
    JudgementLog,
    Kind,
    PlannedQuestion,
    PlanStratum,
    RelationKey,
    RelationState,
    SamplingPlan,
)
from sgpipe.utils.console import count as counted
from sgpipe.utils.console import single_line

Judged = Literal["right", "wrong", "unsure"]
VERDICTS: tuple[Judged, ...] = get_args(Judged)

MARGIN = 0.03  # half of the 95% interval that is aimed for
# Whoever gives this many answers within this many seconds has not looked at the images.
HASTY_ANSWERS = 10
HASTY_SECONDS = 5
_EDGES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of the bands of confidence
_OTHERS = "other predicates"
_PER_PREDICATE = 10
_MOST_PREDICATES = 50
_HASHES = 2**64
_IN_ORDER = ("certificate", "doubts")  # kinds of plans
_NEAR = 4  # questions of these that are asked in any order

# In each stratum the relations of the lowest hashes. `bound` leaves out most of the others before
# they are sorted.
_SAMPLE = """
    with hits as ({select}),
    placed as (
        select *, {stratum} as stratum,
            hash(?::varchar, split, image_id, subject, object, predicate) as chance
        from hits),
    quotas as (select unnest(?::int[]) as stratum, unnest(?::int[]) as quota, unnest(?::ubigint[]) as bound)
    select split, image_id, subject, object, predicate, subject_category, object_category, confidence, stratum
    from placed join quotas using (stratum) where chance <= bound
    qualify row_number() over (partition by stratum order by chance, split, image_id) <= quota
    order by hash(chance), split, image_id
"""

NO_PLAN = (
    "no plan that samples the whole run has judgements, and other judgements are not a random"
    " sample: make one on the page Judge of `sgpipe view`"
)

_NOTHING = SamplingPlan(
    plan="none", at="", by="nobody", run="", seed=0, kind="bands", strata=[], questions=[]
)


def draw(
    rows: Rows, select: str, values: Sequence[Any], kind: Kind, count: int, seed: int = 0
) -> tuple[list[PlanStratum], list[PlannedQuestion]]:
    """Draw a stratified sample of relations, in random order.

    Args:
        rows: runs SQL with its values, as `Index.rows`.
        select: SQL of the relations, as of `sgpipe.view.search.select_relations`.
        values: of its `?`.
        kind: strata are by confidence, or, for `predicates`, the most frequent predicates, and one
            of all others.
        count: of relations.
        seed: of the sample.

    Raises:
        UserError: there are no relations, or `count` is out of range.
    """
    if not 1 <= count <= MOST_QUESTIONS:
        raise UserError(f"{count} questions: expected 1 to {MOST_QUESTIONS:,}")
    # Those that can be shown: between boxes that there are.
    hits = (
        f"select * from ({select}) where subject_category is not null and object_category is not"
        " null"
    )
    if kind == "predicates":
        strata = _predicate_strata(rows, hits, values, count)
    else:
        strata = _band_strata(rows, hits, values)
    if not strata:
        raise UserError("there are no relations to ask about")
    sizes = [stratum.relations for stratum in strata]
    quotas = equal_shares(sizes, count)
    # A number that is below all but about twice as many hashes as are asked for.
    bounds = []
    for quota, size in zip(quotas, sizes, strict=True):
        bounds.append(min(int((2 * quota + 100) / size * _HASHES), _HASHES - 1))
    query = _SAMPLE.format(select=hits, stratum=stratum_sql(strata, kind))
    drawn = rows(query, [*values, seed, list(range(len(strata))), quotas, bounds])
    questions = list(map(PlannedQuestion._make, drawn))
    sampled = Counter(question.stratum for question in questions)
    for number, stratum in enumerate(strata):
        strata[number] = stratum.model_copy(update={"sampled": sampled[number]})
    return strata, questions


def _predicate_strata(
    rows: Rows, hits: str, values: Sequence[Any], count: int
) -> list[PlanStratum]:
    """Return a stratum of each of the most frequent predicates, and one of all others."""
    query = f"select predicate, count(*) from ({hits}) group by 1 order by 2 desc, 1"
    predicates = rows(query, values)
    named = min(max(count // _PER_PREDICATE - 1, 1), _MOST_PREDICATES)
    strata = []
    for predicate, relations in predicates[:named]:
        stratum = PlanStratum(name=predicate, relations=relations, sampled=0, predicate=predicate)
        strata.append(stratum)
    rest = sum(relations for _, relations in predicates[named:])
    if rest:
        strata.append(PlanStratum(name=_OTHERS, relations=rest, sampled=0))
    return strata


def _band_strata(rows: Rows, hits: str, values: Sequence[Any]) -> list[PlanStratum]:
    """Return the bands of confidence that have relations."""
    bands = [PlanStratum(name="none", relations=0, sampled=0)]
    for start, stop in pairwise(_EDGES):
        name = f"{start:.2f} to {stop:.2f}"
        bands.append(PlanStratum(name=name, relations=0, sampled=0, start=start, stop=stop))
    query = f"select {stratum_sql(bands, 'bands')}, count(*) from ({hits}) group by 1"
    strata = []
    for number, relations in sorted(rows(query, values)):
        if number < len(bands):  # or it is in no band
            strata.append(bands[number].model_copy(update={"relations": relations}))
    return strata


def stratum_sql(strata: Sequence[PlanStratum], kind: str) -> str:
    """Return SQL for the number of the stratum that a row of `relations` is in.

    A row in no stratum has the number after the last.
    """

    def condition(stratum: PlanStratum) -> str:
        if kind == "predicates":
            if stratum.predicate is None:
                return "true"
            return f"predicate::varchar = {quoted(stratum.predicate)}"
        if stratum.start is None or stratum.stop is None:
            return "confidence is null"
        below = f" and confidence < {stratum.stop}::float" if stratum.stop < 1 else ""
        return f"confidence >= {stratum.start}::float{below}"

    whens = " ".join(f"when {condition(stratum)} then {at}" for at, stratum in enumerate(strata))
    return f"(case {whens} else {len(strata)} end)" if strata else "0"


def equal_shares(sizes: Sequence[int], count: int) -> list[int]:
    """Divide a sample of `count` among strata of these sizes.

    Each gives the same number of relations or, if it has fewer, all of them.
    """
    left = count
    shares = [0] * len(sizes)
    for done, stratum in enumerate(np.argsort(sizes, kind="stable").tolist()):
        shares[stratum] = min(sizes[stratum], left // (len(sizes) - done))
        left -= shares[stratum]
    return shares


@dataclass(frozen=True)
class StratumPrecision:
    """A stratum of a sample, such as a band of confidence."""

    name: str
    relations: int
    sampled: int
    precision: PrecisionEstimate


class PlanProgress:
    """What people say now about the questions of a plan.

    What is judged and not right is wrong.

    Attributes:
        answers: the verdict of each question, "unsure" without one, None: open; a change says that
            a relation is wrong.
        unsure, open, conflicts: numbers of questions; conflicts are unsure ones about which people
            differ.
        right, judged, stratum: of each question, `[questions]`; judged: it is not open.
        sizes: relations of the strata, `[strata]`.
    """

    def __init__(self, plan: SamplingPlan, log: JudgementLog) -> None:
        self.plan = plan
        states = states_of(plan, log)
        verdicts: dict[RelationKey, Judged] = {
            key: state.verdict or "unsure" for key, state in states.items()
        }
        self.answers = [verdicts.get(question.key) for question in plan.questions]
        self.unsure = self.answers.count("unsure")
        self.open = self.answers.count(None)
        self.conflicts = 0
        for question, answer in zip(plan.questions, self.answers, strict=True):
            if answer == "unsure":
                self.conflicts += states[question.key].is_conflict
        answers = np.array(self.answers, object)
        self.right = answers == "right"
        self.judged = answers != np.array(None)
        self.sizes = np.array([stratum.relations for stratum in plan.strata], np.float64)
        self.stratum = np.array([question.stratum for question in plan.questions], np.int64)

    def tally(self, chosen: NDArray[np.bool_]) -> NDArray[np.int64]:
        return np.bincount(self.stratum[chosen], minlength=len(self.sizes))

    @cached_property
    def precisions(self) -> list[PrecisionEstimate]:
        number = len(self.plan.strata)
        # the whole plan, and each stratum by itself
        sets = np.concatenate([np.ones((1, number)), np.eye(number)])
        sizes = sets * self.sizes[:number]
        judged = sets * self.tally(self.judged)[:number]
        right = sets * self.tally(self.right)[:number]
        return estimate_stratified(sizes, judged, right)

    @property
    def precision(self) -> PrecisionEstimate:
        return self.precisions[0]

    @property
    def strata(self) -> list[StratumPrecision]:
        return [
            StratumPrecision(stratum.name, stratum.relations, stratum.sampled, precision)
            for stratum, precision in zip(self.plan.strata, self.precisions[1:], strict=True)
        ]

    def needed(self) -> int | None:
        """Estimate how many more judgements it takes until the 95% interval is ± `MARGIN`.

        Assumes that precisions of strata stay as they are. They may be more than are open; None:
        more than any plan can have.
        """
        sizes = self.sizes
        judged = self.tally(self.judged)
        correct = self.tally(self.right)
        done = int(judged.sum())
        total = min(int(sizes.sum()), MOST_QUESTIONS)
        share = (correct + (correct.sum() + 1) / (done + 2)) / (judged + 1)

        def planned(number: int) -> NDArray[np.int64]:
            return np.minimum(
                np.maximum(equal_shares(sizes.astype(int).tolist(), number), judged),
                sizes.astype(int),
            )

        def is_enough(number: int) -> bool:
            questions = planned(number)
            expected = np.rint(share * questions).astype(int)
            right = np.clip(expected, correct, questions - judged + correct)
            [estimate] = estimate_stratified(sizes[None], questions[None], right[None])
            return estimate.value is not None and estimate.high - estimate.low <= 2 * MARGIN

        if is_enough(0):  # by what is judged
            return 0
        number = bisect_left(range(total + 1), True, min(done, total), key=is_enough)
        if number > total:
            return None
        return int(planned(number).sum()) - done

    def as_json(self) -> dict[str, object]:
        return {
            "precision": asdict(self.precision),
            "strata": [asdict(stratum) for stratum in self.strata],
            "unsure": self.unsure,
            "conflicts": self.conflicts,
            "open": self.open,
            "more": self.needed(),
            "margin": MARGIN,
        }


def states_of(plan: SamplingPlan, log: JudgementLog) -> dict[RelationKey, RelationState]:
    """Return what people say about the relations that were judged when the plan asked.

    Those of a certificate count whenever they were judged, as which relations it draws is
    independent of the judgements before.
    """
    asked = None if plan.certificate else log.judged(plan.plan)
    states: dict[RelationKey, RelationState] = {}
    for image in dict.fromkeys((question.split, question.image_id) for question in plan.questions):
        for state in log.state(*image):
            if asked is None or state.key in asked:
                states[state.key] = state
    return states


def next_question(
    plan: SamplingPlan, log: JudgementLog, by: str, done: Collection[str | None] = ()
) -> PlannedQuestion | None:
    """Return a question that nobody has judged; None if none is left.

    Each person gets them in another random order; those of a certificate nearly in the order of the
    plan, as an open one counts as wrong, and so do those of doubts, the greatest first. What this
    person skipped comes last.

    Args:
        plan: whose questions are asked.
        log: the judgements so far.
        by: whom to ask.
        done: predicates of strata to leave out.
    """
    judged = states_of(plan, log)
    skipped = log.skipped(plan.plan, by)

    def order(numbered: tuple[int, PlannedQuestion]) -> tuple[int, int, str]:
        number, question = numbered
        text = "\0".join(map(str, (by, *question.key)))
        block = number // _NEAR if plan.kind in _IN_ORDER else 0
        return skipped.get(question.key, -1), block, hashlib.sha256(text.encode()).hexdigest()

    left = [
        (number, question)
        for number, question in enumerate(plan.questions)
        if question.key not in judged and plan.strata[question.stratum].predicate not in done
    ]
    return min(left, key=order)[1] if left else None


def describe_alpha(states: Iterable[RelationState]) -> str:
    """Say how far people agree on whether relations are right.

    Krippendorff's alpha is 1 if they always agree, 0 if as by chance; it needs answers that are not
    all the same.

    Returns:
        A sentence; empty if no two people are sure of the same relation.
    """
    relations = 0
    answers = Counter[bool]()
    differing = 0.0
    for state in states:
        people = len(state.outcomes)
        if people > 1:
            right = sum(state.key in outcome for outcome in state.outcomes)
            relations += 1
            answers.update({True: right, False: people - right})
            differing += 2 * right * (people - right) / (people - 1)
    if not relations:
        return ""
    expected = 2 * answers[True] * answers[False] / max(answers.total() - 1, 1)
    alpha = f"; Krippendorff's alpha is {1 - differing / expected:.2f}" if expected else ""
    return f"Two or more people judged {counted(relations, 'relation')}{alpha}."


def describe_haste(states: Iterable[RelationState]) -> str:
    """Say who answered faster than a person can look at images; empty if nobody did.

    Only the latest answer of a person to a relation counts.
    """
    times: dict[str, list[datetime]] = defaultdict(list)
    for state in states:
        for judgement in state.judgements:
            with suppress(ValueError):  # files that people edit have other times
                times[judgement.by].append(datetime.fromisoformat(judgement.at))
    remarks = []
    for person, answered in times.items():
        answers = _most_within(
            sorted(time.replace(tzinfo=None) for time in answered), HASTY_SECONDS
        )
        if answers >= HASTY_ANSWERS:
            remarks.append(
                f"{single_line(person)} gave {counted(answers, 'answer')} within {HASTY_SECONDS}"
                " seconds: a look at each image takes longer, so judge some of these again."
            )
    return " ".join(remarks)


def _most_within(times: Sequence[datetime], seconds: int) -> int:
    """Return how many of the times, ascending, lie within a span of some seconds at most."""
    most_answers = 0
    first = 0
    for last, time in enumerate(times):
        while (time - times[first]).total_seconds() > seconds:
            first += 1
        most_answers = max(most_answers, last - first + 1)
    return most_answers


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

        `counts`: relations of the run that each set stands for, `[sets, strata]`.
        """
        judged = self._tallies(self.judged, sets)
        return estimate_stratified(counts * self._scale, judged, self._tallies(self.right, sets))
