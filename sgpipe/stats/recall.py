"""Recall plans: people say what holds between boxes of random images without seeing the labels.

The share of the named relations that the run has is its recall, as far as people see what holds.
Relations of an image are alike, so intervals are of a cluster sample
(benchmarks/recall_coverage.py). What two people name about the same boxes says how many relations
there are at least (capture and recapture): what is hard for both is missing from it.
"""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT
from sgpipe.stages.pair import normalise_predicate
from sgpipe.stats.precision import PrecisionEstimate, estimate_clustered
from sgpipe.storage.judgements import MOST_QUESTIONS, BlindQuestion, JudgementLog, RecallPlan
from sgpipe.utils.console import count, single_line

Rows = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
Named = tuple[int, int, str]  # subject, object and normalised predicate
_Item = tuple[
    bool, int, float
]  # whether the run has what was named, the number of the image, and its weight
BOXES = 8  # of a question
_TAIL = 0.025  # how often either end of a 95% interval misses
_LOG_MOST = 50.0  # log of a number of relations that is as good as any
_IMAGES = """
    select split::varchar, image_id, list(number order by number), count(*) over ()
    from run.objects join run.images using (image) where status::varchar = 'ok' and category::varchar <> ?
    group by image, split, image_id having count(*) > 1
    order by hash(?::varchar, split::varchar, image_id), split, image_id limit ?
"""
_RELATIONS = """
    select images.split::varchar, image_id, subject, object, predicate::varchar
    from run.relations join run.images using (image) where image_id in (select unnest(?::varchar[]))
"""


def draw_recall(rows: Rows, number: int, boxes: int, seed: int) -> tuple[int, list[BlindQuestion]]:
    """Draw images, and at most `boxes` boxes of each; also return how many there are. Raises
    UserError: bad numbers.
    """
    if not 1 <= number <= MOST_QUESTIONS or boxes < 2:
        raise UserError(
            f"{number} questions about {boxes} boxes: expected 1 to {MOST_QUESTIONS:,} about 2 or"
            " more"
        )
    found = rows(_IMAGES, [NO_OBJECT, seed, number])
    if not found:
        raise UserError("no image has two boxes to ask about")
    questions = []
    for split, image_id, own, _ in found:
        digest = hashlib.sha256(f"{seed}\0{split}\0{image_id}".encode()).digest()
        chosen = np.random.default_rng(list(digest)).choice(
            own, min(boxes, len(own)), replace=False
        )
        weight = math.comb(len(own), 2) / math.comb(len(chosen), 2)
        questions.append(BlindQuestion(split, image_id, sorted(chosen.tolist()), weight))
    return found[0][3], questions


def questions_left(plan: RecallPlan, log: JudgementLog, by: str) -> list[int]:
    """Return the numbers of the questions that a person has not answered, those that were skipped
    last.
    """
    answers = {
        place: own[by].relations for place, own in log.blind_answers(plan.plan).items() if by in own
    }
    left = [number for number, each in enumerate(plan.questions) if answers.get(each.place) is None]
    return sorted(left, key=lambda number: plan.questions[number].place in answers)


@dataclass(frozen=True)
class IndependentMisses:
    """How many relations there are (95% interval) if what one person misses says nothing about what
    another does.
    """

    total: float
    low: float
    high: float


@dataclass(frozen=True)
class Completeness:
    """What two people named in common questions, and how many relations there are at least.

    Attributes:
        both: relations that both named. one: those that only one of them did.
        at_least: relations that there are, with 95% confidence; they named no more than
            `share_at_most` of them.
        if_independent: an estimate, mostly too low, since relations and images are hard for both.
    """

    people: tuple[str, str]
    questions: int
    both: int
    one: int
    at_least: int
    share_at_most: float
    if_independent: IndependentMisses

    def describe(self, estimate_total: bool) -> Iterator[str]:
        names = " and ".join(single_line(name, 60) for name in self.people)
        share = f"{math.ceil(1000 * self.share_at_most) / 10:.1f}%"
        yield (
            f"{names} answered {count(self.questions, 'common question')}: {self.both:,} relations"
            f" named by both, {self.one:,} by one. With 95% confidence,"
            f" {count(self.at_least, 'relation')} or more exist; they named at most {share} of all."
            " It is only a bound, because what is hard to see for both does not show."
        )
        if estimate_total:
            total = self.if_independent
            yield (
                "If each misses relations independently of the other, which is seldom so, about"
                f" {total.total:,.0f} exist (95% interval: {total.low:,.0f} to {total.high:,.0f})."
            )


