"""Searching a run: hits page by page, the neighbours of a hit, and facets (hits counted by what
they are).
"""

import hashlib
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgpipe.errors import UserError
from sgpipe.storage.health_rules import MARKS
from sgpipe.storage.index import Index
from sgpipe.storage.index_build import BINS, FACETS, HEAD, LOTS, MOST_CERTAIN
from sgpipe.utils.console import single_line
from sgpipe.view.filters import FIELDS, WITHOUT, Filters, Queue, Where

_OF_IMAGES = ("dataset", "split", "status")
_MANY = 500_000  # hits, among which only the triplets that the run has most often are counted
_TABLE = {True: "images", False: "relations"}  # of hits
Box = tuple[float, float, float, float]  # xywh in pixels
Row = tuple[Any, ...]  # a hit: the first three are its place
# in an order: the value that is ordered by, the image, and the number in the image
Place = tuple[object, int, int]

_NUMBER = r"-?\d{1,20}(?:\.\d{1,20})?(?:e[+-]?\d{1,2})?"
_CURSOR = re.compile(rf"({_NUMBER})_(\d{{1,9}})_(\d{{1,9}})", re.ASCII)

# What a hit says of a relation, and its columns.
_OF_RELATION = {"subject": "subject", "object": "object", "predicate": "predicate::varchar"}
_OF_RELATION |= {
    "confidence": "if(annotated, null, certainty)",
    "clip_score": "clip_score",
    "vlm_score": "vlm_score",
}
_OF_RELATION |= {
    name: f"{name}::varchar" for name in ("subject_category", "object_category", "origin")
}


@dataclass(frozen=True)
class FacetValue:
    """A value, how many hits have it, and whether it is among the filters. `params`: of the URL
    that choose it.
    """

    value: str
    count: int
    chosen: bool
    params: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Facets:
    """Counts over all hits of a search. Where hits are images, relations are those of these images.

    The most frequent `values` of each facet, and those chosen, count the hits without the facet's
    own filter, so that others can be chosen; the `histogram` in 20 bins those without `low` and
    `high`. `unscored`: without confidence.
    """

    values: dict[str, list[FacetValue]]
    total: int
    total_images: int
    histogram: tuple[int, ...]
    unscored: int


def facets(index: Index, filters: Filters, limit: int = 12) -> Facets:
    """Count the hits of a search by what they are: `limit` values of each facet, and those
    chosen.
    """
    plain = filters.model_copy(update={"order": "confidence", "seed": 0})
    return index.remember(("facets", plain, limit), lambda: _facets(index, plain, limit))


def _facets(index: Index, filters: Filters, limit: int) -> Facets:
    images = filters.finds_images
    parts = [*FACETS, "triplet", "confidence"]
    if index.rows("from judged limit 1"):
        parts.append("judged")
    # what is counted over the hits of which search
    searches: dict[tuple[Filters, bool], list[str]] = defaultdict(list)
    for part in parts:
        searches[filters.without(part), images and part in _OF_IMAGES].append(part)
    searches[filters, images].append("total")
    counts: dict[str, dict[str, int]] = {}
    for (variant, of_images), counted in searches.items():
        counts |= _count(index, variant, of_images, counted, filters, limit)
    values = {}
    for part in FIELDS:
        chosen = getattr(filters, part)
        times_of = dict(counts.get(part, {}))
        for value in chosen:
            times_of.setdefault(value, 0)
        values[part] = [
            FacetValue(value, times, value in chosen, ((part, value),))
            for value, times in times_of.items()
        ]
    values["triplet"] = _triplets(index, counts["triplet"], filters)
    return Facets(
        values=values,
        total=counts["total"]["hits"],
        total_images=counts["total"]["images"],
        histogram=tuple(counts["confidence"].get(str(number), 0) for number in range(BINS)),
        unscored=counts["confidence"].get(str(BINS), 0),
    )


