"""Searching a run: hits page by page, and the neighbours of a hit."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from sgpipe.errors import UserError
from sgpipe.utils.console import single_line
from sgpipe.view.build import LOTS
from sgpipe.view.facets import Facets as Facets
from sgpipe.view.facets import FacetValue as FacetValue
from sgpipe.view.facets import count_facets
from sgpipe.view.filters import ORDERS as ORDERS
from sgpipe.view.filters import Filters as Filters
from sgpipe.view.filters import Order as Order
from sgpipe.view.filters import Where
from sgpipe.view.index import Index
from sgpipe.view.queues import Queue as Queue
from sgpipe.view.queues import count_queues

Box = tuple[float, float, float, float]  # xywh in pixels

_BACK = "~"  # before a cursor whose page lies before it; values may be negative
_CURSOR = re.compile(r"(?P<back>~?)(?P<value>[0-9.e+-]{1,30})_(?P<image>\d{1,9})_(?P<number>\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Hit:
    """A relation that was found and its image; or an image (`Filters.finds_images`), with None for all of the relation.

    Attributes:
        caption: the first caption of the image that contains the text which the query looks for, else None.
        error: why the image's row is an error row, else None.
        why: of an image without relations: why it has none.
        subject, object: numbers of boxes. Boxes are xywh in pixels, None if the row has no such box.
        confidence: None: annotated. agreement: CLIP's cosine. opinion: the probability of the second opinion.
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
    subject: int | None = None
    object: int | None = None
    predicate: str | None = None
    confidence: float | None = None
    subject_category: str | None = None
    object_category: str | None = None
    agreement: float | None = None
    opinion: float | None = None
    times: int | None = None
    judged: str | None = None
    subject_box: Box | None = None
    object_box: Box | None = None
    caption: str | None = None


_OF_RELATION = (
    *("subject", "object", "predicate", "subject_category", "object_category"),
    *("confidence", "agreement", "opinion"),
)


class Place(NamedTuple):
    """Of a hit in an order: the value that is ordered by, the image, and the relation's number in the image."""

    value: Any
    image: int
    number: int


@dataclass(frozen=True)
class _Found:
    """A row of relations; without a relation, of images."""

    place: Place
    subject: int | None
    object: int | None
    predicate: str | None
    subject_category: str | None
    object_category: str | None
    confidence: float | None
    agreement: float | None
    opinion: float | None
    triplet: int | None


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
    back, place = _read_cursor(after) if after else (False, None)
    found = _found(index, filters, place, limit + 1, back)
    if back and len(found) <= limit:  # the start: a whole page is worth more than its rest
        back, place = False, None
        found = _found(index, filters, None, limit + 1)
    more, found = len(found) > limit, found[:limit]
    if back:
        found.reverse()
    before, later = (more, True) if back else (place is not None, more)
    return Page(
        hits=_hits(index, filters, found),
        next=_cursor(found[-1].place) if later and found else None,
        previous=f"{_BACK}{_cursor(found[0].place)}" if before and found else None,
    )


def neighbours(
    index: Index, filters: Filters, split: str, image_id: str, relation: tuple[int, int, str] | None = None
) -> tuple[Hit | None, Hit | None]:
    """The hits before and after a relation (subject, object, predicate) of an image; without a relation, or if the
    image has no such one: before and after the image's first hit. An image without hits comes before all of them.

    A relation that the image has several times counts as one, from its first place to its last: every walk ends.

    Raises UserError: as `search`.
    """
    first = _place(index, filters, split, image_id, relation)
    last = _place(index, filters, split, image_id, relation, last=True) if relation else first
    before = _found(index, filters, first, 1, back=True) if first else []
    later = _found(index, filters, last, 1)
    hits = iter(_hits(index, filters, [*before, *later]))
    return next(hits) if before else None, next(hits) if later else None


def facets(index: Index, filters: Filters, limit: int = 12) -> Facets:
    """Count the hits of a search by what they are.

    Args:
        limit: values of each facet.

    Raises UserError: as `search`.
    """
    return count_facets(index, filters, limit)


