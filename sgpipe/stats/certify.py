"""`sgpipe certify`: rounds of questions about a run, and the certificate that their answers give.

A round is a plan in the file of judgements. The certificate contains nothing but what follows from
the run and the first bytes of that file, so that it can be computed again.
"""

import hashlib
import json
import math
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import ValidationError

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, read_text
from sgpipe.stats import certificates
from sgpipe.stats.certificates import Group, Round, Standing, plan_round
from sgpipe.stats.plans import Judged, PlanProgress, describe_haste, states_of
from sgpipe.storage.index import Index, open_run
from sgpipe.storage.judgements import (
    CERTIFICATE,
    CertificateRound,
    CertificateSettings,
    CertifiedGroup,
    JudgementLog,
    PlannedQuestion,
    PlanStratum,
    RelationState,
    SamplingPlan,
    describe_invalid,
    utc_now,
)
from sgpipe.utils.console import count, single_line

_METHOD = "betting, sampling without replacement, valid at any time"
# questions of a round; of the first one if it only explores
FIRST = 40
QUESTIONS = 25
# predicates in a round, and those that are certified at most: the most frequent ones
_AT_ONCE = 8
_GROUPS = 200
_CHANGED = (
    "has changed since people were asked about its relations: their answers no longer certify it"
)

_KEY = ("split", "image_id", "subject", "object", "predicate")
_POPULATION = """
    select hit.split::varchar as split, image_id, subject, object, predicate::varchar as predicate,
        subject_category::varchar as subject_category, object_category::varchar as object_category,
        max(if(annotated, 'infinity'::float, certainty)) as confidence, avg({prediction})::double as prediction
    from run.relations hit join (select image, image_id from run.images) using (image)
    where subject_category is not null and object_category is not null and certainty >= 0 and not isnan(certainty)
    group by all
"""


# A group, the cells of it that are drawn from, as numbers and as strata, and how many relations are
# asked about.
_Part = tuple[Group, NDArray[np.int64], Sequence[PlanStratum], int]


class Population:
    """The relations of a run that a certificate may be about, in an order of their own."""

    def __init__(self, index: Index, settings: CertificateSettings) -> None:
        """Raises UserError: there are none, or the prediction is missing."""
        column = settings.prediction
        if (column == "vlm_score" and not index.has_vlm_scores) or (
            column == "clip_score" and not index.scored
        ):
            raise UserError(f"{index.root} has no column {column}: `sgpipe score` makes one")
        values = {"confidence": "if(annotated, null, certainty)", "none": "null"}.get(
            column, column
        )
        query = _POPULATION.format(prediction=values)
        self.table: pa.Table = pa.table(index.connection.cursor().sql(query))
        self.table = self.table.sort_by([(name, "ascending") for name in _KEY])
        if settings.threshold is not None:
            least = pa.scalar(settings.threshold, pa.float32())
            self.table = self.table.filter(pc.greater_equal(self.table["confidence"], least))
        if not len(self.table):
            raise UserError(f"{index.root} has no relations to certify")
        self.root = index.root
        self.run = index.fingerprint
        self._settings = settings
        [(self.relations, self.errors, self.unlabelled)] = index.rows(
            """select (select count(*) from run.relations), count(*) filter (status <> 'ok'),
            count(*) filter (status = 'ok' and relations = 0) from run.images"""
        )

    @cached_property
    def groups(self) -> list[Group]:
        """All relations, or those of each of the most frequent predicates."""
        confidence, prediction = (
            self.table[name].to_numpy().astype(np.float64) for name in ("confidence", "prediction")
        )
        whole = self._settings.threshold is not None
        if self._settings.prediction == "confidence" and not whole:
            prediction = np.full(len(prediction), np.nan)  # the nested sets say as much
        if self._settings.by is None:
            return [Group.divide(None, np.arange(len(self.table)), confidence, prediction, whole)]
        names = self.table["predicate"].combine_chunks().dictionary_encode()
        codes = names.indices.to_numpy()
        parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        named = sorted(
            zip(names.dictionary.to_pylist(), parts, strict=True),
            key=lambda part: (-len(part[1]), part[0]),
        )
        return [
            Group.divide(n, rows, confidence[rows], prediction[rows], whole)
            for n, rows in named[:_GROUPS]
        ]

    @property
    def family(self) -> int:
        """The relations of all groups."""
        return sum(group.sizes[-1] for group in self.groups)

    @cached_property
    def digest(self) -> str:
        sets = [(group.predicate, group.sizes, group.thresholds) for group in self.groups]
        return hashlib.sha256(json.dumps(sets).encode()).hexdigest()[:12]

    def rows_of(self, plans: Sequence[SamplingPlan]) -> list[list[int]]:
        """Return the rows of the questions of plans. Raises UserError: the run has changed and
        lacks one.
        """
        keys = [[question.key for question in plan.questions] for plan in plans]
        images = pa.array({key.image_id for each in keys for key in each}, pa.string())
        near = np.flatnonzero(
            pc.is_in(self.table["image_id"], images).to_numpy(zero_copy_only=False)
        )
        found = dict(
            zip(map(tuple, _tuples(self.table.take(near).select(_KEY))), near.tolist(), strict=True)
        )
        try:
            return [[found[tuple(key)] for key in each] for each in keys]
        except KeyError:
            raise UserError(f"{self.root} {_CHANGED}") from None