def _count(
    index: Index,
    variant: Filters,
    of_images: bool,
    parts: Sequence[str],
    filters: Filters,
    limit: int,
) -> dict[str, dict[str, int]]:
    """Return the most frequent values of each part among the hits of a search, and those chosen by
    `filters`.
    """
    where = Where(variant, of_images)
    everything = not of_images and where.sql == "true"  # which was counted when the index was built
    hits = (
        f"with hits as materialized (select hit.* from run.{_TABLE[of_images]} hit where"
        f" {where.sql})"
    )
    selects = []
    values = list(where.values)
    for part in parts:
        chosen = getattr(filters, part) if part in FACETS else ()
        first = f"value in ({', '.join('?' * len(chosen))}) desc, " if chosen else ""
        rows = limit + len(chosen) if part in (*FACETS, "triplet") else 100
        source = _values_of(part, everything)
        selects.append(
            f"(select '{part}', * from ({source}) order by {first}times desc, value limit {rows})"
        )
        values += chosen
    counts: dict[str, dict[str, int]] = {part: {} for part in parts}
    query = f"{'' if everything else hits} {' union all '.join(selects)}"
    by_times = sorted(index.rows(query, values), key=lambda row: (-row[2], row[1] or ""))
    for part, value, times in by_times:
        if value is not None:
            counts[part][value] = times
    return counts


def _values_of(part: str, everything: bool) -> str:
    """SQL for the values of a part and how often they occur, among the hits or all relations."""
    if everything and part == "judged":
        return """select state as value, count(*) as times from judged group by state
            union all select 'none', (select relations from run.about) - (select count(*) from judged)"""
    if everything:
        return f"select value, times from run.everything where part = '{part}'"
    if part == "total":
        return """select 'hits' as value, count(*) as times from hits
            union all select 'images', count(distinct image) from hits"""
    if part == "judged":
        return """select coalesce(state, 'none') as value, count(*) as times
            from hits left join judged using (image, number) group by 1"""
    column = {"triplet": "triplet", "confidence": "bin"}.get(part) or FACETS[part]
    only = (
        f"where triplet <= {HEAD} or (select count(*) from hits) <= {_MANY}"
        if part == "triplet"
        else ""
    )
    return (
        f"select {column}::varchar as value, count(*) as times from hits {only} group by {column}"
    )


def _triplets(index: Index, counts: Mapping[str, int], filters: Filters) -> list[FacetValue]:
    chosen = (filters.subject, filters.predicate, filters.object)
    rows = index.rows(
        """select triplet::varchar, subject_category::varchar, predicate::varchar, object_category::varchar
        from run.triplets where triplet in (select unnest(?::int[]))""",
        [list(counts)],
    )
    names = {number: words for number, *words in rows if None not in words}
    values = []
    for number, times in counts.items():
        if number in names:
            words = names[number]
            params = tuple(zip(("subject", "predicate", "object"), words, strict=True))
            is_chosen = chosen == tuple((word,) for word in words)
            values.append(FacetValue(" ".join(words), times, is_chosen, params))
    return values


def queues(index: Index) -> list[Queue]:
    """Return the queues that have hits, such as what the health checks of the audit found, and
    error rows.
    """
    return index.remember("queues", lambda: _count_queues(index))


def _count_queues(index: Index) -> list[Queue]:
    hits = dict(index.rows("from run.marks"))
    reasons = index.rows(
        "select why, count(*) from run.images where why is not null group by 1 order by 2 desc, 1"
    )
    [(errors, conflicts, judged)] = index.rows(
        """select (select count(*) from run.images where status = 'error'),
            count(*) filter (state = 'conflict'), count(*) from judged"""
    )
    bare = "images without relations"
    queues = []
    for bit, mark in enumerate(MARKS):
        queues.append(Queue(mark.name, mark.title, hits.get(1 << bit, 0), mark.advice))
    if len(reasons) > 1:
        queues.append(Queue(WITHOUT, bare, sum(images for _, images in reasons), ""))
    for why, images in reasons:
        queues.append(Queue(f"{WITHOUT}: {why}", f"{bare}: {why}", images, ""))
    retry = "`sgpipe generate --retry-failed` processes them again."
    unjudged = index.relations - judged
    queues.append(Queue("errors", "error rows", errors, retry))
    queues.append(Queue("conflicts", "relations on which people disagree", conflicts, ""))
    queues.append(Queue("not_judged", "relations that nobody has judged", unjudged, ""))
    return [queue for queue in queues if queue.count]


