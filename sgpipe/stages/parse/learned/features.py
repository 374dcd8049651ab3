"""What the network reads of a caption: integer features of its tokens, and of the ordered pairs of its mentions.

All features of a caption are computed from that caption alone. Index 0 of every table is for padding or the unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from sgpipe.stages.parse.grammar.relations import ParsedRelation
from sgpipe.stages.parse.grammar.tree import Tree

Ints = NDArray[np.int64]
SUFFIXES = 1024  # buckets of the last three letters
DISTANCE, DEPTH = 12, 5  # larger ones count as these
FARTHEST = 11
DISTANCES, PATHS = 2 * DISTANCE + 1, (DEPTH + 1) ** 2
PLACES = 20  # of a token, relative to a pair
NEIGHBOURS = 6

_PREPOSITIONS = """
about above across against all along alongside amid among around as at away behind below beneath beside besides
between beyond bigger by close different down during far for from half high in inside into larger like longer low more
near next of off on onto opposite out outside over past shorter side similar smaller taller than through to together
toward towards under underneath up upon upside via with within without
"""
PREPOSITIONS = frozenset(_PREPOSITIONS.split())  # words that a predicate without a verb can begin with


@dataclass(frozen=True)
class Tables:
    """The words, tags, dependency labels, verbs and rests of predicates that the network knows, with their numbers."""

    words: Mapping[str, int]
    tags: Mapping[str, int]
    deps: Mapping[str, int]
    verbs: Mapping[str, int]
    rests: Mapping[str, int]

    @classmethod
    def of(cls, lists: Mapping[str, Sequence[str]]) -> Tables:
        """Numbers from 1 on, in the order of the lists."""
        return cls(
            **{name: {text: number for number, text in enumerate(lists[name], 1)} for name in cls.__annotations__}
        )


def split_predicate(predicate: str) -> tuple[str, str]:
    """A lemmatised predicate as its verb (or "") and the rest (or ""): "sit on top of" is "sit", "on top of"."""
    first, _, rest = predicate.partition(" ")
    return ("", predicate) if first in PREPOSITIONS else (first, rest)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption's tree with the relations that the rules find in it."""

    caption: str
    tree: Tree
    rules: Mapping[tuple[int, int], str]  # lemma of the predicate by (subject, object)
    hidden: NDArray[np.float32]  # [tokens, width]

    @classmethod
    def of(cls, caption: str, tree: Tree, relations: Iterable[ParsedRelation], hidden: NDArray[np.float32]) -> Sentence:
        rules: dict[tuple[int, int], str] = {}
        for relation in relations:
            rules.setdefault((relation.subject, relation.object), relation.lemma)
        return cls(caption, tree, rules, hidden)


def token_features(sentences: Sequence[Sentence], tables: Tables) -> tuple[Ints, Ints]:
    """Features and neighbours of the tokens of captions, one after the other.

    Features [tokens, 5]: word, suffix, tag, dependency label, role in the rules' relations. Neighbours [tokens, 6]:
    previous, next, head, head's head, first and last child, as token numbers from 1 on (0: none).
    """
    features: list[tuple[int, ...]] = []
    neighbours: list[tuple[int, ...]] = []
    words, tags, deps = tables.words, tables.tags, tables.deps
    for sentence in sentences:
        tree, start = sentence.tree, len(features) + 1
        subjects = {subject for subject, _ in sentence.rules}
        objects = {thing for _, thing in sentence.rules}
        last = len(tree) - 1
        for index, text in enumerate(tree.texts):
            role = (index in subjects) + 2 * (index in objects)
            label = deps.get(tree.deps[index], 0)
            features.append((words.get(text, 0), _suffix(text), tags.get(tree.tags[index], 0), label, role))
            head = tree.heads[index]
            above = tree.heads[head]
            children = tree.children[index]
            neighbours.append(
                (
                    start + index - 1 if index else 0,
                    start + index + 1 if index < last else 0,
                    start + head if head != index else 0,
                    start + above if above != head else 0,
                    start + children[0] if children else 0,
                    start + children[-1] if children else 0,
                )
            )
    return np.array(features), np.array(neighbours)


@lru_cache(maxsize=1 << 16)
def _suffix(word: str) -> int:
    return crc32(word[-3:].encode()) % SUFFIXES


class PairFeatures(NamedTuple):
    """The ordered pairs of mentions of captions, one after the other."""

    counts: list[int]  # pairs of each caption
    features: Ints  # [pairs, 7], see `pair_features`
    places: list[Ints]  # of each caption: [pairs, tokens]