def queues(index: Index) -> list[Queue]:
    """The queues that have hits: what the health checks of the audit found (at its default threshold), low agreement,
    a second opinion against them, confident but rare, images without relations by reason, error rows, conflicting
    judgements, not judged."""
    return index.remember("queues", lambda: count_queues(index.rows, index.relations))


def select_relations(index: Index, filters: Filters) -> tuple[str, list[Any]]:
    """All hits of a search as SQL for `index.rows`, with the values of its `?`.

    The columns are split, image_id, subject, object, predicate, subject_category, object_category (names as text) and
    confidence (null where annotated).

    Raises UserError: the hits are images, or the queue does not exist.
    """
    if filters.finds_images:
        raise UserError("this search finds images, not relations: add a class, a predicate or a range of confidence")
    where = Where(filters, of_images=False)
    return (
        f"""select hit.split::varchar as split, image_id, subject, object, predicate::varchar as predicate,
            subject_category::varchar as subject_category, object_category::varchar as object_category,
            if(annotated, null, certainty) as confidence
        from run.relations hit join (select image, image_id from run.images) using (image) where {where.sql}""",
        where.values,
    )


def _order(filters: Filters) -> tuple[str, str, bool]:
    """What hits are ordered by, as SQL; its type; and whether the largest comes first."""
    if filters.order == "shuffle":
        digest = hashlib.sha256(str(filters.seed).encode()).digest()
        factor = 1 + int.from_bytes(digest[:8], "big") % (LOTS - 1)
        return f"(lot::ubigint * {factor} % {LOTS})", "ubigint", False
    if filters.finds_images:
        return "image", "int", False
    return {
        "confidence": ("certainty", "float", True),
        "-confidence": ("certainty", "float", False),
        "rarity": ("triplet", "int", True),
        "agreement": ("coalesce(agreement, 2)", "float", False),  # a cosine is smaller
        "opinion": ("coalesce(opinion, 2)", "float", False),
    }[filters.order]


def _found(index: Index, filters: Filters, start: Place | None, limit: int, back: bool = False) -> list[_Found]:
    """The hits after a place, or before it, the nearest first."""
    key, kind, falling = _order(filters)
    where = Where(filters, filters.finds_images)
    table, number, columns = _columns(filters)
    if start is not None:
        less, least = ("<", "<=") if falling != back else (">", ">=")
        later, at = "<" if back else ">", f"try_cast(? as {kind})"
        where.add(
            f"{key} {least} {at} and ({key} {less} {at} or image {later} ? or (image = ? and {number} {later} ?))",
            [start.value, start.value, start.image, start.image, start.number],
        )
    first, rest = ("desc" if falling != back else "asc"), ("desc" if back else "asc")
    rows = index.rows(
        f"""select {key}, image, {number}, {columns} from run.{table} hit where {where.sql}
        order by {key} {first}, image {rest}, {number} {rest} limit {int(limit)}""",
        where.values,
    )
    return [_Found(Place(*row[:3]), *row[3:]) for row in rows]


def _columns(filters: Filters) -> tuple[str, str, str]:
    """The table of the hits, their number in the image, and the further columns of `_Found`, as SQL."""
    if filters.finds_images:
        return "images", "0::int", ", ".join(["null"] * (len(fields(_Found)) - 1))
    names = "predicate::varchar, subject_category::varchar, object_category::varchar"
    return (
        "relations",
        "number",
        f"subject, object, {names}, if(annotated, null, certainty), agreement, opinion, triplet",
    )


