"""The learned parser: a caption's dependency tree, the relations of the rules, and a network that decides."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import tee
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file
from spacy.language import Language

from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.parse.grammar.relations import relations
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.stages.parse.learned import WEIGHTS
from sgpipe.stages.parse.learned.decoding import Decoder
from sgpipe.stages.parse.learned.features import Sentence, Tables
from sgpipe.stages.parse.learned.network import Network
from sgpipe.stages.parse.spacy_model import analyse, load_model


class LearnedParser:
    """Parses captions with the packaged network. A caption's triplets do not depend on the captions parsed with it."""

    def __init__(self, config: ParseConfig, folder: Path = WEIGHTS) -> None:
        """
        Raises:
            UserError: the spaCy model is not installed, or has no tagger and dependency parser.
        """
        self._batch_size = config.batch_size
        self._nlp = load_model(config.model)
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        tables = settings["tables"]
        weights = load_file(folder / "model.safetensors")
        logits = settings["mention_logit"], settings["relation_logit"]
        self._network = Network(weights, Tables.of(tables), *logits)
        self._decoder = Decoder(tables["verbs"], tables["rests"], settings["predicates"], settings["names"])

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """The triplets of each caption, in word order, with `caption` 0."""
        found: list[list[Triplet]] = []
        batch: list[Sentence] = []
        for sentence in read_sentences(self._nlp, captions, self._batch_size):
            batch.append(sentence)
            if len(batch) == self._batch_size:
                found += self._decide(batch)
                batch = []
        return found + (self._decide(batch) if batch else [])

    def _decide(self, sentences: list[Sentence]) -> list[list[Triplet]]:
        scores = self._network(sentences)
        return [self._decoder.triplets(s.caption, s.tree, score) for s, score in zip(sentences, scores, strict=True)]


def read_sentences(model: Language, captions: Iterable[str], batch_size: int) -> Iterator[Sentence]:
    """The repaired tree of every caption, the rules' relations, and spaCy's hidden states."""
    captions, texts = tee(captions)
    for caption, (tokens, doc) in zip(texts, analyse(model, captions, batch_size), strict=True):
        tree = Tree.of(doc, tokens)
        repair(tree)
        yield Sentence.of(caption, tree, relations(tree), doc.tensor.astype(np.float32))
