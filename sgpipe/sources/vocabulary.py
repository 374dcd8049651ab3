"""Class names of the detection datasets, synonyms of them in captions, and predicates that say the
same.

The packaged tables are in `sgpipe/sources/data`. A synonym table is `{class name: [phrases]}`. A
phrase that starts with "!" is excluded from the class: "!license plate" under "plate" keeps license
plates from being matched as plates. Plurals and possessives are not listed: the matcher derives
them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any, NamedTuple, TypeAlias

import yaml

from sgpipe.errors import UserError
from sgpipe.files.locations import Location, read_text
from sgpipe.records import Pair, Relation
from sgpipe.utils.config_file import parse_yaml
from sgpipe.utils.lemmas import is_participle, predicate_lemma, without_auxiliaries

Synonyms: TypeAlias = Mapping[str, tuple[str, ...]]
# the other texts that count as each predicate
PredicateSynonyms: TypeAlias = Mapping[str, Sequence[str]]
_SYNONYMS = "synonyms"
_INVERSES = "inverses"
_ARTICLES = ("a", "an", "the")
_Form: TypeAlias = tuple[str, bool]  # a lemma, and whether the text says it from object to subject


def category_names(dataset: str) -> dict[int, str]:
    """Return the class names by category id, in the order of the ids; empty for datasets whose
    files contain them.

    "coco": 80 with ids 1 to 90; "objects365": 365 of v2 in lower case, with the spelling corrected
    as RLIPv2 does; "open_images": 601 of V6 with ids from 0, as in RLIPv2's annotations.
    """
    return {row["id"]: row["name"] for row in _packaged(f"{dataset}_names.json") or ()}


def relation_names(dataset: str) -> dict[int, str]:
    """Return the relation names by the id in the dataset's annotation files; empty for any other
    dataset.

    "hico": 117 with ids 1 to 117; "vcoco": 29 with ids 0 to 28 in RLIPv2's wording; "open_images":
    30 with ids 0 to 29.
    """
    return {row["id"]: row["name"] for row in _packaged(f"{dataset}_relations.json") or ()}


def official_relation_names(dataset: str) -> dict[str, str]:
    """Return sgpipe's relation name by the official one ("sit_instr" is "sit on/at")."""
    rows = _packaged(f"{dataset}_relations.json") or ()
    return {row.get("official", row["name"].replace(" ", "_")): row["name"] for row in rows}


def packaged_synonyms(dataset: str) -> Synonyms:
    """Return the synonym table that ships for "coco" or "objects365"; empty for any other dataset.

    It covers every class: first the name itself, then synonyms that hold in every dataset, then
    those that hold only because this dataset has no finer class (a yacht is a "boat" in COCO). Body
    parts are not synonyms of a person: the relation of "a cup in his hand" does not hold for the
    person's box.
    """
    common = _packaged("common_synonyms.json")
    of_dataset = _packaged(f"{dataset}_synonyms.json") or {}
    return {
        name: (name, *common.get(name, ()), *of_dataset.get(name, ()))
        for name in category_names(dataset).values()
    }


def loose_words() -> dict[str, tuple[str, ...]]:
    """Return words such as "beer" or "food" for things of several classes of COCO or Objects365:
    these, best first.
    """
    return {
        word: tuple(classes)
        for words, classes in _packaged("loose_words.json")["called"]
        for word in words
    }


@cache
def implied_things() -> tuple[re.Pattern[str], list[tuple[str, tuple[str, ...]]]]:
    """Return a pattern of words that imply a thing, and for each of its groups the predicate and
    the thing's classes.

    A "skier" is a person skiing on skis. Words are in lower case with single spaces.
    """
    rows = _packaged("loose_words.json")["implied"]
    pattern = "|".join(f"({words})" for words, _, _ in rows)
    return re.compile(rf"\b(?:{pattern})\b"), [
        (predicate, tuple(classes)) for _, predicate, classes in rows
    ]


@cache
def _packaged(file_name: str) -> Any:
    resource = files("sgpipe.sources") / "data" / file_name
    return json.loads(resource.read_text(encoding="utf-8")) if resource.is_file() else None


def load_synonyms(path: Location) -> Synonyms:
    """Read a synonym table `{class name: [phrases]}` from a YAML or JSON file."""
    table = _check_table(
        _read_table(path), f"synonyms file {path}", "class name: [phrases]", fewest=1
    )
    return {name: tuple(phrases) for name, phrases in table.items()}


def load_predicate_synonyms(path: Location) -> PredicateSynonyms:
    """Read a table `{predicate: [other texts]}`, as `load_synonyms`."""
    return _check_table(_read_table(path), f"synonyms file {path}", "predicate: [other texts]")


def _read_table(path: Location, title: str = "synonyms file") -> Any:
    text = read_text(path, title)
    try:
        # YAML forbids tabs, and reads "\\ud83d\\ude00" as two characters
        with suppress(ValueError):
            return json.loads(text, object_pairs_hook=_unique)
        return parse_yaml(text)
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{title} {path} is neither YAML nor JSON ({reason})") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("duplicate key")  # the YAML parser says which one
    return values


def _check_table(table: Any, place: str, form: str, fewest: int = 0) -> Mapping[str, list[str]]:
    """Return a table of names and lists of `fewest` texts or more.

    Raises:
        UserError: it is not in this `form`.
    """
    if not isinstance(table, dict) or not table:
        raise UserError(f"{place}: expected {{{form}}}")
    for name, texts in table.items():
        words = [name, *texts] if isinstance(texts, list) and len(texts) >= fewest else [None]
        if not all(isinstance(word, str) and word.removeprefix("!").strip() for word in words):
            raise UserError(
                f"{place}: key {name!r}: expected {form}, found"
                f" {json.dumps(texts, default=str)[:60]}"
            )
    return table


