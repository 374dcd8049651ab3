"""Base forms of English words, by lemminflect's dictionaries."""

import sys
from functools import lru_cache
from importlib.util import find_spec, module_from_spec
from typing import Any

_AUXILIARIES = frozenset({"am", "is", "are", "was", "were", "be", "been", "being"})


@lru_cache(maxsize=1 << 16)
def lemmas(word: str, pos: str) -> tuple[str, ...]:
    """Return the base forms of a word as a "NOUN" or "VERB", most likely first."""
    return tuple(_dictionaries()[0].getLemma(word, pos))


@lru_cache(maxsize=1 << 16)
def verb_lemma(verb: str) -> str:
    return str(lemmas(verb, "VERB")[0])


@lru_cache(maxsize=1 << 16)
def is_verb(word: str) -> bool:
    """Return whether the dictionaries have a word as a form of a verb; the rules for others inflect
    anything.
    """
    return bool(_dictionaries()[0].getAllLemmas(word, "VERB"))


@lru_cache(maxsize=1 << 16)
def gerund(verb: str) -> str:
    """Return the -ing form of any form of a verb: the predicate of a passive clause that is turned
    active.
    """
    return next(iter(_inflections(verb_lemma(verb), "VBG")), verb)


@lru_cache(maxsize=1 << 16)
def is_participle(verb: str) -> bool:
    """Return whether a form of a verb is its past participle: "held", "eaten"."""
    return verb in _inflections(verb_lemma(verb), "VBN")


def predicate_lemma(text: str) -> str:
    """Return a predicate in lower case with its verb as a lemma: "is Sitting on" and "sits on"
    become "sit on".
    """
    words = without_auxiliaries(text)
    return " ".join([verb_lemma(words[0]), *words[1:]]) if words else ""


def without_auxiliaries(text: str) -> list[str]:
    """Return the words of a predicate in lower case: of "is held by", held and by."""
    words = text.lower().split()
    while len(words) > 1 and words[0] in _AUXILIARIES:
        del words[0]
    return words


@lru_cache(maxsize=1 << 16)
def plural(noun: str) -> str:
    return next(iter(_inflections(noun, "NNS")), noun)


def _inflections(word: str, form: str) -> tuple[str, ...]:
    try:
        return tuple(_dictionaries()[1].getInflection(word, form))
    except IndexError:
        # lemminflect's rules fail for some words that it does not know, such as "cpg"
        return ()


@lru_cache(maxsize=1)
def _dictionaries() -> tuple[Any, Any]:
    """Return lemminflect's lemmatizer and inflector, without its `__init__`, which imports spaCy
    (seconds).
    """
    if "lemminflect" in sys.modules:
        from lemminflect.core.Inflections import Inflections
        from lemminflect.core.Lemmatizer import Lemmatizer

        return Lemmatizer(), Inflections()
    spec = find_spec("lemminflect")
    assert spec is not None
    sys.modules["lemminflect"] = module_from_spec(spec)
    try:
        return _dictionaries.__wrapped__()
    finally:
        del sys.modules["lemminflect"]