@dataclass(frozen=True)
class Hit:
    """A relation that was found and its image; or an image (`Filters.finds_images`), with None for
    all of the relation.

    `caption`: the first of the image that has what the query looks for. `error`, `why`: why the row
    is an error row, or has no relations. `confidence`: None: annotated. `judged`: the state of
    judgement.
    """

    split: str
    image_id: str
    width: int
    height: int
    error: str | None = None
    why: str | None = None
    subject: int | None = None
    object: int | None = None
    predicate: str | None = None
    confidence: float | None = None
    subject_category: str | None = None
    object_category: str | None = None
    clip_score: float | None = None
    vlm_score: float | None = None
    judged: str | None = None
    origin: str | None = None
    subject_box: Box | None = None
    object_box: Box | None = None
    caption: str | None = None


def search(
    index: Index, filters: Filters, after: str | None = None, limit: int = 48
) -> tuple[list[Hit], str | None]:
    """Return a page of hits, and the `after` of the next one, if any.

    Raises:
        UserError: no such cursor or queue.
    """
    start = None
    if after:
        cursor = _CURSOR.fullmatch(after)
        if not cursor:
            raise UserError(
                f"after={single_line(after, 60)}: not a page of this search; leave it out"
            )
        start = cursor[1], int(cursor[2]), int(cursor[3])
    rows = _found(index, filters, start, limit + 1)
    last = "_".join(map(str, rows[limit - 1][:3])) if len(rows) > limit else None
    return _hits(index, filters, rows[:limit]), last


def neighbours(
    index: Index,
    filters: Filters,
    split: str,
    image_id: str,
    relation: tuple[int, int, str] | None = None,
) -> tuple[Hit | None, Hit | None]:
    """Return the hits before and after a relation (subject, object, predicate), or else an image's
    first hit.

    An image without hits comes before all of them. A relation that the image has several times
    counts as one, from its first place to its last: every walk ends.

    Raises:
        UserError: as `search`.
    """
    first = _place(index, filters, split, image_id, relation)
    last = _place(index, filters, split, image_id, relation, last=True) if relation else first
    before = _found(index, filters, first, 1, back=True) if first else []
    later = _found(index, filters, last, 1)
    hits = iter(_hits(index, filters, [*before, *later]))
    return next(hits) if before else None, next(hits) if later else None


def select_relations(index: Index, filters: Filters) -> tuple[str, list[object]]:
    """Return the relations as SQL, with the values of its `?`.

    Raises:
        UserError: hits are images, or no such queue.
    """
    if filters.finds_images:
        raise UserError(
            "this search finds images, not relations: add a class, a predicate or a range of"
            " confidence"
        )
    where = Where(filters, of_images=False)
    names = ("split", "predicate", "subject_category", "object_category")
    columns = ", ".join(f"hit.{name}::varchar as {name}" for name in names)
    query = f"""select {columns}, image_id, subject, object, if(annotated, null, certainty) as confidence
        from run.relations hit join (select image, image_id from run.images) using (image) where {where.sql}"""
    return query, where.values


def _order(filters: Filters) -> tuple[str, str, bool]:
    """Return what hits are ordered by, as SQL; its type; and whether the largest comes first."""
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
        "clip_score": ("coalesce(clip_score, 2)", "double", False),  # a cosine is smaller
        "vlm_score": ("coalesce(vlm_score, 2)", "float", False),
    }[filters.order]


def _place(
    index: Index,
    filters: Filters,
    split: str,
    image_id: str,
    relation: tuple[int, int, str] | None,
    last: bool = False,
) -> Place | None:
    """Return the first (or last) place of a relation in a search, or else that of its image's first
    hit.
    """
    of_images = filters.finds_images
    query = "select image from run.images where image_id = ? and split = ?"
    image = next(iter(index.rows(query, [image_id, split])), None)
    if image is None:
        return None
    rows: list[Row] = []
    if relation is not None or of_images:
        where = Where(Filters(), of_images)
        where.add("image = ?", image)
        if relation is not None and not of_images:
            where.add("subject = ? and object = ? and predicate = ?", relation)
        rows = _ordered(index, filters, where, 1, last)
    if not rows:
        where = Where(filters, of_images)
        where.add("image = ?", image)
        rows = _ordered(index, filters, where, 1, back=False)
    return rows[0][:3] if rows else None


