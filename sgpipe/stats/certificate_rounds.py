"""The rounds of questions of a certificate: how they are drawn, checked, and continued.

A round is a plan in the file of judgements. It follows from the run and the answers before, so that
it can be drawn again.
"""

import hashlib
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.stats import certificates
from sgpipe.stats.certificate_progress import GroupProgress, measure, round_of, rounds_of
from sgpipe.stats.certificates import Group, Round, plan_round
from sgpipe.stats.population import CHANGED, Population, population_of, tuples
from sgpipe.storage.index import Index
from sgpipe.storage.judgement_lines import (
    CertificateRound,
    CertificateSettings,
    CertifiedGroup,
    PlannedQuestion,
    PlanStratum,
    SamplingPlan,
    utc_now,
)
from sgpipe.storage.judgements import JudgementLog

# questions of a round; of the first one if it only explores
FIRST = 40
QUESTIONS = 25
_AT_ONCE = 8  # predicates in a round


@dataclass(frozen=True)
class _Part:
    """What a round asks about a group.

    Attributes:
        group: that is asked about.
        cells: of the group, by number, that relations are drawn from.
        strata: the same cells, as the plan lists them.
        questions: how many relations are drawn.
    """

    group: Group
    cells: NDArray[np.int64]
    strata: Sequence[PlanStratum]
    questions: int


def extend(
    index: Index, settings: CertificateSettings, log: JudgementLog, by: str
) -> SamplingPlan | None:
    """Append the next round of questions if none is open.

    Returns:
        The new round, or the present one; None: nothing is left to ask.

    Raises:
        UserError: the run has changed since, or the rounds are not those that are drawn from it.
    """
    plans = rounds_of(log, settings)
    progress = measure(plans, log)
    if any(group.open for group in progress.values()):
        return plans[-1]
    population = population_of(index, settings)
    taken = check_rounds(population, settings, plans)
    parts, groups = _plan_parts(population, settings, progress, taken)
    if not parts:
        return None
    number = len(plans)
    strata, questions = _draw(population, parts, settings, number, taken)
    plan = SamplingPlan(
        plan=f"{settings.id}-{number}",
        at=utc_now(),
        by=by,
        run=population.run,
        seed=0,
        kind="certificate",
        certificate=CertificateRound(settings=settings, number=number, groups=groups),
        strata=strata,
        questions=questions,
    )
    return cast(SamplingPlan, log.append(plan))


def _plan_parts(
    population: Population,
    settings: CertificateSettings,
    progress: Mapping[str | None, GroupProgress],
    taken: NDArray[np.bool_],
) -> tuple[list[_Part], list[CertifiedGroup]]:
    """Plan what the next round asks about each group, and what the plan says of the groups.

    Args:
        taken: the rows that were asked about before, `[relations]`.
    """

    def urgency(group: Group) -> tuple[bool, int]:
        state = progress.get(group.predicate)
        is_hopeless = state is not None and state.more is None and state.standing.started > 0
        return is_hopeless, -len(group.rows)

    confidences = _confidences_of(population, settings, progress)
    parts: list[_Part] = []
    groups: list[CertifiedGroup] = []
    for group in sorted(population.groups, key=urgency):
        if len(parts) == _AT_ONCE:
            break
        rounds = progress[group.predicate].rounds if group.predicate in progress else []
        left = _count_left(group, taken).astype(np.float64)
        planned = plan_round(rounds, group, left, settings.precision, confidences[group.predicate])
        if planned is None:
            continue
        round_, cells, odds = planned
        questions = QUESTIONS if rounds or len(group.sizes) == 1 else FIRST
        if settings.by is not None:
            questions //= 2
        parts.append(_Part(group, cells, _strata_of(group, cells, round_), questions))
        groups.append(
            CertifiedGroup(
                predicate=group.predicate,
                thresholds=group.thresholds,
                relations=group.sizes,
                odds=odds.tolist(),
                start=round_.start,
                capital=round_.capital,
            )
        )
    return parts, groups


