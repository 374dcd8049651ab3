"""Training examples: the features of captions with their gold relations, and long captions made of
short ones.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from spacy.language import Language

from experiments.parser.gold import Aligned, GoldCaption, align, learn_synonyms
from experiments.parser.network import Batch
from sgpipe.stages.parse.grammar.tree import NOUN_TAGS
from sgpipe.stages.parse.learned.parser import (
    Sentence,
    Tables,
    before_head,
    pair_features,
    read_sentences,
    split_predicate,
    token_features,
)
from sgpipe.utils.lemmas import verb_lemma

Array = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Annotated:
    """A caption's tree with its gold relations."""

    sentence: Sentence
    aligned: Aligned
    words: int  # between blanks


def annotate(captions: Sequence[GoldCaption], model: Language) -> list[Annotated]:
    """Parse captions and find the tokens of their gold relations."""
    sentences = list(read_sentences(model, (caption.text for caption in captions), 256))
    trees = (sentence.tree for sentence in sentences)
    synonyms = learn_synonyms(zip(captions, trees, strict=True))
    return [
        Annotated(
            sentence,
            align(caption, sentence.tree, sentence.rules, synonyms),
            len(caption.text.split()),
        )
        for caption, sentence in zip(captions, sentences, strict=True)
    ]


def make_tables(
    annotated: Iterable[Annotated], least_word: int, least_part: int
) -> dict[str, list[str]]:
    """The lists of `Tables`: all labels, and words, verbs and rests that occur often enough; and
    all predicates.
    """
    names = ("words", "tags", "deps", "verbs", "rests", "predicates")
    counts: dict[str, Counter[str]] = {name: Counter() for name in names}
    for item in annotated:
        tree = item.sentence.tree
        counts["words"].update(tree.texts)
        counts["tags"].update(tree.tags)
        counts["deps"].update(tree.deps)
        for predicate in item.aligned.relations.values():
            counts["predicates"][predicate] += 1
            verb, rest = split_predicate(predicate)
            counts["verbs"][verb] += 1
            counts["rests"][rest] += 1
    minimum = {"words": least_word, "verbs": least_part, "rests": least_part}
    return {
        name: sorted(
            text for text, count in counter.items() if text and count >= minimum.get(name, 1)
        )
        for name, counter in counts.items()
    }


@dataclass(frozen=True, slots=True)
class Example:
    """The features and targets of a caption; see `network.Batch`."""

    tokens: Array
    neighbours: Array
    hidden: Array
    pairs: Array
    places: Array
    copies: Array
    related: Array
    verbs: Array
    rests: Array
    heads: Array
    named: Array


def choose_mentions(item: Annotated) -> list[int]:
    """All nouns, and what is in a relation by gold or rules."""
    stated = {index for pair in (*item.aligned.relations, *item.sentence.rules) for index in pair}
    return sorted(
        stated | {index for index, tag in enumerate(item.sentence.tree.tags) if tag in NOUN_TAGS}
    )


def make_example(item: Annotated, tables: Tables, mentions: Sequence[int]) -> Example:
    """The features and targets of a caption, with the pairs of these mentions."""
    sentence = item.sentence
    aligned = item.aligned
    tree, count = sentence.tree, len(sentence.tree)
    heads = {index for pair in aligned.relations for index in pair}
    _, pairs, [places] = pair_features([sentence], [mentions], tables)
    related = np.zeros(len(pairs), dtype=np.int64)
    verbs = related.copy()
    rests = related.copy()
    copies = np.zeros((len(pairs), count), dtype=bool)
    lemmas = [verb_lemma(text) for text in tree.texts]
    for row, (first, second) in enumerate(pairs[:, :2].tolist()):
        predicate = aligned.relations.get((first, second))
        if predicate is None:
            continue
        verb, rest = split_predicate(predicate)
        related[row] = 1
        verbs[row] = tables["verbs"].get(verb, -1) if verb else 0
        rests[row] = tables["rests"].get(rest, -1) if rest else 0
        copies[row] = [verb == lemma for lemma in lemmas]
    named = np.full(count, -1)
    for head, name in aligned.names.items():
        for index in before_head(tree, head):
            named[index] = max(named[index], index in name)
    tokens, neighbours = token_features([sentence], tables)
    head_flags = np.isin(np.arange(count), sorted(heads)).astype(np.int64)
    return Example(
        tokens.astype(np.int16), neighbours.astype(np.int16), sentence.hidden.astype(np.float16),
        pairs.astype(np.int16), places.astype(np.int8), copies, related, verbs, rests, head_flags, named,
    )  # fmt: skip


def collate(examples: Sequence[Example]) -> Batch:
    """A batch of captions; token 0 is padding."""
    lengths = [len(example.tokens) for example in examples]
    starts = np.cumsum([1, *lengths])[:-1]
    longest = max(lengths)

    def rows(name: str, first: float | None = None) -> Array:
        parts = [getattr(example, name) for example in examples]
        return np.concatenate(
            parts
            if first is None
            else [np.full((1, *parts[0].shape[1:]), first, parts[0].dtype), *parts]
        )

    def padded(name: str) -> Array:
        return np.concatenate(
            [
                np.pad(a, ((0, 0), (0, longest - a.shape[1])))
                for a in (getattr(example, name) for example in examples)
            ]
        )

    neighbours = [np.zeros((1, 6), np.int64)]
    pairs = []
    members = []
    for example, start, length in zip(examples, starts, lengths, strict=True):
        around = example.neighbours.astype(np.int64)
        neighbours.append(np.where(around > 0, around + start - 1, 0))
        example_pairs = example.pairs.astype(np.int64)
        example_pairs[:, :2] += start
        pairs.append(example_pairs)
        member = np.zeros(longest, np.int64)
        member[:length] = np.arange(start, start + length)
        members.append(np.tile(member, (len(example_pairs), 1)))
    arrays = (
        rows("tokens", 0).astype(np.int64), np.concatenate(neighbours), rows("hidden", 0).astype(np.float32),
        np.concatenate(pairs), padded("places").astype(np.int64), np.concatenate(members), padded("copies"),
        rows("related"), rows("verbs"), rows("rests"), rows("heads", 0), rows("named", -1),
    )  # fmt: skip
    return Batch(*(torch.from_numpy(np.ascontiguousarray(array)) for array in arrays))


def batches(examples: Sequence[Example], tokens: int, choose: random.Random) -> list[list[Example]]:
    """All examples once, in random order, in batches of similar lengths with about `tokens`
    tokens.
    """
    order = sorted(
        range(len(examples)), key=lambda index: len(examples[index].tokens) + choose.random() * 3
    )
    groups: list[list[int]] = [[]]
    filled = 0
    for index in order:
        groups[-1].append(index)
        filled += len(examples[index].tokens)
        if filled >= tokens:
            groups.append([])
            filled = 0
    choose.shuffle(groups)
    return [[examples[index] for index in group] for group in groups if group]
