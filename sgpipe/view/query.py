"""The search language: a line of text becomes a `Query`.

person riding *          relations: subject, predicate, object; `*` is anything
dog|cat * sofa           one of several names
riding    umbrella       a predicate; a class at either end
sit*                     all names that start like this
-holding                 leave out
"a red umbrella"         images with a caption that contains this text, in any case
'next to'                a name as it is, where it could be read otherwise
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Literal

from sgpipe.errors import UserError
from sgpipe.storage.index import RunNames, name_form
from sgpipe.utils.console import single_line

Names = tuple[str, ...] | None  # one of these; None: any

_LONGEST, _MOST_TOKENS = 500, 100  # characters and words of a query
_COMPARED = 5000  # names, when one is suggested
_FORM = "a relation is SUBJECT PREDICATE OBJECT, such as person riding *"


class QueryError(UserError):
    """A query that cannot be understood; `position`: index of the character in the text from which it fails."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Pattern:
    """What a relation is to be like."""

    subject: Names = None
    predicate: Names = None
    object: Names = None


@dataclass(frozen=True)
class Query:
    """A query; without terms it finds everything.

    Attributes:
        text: as it was typed.
        patterns: an image must have a relation like each of them; those relations are found.
        mentions: each is a list of patterns of which a relation must match one.
        without: a relation must match none of these patterns.
        captions: each must be in a caption of the image, in any case; `without_captions`: in none.
    """

    text: str = ""
    patterns: tuple[Pattern, ...] = ()
    mentions: tuple[tuple[Pattern, ...], ...] = ()
    without: tuple[Pattern, ...] = ()
    captions: tuple[str, ...] = ()
    without_captions: tuple[str, ...] = ()


def parse(text: str, vocabulary: RunNames) -> Query:
    """Read a query. Names may have several words: the longest that the run knows is taken, in any case.

    Raises QueryError: a quotation that does not end, or a name that the run does not know.
    """
    if len(text) > _LONGEST:
        raise QueryError(f"the query has more than {_LONGEST:,} characters", _LONGEST)
    tokens = list(_tokens(text))
    if len(tokens) > _MOST_TOKENS:
        raise QueryError(f"the query has more than {_MOST_TOKENS} words", tokens[_MOST_TOKENS].position)
    terms = _Parser(tokens, vocabulary, len(text)).terms()
    wanted, without = ([term for term in terms if term.negated == negated] for negated in (False, True))
    return Query(
        text=text,
        patterns=tuple(term.patterns[0] for term in wanted if term.kind == "relation"),
        mentions=tuple(term.patterns for term in wanted if term.kind == "mention"),
        without=tuple(pattern for term in without for pattern in term.patterns),
        captions=tuple(term.caption for term in wanted if term.kind == "caption"),
        without_captions=tuple(term.caption for term in without if term.kind == "caption"),
    )


@dataclass(frozen=True)
class _Token:
    kind: str  # word, name, caption, or one of * | , -
    text: str
    position: int


@dataclass(frozen=True)
class _Term:
    kind: Literal["relation", "mention", "caption"]
    negated: bool
    patterns: tuple[Pattern, ...] = ()
    caption: str = ""


