"""What the network reads of a caption: integer features of its tokens, and of the ordered pairs of its mentions.

All features of a caption are computed from that caption alone. Index 0 of every table is for padding or the unknown.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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


def token_features(sentence: Sentence, tables: Tables) -> tuple[Ints, Ints]:
    """Features and neighbours of every token.

    Features [tokens, 5]: word, suffix, tag, dependency label, role in the rules' relations. Neighbours [tokens, 6]:
    previous, next, head, head's head, first and last child, as token numbers from 1 on (0: none).
    """
    tree = sentence.tree
    subjects = {subject for subject, _ in sentence.rules}
    objects = {thing for _, thing in sentence.rules}
    last = len(tree) - 1
    features, neighbours = [], []
    for index, text in enumerate(tree.texts):
        head = tree.heads[index]
        above = tree.heads[head]
        children = tree.children[index]
        features.append(
            (
                tables.words.get(text, 0),
                crc32(text[-3:].encode()) % SUFFIXES,
                tables.tags.get(tree.tags[index], 0),
                tables.deps.get(tree.deps[index], 0),
                (index in subjects) + 2 * (index in objects),
            )
        )
        neighbours.append(
            (
                index,
                0 if index == last else index + 2,
                0 if head == index else head + 1,
                0 if above == head else above + 1,
                children[0] + 1 if children else 0,
                children[-1] + 1 if children else 0,
            )
        )
    return np.array(features), np.array(neighbours)


def pair_features(sentence: Sentence, mentions: Sequence[int], tables: Tables) -> tuple[Ints, Ints]:
    """Features of the ordered pairs of mentions, and the place of every token relative to them.

    Of mentions with more than `FARTHEST` others between them there is no pair: a caption of a thousand nouns takes
    no million pairs.

    Features [pairs, 7]: both token numbers, distance, path in the tree, whether the rules relate the pair (1: as
    it is, 2: the other way round, 3: both), verb and rest of their predicate. Places: [pairs, tokens].
    """
    tree, rules = sentence.tree, sentence.rules
    count = len(tree)
    paths = {mention: [mention, *tree.ancestors(mention)] for mention in mentions}
    features: list[tuple[int, ...]] = []
    on_path = np.zeros((len(mentions) * (2 * FARTHEST + 3), count), dtype=np.int64)
    for number, first in enumerate(mentions):
        up = {node: steps for steps, node in enumerate(paths[first])}
        for second in mentions[max(number - FARTHEST - 1, 0) : number + FARTHEST + 2]:
            down = next((steps for steps, node in enumerate(paths[second]) if node in up), DEPTH)
            meeting = paths[second][down] if down < len(paths[second]) and paths[second][down] in up else None
            climbed = DEPTH if meeting is None else up[meeting]
            nodes = paths[second][:down] + paths[first][: climbed + 1]
            on_path[len(features), nodes] = 1
            verb, rest = split_predicate(rules.get((first, second)) or rules.get((second, first)) or "")
            features.append(
                (
                    first,
                    second,
                    min(max(second - first, -DISTANCE), DISTANCE) + DISTANCE,
                    min(climbed, DEPTH) * (DEPTH + 1) + min(down, DEPTH),
                    ((first, second) in rules) + 2 * ((second, first) in rules),
                    tables.verbs.get(verb, 0),
                    tables.rests.get(rest, 0),
                )
            )
    pairs = np.array(features, dtype=np.int64).reshape(-1, 7)
    return pairs, _places(pairs, on_path[: len(pairs)], count)


def _places(pairs: Ints, on_path: Ints, count: int) -> Ints:
    """Of every token: before, in, between or after the pair; which of the pair is first; whether on the tree's path."""
    tokens = np.arange(count)
    subject, thing = pairs[:, :1], pairs[:, 1:2]
    left, right = np.minimum(subject, thing), np.maximum(subject, thing)
    order = (tokens >= left).astype(np.int64) + (tokens > left) + (tokens >= right) + (tokens > right)
    return order * 4 + (subject > thing) * 2 + on_path


_NAME_ENDS = frozenset({"DT", "IN", "CC", ",", ".", ":", "POS", "PRP$", "PRP", "TO", "WDT", "WP", "EX", "MD", "PDT"})
_LONGEST_NAME = 4


def before_head(tree: Tree, head: int) -> list[int]:
    """The tokens that can belong to the name of a thing, from its head noun leftwards."""
    start = head
    while start > 0 and head - start < _LONGEST_NAME and tree.tags[start - 1] not in _NAME_ENDS:
        start -= 1
    return list(range(head - 1, start - 1, -1))
