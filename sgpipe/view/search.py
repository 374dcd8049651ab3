"""Searching a run: hits page by page, the neighbours of a hit, facets, queues."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

from sgpipe.view.index import Index
from sgpipe.view.query import Query, Vocabulary

Order = Literal["confidence", "-confidence", "rarity", "agreement", "shuffle"]
ORDERS: tuple[Order, ...] = get_args(Order)
Box = tuple[float, float, float, float]  # xywh in pixels


@dataclass(frozen=True)
class Filters:
    """A search: the whole state of the gallery's URL, apart from the page.

    Attributes:
        judged: states of judgement: right, wrong, unsure, changed, conflict, none.
        low, high: bounds of the confidence, both included. A relation without confidence counts as 1.
        queue: the key of one of `queues(index)`.
        order: confidence: the most confident first; -confidence: the least; rarity: those whose triplet the run has
            least often first; agreement: those that CLIP disagrees with most first; shuffle: by `seed`.
    """

    query: Query = field(default_factory=Query)
    subjects: tuple[str, ...] = ()
    predicates: tuple[str, ...] = ()
    objects: tuple[str, ...] = ()
    datasets: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    statuses: tuple[str, ...] = ()
    judged: tuple[str, ...] = ()
    low: float | None = None
    high: float | None = None
    queue: str | None = None
    order: Order = "confidence"
    seed: int = 0

    @classmethod
    def from_params(cls, params: Sequence[tuple[str, str]], vocabulary: Vocabulary) -> Filters:
        """Read the parameters of a URL (q, subject, predicate, object, dataset, split, status, judged, low, high,
        queue, order, seed); others are ignored.

        Args:
            vocabulary: `index.vocabulary`.

        Raises:
            QueryError: `q` cannot be understood.
            UserError: another parameter has no valid value.
        """
        raise NotImplementedError

    def to_params(self) -> list[tuple[str, str]]:
        """As `from_params` reads them; defaults are left out."""
        raise NotImplementedError

    @property
    def finds_images(self) -> bool:
        """Whether hits are images: nothing is said of relations, but something of captions, a status, or a queue of
        images."""
        raise NotImplementedError


@dataclass(frozen=True)
class Hit:
    """A relation that was found and its image; or an image (`Filters.finds_images`), without what follows `caption`.

    Attributes:
        caption: the first caption of the image that the query names, else None.
        error: why the image's row is an error row, else None.
        why: of an image without relations: why it has none.
        subject, object: numbers of boxes. Boxes are xywh in pixels, None if the row has no such box.
        confidence: None: annotated. agreement: CLIP's cosine.
        times: how often the run has this triplet (subject class, predicate, object class).
        judged: right, wrong, unsure, changed, conflict, or None.
    """

    split: str
    image_id: str
    dataset: str
    file_name: str
    width: int
    height: int
    status: str
    error: str | None = None
    why: str | None = None
    caption: str | None = None
    subject: int | None = None
    object: int | None = None
    predicate: str | None = None
    confidence: float | None = None
    subject_category: str | None = None
    object_category: str | None = None
    subject_box: Box | None = None
    object_box: Box | None = None
    agreement: float | None = None
    times: int | None = None
    judged: str | None = None


@dataclass(frozen=True)
class Page:
    """Hits in order; `next` and `previous`: what to pass as `after` for the pages beside it, None: there is none."""

    hits: list[Hit]
    next: str | None
    previous: str | None


def search(index: Index, filters: Filters, after: str | None = None, limit: int = 48) -> Page:
    """One page of hits, after a cursor of an earlier page.

    Raises UserError: `after` is no cursor, the queue does not exist, or the index cannot be read.
    """
    raise NotImplementedError


def neighbours(
    index: Index, filters: Filters, split: str, image_id: str, relation: tuple[int, int, str] | None = None
) -> tuple[Hit | None, Hit | None]:
    """The hits before and after a relation (subject, object, predicate) of an image; without a relation: before and
    after the image's hits. The image need not be among the hits."""
    raise NotImplementedError


@dataclass(frozen=True)
class FacetValue:
    """A value, how many hits have it, and whether it is among the filters. `params`: of the URL that choose it."""

    value: str
    count: int
    chosen: bool
    params: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facets:
    """Counts over all hits of a search.

    Attributes:
        values: of subject, predicate, object, triplet, dataset, split, status, judged: the most frequent values, and
            those chosen. Each counts the hits of the search without its own filter, so that others can be chosen.
        total: number of hits; `total_images`: of images they are in.
        histogram: hits by confidence in 20 bins from 0 to 1; without `low` and `high`. `unscored`: without confidence.
    """

    values: dict[str, list[FacetValue]]
    total: int
    total_images: int
    histogram: tuple[int, ...]
    unscored: int


def facets(index: Index, filters: Filters, limit: int = 12) -> Facets:
    """Count the hits of a search by what they are.

    Args:
        limit: values of each facet.
    """
    raise NotImplementedError


@dataclass(frozen=True)
class Queue:
    """Hits worth looking at: `Filters.queue` is `key`. `advice`: what to do about them; empty: nothing special."""

    key: str
    title: str
    count: int
    advice: str
    of: Literal["relations", "images"]


def queues(index: Index) -> list[Queue]:
    """The queues that have hits: what the health checks of the audit found (at its default threshold), low agreement,
    confident but rare, images without relations by reason, error rows, not judged, conflicting judgements."""
    raise NotImplementedError
