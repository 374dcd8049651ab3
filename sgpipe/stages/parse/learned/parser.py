"""The learned parser: a caption's dependency tree, the relations of the rules, and a network that decides."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import islice, tee
from math import exp, log
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from spacy.language import Language

from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.parse.grammar.lexicon import SPELLINGS
from sgpipe.stages.parse.grammar.relations import mention_word, person_meant, relations, singular
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Tree, clean
from sgpipe.stages.parse.learned import WEIGHTS
from sgpipe.stages.parse.learned.network import CaptionScores, Floats, Network, Sentence, Tables, before_head
from sgpipe.stages.parse.rules import Parsed, Parser, analyse, load_model, mentions
from sgpipe.utils.lemmas import gerund, verb_lemma

_NEGLIGIBLE = 10.0  # verbs with logits so far below the best one do not count
_TRIED = 5  # verbs, and rests of predicates, that are combined
_UNSEEN = 3.0  # how much less likely a predicate is that no training caption has, although its verb has an embedding
_SAME_VERB = {"lay": "lie"}  # FACTUAL's lemma: the caption's
_JOINED = {"cell phone": "cellphone", "cell phones": "cellphones"}  # as FACTUAL writes, like the tokeniser's spellings
_KEPT = (  # spellings that the tokeniser replaces, and FACTUAL keeps
    *("doughnut", "skate board", "lap top", "back pack", "air plane", "bath tub", "motor cycle", "sun glasses"),
    "key board",
)


class LearnedParser(Parser):
    """Parses captions with the packaged network."""

    def __init__(self, config: ParseConfig, folder: Path = WEIGHTS) -> None:
        """Raises UserError: the spaCy model is not installed, or has no tagger and dependency parser."""
        self._batch_size, self._attributes = config.batch_size, config.attributes
        self._nlp = load_model(config.model)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tables = settings["tables"]
        weights = load_file(folder / "model.safetensors")
        logits = settings["mention_logit"], settings["relation_logit"]
        self._network = Network(weights, Tables.of(tables), *logits)
        self._decoder = Decoder(tables["verbs"], tables["rests"], settings["predicates"], settings["names"])

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        found: list[Parsed] = []
        sentences = read_sentences(self._nlp, captions, self._batch_size)
        while batch := list(islice(sentences, self._batch_size)):
            for sentence, scores in zip(batch, self._network(batch), strict=True):
                triplets = self._decoder.triplets(sentence.caption, sentence.tree, scores)
                found.append((triplets, mentions(sentence.tree) if self._attributes else []))
        return found


def read_sentences(model: Language, captions: Iterable[str], batch_size: int) -> Iterator[Sentence]:
    """Yield the repaired tree of every caption, the rules' relations, and spaCy's hidden states."""
    captions, texts = tee(captions)
    for caption, (tokens, doc) in zip(texts, analyse(model, captions, batch_size), strict=True):
        tree = Tree.of(doc, tokens)
        repair(tree)
        yield Sentence.of(caption, tree, relations(tree), doc.tensor.astype(np.float32))


class Decoder:
    """Words the predicates and things of related pairs."""

    def __init__(
        self, verbs: Sequence[str], rests: Sequence[str], predicates: Collection[str], names: Mapping[str, str]
    ) -> None:
        """verbs, rests: of the network's tables. predicates: of the training. names: things by other nouns."""
        self._verbs = ("", *verbs)
        self._rests = ("", *rests)
        self._known_verbs = frozenset(self._verbs)
        self._predicates = frozenset(predicates)
        self._names = names

    def triplets(self, caption: str, tree: Tree, scores: CaptionScores) -> list[Triplet]:
        """Return the triplets of a caption, in word order, with `caption` 0."""
        text = clean(caption)
        kept = [form for word in _KEPT for form in (word, f"{word}s") if word in text and form in SPELLINGS]
        spellings = {SPELLINGS[form]: form for form in kept} | dict(self._names)
        found: dict[tuple[int, int], Triplet] = {}
        for row, named in enumerate(scores.pairs.tolist()):
            subject = person_meant(tree, named[0])
            thing = person_meant(tree, named[1], subject)
            if (subject == thing) != (named[0] == named[1]) or (subject, thing) in found:
                continue
            worded, lemma = self._predicate(tree, scores.verb[row], scores.rest[row], scores.copy[row])
            first, first_head = _name(tree, subject, scores, spellings)
            second, second_head = _name(tree, thing, scores, spellings)
            found[subject, thing] = Triplet(first, worded, second, first_head, second_head, lemma, caption=0)
        return list(found.values())

    def _predicate(self, tree: Tree, verbs: Floats, rests: Floats, copies: Floats) -> tuple[str, str]:
        """Return the predicate as a caption words it, and with its verb as a lemma.

        A verb is as probable as its number in the table and all words of the caption with this lemma together.
        """
        lemmas = [verb_lemma(text) for text in tree.texts]
        top = max(float(verbs.max()), float(copies.max()))
        mass: dict[str, float] = defaultdict(float)
        for number in np.flatnonzero(verbs > top - _NEGLIGIBLE):
            mass[self._verbs[number]] += exp(float(verbs[number]) - top)
        for index in np.flatnonzero(copies > top - _NEGLIGIBLE):
            mass[lemmas[index]] += exp(float(copies[index]) - top)
        verb, rest = self._combined(mass, rests)
        words = [index for index, lemma in enumerate(lemmas) if verb and lemma in (verb, _SAME_VERB.get(verb))]
        source = max(words, key=lambda index: float(copies[index]), default=None)
        worded = _inflected(verb, rest, tree, source)
        return f"{worded} {rest}".strip(), f"{verb} {rest}".strip()

    def _combined(self, mass: dict[str, float], rests: Floats) -> tuple[str, str]:
        """Return the most likely verb and rest, not both empty. Predicates that occur in training are preferred."""
        verbs = sorted(mass, key=lambda verb: -mass[verb])[:_TRIED]
        likely = [(self._rests[number], float(rests[number])) for number in np.argsort(-rests, kind="stable")[:_TRIED]]
        best, chosen = -np.inf, ("", "")
        for verb in verbs:
            for rest, logit in likely:
                predicate = f"{verb} {rest}".strip()
                score = log(mass[verb]) + logit
                if predicate not in self._predicates and verb in self._known_verbs:
                    score -= _UNSEEN
                if predicate and score > best:
                    best, chosen = score, (verb, rest)
        return chosen


def _inflected(verb: str, rest: str, tree: Tree, source: int | None) -> str:
    """Return the verb as the caption's word `source`, but active if nothing follows: "held by" is "holding"."""
    if not verb or verb == "have":
        return "has" if verb else ""
    if source is None or (not rest and tree.tags[source] in ("VBN", "VBD")):
        return gerund(verb)
    return tree.texts[source]


def _name(tree: Tree, head: int, scores: CaptionScores, spellings: Mapping[str, str]) -> tuple[str, str]:
    """Return the head noun with the words before it that belong to the name, and the head noun in singular."""
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