def _tuples(table: pa.Table) -> list[tuple[Any, ...]]:
    return list(zip(*(column.to_pylist() for column in table.columns), strict=True))


@dataclass
class Answered:
    """The rounds of a group, its latest settings, and the answers to its questions."""

    latest: CertifiedGroup
    rounds: list[Round] = field(default_factory=list)
    answers: list[Judged | None] = field(default_factory=list)

    def evaluate(self, settings: CertificateSettings, confidence: float) -> Standing:
        return certificates.evaluate(
            self.rounds, self.latest.relations, settings.precision, confidence
        )


class GroupProgress:
    """How far a group is: its rounds, the latest settings, and what the answers show.

    `more`: the answers it takes if as many are wrong as so far; None: too many. `fewest`: if no
    other one is wrong. `confidence`: what its tests need, in a family more than the settings say.
    """

    def __init__(
        self, settings: CertificateSettings, answered: Answered, confidence: float
    ) -> None:
        self.settings = settings
        self.confidence = confidence
        self.latest, self.predicate = answered.latest, answered.latest.predicate
        self.rounds = answered.rounds
        self.given = answered.answers
        sizes = self.latest.relations
        allowed = 1 - settings.precision + certificates.TINY
        last = self.rounds[-1]
        self.standing = answered.evaluate(settings, confidence)
        tested = len(sizes) - 1 if self.standing.tested is None else self.standing.tested
        inside = last.level <= tested
        odds = certificates.fit_rounds(self.rounds, allowed)
        evidence = self.standing.evidence
        cells = (odds, last.scores[inside], last.left[inside], allowed, evidence)
        more = certificates.answers_needed(*cells)
        fewest = certificates.answers_needed(*cells, all_right=True)
        judged = sum(
            int((~each.is_open & (each.level[each.asked] <= tested)).sum()) for each in self.rounds
        )
        rest = sizes[tested] - judged
        self.more = None if more is None and rest else min(more or 0, rest)
        self.fewest = None if fewest is None and rest else min(fewest or 0, rest)
        self.wrong = self.given.count("wrong") + self.given.count("unsure")

    @property
    def is_finished(self) -> bool:
        """Whether the largest set is certified."""
        return self.standing.reached == len(self.latest.relations) - 1

    @property
    def open(self) -> int:
        """The open questions; none are asked of a finished group."""
        return 0 if self.is_finished else self.given.count(None)

    def as_json(self) -> dict[str, Any]:
        """As plain values for JSON; `share`: how much of the evidence is there; `at_least`: `more`
        is `fewest`.
        """
        standing = self.standing
        needed = -math.log(1 - self.confidence)
        share = (
            max(0.0, 1 + math.log(standing.evidence) / max(needed, certificates.TINY))
            if standing.evidence
            else 0.0
        )
        at_least = not self.wrong  # without a wrong answer, nothing tells how many there will be
        more = self.fewest if at_least else self.more
        certified = 0 if standing.reached is None else self.latest.relations[standing.reached]
        return {
            "predicate": self.predicate,
            "share": share,
            "more": more if standing.started else None,
            "at_least": at_least,
            "certified": certified,
            "open": self.open,
            "lines": list(self.describe()),
        }

    def describe(self) -> Iterator[str]:
        named = "all predicates" if self.predicate is None else single_line(self.predicate, 60)
        settings = self.settings
        standing = self.standing

        def those(number: int) -> str:
            size = self.latest.relations[number]
            of = count(self.latest.relations[-1], "relation")
            return f"{size:,} of {of} (confidence {self.latest.thresholds[number]:g} or more)"

        confidence = f"{settings.confidence:.4g} confidence{settings.scope}"
        promise = f"a precision of {settings.precision:g} or more ({confidence})"
        judged = len(self.given) - self.given.count(None)
        if standing.reached is not None:
            yield (
                f"certified, {named}: {those(standing.reached)} have {promise}, by"
                f" {count(judged, 'answer')}"
            )
        if standing.tested is not None:
            yield f"not yet, {named}: {those(standing.tested)}; {self._outlook(judged)}"
        elif standing.reached is None:
            yield (
                f"not yet, {named}: the first questions show where to start ({judged} of"
                f" {len(self.given)} answered)"
            )

    def _outlook(self, judged: int) -> str:
        """Say how many more answers it takes; before one is wrong, only how many at least."""
        so_far = f"{self.wrong:,} of {judged:,}"
        if self.more == 0:
            return f"it cannot be reached, as nothing is left to ask ({so_far} are wrong)"
        if not self.wrong and self.fewest is not None:
            return f"at least {count(self.fewest, 'more answer')}, if all are right"
        more = (
            "too many more answers"
            if self.more is None
            else f"about {count(self.more, 'more answer')}"
        )
        return f"{more}, if as many are wrong as so far ({so_far})"


