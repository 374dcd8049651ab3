"""How confidences are spread."""

from __future__ import annotations

from dataclasses import dataclass

from sgpipe.stats.database import Database

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
