"""The forward pass of the learned parser, in numpy with thinc's matrix product.

The result of a caption does not depend on the captions of its batch, bit for bit: all captions are rows of the same
matrices, thinc's product (BLIS) computes each row in the same order of operations for any number of rows, and
everything else is computed element by element or per caption. See `spacy_model`. numpy's product is not used.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from thinc.api import NumpyOps

from sgpipe.stages.parse.learned.features import Ints, Sentence, Tables, pair_features, token_features

Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]
_EPSILON = 1e-5


class Captions(NamedTuple):
    """The tokens of captions, one after the other; token 0 is padding."""

    starts: Ints  # [captions + 1] the first token of each, and the end
    tokens: Ints  # [tokens, 5]
    neighbours: Ints  # [tokens, 6]
    hidden: Floats  # [tokens, width]


class Pairs(NamedTuple):
    """The ordered pairs of mentions of captions, one after the other."""

    starts: Ints  # [captions + 1] the first pair of each, and the end
    first: Ints  # [pairs] token of the subject
    second: Ints  # [pairs] token of the object
    features: Ints  # [pairs, 7]
    places: list[Ints]  # by caption: [pairs, tokens]


class Logits(NamedTuple):
    """Scores of pairs; not normalised."""

    related: Floats  # [pairs]
    verb: Floats  # [pairs, verbs + 1]; 0: none
    rest: Floats  # [pairs, rests + 1]; 0: none
    copy: list[Floats]  # by caption: [pairs, tokens] that the verb is this word


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """What the networks compute of a caption."""

    named: Floats  # [tokens] logits of being part of a thing's name
    pairs: Ints  # [pairs, 2] tokens of subject and object
    related: Floats  # see `Logits`
    verb: Floats
    rest: Floats
    copy: Floats


class Ensemble:
    """Networks that were trained with different seeds, whose scores are averaged."""

    def __init__(self, weights: Weights, tables: Tables, mention_logit: float) -> None:
        """`weights`: of `experiments.parser.network`, the names beginning with the number of the network."""
        self._tables = tables
        self._mention_logit = np.float32(mention_logit)
        members: dict[str, dict[str, Floats]] = {}
        for name, value in weights.items():
            number, _, own = name.partition(".")
            members.setdefault(number, {})[own] = np.ascontiguousarray(value, dtype=np.float32)
        self._members = [Network(own) for own in members.values()]

    def __call__(self, sentences: Sequence[Sentence]) -> list[CaptionScores]:
        """Scores of captions, whose token counts may differ."""
        captions = _tokens(sentences, self._tables)
        states = [member.encode(captions) for member in self._members]
        token_scores = zip(self._members, states, strict=True)
        head, named = _mean([member.linear("token_out", own) for member, own in token_scores]).T
        starts = captions.starts
        spans = [slice(a, b) for a, b in pairwise(starts)]
        pairs = _pairs(sentences, starts, [np.flatnonzero(head[s] > self._mention_logit) for s in spans], self._tables)
        logits = [member.relate(own, pairs, starts) for member, own in zip(self._members, states, strict=True)]
        related, verb, rest = (_mean([getattr(own, name) for own in logits]) for name in ("related", "verb", "rest"))
        copies = [_mean(list(own)) for own in zip(*(each.copy for each in logits), strict=True)]
        return [
            CaptionScores(named[span], pairs.features[a:b, :2], related[a:b], verb[a:b], rest[a:b], copy)
            for span, a, b, copy in zip(spans, pairs.starts, pairs.starts[1:], copies, strict=False)
        ]


class Network:
    """One network, with weights named as in `experiments.parser.network`."""

    def __init__(self, weights: Weights) -> None:
        self._weights = weights
        self._gemm = NumpyOps().gemm
        self._layers = sum(name.startswith("layers.") and name.endswith(".weight") for name in weights)

    def encode(self, captions: Captions) -> Floats:
        """States of the tokens, [tokens, width]."""
        weights, columns = self._weights, captions.tokens.T
        tables = (weights[f"{name}.weight"] for name in ("word", "suffix", "tag", "dep", "role"))
        parts = [table[numbers] for table, numbers in zip(tables, columns, strict=True)]
        states = self.linear("enter", np.concatenate([captions.hidden, *parts], axis=1))
        for layer in range(self._layers):
            read = self._norm(f"norms.{layer}", states)
            read[0] = 0
            around = read[captions.neighbours].reshape(len(read), -1)
            states = states + self._relu(f"layers.{layer}", np.concatenate([read, around], axis=1))
        return self._norm(f"norms.{self._layers}", states)

    def relate(self, states: Floats, pairs: Pairs, starts: Ints) -> Logits:
        """Scores of the pairs; `starts`: the first token of each caption, and the end."""
        weights = self._weights
        hidden = self.linear("subject", states)[pairs.first] + self.linear("object", states)[pairs.second]
        for column, name in enumerate(("distance", "path", "rule", "rule_verb", "rule_rest"), start=2):
            hidden += weights[f"{name}.weight"][pairs.features[:, column]]
        hidden = np.maximum(hidden, 0)
        context, copies = self._attend(self.linear("query", hidden), self.linear("key", states), pairs, starts)
        mixed = self._relu("mix", np.concatenate([hidden, context], axis=1)) + hidden
        mixed = mixed + self._relu("compare", np.concatenate([mixed, *self._rivals(mixed, pairs)], axis=1))
        return Logits(
            self.linear("related", mixed)[:, 0], self.linear("verb", mixed), self.linear("rest", mixed), copies
        )

    def _attend(self, queries: Floats, keys: Floats, pairs: Pairs, starts: Ints) -> tuple[Floats, list[Floats]]:
        """Of every pair: a weighted mean of its caption's tokens, and the scores of copying each token."""
        size = keys.shape[1] // 3
        bias = self._weights["place.weight"]
        context, copies = np.empty((len(queries), size), np.float32), []
        for number, place in enumerate(pairs.places):
            rows = slice(pairs.starts[number], pairs.starts[number + 1])
            count, length = place.shape
            query = queries[rows].reshape(count, 1, 2, size)
            own = keys[starts[number] : starts[number + 1]].reshape(1, length, 3, size)
            scores = (query * own[:, :, :2]).sum(-1) / np.float32(size**0.5) + bias[place]
            attention = np.exp(scores[..., 0] - scores[..., 0].max(-1, keepdims=True))
            attention /= attention.sum(-1, keepdims=True)
            context[rows] = (attention[..., None] * own[:, :, 2]).sum(1)
            copies.append(scores[..., 1])
        return context, copies

    def _rivals(self, mixed: Floats, pairs: Pairs) -> list[Floats]:
        """Of every pair: the greatest offers of the pairs that have one of its tokens, as subject or as object."""
        offers = self._relu("offer", mixed)
        by_subject, by_object = _greatest(offers, pairs.first), _greatest(offers, pairs.second)
        return [by_subject[pairs.first], by_object[pairs.second], by_subject[pairs.second], by_object[pairs.first]]

    def linear(self, name: str, rows: Floats) -> Floats:
        """The rows times the weights of a layer, plus its bias."""
        product: Floats = self._gemm(np.ascontiguousarray(rows), self._weights[f"{name}.weight"], trans2=True)
        bias = self._weights.get(f"{name}.bias")
        return product if bias is None else product + bias

    def _relu(self, name: str, rows: Floats) -> Floats:
        return np.maximum(self.linear(name, rows), 0)

    def _norm(self, name: str, rows: Floats) -> Floats:
        centred = rows - rows.mean(axis=1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(_EPSILON))
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _tokens(sentences: Sequence[Sentence], tables: Tables) -> Captions:
    starts = np.cumsum([1, *(len(sentence.tree) for sentence in sentences)])
    made = [token_features(sentence, tables) for sentence in sentences]
    tokens = np.concatenate([np.zeros((1, 5), np.int64), *(features for features, _ in made)])
    moved = [np.where(around > 0, around + (start - 1), 0) for (_, around), start in zip(made, starts, strict=False)]
    hidden = [sentence.hidden for sentence in sentences]
    nothing = np.zeros((1, hidden[0].shape[1]), np.float32)
    return Captions(
        starts, tokens, np.concatenate([np.zeros((1, 6), np.int64), *moved]), np.concatenate([nothing, *hidden])
    )


def _pairs(sentences: Sequence[Sentence], starts: Ints, mentions: Sequence[Ints], tables: Tables) -> Pairs:
    made = [pair_features(s, chosen.tolist(), tables) for s, chosen in zip(sentences, mentions, strict=True)]
    features = np.concatenate([pairs for pairs, _ in made])
    counts = [len(pairs) for pairs, _ in made]
    tokens = features[:, :2] + np.repeat(starts[:-1], counts)[:, None]
    return Pairs(np.cumsum([0, *counts]), tokens[:, 0], tokens[:, 1], features, [places for _, places in made])


def _mean(values: Sequence[Floats]) -> Floats:
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / np.float32(len(values))


def _greatest(rows: Floats, numbers: Ints) -> Floats:
    """The greatest values of the rows with the same number, by number; of numbers without rows, zero."""
    greatest = np.zeros((int(numbers.max(initial=0)) + 1, rows.shape[1]), dtype=np.float32)
    if len(rows):
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        greatest[present] = np.maximum.reduceat(rows[order], starts)
    return greatest