def _count_left(group: Group, taken: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return how many relations of each cell of a group were not asked about, `[cells]`."""
    return np.bincount(group.cells[~taken[group.rows]], minlength=len(group.level))


def _strata_of(group: Group, cells: NDArray[np.int64], round_: Round) -> list[PlanStratum]:
    strata = []
    columns = (cells.tolist(), round_.left.tolist(), round_.weight.tolist())
    for cell, relations, weight in zip(*columns, strict=True):
        stratum = PlanStratum(
            name=group.predicate or "all",
            relations=int(relations),
            sampled=0,
            start=group.thresholds[group.level[cell]],
            predicate=group.predicate,
            level=int(group.level[cell]),
            scores=group.scores[cell].tolist(),
            weight=weight,
        )
        strata.append(stratum)
    return strata


def _confidences_of(
    population: Population,
    settings: CertificateSettings,
    progress: Mapping[str | None, GroupProgress],
) -> dict[str | None, float]:
    """Return the confidence that each group needs, also of those without questions so far."""
    names = [group.predicate for group in population.groups]
    if settings.family is None:
        return dict.fromkeys(names, settings.confidence)
    sizes = np.array([group.sizes[-1] for group in population.groups])
    is_complete = np.array(
        [name in progress and progress[name].standing.is_complete for name in names]
    )
    needed = certificates.family_confidence(
        settings.confidence, sizes, is_complete, settings.family
    )
    return dict(zip(names, needed.tolist(), strict=True))


def check_rounds(
    population: Population, settings: CertificateSettings, plans: Sequence[SamplingPlan]
) -> NDArray[np.bool_]:
    """Draw the rounds of a certificate again.

    Returns:
        Which rows of the population they ask about, `[relations]`.

    Raises:
        UserError: the run has changed since, or the rounds are not those that are drawn from it.
    """
    groups = {group.predicate: group for group in population.groups}
    if settings.family not in (None, population.family):
        raise UserError(f"{population.root} {CHANGED}")
    taken = np.zeros(len(population.table), bool)
    spent: defaultdict[str | None, float] = defaultdict(float)
    for number, (plan, rows) in enumerate(zip(plans, population.rows_of(plans), strict=True)):
        parts = []
        is_valid = round_of(plan).number == number
        for certified in round_of(plan).groups:
            group = groups.get(certified.predicate)
            if group is None or not _has_sets(group, certified):
                raise UserError(f"{population.root} {CHANGED}")
            if certified.start is not None:
                spent[certified.predicate] += certified.capital
            left = _count_left(group, taken)
            part = _part_of(plan, group, left)
            parts.append(part)
            is_valid &= _lists_cells(part, left)
            is_valid &= spent[certified.predicate] <= 1 + certificates.TINY
        drawn = _draw(population, parts, settings, number, taken) if is_valid else None
        if drawn != (plan.strata, plan.questions):
            raise UserError(
                f"{plan.plan}: its questions are not those that are drawn from {population.root}"
            )
        taken[rows] = True
    return taken


def _has_sets(group: Group, certified: CertifiedGroup) -> bool:
    """Return whether a group of the run has the nested sets that a plan says."""
    return certified.thresholds == group.thresholds and certified.relations == group.sizes


def _part_of(plan: SamplingPlan, group: Group, left: NDArray[np.int64]) -> _Part:
    """Return what a plan asks about a group; `left`: relations of its cells, `[cells]`."""
    strata = [stratum for stratum in plan.strata if stratum.predicate == group.predicate]
    last = max(stratum.level or 0 for stratum in strata)
    cells = np.flatnonzero((group.level <= last) & (left > 0))
    return _Part(group, cells, strata, sum(stratum.sampled for stratum in strata))


def _lists_cells(part: _Part, left: NDArray[np.int64]) -> bool:
    """Return whether the strata of a plan are the cells that they are drawn from."""
    strata = [(stratum.level, stratum.scores, stratum.relations) for stratum in part.strata]
    level = part.group.level[part.cells].tolist()
    scores = part.group.scores[part.cells].tolist()
    return strata == list(zip(level, scores, left[part.cells].tolist(), strict=True))


def _draw(
    population: Population,
    parts: Sequence[_Part],
    settings: CertificateSettings,
    number: int,
    taken: NDArray[np.bool_],
) -> tuple[list[PlanStratum], list[PlannedQuestion]]:
    """Draw relations without replacement, each with a chance in proportion to its weight.

    The questions of all parts come in random order.

    Args:
        population: to draw from.
        parts: what the round asks about each group.
        settings: of the certificate.
        number: of the round.
        taken: the rows that were asked about before, `[relations]`.
    """
    seed = f"{population.run}\0{settings.id}\0{number}"
    strata: list[PlanStratum] = []
    queues: list[list[PlannedQuestion]] = []
    for part in parts:
        rows = _draw_rows(part, taken, _generator(f"{seed}\0predicate {part.group.predicate}"))
        group = part.group
        cells = group.cells[rows]
        stratum = np.zeros(len(group.level), np.int64)
        stratum[part.cells] = np.arange(len(strata), len(strata) + len(part.cells))
        queue = []
        relations = tuples(population.table.take(group.rows[rows]))
        for relation, stratum_number in zip(relations, stratum[cells].tolist(), strict=True):
            *key, certainty, _ = relation
            confidence = certainty if math.isfinite(certainty) else None
            queue.append(PlannedQuestion._make((*key, confidence, stratum_number)))
        queues.append(queue)
        sampled = np.bincount(cells, minlength=len(group.level))[part.cells].tolist()
        for cell, number_sampled in zip(part.strata, sampled, strict=True):
            strata.append(cell.model_copy(update={"sampled": number_sampled}))
    lengths = list(map(len, queues))
    turns = _generator(f"{seed}\0order").permutation(np.repeat(np.arange(len(queues)), lengths))
    rest = list(map(iter, queues))
    return strata, [next(rest[turn]) for turn in turns.tolist()]


def _generator(seed: str) -> np.random.Generator:
    digest = hashlib.sha256(seed.encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:16], "big"))


def _draw_rows(
    part: _Part, taken: NDArray[np.bool_], generator: np.random.Generator
) -> NDArray[np.int64]:
    """Return which relations of a group are drawn, by their place in it, in random order.

    They are those of the earliest arrivals of exponential clocks (Efraimidis and Spirakis 2006).
    """
    group = part.group
    cell_weight = np.zeros(len(group.level))
    cell_weight[part.cells] = [stratum.weight for stratum in part.strata]
    weight = np.where(taken[group.rows], 0, cell_weight[group.cells])
    clocks = generator.exponential(size=len(group.rows))
    arrival = np.divide(clocks, weight, out=np.full(len(weight), np.inf), where=weight > 0)
    number = min(part.questions, int((weight > 0).sum()))
    first = np.argpartition(arrival, number - 1)[:number]
    return first[np.argsort(arrival[first], kind="stable")]
