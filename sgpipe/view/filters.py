"""A search: in its language (docs/view.md), as a URL has it, and as SQL."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import QueryParams

from sgpipe.errors import UserError
from sgpipe.records import ORIGINS, origins_pattern
from sgpipe.storage.health_rules import MARKS, Marked
from sgpipe.storage.index import RunNames, name_form
from sgpipe.storage.judgement_lines import describe_invalid
from sgpipe.utils.console import single_line

Names = tuple[str, ...] | None  # one of these; None: any

_LONGEST = 500  # characters of a query
_FORM = "a relation is SUBJECT PREDICATE OBJECT, such as person riding *"
_ORIGINS = {f"origin:{name}": name for name in ORIGINS}
_TOKEN = re.compile(
    r"""\s*(?:(?P<quoted>["“”]) (?P<caption>[^"“”]*) (?P<closed>["“”]?)
    | '(?P<name>[^']+)'(?=[\s|,]|$)
    | (?P<sign>[|,]|\*(?=[\s|,]|$)|-(?=\S))
    | (?P<word>[^\s|,"“”]+))""",
    re.VERBOSE,
)

WITHOUT = "without_relations"
_JUDGED = (
    "exists (select 1 from judged where judged.image = hit.image and judged.number = hit.number{})"
)
_NOT_JUDGED = f"not {_JUDGED.format('')}"
_CONDITIONS: dict[str, tuple[Marked, str]] = {
    WITHOUT: ("images", "why is not null"),
    "errors": ("images", "status = 'error'"),
    "not_judged": ("relations", _NOT_JUDGED),
    "conflicts": ("relations", _JUDGED.format(" and state = 'conflict'")),
    **{mark.name: (mark.marked, f"(flags & {1 << bit}) <> 0") for bit, mark in enumerate(MARKS)},
}

Order = Literal["confidence", "-confidence", "rarity", "clip_score", "vlm_score", "shuffle"]
ORDERS: tuple[Order, ...] = get_args(Order)
_TRIPLET = ("subject", "predicate", "object")
_OF_BOTH = {name: name for name in ("dataset", "split", "status")}
_OF_RELATIONS = {
    "subject": "subject_category",
    "predicate": "predicate",
    "object": "object_category",
}
FIELDS = (*_TRIPLET, *_OF_BOTH, "judged", "origin")  # that can be repeated in a URL
_SINGLE = ("low", "high", "queue", "order", "seed")
# of a search: each of the hundreds of links of a page repeats them
_MOST_VALUES = 100
_MOST_CHARACTERS = 5000


class QueryError(UserError):
    """A query that cannot be understood.

    `position`: index of the character in the text from which it fails.
    """

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


class Pattern(NamedTuple):
    subject: Names = None
    predicate: Names = None
    object: Names = None


@dataclass(frozen=True)
class Query:
    """A query; without terms it finds everything.

    An image must have a relation like each of the `patterns`; these relations are found. Of each of
    `mentions`, a relation must match one pattern. Each of `captions` must be in a caption of the
    image, in any case.
    """

    text: str = ""
    patterns: tuple[Pattern, ...] = ()
    mentions: tuple[tuple[Pattern, ...], ...] = ()
    without: tuple[Pattern, ...] = ()
    captions: tuple[str, ...] = ()
    without_captions: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    without_origins: tuple[str, ...] = ()


def parse(text: str, vocabulary: RunNames) -> Query:
    """Read a query; of names, the longest that the run knows are taken.

    Raises:
        QueryError: it cannot be understood.
    """
    if len(text) > _LONGEST:
        raise QueryError(f"the query has more than {_LONGEST:,} characters", _LONGEST)
    terms: dict[str, list[Any]] = defaultdict(list)
    parser = _Parser(text, vocabulary)
    position = 0
    while parser.tokens[position].kind != "end":
        if parser.tokens[position].kind == ",":
            position += 1
        else:
            term = parser.term(position)
            terms[term.field] += term.values
            position = term.end
    return Query(text, **{name: tuple(dict.fromkeys(values)) for name, values in terms.items()})


class _Token(NamedTuple):
    kind: str  # word, name, caption, end, or one of * | , -
    text: str
    position: int


class _Term(NamedTuple):
    field: str  # of a query
    values: tuple[Any, ...]  # which are added to it
    end: int  # the token after the term


def _tokens(text: str) -> Iterator[_Token]:
    for match in _TOKEN.finditer(text):
        if match["quoted"]:
            if not match["closed"] or not match["caption"].strip():
                fault = "is empty" if match["closed"] else "does not end"
                raise QueryError(f"the quotation {fault}", match.start("quoted"))
            yield _Token("caption", match["caption"].strip(), match.start("quoted"))
        else:
            kind = match.lastgroup or ""
            yield _Token(match["sign"] or kind, match[kind], match.start(kind))
    yield _Token("end", "", len(text))


class _Parser:
    """Reads terms from the left: a relation if there is one, or else a name that stands alone."""

    def __init__(self, text: str, vocabulary: RunNames) -> None:
        self.tokens = list(_tokens(text))
        self._vocabulary = vocabulary
        self._furthest = 0  # the token at which a name was missing

    def term(self, start: int) -> _Term:
        """Return the term that begins at a token."""
        negated = self.tokens[start].kind == "-"
        if negated:
            start += 1
        prefix = "without_" if negated else ""
        token = self.tokens[start]
        if token.kind == "caption":
            return _Term(f"{prefix}captions", (token.text,), start + 1)
        if token.kind == "word" and token.text in _ORIGINS:
            return _Term(f"{prefix}origins", (_ORIGINS[token.text],), start + 1)
        relation = next(self._relations(start), None)
        if relation is not None:
            pattern, end = relation
            return _Term("without" if negated else "patterns", (pattern,), end)
        patterns, end = self._lone_name(start)
        if negated:
            return _Term("without", patterns, end)
        return _Term("mentions", (patterns,), end)

    def _relations(self, start: int) -> Iterator[tuple[Pattern, int]]:
        """Yield the relations that can begin at a token, and the token after them."""
        for subject, subject_end in self._names(start, "class"):
            for predicate, predicate_end in self._names(subject_end, "predicate"):
                for object_, end in self._names(predicate_end, "class"):
                    yield Pattern(subject, predicate, object_), end

    def _lone_name(self, start: int) -> tuple[tuple[Pattern, ...], int]:
        """Return what the longest name at a token can stand for, and the token after it."""
        meanings: list[tuple[Pattern, int]] = []
        for names, end in self._names(start, "predicate"):
            if names:
                meanings.append((Pattern(predicate=names), end))
        for names, end in self._names(start, "class"):
            if names:
                meanings.append((Pattern(subject=names), end))
                meanings.append((Pattern(object=names), end))
        if not meanings:
            raise self._missing_name()
        longest = max(end for _, end in meanings)
        return tuple(pattern for pattern, end in meanings if end == longest), longest

    def _missing_name(self) -> QueryError:
        token = self.tokens[self._furthest]
        if token.kind in ("word", "name"):
            name = single_line(token.text, 60)
            message = f"the run has no class or predicate {name!r} here"
        elif token.kind == "end":
            message = f"the query ends too early: {_FORM}"
        else:
            message = f"the query has {token.text} in a wrong place: {_FORM}"
        return QueryError(message, token.position)

    def _names(self, start: int, kind: str) -> Iterator[tuple[Names, int]]:
        """Yield `*`, or names joined by `|`, and the token after them; the longest first."""
        if self.tokens[start].kind == "*":
            yield None, start + 1
            return
        firsts = list(self._name(start, kind))
        for names, after in firsts:
            if self.tokens[after].kind != "|":
                yield names, after
                continue
            for more, end in self._names(after + 1, kind):
                yield None if more is None else (*names, *more), end
        if not firsts:
            self._furthest = max(self._furthest, start)

    def _name(self, start: int, kind: str) -> Iterator[tuple[tuple[str, ...], int]]:
        """Yield the names that one name can stand for, and the token after it; the longest first."""
        known = self._vocabulary.names[kind]
        first = self.tokens[start]
        if first.kind == "name":
            names = known.get(name_form(first.text))
            if names:
                yield names, start + 1
            return
        stop = start
        while self.tokens[stop].kind == "word" and stop - start < self._vocabulary.most_words:
            stop += 1
        for end in range(stop, start, -1):
            form = name_form(" ".join(token.text for token in self.tokens[start:end]))
            names = known.get(form) or _names_by_prefix(known, form)
            if names:
                yield names, end


def _names_by_prefix(known: Mapping[str, tuple[str, ...]], form: str) -> tuple[str, ...]:
    """Return the names that a form such as `per*` stands for."""
    if len(form) < 2 or not form.endswith("*"):
        return ()
    names: list[str] = []
    for known_form, known_names in known.items():
        if known_form.startswith(form[:-1]):
            names += known_names
    return tuple(names)


@dataclass(frozen=True)
class Queue:
    """Hits worth looking at.

    Attributes:
        key: `Filters.queue` of the search for them.
        advice: what to do about them; empty: nothing special.
    """

    key: str
    title: str
    count: int
    advice: str


def queue_condition(key: str) -> tuple[Marked, str, list[object]]:
    """Return what hits are, their condition on `hit`, and the values of its `?`.

    Raises:
        UserError: no such queue.
    """
    if key in _CONDITIONS:
        return *_CONDITIONS[key], []
    if key.startswith(f"{WITHOUT}: "):
        return "images", "why = ?", [key.partition(": ")[2]]
    raise UserError(f"queue={single_line(key, 60)}: there is no such queue")


class Filters(BaseModel):
    """A search: the whole state of the gallery's URL, apart from the page.

    `queue`: the key of one of `queues(index)`. `low`, `high`: of the confidence, both included; 1
    if there is none. `order`: the most confident first, or the least (-confidence), the rarest
    triplets, the lowest scores by CLIP or a vision-language model; shuffle: by `seed`. Images are
    in the order of the run, or shuffled.
    """

    model_config = ConfigDict(frozen=True)

    query: Query = Query()
    subject: tuple[str, ...] = ()
    predicate: tuple[str, ...] = ()
    object: tuple[str, ...] = ()
    dataset: tuple[str, ...] = ()
    split: tuple[str, ...] = ()
    status: tuple[str, ...] = ()
    judged: tuple[Literal["right", "wrong", "unsure", "changed", "conflict", "none"], ...] = ()
    origin: tuple[str, ...] = ()
    low: float | None = Field(None, ge=0, le=1)
    high: float | None = Field(None, ge=0, le=1)
    queue: str | None = None
    order: Order = "confidence"
    seed: int = Field(0, ge=0, lt=2**31)

    @classmethod
    def from_params(cls, params: Sequence[tuple[str, str]], vocabulary: RunNames) -> Filters:
        """Read the parameters of a URL; others are ignored.

        Raises:
            QueryError: the parameter `q` is not a query.
            UserError: another parameter has an invalid value.
        """
        characters = sum(len(name) + len(value) for name, value in params)
        if len(params) > _MOST_VALUES or characters > _MOST_CHARACTERS:
            raise UserError(
                f"a search has at most {_MOST_VALUES} values and {_MOST_CHARACTERS:,} characters"
            )
        known = QueryParams([(name, value) for name, value in params if value])
        values: dict[str, Any] = {name: known[name] for name in _SINGLE if name in known}
        for name in FIELDS:
            values[name] = tuple(dict.fromkeys(known.getlist(name)))
        try:
            return cls(query=parse(known.get("q", ""), vocabulary), **values)
        except ValidationError as error:
            raise UserError(describe_invalid(error)) from None

    def to_params(self) -> list[tuple[str, str]]:
        """Return the parameters that `from_params` reads; defaults are left out."""
        params = [("q", self.query.text)] if self.query.text else []
        for name in FIELDS:
            params += product([name], getattr(self, name))
        changed = self.model_dump(include={*_SINGLE}, exclude_defaults=True)
        return [*params, *zip(changed, map(str, changed.values()), strict=True)]

    @property
    def finds_images(self) -> bool:
        """Whether hits are images, not relations.

        They are if the search says nothing of relations, but asks for captions, error rows or a
        queue of images.

        Raises:
            UserError: there is no such queue.
        """
        query = self.query
        asked = (query.patterns, query.mentions, query.without)
        origins = (query.origins, query.without_origins, self.origin)
        named = (self.subject, self.predicate, self.object, self.judged)
        if any(asked + origins + named) or (self.low, self.high) != (None, None):
            return False
        if self.queue is not None:
            return queue_condition(self.queue)[0] == "images"
        return bool(query.captions or query.without_captions or self.status == ("error",))

    def without(self, name: str) -> Filters:
        """Return the search without a parameter of the URL.

        "triplet" and "confidence" stand for several.
        """
        if name == "confidence":
            return self.model_copy(update={"low": None, "high": None})
        names = _TRIPLET if name == "triplet" else (name,)
        return self.model_copy(update=dict.fromkeys(names, ()))


class Where:
    """The condition of a search on a row `hit` of `run.relations` or `run.images`.

    `values` replace its `?`.
    """

    def __init__(self, filters: Filters, of_images: bool) -> None:
        """Collect the conditions.

        Raises:
            UserError: there is no such queue.
        """
        self._clauses: list[str] = []
        self.values: list[object] = []
        if not of_images:
            self._add_query(filters.query)
            self._add_confidence_and_origin(filters)
            self._add_judged(filters.judged)
        for name, column in (_OF_BOTH if of_images else _OF_RELATIONS | _OF_BOTH).items():
            names = getattr(filters, name)
            if names:
                self.add(f"{column} in ({_marks(names)})", names)
        self._add_captions(filters.query.captions, "in")
        self._add_captions(filters.query.without_captions, "not in")
        if filters.queue is not None:
            marked, condition, values = queue_condition(filters.queue)
            if marked == "images" and not of_images:
                condition = f"image in (select image from run.images hit where {condition})"
            self.add(condition, values)

    def _add_query(self, query: Query) -> None:
        self._add_patterns(query.patterns, "{}")
        if len(query.patterns) > 1:
            for pattern in query.patterns:
                self._add_patterns([pattern], "image in (select image from run.relations where {})")
        for patterns in query.mentions:
            self._add_patterns(patterns, "{}")
        self._add_patterns(query.without, "({}) is not true")

    def _add_confidence_and_origin(self, filters: Filters) -> None:
        if filters.low is not None:
            self.add("certainty >= ?::float", [filters.low])
        if filters.high is not None:
            self.add("certainty <= ?::float", [filters.high])
        if filters.origin:
            self.add(f"origin in ({_marks(filters.origin)})", filters.origin)
        matches = "regexp_matches(origin::varchar, ?)"
        if filters.query.origins:
            self.add(matches, [origins_pattern(filters.query.origins)])
        if filters.query.without_origins:
            self.add(f"not {matches}", [origins_pattern(filters.query.without_origins)])

    def _add_judged(self, judged: Sequence[str]) -> None:
        states = [state for state in judged if state != "none"]
        clauses = []
        if states:
            clauses.append(_JUDGED.format(f" and state in ({_marks(states)})"))
        if "none" in judged:
            clauses.append(_NOT_JUDGED)
        if clauses:
            self.add(" or ".join(clauses), states)

    def _add_captions(self, texts: Sequence[str], operator: str) -> None:
        captions = "(select image from run.captions where contains(folded, lower(?)))"
        for text in texts:
            self.add(f"image {operator} {captions}", [text])

    @property
    def sql(self) -> str:
        return " and ".join(self._clauses) or "true"

    def add(self, clause: str, values: Sequence[object] = ()) -> None:
        self._clauses.append(f"({clause})")
        self.values += values

    def _add_patterns(self, patterns: Sequence[Pattern], form: str) -> None:
        if not patterns:
            return
        alternatives = []
        values: list[str] = []
        for pattern in patterns:
            conditions = []
            for column, names in zip(_OF_RELATIONS.values(), pattern, strict=True):
                if names:
                    conditions.append(f"{column} in ({_marks(names)})")
                    values += names
            alternatives.append(f"({' and '.join(conditions) or 'true'})")
        self.add(form.format(" or ".join(alternatives)), values)


def _marks(values: Sequence[object]) -> str:
    return ", ".join("?" * len(values))
