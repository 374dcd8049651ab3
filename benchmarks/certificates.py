"""Certificates of `sgpipe certify`: how often they are wrong, and how many answers they take, by
simulation.

python -m benchmarks.certificates

Each row is 2,000 simulated sessions, 20 in each of 100 runs of 8,000 relations in 1,600 images,
with confidence 95%. Some images are harder than others: errors cluster in them. People answer one
question after another and stop as soon as the certificate is given, or after 1,000 answers.
Predictions, weights and bets are those of the product, and so is the draw in law. Another model's
score has the area under the ROC curve (AUC) that is named: 0.5 says nothing. "If known" is what it
would save if the error rate of each of its bins were known beforehand, and that of all relations
too: sessions with the one best bet, instead of those that have to find out. Savings are those of
the median, the mean (1,001 where none is given) and 80% of the sessions.

Where the threshold is chosen, 120 sessions go on until 600 answers; the certificate must hold for
the largest set of the last round, and so for any earlier one. The best threshold is chosen with the
truth known.

A certificate is wrongly given if the precision of what it keeps is below the target. A fixed plan
is the smallest simple random sample, chosen by somebody who knows the true precision, whose exact
one-sided test succeeds with the power that is named. The present plan is that of `sgpipe view`
before certificates: a fixed sample whose two-sided 95% interval (`estimate_stratified`) lies above
the target, with the same power.

How to read it: the 5% bound is proved, and the rows with one error too many lie at it, within their
standard error. A certificate takes fewer answers than a fixed plan of power 80% that knows the true
precision, and more than one of power 50%. The levels of the bets were chosen among some sixteen on
these four settings, so the savings are those of settings that were looked at. With AUC 0.9 the
median saves 30% or more in three of the four. In the fourth (0.95, 0.98) it saves less than half of
that, and would not save 30% if all were known: a session meets some four errors, and most evidence
is the number of right answers, which no score speeds up much. Without a score, sessions end after a
few set numbers of answers, one for each number of errors, so that their median is low there beside
the mean.

**Several people** answer all questions, or each question is asked of one of them. Each row has runs
of which these people together call one relation too many wrong (or more, where they would in a run
without errors). Who makes "errors" takes wrong relations for right and right ones for wrong; who
"overlooks" only the former. Half of those who reject a relation change it, each into something
else. "True precision" is what the certificate is worth
there: a run of which less is right is certified with a chance of 5% at most, one of which more is
right more often. "Given before" is by the rule until this release: the most frequent outcome, each
change one of its own, nobody unsure.

**Families**: each predicate has 2,000 relations, and is either below the target by one relation or
has a precision of 0.98. Eight are asked about at once, each until it is certified or has had 600
answers, which count where it is not. "Split for good" gives each predicate a twentieth of the
chance to be wrong. Holm's procedure hands the share of a predicate that is certified on to the
others, also for answers that are there already.

How to read these two: a certificate keeps its promise about what most people say, whoever they are;
about the truth it does as far as most people see it. People who overlook errors make it worth less,
those who see errors where there are none make it harder to get, two people who must agree above
all. Of three or more attentive people who answer all, most are hardly ever wrong together, even
with one careless person among them; one who copies takes that away. A careless person who answers a
share of the questions alone hides that share of the errors. A family of 20 takes 1.6 to 1.8 times
as many answers on average (medians: 1.8 to 2.1), and the more of it is good, the less.

Tried and not kept, as each lost with one score or setting what it gained with another: one or two
levels instead of three, more trust in a score before it is tested (slopes of 1 and 1.3), and other
powers and floors of the weights. With the best weights that there are, found numerically for known
rates, the fourth setting would save 28% on average.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import sys
from collections.abc import Callable
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from rich.table import Table
from scipy.special import bdtr, ndtri

from benchmarks.certificate_people import dispute, family, people
from benchmarks.measure import report
from sgpipe.stats import certificates
from sgpipe.stats.certificate_rounds import FIRST, QUESTIONS
from sgpipe.stats.certificates import (
    Group,
    Round,
    evaluate,
    fit_errors,
    most_errors,
    place_bets,
    plan_round,
    settle_bets,
    weigh,
)
from sgpipe.stats.precision import estimate_stratified
from sgpipe.utils.odds import from_log_odds

RUNS = 100
EACH = 20
RELATIONS = 8000
IMAGES = 1600
MOST = 1000
SESSIONS = RUNS * EACH
CONFIDENCE = 0.95
NOTHING = math.nan  # no score

settled = functools.lru_cache(maxsize=None)(certificates.gains)  # whole rounds do not change
certificates.gains = settled

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def make_cells(
    rng: np.random.Generator, errors: int, auc: float, slips: float
) -> tuple[Ints, Ints, Floats]:
    """Return relations and wrong ones of each cell, and the scores of cells, of a run.

    The difficulty of images has a standard deviation of 1 in log odds. People call a share of
    `slips` of the relations what they are not.
    """
    image = rng.integers(0, IMAGES, RELATIONS)
    luck = rng.logistic(0, 1, RELATIONS) + rng.normal(0, 1, IMAGES)[image]
    wrong = np.zeros(RELATIONS, bool)
    wrong[np.argsort(luck)[:errors]] = True
    score = np.full(RELATIONS, np.nan)
    if not math.isnan(auc):
        score = rng.normal(0, 1, RELATIONS) - math.sqrt(2) * float(ndtri(auc)) * wrong
    group = Group.divide(None, np.arange(RELATIONS), np.ones(RELATIONS), score, True)
    answered_wrong = wrong ^ (rng.random(RELATIONS) < slips)
    return (
        np.bincount(group.cells),
        np.bincount(group.cells, answered_wrong).astype(np.int64),
        group.scores,
    )


def sessions(
    target: float, precision: float, auc: float, slips: float = 0.0, *, known: bool = False
) -> Ints:
    """Return the answers of each session until the certificate is given; one more than `MOST` if it
    is not.

    `known`: the error rates of cells are.
    """
    rng = np.random.default_rng(
        [round(1e5 * precision), round(100 * (0 if math.isnan(auc) else auc)), round(100 * slips)]
    )
    runs = [make_cells(rng, round((1 - precision) * RELATIONS), auc, slips) for _ in range(RUNS)]
    left, wrong, scores = (
        np.repeat(np.array(values), EACH, axis=0) for values in zip(*runs, strict=True)
    )
    rates = wrong.sum(0) / left.sum(0)
    limit = most_errors(RELATIONS, target) + 1
    judged = np.zeros(left.shape)
    wrong_found = np.zeros(left.shape)
    bets_placed = len(certificates._LEVELS)
    capital = np.full((len(left), bets_placed), -math.log(bets_placed))
    until = np.full(len(left), MOST + 1)
    rows = np.arange(len(left))
    for asked in range(0, MOST, QUESTIONS):
        open_ = np.flatnonzero(until > MOST)
        if not len(open_):
            break
        remaining = left[open_].astype(float)
        if known:
            shape = np.broadcast_to(np.log(rates / (1 - rates)), remaining.shape)
            weight = weigh(np.broadcast_to(rates, remaining.shape), remaining)
        else:
            odds = fit_errors(scores[open_], judged[open_], wrong_found[open_], 1 - target)
            shape = (scores[open_] @ odds[:, 1:, None])[..., 0]
            weight = weigh(from_log_odds(odds[:, :1] + shape), remaining)
        bets = place_bets(shape, weight, remaining, limit / RELATIONS)
        cells = np.zeros((len(open_), QUESTIONS), np.int64)
        answers = np.zeros((len(open_), QUESTIONS), bool)
        needed = limit - wrong_found[open_].sum(1)
        rows = np.arange(len(open_))
        for number in range(QUESTIONS):
            chance = np.cumsum(weight * left[open_], axis=1)
            cell = (chance < rng.random((len(open_), 1)) * chance[:, -1:]).sum(1)
            is_wrong = rng.random(len(open_)) * left[open_, cell] < wrong[open_, cell]
            cells[rows, number], answers[rows, number] = cell, is_wrong
            left[open_, cell] -= 1
            wrong[open_, cell] -= is_wrong
            judged[open_, cell] += 1
            wrong_found[open_, cell] += is_wrong
        paths = capital[open_][:, None] + np.cumsum(
            settle_bets(bets, weight, remaining, cells, answers, needed), axis=1
        )
        enough = np.logaddexp.reduce(paths, axis=2) >= -math.log(1 - CONFIDENCE)
        is_certified = enough.any(1)
        until[open_[is_certified]] = asked + np.argmax(enough[is_certified], axis=1) + 1
        capital[open_] = paths[:, -1]
    return until


def named(auc: float) -> str:
    return "none" if math.isnan(auc) else f"AUC {auc:g}"


def share(count: int) -> str:
    """A share of the sessions with its standard error."""
    part = count / SESSIONS
    return f"{part:.1%} ± {math.sqrt(part * (1 - part) / SESSIONS):.1%}"


def validity() -> Table:
    table = Table(
        "target",
        "true precision",
        "score",
        "wrong answers",
        "given",
        title="How often a certificate is given",
    )
    rows = []
    for target in (0.95, 0.9):
        below = 1 - (most_errors(RELATIONS, target) + 1) / RELATIONS  # one error too many
        rows += [(target, below, auc, 0.0) for auc in (NOTHING, 0.9, 0.5, 0.1)]
        rows += [(target, target - 0.01, NOTHING, 0.0), (target, target - 0.01, 0.9, 0.0)]
        rows += [
            (target, target + 0.01, NOTHING, 0.0),
            (target, target + 0.01, 0.9, 0.0),
            (target, below, NOTHING, 0.02),
        ]
        rows += [(target, below, 0.9, 0.02)]
    for target, precision, auc, slips in rows:
        certified = int((sessions(target, precision, auc, slips) <= MOST).sum())
        wrongly = "wrongly " if precision < target else "rightly "
        table.add_row(
            f"{target:g}",
            f"{precision:.5g}",
            named(auc),
            f"{slips:.0%}",
            wrongly + share(certified),
        )
    return table


def fixed_plan(target: float, precision: float, power: float, tail: float) -> int:
    """Return the size of the smallest sample whose exact test of the target succeeds with a
    power.
    """
    for size in range(10, 20_000):
        errors = np.arange(size)
        allowed = errors[bdtr(errors, size, 1 - target) <= tail]
        if len(allowed) and bdtr(allowed[-1], size, 1 - precision) >= power:
            return size
    raise ValueError("no such plan")


def present_plan(target: float, precision: float, power: float) -> int:
    """Return the size of the smallest plan of `sgpipe view` whose interval lies above the target
    with a power.
    """
    low = 10
    high = 20_000
    while high - low > 1:
        size = (low + high) // 2
        wrong = np.arange(size // 2 + 1)
        estimates = estimate_stratified(
            np.full((len(wrong), 1), 1e6), np.full((len(wrong), 1), size), (size - wrong)[:, None]
        )
        enough = [
            number
            for number, estimate in zip(wrong.tolist(), estimates, strict=True)
            if estimate.low >= target
        ]
        reaches = bool(enough) and bdtr(enough[-1], size, 1 - precision) >= power
        low, high = (low, size) if reaches else (size, high)
    return high


def efficiency() -> Table:
    table = Table(
        "target", "true precision", "fixed plan, power 50 / 80 / 90%", "present plan, 80%", "score",
        "answers: median / mean / 80% of sessions", "to no score", "if known", "given",
        title="Answers that a certificate takes",
    )  # fmt: skip
    for target, precision in ((0.95, 0.98), (0.95, 0.97), (0.9, 0.95), (0.9, 0.935)):
        fixed = " / ".join(
            str(fixed_plan(target, precision, power, 1 - CONFIDENCE)) for power in (0.5, 0.8, 0.9)
        )
        plan = str(present_plan(target, precision, 0.8))
        best = [(1 - precision) / (1 - target)]
        before = np.zeros(3)
        known_before = np.zeros(3)
        for auc in (NOTHING, 0.9, 0.75, 0.5):
            answers = sessions(target, precision, auc)
            with patch.object(certificates, "_LEVELS", np.array(best)):
                known = describe(sessions(target, precision, auc, known=True))
            taken = describe(answers)
            changes = ["", ""]
            if math.isnan(auc):
                before = taken
                known_before = known
            else:
                changes = [
                    " / ".join(f"{change:+.0%}" for change in now / then - 1)
                    for now, then in ((taken, before), (known, known_before))
                ]
            table.add_row(
                f"{target:g}", f"{precision:g}", fixed, plan, named(auc),
                " / ".join(f"{count:.0f}" for count in taken),
                *changes, share(int((answers <= MOST).sum())),
            )  # fmt: skip
    return table


def describe(answers: Ints) -> Floats:
    """Return the median, the mean and the 80% quantile."""
    return np.array([np.median(answers), answers.mean(), np.quantile(answers, 0.8)])


def choosing() -> Table:
    """Sessions in which the threshold is chosen, too."""
    table = Table(
        "target", "errors at confidence c", "score", "wrongly given", "given", "first given, median answers",
        "kept after 600 answers, of the best threshold", title="Choosing the threshold, by 120 sessions",
    )  # fmt: skip
    for target, name, rate in (
        (0.95, "(1 - c) / 2", lambda c: (1 - c) / 2),
        (0.95, "0.08, whatever c", lambda c: np.full(len(c), 0.08)),
        (0.9, "0.05 + 0.3 (1 - c)²", lambda c: 0.05 + 0.3 * (1 - c) ** 2),
        (0.95, "0.051 from c = 0.5 on, else 0.4", lambda c: np.where(c >= 0.5, 0.051, 0.4)),
    ):
        for auc in (NOTHING, 0.9):
            sessions_of_choice = [choose(seed, target, rate, auc) for seed in range(120)]
            firsts = [first for first, _, _ in sessions_of_choice if first]
            wrongly = sum(is_wrong for _, is_wrong, _ in sessions_of_choice) / len(
                sessions_of_choice
            )
            shares = [part for _, _, part in sessions_of_choice if not math.isnan(part)]
            table.add_row(
                f"{target:g}", name, named(auc), f"{wrongly:.1%} ± {math.sqrt(wrongly * (1 - wrongly) / 120):.1%}",
                f"{len(firsts) / 120:.1%}", f"{np.median(firsts):.0f}" if firsts else "",
                f"{np.median(shares):.0%}" if shares else "nothing has this precision",
            )  # fmt: skip
    return table


def choose(
    seed: int, target: float, rate: Callable[[Floats], Floats], auc: float
) -> tuple[int, bool, float]:
    """Return the answers until a set is certified (0: none), whether one wrongly is, and the part
    of the best kept.
    """
    rng = np.random.default_rng(seed)
    confidence = rng.random(RELATIONS)
    wrong = rng.random(RELATIONS) < rate(confidence)
    score = np.full(RELATIONS, np.nan)
    if not math.isnan(auc):
        score = rng.normal(0, 1, RELATIONS) - math.sqrt(2) * float(ndtri(auc)) * wrong
    group = Group.divide(None, np.arange(RELATIONS), confidence, score, False)
    taken = np.zeros(RELATIONS, bool)
    rounds = list[Round]()
    answers = 0
    first = 0
    while answers < 600:
        left = np.bincount(group.cells[~taken], minlength=len(group.level)).astype(float)
        planned = plan_round(rounds, group, left, target, CONFIDENCE)
        if planned is None:
            break
        weight = np.zeros(len(left))
        place = np.zeros(len(left), np.int64)
        weight[planned[1]], place[planned[1]] = planned[0].weight, np.arange(len(planned[1]))
        sampling_weight = np.where(taken, 0, weight[group.cells])
        arrival = np.where(
            sampling_weight > 0,
            rng.exponential(size=RELATIONS) / np.where(sampling_weight > 0, sampling_weight, 1),
            np.inf,
        )
        asked = np.argsort(arrival)[: QUESTIONS if rounds else FIRST]
        taken[asked] = True
        cells = place[group.cells[asked]]
        nothing_open = np.zeros(len(asked), bool)
        rounds.append(
            dataclasses.replace(planned[0], asked=cells, wrong=wrong[asked], is_open=nothing_open)
        )
        answers += len(asked)
        reached = evaluate(rounds, group.sizes, target, CONFIDENCE).reached
        first = first or (answers if reached is not None else 0)
    settled.cache_clear()
    order = np.argsort(-confidence)
    precision = 1 - np.cumsum(wrong[order]) / np.arange(1, RELATIONS + 1)
    best = np.flatnonzero(precision >= target)[-1] + 1 if (precision[100:] >= target).any() else 0
    if reached is None:
        return 0, False, 0.0 if best else math.nan
    size = group.sizes[reached]
    return (
        first,
        bool(wrong[group.level[group.cells] <= reached].sum() > most_errors(size, target)),
        size / max(best, 1),
    )


def main() -> None:
    tables = {"answers": efficiency, "validity": validity, "choosing": choosing}
    tables |= {"dispute": dispute, "people": people, "family": family}
    report(__doc__ or "", *(tables[name]() for name in sys.argv[1:] or tables))


if __name__ == "__main__":
    main()
