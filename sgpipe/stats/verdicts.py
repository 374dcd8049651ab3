"""What people's verdicts on a sample say about the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgpipe.errors import UserError
from sgpipe.stats.calibration import Choice, Judged, Precision, wilson
from sgpipe.stats.review import Band, load_review


@dataclass(frozen=True)
class BandVerdict:
    """A band of confidence: how many relations the run has in it, and the precision of the judged ones."""

    band: Band
    precision: Precision


@dataclass(frozen=True)
class PredicateVerdict:
    """A predicate and the precision of its judged relations."""

    predicate: str
    precision: Precision


@dataclass(frozen=True)
class Verdicts:
    """Verdicts of people.

    Attributes:
        judged: right or wrong; `unsure` and `open` count for nothing.
        precision: of the run, as the mean of the bands weighted by their relations; `low` and `high`: 95 %, by
            Wilson's interval with the sample size that has the variance of this mean. None if no band was judged.
        covered: share of the run's relations that are in bands with verdicts.
        curve: of the judged relations themselves, by threshold.
    """

    judged: int
    unsure: int
    open: int
    precision: float | None
    low: float | None
    high: float | None
    covered: float
    bands: list[BandVerdict]
    predicates: list[PredicateVerdict]
    curve: list[Choice]
    target: float
    suggested: Choice | None


def measure_verdicts(file: Path, fingerprint: str, target: float, thresholds: Sequence[float]) -> Verdicts:
    """Turn exported verdicts into precision.

    Args:
        fingerprint: of the run that they should be about.
        target: the precision that a threshold is suggested for.

    Raises UserError: the file is not such an export, or about another run.
    """
    review = load_review(file)
    if review.fingerprint != fingerprint:
        raise UserError(f"{file} is about another run ({review.run}, fingerprint {review.fingerprint})")
    said = [(q, a) for q, a in zip(review.questions, review.answers, strict=True) if a in ("right", "wrong")]
    bands = [
        BandVerdict(band, _precision([a for q, a in said if q.band == number]))
        for number, band in enumerate(review.bands)
    ]
    names = Counter(q.predicate for q, _ in said)
    confidence = [1.0 if q.confidence is None else q.confidence for q, _ in said]
    judged = Judged(np.array(confidence, np.float32), np.array([a == "right" for _, a in said], bool))
    precision, low, high, covered = _weighted(bands)
    return Verdicts(
        judged=len(said),
        unsure=review.answers.count("unsure"),
        open=review.answers.count(None),
        precision=precision,
        low=low,
        high=high,
        covered=covered,
        bands=bands,
        predicates=[
            PredicateVerdict(name, _precision([a for q, a in said if q.predicate == name]))
            for name, _ in names.most_common()
        ],
        curve=judged.curve(thresholds),
        target=target,
        suggested=judged.suggest(target),
    )


def _precision(answers: Sequence[Any]) -> Precision:
    return Precision(answers.count("right"), len(answers))


def _weighted(bands: Sequence[BandVerdict]) -> tuple[float | None, float | None, float | None, float]:
    """Precision over all relations of the judged bands, its interval, and the share of relations in these bands."""
    known = [verdict for verdict in bands if verdict.precision.judged]
    total = sum(verdict.band.relations for verdict in known)
    if not total:
        return None, None, None, 0.0
    weights = [verdict.band.relations / total for verdict in known]
    shares = [verdict.precision.right / verdict.precision.judged for verdict in known]
    mean = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    # Unanimous bands have no variance of their own; Agresti and Coull's two more of each kind give them some.
    smooth = [(v.precision.right + 2) / (v.precision.judged + 4) for v in known]
    variance = sum(w**2 * s * (1 - s) / v.precision.judged for w, s, v in zip(weights, smooth, known, strict=True))
    pooled = sum(weight * share for weight, share in zip(weights, smooth, strict=True))
    size = max(pooled * (1 - pooled) / variance, 1.0) if variance else math.inf
    everything = sum(verdict.band.relations for verdict in bands)
    return mean, wilson(mean, size, -1), wilson(mean, size, 1), total / everything
