"""Noun phrases of a tree: their names, their heads, and coordination."""

from __future__ import annotations

from functools import lru_cache

from lemminflect import getLemma

from sgpipe.stages.parse.grammar.lexicon import (
    ATTRIBUTE_NOUNS,
    CLOTHES,
    GERUND_MODIFIERS,
    HAVING_ADJECTIVES,
    NAMING_PAIRS,
    PARTITIVES,
    PRONOUNS,
    SIDED_PARTS,
)
from sgpipe.stages.parse.grammar.tree import Tree

_PLURAL_ONLY = CLOTHES | {"scissors", "binoculars", "stairs"}
_NOT_NAMING = frozenset({"poss", "det", "appos", "conj", "cc"})


@lru_cache(maxsize=1 << 16)
def singular(noun: str) -> str:
    """The singular of a noun; names that exist only as plurals ("pants", "scissors") stay."""
    if noun in _PLURAL_ONLY and noun.endswith("s") and noun[:-1] not in _PLURAL_ONLY:
        return noun
    if noun.endswith("ss"):
        return noun
    lemmas = getLemma(noun, "NOUN", lemmatize_oov=True)
    return str(lemmas[-1] if noun == "leaves" else lemmas[0])


def head_noun(tree: Tree, index: int) -> str:
    """Singular, lower case: the last word of the name."""
    return singular(_word(tree, index))


def phrase(tree: Tree, index: int) -> str:
    """The name of the thing: its head noun with the nouns that belong to the name ("fire hydrant")."""
    words = [_word(tree, index)]
    if tree.is_noun(index):
        head = singular(words[0])
        left = index - 1
        while left >= 0 and left < tree.heads[left] <= index and _is_naming(tree, left, head):
            words.insert(0, tree.texts[left])
            left -= 1
    return " ".join(words)


def _word(tree: Tree, index: int) -> str:
    word = tree.texts[index]
    return PRONOUNS.get(word) or HAVING_ADJECTIVES.get(word.rsplit("-", 1)[-1]) or word


def _is_naming(tree: Tree, index: int, head: str) -> bool:
    """Whether a word before the head is part of the name, and not an attribute of the thing."""
    word = tree.texts[index]
    if (word, head) in NAMING_PAIRS or (word in ("left", "right") and head in SIDED_PARTS):
        return True
    if tree.deps[index] in _NOT_NAMING:
        return False
    return (tree.is_noun(index) or word in GERUND_MODIFIERS) and singular(word) not in ATTRIBUTE_NOUNS


def is_entity(tree: Tree, index: int) -> bool:
    """Nouns, and personal pronouns that say what they stand for ("she" is a woman)."""
    return tree.is_noun(index) or tree.texts[index] in PRONOUNS or content(tree, index) != index


def coordinated(tree: Tree, index: int) -> list[int]:
    """A noun and the nouns joined to it by "and", "or" or commas, each reduced to what it is a piece of."""
    found, pending = [], [index]
    while pending:
        noun = pending.pop()
        found.append(content(tree, noun))
        joined = tree.dependents(noun, "conj", "appos")
        pending += [child for child in reversed(joined) if child > noun and is_entity(tree, child)]
    return found


def coordination_root(tree: Tree, index: int) -> int:
    """The first noun of the coordination a noun belongs to."""
    while tree.deps[index] == "conj" and is_entity(tree, tree.heads[index]):
        index = tree.heads[index]
    return index


def content(tree: Tree, index: int) -> int:
    """What a quantity measures: the pizza of "a piece of pizza"; any other noun is itself."""
    while singular(tree.texts[index]) in PARTITIVES:
        things = [
            thing
            for preposition in tree.dependents(index, "prep")
            if tree.texts[preposition] == "of"
            for thing in tree.dependents(preposition, "pobj")
            if tree.is_noun(thing)
        ]
        if not things:
            break
        index = things[0]
    return index
