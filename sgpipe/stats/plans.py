"""Sampling plans: which relations people are asked about, and what their judgements say about all of them.

A plan is a stratified random sample. Only judgements of its questions are used, since what people judge in passing is
not a random sample. Questions come in random order, so those that are judged are a random sample, too.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.stats.precision import PrecisionEstimate, estimate_stratified
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

Judged = Literal["right", "wrong", "unsure"]

MARGIN = 0.03  # half of the 95% interval that is aimed for
_EDGES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)  # of the bands of confidence
_OTHERS = "other predicates"
_PER_PREDICATE, _MOST_PREDICATES = 10, 50
_HASHES = 2**64
_NEAR = 4  # questions of a certificate that are asked in any order

# In each stratum the relations of the lowest hashes. `bound` leaves out most of the others before they are sorted.
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
    rows: Callable[[str, Sequence[Any]], list[tuple[Any, ...]]],
    select: str,
    values: Sequence[Any],
    kind: Kind,
    count: int,
    seed: int = 0,
) -> tuple[list[PlanStratum], list[PlannedQuestion]]:
    """Draw a stratified sample of `count` relations, in random order.

    Strata are by confidence, or, for `predicates`, the most frequent predicates, and one of all others. `rows` runs SQL
    with its values, as `Index.rows`. `select`: SQL of the relations, as of `sgpipe.view.search.select_relations`.

    Raises UserError: there are no relations, or `count` is out of range.
    """
    if not 1 <= count <= MOST_QUESTIONS:
        raise UserError(f"{count} questions: expected 1 to {MOST_QUESTIONS:,}")
    # Those that can be shown: between boxes that there are.
    hits = f"select * from ({select}) where subject_category is not null and object_category is not null"
    if kind == "predicates":
        found = rows(f"select predicate, count(*) from ({hits}) group by 1 order by 2 desc, 1", values)
        kept = min(max(count // _PER_PREDICATE - 1, 1), _MOST_PREDICATES)
        strata = [PlanStratum(name=name, relations=n, sampled=0, predicate=name) for name, n in found[:kept]]
        if others := sum(relations for _, relations in found[kept:]):
            strata.append(PlanStratum(name=_OTHERS, relations=others, sampled=0))
    else:
        strata = [PlanStratum(name="none", relations=0, sampled=0)]
        for start, stop in pairwise(_EDGES):
            name = f"{start:.2f} to {stop:.2f}"
            strata.append(PlanStratum(name=name, relations=0, sampled=0, start=start, stop=stop))
        numbers = dict(rows(f"select {stratum_sql(strata, kind)}, count(*) from ({hits}) group by 1", values))
        strata = [s.model_copy(update={"relations": numbers[at]}) for at, s in enumerate(strata) if at in numbers]
    if not strata:
        raise UserError("there are no relations to ask about")
    sizes = dict(enumerate(stratum.relations for stratum in strata))
    shares = {number: share for number, share in equal_shares(sizes, count).items() if share}
    # A number that is below all but about twice as many hashes as are asked for.
    bounds = [min(int((2 * share + 100) / sizes[n] * _HASHES), _HASHES - 1) for n, share in shares.items()]
    query = _SAMPLE.format(select=hits, stratum=stratum_sql(strata, kind))
    drawn = rows(query, [*values, seed, list(shares), list(shares.values()), bounds])
    questions = [PlannedQuestion._make(row) for row in drawn]
    asked = np.bincount([question.stratum for question in questions], minlength=len(strata)).tolist()
    return [s.model_copy(update={"sampled": n}) for s, n in zip(strata, asked, strict=True)], questions


def stratum_sql(strata: Sequence[PlanStratum], kind: str) -> str:
    """SQL for the number of the stratum that a row of `relations` is in; the number after the last if in none."""

    def condition(stratum: PlanStratum) -> str:
        if kind == "predicates":
            quoted = (stratum.predicate or "").replace("'", "''")
            return "true" if stratum.predicate is None else f"predicate::varchar = '{quoted}'"
        if stratum.start is None or stratum.stop is None:
            return "confidence is null"
        below = f" and confidence < {stratum.stop}::float" if stratum.stop < 1 else ""
        return f"confidence >= {stratum.start}::float{below}"

    whens = " ".join(f"when {condition(stratum)} then {at}" for at, stratum in enumerate(strata))
    return f"(case {whens} else {len(strata)} end)" if strata else "0"


def equal_shares(sizes: Mapping[int, int], count: int) -> dict[int, int]:
    """Divide a sample of `count`: strata of these sizes give the same number of relations or, if fewer, all of them."""
    left, shares = count, {}
    for done, (stratum, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[stratum] = min(size, left // (len(sizes) - done))
        left -= shares[stratum]
    return shares


@dataclass(frozen=True)
class StratumPrecision:
    """A stratum of a sample, such as a band of confidence, and the precision of its judged relations."""

    name: str
    relations: int
    sampled: int
    precision: PrecisionEstimate


@dataclass(frozen=True)
class PlanProgress:
    """What the judgements that a plan asked for say so far.

    Questions that are judged "unsure", or on which as many people say one thing as another (`conflicts`), do not count
    in the `precision`.
    """

    precision: PrecisionEstimate
    strata: list[StratumPrecision]
    unsure: int
    conflicts: int
    open: int


def judgements_of(plan: SamplingPlan, log: JudgementLog) -> list[Judged | None]:
    """Return the judgement of each question of a plan: that of most people, "unsure" where they tie; None: open.

    A change of a relation says that it is wrong as it stands.
    """
    judged: dict[RelationKey, Judged] = {}
    for key, state in states_of(plan, log).items():
        left = state.resolve()
        judged[key] = "unsure" if left is None else "right" if key in left else "wrong"
    return [judged.get(question.key) for question in plan.questions]


def states_of(plan: SamplingPlan, log: JudgementLog) -> dict[RelationKey, RelationState]:
    """Return what people say about the relations that were judged when the plan asked; of a certificate's, whenever.

    Which relations a certificate draws is independent of the judgements before.
    """
    asked = None if plan.certificate else log.judged(plan.plan)
    images = dict.fromkeys((question.split, question.image_id) for question in plan.questions)
    states = (state for image in images for state in log.state(*image))
    return {state.key: state for state in states if asked is None or state.key in asked}


def count_states(states: Sequence[RelationState]) -> dict[str, int]:
    """Return how many relations are judged, and how; also how many of them were added."""
    counts = Counter[str](state.state for state in states)
    names = ("right", "wrong", "changed", "unsure", "conflict", "added")
    counts["added"] = sum(state.is_added for state in states)
    return {"relations": len(states), **{name: counts[name] for name in names}}


def measure_plan(plan: SamplingPlan, log: JudgementLog) -> PlanProgress:
    """Estimate the precision from the judgements so far."""
    given, states = judgements_of(plan, log), states_of(plan, log)
    sizes, judged, correct = _tally(plan, given)
    sets = np.concatenate([np.ones((1, len(sizes)), np.int64), np.eye(len(sizes), dtype=np.int64)])
    [whole, *parts] = estimate_stratified(sets * sizes, sets * judged, sets * correct)
    undecided = [q.key for q, each in zip(plan.questions, given, strict=True) if each == "unsure"]
    return PlanProgress(
        precision=whole,
        strata=[StratumPrecision(s.name, s.relations, s.sampled, p) for s, p in zip(plan.strata, parts, strict=True)],
        unsure=given.count("unsure"),
        conflicts=sum(states[key].is_conflict for key in undecided),
        open=given.count(None),
    )


def _tally(
    plan: SamplingPlan, given: Sequence[Judged | None]
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
    """Return the relations of each stratum, and how many were judged, and judged right; `[strata]` each."""
    numbers = np.array([question.stratum for question in plan.questions], int)
    judged, correct = (
        np.bincount(numbers[[each in kinds for each in given]], minlength=len(plan.strata))
        for kinds in (("right", "wrong"), ("right",))
    )
    return np.array([stratum.relations for stratum in plan.strata], np.float64), judged, correct


def judgements_needed(plan: SamplingPlan, log: JudgementLog) -> int | None:
    """Estimate how many more judgements it takes until the 95% interval of a plan is ± `MARGIN`; 0: it is.

    It assumes that each stratum stays as precise as its judgements say, and that the share of "unsure" ones stays the
    same. It may exceed the open questions of the plan. None: it exceeds those that any plan can have.
    """
    given = judgements_of(plan, log)
    sizes, judged, correct = _tally(plan, given)
    [whole] = estimate_stratified(sizes[None], judged[None], correct[None])
    if _is_narrow(whole):
        return 0
    done, total = int(judged.sum()), min(int(sizes.sum()), MOST_QUESTIONS)
    share = (correct + (correct.sum() + 1) / (done + 2)) / (judged + 1)

    def planned(number: int) -> NDArray[np.int64]:
        shares = equal_shares(dict(enumerate(sizes.astype(int).tolist())), number)
        return np.minimum(np.maximum([shares[at] for at in range(len(sizes))], judged), sizes.astype(int))

    def is_enough(number: int) -> bool:
        right = np.clip(np.rint(share * planned(number)).astype(int), correct, planned(number) - judged + correct)
        return _is_narrow(*estimate_stratified(sizes[None], planned(number)[None], right[None]))

    number = bisect_left(range(total + 1), True, min(done, total), key=is_enough)
    if number > total:
        return None
    needed = int(planned(number).sum()) - done
    return round(needed * (done + given.count("unsure")) / done) if done else needed


def _is_narrow(estimate: PrecisionEstimate) -> bool:
    return estimate.value is not None and estimate.high - estimate.low <= 2 * MARGIN


def next_question(plan: SamplingPlan, log: JudgementLog, by: str, done: Collection[Any] = ()) -> PlannedQuestion | None:
    """Return a question that nobody has judged; None if none is left. `done`: predicates of strata to leave out.

    Each person gets them in another random order; those of a certificate nearly in the order of the plan, as an open
    one counts as wrong. What this person skipped comes last.
    """
    asked, skipped = states_of(plan, log), log.skipped(plan.plan, by)
    questions = enumerate(plan.questions)
    left = [(at, q) for at, q in questions if q.key not in asked and plan.strata[q.stratum].predicate not in done]

    def order(pair: tuple[int, PlannedQuestion]) -> tuple[int, int, str]:
        text = "\0".join(map(str, (by, *pair[1].key)))
        block = pair[0] // _NEAR if plan.certificate else 0
        return skipped.get(pair[1].key, -1), block, hashlib.sha256(text.encode()).hexdigest()

    return min(left, key=order)[1] if left else None


def describe_alpha(states: Iterable[RelationState]) -> str:
    """Say how far people agree on whether relations are right; empty if no two people are sure of the same one.

    Krippendorff's alpha is 1 if they always agree, 0 if as by chance; it needs answers that are not all the same.
    """
    several = [[state.key in each for each in state.outcomes] for state in states if len(state.outcomes) > 1]
    said = Counter(answer for answers in several for answer in answers)
    differing = sum(2 * sum(each) * (len(each) - sum(each)) / (len(each) - 1) for each in several)
    expected = 2 * said[True] * said[False] / max(said.total() - 1, 1)
    alpha = f"; Krippendorff's alpha is {1 - differing / expected:.2f}" if expected else ""
    return f"Two or more people judged {counted(len(several), 'relation')}{alpha}." if several else ""
