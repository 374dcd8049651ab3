"""Files of people's judgements of a run: what a page of `sgpipe stats --review` exported or `sgpipe view` wrote."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import unquote_plus

from sgpipe.errors import UserError
from sgpipe.stats.calibration import StratifiedEstimate
from sgpipe.stats.plans import answers, count_states, measure_plan, strata_of
from sgpipe.stats.review import FORMAT, ConfidenceBand, Question, Review, Stratum, load_review
from sgpipe.storage.judgement_lines import Kind, SamplingPlan
from sgpipe.storage.judgements import JudgementLog
from sgpipe.utils.console import count

NO_PLAN = (
    "no plan that samples the whole run has answers, and other judgements are no random sample: make one on the page "
    "Judge of `sgpipe view`"
)


@dataclass(frozen=True)
class PlanSummary:
    """A sampling plan and what its answers say about the relations that it samples."""

    plan: str
    kind: Kind
    search: str | None
    precision: StratifiedEstimate
    unsure: int
    open: int

    @property
    def title(self) -> str:
        """What it samples."""
        return {"bands": "the run, by confidence", "predicates": "the run, by predicate"}.get(
            self.kind, f"the search {unquote_plus(self.search or 'for everything')}"
        )


@dataclass(frozen=True)
class JudgementSummary:
    """A file of judgements.

    Attributes:
        plan: the plan of the whole run with the most answers, whose precision is that of the run; None: there is none.
        counts: how many `relations` are judged, and how: `right`, `wrong`, `changed`, `unsure`, `conflict` (people
            differ), and `added` (the run lacks them; they are right, too).
        outside: relations that were not judged because a plan asked; they say nothing about the precision.
        problems: lines that are left out, and why.
    """

    plan: str | None
    plans: list[PlanSummary]
    counts: dict[str, int]
    outside: int
    problems: list[str]

    @property
    def text(self) -> str:
        """The counts in a sentence."""
        states = ("right", "wrong", "changed", "unsure", "conflict", "added")
        parts = [f"{self.counts[name]:,} {'in conflict' if name == 'conflict' else name}" for name in states]
        judged = count(self.counts["relations"], "relation")
        return f"{judged} judged ({', '.join(parts)}); {self.outside:,} of them not because a plan asked."


@dataclass(frozen=True)
class JudgedFile:
    """The questions and answers of a file; `summary`: of a file of judgements."""

    review: Review
    strata: Sequence[Stratum] | None
    summary: JudgementSummary | None = None


def read_review(file: Path, fingerprint: str) -> JudgedFile:
    """Read either kind of file; of a file of judgements, the answers to one plan, as `JudgementSummary` says.

    Args:
        fingerprint: of the run.

    Raises UserError: the file cannot be read, is neither, or belongs to another run.
    """
    if is_log(file):
        return _read_log(JudgementLog(file, fingerprint, read_only=True))
    review = load_review(file)
    if review.fingerprint != fingerprint:
        raise UserError(f"{file} belongs to another run ({review.run}, fingerprint {review.fingerprint})")
    return JudgedFile(review, review.bands)


def is_log(file: Path) -> bool:
    """Whether a file is one of judgements, which has a line like theirs. Raises UserError: it cannot be read."""
    try:
        with file.open("rb") as opened:
            for line in islice(opened, 100):
                try:
                    value = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(value, dict) and "run" in value and {"id", "strata"} & value.keys():
                    return True
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    return False


def _read_log(log: JudgementLog) -> JudgedFile:
    if log.problems and not log.plans and next(log.current(), None) is None:
        raise UserError(log.problems[0])
    progress = {plan.plan: measure_plan(plan, log) for plan in log.plans.values()}
    best = max(
        (plan for plan in log.plans.values() if plan.is_of_run and progress[plan.plan].precision.judged),
        key=lambda plan: progress[plan.plan].precision.judged,
        default=None,
    )
    plans = [
        PlanSummary(plan.plan, plan.kind, plan.search, found.precision, found.unsure, found.open)
        for plan, found in zip(log.plans.values(), progress.values(), strict=True)
    ]
    summary = _summarise(log, best, plans)
    if best is None:
        return JudgedFile(Review(FORMAT, "", log.fingerprint, 0, [], []), None, summary)
    questions = [
        Question(q.image_id, q.subject_category, q.predicate, q.object_category, q.confidence, q.stratum)
        for q in best.questions
    ]
    strata = strata_of(best)
    bands = [stratum for stratum in strata if isinstance(stratum, ConfidenceBand)]
    review = Review(FORMAT, "", log.fingerprint, best.seed, questions, answers(best, log), bands)
    return JudgedFile(review, strata, summary)


def _summarise(log: JudgementLog, best: SamplingPlan | None, plans: list[PlanSummary]) -> JudgementSummary:
    states = list(log.current())
    asked = {key for plan in log.plans for key in log.answered(plan)}
    return JudgementSummary(
        plan=best.plan if best else None,
        plans=plans,
        counts=count_states(states),
        outside=sum(state.key not in asked for state in states),
        problems=log.problems,
    )
