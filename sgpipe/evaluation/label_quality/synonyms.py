"""Which words mean the same: predicates by their verb, class names by the synonyms of a detection dataset."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from rlip_model.evaluation.inputs import Array
from sgpipe.errors import UserError
from sgpipe.sources.equivalents import PredicateSynonyms
from sgpipe.sources.vocabulary import category_names, packaged_synonyms
from sgpipe.stages.pair import HeadMatcher, normalise_predicate
from sgpipe.utils.lemmas import predicate_lemma

_DATASETS = ("coco", "objects365")  # the datasets that have synonyms


class Vocabulary:
    """Numbers for texts; texts with the same meaning share a number."""

    def __init__(self, meaning: Callable[[str], str]) -> None:
        """`meaning` returns the same key for texts with the same meaning."""
        self.names: list[str] = []  # by number: the first text with this meaning
        self._meaning = meaning
        self._by_meaning: dict[str, int] = {}
        self._by_text: dict[str, int] = {}

    def number(self, text: str) -> int:
        if text not in self._by_text:
            number = self._by_meaning.setdefault(self._meaning(text), len(self.names))
            if number == len(self.names):
                self.names.append(normalise_predicate(text))
            self._by_text[text] = number
        return self._by_text[text]

    @property
    def wordings(self) -> tuple[tuple[str, ...], ...]:
        """By number: all texts with this meaning, normalised."""
        texts: list[dict[str, None]] = [{} for _ in self.names]
        for text, number in self._by_text.items():
            texts[number][normalise_predicate(text)] = None
        return tuple(map(tuple, texts))

    def numbers(self, texts: pa.Array | pa.ChunkedArray) -> Array:
        """`[texts]` int64."""
        encoded = pc.dictionary_encode(texts)
        encoded = encoded.combine_chunks() if isinstance(encoded, pa.ChunkedArray) else encoded
        own = np.array([self.number(text or "") for text in encoded.dictionary.to_pylist()], dtype=np.int64)
        return own[encoded.indices.to_numpy(zero_copy_only=False)] if len(encoded) else own[:0]


def predicate_vocabulary(synonyms: PredicateSynonyms | None = None) -> Vocabulary:
    """Return a vocabulary of predicates in which each key of the table and its texts share a number.

    Raises UserError: a text belongs to two predicates.
    """
    canonical: dict[str, str] = {}
    for name, texts in (synonyms or {}).items():
        for lemma in map(predicate_lemma, (name, *texts)):
            if canonical.setdefault(lemma, predicate_lemma(name)) != predicate_lemma(name):
                raise UserError(f"synonyms: {lemma!r} stands for both {canonical[lemma]!r} and {name!r}; remove one")
    vocabulary = Vocabulary(lambda text: canonical.get(predicate_lemma(text), predicate_lemma(text)))
    for name in synonyms or {}:
        vocabulary.number(name)
    return vocabulary


class ClassTable:
    """Which classes of a run an object of the ground truth may have; classes are numbers of one vocabulary."""

    def __init__(self, vocabulary: Vocabulary, predicted: Iterable[str]) -> None:
        """`predicted`: all class names of the run. If they are COCO's or Objects365's, its synonyms count."""
        self._vocabulary = vocabulary
        names = {normalise_predicate(name) for name in predicted}
        dataset = next((one for one in _DATASETS if names <= set(category_names(one).values())), "")
        synonyms = packaged_synonyms(dataset)
        self._known = {vocabulary.number(name) for name in (*names, *synonyms)}
        self._matcher = HeadMatcher(synonyms)

    def classes(self, number: int) -> list[int]:
        """A class of the run stands for itself; any other name ("man") also for the class it names ("person")."""
        if number in self._known:
            return [number]
        fitting = self._matcher.classes(self._vocabulary.names[number])
        return [number, *(self._vocabulary.number(name) for name in fitting)]
