"""What CLIP thinks of the relations, in ranks: its scores mean something only beside those of other texts."""

from __future__ import annotations

from dataclasses import dataclass

from sgpipe.stats.database import Database


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
