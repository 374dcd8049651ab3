"""The word tables of the grammar: classes of words whose meaning decides a rule, and tables of the
tokeniser.

The lists (`lexicon.PEOPLE` is "people" in lexicon.toml, which says what each is for) are
deliberately small.
"""

from __future__ import annotations

import tomllib
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
    *(
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
    ),
)


def _pairs(text: str) -> list[tuple[str, str]]:
    return [
        (key, value)
        for key, _, value in (pair.partition(": ") for pair in " ".join(text.split()).split(", "))
    ]


def _table(name: str) -> dict[str, str]:
    return dict(_pairs(_TEXTS[name]))


NAMING_PAIRS = frozenset(_pairs(_TEXTS["naming_pairs"]))
HAVING_ADJECTIVES = _table("having_adjectives")
_EXPRESSIONS = _table("expressions")
_EXPRESSIONS |= {
    f"{verb} {bite} {of}": f"{read} = {read}"
    for verb, read in _pairs("take: bite, takes: bites, taking: biting, took: bit")
    for bite in ("a bite", "a big bite", "bites")
    for of in ("of", "from", "out of", "off of")
}
EXPRESSIONS = {
    text: (seen, read or text)
    for text, (seen, _, read) in ((k, v.partition(" = ")) for k, v in _EXPRESSIONS.items())
}
SPELLINGS = _table("spellings")
STAND_INS = _table("stand_ins")
