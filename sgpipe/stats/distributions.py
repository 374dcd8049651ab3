"""Distributions over a run: confidences, frequencies of predicates, and CLIP's agreement with the relations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgpipe.storage.database import Database

BINS = 20


@dataclass(frozen=True)
class Confidence:
    """The distribution of confidences.

    Attributes:
        histogram: relations by confidence, in 20 bins of equal width from 0 to 1.
        scored: relations with a confidence. `unscored`: relations without, that is, human annotations.
        mean, median, highest: of the scored relations; None without any.
    """

    histogram: list[int]
    scored: int
    unscored: int
    mean: float | None
    median: float | None
    highest: float | None


def measure_confidence(database: Database) -> Confidence:
    """Measure the confidences of all relations."""
    rows = database.rows(
        f"""select least(greatest(floor(confidence::double * {BINS}), 0), {BINS - 1})::int as bin, count(*)
        from relations where confidence is not null group by 1"""
    )
    counts = dict(rows)
    [values] = database.rows(
        """select count(confidence), count(*) - count(confidence), avg(confidence)::double,
        quantile_disc(confidence, 0.5)::double, max(confidence)::double from relations"""
    )
    return Confidence([counts.get(at, 0) for at in range(BINS)], *values)


_HEAD = 10


@dataclass(frozen=True)
class LongTail:
    """How unevenly a total is distributed over kinds.

    Attributes:
        kinds: number of kinds. `total`: sum of their counts.
        head_share: share of the total that belongs to the ten most frequent kinds.
        half: number of the most frequent kinds that together have half of the total.
        singletons: kinds that occur once.
        gini: Gini coefficient, 0 if all kinds are equally frequent, close to 1 if one kind dominates.
        entropy: in bits; `effective_kinds` is 2 to the power of it.
    """

    kinds: int
    total: int
    head_share: float
    half: int
    singletons: int
    gini: float
    entropy: float
    effective_kinds: float


def measure_long_tail(counts: Sequence[int]) -> LongTail:
    """Measure the long tail of counts, which may be in any order."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    total = ordered.sum()
    if not total:
        return LongTail(0, 0, 0.0, 0, 0, 0.0, 0.0, 0.0)
    shares = ordered / total
    ranks = np.arange(len(ordered), 0, -1)  # 1 for the rarest
    gini = (2 * (ranks * shares).sum() - (len(ordered) + 1)) / len(ordered)
    entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()) + 0.0  # no -0.0
    return LongTail(
        kinds=len(ordered),
        total=int(total),
        head_share=float(shares[:_HEAD].sum()),
        half=int(np.searchsorted(np.cumsum(shares), 0.5 - 1e-12)) + 1,
        singletons=int((ordered == 1).sum()),
        gini=float(gini),
        entropy=entropy,
        effective_kinds=2.0**entropy,
    )


@dataclass(frozen=True)
class AgreementMeasures:
    """CLIP's agreement with the relations, in ranks, as its scores mean something only relative to other texts.

    All values but the counts are None if nothing was scored.

    Attributes:
        scored, unscored: relations.
        first: share of relations whose text fits better than all contrast texts. `chance`: the same for random ranks.
        reciprocal_rank: mean of 1 / rank.
        beats_swapped: share that fits better than the same text with subject and object swapped, where that differs.
        correlation: Spearman's, between confidence and score.
    """

    scored: int
    unscored: int
    score: float | None
    first: float | None
    chance: float | None
    reciprocal_rank: float | None
    beats_swapped: float | None
    correlation: float | None


_MEASURES = """
    with relations as (
        select unnest(relations).confidence as confidence, unnest(agreement) as clip from records),
    ranks as (
        select rank() over (order by confidence) as a, rank() over (order by clip.score) as b
        from relations where clip is not null and confidence is not null)
    select count(clip), count(*) - count(clip), avg(clip.score), avg((clip.rank = 1)::int),
        avg(1 / (clip.contrasts + 1)) filter (clip is not null), avg(1 / clip.rank),
        avg((clip.score > clip.swapped)::int), (select corr(a, b) from ranks)
    from relations
"""


def measure_agreement(database: Database) -> AgreementMeasures | None:
    """The agreement that `sgpipe score` wrote into the run; None without it."""
    if not database.scored:
        return None
    [row] = database.rows(_MEASURES)
    return AgreementMeasures(*row)
