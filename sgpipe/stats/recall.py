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
from itertools import chain, combinations
from typing import Any, NamedTuple, TypedDict

import numpy as np
from numpy.typing import NDArray

from sgpipe.errors import UserError
from sgpipe.records import NO_OBJECT
from sgpipe.stages.matching import normalise_predicate
from sgpipe.stats.precision import PrecisionEstimate, estimate_clustered
from sgpipe.storage.judgement_lines import MOST_QUESTIONS, BlindQuestion, NamedRelation, RecallPlan
from sgpipe.storage.judgements import JudgementLog
from sgpipe.utils.console import count, single_line

Rows = Callable[[str, Sequence[Any]], list[tuple[Any, ...]]]
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


class Named(NamedTuple):
    """A relation that a person named; the predicate is normalised."""

    subject: int
    object: int
    predicate: str

    @property
    def pair(self) -> tuple[int, int]:
        return self.subject, self.object


class _Answer(NamedTuple):
    """Something that was named in an image.

    Attributes:
        is_predicted: the run has it.
        image: its number.
        weight: of the image.
    """

    is_predicted: bool
    image: int
    weight: float


_NamedByPerson = dict[str, set[Named]]  # in an image


def draw_recall(rows: Rows, number: int, boxes: int, seed: int) -> tuple[int, list[BlindQuestion]]:
    """Draw images, and at most `boxes` boxes of each.

    Returns:
        The number of images that can be asked about, and a question about each drawn one.

    Raises:
        UserError: the numbers are out of range, or no image has two boxes.
    """
    if not 1 <= number <= MOST_QUESTIONS or boxes < 2:
        raise UserError(
            f"{number} questions about {boxes} boxes: expected 1 to {MOST_QUESTIONS:,} about 2 or"
            " more"
        )
    images = rows(_IMAGES, [NO_OBJECT, seed, number])
    if not images:
        raise UserError("no image has two boxes to ask about")
    questions = []
    for split, image_id, numbers, _ in images:
        digest = hashlib.sha256(f"{seed}\0{split}\0{image_id}".encode()).digest()
        generator = np.random.default_rng(list(digest))
        chosen = generator.choice(numbers, min(boxes, len(numbers)), replace=False)
        weight = math.comb(len(numbers), 2) / math.comb(len(chosen), 2)
        questions.append(BlindQuestion(split, image_id, sorted(chosen.tolist()), weight))
    total = images[0][3]
    return total, questions


def questions_left(plan: RecallPlan, log: JudgementLog, by: str) -> list[int]:
    """Return the numbers of the questions that a person has not answered, skipped ones last."""
    answers = log.blind_answers(plan.plan)
    unanswered = []
    skipped = []
    for number, question in enumerate(plan.questions):
        answer = answers.get(question.place, {}).get(by)
        if answer is None:
            unanswered.append(number)
        elif answer.relations is None:
            skipped.append(number)
    return unanswered + skipped


@dataclass(frozen=True)
class IndependentMisses:
    """The number of relations (95% interval), if people miss relations independently."""

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
    """Estimate the number of relations from what two people named, in both and in one of the lists.

    Args:
        people: their names.
        both: how many relations both named, `[images]`.
        first, second: how many only one of them named, `[images]`.

    Returns:
        The estimate, or None if they named nothing.

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


class Bar(TypedDict):
    """A bar of a page: how much of it is filled, and the lines beside it."""

    share: float | None
    lines: list[str]


@dataclass(frozen=True)
class RecallMeasures:
    """What the answers to a recall plan say of the `images` that can be asked about.

    `recall`: of the named relations; `pairs`: of related pairs of boxes, whatever the predicate;
    `predicates`: the most often named first; `people`: the two who answered the most questions in
    common.
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
        """Yield sentences; `estimate_total` adds the number of relations under independence."""
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

    def as_groups(self) -> list[Bar]:
        """Return a bar for the plan, and one for the recall of each predicate."""
        share = self.answered / (self.answered + self.open)
        groups: list[Bar] = [{"share": share, "lines": list(self.describe())}]
        for name, recall in self.predicates.items():
            groups.append({"share": recall.value, "lines": [f"{name}: {recall}"]})
        return groups


