"""The search language; searches, facets and queues, compared with a plain reading of the run's
records.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.records import Box, Caption, Record, Relation
from sgpipe.stats.measures import measure
from sgpipe.storage.index import Index
from sgpipe.view.filters import ORDERS, Pattern, Query, QueryError, RunNames, parse
from sgpipe.view.search import Facets, Filters, Hit, facets, neighbours, queues, search
from tests.sgpipe.training.data.runs import SIZE, make_records, make_run
from tests.values import values_of

VOCABULARY = RunNames(
    predicates=("on", "riding", "sitting on", "next to", "to", "holding", "Riding", "a|b"),
    categories=(
        "person",
        "traffic light",
        "light",
        "horse",
        "table",
        "dog",
        "cat",
        "bread, sliced",
        "on",
    ),
)

Key = tuple[str, str, int | None, int | None, str | None]


def read(text: str) -> Query:
    return parse(text, VOCABULARY)


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        ("person riding *", Pattern(("person",), ("riding", "Riding"))),
        ("* on table", Pattern(None, ("on",), ("table",))),
        ("dog|cat * horse", Pattern(("dog", "cat"), None, ("horse",))),
        ("dog | cat * horse", Pattern(("dog", "cat"), None, ("horse",))),
        ("traffic light next to person", Pattern(("traffic light",), ("next to",), ("person",))),
        ("PERSON  Sitting   ON table", Pattern(("person",), ("sitting on",), ("table",))),
        ("light|traffic light to dog", Pattern(("light", "traffic light"), ("to",), ("dog",))),
        ("'bread, sliced' 'a|b' *", Pattern(("bread, sliced",), ("a|b",))),
        ("person sit*|rid* *", Pattern(("person",), ("sitting on", "riding", "Riding"))),
        ("* * *", Pattern()),
        ("on on on", Pattern(("on",), ("on",), ("on",))),
    ],
)
def test_a_relation_is_subject_predicate_object(text: str, pattern: Pattern) -> None:
    assert read(text) == Query(text, patterns=(pattern,))


def test_terms_are_combined() -> None:
    query = read('person riding horse, dog on * "a red umbrella" -holding -"no dog" -cat * *')
    assert query.patterns == (
        Pattern(("person",), ("riding", "Riding"), ("horse",)),
        Pattern(("dog",), ("on",)),
    )
    assert query.captions == ("a red umbrella",)
    assert query.without == (Pattern(predicate=("holding",)), Pattern(subject=("cat",)))
    assert query.without_captions == ("no dog",)


def test_a_name_alone_is_a_predicate_or_a_class_at_either_end() -> None:
    assert read("riding dog").mentions == (
        (Pattern(predicate=("riding", "Riding")),),
        (Pattern(subject=("dog",)), Pattern(object=("dog",))),
    )
    assert read("on").mentions == (
        (Pattern(predicate=("on",)), Pattern(subject=("on",)), Pattern(object=("on",))),
    )


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("unicorn on table", 0, "no class or predicate 'unicorn'"), ("person ridin horse", 7, "'ridin'"),
        ("person on unicorn", 10, "'unicorn'"), ("person on dog riding *", 22, "SUBJECT PREDICATE OBJECT"),
        ("* on", 4, "ends too early"), ("* * * * dog", 8, "'dog'"), ("| dog", 0, "| in a wrong place"),
        ('dog "red', 4, "does not end"), ('""', 0, "empty"), ("dog|", 4, "ends too early"), ("-", 0, "'-'"),
        ("dog " * 200, 500, "more than 500 characters"),
    ],
)  # fmt: skip
def test_what_cannot_be_understood_is_pointed_at(text: str, position: int, says: str) -> None:
    with pytest.raises(QueryError, match=r".") as error:
        read(text)
    assert says in str(error.value)
    assert error.value.position == position


@pytest.mark.parametrize(
    "text",
    [
        "  ",
        "," * 99,
        "dog " * 100,
        "dog|" * 49 + "dog",
        "- " * 100,
        "' " * 100,
        "*" * 500,
        "-" * 500,
    ],
)
def test_strange_queries_are_read_or_refused(text: str) -> None:
    with suppress(QueryError):  # and nothing else
        assert read(text).text == text


@dataclass(frozen=True)
class Row:
    """A relation of a record."""

    record: Record
    relation: Relation

    @property
    def key(self) -> Key:
        relation = self.relation
        return (
            self.record.split,
            self.record.image_id,
            relation.subject,
            relation.object,
            relation.predicate,
        )

    @property
    def certainty(self) -> float:
        return 1.0 if self.relation.confidence is None else self.relation.confidence

    @property
    def triplet(self) -> tuple[str, str, str]:
        subject, object_ = (
            self.record.objects[end] for end in (self.relation.subject, self.relation.object)
        )
        return subject.category, self.relation.predicate, object_.category


@pytest.fixture(scope="module")
def records() -> list[Record]:
    rng = random.Random(7)
    records = [*make_records(60, seed=1), *make_records(40, seed=2, split="val")]
    for record in records:
        texts = rng.sample(
            ["A RED Umbrella", "the dog sleeps", "100% 'odd' _text_", "ein Ärgernis"], 2
        )
        record.captions = list(map(Caption, texts)) if record.ok else []
    records.append(
        Record("empty", "other", "val", "e.png", *SIZE, objects=[Box("dog", 2, (0, 0, 5, 5))])
    )
    return records


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory, records: list[Record]) -> Path:
    root = tmp_path_factory.mktemp("run")
    make_run(root, records, rows=30)
    return root


@pytest.fixture(scope="module")
def shared(root: Path) -> Iterator[Index]:
    index = Index(root)
    yield index
    index.close()


@pytest.fixture
def index(shared: Index) -> Index:
    shared.set_judged([])
    return shared


def filters(index: Index, *params: tuple[str, str]) -> Filters:
    read = Filters.from_params(params, index.vocabulary)
    assert Filters.from_params(read.to_params(), index.vocabulary) == read
    return read


def rows(records: list[Record], wanted: Callable[[Row], bool] = lambda row: True) -> list[Row]:
    return [
        row
        for record in records
        for relation in record.relations
        if wanted(row := Row(record, relation))
    ]


def key(hit: Hit) -> Key:
    return hit.split, hit.image_id, hit.subject, hit.object, hit.predicate


def all_hits(index: Index, filters: Filters, limit: int = 100) -> list[Hit]:
    hits = []
    after = None
    while True:
        page, after = search(index, filters, after, limit)
        hits += page
        if after is None:
            return hits


def _says(record: Record, text: str) -> bool:
    return any(text in caption.text.lower() for caption in record.captions)


def _has(record: Record, triplet: tuple[str | None, str | None, str | None]) -> bool:
    return any(_like(Row(record, relation), triplet) for relation in record.relations)


def _like(row: Row, triplet: tuple[str | None, str | None, str | None]) -> bool:
    return all(name in (None, text) for name, text in zip(triplet, row.triplet, strict=True))


SEARCHES: dict[str, tuple[list[tuple[str, str]], Callable[[Row], bool]]] = {
    "everything": ([], lambda row: True),
    "a pattern": ([("q", "dog on *")], lambda row: _like(row, ("dog", "on", None))),
    "names": ([("q", "dog|left hand * CAR|cup")],
              lambda row: row.triplet[0] in ("dog", "left hand") and row.triplet[2] in ("car", "cup")),
    "two patterns": ([("q", "* on *, * under *")],
                     lambda row: row.triplet[1] in ("on", "under")
                     and _has(row.record, (None, "on", None)) and _has(row.record, (None, "under", None))),
    "mentions": ([("q", "on dog")],
                 lambda row: row.triplet[1] == "on" and "dog" in (row.triplet[0], row.triplet[2])),
    "without": ([("q", "-on -dog -person * cup")],
                lambda row: row.triplet[1] != "on" and "dog" not in row.triplet
                and not _like(row, ("person", None, "cup"))),
    "captions": ([("q", '"a red umb" -"DOG sleeps" * on *')],
                 lambda row: row.triplet[1] == "on" and _says(row.record, "a red umb")
                 and not _says(row.record, "dog sleeps")),
    "odd captions": ([("q", '"100% \'odd\' _" "ÄRGER" * * *')],
                     lambda row: _says(row.record, "100% 'odd' _") and _says(row.record, "ärger")),
    "facets": ([("subject", "dog"), ("subject", "cup"), ("predicate", "on"), ("split", "val"), ("status", "ok")],
               lambda row: row.triplet[0] in ("dog", "cup") and row.triplet[1] == "on" and row.record.split == "val"),
    "confidence": ([("low", "0.1"), ("high", "0.7")], lambda row: 0.1 <= row.certainty <= 0.7),
    "sure": ([("low", "1")], lambda row: row.certainty == 1),
    "unknown": ([("predicate", "swallowing")], lambda row: False),
}  # fmt: skip


@pytest.mark.parametrize(("name", "order"), zip(SEARCHES, cycle(ORDERS)))
def test_a_search_and_its_facets_are_what_reading_the_records_finds(
    index, records, name, order
) -> None:
    params, wanted = SEARCHES[name]
    expected = rows(records, wanted)
    hits = all_hits(index, filters(index, *params, ("order", order), ("seed", "4")), limit=23)
    assert sorted(map(key, hits)) == sorted(values_of(expected, "key"))
    assert expected or name == "unknown"
    counted = facets(index, filters(index, *params), limit=500)
    assert counted.total == len(expected)
    assert counted.total_images == len({row.key[:2] for row in expected})
    if not {"subject", "predicate"} & dict(params).keys():
        check_names(counted, values_of(expected, "triplet"))
    if not {"low", "high"} & dict(params).keys():
        check_histogram(counted, values_of(values_of(expected, "relation"), "confidence"))


def check_names(counted: Facets, triplets: list[tuple[str, str, str]]) -> None:
    assert counts_of(counted, "triplet") == Counter(map(" ".join, triplets))
    assert counts_of(counted, "object") == Counter(name for _, _, name in triplets)


def check_histogram(counted: Facets, confidences: list[float | None]) -> None:
    times = Counter(confidences)
    assert counted.unscored == times[None]
    assert sum(counted.histogram) == len(confidences) - times[None]
    assert counted.histogram[14] == times[0.7]
    assert counted.histogram[19] == times[1.0]


def counts_of(counted: Facets, facet: str) -> dict[str, int]:
    return dict(values_of(counted.values[facet], "value", "count"))


def test_orders(index: Index, records: list[Record]) -> None:
    times = Counter(values_of(rows(records), "triplet"))
    hits = {order: all_hits(index, filters(index, ("order", order))) for order in ORDERS}
    sure = certainties(hits["confidence"])
    unsure = certainties(hits["-confidence"])
    triplets = values_of(hits["rarity"], "subject_category", "predicate", "object_category")
    rare = [times[triplet] for triplet in triplets]
    assert sure == sorted(sure, reverse=True)
    assert unsure == sorted(unsure)
    assert rare == sorted(rare)
    second = all_hits(index, filters(index, ("order", "shuffle"), ("seed", "0")))
    other = all_hits(index, filters(index, ("order", "shuffle"), ("seed", "1")))
    assert second == hits["shuffle"] != other
    assert sorted(map(key, second)) == sorted(map(key, other))


def certainties(hits: list[Hit]) -> list[float]:
    return [1.0 if hit.confidence is None else hit.confidence for hit in hits]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("params", [[], [("q", '"a red"')]])
def test_pages_lead_on_and_neighbours_lead_through(
    index: Index, order: str, params: list[tuple[str, str]]
) -> None:
    chosen = filters(index, *params, ("order", order))
    hits = all_hits(index, chosen)
    first, after = search(index, chosen, limit=20)
    assert first + search(index, chosen, after, limit=20)[0] == hits[:40]
    times = Counter(map(key, hits))
    once = [at for at, hit in enumerate(hits) if times[key(hit)] == 1]
    surrounded = [None, *hits, None]
    for at in (once[0], once[len(once) // 2], once[-1]):
        assert _beside(index, chosen, hits[at]) == (surrounded[at], surrounded[at + 2])


def _beside(index: Index, chosen: Filters, hit: Hit) -> tuple[Hit | None, Hit | None]:
    relation = None if hit.subject is None else (hit.subject, hit.object, hit.predicate)
    return neighbours(index, chosen, hit.split, hit.image_id, relation)  # type: ignore[arg-type]


def test_walking_ends_though_an_image_has_a_relation_several_times(index: Index) -> None:
    chosen = filters(index, ("q", "dog * *"))
    hits = all_hits(index, chosen)
    assert max(Counter(map(key, hits)).values()) > 1
    hit = hits[0]
    steps = 1
    while (after := _beside(index, chosen, hit)[1]) is not None:
        hit = after
        steps = steps + 1
        assert steps <= len(hits)
    assert hit == hits[-1]


def test_captions_alone_find_images(index: Index, records: list[Record]) -> None:
    chosen = filters(index, ("q", '"a red"'))
    hits = all_hits(index, chosen)
    images = [record for record in records if _says(record, "a red")]
    assert values_of(hits, "image_id") == values_of(images, "image_id")
    assert set(values_of(hits, "caption")) == {"A RED Umbrella"}
    assert set(values_of(hits, "predicate")) == {None}
    counted = facets(index, chosen, limit=500)
    assert counted.total == counted.total_images == len(images)
    assert sum(values_of(counted.values["predicate"], "count")) == sum(
        len(image.relations) for image in images
    )
    assert counts_of(counted, "split") == Counter(values_of(images, "split"))


def test_error_rows_and_images_without_relations_are_found(
    index: Index, records: list[Record]
) -> None:
    failed = [record.image_id for record in records if not record.ok]
    for param in (("status", "error"), ("queue", "errors")):
        hits = all_hits(index, filters(index, param))
        assert values_of(hits, "image_id") == failed
        assert set(values_of(hits, "error")) == {"caption: image file not found"}
    [empty] = all_hits(index, filters(index, ("queue", "without_relations: no captions")))
    assert (empty.image_id, empty.why) == ("empty", "no captions")


def test_queues_are_the_health_checks_of_the_audit(
    index: Index, root: Path, records: list[Record]
) -> None:
    counts = dict(values_of(queues(index), "key", "count"))
    exact = ("self_relations", "impossible_places", "far_apart", "no_relation")
    health = dict(values_of(measure(root).health, "name", "count"))
    assert {name: counts.get(name, 0) for name in exact} == {name: health[name] for name in exact}
    assert counts["self_relations"] > 0
    without = [record for record in records if record.ok and not record.relations]
    assert counts["without_relations"] == len(without)
    for queue in queues(index):
        assert len(all_hits(index, filters(index, ("queue", queue.key)))) == queue.count
        assert facets(index, filters(index, ("queue", queue.key))).total == queue.count


def judge(index: Index, hits: list[Hit], states: list[str]) -> None:
    rows = [(*key(hit), state) for hit, state in zip(hits, states, strict=True)]
    index.set_judged(rows)  # type: ignore[arg-type]


def keys(index: Index, *params: tuple[str, str]) -> set[Key]:
    return set(map(key, all_hits(index, filters(index, *params))))


def test_judgements_can_be_searched(index: Index) -> None:
    hits = list({key(hit): hit for hit in all_hits(index, filters(index))}.values())
    states = ["right", "wrong", "conflict", "right"]
    judge(index, hits[:4], states)
    assert keys(index, ("judged", "right")) == {key(hits[0]), key(hits[3])}
    assert keys(index, ("queue", "conflicts")) == {key(hits[2])}
    assert keys(index, ("queue", "not_judged")).isdisjoint(map(key, hits[:4]))
    assert values_of(search(index, filters(index))[0][:3], "judged") == states[:3]
    left = len(all_hits(index, filters(index, ("queue", "not_judged"))))
    counts = counts_of(facets(index, filters(index)), "judged")
    assert counts == {"right": 2, "wrong": 1, "conflict": 1, "none": left}


def test_judgements_of_several_kinds_are_searched_together(index: Index) -> None:
    hits = list({key(hit): hit for hit in all_hits(index, filters(index))}.values())
    judge(index, hits[:4], ["right", "wrong", "conflict", "right"])
    left = dict(values_of(queues(index), "key", "count"))["not_judged"]
    judge(index, hits[1:4], ["right", "wrong", "wrong"])
    both = keys(index, ("judged", "wrong"), ("judged", "right"))
    assert both == set(map(key, hits[1:4]))
    assert dict(values_of(queues(index), "key", "count"))["not_judged"] == left + 1


def test_parameters_and_cursors_without_sense_are_refused(index: Index) -> None:
    huge = "9" * 31
    for parameter in (
        "low=a",
        "high=2",
        "low=nan",
        "order=best",
        "seed=-1",
        f"seed={huge}",
        "judged=x",
    ):
        with pytest.raises(UserError, match=f"^{parameter.partition('=')[0]}"):
            filters(index, tuple(parameter.split("=")))
    for after in ("x", "1_2", "1e999_1_1", "nan_1_1", "0.5_1_1; drop", f"{huge}_1_1"):
        with pytest.raises(UserError, match="after="):
            search(index, filters(index), after)


def test_hostile_values_find_nothing(index: Index) -> None:
    for value in ("'; drop table judged; --", "%", "\0", "🦄" * 100, "'"):
        assert search(index, filters(index, ("predicate", value), ("dataset", value)))[0] == []
    assert search(index, filters(index, ("q", '"%" * * *')))[0] != []  # "100%"
    assert search(index, filters(index, ("q", '"\'; drop"')))[0] == []


def test_a_facet_counts_without_its_own_filter(index: Index, records: list[Record]) -> None:
    counted = facets(index, filters(index, ("predicate", "on"), ("subject", "dog")), limit=2)
    expected = Counter(row.triplet[1] for row in rows(records, lambda row: row.triplet[0] == "dog"))
    chosen = [value for value in counted.values["predicate"] if value.chosen]
    assert counts_of(counted, "predicate").items() <= expected.items()
    assert values_of(chosen, "value", "params") == [("on", (("predicate", "on"),))]
    assert counted.total == expected["on"]
