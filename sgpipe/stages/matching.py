"""Matchers: the classes that a noun phrase of a caption names."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import TypeAlias

from sgpipe.utils.lemmas import lemmas

_POSSESSIVE = re.compile(r"\s*['’]s\b|['’]")
_WORD = re.compile(r"[^\W_]+")
_CACHED_PHRASES = 1 << 17


class HeadMatcher:
    """Matches the longest known phrase around a head noun to classes by name and synonym.

    Whole words are compared, in singular, plural or possessive form, with or without spaces ("surf
    board"). The longest phrase decides even if its class is absent from the image: a hot dog is
    never a dog, a license plate ("!license plate" in the table) is not a plate. Of several classes
    the one with this name is first, then the table's order.
    """

    def __init__(
        self,
        synonyms: Mapping[str, Iterable[str]],
        names: Iterable[str] = (),
        loose: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`names`: more classes. `loose`: see `loose_words`; all other matches take precedence."""
        self._exact: dict[str, dict[str, int]] = {}
        self._inflected: dict[str, dict[str, int]] = {}
        self._longest = 1
        known = dict.fromkeys((*synonyms, *names))
        for name in known:
            self._learn(name, name, 0)
            for phrase in synonyms.get(name, ()):
                self._learn(name, phrase, 1)
        for word, classes in (loose or {}).items():
            for rank, name in enumerate(classes, 2):
                if name in known:
                    self._learn(name, word, rank)
        self.loose = frozenset(loose or ())
        self.classes = lru_cache(_CACHED_PHRASES)(self._classes)

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        """Return the best match among the classes of an image: the keys of `present`, in order of
        first appearance.
        """
        return next((name for name in self.classes(phrase, head) if name in present), None)

    def _learn(self, name: str, phrase: str, rank: int) -> None:
        words = split_words(phrase)
        self._longest = max(self._longest, len(words))
        if phrase.startswith("!"):
            self._exact.setdefault("".join(words), {})[name] = -1
        elif words:
            self._exact.setdefault("".join(words), {}).setdefault(name, rank)
            for lemma in noun_lemmas(words[-1]):
                self._inflected.setdefault("".join(words[:-1]) + lemma, {}).setdefault(name, rank)

    def _classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        words, position = locate_head(split_words(phrase), split_words(head))
        for length in range(min(self._longest, len(words)), 0, -1):
            first = max(0, position - length + 1)
            last = min(position, len(words) - length)
            for start in range(first, last + 1):
                ranks = self._ranks(words[start : start + length], position - start)
                if ranks is not None:
                    listed = [name for name in ranks if ranks[name] >= 0]
                    return tuple(sorted(listed, key=ranks.__getitem__))
        return ()

    def _ranks(self, words: Sequence[str], position: int) -> dict[str, int] | None:
        """Return the ranks of the classes that words name, whose head noun is at a position.

        Phrases as the table writes them take precedence over their inflections.
        """
        noun = words[position]
        left = "".join(words[:position])
        right = "".join(words[position + 1 :])
        keys = [left + form + right for form in (noun, *noun_lemmas(noun))]
        for table in (self._exact, self._inflected):
            for key in keys:
                if key in table:
                    return table[key]
        return None


class SubstringMatcher:
    """RLIPv2's matching: a class matches if a synonym (or else its name) is a substring of the
    lower-cased phrase.

    So "chair" is a person, because it contains "hair". Of several classes the last one to appear is
    chosen.
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]], names: Iterable[str] = ()) -> None:
        self.loose = frozenset[str]()
        self._synonyms: dict[str, list[str]] = {}
        for name in dict.fromkeys((*synonyms, *names)):
            phrases = synonyms.get(name, (name,))
            self._synonyms[name] = [phrase for phrase in phrases if not phrase.startswith("!")]
        self.classes = lru_cache(_CACHED_PHRASES)(self._classes)

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        matching = self.classes(phrase)
        return next((name for name in reversed(present) if name in matching), None)

    def _classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        text = phrase.lower()
        matching = []
        for name, synonyms in self._synonyms.items():
            if any(synonym in text for synonym in synonyms):
                matching.append(name)
        return tuple(matching)


Matcher: TypeAlias = HeadMatcher | SubstringMatcher


def split_words(phrase: str) -> list[str]:
    """Return the lower-case words of a phrase, without punctuation or possessive endings."""
    return _WORD.findall(_POSSESSIVE.sub("", unicodedata.normalize("NFKC", phrase).casefold()))


def normalise_predicate(text: str) -> str:
    return " ".join(text.lower().split())


@lru_cache(1 << 16)
def noun_lemmas(word: str) -> tuple[str, ...]:
    """Other forms of a noun that a table may list: singulars, most likely first ("mens" → men,
    man).
    """
    forms: dict[str, None] = {}
    for form in (word, *lemmas(word, "NOUN")):
        forms |= dict.fromkeys((form, *lemmas(form, "NOUN")))
    forms.pop(word)
    return tuple(forms)


def locate_head(words: list[str], head: list[str]) -> tuple[list[str], int]:
    """Return the words and the index of the head noun, by default the last word."""
    if not head:
        return words, len(words) - 1
    noun = head[-1]
    positions = [index for index, word in enumerate(words) if word == noun]
    if not positions:
        forms = {noun, *noun_lemmas(noun)}
        positions = [
            index
            for index, word in enumerate(words)
            if not forms.isdisjoint((word, *noun_lemmas(word)))
        ]
    return (words, positions[-1]) if positions else (head, len(head) - 1)