def recapture(
    people: tuple[str, str],
    both: NDArray[np.int64],
    first: NDArray[np.int64],
    second: NDArray[np.int64],
) -> Completeness | None:
    """Return what both people, and only one of them, named in each image, `[images]`, tells; None:
    they named nothing.

    On average, first · second / both is as many relations as neither named if they miss relations
    independently, and fewer if what is hard for one is hard for the other. Chao's (1987) bound is
    the same for two people who are equally able, (first + second)² / (4 both), but exceeds the
    truth if one names more than the other.

    The estimate is Chapman's (1951). Its interval, whose lower end is the bound, is that of Sadinle
    (2009, Transformed logit confidence intervals for small populations in single capture-recapture
    estimation), with the jackknife's variance over images if that is larger.
    """
    from scipy.special import stdtrit

    shared = int(both.sum())
    one = int(first.sum())
    other = int(second.sum())
    known = shared + one + other
    if not known:
        return None
    total = (shared + one + 1) * (shared + other + 1) / (shared + 1) - 1
    middle = math.log((one + 0.5) * (other + 0.5) / (shared + 0.5))  # of those that neither named
    without = np.log((one - first + 0.5) * (other - second + 0.5) / (shared - both + 0.5))
    jackknife = (1 - 1 / len(both)) * float(((without - without.mean()) ** 2).sum())
    variance = max(1 / (shared + 0.5) + 1 / (one + 0.5) + 1 / (other + 0.5), jackknife) + math.exp(
        -middle
    )
    margin = float(stdtrit(max(len(both) - 1, 1), 1 - _TAIL)) * math.sqrt(variance)
    low = max(known - 0.5 + math.exp(middle - margin), known)
    high = known - 0.5 + math.exp(min(middle + margin, _LOG_MOST))
    at_least = math.floor(low)
    estimate = IndependentMisses(total, low, max(high, total))
    return Completeness(
        people, len(both), shared, one + other, at_least, known / at_least, estimate
    )


@dataclass(frozen=True)
class RecallMeasures:
    """What the answers to a recall plan say of the `images` that can be asked about.

    `recall`: of the named relations; `pairs`: of related pairs of boxes, whatever the predicate;
    `predicates`: the most often named first; `people`: the two who answered the most common
    questions.
    """

    plan: str
    images: int
    answered: int
    open: int
    recall: PrecisionEstimate
    pairs: PrecisionEstimate
    predicates: dict[str, PrecisionEstimate]
    people: Completeness | None

    def describe(self, estimate_total: bool = False) -> Iterator[str]:
        """Yield sentences; `estimate_total`: also how many relations there are if people miss them
        independently.
        """
        asked = f"{self.answered:,} of {count(self.images, 'image')}"
        if self.recall.value is None:
            yield f"Recall, blind: people have named no relation yet ({asked} answered)."
            return
        yield (
            f"Recall, blind: the run has {self.recall} of the relations that people named in"
            f" {asked}, without seeing its labels; it relates {self.pairs} of the pairs."
        )
        if self.people is not None:
            yield from self.people.describe(estimate_total)

    def as_groups(self) -> list[dict[str, Any]]:
        """As values for a page: a bar for the plan, and one for the recall of each predicate."""
        whole = {
            "share": self.answered / (self.answered + self.open),
            "lines": list(self.describe()),
        }
        return [
            whole,
            *(
                {"share": own.value, "lines": [f"{name}: {own}"]}
                for name, own in self.predicates.items()
            ),
        ]


def measure_recall(plan: RecallPlan, log: JudgementLog, rows: Rows) -> RecallMeasures:
    """Compare what people named with the relations of the run (`rows`: as `Index.rows`). What
    anyone named holds.
    """
    answers = {
        place: {
            by: {
                (each.subject, each.object, normalise_predicate(each.predicate))
                for each in answer.relations
            }
            for by, answer in own.items()
            if answer.relations is not None
        }
        for place, own in log.blind_answers(plan.plan).items()
    }
    asked = [question for question in plan.questions if answers.get(question.place)]
    run: defaultdict[tuple[str, str], set[Named]] = defaultdict(set)
    for split, image_id, *ends, predicate in rows(
        _RELATIONS, [[question.image_id for question in asked]]
    ):
        run[split, image_id].add((ends[0], ends[1], normalise_predicate(predicate)))
    found: defaultdict[str, list[_Item]] = defaultdict(list)
    pairs: list[_Item] = []
    for number, question in enumerate(asked):
        own = run[question.place]
        related = {key[:2] for key in run[question.place]}
        inside = {
            key
            for each in answers[question.place].values()
            for key in each
            if {*key[:2]} <= {*question.boxes}
        }
        for key in sorted(inside):
            found[key[2]].append((key in own, number, question.weight))
        pairs += [
            (pair in related, number, question.weight)
            for pair in sorted({key[:2] for key in inside})
        ]

    def recall(items: Sequence[_Item]) -> PrecisionEstimate:
        has = np.array([item[0] for item in items], bool)
        images = np.array([item[1] for item in items], np.int64)
        weight = np.array([item[2] for item in items], np.float64)
        left = (
            1 - len(asked) / plan.images if all(question.weight == 1 for question in asked) else 1.0
        )
        return estimate_clustered(has, images, weight, left)

    common = Counter(
        pair for each in asked for pair in combinations(sorted(answers[each.place]), 2)
    ).most_common(1)
    people = None
    if common:
        (one, other), _ = common[0]
        named = [answers[question.place] for question in asked]
        both = [(each[one], each[other]) for each in named if one in each and other in each]
        counts = [(len(a & b), len(a - b), len(b - a)) for a, b in both]
        people = recapture((one, other), *np.array(counts).T)
    return RecallMeasures(
        plan=plan.plan,
        images=plan.images,
        answered=len(asked),
        open=len(plan.questions) - len(asked),
        recall=recall([item for items in found.values() for item in items]),
        pairs=recall(pairs),
        predicates={
            name: recall(found[name])
            for name in sorted(found, key=lambda name: (-len(found[name]), name))
        },
        people=people,
    )
