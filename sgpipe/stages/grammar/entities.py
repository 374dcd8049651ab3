"""Noun phrases of a tree: their names, heads, coordination, and what pronouns stand for."""

from __future__ import annotations

from functools import lru_cache

from lemminflect import getLemma

from sgpipe.stages.grammar.lexicon import (
    ATTRIBUTE_NOUNS,
    CLOTHES,
    GERUND_NOUNS,
    NAMING_PAIRS,
    PARTITIVES,
    PRONOUNS,
    SIDED_PARTS,
)
from sgpipe.stages.grammar.tree import Tree

_PLURAL_ONLY = CLOTHES | {"scissors", "binoculars"}


@lru_cache(maxsize=65536)
def singular(noun: str) -> str:
    """The singular of a noun; names that exist only as plurals ("pants", "scissors") stay."""
    if noun in _PLURAL_ONLY or noun.endswith("ss"):
        return noun
    lemmas = getLemma(noun, "NOUN", lemmatize_oov=True)
    return lemmas[-1] if noun == "leaves" else lemmas[0]


def head_noun(tree: Tree, index: int) -> str:
    return singular(PRONOUNS.get(tree.texts[index], tree.texts[index]))


def phrase(tree: Tree, index: int) -> str:
    """The name of the thing: the head noun with the nouns that belong to its name ("fire hydrant")."""
    words = [PRONOUNS.get(tree.texts[index], tree.texts[index])]
    if not tree.is_noun(index):
        return words[0]
    head = singular(words[0])
    left = index - 1
    while left >= 0 and tree.heads[left] in range(left + 1, index + 1) and _names(tree, left, head):
        words.insert(0, tree.texts[left])
        left -= 1
    return " ".join(words)


def _names(tree: Tree, index: int, head: str) -> bool:
    word = tree.texts[index]
    if (word, head) in NAMING_PAIRS or (word in ("left", "right") and head in SIDED_PARTS):
        return True
    if tree.deps[index] in ("poss", "det", "appos", "conj", "cc"):
        return False
    return (tree.is_noun(index) or word in GERUND_NOUNS) and singular(word) not in ATTRIBUTE_NOUNS


def is_entity(tree: Tree, index: int) -> bool:
    return tree.is_noun(index) or tree.texts[index] in PRONOUNS


def coordinated(tree: Tree, index: int) -> list[int]:
    """A noun and the nouns joined to it by "and", ",", "or", each reduced to the thing it is a piece of."""
    found = [content(tree, index)]
    for child in tree.children[index]:
        if tree.deps[child] in ("conj", "appos") and is_entity(tree, child) and child > index:
            found += coordinated(tree, child)
    return found


def content(tree: Tree, index: int) -> int:
    """What a quantity measures: the pizza of "a piece of pizza"; any other noun is itself."""
    if singular(tree.texts[index]) in PARTITIVES:
        for preposition in tree.dependents(index, "prep"):
            if tree.texts[preposition] == "of":
                for thing in tree.dependents(preposition, "pobj"):
                    if is_entity(tree, thing):
                        return content(tree, thing)
    return index
