"""Swap left and right in texts of flipped images: "left of" becomes "right of", "right hand"
becomes "left hand".

Not every "left" or "right" is a side: "right behind" and "left on" do not change. The words before
and after decide. The decision does not depend on the side itself, so flipping twice restores the
text.
"""

from __future__ import annotations

import re
from itertools import product

WORD = re.compile(r"([^\W\d_]+)")
SIDES = ("left", "right")
_FORMS = (str.lower, str.title, str.upper)
_ENDINGS = ("", "most", "ward", "wards", "hand", "handed")
OPPOSITE = {
    form(first + ending): form(second + ending)
    for (first, second), ending, form in product((SIDES, SIDES[::-1]), _ENDINGS, _FORMS)
}

# After these words it is a side, whatever follows: "on the left behind".
BEFORE_SIDES = re.compile(
    "the|to|on|at|far|upper|lower|middle|top|bottom|rear|turn(s|ed|ing)?|fac(e|es|ed|ing)"
)
# After these words, at the end of the text, it is not a side: "has left", "all right".
BEFORE_OTHERS = re.compile("has|have|had|having|was|were|been|being|just|all")
# Before these words it is not a side: "right next to", "left on", "left the", "left alone".
AFTER_OTHERS = re.compile(
    "next|beside|by|near|close|on|onto|in|into|inside|within|at|against|across|along|alongside|around|above|over|"
    "atop|below|under|underneath|beneath|behind|before|after|between|among|past|beyond|through|up|down|off|out|"
    "outside|with|for|away|there|here|now|where|alone|open|empty|the|a|an|his|her|its|their|some"
)


def flip_text(text: str) -> str:
    """Swap left and right wherever they are sides; upper and lower case stay."""
    parts = WORD.split(text)
    words = ["", *(word.lower() for word in parts[1::2]), ""]
    for place in range(1, len(parts), 2):
        before, word, after = words[place // 2 : place // 2 + 3]
        if word not in SIDES or _is_side(before, after):
            parts[place] = OPPOSITE.get(parts[place], parts[place])
    return "".join(parts)


def _is_side(before: str, after: str) -> bool:
    if BEFORE_SIDES.fullmatch(before):
        return True
    return not (AFTER_OTHERS.fullmatch(after) if after else BEFORE_OTHERS.fullmatch(before))
