"""Captions as word lists: cleaning, tokenising, and folding of multi-word expressions.

A preposition of several words ("in front of", "on the left side of") becomes one token, and a quantity ("a group
of") becomes a determiner. Of these, and of the nouns in `STAND_INS`, the dependency parser sees a common word of
the same syntax, which it analyses more reliably than the original; the rules read the original.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import pairwise
from typing import NamedTuple

from sgpipe.stages.grammar.expressions import (
    CANS,
    DETERMINERS,
    EXPRESSIONS,
    QUANTITIES,
    SPELLINGS,
    STAND_INS,
)
from sgpipe.stages.grammar.lexicon import SIDED_PARTS

MAX_CHARACTERS = 1000

_ASCII = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-"})

_PARTS = "top|back|front|rear|end|foot|base|bottom|middle|center|centre|corner|edge|sides?|ends?|edges"
_WHICH = "far left|far right|left hand|right hand|left|right|far|near|other|opposite|both|either|each|outer"
_PLACE = (
    rf"(?P<preposition>on|in|at|to|along|by|near)(?: (?:the|its|a))?(?: (?P<which>{_WHICH}))?"
    rf"(?: the)?(?: very)? (?P<part>{_PARTS}|left|right) of"
)
_SIZES = "a|an|the|some|two|three|several|many|whole|large|small|big|huge|long|little|tall|short"
_QUANTITY = rf"(?:(?:{_SIZES}) )*(?:{'|'.join(sorted(QUANTITIES))}|close up|bod(?:y|ies)(?= of water)) of"

_FIXED = "|".join(sorted([*EXPRESSIONS, *SPELLINGS], key=len, reverse=True))

_DETERMINER = "|".join(sorted(DETERMINERS))
_SCANNER = re.compile(
    rf"(?<![\w'])(?:{_PLACE}|(?P<omitted>{_QUANTITY}(?= (?:{_DETERMINER}) ))"
    rf"|(?P<quantity>{_QUANTITY})|(?P<fixed>{_FIXED}))(?![\w'])"
    r"|(?P<word>(?:n't|'(?:s|re|ve|ll|d|m))(?!\w)|\w+?(?=n't(?!\w))|\w+(?:[-.]\w+)*)|(?P<mark>[,.;:!?()])"
)


class Token(NamedTuple):
    """A word of the caption: `word` is what the parser sees, `text` what the rules read."""

    word: str
    text: str


def tokenise(caption: str) -> list[Token]:
    """Lower-case tokens of a caption, without marks at its end; symbols and control characters are dropped."""
    matches = _SCANNER.finditer(clean(caption))
    tokens = [_token(match) for match in matches if not match["omitted"]]
    for index, (before, after) in enumerate(pairwise(tokens)):
        if after.text in ("can", "cans") and before.text in CANS:
            tokens[index + 1] = Token("boxes" if after.text == "cans" else "box", after.text)
        elif before.text == "left" and after.text.rstrip("s") in SIDED_PARTS:
            tokens[index] = Token("big", "left")
    while tokens and not tokens[-1].word[-1].isalnum():
        tokens.pop()
    return tokens


def clean(caption: str) -> str:
    """Lower case, compatibility forms unified, single blanks, at most `MAX_CHARACTERS` characters."""
    text = caption[:MAX_CHARACTERS]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_ASCII))
    text = (
        text.lower()
        .replace("w/", "with ")
        .replace("/", " and ")
        .replace("&", " and ")
        .replace("-covered ", " covered ")
    )
    return " ".join(text.split()).replace(" 's", "'s").replace(" n't", "n't")


def _token(match: re.Match[str]) -> Token:
    text = match[0]
    if match["preposition"]:
        return _place(match["preposition"], match["which"], match["part"])
    if match["quantity"]:
        return Token("some", "some")
    if match["fixed"] in EXPRESSIONS:
        return Token(*EXPRESSIONS[text])
    text = SPELLINGS.get(text, text)
    return Token(STAND_INS.get(text, text), text)


def _place(preposition: str, which: str | None, part: str) -> Token:
    stand_in = "beside" if part in ("left", "right") else preposition
    words = [preposition, *(["the"] if {which, part} & {"left", "right"} else []), which, part, "of"]
    return Token(stand_in, " ".join(word for word in words if word))
