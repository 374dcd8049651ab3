"""From the texts of a language model to triplets as the rules make them: names and heads as the caption has them."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

from sgpipe.records import Triplet
from sgpipe.stages.parse.grammar.clauses import head_noun, phrase, singular
from sgpipe.stages.parse.grammar.lexicon import BE, DETERMINERS, NAMING_PAIRS, PRONOUNS
from sgpipe.stages.parse.grammar.repair import repair
from sgpipe.stages.parse.grammar.tree import Tree, tokenise
from sgpipe.utils.lemmas import verb_lemma

Texts = tuple[str, str, str]  # subject, predicate, object

# They begin prepositions, but lemminflect would make verbs of them.
_NO_VERBS = frozenset({"left", "right", "near", "down", "up", "out", "off", "over", "under"})
_ARTICLES = DETERMINERS | {"other", "another", "both", "five", "six", "seven", "eight", "nine", "ten"}

_ATTRIBUTES = frozenset({"JJ", "JJR", "JJS", "CD", "DT", "PRP$"})


def ground(tree: Tree, texts: Iterable[Texts]) -> list[Triplet]:
    """The triplets of a caption, with `caption` 0: without repetition, attributes ("is") and empty parts.

    Names that the caption contains lose their attributes, as with the rules; others stay as they are, without
    articles. The predicate is spelled as in the caption, if it occurs there in any inflection.

    Args:
        tree: of the caption. It is repaired in place.
        texts: what a model says of it.
    """
    repair(tree)
    found: dict[Texts, Triplet] = {}
    for subject, predicate, thing in texts:
        words = _predicate_words(predicate)
        names = [_name(tree, _name_words(text)) for text in (subject, thing)]
        if words and all(name for name, _ in names):
            surface, lemma = _predicate(tree, words)
            (subject, subject_head), (thing, object_head) = names
            found[subject, surface, thing] = Triplet(subject, surface, thing, subject_head, object_head, lemma, 0)
    return list(found.values())


def _words(text: str) -> list[str]:
    return list(chain.from_iterable(token.text.split() for token in tokenise(text) if token.text[0].isalnum()))


def _name_words(text: str) -> list[str]:
    words = _words(text)
    while len(words) > 1 and (words[0] in _ARTICLES or words[0].isdigit()):
        words = words[1:]
    return words


def _predicate_words(text: str) -> list[str]:
    """Without auxiliaries; empty if nothing else is left: then it is no relation, but an attribute."""
    words = _words(text)
    while words and words[0] in BE:
        words = words[1:]
    return words


def _name(tree: Tree, words: list[str]) -> tuple[str, str]:
    """The name of a thing, and its head in the singular; empty if there are no words."""
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
    """The name and the head of a thing that these tokens stand for, of which some may be attributes."""
    tops = [
        index
        for index in inside
        if tree.is_noun(index) and not (tree.heads[index] in inside and tree.heads[index] != index)
    ]
    head = tops[-1] if tops else inside[-1]
    named = phrase(tree, head)
    start = inside[0]
    while start < head and _is_attribute(tree, start) and tree.texts[start] not in named.split():
        start += 1
    of_model = " ".join([*tree.texts[start:head], named.split()[-1]])
    return of_model, head_noun(tree, head)


def _is_attribute(tree: Tree, index: int) -> bool:
    pair = (tree.texts[index], singular(tree.texts[index + 1]))
    return tree.tags[index] in _ATTRIBUTES and pair not in NAMING_PAIRS


def _predicate(tree: Tree, words: list[str]) -> tuple[str, str]:
    """The predicate as the caption has it, and its lemma."""
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
