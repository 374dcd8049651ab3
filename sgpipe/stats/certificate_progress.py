"""How far the groups of a certificate are, by the answers to the rounds of questions so far."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypedDict, cast

import numpy as np

from sgpipe.stats import certificates
from sgpipe.stats.certificates import Round, Standing
from sgpipe.stats.plans import Judged, PlanProgress
from sgpipe.storage.judgement_lines import (
    CertificateRound,
    CertificateSettings,
    CertifiedGroup,
    SamplingPlan,
)
from sgpipe.storage.judgements import JudgementLog
from sgpipe.utils.console import count, single_line


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


class GroupValues(TypedDict):
    """How far a group is, as plain values for JSON.

    Attributes:
        share: how much of the evidence the answers give.
        more: how many answers it takes, at least if `at_least`; None: too many, or unknown.
        certified: how many relations are.
        open: how many questions are.
        lines: the same in sentences.
    """

    predicate: str | None
    share: float
    more: int | None
    at_least: bool
    certified: int
    open: int
    lines: list[str]


class GroupProgress:
    """How far a group is: its rounds, the latest settings, and what the answers show.

    Attributes:
        more: the answers it takes if as many are wrong as so far; None: too many.
        fewest: the same if no other one is wrong.
        confidence: what its tests need, in a family more than the settings say.
        answers: to its questions, in the order of the questions; None: open.
    """

    def __init__(
        self, settings: CertificateSettings, answered: Answered, confidence: float
    ) -> None:
        self.settings = settings
        self.confidence = confidence
        self.latest = answered.latest
        self.predicate = answered.latest.predicate
        self.rounds = answered.rounds
        self.answers = answered.answers
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
        judged = 0
        for round_ in self.rounds:
            is_tested = round_.level[round_.asked] <= tested
            judged += int(np.count_nonzero(~round_.is_open & is_tested))
        rest = sizes[tested] - judged
        self.more = _at_most(more, rest)
        self.fewest = _at_most(fewest, rest)
        self.wrong = self.answers.count("wrong") + self.answers.count("unsure")

    @property
    def is_finished(self) -> bool:
        """Whether the largest set is certified."""
        return self.standing.reached == len(self.latest.relations) - 1

    @property
    def open(self) -> int:
        """The open questions; none are asked of a finished group."""
        return 0 if self.is_finished else self.answers.count(None)

    def as_json(self) -> GroupValues:
        """Return how far the group is, as plain values for JSON."""
        standing = self.standing
        needed = -math.log(1 - self.confidence)
        share = 0.0
        if standing.evidence:
            share = max(0.0, 1 + math.log(standing.evidence) / max(needed, certificates.TINY))
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
        name = "all predicates" if self.predicate is None else single_line(self.predicate, 60)
        settings = self.settings
        standing = self.standing

        def describe_set(number: int) -> str:
            size = self.latest.relations[number]
            total = count(self.latest.relations[-1], "relation")
            return f"{size:,} of {total} (confidence {self.latest.thresholds[number]:g} or more)"

        confidence = f"{settings.confidence:.4g} confidence{settings.scope}"
        promise = f"a precision of {settings.precision:g} or more ({confidence})"
        judged = len(self.answers) - self.answers.count(None)
        if standing.reached is not None:
            yield (
                f"certified, {name}: {describe_set(standing.reached)} have {promise}, by"
                f" {count(judged, 'answer')}"
            )
        if standing.tested is not None:
            yield f"not yet, {name}: {describe_set(standing.tested)}; {self._outlook(judged)}"
        elif standing.reached is None:
            yield (
                f"not yet, {name}: the first questions show where to start ({judged} of"
                f" {len(self.answers)} answered)"
            )

    def _outlook(self, judged: int) -> str:
        """Say how many more answers it takes; before one is wrong, only how many at least."""
        so_far = f"{self.wrong:,} of {judged:,}"
        if self.more == 0:
            return f"it cannot be reached, as nothing is left to ask ({so_far} are wrong)"
        if not self.wrong and self.fewest is not None:
            return f"at least {count(self.fewest, 'more answer')}, if all are right"
        more = "too many more answers"
        if self.more is not None:
            more = f"about {count(self.more, 'more answer')}"
        return f"{more}, if as many are wrong as so far ({so_far})"


def _at_most(answers: int | None, rest: int) -> int | None:
    """Return how many answers a set takes, if no more than `rest` can be asked; None: too many."""
    if rest == 0:
        return 0
    return None if answers is None else min(answers, rest)


def rounds_of(log: JudgementLog, settings: CertificateSettings) -> list[SamplingPlan]:
    """Return the rounds of questions of a certificate, in their order."""
    rounds = [
        plan
        for plan in log.plans.values()
        if plan.certificate and plan.certificate.settings == settings
    ]
    return sorted(rounds, key=lambda plan: round_of(plan).number)


def round_of(plan: SamplingPlan) -> CertificateRound:
    """Return what a plan of a certificate says of its round."""
    return cast(CertificateRound, plan.certificate)


def measure(plans: Sequence[SamplingPlan], log: JudgementLog) -> dict[str | None, GroupProgress]:
    """Return how far each group is about which questions were asked, by its predicate."""
    groups: dict[str | None, Answered] = {}
    for plan in plans:
        progress = PlanProgress(plan, log)
        for group in round_of(plan).groups:
            answered = groups.setdefault(group.predicate, Answered(group))
            answered.latest = group
            _add_round(answered, plan, progress)
    if not groups:
        return {}
    settings = round_of(plans[0]).settings
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
    answers = np.array(progress.answers, object)[questions].tolist()
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
        is_open=~progress.judged[questions],
    )
    answered.rounds.append(round_)
    answered.answers += answers


def _confidences(settings: CertificateSettings, groups: Sequence[Answered]) -> list[float]:
    """Return the confidence that each group needs.

    In a family, groups that are complete make it less for others.
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
            answered.evaluate(settings, group_confidence)
            for answered, group_confidence in zip(groups, needed, strict=True)
        ]
        now_complete = np.array([standing.is_complete for standing in standings])
        if (now_complete == is_complete).all():
            return needed
        is_complete = now_complete
