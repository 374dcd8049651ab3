"""A search: its language (docs/view.md), which makes a `Query` of a line of text; as a URL has it;
and as SQL.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sgpipe.errors import UserError
from sgpipe.records import ORIGINS, origins_pattern
from sgpipe.storage.health_rules import MARKS, Marked
from sgpipe.storage.index import RunNames, name_form
from sgpipe.storage.judgements import describe_invalid
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
    """A query that cannot be understood; `position`: index of the character in the text from which
    it fails.
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
    """Read a query; of names, the longest that the run knows are taken. Raises QueryError: it
    cannot be understood.
    """
    if len(text) > _LONGEST:
        raise QueryError(f"the query has more than {_LONGEST:,} characters", _LONGEST)
    found: dict[str, list[Any]] = defaultdict(list)
    parser = _Parser(text, vocabulary)
    at = 0
    while (kind := parser.tokens[at].kind) != "end":
        if kind == ",":
            at += 1
        else:
            name, values, at = parser.term(at)
            found[name] += values
    return Query(text, **{name: tuple(dict.fromkeys(values)) for name, values in found.items()})


class _Token(NamedTuple):
    kind: str  # word, name, caption, end, or one of * | , -
    text: str
    position: int


def _tokens(text: str) -> Iterator[_Token]:
    for found in _TOKEN.finditer(text):
        if found["quoted"]:
            if not found["closed"] or not found["caption"].strip():
                fault = "is empty" if found["closed"] else "does not end"
                raise QueryError(f"the quotation {fault}", found.start("quoted"))
            yield _Token("caption", found["caption"].strip(), found.start("quoted"))
        else:
            kind = found.lastgroup or ""
            yield _Token(found["sign"] or kind, found[kind], found.start(kind))
    yield _Token("end", "", len(text))


class _Parser:
    """Reads terms from the left: at each place a relation if there is one, or else a name that
    stands alone.
    """

    def __init__(self, text: str, vocabulary: RunNames) -> None:
        self.tokens = list(_tokens(text))
        self._vocabulary = vocabulary
        self._furthest = 0  # the token at which a name was missing

    def term(self, at: int) -> tuple[str, tuple[Any, ...], int]:
        """Return the field of a query that a term is of, what is added to it, and the token after
        the term.
        """
        negated = self.tokens[at].kind == "-"
        at += negated
        token = self.tokens[at]
        without = "without_" if negated else ""
        if token.kind == "caption":
            return f"{without}captions", (token.text,), at + 1
        if token.kind == "word" and token.text in _ORIGINS:
            return f"{without}origins", (_ORIGINS[token.text],), at + 1
        for subject, then in self._names(at, "class"):
            for predicate, later in self._names(then, "predicate"):
                for object_, after in self._names(later, "class"):
                    return (
                        "without" if negated else "patterns",
                        (Pattern(subject, predicate, object_),),
                        after,
                    )
        alone = [
            (after, Pattern(predicate=names))
            for names, after in self._names(at, "predicate")
            if names
        ]
        for names, after in self._names(at, "class"):
            alone += (
                [(after, Pattern(subject=names)), (after, Pattern(object=names))] if names else []
            )
        if not alone:
            token = self.tokens[self._furthest]
            if token.kind in ("word", "name"):
                message = f"the run has no class or predicate {single_line(token.text, 60)!r} here"
            else:
                where = (
                    "ends too early"
                    if token.kind == "end"
                    else f"has {token.text} in a wrong place"
                )
                message = f"the query {where}: {_FORM}"
            raise QueryError(message, token.position)
        end = max(after for after, _ in alone)
        patterns = tuple(pattern for after, pattern in alone if after == end)
        return ("without", patterns, end) if negated else ("mentions", (patterns,), end)

    def _names(self, at: int, kind: str) -> Iterator[tuple[Names, int]]:
        """Yield `*`, or names joined by `|`, and the token after them; the longest first."""
        if self.tokens[at].kind == "*":
            yield None, at + 1
            return
        found = list(self._name(at, kind))
        for names, after in found:
            if self.tokens[after].kind != "|":
                yield names, after
                continue
            for more, end in self._names(after + 1, kind):
                yield None if more is None else (*names, *more), end
        if not found:
            self._furthest = max(self._furthest, at)

    def _name(self, at: int, kind: str) -> Iterator[tuple[tuple[str, ...], int]]:
        known = self._vocabulary.names[kind]
        first = self.tokens[at]
        if first.kind == "name":
            names = known.get(name_form(first.text))
            if names:
                yield names, at + 1
            return
        last = at
        while self.tokens[last].kind == "word" and last - at < self._vocabulary.most_words:
            last += 1
        for after in range(last, at, -1):
            form = name_form(" ".join(token.text for token in self.tokens[at:after]))
            names = known.get(form, ())
            if not names and len(form) > 1 and form.endswith("*"):
                names = tuple(
                    name
                    for other, own in known.items()
                    if other.startswith(form[:-1])
                    for name in own
                )
            if names:
                yield names, after


@dataclass(frozen=True)
class Queue:
    """Hits worth looking at: `Filters.queue` is `key`. `advice`: what to do about them; empty:
    nothing special.
    """

    key: str
    title: str
    count: int
    advice: str


