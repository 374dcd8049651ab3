"""Tables of `benchmarks.certificates`: several people, and families of predicates.

Without a score, relations are drawn with equal chances and bets do not depend on answers, so all
sessions are simulated at once.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from rich.table import Table

from sgpipe.stats.certificate_rounds import _AT_ONCE, QUESTIONS
from sgpipe.stats.certificates import family_confidence, most_errors, place_bets, settle_bets
from sgpipe.storage.judgement_lines import Judgement, RelationKey
from sgpipe.storage.judgements import RelationState

SESSIONS = 2000
TARGET = 0.95
CONFIDENCE = 0.95
NEEDED = -math.log(1 - CONFIDENCE)
# of a run; answers of a session
RELATIONS = 8000
MOST = 1000
CHUNK = 100  # sessions that are simulated at once
PREDICATES = 20
RELATIONS_EACH = 2000
MOST_EACH = 600
GOOD = 0.98

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

# Several people.

RIGHT, WRONG, CHANGE, UNSURE = range(4)  # a change is another one for each person


def simulate_bets(
    rng: np.random.Generator, relations: int, wrong: Ints, answers: int
) -> tuple[Floats, Ints]:
    """Return what each answer adds to the log capital of each bet, and how many were wrong.

    Args:
        rng: for the draws, without replacement.
        relations: of each session's population.
        wrong: relations that people do not call right, `[sessions]`.
        answers: of each session.

    Returns:
        Gains `[sessions, answers, bets]` and wrong answers so far `[sessions, answers]`.
    """
    remaining = wrong.copy()
    is_wrong = np.zeros((len(wrong), answers), bool)
    for number in range(answers):
        drawn = rng.random(len(wrong)) * (relations - number) < remaining
        is_wrong[:, number] = drawn
        remaining -= drawn
    limit = most_errors(relations, TARGET) + 1
    left = np.full((len(wrong), 1), float(relations))
    weight = np.ones_like(left)
    bets = place_bets(np.zeros_like(left), weight, left, limit / relations)
    cells = np.zeros(is_wrong.shape, np.int64)
    gains = settle_bets(bets, weight, left, cells, is_wrong, np.full(len(wrong), limit))
    return gains, np.cumsum(is_wrong, axis=1)


def log_capital(gains: Floats) -> Floats:
    """Return the log capital after each answer of chains that start with 1, `[…, answers]`."""
    paths = np.cumsum(gains, axis=-2)
    capital: Floats = np.logaddexp.reduce(paths, axis=-1) - math.log(gains.shape[-1])
    return capital


def share(part: float) -> str:
    """A share of the sessions with its standard error."""
    return f"{part:.1%} ± {math.sqrt(part * (1 - part) / SESSIONS):.1%}"


@dataclass(frozen=True)
class Crowd:
    """People who all answer every question.

    Attributes:
        people: how many, all the following included.
        errors: how often an attentive person takes a wrong relation for right.
        is_lenient: whether such a person never takes a right relation for wrong; else as often.
        unsure: how often such a person is unsure.
        careless: what one person answers whatever is asked; None: nobody is careless.
        copies: whether one person repeats the first one's answers.
        split: whether each question is asked of one person only, as `sgpipe view` does.
    """

    people: int
    errors: float
    is_lenient: bool = False
    unsure: float = 0.0
    careless: str | None = None
    copies: bool = False
    split: bool = False

    def __str__(self) -> str:
        parts = [f"overlooks {self.errors:.0%}" if self.is_lenient else f"errors {self.errors:.0%}"]
        if self.unsure:
            parts.append(f"unsure {self.unsure:.0%}")
        if self.careless:
            parts.append(f"one answers {self.careless}")
        if self.copies:
            parts.append("one copies another")
        parts.append("each question of one person" if self.split else "everybody answers all")
        return "; ".join(parts)

    def answer(self, rng: np.random.Generator, is_wrong: bool) -> Ints:
        """Return what each person says of relations that are wrong, or right, `[relations,
        people]`.
        """
        shape = (RELATIONS, self.people)
        luck = rng.random(shape)
        rejected = np.where(rng.random(shape) < 0.5, WRONG, CHANGE)
        mistaken = RIGHT if is_wrong else rejected
        seen = rejected if is_wrong else RIGHT
        errors = 0.0 if self.is_lenient and not is_wrong else self.errors
        answers = np.where(luck < errors, mistaken, seen)
        answers = np.where(luck > 1 - self.unsure, UNSURE, answers)
        if self.copies:
            answers[:, -1] = answers[:, 0]
        if self.careless == "always right":
            answers[:, -1] = RIGHT
        if self.careless == "at random":
            answers[:, -1] = np.where(rng.random(RELATIONS) < 0.5, RIGHT, WRONG)
        if self.split:
            person = rng.integers(0, self.people, (RELATIONS, 1))
            return np.take_along_axis(answers, person, axis=1)
        return answers


@functools.cache
def says_right(right: int, wrong: int, changes: int, unsure: int) -> bool:
    """Return whether these people together call a relation right, as sgpipe decides it."""
    key = RelationKey("val", "1", 0, 1, "on")
    values = (
        [{"judgement": "right"}] * right
        + [{"judgement": "wrong"}] * wrong
        + [{"judgement": "unsure"}] * unsure
    )
    values += [
        {"change": {"action": "predicate", "predicate": f"other {number}"}}
        for number in range(changes)
    ]
    judgements = tuple(
        Judgement(id=str(number), at="", by=str(number), run="", **key._asdict(), **answer)
        for number, answer in enumerate(values)
    )
    return RelationState(key, judgements).verdict == "right"


def said_right_before(right: int, wrong: int, changes: int, unsure: int) -> bool:
    """Return the same by the rule until 2026-12-01: the most frequent outcome, each change one of
    its own.
    """
    return right > max(wrong, min(changes, 1))


def call_wrong(answers: Ints, is_right: functools._lru_cache_wrapper[bool]) -> Bools:
    """Return whether the people do not call each relation right, `[relations]`."""
    counts = np.stack([(answers == kind).sum(1) for kind in (RIGHT, WRONG, CHANGE, UNSURE)], axis=1)
    kinds, of_relation = np.unique(counts, axis=0, return_inverse=True)
    return np.array([not is_right(*kind) for kind in kinds.tolist()])[of_relation.ravel()]


def people() -> Table:
    table = Table(
        "people", "who they are", "called wrong", "wrongly given", "true precision of these runs", "given before",
        title="Several people: runs of which they call one relation too many wrong, target 0.95",
    )  # fmt: skip
    crowds = [Crowd(1, errors, split=True) for errors in (0.01, 0.05, 0.1)]
    crowds += [Crowd(number, errors) for number in (2, 3, 4, 5) for errors in (0.01, 0.05, 0.1)]
    crowds += [Crowd(1, 0.1, is_lenient=True, split=True)]
    crowds += [Crowd(number, 0.1, is_lenient=True) for number in (2, 3, 4, 5)]
    crowds += [Crowd(number, 0.01, unsure=0.05) for number in (2, 3, 4, 5)]
    crowds += [Crowd(number, 0.0, careless="always right", split=True) for number in (2, 3, 4, 5)]
    crowds += [Crowd(number, 0.01, careless="always right") for number in (2, 3, 4, 5)]
    crowds += [Crowd(number, 0.01, careless="at random") for number in (2, 3, 4, 5)]
    crowds += [Crowd(number, 0.1, is_lenient=True, copies=True) for number in (2, 3, 4, 5)]
    for number, crowd in enumerate(crowds):
        table.add_row(str(crowd.people), str(crowd), *measure_crowd(number, crowd))
    return table


def measure_crowd(seed: int, crowd: Crowd) -> list[str]:
    """Return the last columns of a row of `people`.

    Runs have as many wrong relations as it takes until people call one relation too many wrong.
    """
    limit = most_errors(RELATIONS, TARGET) + 1
    called_wrong = []
    called_wrong_before = []
    precisions = []
    for run in range(SESSIONS // CHUNK):
        rng = np.random.default_rng([seed, run])
        answers = {is_wrong: crowd.answer(rng, is_wrong) for is_wrong in (False, True)}
        after = {is_wrong: call_wrong(part, says_right) for is_wrong, part in answers.items()}
        before = {
            is_wrong: call_wrong(part, said_right_before) for is_wrong, part in answers.items()
        }
        # By the number of relations, from the first one on, that are wrong in truth.
        counts = called_by_number(after)
        reaching = np.flatnonzero(counts >= limit)
        errors = int(reaching[0]) if len(reaching) else RELATIONS
        called_wrong.append(int(counts[errors]))
        called_wrong_before.append(int(called_by_number(before)[errors]))
        precisions.append(1 - errors / RELATIONS)
    certified = certified_share(seed, np.repeat(called_wrong, CHUNK))
    given_before = certified_share(seed, np.repeat(called_wrong_before, CHUNK))
    precision = f"{np.mean(precisions):.3f}"
    return [
        f"{np.mean(called_wrong) / RELATIONS:.2%}",
        share(certified),
        precision,
        share(given_before),
    ]


def called_by_number(called_wrong: dict[bool, Bools]) -> Ints:
    """Return how many relations are called wrong if the first 0, 1, 2, … are wrong, `[1 +
    relations]`.
    """
    if_wrong = np.concatenate([[0], np.cumsum(called_wrong[True])])
    if_right = np.concatenate([[0], np.cumsum(called_wrong[False])])
    counts: Ints = if_wrong + if_right[-1] - if_right
    return counts


def certified_share(seed: int, wrong: Ints) -> float:
    certified = 0
    for start in range(0, len(wrong), CHUNK):
        rng = np.random.default_rng([seed, start, 1])
        gains, _ = simulate_bets(rng, RELATIONS, wrong[start : start + CHUNK], MOST)
        certified += int((log_capital(gains).max(axis=1) >= NEEDED).sum())
    return certified / len(wrong)


def dispute() -> Table:
    """Four people, of whom two correct each wrong relation, each in another way."""
    table = Table(
        "rule",
        "called wrong",
        "given",
        title="Four people, two of whom change each wrong relation: 60.2%",
    )
    wrong = round((1 - 0.602) * RELATIONS)
    for name, is_right in (("before", said_right_before), ("now", says_right)):
        called = 0 if is_right(2, 0, 2, 0) else wrong
        table.add_row(
            name, f"{called / RELATIONS:.1%}", share(certified_share(99, np.full(SESSIONS, called)))
        )
    return table


# Families of predicates.


def run_family(capital: Floats) -> Floats:
    """Return the answers after which each predicate is certified by Holm's procedure, `[sessions,
    predicates]`.

    Predicates are asked about in their order, a number of them at once, until they are certified or
    have had all of their questions, as by `sgpipe certify`. `capital`: log capital after answers,
    `[sessions, predicates, answers]`.
    """
    sessions, predicates, _ = capital.shape
    best = np.maximum.accumulate(capital, axis=-1)
    sizes = np.full(predicates, RELATIONS_EACH)
    judged = np.zeros((sessions, predicates), np.int64)
    until = np.full((sessions, predicates), math.inf)
    while True:
        is_waiting = ~np.isfinite(until) & (judged < MOST_EACH)
        if not is_waiting.any():
            return until
        is_asked = is_waiting & (np.cumsum(is_waiting, axis=1) <= _AT_ONCE)
        before = judged
        judged = judged + np.where(is_asked, QUESTIONS // 2, 0)
        shown = np.take_along_axis(best, np.maximum(judged - 1, 0)[..., None], axis=-1)[..., 0]
        shown = np.where(judged > 0, shown, -math.inf)
        for session in range(sessions):
            needed = needed_by_family(shown[session], sizes)
            new = (shown[session] >= needed) & ~np.isfinite(until[session])
            for predicate in np.flatnonzero(new).tolist():
                answers = first_reached(capital[session, predicate], needed[predicate])
                until[session, predicate] = max(answers, before[session, predicate])


def needed_by_family(shown: Floats, sizes: Ints) -> Floats:
    """Return the log capital that each predicate needs, `[predicates]`; `shown`: what each has
    had.
    """
    is_complete = np.zeros(len(sizes), bool)
    while True:
        needed: Floats = -np.log(
            1 - family_confidence(CONFIDENCE, sizes, is_complete, int(sizes.sum()))
        )
        now_complete = shown >= needed
        if (now_complete == is_complete).all():
            return needed
        is_complete = now_complete


def family() -> Table:
    table = Table(
        "predicates", "confidence", "at least one wrongly certified", "certified, of the good ones",
        "answers of a good one: median / mean", title="Families: 20 predicates of 2,000 relations, target 0.95",
    )  # fmt: skip
    limit = most_errors(RELATIONS_EACH, TARGET) + 1
    goods = (0, 5, 10, 20)
    methods = ("each by itself (before)", "together, split for good", "together, Holm (now)")
    untils: dict[tuple[int, str], list[Floats]] = {
        pair: [] for pair in itertools.product(goods, methods)
    }
    for start in range(0, SESSIONS, CHUNK):
        rng = np.random.default_rng([start, 3])
        below = simulate_capital(rng, limit)
        good = simulate_capital(rng, round((1 - GOOD) * RELATIONS_EACH))
        for number in goods:
            order = rng.permuted(np.tile(np.arange(PREDICATES), (CHUNK, 1)), axis=1)
            is_good = order < number
            capital = np.where(is_good[..., None], good, below)
            bounds = (
                first_reached(capital, NEEDED),
                first_reached(capital, NEEDED + math.log(PREDICATES)),
                run_family(capital),
            )
            for method, until in zip(methods, bounds, strict=True):
                # negative: below the target
                untils[number, method].append(np.where(is_good, until, -until))
    for (number, method), parts in untils.items():
        table.add_row(
            f"{number} of {GOOD:g}, {PREDICATES - number} below",
            method,
            *describe(np.concatenate(parts)),
        )
    return table


def simulate_capital(rng: np.random.Generator, wrong: int) -> Floats:
    """Return the log capital of all predicates of some sessions, `[sessions, predicates,
    answers]`.
    """
    gains, _ = simulate_bets(rng, RELATIONS_EACH, np.full(CHUNK * PREDICATES, wrong), MOST_EACH)
    return log_capital(gains).reshape(CHUNK, PREDICATES, MOST_EACH)


def first_reached(capital: Floats, needed: float) -> Floats:
    """Return the answers after which capital is enough, infinite if it never is, `[…]`."""
    reached = capital >= needed
    return np.where(reached.any(-1), np.argmax(reached, axis=-1) + 1.0, math.inf)


def describe(until: Floats) -> Sequence[str]:
    """Return columns of a row of `family`; `until`: answers, negative if the predicate is below the
    target.
    """
    wrongly = float(((until < 0) & np.isfinite(until)).any(axis=1).mean())
    good = until[until > 0]
    if not len(good):
        return share(wrongly), "", ""
    taken = np.minimum(good, MOST_EACH)
    answers = f"{np.median(taken):.0f} / {taken.mean():.0f}"
    return share(wrongly), f"{np.isfinite(good).mean():.1%}", answers
