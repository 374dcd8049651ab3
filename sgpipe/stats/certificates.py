"""Certificates: which sets of relations are shown to have a precision, valid at whatever moment
people stop.

The relations of a run are a finite population. A set contains those of a minimum confidence;
`cells` divide it by confidence and by the bins of another model's score. People answer round after
round. Each next relation is drawn without replacement with a chance in proportion to the weight of
its cell. So whatever relations have in common, such as an image, the chance that the next one is
wrong follows from the wrong ones left alone. If the set had too many, bets that answers are right
would lose on average: capital, which starts at 1, exceeds 1/α with a chance of at most α, ever
(Ville 1939; Waudby-Smith and Ramdas 2024, Estimating means of bounded random variables by betting).

The bets are likelihood ratios of predicted error rates against the nearest rates of which the set
breaks the promise (Grünwald, de Heide and Koolen 2024, Safe testing), and are fixed before a round.
The score decides what is predicted and asked: a bad one costs answers, never validity. An open,
unsure or disputed answer counts as wrong. More right answers never mean less capital, so it does
not matter in which order, by whom and when questions are answered.

A family of groups, such as all predicates, is controlled by Holm's (1979) procedure: the chance
that anything at all is wrongly certified is at most α. The chance that a bet wins wrongly holds for
the largest capital ever, so it may be looked at as often as people like, and Holm's procedure asks
for no independence (see `family_confidence`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray

from sgpipe.stats.precision import short_threshold
from sgpipe.utils.odds import Floats, from_log_odds

Ints = NDArray[np.int64]

# error rates that are bet on, as shares of the one that the promise allows
_LEVELS = np.array([0.1, 0.35, 0.6])
BETS = len(_LEVELS)
# expected change of the log odds of an error per standard deviation of a score
_SLOPE = 0.7
_SPREAD = 1.0
# of weights: near the optimum for errors of any rate, found numerically
_POWER = 0.25
_LEAST = 0.1
_CAPITAL = 0.8  # the share of the capital left that a new start takes
# answers that a set may take if a chain starts at it; those that are too many
_QUICK = 250
_MOST = 3000
# log capital if it is certain; what is taken for 0
_ALL = 1e3
TINY = 1e-9
# shares of the relations: that the nested sets contain; between bins, the most doubtful first
_SETS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8, 1.0)
_BINS = (0.03, 0.07, 0.13, 0.22, 0.35, 0.5, 0.7)
# in groups of fewer relations
_FEW_SETS = (0.25, 0.5, 0.75, 1.0)
_FEW_BINS = (0.1, 0.4)
_FEW = 500
_ONE_SET = 100  # groups of fewer relations are one set
_NORMAL = NormalDist()


@dataclass(frozen=True, eq=False)
class Group:
    """The relations of a predicate, or all.

    Attributes:
        predicate: None: the group is all relations.
        rows: of the relations in the table of all, `[relations]`.
        cells: that the relations are in, `[relations]`.
        thresholds, sizes: of the nested sets.
        level, scores: of cells, as `Round` has them.
    """

    predicate: str | None
    rows: Ints
    cells: Ints
    thresholds: list[float]
    sizes: list[int]
    level: Ints
    scores: Floats

    @classmethod
    def divide(
        cls,
        predicate: str | None,
        rows: Ints,
        confidence: Floats,
        prediction: Floats,
        is_one_set: bool,
    ) -> Group:
        """Divide relations into nested sets and cells.

        Args:
            predicate: of the group; None: it is all relations.
            rows: of the relations in the table of all, `[relations]`.
            confidence, prediction: of the relations, `[relations]`; a prediction may be NaN.
            is_one_set: whether only the set of all is of interest.
        """
        is_small = len(rows) < _FEW
        is_one_set = is_one_set or len(rows) < _ONE_SET
        thresholds = _thresholds(confidence, is_one_set, is_small)
        cuts = -np.array(thresholds, np.float32)
        level = np.searchsorted(cuts, -confidence.astype(np.float32)).astype(np.int64)
        sizes = np.bincount(level, minlength=len(thresholds))
        level_scores = np.zeros(1)
        if len(thresholds) > 1:
            level_scores = _normal_scores((np.cumsum(sizes) - sizes / 2) / len(rows))

        bins, bin_scores = _bins(-prediction, _FEW_BINS if is_small else _BINS)
        pairs, pair_of_row = np.unique(level * len(bin_scores) + bins, return_inverse=True)
        pair_level, pair_bin = np.divmod(pairs, len(bin_scores))
        columns = [pair_level, level_scores[pair_level], bin_scores[pair_bin]]
        scores = np.round(np.column_stack(columns), 4)
        cells, cell_of_pair = np.unique(scores, axis=0, return_inverse=True)
        return cls(
            predicate=predicate,
            rows=rows,
            cells=cell_of_pair[pair_of_row],
            thresholds=thresholds,
            sizes=np.cumsum(sizes).tolist(),
            level=cells[:, 0].astype(np.int64),
            scores=cells[:, 1:],
        )


def _thresholds(confidence: Floats, is_one_set: bool, is_small: bool) -> list[float]:
    """Return the minimum confidences of the nested sets, the strictest first."""
    shares: tuple[float, ...] = _FEW_SETS if is_small else _SETS
    if is_one_set:
        shares = (1.0,)
    falling = np.sort(confidence)[::-1]
    limits = [float(falling[math.ceil(share * len(falling)) - 1]) for share in shares]
    thresholds = {short_threshold(limit) for limit in limits if math.isfinite(limit)}
    return sorted(thresholds, reverse=True) or [0.0]


def _normal_scores(shares: Floats) -> Floats:
    return np.array([_NORMAL.inv_cdf(share) for share in shares])


def _bins(doubt: Floats, shares: Sequence[float]) -> tuple[Ints, Floats]:
    """Return the bins of relations, and the standardised score of each bin.

    The most doubtful relations are in the first bin, those of unknown doubt (NaN) in the last.
    """
    is_known = ~np.isnan(doubt)
    edges = np.zeros(0)
    if is_known.any():
        edges = np.unique(-np.quantile(doubt[is_known], 1 - np.array(shares)))
    unknown = len(edges) + 1
    bins = np.where(is_known, np.searchsorted(edges, -doubt), unknown)
    sizes = np.bincount(bins[is_known], minlength=unknown + 1)
    used = np.flatnonzero(sizes)
    middle = (np.cumsum(sizes) - sizes / 2)[used] / max(int(is_known.sum()), 1)
    scores = np.zeros(unknown + 1)
    if len(used) > 1:
        scores[used] = -_normal_scores(middle)
    return bins.astype(np.int64), scores


@dataclass(frozen=True, eq=False)
class Round:
    """A round of questions about a group of relations.

    Cells that are not listed are not asked about.

    Attributes:
        level: the first set, counted from the strictest, that contains the cell, `[cells]`.
        scores: what predicts that relations of the cell are wrong, standardised, `[cells, scores]`.
        left: relations of the cell that were not asked before, `[cells]`. weight: of each of them,
            above 0, `[cells]`.
        slopes: the predicted change of the log odds of an error per unit of each score, `[scores]`.
        start: the set at which a new chain of tests starts, with `capital`; None: no chain starts.
        asked: the cells of the questions in order, `[questions]`.
        wrong: whether each answer is wrong, unsure, disputed or open, `[questions]`. is_open:
            whether it is open.
    """

    level: Ints
    scores: Floats
    left: Floats
    weight: Floats
    slopes: Floats
    start: int | None
    capital: float
    asked: Ints
    wrong: NDArray[np.bool_]
    is_open: NDArray[np.bool_]


@dataclass(frozen=True)
class Standing:
    """What the answers show so far.

    Attributes:
        reached: the largest set with the precision; None: no set has it.
        tested: the set that is tested next; None: no test has started, or the set of all relations
            is reached.
        evidence: the capital of this test, which needs 1. started: how many tests have. rest:
            capital for other starts.
        is_complete: whether a chain that starts with the strictest set has reached the largest, so
            each set has it.
    """

    reached: int | None
    tested: int | None
    evidence: float
    started: int
    rest: float
    is_complete: bool


def most_errors(relations: int, precision: float) -> int:
    return math.floor((1 - precision) * relations + TINY)


def evaluate(
    rounds: Sequence[Round], sizes: Sequence[int], precision: float, confidence: float
) -> Standing:
    """Return which nested sets have the precision; `sizes`: their relations, the strictest first.

    A chain of tests starts at some set and continues with larger ones, each reached only after the
    one before. Chains share a capital of 1, so that the confidence holds for whichever set is the
    largest one reached.
    """
    needed = -math.log(1 - confidence)
    reached = None
    rest = 1.0
    tested = None
    evidence = 0.0
    starts = 0
    is_complete = False
    for number, opening in enumerate(rounds):
        if opening.start is None:
            continue
        rest = rest - opening.capital
        starts = starts + 1
        for tested in range(opening.start, len(sizes)):
            capital = math.log(opening.capital) + _best_capital(
                rounds, number, tested, sizes[tested], precision
            )
            evidence = math.exp(min(capital - needed, 0))
            if capital < needed:
                break
            reached = tested if reached is None else max(reached, tested)
            is_complete |= opening.start == 0 and tested == len(sizes) - 1
    if reached == len(sizes) - 1:  # a later chain may be open
        tested = None
        evidence = 1.0
    return Standing(reached, tested, evidence, starts, rest, is_complete)


def family_confidence(
    confidence: float, sizes: Ints, is_complete: NDArray[np.bool_], total: int
) -> Floats:
    """Return the confidence that each group needs, so that all of a family hold together with
    `confidence`, `[groups]`.

    Groups share the chance to be wrong in proportion to their relations. A complete group hands its
    share on to the others: unless something is wrongly certified already, it is not one that can be.

    Args:
        confidence: of the family.
        sizes: relations of each group, `[groups]`.
        is_complete: as `Standing` has it, `[groups]`.
        total: relations of the family, also of groups that are not among these.
    """
    complete = np.where(is_complete, sizes, 0)
    waiting = total - (complete.sum() - complete)  # the group itself included
    needed: Floats = 1 - (1 - confidence) * sizes / waiting
    return needed


def _best_capital(
    rounds: Sequence[Round], first: int, number: int, size: int, precision: float
) -> float:
    limit = most_errors(size, precision) + 1
    capital = np.full(BETS, -math.log(BETS))
    best = 0.0
    wrong = 0
    known = 0
    for position, round_ in enumerate(rounds):
        if position >= first and round_.level.max() >= number and len(round_.asked):
            gained = gains(round_, number, size, limit, limit - wrong)
            paths = capital + np.cumsum(gained, axis=0)
            top = paths.max(axis=1)
            total = top + np.log(np.exp(paths - top[:, None]).sum(axis=1))
            best = max(best, float(total.max(initial=0)))
            capital = paths[-1] if len(paths) else capital
        is_inside = (round_.level <= number)[round_.asked]
        wrong += int(round_.wrong[is_inside].sum())
        known += int((round_.wrong & ~round_.is_open)[is_inside].sum())
    return best if known < limit else -math.inf  # answers that were changed may break the promise


def gains(round_: Round, number: int, size: int, limit: int, needed: int) -> Floats:
    """Return what answers of a round about a set add to the log capital, `[answers, bets]`.

    Args:
        round_: whose answers count.
        number: of the set. size: its relations.
        limit: number of wrong relations that breaks the promise.
        needed: the same among those not asked before.
    """
    inside = round_.level <= number
    asked = inside[round_.asked]
    weight = round_.weight[inside]
    left = round_.left[inside]
    bets = place_bets(round_.scores[inside] @ round_.slopes, weight, left, limit / size)
    cells = (np.cumsum(inside) - 1)[round_.asked[asked]]
    return settle_bets(bets, weight, left, cells, round_.wrong[asked], np.array(needed))


def place_bets(shape: Floats, weight: Floats, left: Floats, limit: float) -> tuple[Floats, Floats]:
    """Return the stakes `[…, bets]` and control variates `[…, bets, cells]` of likelihood ratios.

    The ratios are of predicted error rates q against those rates θ with a mean of `limit` that are
    nearest in relative entropy, where θ - q = μ r θ (1 - θ), with the stake μ, and r, the share of
    a cell over its chance to be drawn.

    Args:
        shape: predicted log odds of errors, but for a constant.
        weight, left: as `Round` has them; all `[…, cells]`.
    """
    share = left / left.sum(-1, keepdims=True)
    chance = weight * left / (weight * left).sum(-1, keepdims=True)
    ratio = np.divide(share, chance, out=np.ones_like(share), where=chance > 0)[..., None, :]
    share = share[..., None, :]
    goal = np.log(_LEVELS * limit / (1 - _LEVELS * limit))
    shift = goal - (shape[..., None, :] * share).sum(-1)
    for _ in range(8):  # Newton's method for the log odds of the mean, which are nearly linear
        predicted = np.clip(from_log_odds(shift[..., None] + shape[..., None, :]), 1e-12, 1 - 1e-12)
        mean = (predicted * share).sum(-1)
        slope = (predicted * (1 - predicted) * share).sum(-1) / (mean * (1 - mean))
        shift = shift + np.clip((goal - np.log(mean / (1 - mean))) / slope, -2, 2)

    def nearest(stake: Floats) -> Floats:
        x = stake[..., None] * ratio
        return 2 * predicted / (np.sqrt((1 - x) ** 2 + 4 * x * predicted) + 1 - x)

    low = np.full(shift.shape, -12.0)
    high = np.full(shift.shape, 12.0)
    for _ in range(22):
        middle = (low + high) / 2
        below = (nearest(np.exp(middle)) * share).sum(-1) < limit
        low = np.where(below, middle, low)
        high = np.where(below, high, middle)
    stake = np.exp(low)
    right = (1 - predicted) / np.maximum(1 - nearest(stake), 1e-12)
    return stake, (right - 1) / (stake[..., None] * ratio)


def settle_bets(
    bets: tuple[Floats, Floats],
    weight: Floats,
    left: Floats,
    cells: Ints,
    wrong: NDArray[np.bool_],
    needed: Ints,
) -> Floats:
    """Return what each answer adds to the log capital of each bet, `[…, answers, bets]`.

    `needed` `[…]`: how many wrong relations, of those that are left, break the promise.

    Args:
        bets, weight, left: as of `place_bets`.
        cells, wrong: of the answers, `[…, answers]`.
    """
    stake = bets[0][..., None, :]
    control = bets[1]
    taken = cells[..., None] == np.arange(left.shape[-1])
    remain = left[..., None, :] - np.cumsum(taken, axis=-2) + taken  # before each answer
    size = remain.sum(-1, keepdims=True)
    errors = needed[..., None, None] - (np.cumsum(wrong, axis=-1) - wrong)[..., None]
    ratio = (remain * weight[..., None, :]).sum(-1, keepdims=True) / size / weight[..., None, :]
    by_cell = np.swapaxes(control, -1, -2)
    expected = (errors - remain @ by_cell) / size
    surprise = wrong[..., None] - np.take_along_axis(by_cell, cells[..., None], -2)
    observed = surprise * np.take_along_axis(ratio, cells[..., None], -1)
    possible = np.where(remain > 0, ratio, 0)[..., None, :] * (1 - control)[..., None, :, :]
    room = np.max(possible, axis=-1) - expected
    gain = expected - observed
    part = np.minimum(stake, 0.999 / np.maximum(room, TINY))
    # without room, the number that would break the promise is out of reach
    certain = np.where(gain > TINY, _ALL, 0.0)
    logs: Floats = np.where(room > TINY, np.log1p(np.maximum(part * gain, -0.9999)), certain)
    return logs


def fit_errors(scores: Floats, judged: Floats, wrong: Floats, allowed: float) -> Floats:
    """Fit log odds of errors by logistic regression.

    The prior: half of the allowed error rate, and scores that tell something; a few answers
    outweigh it.

    Args:
        scores: of cells, `[…, cells, scores]`.
        judged, wrong: how many of a cell's relations are, `[…, cells]`.
        allowed: the error rate that the promise allows.

    Returns:
        The log odds of an error at scores of 0, and their slopes, `[…, 1 + scores]`.
    """
    number = scores.shape[-1]
    prior = np.array([math.log(0.5 * allowed / (1 - 0.5 * allowed)), *[_SLOPE] * number])
    precision = np.array([1.0, *[_SPREAD**-2] * number])
    inputs = np.concatenate([np.ones_like(scores[..., :1]), scores], axis=-1)
    values = np.broadcast_to(prior, (*inputs.shape[:-2], number + 1)).copy()
    for _ in range(8):  # Newton's method
        chance = from_log_odds((inputs @ values[..., None])[..., 0])
        curvature = (
            np.swapaxes(inputs * (judged * chance * (1 - chance))[..., None], -1, -2) @ inputs
        )
        slope = (inputs * (wrong - judged * chance)[..., None]).sum(-2) - precision * (
            values - prior
        )
        step = np.linalg.solve(curvature + np.diag(precision), slope[..., None])[..., 0]
        values = values + step / np.maximum(1.0, np.abs(step).max(-1, keepdims=True))
    return values


def fit_rounds(rounds: Sequence[Round], allowed: float) -> Floats:
    """Fit the log odds of errors, as `fit_errors`, to the answers of rounds."""
    scores: list[Floats] = [np.zeros((0, 2))]
    judged: list[Floats | Ints] = [np.zeros(0)]
    wrong: list[Floats | Ints] = [np.zeros(0)]
    for round_ in rounds:
        is_known = ~round_.is_open
        cells = round_.asked[is_known]
        number = len(round_.scores)
        scores.append(round_.scores)
        judged.append(np.bincount(cells, minlength=number))
        wrong.append(np.bincount(cells, round_.wrong[is_known], number))
    return fit_errors(
        np.concatenate(scores), np.concatenate(judged), np.concatenate(wrong), allowed
    )


def plan_round(
    rounds: Sequence[Round], group: Group, left: Floats, precision: float, confidence: float
) -> tuple[Round, Ints, Floats] | None:
    """Plan the next round of questions about a group.

    The first round explores if there are several sets. The next one starts a chain at the largest
    set that seems to take few answers, a later one another if that takes half of the answers that
    going on would.

    Args:
        rounds: those before.
        group: that is asked about.
        left: relations of each of its cells that were not asked before, `[cells]`.
        precision, confidence: that the certificate promises.

    Returns:
        The round without questions, its cells, and the predicted log odds of errors; None: nothing
        is left to ask.
    """
    last = len(group.sizes) - 1
    allowed = 1 - precision + TINY
    standing = evaluate(rounds, group.sizes, precision, confidence)
    if standing.reached == last:
        return None
    odds = np.round(fit_rounds(rounds, allowed), 4)
    capital = round(standing.rest * _CAPITAL, 6) if last else 1.0

    def answers_to(number: int, evidence: float) -> int:
        inside = group.level <= number
        answers = answers_needed(odds, group.scores[inside], left[inside], allowed, evidence)
        return answers or _MOST

    start = None if last else 0
    if rounds:
        start = _start_of_chain(standing, last, capital * (1 - confidence), answers_to)
    focus = start
    if focus is None:
        focus = last if standing.tested is None else standing.tested
    cells = np.flatnonzero((group.level <= focus) & (left > 0))
    if not len(cells):
        return None
    explores = last > 0 and not rounds
    round_ = Round(
        level=group.level[cells],
        scores=group.scores[cells],
        left=left[cells],
        weight=_weight_of_draws(group, cells, left, odds, explores),
        slopes=odds[1:],
        start=start,
        capital=0.0 if start is None else capital,
        asked=np.zeros(0, np.int64),
        wrong=np.zeros(0, bool),
        is_open=np.zeros(0, bool),
    )
    return round_, cells, odds


def _weight_of_draws(
    group: Group, cells: Ints, left: Floats, odds: Floats, explores: bool
) -> Floats:
    """Return the weight of a relation of each cell, at most 1; `explores`: as many of each level
    are drawn, whatever is predicted.
    """
    if explores:
        level = group.level[cells]
        weight = 1 / np.bincount(level, left[cells])[level]
    else:
        predicted = from_log_odds(odds[0] + group.scores[cells] @ odds[1:])
        weight = weigh(predicted, left[cells])
    return np.array([float(f"{share:.4g}") for share in weight / weight.max()])


def _start_of_chain(
    standing: Standing, last: int, evidence: float, answers_to: Callable[[int, float], int]
) -> int | None:
    """Return the set at which a new chain of tests starts; None: no chain starts.

    It is the largest set that takes few answers, or else the one that takes the fewest.

    Args:
        standing: so far.
        last: the set of all relations.
        evidence: that a new chain starts with.
        answers_to: returns how many answers a set takes with some evidence.
    """
    if last == 0 or standing.reached is not None:
        return None
    needed = [answers_to(number, evidence) for number in range(last + 1)]
    quick = [number for number, answers in enumerate(needed) if answers <= _QUICK]
    numbers = range(len(needed))
    best = quick[-1] if quick else min(numbers, key=lambda number: (needed[number], -number))
    if standing.tested is None:
        return best
    is_better = best < standing.tested and (
        2 * needed[best] < answers_to(standing.tested, standing.evidence)
    )
    return best if is_better else None


def weigh(rates: Floats, left: Floats) -> Floats:
    """Return the weights of draws by predicted error rates, `[…, cells]`."""
    mean = (rates * left).sum(-1, keepdims=True) / np.maximum(left.sum(-1, keepdims=True), 1)
    weight: Floats = (rates + _LEAST * mean) ** _POWER
    return weight


def answers_needed(
    odds: Floats,
    scores: Floats,
    left: Floats,
    allowed: float,
    evidence: float,
    *,
    all_right: bool = False,
) -> int | None:
    """Estimate how many answers a set takes until its evidence is 1.

    Args:
        odds: as `fit_errors` returns them.
        scores, left: of the set's cells, `[cells, scores]` and `[cells]`.
        allowed: the share of errors that the promise allows.
        evidence: so far.
        all_right: assume that no further answer is wrong, not as many as so far.

    Returns:
        The number of answers, or None if they are too many.
    """
    if not left.sum():
        return None
    shape = scores @ odds[1:]
    share = left / left.sum()
    rates = from_log_odds(odds[0] + shape)
    weight = weigh(rates, left)
    stake, control = place_bets(shape, weight, left, allowed)
    chance = weight * left / (weight @ left)
    ratio = np.divide(share, chance, out=np.ones_like(share), where=chance > 0)
    right = stake[:, None] * control * ratio
    wrong = np.zeros_like(rates) if all_right else rates
    growth = (
        np.log1p(right) * (1 - wrong)
        + np.log1p(np.maximum(right - stake[:, None] * ratio, -0.9999)) * wrong
    )
    speed = float((growth @ chance).max())
    missing = -math.log(max(evidence, 1e-9))
    return math.ceil(missing / speed) if speed > missing / _MOST else None
