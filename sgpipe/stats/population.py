"""The relations of a run that a certificate may be about, and the settings of a certificate."""

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property, lru_cache
from itertools import chain
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pydantic import ValidationError

from sgpipe.errors import UserError
from sgpipe.stats.certificates import Group
from sgpipe.storage.index import Index
from sgpipe.storage.judgement_lines import CertificateSettings, SamplingPlan, describe_invalid

CHANGED = (
    "has changed since people were asked about its relations: their answers no longer certify it"
)
_GROUPS = 200  # predicates that are certified at most: the most frequent ones
_KEY = ("split", "image_id", "subject", "object", "predicate")
_POPULATION = """
    select hit.split::varchar as split, image_id, subject, object, predicate::varchar as predicate,
        subject_category::varchar as subject_category, object_category::varchar as object_category,
        max(if(annotated, 'infinity'::float, certainty)) as confidence, avg({prediction})::double as prediction
    from run.relations hit join (select image, image_id from run.images) using (image)
    where subject_category is not null and object_category is not null and certainty >= 0 and not isnan(certainty)
    group by all
"""
# SQL of a prediction that is not a column
_PREDICTIONS = {"confidence": "if(annotated, null, certainty)", "none": "null"}


class Population:
    """The relations of a run that a certificate may be about, in an order of their own."""

    def __init__(self, index: Index, settings: CertificateSettings) -> None:
        """Read the relations from the index of a run.

        Raises:
            UserError: the run has no relations, or lacks the prediction.
        """
        column = settings.prediction
        is_absent = {"vlm_score": not index.has_vlm_scores, "clip_score": not index.scored}
        if is_absent.get(column):
            raise UserError(f"{index.root} has no column {column}: `sgpipe score` makes one")
        query = _POPULATION.format(prediction=_PREDICTIONS.get(column, column))
        table = pa.table(index.connection.cursor().sql(query))
        table = table.sort_by([(name, "ascending") for name in _KEY])
        if settings.threshold is not None:
            threshold = pa.scalar(settings.threshold, pa.float32())
            table = table.filter(pc.greater_equal(table["confidence"], threshold))
        if not len(table):
            raise UserError(f"{index.root} has no relations to certify")
        self.table: pa.Table = table
        self.root = index.root
        self.run = index.fingerprint
        self._settings = settings
        [(self.relations, self.errors, self.unlabelled)] = index.rows(
            """select (select count(*) from run.relations), count(*) filter (status <> 'ok'),
            count(*) filter (status = 'ok' and relations = 0) from run.images"""
        )

    @cached_property
    def groups(self) -> list[Group]:
        """All relations, or those of each of the most frequent predicates."""
        confidence = self.table["confidence"].to_numpy().astype(np.float64)
        prediction = self.table["prediction"].to_numpy().astype(np.float64)
        is_one_set = self._settings.threshold is not None
        if self._settings.prediction == "confidence" and not is_one_set:
            prediction = np.full(len(prediction), np.nan)  # the nested sets say as much
        if self._settings.by is None:
            rows = np.arange(len(self.table))
            return [Group.divide(None, rows, confidence, prediction, is_one_set)]
        names = self.table["predicate"].combine_chunks().dictionary_encode()
        codes = names.indices.to_numpy()
        parts = np.split(np.argsort(codes, kind="stable"), np.cumsum(np.bincount(codes))[:-1])
        predicates = sorted(
            zip(names.dictionary.to_pylist(), parts, strict=True),
            key=lambda part: (-len(part[1]), part[0]),
        )
        return [
            Group.divide(predicate, rows, confidence[rows], prediction[rows], is_one_set)
            for predicate, rows in predicates[:_GROUPS]
        ]

    @property
    def family(self) -> int:
        """The relations of all groups."""
        return sum(group.sizes[-1] for group in self.groups)

    @cached_property
    def digest(self) -> str:
        sets = [(group.predicate, group.sizes, group.thresholds) for group in self.groups]
        return hashlib.sha256(json.dumps(sets).encode()).hexdigest()[:12]

    def rows_of(self, plans: Sequence[SamplingPlan]) -> list[list[int]]:
        """Return the rows of the questions of each plan.

        Raises:
            UserError: the run has changed and lacks one.
        """
        questions = list(chain.from_iterable(plan.questions for plan in plans))
        images = pa.array({question.image_id for question in questions}, pa.string())
        is_asked = pc.is_in(self.table["image_id"], images).to_numpy(zero_copy_only=False)
        candidates = np.flatnonzero(is_asked)
        keys = tuples(self.table.take(candidates).select(_KEY))
        row_of = dict(zip(keys, candidates.tolist(), strict=True))
        rows = []
        try:
            for plan in plans:
                rows.append([row_of[tuple(question.key)] for question in plan.questions])
        except KeyError:
            raise UserError(f"{self.root} {CHANGED}") from None
        return rows


def tuples(table: pa.Table) -> list[tuple[Any, ...]]:
    """Return the rows of a table."""
    return list(zip(*map(pa.ChunkedArray.to_pylist, table.columns), strict=True))


def population_of(index: Index, settings: CertificateSettings) -> Population:
    """Return the population of a certificate; the latest one is kept."""
    return _keep_population(index, settings.model_copy(update={"population": None, "family": None}))


_keep_population = lru_cache(maxsize=1)(Population)


def usual_prediction(index: Index) -> Literal["vlm_score", "clip_score", "confidence"]:
    """Return what predicts wrong relations, unless the user says otherwise."""
    if index.has_vlm_scores:
        return "vlm_score"
    return "clip_score" if index.scored else "confidence"


def settings_for(index: Index, is_separate: bool = False, **values: object) -> CertificateSettings:
    """Return settings, by default with the `usual_prediction`.

    Args:
        index: of the run.
        is_separate: whether the confidence is that of each predicate by itself, not of all together.
        values: of `CertificateSettings`.

    Raises:
        UserError: a value is invalid, or as `Population`.
    """
    values["prediction"] = values.get("prediction") or usual_prediction(index)
    try:
        settings = CertificateSettings.model_validate(values)
    except ValidationError as error:
        raise UserError(describe_invalid(error)) from None
    if is_separate and settings.by is None:
        raise UserError("--each is an option of --by predicate: pass both, or leave it out")
    population = population_of(index, settings)
    family = population.family if settings.by is not None and not is_separate else None
    return settings.model_copy(update={"population": population.digest, "family": family})
