"""Searching a run: hits page by page, and the neighbours of a hit."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

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
Place = tuple[Any, int, int]  # of a hit in an order: the value that is ordered by, image, number in the image

_CURSOR = re.compile(r"(?P<back>-?)(?P<value>[0-9.e+-]{1,40})_(?P<image>\d{1,9})_(?P<number>\d{1,9})", re.ASCII)


@dataclass(frozen=True)
class Hit:
    """A relation that was found and its image; or an image (`Filters.finds_images`), with None for all of the relation.

    Attributes:
        caption: the first caption of the image that contains the text which the query looks for, else None.
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
    subject: int | None = None
    object: int | None = None
    predicate: str | None = None
    confidence: float | None = None
    subject_category: str | None = None
    object_category: str | None = None
    agreement: float | None = None
    times: int | None = None
    judged: str | None = None
    subject_box: Box | None = None
    object_box: Box | None = None
    caption: str | None = None


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
    places = _places(index, filters, place, limit + 1, back)
    if back and len(places) <= limit:  # the start: a whole page is worth more than its rest
        back, place = False, None
        places = _places(index, filters, None, limit + 1)
    more, places = len(places) > limit, places[:limit]
    if back:
        places.reverse()
    before, later = (more, True) if back else (place is not None, more)
    return Page(
        hits=_hits(index, filters, places),
        next=_cursor(places[-1]) if later and places else None,
        previous=f"-{_cursor(places[0])}" if before and places else None,
    )


def neighbours(
    index: Index, filters: Filters, split: str, image_id: str, relation: tuple[int, int, str] | None = None
) -> tuple[Hit | None, Hit | None]:
    """The hits before and after a relation (subject, object, predicate) of an image; without a relation, or if the
    image has no such one: before and after the image's first hit. An image without hits comes before all of them.

    Raises UserError: as `search`.
    """
    place = _place(index, filters, split, image_id, relation)
    before = _places(index, filters, place, 1, back=True) if place else []
    later = _places(index, filters, place, 1)
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
    confident but rare, images without relations by reason, error rows, conflicting judgements, not judged."""
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
    }[filters.order]


def _places(index: Index, filters: Filters, start: Place | None, limit: int, back: bool = False) -> list[Place]:
    """The places of the hits after a place, or before it, the nearest first."""
    key, kind, falling = _order(filters)
    where = Where(filters, filters.finds_images)
    table, number = ("images", "0::int") if filters.finds_images else ("relations", "number")
    if start is not None:
        value, image, position = start
        less, least = ("<", "<=") if falling != back else (">", ">=")
        later = "<" if back else ">"
        where.add(
            f"{key} {least} ?::{kind} and ({key} {less} ?::{kind} or image {later} ? "
            f"or (image = ? and {number} {later} ?))",
            [value, value, image, image, position],
        )
    first, rest = ("desc" if falling != back else "asc"), ("desc" if back else "asc")
    return [
        (value, image, position)
        for value, image, position in index.rows(
            f"""select {key}, image, {number} from run.{table} hit where {where.sql}
            order by {key} {first}, image {rest}, {number} {rest} limit {int(limit)}""",
            where.values,
        )
    ]


def _place(
    index: Index, filters: Filters, split: str, image_id: str, relation: tuple[int, int, str] | None
) -> Place | None:
    """The place of a relation in the order of a search, or else that of the image's first hit."""
    key, _, falling = _order(filters)
    found = index.rows("select image from run.images where image_id = ? and split = ?", [image_id, split])
    if not found:
        return None
    [(image,)] = found
    if filters.finds_images:
        [(value,)] = index.rows(f"select {key} from run.images where image = ?", [image])
        return value, image, 0
    if relation is not None:
        rows = index.rows(
            f"""select {key}, image, number from run.relations
            where image = ? and subject = ? and object = ? and predicate = ? order by number limit 1""",
            [image, *relation],
        )
        if rows:
            return rows[0][0], rows[0][1], rows[0][2]
    where = Where(filters, of_images=False)
    where.add("image = ?", [image])
    rows = index.rows(
        f"""select {key}, image, number from run.relations hit where {where.sql}
        order by {key} {"desc" if falling else "asc"}, number limit 1""",
        where.values,
    )
    return (rows[0][0], rows[0][1], rows[0][2]) if rows else None


_HITS = """
    select i.split::varchar, image_id, i.dataset::varchar, file_name, width, height, i.status::varchar, error, why,
        subject, object, r.predicate::varchar, if(annotated, null, certainty),
        r.subject_category::varchar, r.object_category::varchar,
        agreement, times, state,
        if(s.image is null, null, [s.x, s.y, s.w, s.h]), if(o.image is null, null, [o.x, o.y, o.w, o.h])
    from (select unnest(?) as image, unnest(?) as number, unnest(range(?)) as position) place
    join run.images i using (image)
    left join run.relations r on r.image = place.image and r.number = place.number
    left join run.triplets t using (triplet)
    left join run.objects s on s.image = r.image and s.number = r.subject
    left join run.objects o on o.image = r.image and o.number = r.object
    left join judged on judged.image = r.image and judged.number = r.number
    order by position
"""


def _hits(index: Index, filters: Filters, places: Sequence[Place]) -> list[Hit]:
    """The hits at these places."""
    if not places:
        return []
    images = [image for _, image, _ in places]
    numbers = [-1 if filters.finds_images else number for _, _, number in places]
    captions = _captions(index, filters.query.captions[0], images) if filters.query.captions else {}
    rows = index.rows(_HITS, [images, numbers, len(places)])
    return [
        Hit(*(*row[:18], *map(_box, row[18:]), captions.get(image))) for image, row in zip(images, rows, strict=True)
    ]


def _captions(index: Index, text: str, images: Iterable[int]) -> dict[int, str]:
    """The first caption of each image that contains the text."""
    chosen = ", ".join(str(int(image)) for image in set(images))
    rows = index.rows(
        f"""select image, arg_min(caption, number) from run.captions
        where image in ({chosen}) and contains(lower(caption), lower(?)) group by 1""",
        [text],
    )
    return dict(rows)


def _box(values: list[float] | None) -> Box | None:
    return None if values is None else (values[0], values[1], values[2], values[3])


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
    except ValueError:
        raise UserError(f"after={single_line(text, 60)}: not a page of this search; leave it out") from None
    return bool(found["back"]), (number, int(found["image"]), int(found["number"]))
