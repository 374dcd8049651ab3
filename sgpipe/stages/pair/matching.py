"""Which class of a detection dataset a noun phrase of a caption names.

`HeadMatcher` is ours: whole words, and the head noun decides. `SubstringMatcher` is RLIPv2's procedure, kept
for parity: any synonym found anywhere in the phrase counts, so that "chair" is a person for its "hair".
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Mapping
from functools import lru_cache
from typing import Protocol

from lemminflect import getLemma

_POSSESSIVE = re.compile(r"\s*['’]s\b|['’]")
_WORD = re.compile(r"[^\W_]+")
_CACHED_PHRASES = 1 << 17


class Matcher(Protocol):
    """Finds the classes a noun phrase may name."""

    def classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        """All classes that fit, best first."""
        ...

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        """The class meant in an image; `present` has its class names, in first-seen order, as keys."""
        ...


class HeadMatcher:
    """The longest known phrase around the head noun decides.

    Words are compared whole, in any number and as possessives ("men", "knives", "people's"), and with or
    without spaces ("surf board"). A class is known by its own name and its synonyms. The longest phrase
    that contains the head noun settles the matter even if its class is absent from the image: a hot dog is
    never a dog, a license plate ("!license plate" in the table) is no plate, a car seat no car. Where
    several classes of an image share the phrase, the one whose name it is comes first, then the order of the
    table decides.
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]], names: Iterable[str] = ()) -> None:
        """`names` are further class names, known by nothing but their name."""
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
                    fitting = [name for name, rank in ranks.items() if rank >= 0]
                    return tuple(sorted(fitting, key=ranks.__getitem__))
        return ()

    def _look_up(self, before: list[str], noun: str, after: list[str]) -> dict[str, int] | None:
        """Classes and ranks of the phrase; its written form counts before a change of number."""
        left, right = "".join(before), "".join(after)
        keys = [left + form + right for form in (noun, *noun_lemmas(noun))]
        for table in (self._exact, self._inflected):
            for key in keys:
                if key in table:
                    return table[key]
        return None


class SubstringMatcher:
    """RLIPv2's matching: a class fits if one of its synonyms is a substring of the lower-cased phrase.

    Of the classes of an image that fit, the last in first-seen order is meant. A class that the table lacks
    is known by its name.
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]], names: Iterable[str] = ()) -> None:
        self._synonyms = {
            name: tuple(phrase for phrase in synonyms.get(name, (name,)) if not phrase.startswith("!"))
            for name in dict.fromkeys((*synonyms, *names))
        }
        self.classes = lru_cache(_CACHED_PHRASES)(self._classes)

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        fitting = self.classes(phrase)
        return next((name for name in reversed(present) if name in fitting), None) if fitting else None

    def _classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        text = phrase.lower()
        return tuple(name for name, phrases in self._synonyms.items() if any(part in text for part in phrases))


def split_words(phrase: str) -> list[str]:
    """Lower-case words of a phrase, without punctuation and possessive endings."""
    return _WORD.findall(_POSSESSIVE.sub("", unicodedata.normalize("NFKC", phrase).casefold()))


def normalise_predicate(text: str) -> str:
    """A predicate in lower case with single spaces."""
    return " ".join(text.lower().split())


@lru_cache(1 << 16)
def noun_lemmas(word: str) -> tuple[str, ...]:
    """Other forms under which a noun may be listed: singulars, most likely first ("mens" → men, man)."""
    lemmas: dict[str, None] = {}
    for form in (word, *getLemma(word, upos="NOUN")):
        lemmas |= dict.fromkeys((form, *getLemma(form, upos="NOUN")))
    lemmas.pop(word)
    return tuple(lemmas)


def _locate_head(words: list[str], head: list[str]) -> tuple[list[str], int]:
    """The words, and the place of the head noun among them: by default the last."""
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
