"""The text of a caption as language models write it, in one line."""

from __future__ import annotations

import re

_THOUGHTS = re.compile(r"^.*?</think>", re.DOTALL)
_LOCATION = re.compile(r"<loc_?\d+>")  # of Florence-2 and PaliGemma
_FENCE = re.compile(r"^\s*(```|~~~).*$", re.MULTILINE)
_LINE_START = re.compile(r"^\s*(?:(?:#{1,6}|[-*+•>]|\d{1,3}[.)])\s+)+")
_RULE = re.compile(r"^\s*([-*_]\s*){3,}$")
_MARKS = re.compile(r"\*\*|__|`|(?<!\w)[*_](?=\w)|(?<=[\w.,!?])[*_](?!\w)")
_LINK = re.compile(r"!?\[([^\]]*)\]\([^)]*\)")
_UNPRINTABLE = re.compile(r"[^\S ]|[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\ufeff\ufffd]")


def one_line(text: str) -> str:
    """A caption without line breaks, Markdown, reasoning, locations, control characters and enclosing quotes.

    Lines become sentences: one that ends without punctuation gets a full stop before the next.
    """
    text = _FENCE.sub("", _LOCATION.sub("", _THOUGHTS.sub("", text)))
    if text.lstrip().startswith("<think>"):  # cut off before it came to an answer
        return ""
    lines = [_plain(line) for line in text.splitlines() if not _RULE.match(line)]
    return _unquoted(" ".join(_sentences([line for line in lines if line])))


def _plain(line: str) -> str:
    line = _MARKS.sub("", _LINK.sub(r"\1", _LINE_START.sub("", line)))
    return " ".join(_UNPRINTABLE.sub(" ", line).split())


def _sentences(lines: list[str]) -> list[str]:
    ended = [line if re.search(r"""[.!?:;,…。！？]["')\]]*$""", line) else line + "." for line in lines[:-1]]
    return [*ended, *lines[-1:]]


def _unquoted(text: str) -> str:
    for left, right in ('""', "''", "“”", "«»"):
        if len(text) > 1 and text[0] == left and text[-1] == right and left not in text[1:-1]:
            return text[1:-1].strip()
    return text
