"""The word tables of the grammar: classes of words whose meaning decides a rule, and tables of the
tokeniser.

The lists (`lexicon.PEOPLE` is "people" in lexicon.toml, which says what each is for) are
deliberately small.
"""

from __future__ import annotations

import tomllib
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

_TEXTS: dict[str, str] = tomllib.loads(
    Path(__file__).with_name("lexicon.toml").read_text(encoding="utf-8")
)
globals().update({name.upper(): frozenset(text.split()) for name, text in _TEXTS.items()})

if TYPE_CHECKING:

    def __getattr__(name: str) -> frozenset[str]: ...


PRONOUNS = {"he": "man", "him": "man", "she": "woman", "they": "people", "them": "people"}
NUMBERS = (
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
)


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return the entries of a table: "key: value, key: value"."""
    pairs = []
    for entry in " ".join(text.split()).split(", "):
        key, _, value = entry.partition(": ")
        pairs.append((key, value))
    return pairs


def _table(name: str) -> dict[str, str]:
    return dict(_pairs(_TEXTS[name]))


def _read_expressions() -> dict[str, tuple[str, str]]:
    """Return for each expression what the parser sees and what the rules read."""
    expressions = {}
    for text, meaning in _table("expressions").items():
        word, _, read = meaning.partition(" = ")
        expressions[text] = (word, read or text)
    for verb, biting in _pairs("take: bite, takes: bites, taking: biting, took: bit"):
        for bite, preposition in product(
            ("a bite", "a big bite", "bites"), ("of", "from", "out of", "off of")
        ):
            expressions[f"{verb} {bite} {preposition}"] = (biting, biting)
    return expressions


NAMING_PAIRS = frozenset(_pairs(_TEXTS["naming_pairs"]))
HAVING_ADJECTIVES = _table("having_adjectives")
EXPRESSIONS = _read_expressions()
SPELLINGS = _table("spellings")
STAND_INS = _table("stand_ins")
