"""Searching a run: hits page by page, the neighbours of a hit, and facets (hits counted by what they are)."""

from __future__ import annotations

import hashlib
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, NamedTuple

from sgpipe.errors import UserError
from sgpipe.storage.index import Index
from sgpipe.storage.index_build import BINS, FACETS, HEAD, LOTS
from sgpipe.utils.console import single_line
from sgpipe.view.filters import FIELDS, Filters, Where, count_queues
from sgpipe.view.filters import Order as Order
from sgpipe.view.filters import Queue as Queue

_OF_IMAGES = ("dataset", "split", "status")
# Among very many hits only the triplets that the run has most often are counted, unless another may be among the first.
_MANY = 500_000
_FEW = f"triplet <= {HEAD} or (select count(*) from hits) <= {_MANY}"

_Counts = dict[str, list[tuple[str, int]]]  # values of each part with their counts


@dataclass(frozen=True)
class FacetValue:
    """A value, how many hits have it, and whether it is among the filters. `params`: of the URL that choose it."""

    value: str
    count: int
    chosen: bool
    params: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facets:
    """Counts over all hits of a search. Where hits are images, relations are those of these images.

    Attributes:
        values: of subject, predicate, object, triplet, dataset, split, status, judged: the most frequent values, and
            those chosen. Each counts the hits of the search without its own filter, so that others can be chosen.
        total: number of hits; `total_images`: of images they are in.
        histogram: relations by confidence in 20 bins from 0 to 1; without `low` and `high`. Those without confidence
            are not in it: `unscored`.
    """

    values: dict[str, list[FacetValue]]
    total: int
    total_images: int
    histogram: tuple[int, ...]
    unscored: int


def _count(index: Index, filters: Filters, limit: int) -> Facets:
    counts: _Counts = {}
    for (variant, of_images), parts in _variants(index, filters).items():
        counts |= _Hits(index, variant, of_images, filters, limit).count(parts)
    histogram = dict(counts["confidence"])
    return Facets(
        values={name: _values(name, counts.get(name, []), filters) for name in FIELDS}
        | {"triplet": _triplets(index, counts["triplet"], filters)},
        total=dict(counts["total"])["hits"],
        total_images=dict(counts["total"])["images"],
        histogram=tuple(histogram.get(str(number), 0) for number in range(BINS)),
        unscored=histogram.get(str(BINS), 0),
    )


def _variants(index: Index, filters: Filters) -> dict[tuple[Filters, bool], list[str]]:
    """What is to be counted over the hits of which search, and whether these are images."""
    images = filters.finds_images
    parts: dict[tuple[Filters, bool], list[str]] = defaultdict(list)
    for name in (*FACETS, "triplet", "confidence", *(["judged"] if index.has_judgements else [])):
        parts[filters.without(name), images and name in _OF_IMAGES].append(name)
    parts[filters, images].append("total")
    return parts


