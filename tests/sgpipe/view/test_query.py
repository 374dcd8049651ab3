"""The search language."""

from contextlib import suppress

import pytest

from sgpipe.view.filters import Pattern, Query, QueryError, RunNames, parse

VOCABULARY = RunNames(
    predicates=("on", "riding", "sitting on", "next to", "to", "holding", "Riding", "a|b"),
    categories=("person", "traffic light", "light", "horse", "table", "dog", "cat", "bread, sliced", "on"),
)


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
    assert query.patterns == (Pattern(("person",), ("riding", "Riding"), ("horse",)), Pattern(("dog",), ("on",)))
    assert query.captions == ("a red umbrella",)
    assert query.without == (Pattern(predicate=("holding",)), Pattern(subject=("cat",)))
    assert query.without_captions == ("no dog",)


def test_a_name_alone_is_a_predicate_or_a_class_at_either_end() -> None:
    assert read("riding dog").mentions == (
        (Pattern(predicate=("riding", "Riding")),),
        (Pattern(subject=("dog",)), Pattern(object=("dog",))),
    )
    assert read("on").mentions == ((Pattern(predicate=("on",)), Pattern(subject=("on",)), Pattern(object=("on",))),)


def test_nothing_finds_everything() -> None:
    assert read("  ") == Query("  ")


@pytest.mark.parametrize(
    ("text", "position", "says"),
    [
        ("unicorn on table", 0, "no class or predicate 'unicorn'"),
        ("person ridin horse", 7, "did you mean riding?"),
        ("person on unicorn", 10, "'unicorn'"),
        ("person on dog riding *", 22, "SUBJECT PREDICATE OBJECT"),
        ("* on", 4, "ends too early"),
        ("* * * * dog", 8, "no predicate 'dog'"),
        ("| dog", 0, "| in a wrong place"),
        ('dog "red', 4, "does not end"),
        ('""', 0, "empty"),
        ("dog|", 4, "ends too early"),
        ("-", 0, "'-'"),
        ("dog " * 200, 500, "more than 500 characters"),
    ],
)
def test_what_cannot_be_understood_is_pointed_at(text: str, position: int, says: str) -> None:
    with pytest.raises(QueryError, match=r".") as error:
        read(text)
    assert says in str(error.value)
    assert error.value.position == position


@pytest.mark.parametrize(
    "text", ["," * 99, "dog " * 100, "dog|" * 49 + "dog", "- " * 100, "' " * 100, "*" * 500, "-" * 500]
)
def test_strange_queries_are_read_or_refused(text: str) -> None:
    with suppress(QueryError):  # and nothing else
        assert read(text).text == text
