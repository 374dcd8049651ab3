"""Noun phrases of a tree: their names, their heads, and coordination."""

from __future__ import annotations

from functools import lru_cache

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
from sgpipe.utils.lemmas import lemmas

_PLURAL_ONLY = CLOTHES | {"scissors", "binoculars", "stairs"}
_NOT_NAMING = frozenset({"poss", "det", "appos", "conj", "cc"})


@lru_cache(maxsize=1 << 16)
def singular(noun: str) -> str:
    """The singular of a noun; plural-only names ("pants", "scissors") are unchanged."""
    if noun in _PLURAL_ONLY and noun.endswith("s") and noun[:-1] not in _PLURAL_ONLY:
        return noun
    if noun.endswith("ss"):
        return noun
    forms = lemmas(noun, "NOUN")
    return forms[-1] if noun == "leaves" else forms[0]


def head_noun(tree: Tree, index: int) -> str:
    """The head of the name, singular and in lower case."""
    return singular(mention_word(tree, index))


def phrase(tree: Tree, index: int) -> str:
    """The name of the thing: its head noun with the words that belong to the name ("fire hydrant")."""
    words = [mention_word(tree, index)]
    if tree.is_noun(index):
        head = singular(words[0])
        left = index - 1
        while left >= 0 and left < tree.heads[left] <= index and _is_naming(tree, left, head):
            words.insert(0, tree.texts[left])
            left -= 1
    return " ".join(words)


def mention_word(tree: Tree, index: int) -> str:
    word = tree.texts[index]
    return PRONOUNS.get(word) or HAVING_ADJECTIVES.get(word.rsplit("-", 1)[-1]) or word


def _is_naming(tree: Tree, index: int, head: str) -> bool:
    """Whether a word before the head is part of the name rather than an attribute of the thing."""
    word = tree.texts[index]
    if (word, head) in NAMING_PAIRS or (word in ("left", "right") and head in SIDED_PARTS):
        return True
    if tree.deps[index] in _NOT_NAMING:
        return False
    return (tree.is_noun(index) or word in GERUND_MODIFIERS) and singular(word) not in ATTRIBUTE_NOUNS


def is_entity(tree: Tree, index: int) -> bool:
    """Whether a token is a noun, or a personal pronoun with a meaning of its own ("she" is a woman)."""
    return tree.is_noun(index) or tree.texts[index] in PRONOUNS or content(tree, index) != index


def coordinated(tree: Tree, index: int) -> list[int]:
    """A noun and the nouns coordinated with it by "and", "or" or commas; quantities are replaced by their content."""
    members, pending = [], [index]
    while pending:
        noun = pending.pop()
        members.append(content(tree, noun))
        joined = tree.dependents(noun, "conj", "appos")
        pending += [child for child in reversed(joined) if child > noun and is_entity(tree, child)]
    return members


def coordination_root(tree: Tree, index: int) -> int:
    """The first noun of the coordination a noun belongs to."""
    while tree.deps[index] == "conj" and is_entity(tree, tree.heads[index]):
        index = tree.heads[index]
    return index


def content(tree: Tree, index: int) -> int:
    """The thing that a quantity measures: the pizza in "a piece of pizza"; any other noun is returned unchanged."""
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
