"""The learned parser: a caption's dependency tree, the relations of the rules, and a network that
decides.

Its result for a caption does not depend on the batch, bit for bit: all captions are rows of the
same matrices, whose product is thinc's (see `rules`), and all else is computed per element or per
caption.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice, pairwise, tee
from math import exp, log
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file
from spacy.language import Language
from thinc.api import NumpyOps

from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.relations import person_meant, relations
from sgpipe.stages.parse.grammar.scope import Unstated, stated_relations, unstated
from sgpipe.stages.parse.grammar.things import mention_word, singular
from sgpipe.stages.parse.grammar.tree import Tree, clean
from sgpipe.stages.parse.learned import WEIGHTS
from sgpipe.stages.parse.rules import Parsed, Parser, analyse, load_model, mentions, triplet_of
from sgpipe.utils.lemmas import gerund, verb_lemma

Ints = NDArray[np.int64]
SUFFIXES = 1024  # buckets of the last three letters
# larger ones count as these
DISTANCE = 12
DEPTH = 5
FARTHEST = 11
DISTANCES = 2 * DISTANCE + 1
PATHS = (DEPTH + 1) ** 2
PLACES = 20  # of a token, relative to a pair
NEIGHBOURS = 6

# The words, tags, deps (dependency labels), verbs and rests of predicates that the network knows,
# with their numbers.
Tables: TypeAlias = Mapping[str, Mapping[str, int]]

_NAME_ENDS = frozenset(
    {"DT", "IN", "CC", ",", ".", ":", "POS", "PRP$", "PRP", "TO", "WDT", "WP", "EX", "MD", "PDT"}
)
_LONGEST_NAME = 4
Floats = NDArray[np.float32]
Weights = Mapping[str, Floats]
_EPSILON = 1e-5
_NEGLIGIBLE = 10.0  # verbs with logits so far below the best one do not count
_TRIED = 5  # verbs, and rests of predicates, that are combined
# how much less likely a predicate is that no training caption has, although its verb has an
# embedding
_UNSEEN = 3.0
_SAME_VERB = {"lay": "lie"}  # FACTUAL's lemma: the caption's
# as FACTUAL writes, like the tokeniser's spellings
_JOINED = {"cell phone": "cellphone", "cell phones": "cellphones"}
_KEPT = (  # spellings that the tokeniser replaces, and FACTUAL keeps
    "doughnut",
    "skate board",
    "lap top",
    "back pack",
    "air plane",
    "bath tub",
    "motor cycle",
    "sun glasses",
    "key board",
)


def number_tables(lists: Mapping[str, Sequence[str]]) -> Tables:
    """Number the texts of each list from 1 on."""
    return {
        name: {text: number for number, text in enumerate(texts, 1)}
        for name, texts in lists.items()
    }


def split_predicate(predicate: str) -> tuple[str, str]:
    """Return a lemmatised predicate as its verb (or "") and the rest (or ""): "sit on top of" is
    "sit", "on top of".
    """
    first, _, rest = predicate.partition(" ")
    return ("", predicate) if first in lexicon.PREPOSITIONS else (first, rest)


@dataclass(frozen=True, slots=True)
class Sentence:
    """A caption's tree with the relations that the rules find in it."""

    caption: str
    tree: Tree
    rules: Mapping[tuple[int, int], str]  # lemma of the predicate by (subject, object)
    hidden: NDArray[np.float32]  # [tokens, width]