def population_of(index: Index, settings: CertificateSettings) -> Population:
    """Return the population, and keep the latest."""
    return _keep_population(index, settings.model_copy(update={"population": None, "family": None}))


_keep_population = lru_cache(maxsize=1)(Population)


def rounds_of(log: JudgementLog, settings: CertificateSettings) -> list[SamplingPlan]:
    own = [
        plan
        for plan in log.plans.values()
        if plan.certificate and plan.certificate.settings == settings
    ]
    return sorted(own, key=lambda plan: _part(plan).number)


def _part(plan: SamplingPlan) -> CertificateRound:
    return cast(CertificateRound, plan.certificate)


def measure(plans: Sequence[SamplingPlan], log: JudgementLog) -> dict[str | None, GroupProgress]:
    """Return how far each group is about which questions were asked, by its predicate."""
    groups: dict[str | None, Answered] = {}
    for plan in plans:
        progress = PlanProgress(plan, log)
        for group in _part(plan).groups:
            answered = groups.setdefault(group.predicate, Answered(group))
            answered.latest = group
            _add_round(answered, plan, progress)
    if not groups:
        return {}
    settings = _part(plans[0]).settings
    confidences = _confidences(settings, list(groups.values()))
    return {
        name: GroupProgress(settings, answered, confidence)
        for (name, answered), confidence in zip(groups.items(), confidences, strict=True)
    }


def _add_round(answered: Answered, plan: SamplingPlan, progress: PlanProgress) -> None:
    group = answered.latest
    numbers = [
        number for number, stratum in enumerate(plan.strata) if stratum.predicate == group.predicate
    ]
    cells = [plan.strata[number] for number in numbers]
    questions = np.flatnonzero(np.isin(progress.stratum, numbers))
    answers = [progress.given[question] for question in questions.tolist()]
    round_ = Round(
        level=np.array([cell.level for cell in cells], np.int64),
        scores=np.array([cell.scores for cell in cells], np.float64),
        left=np.array([cell.relations for cell in cells], np.float64),
        weight=np.array([cell.weight for cell in cells], np.float64),
        slopes=np.array(group.odds[1:]),
        start=group.start,
        capital=group.capital,
        asked=np.searchsorted(numbers, progress.stratum[questions]),
        wrong=~progress.right[questions],
        is_open=np.array([answer is None for answer in answers], bool),
    )
    answered.rounds.append(round_)
    answered.answers += answers


