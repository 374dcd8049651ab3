"""The human audit: a page on which a person judges a sample of relations, and what the verdicts say about the run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sgpipe.errors import UserError
from sgpipe.records import Relation
from sgpipe.stats.calibration import JudgedRelations, PrecisionEstimate, ThresholdChoice, wilson
from sgpipe.stats.gallery import Card, make_card
from sgpipe.stats.pages import render, save_page
from sgpipe.stats.samples import open_records
from sgpipe.storage.database import Database

FORMAT: Literal[1] = 1
Answer = Literal["right", "wrong", "unsure"]
_PIXELS = 720
EDGES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

# Within a band, every k-th relation in order of predicate: all are equally likely, and predicates keep their shares.
_SAMPLE = """
    with banded as (
        select *, case when confidence is null then -1 else {band} end as band,
            md5(concat_ws(' ', ?::varchar, image, subject, object, predicate)) as chance
        from relations),
    numbered as (
        select *, row_number() over (partition by band order by predicate, chance) as number,
            count(*) over (partition by band) as total
        from banded),
    chosen as (
        select numbered.*, quota from numbered join quotas using (band)
        where (number * quota) // total <> ((number - 1) * quota) // total)
    select image, subject, object, predicate, confidence, band from chosen order by chance
"""
_BAND = " ".join(f"when confidence < {stop}::float then {at}" for at, stop in enumerate(EDGES[1:-1]))
_BAND = f"(case {_BAND} else {len(EDGES) - 2} end)"


@dataclass(frozen=True)
class ConfidenceBand:
    """The run's relations with a confidence from `start` to below `stop`; None for both: relations without one."""

    start: float | None
    stop: float | None
    relations: int
    sampled: int

    @property
    def name(self) -> str:
        return "none" if self.start is None else f"{self.start:.2f} to {self.stop:.2f}"


@dataclass(frozen=True)
class Question:
    """A relation to judge; `band` is an index into the bands of the review."""

    image_id: str
    subject: str
    predicate: str
    object: str
    confidence: float | None
    band: int


@dataclass(frozen=True)
class Review:
    """The questions of a page and their answers: one per question in an export, none in a new page."""

    format: Literal[1]
    run: str
    fingerprint: str
    seed: int
    bands: list[ConfidenceBand]
    questions: list[Question]
    answers: list[Answer | None]


def write_review(
    database: Database, file: Path, count: int, seed: int = 0, images: Path | None = None
) -> tuple[int, int]:
    """Write a page for judging `count` relations, the same number from each band of confidence.

    Args:
        seed: decides the sample.
        images: folder of the images, if they have moved since the run.

    Returns:
        the number of relations on the page, and how many of them lack their image.

    Raises UserError: the run has no relations, a shard cannot be read, or the file cannot be written.
    """
    bands = _bands(database, count)
    if not bands:
        raise UserError(f"{database.root} contains no relations to review")
    indices = {key: number for number, key in enumerate(bands)}
    database.execute("create or replace table quotas (band int, quota int)")
    database.insert("quotas", [(key, band.sampled) for key, band in bands.items()])
    rows = database.rows(_SAMPLE.format(band=_BAND), seed)
    questions, cards = [], []
    for card, values in _cards(database, rows, images):
        edge = card.edges[0]
        questions.append(
            Question(
                card.image_id, edge.subject.name, edge.predicate, edge.object.name, edge.confidence, indices[values[5]]
            )
        )
        cards.append(card)
    run, fingerprint = (str(database.run.get(name, "")) for name in ("name", "fingerprint"))
    review = Review(FORMAT, run, fingerprint, seed, list(bands.values()), questions, [])
    title = run or database.root.name
    save_page(file, render("review", {"review": asdict(review), "cards": cards, "title": title}))
    return len(cards), sum(card.image is None for card in cards)


def _cards(
    database: Database, rows: list[tuple[Any, ...]], images: Path | None
) -> Iterator[tuple[Card, tuple[Any, ...]]]:
    """A card for each sampled relation that can be drawn, in the order of the rows."""
    for values in rows:
        image, subject, object_, predicate, confidence, _ = values
        for record, opened in open_records(database, [image], images):
            card = make_card(record, opened, [Relation(subject, object_, predicate, confidence)], _PIXELS)
            if card.edges:
                yield card, values


def _bands(database: Database, count: int) -> dict[int, ConfidenceBand]:
    """The bands with relations, each with an equal share of the sample or, if it has fewer, all of its relations."""
    rows = database.rows(
        f"""select case when confidence is null then -1 else {_BAND} end as band, count(*)
        from relations group by 1 order by 1"""
    )
    left, sampled = count, {}
    for done, (band, relations) in enumerate(sorted(rows, key=lambda row: row[1])):
        sampled[band] = min(relations, left // (len(rows) - done))
        left -= sampled[band]
    ends: dict[int, tuple[float | None, float | None]] = {-1: (None, None)}
    ends |= {at: (EDGES[at], EDGES[at + 1]) for at in range(len(EDGES) - 1)}
    return {band: ConfidenceBand(*ends[band], relations, sampled[band]) for band, relations in rows if sampled[band]}


def load_review(file: Path) -> Review:
    """Read what a review page exported.

    Raises UserError: the file cannot be read or is not such an export.
    """
    try:
        review = TypeAdapter(Review).validate_json(file.read_bytes())
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from None
    except ValidationError as error:
        reason, place = error.errors()[0]["msg"], ".".join(map(str, error.errors()[0]["loc"]))
        raise UserError(f"{_NO_EXPORT.format(file=file)} ({place or 'the file'}: {reason})") from None
    answered = len(review.answers) == len(review.questions)
    if not answered or any(question.band not in range(len(review.bands)) for question in review.questions):
        raise UserError(_NO_EXPORT.format(file=file))
    return review


_NO_EXPORT = "{file} was not exported from a page of `sgpipe stats --review`"


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
        precision: estimate for the run, the mean over bands weighted by their relations. `low` and `high`: its 95%
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

    Raises UserError: the file is not such an export, or belongs to another run.
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
