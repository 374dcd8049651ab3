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
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.stats.precision import PrecisionEstimate, estimate_stratified
from sgpipe.stats.recall import Rows
from sgpipe.storage.health_rules import quoted
from sgpipe.storage.judgement_lines import (
    MOST_QUESTIONS,
    Kind,
    PlannedQuestion,
    PlanStratum,
    RelationKey,
    SamplingPlan,
)
from sgpipe.storage.judgements import JudgementLog, RelationState
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