def load_equivalents(path: Location | None) -> Equivalents:
    """Return `data/equivalents.yaml`, changed by a table of its form, if any.

    Raises:
        UserError: it has another one.
    """
    packaged = parse_yaml(
        (files("sgpipe.sources") / "data" / "equivalents.yaml").read_text(encoding="utf-8")
    )
    if path is None:
        return Equivalents(packaged)
    place = f"equivalents file {path}"
    stated = _read_table(path, "equivalents file")
    if not isinstance(stated, dict) or not stated or not stated.keys() <= {_SYNONYMS, _INVERSES}:
        raise UserError(
            f"{place}: expected {{synonyms: {{predicate: [texts]}}, inverses: {{predicate:"
            " [texts]}}"
        )
    tables = {
        kind: _check_table(table, f"{place}: {kind}", "predicate: [texts]")
        for kind, table in stated.items()
    }
    try:
        return Equivalents(packaged, tables)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


class _Statement(NamedTuple):
    """A line of a table: a text says the same as a predicate, or the inverse."""

    kind: str
    name: str
    text: str


def _statements(tables: Iterable[Mapping[str, PredicateSynonyms]]) -> list[_Statement]:
    """Return the lines of all tables, without those whose text a later table lists."""
    statements: list[_Statement] = []
    for table in tables:
        lines: list[_Statement] = []
        for kind, names in table.items():
            for name, texts in names.items():
                lines += [_Statement(kind, name, text) for text in texts]
        listed = {_form(line.text.removeprefix("!")) for line in lines}
        statements = [line for line in statements if _form(line.text) not in listed]
        statements += [line for line in lines if not line.text.startswith("!")]
    return statements


def _check_synonyms(statements: Iterable[_Statement]) -> None:
    names: dict[_Form, str] = {}
    for kind, name, text in statements:
        if kind == _SYNONYMS and _form(names.setdefault(_form(text), name)) != _form(name):
            raise UserError(
                f"{text!r} is a synonym of both {names[_form(text)]!r} and {name!r}; remove one"
            )


class Equivalents:
    """Which predicates say the same of two boxes: by the form of their verb, and by tables of
    synonyms and inverses.
    """

    def __init__(self, *tables: Mapping[str, PredicateSynonyms]) -> None:
        """Take tables of "synonyms" and "inverses".

        What a later one lists replaces what earlier ones say of that text; one with "!" before it
        says nothing else.

        Raises:
            UserError: they contradict each other.
        """
        self._above: dict[str, _Form] = {}  # towards the lemma that stands for all of one meaning
        self._meaning = lru_cache(1 << 16)(self._find)
        statements = _statements(tables)
        _check_synonyms(statements)
        for statement in statements:
            if statement.kind == _SYNONYMS or _form(statement.name) != _form(statement.text):
                self._join(statement)
        self._symmetric: set[str] = set()
        for kind, name, text in statements:
            if kind == _INVERSES and _form(name) == _form(text):
                self._symmetric.add(self._find(name)[0])
        for _, name, text in statements:
            lemma, is_inverse = self._find(name)
            if lemma in self._symmetric and is_inverse != self._find(text)[1]:
                raise UserError(
                    f"{name!r} is its own inverse, and {text!r} another one; remove one"
                )

    def _join(self, statement: _Statement) -> None:
        """Give the text the meaning of the predicate."""
        kind, name, text = statement
        lemma, is_inverse = self._find(name)
        other_lemma, is_other_inverse = self._find(text)
        differ = is_inverse ^ is_other_inverse ^ (kind == _INVERSES)
        if lemma != other_lemma:
            self._above[other_lemma] = lemma, differ
        elif differ:
            raise UserError(f"{text!r} is both the same as {name!r} and its inverse; remove one")

    def key(self, subject: int, predicate: str, object_: int) -> tuple[str, int, int]:
        """Return what a relation says: equal for relations that say the same of the same two
        objects.
        """
        lemma, swapped = self._meaning(predicate)
        first, second = (object_, subject) if swapped else (subject, object_)
        if lemma in self._symmetric:
            first, second = min(first, second), max(first, second)
        return lemma, first, second

    def without_known(self, pairs: Iterable[Pair], known: Iterable[Relation]) -> list[Pair]:
        """Drop from the pairs the predicates that a known relation says, too, and then pairs
        without predicates.
        """
        known_keys = {
            self.key(relation.subject, relation.predicate, relation.object) for relation in known
        }
        further: list[Pair] = []
        for pair in pairs:
            pair.predicates = [
                predicate
                for predicate in pair.predicates
                if self.key(pair.subject, predicate, pair.object) not in known_keys
            ]
            if pair.predicates:
                further.append(pair)
        return further

    def _find(self, text: str) -> _Form:
        lemma, swapped = _form(text)
        while lemma in self._above:
            lemma, other = self._above[lemma]
            swapped ^= other
        return lemma, swapped


@lru_cache(1 << 16)
def _form(text: str) -> _Form:
    """Return the lemma of a predicate, and whether it is passive: "is held by" is "hold" from
    object to subject.
    """
    words = without_auxiliaries(text.replace("_", " ").replace("-", " "))
    words = [word for word in words if word not in _ARTICLES] or words
    passive = len(words) > 1 and words[-1] == "by" and is_participle(words[0])
    return predicate_lemma(" ".join(words[:-1] if passive else words)), passive
