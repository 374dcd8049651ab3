"""The search language: a line of text becomes a `Query`.

person riding *          relations: subject, predicate, object; `*` is anything
dog|cat * sofa           one of several names
riding    umbrella       a predicate; a class at either end
-holding                 leave out
"a red umbrella"         images with a caption that contains this text, in any case
'next to'                a name in quotes, where it could be read otherwise
"""

from __future__ import annotations

from dataclasses import dataclass

from sgpipe.errors import UserError

Names = tuple[str, ...] | None  # one of these; None: any


class QueryError(UserError):
    """A query that cannot be understood; `position`: index of the character in the text from which it fails."""

    def __init__(self, message: str, position: int) -> None:
        super().__init__(message)
        self.position = position


@dataclass(frozen=True)
class Vocabulary:
    """The predicates and classes of a run, by which queries are read."""

    predicates: tuple[str, ...]
    categories: tuple[str, ...]


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


def parse(text: str, vocabulary: Vocabulary) -> Query:
    """Read a query. Names may have several words: the longest that the run knows is taken, in any case.

    Raises QueryError: a quotation that does not end, or a name that the run does not know.
    """
    raise NotImplementedError