class _Hits:
    """The hits of a search to be counted, which are read once."""

    def __init__(self, index: Index, search: Filters, of_images: bool, chosen: Filters, limit: int) -> None:
        where = Where(search, of_images)
        table = "images" if of_images else "relations"
        self._all = not of_images and where.sql == "true"
        hits = f"with hits as materialized (select hit.* from run.{table} hit where {where.sql})"
        self._hits = "" if self._all else hits
        self._index, self._values, self._chosen, self._limit = index, where.values, chosen, limit

    def count(self, parts: Sequence[str]) -> _Counts:
        """The most frequent values of each part and those chosen, most frequent first."""
        counts = self._count([*parts, "total"], _FEW)
        if "triplet" in parts and not self._all and dict(counts["total"])["hits"] > _MANY:
            last = counts["triplet"][self._limit - 1][1] if len(counts["triplet"]) >= self._limit else 0
            if last < self._index.times_of_triplet(HEAD + 1):
                counts |= self._count(["triplet"], "true")
        return counts if "total" in parts else {part: counts[part] for part in parts}

    def _count(self, parts: Sequence[str], triplets: str) -> _Counts:
        selects = [self._select_everything(part) if self._all else self._select(part, triplets) for part in parts]
        values = [*self._values, *(value for _, values in selects for value in values)]
        counts: _Counts = {part: [] for part in parts}
        for part, value, times in self._index.rows(f"{self._hits} {' union all '.join(s for s, _ in selects)}", values):
            if value is not None:
                counts[part].append((value, times))
        return {part: sorted(rows, key=lambda row: (-row[1], row[0])) for part, rows in counts.items()}

    def _select_everything(self, part: str) -> tuple[str, Sequence[Any]]:
        """As `_select`, from what was counted when the index was built."""
        if part == "judged":
            open_ = "(select relations from run.about) - (select count(*) from judged)"
            judged = "select 'judged', state, count(*) from judged group by state"
            return f"{judged} union all select 'judged', 'none', {open_}", ()
        chosen = getattr(self._chosen, FIELDS[part]) if part in FIELDS else ()
        first = f"value in ({', '.join('?' * len(chosen))}) desc, " if chosen else ""
        limit = "" if part == "confidence" else f"limit {self._limit + len(chosen)}"
        return f"(select * from run.everything where part = '{part}' order by {first}times desc, value {limit})", chosen

    def _select(self, part: str, triplets: str) -> tuple[str, Sequence[Any]]:
        if part == "total":
            images = "select 'total', 'images', count(distinct image) from hits"
            return f"select 'total', 'hits', count(*) from hits union all {images}", ()
        if part == "confidence":
            return "select 'confidence', bin::varchar, count(*) from hits group by bin", ()
        if part == "judged":
            return (
                "select 'judged', coalesce(state, 'none'), count(*) "
                "from hits left join judged using (image, number) group by 2",
                (),
            )
        if part == "triplet":
            column, first, chosen, where = "triplet", "", (), f"where {triplets}"
        else:
            column, where, chosen = FACETS[part], "", getattr(self._chosen, FIELDS[part])
            first = f"{column} in ({', '.join('?' * len(chosen))}) desc, " if chosen else ""
        return (
            f"(select '{part}', {column}::varchar, count(*) as times from hits {where} group by {column} "
            f"order by {first}times desc, {column} limit {self._limit + len(chosen)})",
            chosen,
        )


def _values(name: str, counts: Sequence[tuple[str, int]], filters: Filters) -> list[FacetValue]:
    chosen = getattr(filters, FIELDS[name])
    absent = [(value, 0) for value in chosen if value not in dict(counts)]
    return [FacetValue(value, times, value in chosen, ((name, value),)) for value, times in (*counts, *absent)]


def _triplets(index: Index, counts: Sequence[tuple[str, int]], filters: Filters) -> list[FacetValue]:
    chosen = (filters.subjects, filters.predicates, filters.objects)
    numbers = [int(number) for number, _ in counts]
    names = {
        number: words
        for number, *words in index.rows(
            f"""select triplet, subject_category::varchar, predicate::varchar, object_category::varchar
            from run.triplets where triplet in ({", ".join(map(str, numbers)) or "null"})"""
        )
        if None not in words
    }
    return [
        FacetValue(
            value=" ".join(names[number]),
            count=times,
            chosen=tuple((word,) for word in names[number]) == chosen,
            params=tuple(zip(("subject", "predicate", "object"), names[number], strict=True)),
        )
        for number, (_, times) in zip(numbers, counts, strict=True)
        if number in names
    ]


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
    """Count the hits of a search by what they are: `limit` values of each facet, and those chosen."""
    plain = replace(filters, order="confidence", seed=0)
    return index.remember(("facets", plain, limit), lambda: _count(index, plain, limit))


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
        "agreement": ("coalesce(agreement, 2)", "double", False),  # a cosine is smaller
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
    scores = "if(annotated, null, certainty), agreement, opinion"
    return "relations", "number", f"subject, object, {names}, {scores}, triplet"


def _place(
    index: Index, filters: Filters, split: str, image_id: str, relation: tuple[int, int, str] | None, last: bool = False
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