def _place(
    index: Index,
    filters: Filters,
    split: str,
    image_id: str,
    relation: tuple[int, int, str] | None,
    last: bool = False,
) -> Place | None:
    """The first place of a relation in the order of a search, or its last; or else that of the image's first hit."""
    key, _, falling = _order(filters)
    table, number, _ = _columns(filters)
    found = index.rows("select image from run.images where image_id = ? and split = ?", [image_id, split])
    if not found:
        return None
    any_of = Where(Filters(), filters.finds_images)
    if relation is not None and not filters.finds_images:
        any_of.add("subject = ? and object = ? and predicate = ?", relation)
    tries = [Where(filters, filters.finds_images)]
    if relation is not None or filters.finds_images:
        tries.insert(0, any_of)
    for where in tries:
        where.add("image = ?", found[0])
        backwards = last and where is any_of
        rows = index.rows(
            f"""select {key}, image, {number} from run.{table} hit where {where.sql}
            order by {key} {"desc" if falling != backwards else "asc"}, {number} {"desc" if backwards else "asc"}
            limit 1""",
            where.values,
        )
        if rows:
            return Place(*rows[0])
    return None


def _hits(index: Index, filters: Filters, found: Sequence[_Found]) -> list[Hit]:
    """What was found, with what other tables say of it."""
    if not found:
        return []
    images = {
        image: values
        for image, *values in index.rows(
            """select image, first_object, objects,
                split::varchar, image_id, dataset::varchar, file_name, width, height, status::varchar, error, why
            from run.images join (select distinct unnest(?) as image) using (image)""",
            [[each.place.image for each in found]],
        )
    }
    boxes, times = _boxes(index, images, found), _times(index, found)
    captions = _captions(index, filters.query.captions[0], images) if filters.query.captions else {}
    hits = []
    for each in found:
        image = each.place.image
        hit = replace(Hit(*images[image][2:]), caption=captions.get(image))
        if each.subject is not None and each.object is not None and each.predicate is not None:
            hit = replace(
                hit,
                **{name: getattr(each, name) for name in _OF_RELATION},
                subject_box=boxes.get((image, each.subject)),
                object_box=boxes.get((image, each.object)),
                times=times.get(each.triplet),
                judged=index.judgement(hit.split, hit.image_id, each.subject, each.object, each.predicate),
            )
        hits.append(hit)
    return hits


def _boxes(index: Index, images: Mapping[int, Sequence[Any]], found: Sequence[_Found]) -> dict[tuple[int, int], Box]:
    """The boxes of relations by image and number."""
    ends = {(each.place.image, end) for each in found for end in (each.subject, each.object) if end is not None}
    rows = [images[image][0] + end for image, end in ends if 0 <= end < images[image][1]]
    boxes = index.rows(
        "select image, number, x, y, w, h from run.objects join (select unnest(?::bigint[]) as row) on rowid = row",
        [rows],
    )
    return {(image, number): (x, y, w, h) for image, number, x, y, w, h in boxes}


def _times(index: Index, found: Sequence[_Found]) -> dict[int | None, int]:
    """How often the run has the triplets of relations."""
    rows = sorted({each.triplet - 1 for each in found if each.triplet is not None})
    query = "select triplet, times from run.triplets join (select unnest(?::bigint[]) as row) on rowid = row"
    return dict(index.rows(query, [rows]))


def _captions(index: Index, text: str, images: Iterable[int]) -> dict[int, str]:
    """The first caption of each image that contains the text."""
    chosen = ", ".join(str(int(image)) for image in set(images))
    rows = index.rows(
        f"""select image, arg_min(caption, number) from run.captions
        where image in ({chosen}) and contains(folded, lower(?)) group by 1""",
        [text],
    )
    return dict(rows)


def _cursor(place: Place) -> str:
    return "_".join(map(str, place))


def _read_cursor(text: str) -> tuple[bool, Place]:
    """Whether it leads back, and the place that it starts from. Raises UserError: it is no cursor."""
    found = _CURSOR.fullmatch(text)
    try:
        if found is None:
            raise ValueError(text)
        value = found["value"]
        number = int(value) if value.isdigit() else float(value)
        if not math.isfinite(number):
            raise ValueError(text)
    except ValueError:
        raise UserError(f"after={single_line(text, 60)}: not a page of this search; leave it out") from None
    return bool(found["back"]), Place(number, int(found["image"]), int(found["number"]))
