"""The learned parser's network in PyTorch, for training; `sgpipe.stages.parse.learned.parser` is
its forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sgpipe.stages.parse.learned.parser import (
    DISTANCES,
    NEIGHBOURS,
    PATHS,
    PLACES,
    SUFFIXES,
    Tables,
)


class Sizes(NamedTuple):
    """Widths of the network."""

    hidden: int = 96  # of spaCy's hidden states
    word: int = 48
    suffix: int = 16
    label: int = 16
    width: int = 128
    layers: int = 3
    pair: int = 128
    key: int = 64
    offer: int = 64


class Batch(NamedTuple):
    """Captions one after the other; token 0 is padding. Pairs of a caption's mentions, and of pairs
    and tokens.
    """

    tokens: Tensor  # [tokens, 5]
    neighbours: Tensor  # [tokens, 6]
    hidden: Tensor  # [tokens, hidden]
    pairs: Tensor  # [pairs, 7]
    places: Tensor  # [pairs, longest]
    members: Tensor  # [pairs, longest] token numbers, 0: none
    copies: Tensor  # [pairs, longest] whether the token is the gold verb
    related: Tensor  # [pairs]
    verbs: Tensor  # [pairs] of related pairs: -1: not in the table
    rests: Tensor  # [pairs]
    heads: Tensor  # [tokens] whether in a relation
    named: Tensor  # [tokens] whether part of a name; -1: unknown


class Scores(NamedTuple):
    head: Tensor
    named: Tensor
    related: Tensor
    verb: Tensor
    rest: Tensor
    copy: Tensor


class ParserNetwork(nn.Module):
    def __init__(self, tables: Tables, sizes: Sizes, dropout: float = 0.2) -> None:
        super().__init__()
        s = sizes
        self.word = nn.Embedding(len(tables["words"]) + 1, s.word)
        self.suffix = nn.Embedding(SUFFIXES, s.suffix)
        self.tag = nn.Embedding(len(tables["tags"]) + 1, s.label)
        self.dep = nn.Embedding(len(tables["deps"]) + 1, s.label)
        self.role = nn.Embedding(4, s.label)
        self.enter = nn.Linear(s.hidden + s.word + s.suffix + 3 * s.label, s.width)
        self.layers = nn.ModuleList(
            nn.Linear((NEIGHBOURS + 1) * s.width, s.width) for _ in range(s.layers)
        )
        self.norms = nn.ModuleList(nn.LayerNorm(s.width) for _ in range(s.layers + 1))
        self.token_out = nn.Linear(s.width, 2)
        self.subject = nn.Linear(s.width, s.pair, bias=False)
        self.object = nn.Linear(s.width, s.pair)
        self.distance = nn.Embedding(DISTANCES, s.pair)
        self.path = nn.Embedding(PATHS, s.pair)
        self.rule = nn.Embedding(4, s.pair)
        self.rule_verb = nn.Embedding(len(tables["verbs"]) + 1, s.pair)
        self.rule_rest = nn.Embedding(len(tables["rests"]) + 1, s.pair)
        self.query = nn.Linear(s.pair, 2 * s.key)
        self.key = nn.Linear(s.width, 3 * s.key)
        self.place = nn.Embedding(PLACES, 2)
        self.mix = nn.Linear(s.pair + s.key, s.pair)
        self.offer = nn.Linear(s.pair, s.offer)
        self.compare = nn.Linear(s.pair + 4 * s.offer, s.pair)
        self.related = nn.Linear(s.pair, 1)
        self.verb = nn.Linear(s.pair, len(tables["verbs"]) + 1)
        self.rest = nn.Linear(s.pair, len(tables["rests"]) + 1)
        self.dropout = nn.Dropout(dropout)
        self.word_dropout = 0.05
        for table in (
            self.distance,
            self.path,
            self.rule,
            self.rule_verb,
            self.rule_rest,
            self.place,
        ):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, batch: Batch) -> Scores:
        states = self.encode(batch)
        head, named = self.token_out(states).unbind(-1)
        return Scores(head, named, *self.relate(states, batch))

    def encode(self, batch: Batch) -> Tensor:
        words, suffixes, tags, deps, roles = batch.tokens.unbind(-1)
        if self.training:
            words = words * (torch.rand(words.shape) >= self.word_dropout)
        parts = (
            self.word(words),
            self.suffix(suffixes),
            self.tag(tags),
            self.dep(deps),
            self.role(roles),
        )
        states = self.enter(self.dropout(torch.cat([batch.hidden, *parts], -1)))
        real = torch.ones(len(states), 1)
        real[0] = 0
        for layer, norm in zip(self.layers, self.norms, strict=False):
            read = norm(states) * real
            around = read[batch.neighbours].flatten(1)
            states = states + self.dropout(F.relu(layer(torch.cat([read, around], -1))))
        return self.norms[-1](states)

    def relate(self, states: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        first, second, distance, path, rule, verb, rest = batch.pairs.unbind(-1)
        pairs = (
            self.subject(states)[first]
            + self.object(states)[second]
            + self.distance(distance)
            + self.path(path)
        )
        pairs = pairs + self.rule(rule) + self.rule_verb(verb) + self.rule_rest(rest)
        pairs = self.dropout(F.relu(pairs))
        keys = self.key(states)[batch.members].unflatten(-1, (3, -1))  # [pairs, longest, 3, key]
        queries = self.query(pairs).unflatten(-1, (2, -1))
        scores = torch.einsum("pqk,ptqk->ptq", queries, keys[:, :, :2]) / keys.shape[-1] ** 0.5
        scores = scores + self.place(batch.places)
        scores = scores.masked_fill((batch.members == 0)[..., None], -1e4)
        context = torch.einsum("pt,ptk->pk", scores[..., 0].softmax(-1), keys[:, :, 2])
        mixed = self.dropout(F.relu(self.mix(torch.cat([pairs, context], -1)))) + pairs
        mixed = mixed + self.dropout(
            F.relu(self.compare(torch.cat([mixed, self.rivals(mixed, first, second)], -1)))
        )
        return self.related(mixed)[:, 0], self.verb(mixed), self.rest(mixed), scores[..., 1]

    def rivals(self, mixed: Tensor, first: Tensor, second: Tensor) -> Tensor:
        """What pairs with the same tokens offer, [pairs, 4 x offer].

        The maximum over those with the same subject, the same object, this object as subject, this
        subject as object.
        """
        offers = F.relu(self.offer(mixed))
        tokens = int(max(first.max(), second.max())) + 1 if len(first) else 1
        empty = offers.new_zeros(tokens, offers.shape[1])
        index_of = (number[:, None].expand_as(offers) for number in (first, second))
        by_subject, by_object = (
            empty.scatter_reduce(0, index, offers, "amax") for index in index_of
        )
        return torch.cat(
            [by_subject[first], by_object[second], by_subject[second], by_object[first]], -1
        )


def loss(scores: Scores, batch: Batch) -> Mapping[str, Tensor]:
    """Sums over tokens and pairs."""
    known = batch.named >= 0
    gold = batch.related > 0
    verb = torch.cat([scores.verb, scores.copy], -1)[gold].log_softmax(-1)
    table = (
        F.one_hot(batch.verbs[gold].clamp(min=0), scores.verb.shape[-1])
        * (batch.verbs[gold] >= 0)[:, None]
    )
    allowed = torch.cat([table, batch.copies[gold]], -1) > 0
    usable = allowed.any(-1)
    chosen = verb.masked_fill(~allowed, -1e4).logsumexp(-1)[usable]
    rests = batch.rests[gold]
    return {
        "head": F.binary_cross_entropy_with_logits(
            scores.head[1:], batch.heads[1:].float(), reduction="sum"
        ),
        "named": F.binary_cross_entropy_with_logits(
            scores.named[known], batch.named[known].float(), reduction="sum"
        ),
        "related": F.binary_cross_entropy_with_logits(
            scores.related, batch.related.float(), reduction="sum"
        ),
        "verb": -chosen.sum(),
        "rest": (
            F.cross_entropy(scores.rest[gold], rests.clamp(min=0), reduction="none")[
                rests >= 0
            ].sum()
        ),
    }