def queue_condition(key: str) -> tuple[Marked, str, list[Any]]:
    """Return what hits are, their condition on `hit`, and the values of its `?`. Raises UserError:
    no such queue.
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
        """Read the parameters of a URL; others are ignored. Raises QueryError: of `q`; UserError:
        of another.
        """
        if (
            len(params) > _MOST_VALUES
            or sum(len(name) + len(value) for name, value in params) > _MOST_CHARACTERS
        ):
            raise UserError(
                f"a search has at most {_MOST_VALUES} values and {_MOST_CHARACTERS:,} characters"
            )
        values: dict[str, Any] = {
            name: value for name, value in params if name in _SINGLE and value
        }
        values |= {
            name: tuple(dict.fromkeys(v for key, v in params if key == name and v))
            for name in FIELDS
        }
        try:
            return cls(query=parse(dict(params).get("q", ""), vocabulary), **values)
        except ValidationError as error:
            raise UserError(describe_invalid(error)) from None

    def to_params(self) -> list[tuple[str, str]]:
        """Return the parameters that `from_params` reads; defaults are left out."""
        params = [("q", self.query.text)] if self.query.text else []
        params += [(name, value) for name in FIELDS for value in getattr(self, name)]
        changed = self.model_dump(include={*_SINGLE}, exclude_defaults=True)
        return [*params, *((name, str(value)) for name, value in changed.items())]

    @property
    def finds_images(self) -> bool:
        """Whether hits are images: nothing is said of relations, but captions, error rows or a
        queue of images are asked for. Raises UserError: there is no such queue."""
        query = self.query
        of_relations = (
            query.patterns,
            query.mentions,
            query.without,
            query.origins,
            query.without_origins,
        )
        named = (self.subject, self.predicate, self.object, self.origin, self.judged)
        if any((*of_relations, *named)) or (self.low, self.high) != (None, None):
            return False
        if self.queue is not None:
            return queue_condition(self.queue)[0] == "images"
        return bool(query.captions or query.without_captions or self.status == ("error",))

    def without(self, name: str) -> Filters:
        """Return the search without what a parameter of the URL says; "triplet" and "confidence"
        are several.
        """
        if name == "confidence":
            return self.model_copy(update={"low": None, "high": None})
        return self.model_copy(update=dict.fromkeys(_TRIPLET if name == "triplet" else (name,), ()))


class Where:
    """The condition of a search on a row `hit` of `run.relations` or `run.images`; `values` replace
    its `?`.
    """

    def __init__(self, filters: Filters, of_images: bool) -> None:
        """Raises UserError: there is no such queue."""
        self._clauses: list[str] = []
        self.values: list[Any] = []
        query = filters.query
        if not of_images:
            self._add_patterns(query.patterns, "{}")
            for pattern in query.patterns if len(query.patterns) > 1 else ():
                self._add_patterns([pattern], "image in (select image from run.relations where {})")
            for patterns in query.mentions:
                self._add_patterns(patterns, "{}")
            self._add_patterns(query.without, "({}) is not true")
            for bound, sign in ((filters.low, ">="), (filters.high, "<=")):
                if bound is not None:
                    self.add(f"certainty {sign} ?::float", [bound])
            if filters.origin:
                self.add(f"origin in ({_marks(filters.origin)})", filters.origin)
            for origins, no in ((query.origins, ""), (query.without_origins, "not ")):
                if origins:
                    self.add(f"{no}regexp_matches(origin::varchar, ?)", [origins_pattern(origins)])
            known = [state for state in filters.judged if state != "none"]
            clauses = [_JUDGED.format(f" and state in ({_marks(known)})")] if known else []
            clauses += [_NOT_JUDGED] if "none" in filters.judged else []
            if clauses:
                self.add(" or ".join(clauses), known)
        for name, column in (_OF_BOTH if of_images else _OF_RELATIONS | _OF_BOTH).items():
            names = getattr(filters, name)
            if names:
                self.add(f"{column} in ({_marks(names)})", names)
        for texts, named in ((query.captions, "in"), (query.without_captions, "not in")):
            for text in texts:
                self.add(
                    f"image {named} (select image from run.captions where contains(folded,"
                    " lower(?)))",
                    [text],
                )
        if filters.queue is not None:
            of, condition, values = queue_condition(filters.queue)
            inside = of == "images" and not of_images
            self.add(
                (
                    f"image in (select image from run.images hit where {condition})"
                    if inside
                    else condition
                ),
                values,
            )

    @property
    def sql(self) -> str:
        return " and ".join(self._clauses) or "true"

    def add(self, clause: str, values: Sequence[Any] = ()) -> None:
        self._clauses.append(f"({clause})")
        self.values += values

    def _add_patterns(self, patterns: Sequence[Pattern], form: str) -> None:
        conditions = []
        values = []
        for pattern in patterns:
            named = [
                (column, names)
                for column, names in zip(_OF_RELATIONS.values(), pattern, strict=True)
                if names
            ]
            conditions.append(
                " and ".join(f"{column} in ({_marks(names)})" for column, names in named) or "true"
            )
            values += [name for _, names in named for name in names]
        if patterns:
            self.add(form.format(" or ".join(f"({condition})" for condition in conditions)), values)


def _marks(values: Sequence[Any]) -> str:
    return ", ".join("?" * len(values))