def pair_features(sentences: Sequence[Sentence], mentions: Sequence[Sequence[int]], tables: Tables) -> PairFeatures:
    """Features of the ordered pairs of the mentions of captions, and the place of every token relative to them.

    Of mentions with more than `FARTHEST` others between them there is no pair: a caption of a thousand nouns takes
    no million pairs. The features are the tokens of subject and object, their distance, the path in the tree, whether
    the rules relate the pair (1: as it is, 2: the other way round, 3: both), and the verb and rest of their predicate.
    """
    rows: list[tuple[int, ...]] = []
    on_path: list[int] = []
    counts: list[int] = []
    cells = 0
    for sentence, chosen in zip(sentences, mentions, strict=True):
        before, length = len(rows), len(sentence.tree)
        paths = {mention: [mention, *sentence.tree.ancestors(mention)] for mention in chosen}
        for number, first in enumerate(chosen):
            up = {node: steps for steps, node in enumerate(paths[first])}
            for second in chosen[max(number - FARTHEST - 1, 0) : number + FARTHEST + 2]:
                nodes, path = _path(paths[first], up, paths[second])
                on_path += [cells + node for node in nodes]
                cells += length
                rows.append((first, second, *_pair(sentence, first, second, path, tables)))
        counts.append(len(rows) - before)
    features = np.array(rows, dtype=np.int64).reshape(-1, 7)
    lengths = np.array([len(sentence.tree) for sentence in sentences])
    return PairFeatures(counts, features, _places(features, counts, lengths, on_path))


def _path(first: list[int], up: Mapping[int, int], second: list[int]) -> tuple[list[int], int]:
    """The tokens between two in the tree, and the number of steps up and down. `up`: positions in `first`."""
    for down, node in enumerate(second):
        if node in up:
            climbed = up[node]
            return second[:down] + first[: climbed + 1], min(climbed, DEPTH) * (DEPTH + 1) + min(down, DEPTH)
    return second + first, DEPTH * (DEPTH + 1) + DEPTH


def _pair(sentence: Sentence, first: int, second: int, path: int, tables: Tables) -> tuple[int, ...]:
    rules = sentence.rules
    forwards, backwards = rules.get((first, second)), rules.get((second, first))
    distance = min(max(second - first, -DISTANCE), DISTANCE) + DISTANCE
    stated = forwards or backwards
    if stated is None:
        return distance, path, 0, 0, 0
    verb, rest = split_predicate(stated)
    related = (forwards is not None) + 2 * (backwards is not None)
    return distance, path, related, tables.verbs.get(verb, 0), tables.rests.get(rest, 0)


def _places(features: Ints, counts: Sequence[int], lengths: Ints, on_path: list[int]) -> list[Ints]:
    """Of every token: before, in, between or after the pair; which of the pair is first; whether on the tree's path."""
    widths = np.repeat(lengths, counts)
    ends = np.cumsum(widths)
    total = int(ends[-1]) if len(ends) else 0
    tokens = np.arange(total) - np.repeat(ends - widths, widths)
    subject, thing = features[:, 0], features[:, 1]
    left, right = (np.repeat(side, widths) for side in (np.minimum(subject, thing), np.maximum(subject, thing)))
    order = (tokens >= left).astype(np.int64) + (tokens > left) + (tokens >= right) + (tokens > right)
    places = order * 4 + np.repeat(subject > thing, widths) * 2
    places[on_path] += 1
    starts = np.cumsum([0, *(count * length for count, length in zip(counts, lengths.tolist(), strict=True))])
    shapes = zip(counts, lengths.tolist(), strict=True)
    return [places[at : at + n * m].reshape(n, m) for at, (n, m) in zip(starts.tolist(), shapes, strict=False)]


_NAME_ENDS = frozenset({"DT", "IN", "CC", ",", ".", ":", "POS", "PRP$", "PRP", "TO", "WDT", "WP", "EX", "MD", "PDT"})
_LONGEST_NAME = 4


def before_head(tree: Tree, head: int) -> list[int]:
    """The tokens that can belong to the name of a thing, from its head noun leftwards."""
    start = head
    while start > 0 and head - start < _LONGEST_NAME and tree.tags[start - 1] not in _NAME_ENDS:
        start -= 1
    return list(range(head - 1, start - 1, -1))
