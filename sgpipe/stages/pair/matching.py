"""Match noun phrases of captions to the classes of a detection dataset.

`HeadMatcher` is ours: it compares whole words, and the head noun decides. `SubstringMatcher` is RLIPv2's procedure,
kept for parity: a synonym anywhere in the phrase is a match, so "chair" is a person because it contains "hair".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from sgpipe.utils.lemmas import lemmas

_POSSESSIVE = re.compile(r"\s*['’]s\b|['’]")
_WORD = re.compile(r"[^\W_]+")
_CACHED_PHRASES = 1 << 17


class Matcher(Protocol):
    """Finds the classes that a noun phrase can refer to."""

    def classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        """All matching classes, best match first."""
        ...

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        """The best match among the classes of an image: the keys of `present`, in order of first appearance."""
        ...


class HeadMatcher:
    """Matches the longest known phrase around the head noun.

    Whole words are compared, in singular, plural or possessive form ("men", "knives", "people's"), with or without
    spaces ("surf board"). A class is known by its name and its synonyms. The longest known phrase that contains the
    head noun decides, even if its class is absent from the image: a hot dog is never a dog, a license plate
    ("!license plate" in the table) is not a plate, and a car seat is not a car. If several classes share the phrase,
    the class with this name comes first, then the order of the table decides.
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]], names: Iterable[str] = ()) -> None:
        """`names` are additional class names without synonyms."""
        self._exact: dict[str, dict[str, int]] = {}
        self._inflected: dict[str, dict[str, int]] = {}
        self._longest = 1
        for name in dict.fromkeys((*synonyms, *names)):
            self._learn(name, name, 0)
            for phrase in synonyms.get(name, ()):
                self._learn(name, phrase, 1)
        self.classes = lru_cache(_CACHED_PHRASES)(self._classes)

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        for name in self.classes(phrase, head):
            if name in present:
                return name
        return None

    def _learn(self, name: str, phrase: str, rank: int) -> None:
        excluded = phrase.startswith("!")
        words = split_words(phrase)
        if not words:
            return
        self._longest = max(self._longest, len(words))
        tables = [(self._exact, "".join(words))]
        if not excluded:
            stem = "".join(words[:-1])
            tables += [(self._inflected, stem + lemma) for lemma in noun_lemmas(words[-1])]
        for table, key in tables:
            ranks = table.setdefault(key, {})
            if excluded:
                ranks[name] = -1
            else:
                ranks.setdefault(name, rank)

    def _classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        words, at = _locate_head(split_words(phrase), split_words(head))
        for length in range(min(self._longest, len(words)), 0, -1):
            for start in range(max(0, at - length + 1), min(at, len(words) - length) + 1):
                ranks = self._look_up(words[start:at], words[at], words[at + 1 : start + length])
                if ranks is not None:
                    matching = [name for name, rank in ranks.items() if rank >= 0]
                    return tuple(sorted(matching, key=ranks.__getitem__))
        return ()

    def _look_up(self, before: list[str], noun: str, after: list[str]) -> dict[str, int] | None:
        """Classes and ranks of the phrase; its written form takes precedence over other inflections."""
        left, right = "".join(before), "".join(after)
        keys = [left + form + right for form in (noun, *noun_lemmas(noun))]
        for table in (self._exact, self._inflected):
            for key in keys:
                if key in table:
                    return table[key]
        return None


class SubstringMatcher:
    """RLIPv2's matching: a class matches if one of its synonyms is a substring of the lower-cased phrase.

    If several classes of an image match, the last one in order of first appearance is chosen. A class without
    synonyms is known by its name.
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]], names: Iterable[str] = ()) -> None:
        self._synonyms = {
            name: tuple(phrase for phrase in synonyms.get(name, (name,)) if not phrase.startswith("!"))
            for name in dict.fromkeys((*synonyms, *names))
        }
        self.classes = lru_cache(_CACHED_PHRASES)(self._classes)

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        matching = self.classes(phrase)
        return next((name for name in reversed(present) if name in matching), None) if matching else None

    def _classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        text = phrase.lower()
        return tuple(name for name, phrases in self._synonyms.items() if any(part in text for part in phrases))


def split_words(phrase: str) -> list[str]:
    """The lower-case words of a phrase, without punctuation or possessive endings."""
    return _WORD.findall(_POSSESSIVE.sub("", unicodedata.normalize("NFKC", phrase).casefold()))


def normalise_predicate(text: str) -> str:
    """A predicate in lower case with single spaces."""
    return " ".join(text.lower().split())


@lru_cache(1 << 16)
def noun_lemmas(word: str) -> tuple[str, ...]:
    """Other forms of a noun that a table may list: singulars, most likely first ("mens" → men, man)."""
    forms: dict[str, None] = {}
    for form in (word, *lemmas(word, "NOUN")):
        forms |= dict.fromkeys((form, *lemmas(form, "NOUN")))
    forms.pop(word)
    return tuple(forms)


def _locate_head(words: list[str], head: list[str]) -> tuple[list[str], int]:
    """The words and the index of the head noun, by default the last word."""
    if not head:
        return words, len(words) - 1
    noun = head[-1]
    for test in (lambda word: word == noun, lambda word: not _forms(word).isdisjoint(_forms(noun))):
        for at in range(len(words) - 1, -1, -1):
            if test(words[at]):
                return words, at
    return head, len(head) - 1


def _forms(noun: str) -> set[str]:
    return {noun, *noun_lemmas(noun)}