def token_features(sentences: Sequence[Sentence], tables: Tables) -> tuple[Ints, Ints]:
    """Features and neighbours of the tokens of captions, one after the other.

    Features [tokens, 5]: word, suffix, tag, dependency label, role in the rules' relations.
    Neighbours [tokens, 6]: previous, next, head, head's head, first and last child, as token
    numbers from 1 on (0: none).
    """
    features: list[tuple[int, ...]] = []
    neighbours: list[tuple[int, ...]] = []
    words = tables["words"]
    tags = tables["tags"]
    deps = tables["deps"]
    for sentence in sentences:
        tree = sentence.tree
        start = len(features) + 1
        subjects = {subject for subject, _ in sentence.rules}
        objects = {thing for _, thing in sentence.rules}
        for index, text in enumerate(tree.texts):
            role = (index in subjects) + 2 * (index in objects)
            label = deps.get(tree.deps[index], 0)
            features.append(
                (words.get(text, 0), _suffix(text), tags.get(tree.tags[index], 0), label, role)
            )
            head = tree.heads[index]
            children = tree.children[index] or [-1]
            above = tree.heads[head]
            after = index + 1 if index + 1 < len(tree) else -1
            near = (index - 1, after, -1 if head == index else head, -1 if above == head else above)
            neighbours.append(
                tuple(start + at if at >= 0 else 0 for at in (*near, children[0], children[-1]))
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


def pair_features(
    sentences: Sequence[Sentence], mentions: Sequence[Sequence[int]], tables: Tables
) -> PairFeatures:
    """Features of the ordered pairs of the mentions of captions, and the place of every token
    relative to them.

    Mentions with more than `FARTHEST` others between them are not a pair, or a thousand nouns would
    make a million. The features are the tokens of subject and object, their distance, the path in
    the tree, whether the rules relate them (1: as it is, 2: the other way round, 3: both), and the
    verb and rest of their predicate.
    """
    rows: list[tuple[int, ...]] = []
    on_path: list[int] = []
    counts: list[int] = []
    cells = 0
    for sentence, chosen in zip(sentences, mentions, strict=True):
        before = len(rows)
        length = len(sentence.tree)
        paths = {mention: [mention, *sentence.tree.ancestors(mention)] for mention in chosen}
        for number, first in enumerate(chosen):
            up = {node: steps for steps, node in enumerate(paths[first])}
            for second in chosen[max(number - FARTHEST - 1, 0) : number + FARTHEST + 2]:
                nodes, path = _path(paths[first], up, paths[second])
                on_path += [cells + node for node in nodes]
                cells += length
                distance = min(max(second - first, -DISTANCE), DISTANCE) + DISTANCE
                stated = _stated_by_rules(sentence.rules, first, second, tables)
                rows.append((first, second, distance, path, *stated))
        counts.append(len(rows) - before)
    features = np.array(rows, dtype=np.int64).reshape(-1, 7)
    lengths = np.array([len(sentence.tree) for sentence in sentences])
    return PairFeatures(counts, features, _places(features, counts, lengths, on_path))


def _stated_by_rules(
    rules: Mapping[tuple[int, int], str], first: int, second: int, tables: Tables
) -> tuple[int, int, int]:
    """Return whether the rules relate two mentions, and the verb and rest of their predicate."""
    forwards = rules.get((first, second))
    backwards = rules.get((second, first))
    related = (forwards is not None) + 2 * (backwards is not None)
    if not related:
        return 0, 0, 0
    verb, rest = split_predicate(forwards or backwards or "")
    return related, tables["verbs"].get(verb, 0), tables["rests"].get(rest, 0)


def _path(first: list[int], up: Mapping[int, int], second: list[int]) -> tuple[list[int], int]:
    """Return the tokens between two in the tree, and the number of steps up and down.

    Args:
        up: positions in `first`.
    """
    for down, node in enumerate(second):
        if node in up:
            climbed = up[node]
            steps = min(climbed, DEPTH) * (DEPTH + 1) + min(down, DEPTH)
            return second[:down] + first[: climbed + 1], steps
    return second + first, DEPTH * (DEPTH + 1) + DEPTH


def _places(features: Ints, counts: Sequence[int], lengths: Ints, on_path: list[int]) -> list[Ints]:
    """Of every token: before, in, between or after the pair; which of the pair is first; whether on
    the tree's path.
    """
    widths = np.repeat(lengths, counts)
    ends = np.cumsum(widths)
    tokens = np.arange(widths.sum()) - np.repeat(ends - widths, widths)
    subject = features[:, 0]
    thing = features[:, 1]
    left = np.repeat(np.minimum(subject, thing), widths)
    right = np.repeat(np.maximum(subject, thing), widths)
    order = (
        (tokens >= left).astype(np.int64) + (tokens > left) + (tokens >= right) + (tokens > right)
    )
    places = order * 4 + np.repeat(subject > thing, widths) * 2
    places[on_path] += 1
    parts = np.split(places, np.cumsum(np.array(counts) * lengths)[:-1])
    shapes = zip(counts, lengths.tolist(), strict=True)
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def before_head(tree: Tree, head: int) -> list[int]:
    """Return the tokens that can belong to the name of a thing, from its head noun leftwards."""
    start = head
    while start > 0 and head - start < _LONGEST_NAME and tree.tags[start - 1] not in _NAME_ENDS:
        start -= 1
    return list(range(head - 1, start - 1, -1))


@dataclass(frozen=True, slots=True)
class CaptionScores:
    """What the network computes of a caption; logits, not normalised."""

    named: Floats  # [tokens] of being part of a thing's name
    pairs: Ints  # [pairs, 2] tokens of the subject and object of related pairs
    verb: Floats  # [pairs, verbs + 1]; 0: none
    rest: Floats  # [pairs, rests + 1] of the predicate; 0: none
    copy: Floats  # [pairs, tokens] that the verb is this word


class Network:
    """The network with its weights, which are named as in `experiments.parser.network`."""

    def __init__(
        self, weights: Weights, tables: Tables, mention_logit: float, relation_logit: float
    ) -> None:
        """mention_logit, relation_logit: least scores of a subject or object, and of a related
        pair.
        """
        self._tables = tables
        self._mention_logit = np.float32(mention_logit)
        self._relation_logit = np.float32(relation_logit)
        self._weights = {
            name: np.ascontiguousarray(value, dtype=np.float32) for name, value in weights.items()
        }
        self._gemm = NumpyOps().gemm
        count = sum(name.startswith("layers.") and name.endswith(".weight") for name in weights)
        self._split: list[list[Floats]] = []
        for layer in range(count):
            parts = np.split(self._weights[f"layers.{layer}.weight"], NEIGHBOURS + 1, axis=1)
            self._split.append([np.ascontiguousarray(part) for part in parts])

    def __call__(self, sentences: Sequence[Sentence]) -> list[CaptionScores]:
        tokens, neighbours = map(_padded, token_features(sentences, self._tables))
        hidden = _padded(np.concatenate([sentence.hidden for sentence in sentences]))
        states = self._encode(tokens, neighbours, hidden)
        head, named = self._linear("token_out", states).T
        # of each caption; token 0 is padding
        spans = _slices([len(sentence.tree) for sentence in sentences], start=1)
        mentions = [np.flatnonzero(head[span] > self._mention_logit).tolist() for span in spans]
        pairs = pair_features(sentences, mentions, self._tables)
        mixed, copies = self._relate(states, pairs, spans)
        related = self._linear("related", mixed)[:, 0] > self._relation_logit
        verb = self._linear("verb", mixed[related])
        rest = self._linear("rest", mixed[related])
        scores = []
        end = 0
        for span, rows, copy in zip(spans, _slices(pairs.counts), copies, strict=True):
            chosen = related[rows]
            start = end
            end = end + int(chosen.sum())
            ends = pairs.features[rows, :2][chosen]
            scores.append(
                CaptionScores(named[span], ends, verb[start:end], rest[start:end], copy[chosen])
            )
        return scores

    def _encode(self, tokens: Ints, neighbours: Ints, hidden: Floats) -> Floats:
        """States of the tokens, [tokens, width]. Products for neighbours that are not there are
        left out.
        """
        weights = self._weights
        names = ("word", "suffix", "tag", "dep", "role")
        parts = [
            weights[f"{name}.weight"][numbers]
            for name, numbers in zip(names, tokens.T, strict=True)
        ]
        states = self._linear("enter", np.concatenate([hidden, *parts], axis=1))
        for layer, (of_token, *of_neighbours) in enumerate(self._split):
            read = self._norm(f"norms.{layer}", states)
            total = self._gemm(read, of_token, trans2=True) + weights[f"layers.{layer}.bias"]
            for column, weight in zip(neighbours.T, of_neighbours, strict=True):
                present = np.flatnonzero(column)
                total[present] += self._gemm(read[column[present]], weight, trans2=True)
            states = states + np.maximum(total, 0)
        return self._norm(f"norms.{len(self._split)}", states)

    def _relate(
        self, states: Floats, pairs: PairFeatures, spans: Sequence[slice]
    ) -> tuple[Floats, list[Floats]]:
        """States of the pairs, and by caption, whose tokens are a span, the scores of copying each
        token.
        """
        weights = self._weights
        starts = np.repeat([span.start for span in spans], pairs.counts).astype(np.int64)
        first = pairs.features[:, 0] + starts
        second = pairs.features[:, 1] + starts
        hidden = self._linear("subject", states)[first] + self._linear("object", states)[second]
        for column, name in enumerate(
            ("distance", "path", "rule", "rule_verb", "rule_rest"), start=2
        ):
            hidden += weights[f"{name}.weight"][pairs.features[:, column]]
        hidden = np.maximum(hidden, 0)
        context, copies = self._attend(
            self._linear("query", hidden), self._linear("key", states), pairs, spans
        )
        mixed = self._relu("mix", np.concatenate([hidden, context], axis=1)) + hidden
        # The greatest offers of the pairs that have one of a pair's tokens, as subject or as
        # object.
        offers = self._relu("offer", mixed)
        by_subject = _greatest(offers, first)
        by_object = _greatest(offers, second)
        rivals = [by_subject[first], by_object[second], by_subject[second], by_object[first]]
        return mixed + self._relu("compare", np.concatenate([mixed, *rivals], axis=1)), copies

    def _attend(
        self, queries: Floats, keys: Floats, pairs: PairFeatures, spans: Sequence[slice]
    ) -> tuple[Floats, list[Floats]]:
        """Of every pair: a weighted mean of its caption's tokens, and the scores of copying each
        token.
        """
        size = keys.shape[1] // 3
        bias = self._weights["place.weight"]
        context = np.empty((len(queries), size), np.float32)
        copies = []
        for rows, span, place in zip(_slices(pairs.counts), spans, pairs.places, strict=True):
            count, length = place.shape
            query = queries[rows].reshape(count, 1, 2, size)
            key = keys[span].reshape(1, length, 3, size)
            scores = (query * key[:, :, :2]).sum(-1) / np.float32(size**0.5) + bias[place]
            attention = np.exp(scores[..., 0] - scores[..., 0].max(-1, keepdims=True))
            attention /= attention.sum(-1, keepdims=True)
            context[rows] = (attention[..., None] * key[:, :, 2]).sum(1)
            copies.append(scores[..., 1])
        return context, copies

    def _linear(self, name: str, rows: Floats) -> Floats:
        product: Floats = self._gemm(
            np.ascontiguousarray(rows), self._weights[f"{name}.weight"], trans2=True
        )
        bias = self._weights.get(f"{name}.bias")
        return product if bias is None else product + bias

    def _relu(self, name: str, rows: Floats) -> Floats:
        return np.maximum(self._linear(name, rows), 0)

    def _norm(self, name: str, rows: Floats) -> Floats:
        centred = rows - rows.mean(axis=1, keepdims=True)
        scale = np.sqrt((centred * centred).mean(axis=1, keepdims=True) + np.float32(_EPSILON))
        return centred / scale * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"]


def _slices(counts: Sequence[int], start: int = 0) -> list[slice]:
    """Return where the rows of each caption are, which follow each other."""
    return [slice(first, last) for first, last in pairwise(np.cumsum([start, *counts]))]


def _padded(rows: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([np.zeros((1, rows.shape[1]), rows.dtype), rows])


def _greatest(rows: Floats, numbers: Ints) -> Floats:
    """Return the greatest values of the rows with the same number, by number; of numbers without
    rows, zero.
    """
    greatest = np.zeros((int(numbers.max(initial=0)) + 1, rows.shape[1]), dtype=np.float32)
    if len(rows):
        order = np.argsort(numbers, kind="stable")
        present, starts = np.unique(numbers[order], return_index=True)
        greatest[present] = np.maximum.reduceat(rows[order], starts)
    return greatest


def read_sentences(model: Language, captions: Iterable[str], batch_size: int) -> Iterator[Sentence]:
    """Yield the repaired tree of every caption, the rules' relations, and spaCy's hidden states."""
    captions, texts = tee(captions)
    for caption, (tree, doc) in zip(texts, analyse(model, captions, batch_size), strict=True):
        # Of several relations of a pair, the first counts.
        rules = {
            (relation.subject, relation.object): relation.lemma
            for relation in reversed(relations(tree))
        }
        yield Sentence(caption, tree, rules, doc.tensor.astype(np.float32))


class LearnedParser(Parser):
    """Parses captions with the packaged network, and words the predicates and things of related
    pairs.
    """

    def __init__(self, config: ParseConfig, folder: Path = WEIGHTS) -> None:
        """Load the network and the spaCy model.

        Raises:
            UserError: the spaCy model is not installed, or has no tagger and dependency parser.
        """
        self._batch_size = config.batch_size
        self._attributes = config.attributes
        self._nlp = load_model(config.model)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tables = settings["tables"]
        self._network = Network(
            load_file(folder / "model.safetensors"),
            number_tables(tables),
            settings["mention_logit"],
            settings["relation_logit"],
        )
        self._verbs = ("", *tables["verbs"])
        self._rests = ("", *tables["rests"])
        # of training
        self._known_verbs = frozenset(self._verbs)
        self._predicates = frozenset(settings["predicates"])
        self._names = settings["names"]  # things by other nouns

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        parsed: list[Parsed] = []
        sentences = read_sentences(self._nlp, captions, self._batch_size)
        batch = list(islice(sentences, self._batch_size))
        while batch:
            for sentence, scores in zip(batch, self._network(batch), strict=True):
                named = mentions(sentence.tree) if self._attributes else []
                parsed.append((self._triplets(sentence, scores), named))
            batch = list(islice(sentences, self._batch_size))
        return parsed

    def _triplets(self, sentence: Sentence, scores: CaptionScores) -> list[Triplet]:
        tree = sentence.tree
        spellings = self._spellings(clean(sentence.caption))
        hidden = unstated(tree)
        hidden_things: set[int] = set()
        triplets: dict[tuple[int, int], Triplet] = {}
        for row, (first, second) in enumerate(scores.pairs.tolist()):
            subject = person_meant(tree, first)
            thing = person_meant(tree, second, subject)
            if (subject == thing) != (first == second) or (subject, thing) in triplets:
                continue
            predicate, lemma, verb = self._predicate(
                tree, scores.verb[row], scores.rest[row], scores.copy[row]
            )
            if hidden.covers(tree, subject, thing, verb):
                hidden_things.add(thing)
                continue
            subject_name, subject_head = _name(tree, subject, scores, spellings)
            name, head = _name(tree, thing, scores, spellings)
            triplets[subject, thing] = Triplet(
                subject_name, predicate, name, subject_head, head, lemma, caption=0
            )
        if hidden_things:
            _add_stated(tree, hidden, hidden_things, triplets)
        return list(triplets.values())

    def _spellings(self, caption: str) -> dict[str, str]:
        """Return how names are written: as in the caption, or as in training."""
        spellings = {}
        for word in _KEPT:
            for form in (word, f"{word}s"):
                if word in caption and form in lexicon.SPELLINGS:
                    spellings[lexicon.SPELLINGS[form]] = form
        return spellings | self._names

    def _predicate(
        self, tree: Tree, verbs: Floats, rests: Floats, copies: Floats
    ) -> tuple[str, str, int | None]:
        """Return the predicate as a caption words it, with its verb as a lemma, and the token that
        is its verb.
        """
        lemmas = [verb_lemma(text) for text in tree.texts]
        mass = self._verb_mass(lemmas, verbs, copies)
        verb, rest = self._most_probable(mass, rests)
        source = _copied_token(verb, lemmas, copies)
        worded = _word_verb(tree, verb, rest, source)
        return f"{worded} {rest}".strip(), f"{verb} {rest}".strip(), source

    def _verb_mass(self, lemmas: list[str], verbs: Floats, copies: Floats) -> dict[str, float]:
        """Return how probable verbs are, up to a factor: each as its number in the table and all
        words of the caption with this lemma together.
        """
        top = max(float(verbs.max()), float(copies.max()))
        mass: dict[str, float] = defaultdict(float)
        for names, logits in ((self._verbs, verbs), (lemmas, copies)):
            for number in np.flatnonzero(logits > top - _NEGLIGIBLE):
                mass[names[number]] += exp(float(logits[number]) - top)
        return mass

    def _most_probable(self, mass: Mapping[str, float], rests: Floats) -> tuple[str, str]:
        """Return the verb and the rest of the predicate; one that training did not have is less
        probable.
        """
        numbers = np.argsort(-rests, kind="stable")[:_TRIED]
        likely = [(self._rests[number], float(rests[number])) for number in numbers]
        scores: dict[tuple[str, str], float] = {}
        for verb in sorted(mass, key=lambda verb: -mass[verb])[:_TRIED]:
            is_known = verb in self._known_verbs
            for rest, logit in likely:
                predicate = f"{verb} {rest}".strip()
                if predicate:
                    is_unseen = is_known and predicate not in self._predicates
                    penalty = _UNSEEN if is_unseen else 0
                    scores[verb, rest] = log(mass[verb]) + logit - penalty
        return max(scores, key=lambda words: scores[words], default=("", ""))


def _copied_token(verb: str, lemmas: Sequence[str], copies: Floats) -> int | None:
    """Return the token of the caption that is most probably the verb; None: it has no such word."""
    if not verb:
        return None
    forms = (verb, _SAME_VERB.get(verb))
    words = [index for index, lemma in enumerate(lemmas) if lemma in forms]
    return max(words, key=lambda index: float(copies[index]), default=None)


def _word_verb(tree: Tree, verb: str, rest: str, source: int | None) -> str:
    if not verb:
        return ""
    if verb == "have":
        return "has"
    if source is None or (not rest and tree.tags[source] in ("VBN", "VBD")):
        return gerund(verb)  # active if nothing follows: "held by" is "holding"
    return tree.texts[source]


def _add_stated(
    tree: Tree,
    hidden: Unstated,
    hidden_things: Collection[int],
    triplets: dict[tuple[int, int], Triplet],
) -> None:
    """Add what the rules know to be there instead of what is not stated: "a picture of a dog on the
    wall".
    """
    for relation in stated_relations(tree, hidden):
        pair = (relation.subject, relation.object)
        is_new = relation.object in hidden_things and pair not in triplets
        if is_new and relation.lemma != "have":
            triplets[pair] = triplet_of(tree, relation)


def _name(
    tree: Tree, head: int, scores: CaptionScores, spellings: Mapping[str, str]
) -> tuple[str, str]:
    """Return the head noun with the words before it that belong to the name, and the head noun in
    singular.
    """
    joined = _JOINED.get(" ".join(tree.texts[head - 1 : head + 1]))
    if joined:
        return joined, singular(joined)
    word = mention_word(tree, head)
    words = [spellings.get(word, word)]
    for index in before_head(tree, head):
        if scores.named[index] <= 0:
            break
        words.insert(0, tree.texts[index])
    return " ".join(words), singular(words[-1].rsplit(" ", 1)[-1])