def measure_recall(plan: RecallPlan, log: JudgementLog, rows: Rows) -> RecallMeasures:
    """Compare what people named with the relations of the run.

    What anyone named holds.

    Args:
        plan: what people were asked.
        log: their answers.
        rows: runs SQL, as `Index.rows`.
    """
    answers = _named_relations(plan, log)
    answered = [question for question in plan.questions if answers.get(question.place)]
    predicted = _predicted_relations(answered, rows)
    by_predicate: defaultdict[str, list[_Answer]] = defaultdict(list)
    pairs: list[_Answer] = []
    for number, question in enumerate(answered):
        named = _named_between_boxes(question, answers[question.place])
        relations = predicted[question.place]
        for relation in sorted(named):
            answer = _Answer(relation in relations, number, question.weight)
            by_predicate[relation.predicate].append(answer)
        related = {relation.pair for relation in relations}
        for pair in sorted({relation.pair for relation in named}):
            pairs.append(_Answer(pair in related, number, question.weight))

    unanswered = _share_unanswered(plan, answered)
    names = sorted(by_predicate, key=lambda name: (-len(by_predicate[name]), name))
    return RecallMeasures(
        plan=plan.plan,
        images=plan.images,
        answered=len(answered),
        open=len(plan.questions) - len(answered),
        recall=_estimate(list(chain.from_iterable(by_predicate.values())), unanswered),
        pairs=_estimate(pairs, unanswered),
        predicates={name: _estimate(by_predicate[name], unanswered) for name in names},
        people=_compare_people([answers[question.place] for question in answered]),
    )


def _named_relations(plan: RecallPlan, log: JudgementLog) -> dict[tuple[str, str], _NamedByPerson]:
    """Return what each person named in each image, without the questions that they skipped."""
    answers: dict[tuple[str, str], _NamedByPerson] = {}
    for place, by_person in log.blind_answers(plan.plan).items():
        answers[place] = {}
        for person, answer in by_person.items():
            if answer.relations is not None:
                answers[place][person] = set(map(_named, answer.relations))
    return answers


def _named(relation: NamedRelation) -> Named:
    return Named(relation.subject, relation.object, normalise_predicate(relation.predicate))


def _predicted_relations(
    questions: Sequence[BlindQuestion], rows: Rows
) -> defaultdict[tuple[str, str], set[Named]]:
    """Return the relations of the run in the images of questions."""
    predicted: defaultdict[tuple[str, str], set[Named]] = defaultdict(set)
    image_ids = [question.image_id for question in questions]
    for split, image_id, subject, object_, predicate in rows(_RELATIONS, [image_ids]):
        predicted[split, image_id].add(Named(subject, object_, normalise_predicate(predicate)))
    return predicted


def _named_between_boxes(question: BlindQuestion, answers: _NamedByPerson) -> set[Named]:
    """Return what anyone named between two boxes of the question."""
    boxes = set(question.boxes)
    named: set[Named] = set().union(*answers.values())
    return {relation for relation in named if boxes.issuperset(relation.pair)}


def _share_unanswered(plan: RecallPlan, answered: Sequence[BlindQuestion]) -> float:
    """Return the share of the images that nobody answered for; 1, as of very many images, where
    they were not drawn alike.
    """
    if any(question.weight != 1 for question in answered):
        return 1.0
    return 1 - len(answered) / plan.images


def _estimate(answers: Sequence[_Answer], unanswered: float) -> PrecisionEstimate:
    """Return the share of what was named that the run has.

    Args:
        unanswered: the share of the images that nobody answered for.
    """
    is_predicted, images, weight = np.array(answers, np.float64).reshape(-1, 3).T.copy()
    return estimate_clustered(
        is_predicted.astype(bool), images.astype(np.int64), weight, unanswered
    )


def _compare_people(answers: Sequence[_NamedByPerson]) -> Completeness | None:
    """Compare the two people who answered the most questions in common; None: nobody shares one."""
    common = Counter[tuple[str, str]]()
    for by_person in answers:
        common.update(combinations(sorted(by_person), 2))
    if not common:
        return None
    [((one, other), _)] = common.most_common(1)
    counts = []
    for by_person in answers:
        if one in by_person and other in by_person:
            first = by_person[one]
            second = by_person[other]
            counts.append((len(first & second), len(first - second), len(second - first)))
    return recapture((one, other), *np.array(counts).T)
