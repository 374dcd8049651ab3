"""Captions as tokens, and dependency trees as plain lists that rules can read and change quickly.

The tokeniser folds a preposition of several words ("in front of") into one token, and a quantity
("a group of") into a determiner. For these, and for the words in `STAND_INS`, the dependency parser
sees a common word of the same syntax; the rules read the original.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

from sgpipe.stages.parse.grammar import lexicon

if TYPE_CHECKING:
    from spacy.tokens import Doc

NOUN_TAGS = frozenset({"NN", "NNS", "NNP", "NNPS"})
VERB_TAGS = frozenset({"VB", "VBD", "VBG", "VBN", "VBP", "VBZ"})
AUXILIARIES = frozenset({"aux", "auxpass"})
MAX_CHARACTERS = 1000

_ASCII = str.maketrans({"’": "'", "‘": "'", "`": "'", "“": '"', "”": '"', "–": "-", "—": "-"})

_PARTS = (
    "top|back|front|rear|end|foot|base|bottom|middle|center|centre|corner|edge|sides?|ends?|edges"
)
_WHICH = (
    "far left|far right|left hand|right"
    " hand|left|right|far|near|other|opposite|both|either|each|outer"
)
_PLACE = (
    rf"(?P<preposition>on|in|at|to|along|by|near)(?: (?:the|its|a))?(?: (?P<which>{_WHICH}))?"
    rf"(?: the)?(?: very)? (?P<part>{_PARTS}|left|right) of"
)
_SIZES = "a|an|the|some|two|three|several|many|whole|large|small|big|huge|long|little|tall|short"
_QUANTITY = (
    rf"(?:(?:{_SIZES}) )*(?:{'|'.join(sorted(lexicon.QUANTITIES))}|close up|bod(?:y|ies)(?= of"
    r" water)) of"
)

_BOX_OF_CAN = {"can": "box", "cans": "boxes"}  # what the parser sees of a can of something
_FIXED = "|".join(sorted([*lexicon.EXPRESSIONS, *lexicon.SPELLINGS], key=len, reverse=True))

_DETERMINER = "|".join(sorted(lexicon.DETERMINERS))
_SCANNER = re.compile(
    rf"(?<![\w'])(?:{_PLACE}|(?P<omitted>{_QUANTITY}(?= (?:{_DETERMINER}) ))"
    rf"|(?P<quantity>{_QUANTITY})|(?P<fixed>{_FIXED}))(?![\w'])"
    r"|(?P<word>(?:n't|'(?:s|re|ve|ll|d|m))(?!\w)|\w+?(?=n't(?!\w))|\w+(?:[-.]\w+)*)|(?P<mark>[,.;:!?()])"
)


@dataclass(slots=True)
class Tree:
    """Parallel lists over the tokens of a caption. The head of a root is the root itself."""

    texts: list[str]
    tags: list[str]
    deps: list[str]
    heads: list[int]
    children: list[list[int]]

    def __len__(self) -> int:
        return len(self.texts)

    @classmethod
    def of(cls, doc: Doc, tokens: Sequence[Token]) -> Tree:
        strings = doc.vocab.strings
        rows = doc.to_array(["TAG", "DEP", "HEAD"]).astype("int64").tolist()
        return cls.build(
            [token.text for token in tokens],
            [strings[tag & 0xFFFFFFFFFFFFFFFF] for tag, _, _ in rows],
            [strings[dep & 0xFFFFFFFFFFFFFFFF] for _, dep, _ in rows],
            [index + offset for index, (_, _, offset) in enumerate(rows)],
        )

    @classmethod
    def build(cls, texts: list[str], tags: list[str], deps: list[str], heads: list[int]) -> Tree:
        children: list[list[int]] = [[] for _ in texts]
        for index, head in enumerate(heads):
            if head != index:
                children[head].append(index)
        return cls(texts, tags, deps, heads, children)

    def is_root(self, index: int) -> bool:
        return self.heads[index] == index

    def attach(self, index: int, head: int, dep: str) -> None:
        """Attach a token and its subtree to `head`, unless that is in the subtree; `head == index`
        makes it a root.
        """
        if head != index and index in self.ancestors(head):
            return
        old = self.heads[index]
        if old != index:
            self.children[old].remove(index)
        self.heads[index] = head
        self.deps[index] = dep
        if head != index:
            self.children[head].append(index)
            self.children[head].sort()

    def replace(self, old: int, new: int) -> None:
        """Attach `new` to the head of `old`; the caller must attach `old` again."""
        head = self.heads[old]
        self.attach(new, new if head == old else head, self.deps[old])

    def dependents(self, index: int, *deps: str) -> list[int]:
        """Children of a token with one of the given labels, in order."""
        return [child for child in self.children[index] if self.deps[child] in deps]

    def below(self, index: int, over: str, *deps: str) -> list[int]:
        """Return the dependents labelled `deps` of those labelled `over`, in order."""
        tokens = []
        for middle in self.dependents(index, over):
            tokens += self.dependents(middle, *deps)
        return tokens

    def words(self, tokens: Iterable[int]) -> list[str]:
        """Return the texts of tokens."""
        return [self.texts[token] for token in tokens]

    def nouns(self, tokens: Iterable[int]) -> list[int]:
        """Return those of the tokens that are nouns."""
        return [token for token in tokens if self.is_noun(token)]

    def nouns_before(self, index: int) -> list[int]:
        """Return the nouns before a token, nearest first."""
        return self.nouns(range(index - 1, -1, -1))

    def ancestors(self, index: int) -> Iterator[int]:
        """Heads above a token, nearest first."""
        while not self.is_root(index):
            index = self.heads[index]
            yield index

    def is_noun(self, index: int) -> bool:
        return self.tags[index] in NOUN_TAGS

    def is_verb(self, index: int) -> bool:
        return self.tags[index] in VERB_TAGS and self.deps[index] not in AUXILIARIES


class Token(NamedTuple):
    """A token of a caption: `word` is what the parser sees, `text` what the rules read."""

    word: str
    text: str


def tokenise(caption: str) -> list[Token]:
    """Lower-case tokens of a caption. Final punctuation, symbols and control characters are
    dropped.
    """
    matches = _SCANNER.finditer(clean(caption))
    tokens = [_token(match) for match in matches if not match["omitted"]]
    _replace_misread(tokens)
    while tokens and not tokens[-1].word[-1].isalnum():
        tokens.pop()
    return tokens


def _replace_misread(tokens: list[Token]) -> None:
    """Replace, for the parser alone, words that it takes for verbs: the can in "a soda can"."""
    for index, (before, after) in enumerate(pairwise(tokens)):
        if before.text in lexicon.CANS and after.text in _BOX_OF_CAN:
            tokens[index + 1] = Token(_BOX_OF_CAN[after.text], after.text)
        elif before.text == "left" and after.text.rstrip("s") in lexicon.SIDED_PARTS:
            tokens[index] = Token("big", "left")
        elif (before.text, after.text) == ("and", "tie"):  # "a suit and tie"
            tokens[index + 1] = Token("shirt", "tie")


def clean(caption: str) -> str:
    """Return the caption in lower case, with compatibility forms unified, single spaces, at most
    `MAX_CHARACTERS`.
    """
    text = caption[:MAX_CHARACTERS]
    if not text.isascii():
        text = unicodedata.normalize("NFKC", text.translate(_ASCII))
    text = text.lower().replace("w/", "with ").replace("/", " and ").replace("&", " and ")
    return (
        " ".join(text.replace("-covered ", " covered ").split())
        .replace(" 's", "'s")
        .replace(" n't", "n't")
    )


def _token(match: re.Match[str]) -> Token:
    """Return the token of a match of the scanner."""
    if match["preposition"]:
        return _place_token(match["preposition"], match["which"], match["part"])
    if match["quantity"]:
        return Token("some", "some")
    text = match[0]
    if match["fixed"] in lexicon.EXPRESSIONS:
        return Token(*lexicon.EXPRESSIONS[text])
    text = lexicon.SPELLINGS.get(text, text)
    return Token(lexicon.STAND_INS.get(text, text), text)


def _place_token(preposition: str, which: str | None, part: str) -> Token:
    """Return one token for "on the left side of"; the parser sees "on", or "beside"."""
    words = [preposition]
    if which in ("left", "right") or part in ("left", "right"):
        words.append("the")
    if which:
        words.append(which)
    words += [part, "of"]
    word = "beside" if part in ("left", "right") else preposition
    return Token(word, " ".join(words))
