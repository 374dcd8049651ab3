"""Long captions made of two short ones that share a noun, or of any two.

FACTUAL's captions have six words on average, and a captioner's more. Two captions are joined at a
noun that both have, as captions are continued ("a man on a horse" and "horse on a beach": "a man on
a horse that is on a beach"), or side by side. The gold relations of the result are those of both.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence

from spacy.language import Language

from experiments.parser.examples import Annotated
from experiments.parser.gold import Aligned
from sgpipe.stages.parse.grammar.things import head_noun
from sgpipe.stages.parse.grammar.tree import tokenise
from sgpipe.stages.parse.learned.parser import read_sentences

_SIDE_BY_SIDE = (",", ".", "and", ", and", "while", "as", "with")
_LONGEST = 24


class Joiner:
    """Joins annotated captions at random."""

    def __init__(self, annotated: Sequence[Annotated], seed: int) -> None:
        self._choose = random.Random(seed)
        self._captions = [
            item for item in annotated if not item.aligned.missing and len(item.sentence.tree) > 3
        ]
        self._starting: dict[str, list[int]] = defaultdict(list)  # captions by their first noun
        for number, item in enumerate(self._captions):
            first = _first_noun(item)
            if first is not None:
                self._starting[head_noun(item.sentence.tree, first)].append(number)

    def join(self, count: int, model: Language) -> list[Annotated]:
        """`count` long captions, parsed, with their gold relations."""
        joined: dict[str, tuple[list[str], Aligned]] = {}
        while len(joined) < count:
            drawn = self._draw()
            if drawn:
                joined[" ".join(drawn[0])] = drawn
        sentences = read_sentences(model, joined, 256)
        return [
            Annotated(sentence, aligned, len(words))
            for (words, aligned), sentence in zip(joined.values(), sentences, strict=True)
            if sentence.tree.texts[:-1] == words
        ]

    def _draw(self) -> tuple[list[str], Aligned] | None:
        first = self._choose.choice(self._captions)
        chance = self._choose.random()
        if chance < 0.4:
            drawn = self._continue(first)
        elif chance < 0.75:
            drawn = self._same_subject(first)
        else:
            drawn = self._beside(first, self._choose.choice(self._captions))
        return drawn if drawn and len(drawn[0]) <= _LONGEST else None

    def _continue(self, first: Annotated) -> tuple[list[str], Aligned] | None:
        """The second caption goes on about the last noun of the first."""
        last = _last_noun(first)
        second = self._about(first, last)
        if last is None or second is None:
            return None
        shared = _first_noun(second)
        assert shared is not None
        rest = range(shared + 1, _end(second))
        between = self._choose.choice(("", "", "that is", "which is", ", which is", "and"))
        if _starts_with_verb(second, rest):
            between = self._choose.choice(("", "that", "which", "and"))
        return _compose(first, range(_end(first)), between, second, rest, {shared: last})

    def _same_subject(self, first: Annotated) -> tuple[list[str], Aligned] | None:
        """Both captions have the same first noun, which the result names once."""
        subject = _first_noun(first)
        second = self._about(first, subject)
        if subject is None or second is None:
            return None
        shared = _first_noun(second)
        assert shared is not None
        rest = range(shared + 1, _end(second))
        between = self._choose.choice(("", "", "and", "and is", "is", ",", ", and"))
        if _starts_with_verb(second, rest):
            between = self._choose.choice(("", "and", ",", "that"))
        return _compose(first, range(_end(first)), between, second, rest, {shared: subject})

    def _beside(self, first: Annotated, second: Annotated) -> tuple[list[str], Aligned] | None:
        between = self._choose.choice(_SIDE_BY_SIDE)
        return _compose(first, range(_end(first)), between, second, range(_end(second)), {})

    def _about(self, first: Annotated, noun: int | None) -> Annotated | None:
        """Another caption that begins with the same noun."""
        if noun is None:
            return None
        candidates = self._starting.get(head_noun(first.sentence.tree, noun), ())
        second = self._captions[self._choose.choice(candidates)] if candidates else None
        return None if second is first else second


def _compose(
    first: Annotated,
    kept_range: range,
    between: str,
    second: Annotated,
    rest: range,
    shared: dict[int, int],
) -> tuple[list[str], Aligned] | None:
    """Both parts in a row, and the relations of both. `shared`: tokens of the second that are one
    of the first.
    """
    if not rest:
        return None
    joint = (
        [token.text for token in tokenise(between)]
        if any(map(str.isalpha, between))
        else between.split()
    )
    words = (
        [first.sentence.tree.texts[k] for k in kept_range]
        + joint
        + [second.sentence.tree.texts[k] for k in rest]
    )
    offset = len(kept_range) + len(joint) - rest.start
    moved = {**{k: k + offset for k in rest}, **shared}
    if any(index not in moved for pair in second.aligned.relations for index in pair):
        return None
    names = {
        head: frozenset(index for index in name if index in moved)
        for head, name in second.aligned.names.items()
        if head in moved and head not in shared
    }
    added = Aligned(second.aligned.relations, names, 0).shifted(moved)
    relations = {**added.relations, **first.aligned.relations}
    return words, Aligned(relations, {**added.names, **first.aligned.names}, 0)


def _end(item: Annotated) -> int:
    """The number of tokens without the full stop at the end."""
    return len(item.sentence.tree) - 1


def _first_noun(item: Annotated) -> int | None:
    """The first noun, if it is in a relation or alone, and nothing but its own words is before
    it.
    """
    tree = item.sentence.tree
    for index in range(_end(item)):
        if index in item.aligned.names and tree.is_noun(index):
            return index
        if not tree.is_noun(index) and tree.tags[index] not in ("DT", "JJ", "CD", "VBN", "VBG"):
            return None
    return None


def _last_noun(item: Annotated) -> int | None:
    last = _end(item) - 1
    return last if last in item.aligned.names and item.sentence.tree.is_noun(last) else None


def _starts_with_verb(item: Annotated, rest: range) -> bool:
    """Whether a finite verb follows the first noun."""
    return bool(rest) and item.sentence.tree.tags[rest.start] in ("VBZ", "VBP", "VBD")