def _confidences(settings: CertificateSettings, groups: Sequence[Answered]) -> list[float]:
    """Return the confidence that each group needs; in a family, groups that are complete make it
    less for others.
    """
    if settings.family is None:
        return [settings.confidence] * len(groups)
    sizes = np.array([answered.latest.relations[-1] for answered in groups])
    is_complete = np.zeros(len(groups), bool)
    while True:
        needed = certificates.family_confidence(
            settings.confidence, sizes, is_complete, settings.family
        ).tolist()
        standings = [
            answered.evaluate(settings, each) for answered, each in zip(groups, needed, strict=True)
        ]
        now_complete = np.array([standing.is_complete for standing in standings])
        if (now_complete == is_complete).all():
            return needed
        is_complete = now_complete


def _draw(
    population: Population,
    parts: Sequence[_Part],
    settings: CertificateSettings,
    number: int,
    taken: NDArray[np.bool_],
) -> tuple[list[PlanStratum], list[PlannedQuestion]]:
    """Draw relations without replacement, each with a chance in proportion to its weight, in random
    order.

    They are those of the earliest arrivals of exponential clocks (Efraimidis and Spirakis 2006).
    `taken`: the rows that were asked about before.
    """

    def seeded(name: str) -> np.random.Generator:
        text = f"{population.run}\0{settings.id}\0{number}\0{name}"
        return np.random.default_rng(
            int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big")
        )

    strata: list[PlanStratum] = []
    queues: list[list[PlannedQuestion]] = []
    for group, own, cells, number_asked in parts:
        weight = np.zeros(len(group.level))
        stratum = np.zeros(len(group.level), np.int64)
        weight[own], stratum[own] = (
            [cell.weight for cell in cells],
            np.arange(len(strata), len(strata) + len(own)),
        )
        each = np.where(taken[group.rows], 0, weight[group.cells])
        clocks = seeded(f"predicate {group.predicate}").exponential(size=len(group.rows))
        arrival = np.divide(clocks, each, out=np.full(len(each), np.inf), where=each > 0)
        most = min(number_asked, int((each > 0).sum()))
        first = np.argpartition(arrival, most - 1)[:most]
        first = first[np.argsort(arrival[first], kind="stable")]
        queues.append([])
        found = _tuples(population.table.take(group.rows[first]))
        for (*row, certainty, _), at in zip(
            found, stratum[group.cells[first]].tolist(), strict=True
        ):
            known = certainty if math.isfinite(certainty) else None
            queues[-1].append(PlannedQuestion._make((*row, known, at)))
        asked = np.bincount(group.cells[first], minlength=len(group.level))[own].tolist()
        strata += [
            cell.model_copy(update={"sampled": n}) for cell, n in zip(cells, asked, strict=True)
        ]
    turns = seeded("order").permutation(
        np.repeat(np.arange(len(queues)), [len(queue) for queue in queues])
    )
    rest = [iter(queue) for queue in queues]
    return strata, [next(rest[turn]) for turn in turns.tolist()]


