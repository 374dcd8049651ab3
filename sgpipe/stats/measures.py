"""Counts over a run. DuckDB makes them from the shards; only results reach Python."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import pyarrow.compute as pc

from sgpipe.calibration import NEAREST, Calibration, why_assumed
from sgpipe.records import TRAINING_CONFIDENCE
from sgpipe.stats.distributions import (
    AgreementMeasures,
    Confidence,
    LongTail,
    measure_agreement,
    measure_confidence,
    measure_long_tail,
)
from sgpipe.stats.health import Check, check_health
from sgpipe.stats.opinion import OpinionMeasures, measure_opinion
from sgpipe.storage.database import Database, open_run
from sgpipe.storage.shards import iter_tables

THRESHOLDS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5, 0.6)
PEOPLE = ("person", "people", "man", "men", "woman", "women", "boy", "girl", "child", "kid", "baby", "guy", "lady")
_TRIPLETS = 50
# The totals, in the order in which images become relations.
TOTALS = {
    "objects": "boxes",
    "captions": "captions",
    "different_captions": "distinct captions per image, summed",
    "distinct_captions": "distinct captions",
    "triplets": "triplets parsed",
    "matched_triplets": "triplets with both ends matched",
    "pairs": "candidate pairs",
    "candidate_texts": "candidate relation texts",
    "relations": "relations",
    "kept_relations": f"relations of confidence ≥ {TRAINING_CONFIDENCE:.2f}",
    "images_without_relations": "images without relations",
}
_STAGES = ("captions", "triplets", "matched_triplets", "candidate_texts", "relations", "kept_relations")
_PER_IMAGE = (0, 1, 2, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Level:
    """What a confidence threshold keeps; human annotations, which have no confidence, pass every threshold.

    Attributes:
        relations: number of relations. `images` and `pairs` (ordered pairs of objects): those with at least one.
        predicate_kinds: number of distinct predicates.
    """

    threshold: float
    relations: int
    images: int
    pairs: int
    predicate_kinds: int

    @property
    def per_image(self) -> float:
        """Relations per image that has any."""
        return self.relations / self.images if self.images else 0.0

    @property
    def per_pair(self) -> float:
        """Relations per pair that has any."""
        return self.relations / self.pairs if self.pairs else 0.0


@dataclass(frozen=True)
class TripletCount:
    """How often a predicate relates two classes, and its mean confidence, if it has any."""

    subject: str
    predicate: str
    object: str
    relations: int
    confidence: float | None


@dataclass(frozen=True)
class Measures:
    """What a run contains.

    Attributes:
        images: by split. `datasets`: images by dataset. `errors`: error rows by kind.
        totals: objects, captions, different_captions (of one image, summed), distinct_captions (of all), triplets,
            matched_triplets, pairs, candidate_texts, relations, kept_relations (that training uses),
            images_without_relations. All rows count, also error rows.
        in_error_rows: how much of the totals is in error rows, which the stages did not finish.
        without_relations: images without relations, by the first stage that left nothing.
        predicates, categories: relations by predicate and objects by class, the most frequent first.
        relations_per_image: images by number of relations, in ranges.
        triplets: the most frequent combinations of subject class, predicate and object class.
        triplet_kinds: number of distinct combinations.
        person_subject_share: share of the relations whose subject is a person.
        agreement: CLIP's agreement with the relations, if `sgpipe score` measured it. `opinion`: the second opinion.
        assumed: why candidates are relations, if no model chose them; None: one did, or people annotated them.
        threshold_of: what thresholds are of: confidence, or by a calibration probability.
    """

    run: str
    fingerprint: str
    images: dict[str, int]
    datasets: dict[str, int]
    errors: dict[str, int]
    totals: dict[str, int]
    in_error_rows: dict[str, int]
    without_relations: dict[str, int]
    predicates: dict[str, int]
    categories: dict[str, int]
    thresholds: list[Level]
    relations_per_image: dict[str, int]
    tail: LongTail
    triplets: list[TripletCount]
    triplet_kinds: int
    person_subject_share: float
    confidence: Confidence
    health: list[Check]
    agreement: AgreementMeasures | None = None
    opinion: OpinionMeasures | None = None
    assumed: str | None = None
    threshold_of: str = "confidence"

    @property
    def rows(self) -> int:
        """All images, including error rows."""
        return sum(self.images.values())

    @property
    def yields(self) -> dict[str, float | None]:
        """The output of each stage per output of the stage before, without error rows; None if that had none."""
        finished = {name: self.totals[name] - self.in_error_rows[name] for name in _STAGES}
        return {
            after: finished[after] / finished[before] if finished[before] else None
            for before, after in pairwise(_STAGES)
        }


def use_probabilities(database: Database, calibration: Calibration) -> str | None:
    """Make the certainty of relations the probability that they are correct; returns a note on unknown predicates.

    Annotations, which have no confidence, stay certain.

    Raises UserError: the confidences are of another tagger, or the calibration knows none of their predicates.
    """
    rows = database.rows("select predicate::varchar, count(confidence) from relations group by 1")
    scored = {predicate: count for predicate, count in rows if count}
    if not scored:
        return None
    calibration.check_run(database.run, database.root)
    note = calibration.unknown_predicates(scored, database.root)
    offsets = calibration.offsets(scored).tolist()
    database.execute("create or replace table offsets (predicate varchar, odds double)")
    database.insert("offsets", list(zip(scored, offsets, strict=True)))
    inside = f"least(greatest(confidence::double, {NEAREST}), {1 - NEAREST})"
    own = "(select odds from offsets where offsets.predicate = relations.predicate::varchar)"
    database.measure = "probability"
    database.replace_certainty(
        f"case when confidence is null then 1 when confidence < {calibration.lowest} then 0 "
        f"else 1 / (1 + exp(-{calibration.slope} * ln({inside} / (1 - {inside})) - {own})) end"
    )
    return note


def measure(root: Path, threshold: float = TRAINING_CONFIDENCE, calibration: Calibration | None = None) -> Measures:
    """Measure the run in `root`.

    Args:
        threshold: minimum confidence of the relations whose health is checked, with a calibration: minimum probability.

    Raises UserError: the folder is not a run, or a shard is missing or damaged.
    """
    with open_run(root) as database:
        if calibration is not None:
            use_probabilities(database, calibration)
        return measure_database(database, threshold)


def measure_database(database: Database, threshold: float = TRAINING_CONFIDENCE) -> Measures:
    """Measure an open run."""
    run = database.run
    predicates = _counts(database, "select predicate, relations from predicates")
    levels = _levels(database)
    kept = next(level.relations for level in levels if level.threshold == TRAINING_CONFIDENCE)
    [(kinds,)] = database.rows("select count(*) from triplet_counts")
    return Measures(
        run=str(run.get("name", "")),
        fingerprint=str(run.get("fingerprint", "")),
        images=_counts(database, "select split, count(*) from images group by 1"),
        datasets=_counts(database, "select dataset, count(*) from images group by 1"),
        errors=_counts(database, _ERRORS),
        totals=_totals(database) | {"kept_relations": kept},
        in_error_rows=_totals(database, "where status = 'error'") | {"kept_relations": _kept_in_error_rows(database)},
        without_relations=_counts(database, _WITHOUT),
        predicates=predicates,
        categories=_counts(database, "select category, count(*) from objects group by 1"),
        thresholds=levels,
        relations_per_image=_relations_per_image(database),
        tail=measure_long_tail(list(predicates.values())),
        triplets=[TripletCount(*row) for row in database.rows(f"{_TRIPLET_TABLE} limit {_TRIPLETS}")],
        triplet_kinds=kinds,
        person_subject_share=_person_share(database),
        confidence=measure_confidence(database),
        health=check_health(database, threshold),
        agreement=measure_agreement(database),
        opinion=measure_opinion(database),
        assumed=why_assumed(run),
        threshold_of=database.measure,
    )


def distinct_predicates(root: Path) -> set[str]:
    """The predicates that occur in a run.

    Raises UserError: the folder is not a run, or a shard is missing or damaged.
    """
    predicates: set[str] = set()
    for table in iter_tables(root, ("relations",)):
        predicates.update(pc.unique(pc.struct_field(pc.list_flatten(table["relations"]), "predicate")).to_pylist())
    return predicates


# Errors without what is specific to one image: paths, quoted names and numbers.
_ERRORS = r"""
    select regexp_replace(regexp_replace(regexp_replace(coalesce(error, 'unknown'),
        '''[^'']*''|"[^"]*"', '…', 'g'), '\S*/\S*', '…', 'g'), '\d+(x\d+)?', 'N', 'g') as kind, count(*)
    from images where status = 'error' group by 1
"""

# Why a row of `images` without relations has none: the first stage that left nothing.
WHY_NO_RELATIONS = """case
    when objects = 0 then 'no objects'
    when (select sum(captions) from images) = 0 then 'nothing annotated'
    when captions = 0 then 'no captions'
    when triplets = 0 then 'no triplet in the captions'
    when matched_triplets = 0 then 'no triplet matches the objects'
    when pairs = 0 then 'no candidate pair'
    else 'nothing above the threshold of the tagger' end"""
_WITHOUT = f"""
    select {WHY_NO_RELATIONS} as reason, count(*)
    from images where status = 'ok' and relations = 0 group by 1
"""

_TRIPLET_TABLE = """
    select subject_category, predicate, object_category, relations, confidence
    from triplet_counts order by relations desc, subject_category, predicate, object_category
"""


def _counts(database: Database, query: str) -> dict[str, int]:
    """Names with counts, most frequent first, ties by name."""
    rows = database.rows(f"select * from ({query}) as counted(name, number) order by number desc, name")
    return dict(rows)


def _totals(database: Database, where: str = "") -> dict[str, int]:
    names = ("objects", "captions", "different_captions", "triplets", "matched_triplets", "pairs", "candidate_texts",
             "relations")  # fmt: skip
    sums = ", ".join(f"coalesce(sum({name}), 0)::bigint" for name in names)
    [row] = database.rows(
        f"""select {sums}, count(*) filter (status = 'ok' and relations = 0),
        (select count(distinct caption) from captions join images using (image) {where}) from images {where}"""
    )
    return dict(zip((*names, "images_without_relations", "distinct_captions"), row, strict=True))


def _kept_in_error_rows(database: Database) -> int:
    [(kept,)] = database.rows(
        f"""select count(*) from relations join images using (image)
        where status = 'error' and certainty >= {TRAINING_CONFIDENCE}::float"""
    )
    return int(kept)


def _levels(database: Database) -> list[Level]:
    counts = ", ".join(f"count(*) filter (certainty >= {threshold}::float)" for threshold in THRESHOLDS)
    tables = ("relations", "related_images", "related_pairs", "predicates")
    kept = [database.rows(f"select {counts} from {table}")[0] for table in tables]
    return [Level(*values) for values in zip(THRESHOLDS, *kept, strict=True)]


def _relations_per_image(database: Database) -> dict[str, int]:
    ends = [*(above - 1 for above in _PER_IMAGE[1:]), None]
    names = [
        f"{start:,}" if start == end else f"{start:,}+" if end is None else f"{start:,}-{end:,}"
        for start, end in zip(_PER_IMAGE, ends, strict=True)
    ]
    cases = " ".join(f"when number >= {start} then {at}" for at, start in reversed(list(enumerate(_PER_IMAGE))))
    rows = database.rows(
        f"""select case {cases} end as at, count(*)
        from (select relations as number from images where status = 'ok') group by 1"""
    )
    counts = dict(rows)
    return {name: counts.get(at, 0) for at, name in enumerate(names)}


def _person_share(database: Database) -> float:
    [(share,)] = database.rows(
        "select coalesce(sum(relations) filter (list_contains(?, lower(subject_category))) / sum(relations), 0) "
        "from triplet_counts",
        list(PEOPLE),
    )
    return float(share)
