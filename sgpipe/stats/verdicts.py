"""The precision of a run, estimated from human verdicts on a sample."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sgpipe.errors import UserError
from sgpipe.stats.calibration import JudgedRelations, PrecisionEstimate, ThresholdChoice, wilson
from sgpipe.stats.review import ConfidenceBand, load_review


@dataclass(frozen=True)
class BandVerdict:
    """A band of confidence and the precision of its judged relations."""

    band: ConfidenceBand
    precision: PrecisionEstimate


@dataclass(frozen=True)
class PredicateVerdict:
    """A predicate and the precision of its judged relations."""

    predicate: str
    precision: PrecisionEstimate


@dataclass(frozen=True)
class Verdicts:
    """Human verdicts on a sample of relations.

    Attributes:
        judged: relations judged right or wrong; those that are `unsure` or `open` do not count.
        precision: estimate for the run, the mean over bands weighted by their relations. `low` and `high`: its 95 %
            interval, Wilson's for the sample size with the variance of this mean. None if no band was judged.
        covered: share of the run's relations that are in judged bands.
        curve: of the judged relations, by threshold.
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
    curve: list[ThresholdChoice]
    target: float
    suggested: ThresholdChoice | None


def measure_verdicts(file: Path, fingerprint: str, target: float, thresholds: Sequence[float]) -> Verdicts:
    """Estimate precision from exported verdicts.

    Args:
        fingerprint: of the run that they must belong to.
        target: the precision for which a threshold is suggested.

    Raises UserError: the file is no such export, or belongs to another run.
    """
    review = load_review(file)
    if review.fingerprint != fingerprint:
        raise UserError(f"{file} belongs to another run ({review.run}, fingerprint {review.fingerprint})")
    answered = [(q, a) for q, a in zip(review.questions, review.answers, strict=True) if a in ("right", "wrong")]
    bands = [
        BandVerdict(band, _precision([a for q, a in answered if q.band == number]))
        for number, band in enumerate(review.bands)
    ]
    names = Counter(q.predicate for q, _ in answered)
    confidence = [1.0 if q.confidence is None else q.confidence for q, _ in answered]
    judged = JudgedRelations(np.array(confidence, np.float32), np.array([a == "right" for _, a in answered], bool))
    precision, low, high, covered = _weighted(bands)
    return Verdicts(
        judged=len(answered),
        unsure=review.answers.count("unsure"),
        open=review.answers.count(None),
        precision=precision,
        low=low,
        high=high,
        covered=covered,
        bands=bands,
        predicates=[
            PredicateVerdict(name, _precision([a for q, a in answered if q.predicate == name]))
            for name, _ in names.most_common()
        ],
        curve=judged.curve(thresholds),
        target=target,
        suggested=judged.suggest(target),
    )


def _precision(answers: Sequence[Any]) -> PrecisionEstimate:
    return PrecisionEstimate(answers.count("right"), len(answers))


def _weighted(bands: Sequence[BandVerdict]) -> tuple[float | None, float | None, float | None, float]:
    """Precision over all relations of the judged bands, its interval, and the share of all relations in these bands."""
    judged = [verdict for verdict in bands if verdict.precision.judged]
    total = sum(verdict.band.relations for verdict in judged)
    if not total:
        return None, None, None, 0.0
    weights = [verdict.band.relations / total for verdict in judged]
    shares = [verdict.precision.correct / verdict.precision.judged for verdict in judged]
    mean = sum(weight * share for weight, share in zip(weights, shares, strict=True))
    # Unanimous bands have no variance; adding two verdicts of each kind (Agresti and Coull) gives them some.
    smooth = [(v.precision.correct + 2) / (v.precision.judged + 4) for v in judged]
    variance = sum(w**2 * s * (1 - s) / v.precision.judged for w, s, v in zip(weights, smooth, judged, strict=True))
    pooled = sum(weight * share for weight, share in zip(weights, smooth, strict=True))
    size = max(pooled * (1 - pooled) / variance, 1.0) if variance else math.inf
    all_relations = sum(verdict.band.relations for verdict in bands)
    return mean, wilson(mean, size, -1), wilson(mean, size, 1), total / all_relations
