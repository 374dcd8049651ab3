"""How confidences are spread.

How unevenly relations are spread over predicates.

What CLIP thinks of the relations, in ranks: its scores mean something only beside those of other texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sgpipe.storage.database import Database

BINS = 20


@dataclass(frozen=True)
class Confidence:
    """Confidences of a run.

    Attributes:
        histogram: relations by confidence, in 20 bins of equal width from 0 to 1.
        scored: relations with a confidence; `unscored`: those without, which people annotated.
        mean, median, highest: of the scored; None without any.
    """

    histogram: list[int]
    scored: int
    unscored: int
    mean: float | None
    median: float | None
    highest: float | None


def measure_confidence(database: Database) -> Confidence:
    """The confidences of all relations."""
    rows = database.rows(
        f"""select least(greatest(floor(confidence::double * {BINS}), 0), {BINS - 1})::int as bin, count(*)
        from relations where confidence is not null group by 1"""
    )
    found = dict(rows)
    [values] = database.rows(
        """select count(confidence), count(*) - count(confidence), avg(confidence)::double,
        quantile_disc(confidence, 0.5)::double, max(confidence)::double from relations"""
    )
    return Confidence([found.get(at, 0) for at in range(BINS)], *values)


_HEAD = 10


@dataclass(frozen=True)
class Tail:
    """The long tail of a frequency table.

    Attributes:
        kinds: how many there are; `total`: the sum of their counts.
        head_share: share of the total that the ten most frequent have.
        half: how many of the most frequent have half of the total.
        singletons: kinds that occur once.
        gini: 0 where all are equally frequent, towards 1 where one has everything.
        entropy: in bits; `effective_kinds` is 2 to its power.
    """

    kinds: int
    total: int
    head_share: float
    half: int
    singletons: int
    gini: float
    entropy: float
    effective_kinds: float


def measure_tail(counts: Sequence[int]) -> Tail:
    """The long tail of these counts, in any order."""
    ordered = np.sort(np.asarray(counts, dtype=np.float64))[::-1]
    total = ordered.sum()
    if not total:
        return Tail(0, 0, 0.0, 0, 0, 0.0, 0.0, 0.0)
    shares = ordered / total
    ranks = np.arange(len(ordered), 0, -1)  # 1 for the rarest
    gini = (2 * (ranks * shares).sum() - (len(ordered) + 1)) / len(ordered)
    entropy = float(-(shares[shares > 0] * np.log2(shares[shares > 0])).sum()) + 0.0  # no -0.0
    return Tail(
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
    """Agreement of the scored relations; everything is None where nothing was scored.

    Attributes:
        scored, unscored: relations.
        first: share whose text fits best of all its contrast texts; `chance`: what random ranks would give.
        reciprocal_rank: mean of 1 / rank.
        beats_swapped: share that fits better than with subject and object exchanged, of those where that differs.
        correlation: Spearman's, of confidence and score.
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
        select unnest(relations).confidence as confidence, unnest(agreement) as found from records)
    select count(found), count(*) - count(found), avg(found.score), avg((found.rank = 1)::int),
        avg(1 / (found.contrasts + 1)) filter (found is not null), avg(1 / found.rank),
        avg((found.score > found.swapped)::int),
        (select corr(a, b) from (select rank() over (order by confidence) as a, rank() over (order by found.score) as b
            from relations where found is not null and confidence is not null))
    from relations
"""


def measure_agreement(database: Database) -> AgreementMeasures | None:
    """The agreement that `sgpipe score` wrote into the run; None if it did not."""
    if not database.scored:
        return None
    [row] = database.rows(_MEASURES)
    return AgreementMeasures(*row)
