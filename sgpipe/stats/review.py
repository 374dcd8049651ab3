"""The human audit: a page on which a person judges a sample of relations, and the file of verdicts that it exports."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sgpipe.errors import UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.records import Relation
from sgpipe.stats.gallery import Card, make_card
from sgpipe.stats.pages import render, save_page
from sgpipe.stats.samples import open_records
from sgpipe.storage.database import Database

FORMAT: Literal[1] = 1
Answer = Literal["right", "wrong", "unsure"]
_PIXELS = 720
_MOST = 10**12  # relations of a run
OTHER_PREDICATES = "other predicates"
EDGES = (0.0, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0)

# Within a band, every k-th relation in order of predicate: all are equally likely, and predicates keep their shares.
_SAMPLE = """
    with banded as (
        select *, {band} as band,
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
BAND = f"(case when confidence is null then -1 {_BAND} else {len(EDGES) - 2} end)"  # SQL for its number in EDGES


@dataclass(frozen=True)
class ConfidenceBand:
    """The run's relations with a confidence from `start` to below `stop`; None for both: relations without one.

    Attributes:
        relations: how many the run has. None if a file does not say; then the run itself is asked.
        sampled: how many of them are on the page.
    """

    start: float | None
    stop: float | None
    relations: int | None = None
    sampled: int | None = None

    @property
    def name(self) -> str:
        return "none" if self.start is None else f"{self.start:.2f} to {self.stop:.2f}"

    def condition(self) -> str:
        """SQL that is true for its relations."""
        if self.start is None or self.stop is None:
            return "confidence is null"
        below = f" and confidence < {self.stop}::float" if self.stop < 1 else ""
        return f"confidence >= {self.start}::float{below}"


@dataclass(frozen=True)
class PredicateStratum:
    """The run's relations with a predicate; None: with any that is not among the strata before it."""

    predicate: str | None
    relations: int
    sampled: int

    @property
    def name(self) -> str:
        return OTHER_PREDICATES if self.predicate is None else self.predicate

    def condition(self) -> str:
        """SQL that is true for its relations."""
        return "true" if self.predicate is None else f"predicate = '{self.predicate.replace(chr(39), chr(39) * 2)}'"


Stratum = ConfidenceBand | PredicateStratum


@dataclass(frozen=True)
class Question:
    """A relation to judge; `band`: the index of its band (or other stratum), None if a file has no bands."""

    image_id: str
    subject: str
    predicate: str
    object: str
    confidence: float | None
    band: int | None = None


@dataclass(frozen=True)
class Review:
    """The questions of a page and their answers: one per question in an export, none in a new page."""

    format: Literal[1]
    run: str
    fingerprint: str
    seed: int
    questions: list[Question]
    answers: list[Answer | None]
    bands: list[ConfidenceBand] | None = None


def write_review(
    database: Database, file: Path, count: int, seed: int = 0, images: ImagePlace | None = None
) -> tuple[int, int]:
    """Write a page for judging `count` relations, the same number from each band of confidence.

    Args:
        seed: decides the sample.
        images: folder of the images, if they have moved since the run.

    Returns:
        the number of relations on the page, and how many of them lack their image.

    Raises UserError: the run has no relations, a shard cannot be read, or the file cannot be written.
    """
    bands = sample_bands(database, count)
    if not bands:
        raise UserError(f"{database.root} contains no relations to review")
    indices = {key: number for number, key in enumerate(bands)}
    database.execute("create or replace table quotas (band int, quota int)")
    database.insert("quotas", [(key, band.sampled) for key, band in bands.items()])
    rows = database.rows(_SAMPLE.format(band=BAND), seed)
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
    review = Review(FORMAT, run, fingerprint, seed, questions, [], list(bands.values()))
    title = run or database.root.name
    save_page(file, render("review", {"review": asdict(review), "cards": cards, "title": title}))
    return len(cards), sum(card.image is None for card in cards)


def _cards(
    database: Database, rows: list[tuple[Any, ...]], images: ImagePlace | None
) -> Iterator[tuple[Card, tuple[Any, ...]]]:
    """A card for each sampled relation that can be drawn, in the order of the rows."""
    for values in rows:
        image, subject, object_, predicate, confidence, _ = values
        for record, opened in open_records(database, [image], images):
            card = make_card(record, opened, [Relation(subject, object_, predicate, confidence)], _PIXELS)
            if card.edges:
                yield card, values


def sample_bands(database: Database, count: int) -> dict[int, ConfidenceBand]:
    """The bands with relations, each with an equal share of the sample or, if it has fewer, all of its relations.

    The keys are the numbers of the bands in `EDGES`, and -1 for relations without a confidence.
    """
    rows = database.rows(f"select {BAND} as band, count(*) from relations group by 1 order by 1")
    sampled = equal_shares(dict(rows), count)
    ends: dict[int, tuple[float | None, float | None]] = {-1: (None, None)}
    ends |= {at: (EDGES[at], EDGES[at + 1]) for at in range(len(EDGES) - 1)}
    return {band: ConfidenceBand(*ends[band], relations, sampled[band]) for band, relations in rows}


def equal_shares(sizes: Mapping[int, int], count: int) -> dict[int, int]:
    """How many relations each stratum contributes to a sample: the same number or, if it has fewer, all of them.

    Args:
        sizes: the relations of each stratum.
        count: of the sample.
    """
    left, shares = count, {}
    for done, (stratum, size) in enumerate(sorted(sizes.items(), key=lambda item: item[1])):
        shares[stratum] = min(size, left // (len(sizes) - done))
        left -= shares[stratum]
    return shares


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
    if not _is_consistent(review):
        raise UserError(_NO_EXPORT.format(file=file))
    return review


def _is_consistent(review: Review) -> bool:
    """Whether there is one answer per question, and, where there are bands, each is in its own, with enough relations.

    Bands that overlap are not: a question in both would be in the first.
    """
    confidences = [question.confidence for question in review.questions]
    if len(review.answers) != len(review.questions) or not all(c is None or 0 <= c <= 1 for c in confidences):
        return False
    if review.bands is None:
        return True
    starts = [(band.start, band.stop) for band in review.bands]
    known = all(start is stop is None or _is_range(start, stop) for start, stop in starts)
    if not known or not all(question.band in range(len(review.bands)) for question in review.questions):
        return False
    asked = Counter(question.band for question in review.questions)
    return all(
        band.relations is None or asked[number] <= band.relations <= _MOST for number, band in enumerate(review.bands)
    ) and all(band_of(question.confidence, review.bands) == question.band for question in review.questions)


def _is_range(start: float | None, stop: float | None) -> bool:
    return start is not None and stop is not None and math.isfinite(start) and math.isfinite(stop) and start < stop


def band_of(confidence: float | None, bands: Sequence[ConfidenceBand]) -> int:
    """The band of a confidence, or the number after the last if it is in none."""
    for number, band in enumerate(bands):
        if confidence is None or band.start is None or band.stop is None:
            if confidence is None and band.start is None:
                return number
        elif np.float32(confidence) >= np.float32(band.start) and (
            band.stop >= 1 or np.float32(confidence) < np.float32(band.stop)
        ):
            return number
    return len(bands)


_NO_EXPORT = "{file} was not exported from a page of `sgpipe stats --review`"