_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>["“”]) (?P<caption>[^"“”]*) (?P<closed>["“”]?)
    | '(?P<name>[^']+)'(?=[\s|,]|$)
    | (?P<sign>[|,]|\*(?=[\s|,]|$)|-(?=\S))
    | (?P<word>[^\s|,"“”]+))""",
    re.VERBOSE,
)


def _tokens(text: str) -> Iterator[_Token]:
    position, end = 0, len(text.rstrip())
    while position < end:
        found = _TOKEN.match(text, position)
        assert found is not None  # a word is whatever is nothing else
        kind = found.lastgroup if found.lastgroup != "closed" else "caption"
        if found["quoted"]:
            if not found["closed"]:
                raise QueryError("the quotation does not end", found.start("quoted"))
            if not found["caption"].strip():
                raise QueryError("the quotation is empty", found.start("quoted"))
            yield _Token("caption", found["caption"].strip(), found.start("quoted"))
        elif found["sign"]:
            yield _Token(found["sign"], found["sign"], found.start("sign"))
        else:
            assert kind is not None
            yield _Token(kind, found[kind], found.start(kind))
        position = found.end()


class _Parser:
    """Splits tokens into terms, of all ways the one whose names are longest from the left."""

    def __init__(self, tokens: Sequence[_Token], vocabulary: RunNames, end: int) -> None:
        self._tokens = [*tokens, _Token("end", "", end)]
        self._vocabulary = vocabulary
        self._furthest = 0  # the token that no reading gets past
        self._expected: set[str] = set()  # there
        self._terms_from = cache(self._find_terms)

    def terms(self) -> tuple[_Term, ...]:
        terms = self._terms_from(0)
        if terms is None:
            raise self._error()
        return terms

    def _find_terms(self, at: int) -> tuple[_Term, ...] | None:
        while self._tokens[at].kind == ",":
            at += 1
        if self._tokens[at].kind == "end":
            return ()
        for term, after in self._term(at):
            rest = self._terms_from(after)
            if rest is not None:
                return (term, *rest)
        return None

    def _term(self, at: int) -> Iterator[tuple[_Term, int]]:
        negated = self._tokens[at].kind == "-"
        at += negated
        if self._tokens[at].kind == "caption":
            yield _Term("caption", negated, caption=self._tokens[at].text), at + 1
            return
        is_relation = False
        for subject, then in self._names(at, "class"):
            for predicate, later in self._names(then, "predicate"):
                for object_, after in self._names(later, "class"):
                    is_relation = True
                    yield _Term("relation", negated, (Pattern(subject, predicate, object_),)), after
        if not is_relation:
            for patterns, after in self._mentions(at):
                yield _Term("mention", negated, patterns), after

    def _mentions(self, at: int) -> Iterator[tuple[tuple[Pattern, ...], int]]:
        """Names that stand alone, which may be predicates, classes, or both; the longest first."""
        found: dict[int, list[Pattern]] = {}
        for names, after in self._names(at, "predicate"):
            if names is not None:
                found.setdefault(after, []).append(Pattern(predicate=names))
        for names, after in self._names(at, "class"):
            if names is not None:
                found.setdefault(after, []).extend([Pattern(subject=names), Pattern(object=names)])
        for after in sorted(found, reverse=True):
            yield tuple(found[after]), after

    def _names(self, at: int, kind: str) -> Iterator[tuple[Names, int]]:
        """`*`, or names joined by `|`, and the token after them; the longest first."""
        if self._tokens[at].kind == "*":
            yield None, at + 1
            return
        any_found = False
        for names, after in self._name(at, kind):
            any_found = True
            if self._tokens[after].kind != "|":
                yield names, after
                continue
            for more, end in self._names(after + 1, kind):
                yield None if more is None else (*names, *more), end
        if not any_found and at >= self._furthest:
            self._expected = {kind} if at > self._furthest else self._expected | {kind}
            self._furthest = at

    def _name(self, at: int, kind: str) -> Iterator[tuple[tuple[str, ...], int]]:
        known, first = self._vocabulary.names[kind], self._tokens[at]
        if first.kind == "name":
            if names := known.get(name_form(first.text)):
                yield names, at + 1
            return
        last = at
        while self._tokens[last].kind == "word" and last - at < self._vocabulary.most_words:
            last += 1
        for after in range(last, at, -1):
            form = name_form(" ".join(token.text for token in self._tokens[at:after]))
            names = known.get(form, ())
            if not names and len(form) > 1 and form.endswith("*"):
                names = tuple(name for other, own in known.items() if other.startswith(form[:-1]) for name in own)
            if names:
                yield names, after

    def _error(self) -> QueryError:
        token = self._tokens[self._furthest]
        if token.kind not in ("word", "name"):
            where = "ends too early" if token.kind == "end" else f"has {token.text} in a wrong place"
            return QueryError(f"the query {where}: {_FORM}", token.position)
        kinds = sorted(self._expected)
        known = [form for kind in kinds for form in self._vocabulary.names[kind]]
        near = get_close_matches(name_form(token.text), known[:_COMPARED], 1)
        advice = f"; did you mean {near[0]}?" if near else ""
        return QueryError(
            f"the run has no {' or '.join(kinds)} {single_line(token.text, 60)!r}{advice}", token.position
        )
