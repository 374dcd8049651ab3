"""Which predicates say the same of two boxes: by the form of their verb, and by a table of synonyms and inverses.

The packaged table is `data/equivalents.yaml`; a table of one's own has the same form, and its statements replace those
of the packaged one about the same words.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from importlib.resources import files
from typing import TypeAlias

from sgpipe.errors import UserError
from sgpipe.files.locations import Location
from sgpipe.records import Pair, Relation
from sgpipe.sources.vocabulary import check_table, read_table
from sgpipe.utils.config_file import parse_yaml
from sgpipe.utils.lemmas import is_participle, predicate_lemma, without_auxiliaries

PredicateSynonyms: TypeAlias = Mapping[str, Sequence[str]]  # the other texts that count as each predicate

_SYNONYMS, _INVERSES = "synonyms", "inverses"
_ARTICLES = ("a", "an", "the")
_Form: TypeAlias = tuple[str, bool]  # a lemma, and whether the text says it from object to subject
_Tables: TypeAlias = Mapping[str, PredicateSynonyms]


def load_predicate_synonyms(path: Location) -> PredicateSynonyms:
    """Read a table `{predicate: [other texts]}` from a YAML or JSON file.

    Raises UserError: the file is missing or is not such a table.
    """
    return check_table(read_table(path, "synonyms file"), f"synonyms file {path}", "predicate: [other texts]")


def load_equivalents(path: Location | None) -> Equivalents:
    """Return the packaged equivalents, changed by a table of the same form if there is one.

    Raises UserError: the file is missing, is not such a table, or contradicts itself.
    """
    packaged = parse_yaml((files("sgpipe.sources") / "data" / "equivalents.yaml").read_text(encoding="utf-8"))
    if path is None:
        return Equivalents(packaged)
    place, own = f"equivalents file {path}", read_table(path, "equivalents file")
    if not isinstance(own, dict) or not own or not own.keys() <= {_SYNONYMS, _INVERSES}:
        raise UserError(f"{place}: expected {{synonyms: {{predicate: [texts]}}, inverses: {{predicate: [texts]}}}}")
    own = {kind: check_table(table, f"{place}: {kind}", "predicate: [texts]") for kind, table in own.items()}
    try:
        return Equivalents(packaged, own)
    except UserError as error:
        raise UserError(f"{place}: {error}") from None


class Equivalents:
    """What predicates say, so that two that say the same of two boxes are found equal."""

    def __init__(self, *tables: _Tables) -> None:
        """
        Args:
            tables: of "synonyms" and "inverses". What a later one lists replaces what the earlier ones say of that
                text; a text with "!" before it says nothing else.

        Raises UserError: they contradict each other.
        """
        self._above: dict[str, _Form] = {}  # towards the lemma that stands for all that say the same
        self._meaning = lru_cache(1 << 16)(self._find)
        stated: list[tuple[str, str, str]] = []
        for table in tables:
            lines = [(kind, name, text) for kind in table for name, texts in table[kind].items() for text in texts]
            listed = {_form(text.removeprefix("!")) for _, _, text in lines}
            stated = [line for line in stated if _form(line[2]) not in listed]
            stated += [line for line in lines if not line[2].startswith("!")]
        names: dict[_Form, str] = {}
        for kind, name, text in stated:
            if kind == _SYNONYMS and _form(names.setdefault(_form(text), name)) != _form(name):
                raise UserError(f"{text!r} is a synonym of both {names[_form(text)]!r} and {name!r}; remove one")
        for kind, name, text in stated:
            if kind == _SYNONYMS or _form(name) != _form(text):
                self._join(name, text, kind == _INVERSES)
        self._symmetric = {
            self._find(name)[0] for kind, name, text in stated if kind == _INVERSES and _form(name) == _form(text)
        }
        for _, name, text in stated:
            (lemma, turned), (_, swapped) = self._find(name), self._find(text)
            if lemma in self._symmetric and turned != swapped:
                raise UserError(f"{name!r} is its own inverse, and {text!r} another one; remove one")

    def key(self, subject: int, predicate: str, object_: int) -> tuple[str, int, int]:
        """Return what a relation says: equal for relations that say the same of the same two objects."""
        lemma, swapped = self._meaning(predicate)
        first, second = (object_, subject) if swapped else (subject, object_)
        if lemma in self._symmetric:
            first, second = min(first, second), max(first, second)
        return lemma, first, second

    def without_known(self, pairs: Iterable[Pair], known: Iterable[Relation]) -> list[Pair]:
        """Return the pairs with the predicates that none of the known relations says, too; without those left empty."""
        said = {self.key(each.subject, each.predicate, each.object) for each in known}
        for pair in pairs:
            pair.predicates = [
                text for text in pair.predicates if self.key(pair.subject, text, pair.object) not in said
            ]
        return [pair for pair in pairs if pair.predicates]

    def _find(self, text: str) -> _Form:
        lemma, swapped = _form(text)
        while lemma in self._above:
            lemma, other = self._above[lemma]
            swapped ^= other
        return lemma, swapped

    def _join(self, name: str, text: str, inverse: bool) -> None:
        (first, turned), (second, swapped) = self._find(name), self._find(text)
        differ = turned ^ swapped ^ inverse
        if first != second:
            self._above[second] = first, differ
        elif differ:
            raise UserError(f"{text!r} is both the same as {name!r} and its inverse; remove one")


@lru_cache(1 << 16)
def _form(text: str) -> _Form:
    """Return the lemma of a predicate, and whether it is passive: "is held by" is "hold" from object to subject."""
    words = without_auxiliaries(text.replace("_", " ").replace("-", " "))
    words = [word for word in words if word not in _ARTICLES] or words
    passive = len(words) > 1 and words[-1] == "by" and is_participle(words[0])
    return predicate_lemma(" ".join(words[:-1] if passive else words)), passive
