"""Facets: the hits of a search counted by what they are."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from sgpipe.view.build import BINS, FACETS, HEAD
from sgpipe.view.filters import FIELDS, Filters, Where
from sgpipe.view.index import Index

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


def count_facets(index: Index, filters: Filters, limit: int) -> Facets:
    """See `sgpipe.view.search.facets`."""
    plain = replace(filters, order="confidence", seed=0)
    return index.remember(("facets", plain, limit), lambda: _count(index, plain, limit))


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