def _found(
    index: Index, filters: Filters, start: Place | None, limit: int, back: bool = False
) -> list[Row]:
    """Return the hits after a place, or before it, the nearest first."""
    where = Where(filters, filters.finds_images)
    if start is not None:
        value, image, number = start
        key, kind, falling = _order(filters)
        column = "0" if filters.finds_images else "number"
        after = "<" if falling != back else ">"
        later = "<" if back else ">"
        at = f"try_cast(? as {kind})"
        where.add(
            f"{key} {after}= {at} and ({key} {after} {at} or image {later} ? or (image = ? and"
            f" {column} {later} ?))",
            [value, value, image, image, number],
        )
    return _ordered(index, filters, where, limit, back)


def _ordered(index: Index, filters: Filters, where: Where, limit: int, back: bool) -> list[Row]:
    """Return rows of hits: their places and `_OF_RELATION`; `back`: from the end."""
    key, _, falling = _order(filters)
    of_images = filters.finds_images
    columns = "0 as number" if of_images else f"number, {', '.join(_OF_RELATION.values())}"
    first = "desc" if falling != back else "asc"
    rest = "desc" if back else "asc"
    table = _TABLE[of_images]
    everything = not of_images and where.sql == "true"
    if everything and filters.order == "confidence" and not back and limit <= MOST_CERTAIN:
        table = "most_certain"
    return index.rows(
        f"""select {key}, image, {columns} from run.{table} hit where {where.sql}
        order by {key} {first}, image {rest}, number {rest} limit {int(limit)}""",
        where.values,
    )


def _hits(index: Index, filters: Filters, rows: Sequence[Row]) -> list[Hit]:
    """Return the hits of `_ordered` with what is shown of them."""
    if not rows:
        return []
    numbers = [row[1] for row in rows]
    images = _images(index, numbers)
    captions = _captions(index, filters, images)
    hits = [replace(Hit(*images[image][2:]), caption=captions.get(image)) for image in numbers]
    if filters.finds_images:
        return hits
    boxes = _boxes(index, rows, images)
    judged = _judged(index, numbers)
    shown = []
    for hit, row in zip(hits, rows, strict=True):
        _, image, number, subject, object_ = row[:5]
        relation = replace(
            hit,
            **dict(zip(_OF_RELATION, row[3:], strict=True)),
            subject_box=boxes.get((image, subject)),
            object_box=boxes.get((image, object_)),
            judged=judged.get((image, number)),
        )
        shown.append(relation)
    return shown


def _images(index: Index, numbers: Sequence[int]) -> dict[int, Sequence[Any]]:
    """Return of images, by number, the first object, the number of objects, and what a hit has."""
    query = """select image, first_object, objects, split::varchar, image_id, width, height, error, why
        from run.images join (select distinct unnest(?::int[]) as image) using (image)"""
    return {image: values for image, *values in index.rows(query, [numbers])}


def _captions(index: Index, filters: Filters, images: Iterable[int]) -> dict[int, str]:
    """Return the first caption of each image that contains the text of a search."""
    if not filters.query.captions:
        return {}
    query = f"""select image, arg_min(caption, number) from run.captions
        where image in ({", ".join(map(str, images))}) and contains(folded, lower(?)) group by 1"""
    return dict(index.rows(query, [filters.query.captions[0]]))


def _boxes(
    index: Index, rows: Sequence[Row], images: Mapping[int, Sequence[Any]]
) -> dict[tuple[int, int], Box]:
    """Return the boxes of relations by image and number."""
    positions = set[int]()
    for row in rows:
        first, objects = images[row[1]][:2]
        for number in row[3:5]:
            if number is not None and 0 <= number < objects:
                positions.add(first + number)
    query = """select image, number, x, y, w, h
        from run.objects join (select unnest(?::bigint[]) as row) on rowid = row"""
    objects_found = index.rows(query, [list(positions)])
    return {(image, number): (x, y, w, h) for image, number, x, y, w, h in objects_found}


def _judged(index: Index, images: Sequence[int]) -> dict[tuple[int, int], str]:
    """Return the state of the judged relations of images, by image and number."""
    query = "select image, number, state from judged where image in (select unnest(?::int[]))"
    return {(image, number): state for image, number, state in index.rows(query, [images])}