def certify(
    population: Population, settings: CertificateSettings, log: JudgementLog
) -> dict[str, Any]:
    """Return the certificate so far; `sets` may be empty. Raises UserError: the rounds are not
    drawn from this run.
    """
    plans = rounds_of(log, settings)
    _check_rounds(population, settings, plans)
    sets: list[dict[str, Any]] = []
    for name, own in measure(plans, log).items():
        reached = own.standing.reached
        if reached is not None:
            sizes = own.latest.relations
            threshold = own.latest.thresholds[reached]
            answers = {each: own.given.count(each) for each in ("right", "wrong", "unsure")}
            kept = {
                "predicate": name,
                "threshold": threshold,
                "relations": sizes[reached],
                "of": sizes[-1],
            }
            sets.append({**kept, "answers": answers})
    asked = {question.key for plan in plans for question in plan.questions}
    lines = [each for state in log.current() if state.key in asked for each in state.judgements]
    dates = sorted(each.at for each in lines)
    content = log.file.read_bytes() if plans else b""
    return {
        "format": 1,
        "run": population.run,
        "method": _METHOD,
        **settings.model_dump(mode="json"),
        "sets": sets,
        "people": dict(sorted(Counter(each.by for each in lines).items())),
        "dates": [dates[0], dates[-1]] if dates else [],
        "plans_begun": _plans_begun(log),
        "not_covered": {
            "error_rows": population.errors,
            "images_without_relations": population.unlabelled,
            "other_relations": population.relations - sum(each["relations"] for each in sets),
            "recall": (
                "asked about: see `sgpipe stats --judgements`"
                if log.recall_plans
                else "not measured"
            ),
        },
        "judgements": {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
    }


def _check_rounds(
    population: Population, settings: CertificateSettings, plans: Sequence[SamplingPlan]
) -> NDArray[np.bool_]:
    """Draw the rounds of a plan again; return which rows they ask about. Raises UserError: they
    differ.
    """
    groups = {group.predicate: group for group in population.groups}
    if settings.family not in (None, population.family):
        raise UserError(f"{population.root} {_CHANGED}")
    taken = np.zeros(len(population.table), bool)
    spent: defaultdict[str | None, float] = defaultdict(float)
    for number, (plan, rows) in enumerate(zip(plans, population.rows_of(plans), strict=True)):
        parts = []
        is_valid = _part(plan).number == number
        for each in _part(plan).groups:
            group = groups.get(each.predicate)
            if group is None or (each.thresholds, each.relations) != (
                group.thresholds,
                group.sizes,
            ):
                raise UserError(f"{population.root} {_CHANGED}")
            cells = [stratum for stratum in plan.strata if stratum.predicate == each.predicate]
            spent[each.predicate] += each.capital if each.start is not None else 0
            left = np.bincount(group.cells[~taken[group.rows]], minlength=len(group.level))
            own = np.flatnonzero(
                (group.level <= max(stratum.level or 0 for stratum in cells)) & (left > 0)
            )
            parts.append((group, own, cells, sum(stratum.sampled for stratum in cells)))
            there = zip(
                group.level[own].tolist(),
                group.scores[own].tolist(),
                left[own].tolist(),
                strict=True,
            )
            is_valid &= [
                (stratum.level, stratum.scores, stratum.relations) for stratum in cells
            ] == list(there)
            is_valid &= spent[each.predicate] <= 1 + certificates.TINY
        if not is_valid or (plan.strata, plan.questions) != _draw(
            population, parts, settings, number, taken
        ):
            raise UserError(
                f"{plan.plan}: its questions are not those that are drawn from {population.root}"
            )
        taken[rows] = True
    return taken


def check(run: str | Location, judgements: Path) -> dict[str, Any]:
    """Return a run's certificate, computed again. Raises UserError: run and answers do not give it,
    or not any more.
    """
    file = judgements.with_name(CERTIFICATE)
    if not file.is_file():
        raise UserError(f"{run} has no certificate: `sgpipe certify {run} --precision P` makes one")
    try:
        given: dict[str, Any] = json.loads(read_text(file, "certificate"))
        names = CertificateSettings.model_fields.keys() & given.keys()
        settings = CertificateSettings(**{name: given[name] for name in names})
        end = int(given["judgements"]["bytes"])
        words = given["not_covered"]["recall"]
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise UserError(f"{file} is not a file of `sgpipe certify`") from None
    content = judgements.read_bytes() if judgements.is_file() else b""
    with tempfile.TemporaryDirectory() as folder, open_run(run) as database:
        then = Path(folder) / judgements.name
        then.write_bytes(content[:end])
        population = Population(database, settings)
        found = certify(population, settings, JudgementLog(then, population.run))
        log = JudgementLog(judgements, population.run)
        now = measure(rounds_of(log, settings), log)
    found["not_covered"]["recall"] = words  # it changes when a recall plan begins
    again = "run `sgpipe certify` again"
    for name, value in found.items():
        if given.get(name) != value:
            raise UserError(f"{file}: {name} is not what {run} and its judgements give; {again}")
    if not given["sets"]:
        raise UserError(f"{file} certifies nothing; {again}")
    for each in given["sets"]:
        own = now[each["predicate"]]
        reached = own.standing.reached
        if reached is None or own.latest.thresholds[reached] > each["threshold"]:
            raise UserError(f"{file}: answers that were changed since no longer give it; {again}")
    return given


def continue_plan(
    run: str | Location, judgements: Path, **values: Any
) -> tuple[dict[str, Any], list[dict[str, Any]], int, str]:
    """Append the next round of questions if none is open; `values`: as of `settings_for`.

    Returns:
        The certificate, how far each group is, how many questions are open, and as
        `describe_haste`.

    Raises:
        UserError: as `settings_for` and `extend`.
    """
    with open_run(run) as database:
        settings = settings_for(database, **values)
        log = JudgementLog(judgements, database.fingerprint)
        certificate = certify(population_of(database, settings), settings, log)
        extend(database, settings, log, "sgpipe certify")
        certificate["plans_begun"] = _plans_begun(log)  # more only if this call has begun the plan
        rounds = rounds_of(log, settings)
        groups = [group.as_json() for group in measure(rounds, log).values()]
        states: list[RelationState] = []
        for round_ in rounds:
            states += states_of(round_, log).values()
    return certificate, groups, sum(group["open"] for group in groups), describe_haste(states)


def _plans_begun(log: JudgementLog) -> int:
    return len({plan.certificate.settings.id for plan in log.plans.values() if plan.certificate})


def usual_prediction(index: Index) -> Literal["vlm_score", "clip_score", "confidence"]:
    return "vlm_score" if index.has_vlm_scores else "clip_score" if index.scored else "confidence"


def settings_for(index: Index, each: bool = False, **values: Any) -> CertificateSettings:
    """Return settings, by default with the `usual_prediction`.

    Args:
        index: of the run.
        each: whether the confidence is that of each predicate by itself, not of all together.
        values: of `CertificateSettings`.

    Raises:
        UserError: a value is invalid, or as `Population`.
    """
    values["prediction"] = values.get("prediction") or usual_prediction(index)
    try:
        settings = CertificateSettings.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None
    if each and settings.by is None:
        raise UserError("--each is an option of --by predicate: pass both, or leave it out")
    population = population_of(index, settings)
    family = population.family if settings.by is not None and not each else None
    return settings.model_copy(update={"population": population.digest, "family": family})


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


def extend(
    index: Index, settings: CertificateSettings, log: JudgementLog, by: str
) -> SamplingPlan | None:
    """Append the next round of questions if none is open; return it, or the present one; None:
    nothing is left.

    Raises UserError: the run has changed since, or the rounds are not those that are drawn from it.
    """
    plans = rounds_of(log, settings)
    progress = measure(plans, log)
    if any(own.open for own in progress.values()):
        return plans[-1]
    population = population_of(index, settings)
    taken = _check_rounds(population, settings, plans)
    confidences = _confidences_of(population, settings, progress)

    def urgency(group: Group) -> tuple[bool, int]:
        own = progress.get(group.predicate)
        return own is not None and own.more is None and own.standing.started > 0, -len(group.rows)

    parts: list[_Part] = []
    groups: list[CertifiedGroup] = []
    for group in sorted(population.groups, key=urgency):
        rounds = progress[group.predicate].rounds if group.predicate in progress else []
        left = np.bincount(group.cells[~taken[group.rows]], minlength=len(group.level)).astype(
            np.float64
        )
        planned = plan_round(rounds, group, left, settings.precision, confidences[group.predicate])
        if planned is None or len(parts) == _AT_ONCE:
            continue
        round_, cells, odds = planned
        strata = [
            PlanStratum(
                name=group.predicate or "all",
                relations=int(left[cell]),
                sampled=0,
                start=group.thresholds[group.level[cell]],
                predicate=group.predicate,
                level=int(group.level[cell]),
                scores=group.scores[cell].tolist(),
                weight=weight,
            )
            for cell, weight in zip(cells.tolist(), round_.weight.tolist(), strict=True)
        ]
        asked = QUESTIONS if rounds or len(group.sizes) == 1 else FIRST
        parts.append((group, cells, strata, asked if settings.by is None else asked // 2))
        own: dict[str, Any] = {
            "predicate": group.predicate,
            "thresholds": group.thresholds,
            "relations": group.sizes,
        }
        own |= {"odds": odds.tolist(), "start": round_.start, "capital": round_.capital}
        groups.append(CertifiedGroup(**own))
    if not parts:
        return None
    certificate = CertificateRound(settings=settings, number=len(plans), groups=groups)
    strata, questions = _draw(population, parts, settings, certificate.number, taken)
    common: dict[str, Any] = {
        "plan": f"{settings.id}-{certificate.number}",
        "at": utc_now(),
        "by": by,
        "seed": 0,
    }
    common |= {"run": population.run, "kind": "certificate", "certificate": certificate}
    return cast(
        SamplingPlan, log.append(SamplingPlan(**common, strata=strata, questions=questions))
    )
