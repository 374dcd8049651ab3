"""The second opinion on the relations of a run (`sgpipe score --by vlm`), and how good it is on judged relations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sgpipe.stats.calibration import CalibrationBin, JudgedRelations
from sgpipe.storage.database import Database

AGREES = 0.5  # probability


@dataclass(frozen=True)
class OpinionMeasures:
    """The probabilities of a run; all values but the counts are None if nothing was scored.

    Attributes:
        scored, unscored: relations.
        agrees: share with a probability of 0.5 or more.
        correlation: Spearman's, between confidence and probability.
    """

    scored: int
    unscored: int
    mean: float | None
    agrees: float | None
    correlation: float | None


@dataclass(frozen=True)
class OpinionQuality:
    """How well the second opinion tells correct from incorrect relations.

    Attributes:
        judged: relations that are judged and have a second opinion.
        auc: how probable it is that a correct relation has a higher probability than an incorrect one (area under the
            ROC curve); None without either kind. `confidence_auc`: the same of the confidence, of all judged relations.
        calibration_error: mean distance between probability and precision.
    """

    judged: int
    auc: float | None
    confidence_auc: float | None
    calibration_error: float | None
    reliability: list[CalibrationBin]


_MEASURES = f"""
    with relations as (
        select unnest(relations).confidence as confidence, unnest(opinion) as opinion from records),
    ranks as (
        select rank() over (order by confidence) as a, rank() over (order by opinion) as b
        from relations where opinion is not null and confidence is not null)
    select count(opinion), count(*) - count(opinion), avg(opinion)::double, avg((opinion >= {AGREES})::int),
        (select corr(a, b) from ranks)
    from relations
"""


def measure_opinion(database: Database) -> OpinionMeasures | None:
    """The second opinion that `sgpipe score` wrote into the run; None without it."""
    if not database.has_opinion:
        return None
    [row] = database.rows(_MEASURES)
    return OpinionMeasures(*row)


def opinion_quality(opinion: JudgedRelations, confidence: JudgedRelations) -> OpinionQuality:
    """Of judged relations: `opinion` has their probabilities, and may lack some of those that have a `confidence`."""
    return OpinionQuality(
        judged=len(opinion.correct),
        auc=area_under_roc(opinion.confidence, opinion.correct),
        confidence_auc=area_under_roc(confidence.confidence, confidence.correct),
        calibration_error=opinion.calibration_error(),
        reliability=opinion.reliability(),
    )


def area_under_roc(scores: NDArray[np.float32], correct: NDArray[np.bool_]) -> float | None:
    """The share of pairs of a correct and an incorrect relation in which the correct one has the higher score.

    Equal scores count half (Mann and Whitney 1947). None without such a pair.
    """
    from scipy.stats import rankdata

    right = int(correct.sum())
    pairs = right * (len(correct) - right)
    if not pairs:
        return None
    return float((rankdata(scores)[correct].sum() - right * (right + 1) / 2) / pairs)


Asked = tuple[str, str, str, str, float | None]  # image id, subject's class, predicate, object's class, confidence


def opinions_on(database: Database, relations: Sequence[Asked]) -> list[float | None]:
    """The second opinion on relations; None where there is none, the mean where an image has several such relations."""
    if not database.has_opinion or not relations:
        return [None] * len(relations)
    database.execute(
        "create or replace table asked (number int, image_id varchar, subject varchar, predicate varchar, "
        "object varchar, confidence float)"
    )
    database.insert("asked", [(number, *relation) for number, relation in enumerate(relations)])
    found = database.rows(
        """select number, avg(opinion)::double from (
            select image_id, objects, unnest(relations) as relation, unnest(opinion) as opinion
            from records where image_id in (select image_id from asked)) as there
        join asked on asked.image_id = there.image_id and predicate = relation.predicate
            and subject = objects[relation.subject + 1].category and object = objects[relation.object + 1].category
            and asked.confidence is not distinct from relation.confidence
        group by number"""
    )
    opinions = dict(found)
    return [opinions.get(number) for number in range(len(relations))]
