"""The things that a tree names: their heads, their names, and what is coordinated with them."""

from collections.abc import Iterable
from functools import lru_cache

from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import lemmas

_PLURAL_ONLY = lexicon.CLOTHES | {"scissors", "binoculars", "stairs"}


@lru_cache(maxsize=1 << 16)
def singular(noun: str) -> str:
    """Return the singular of a noun; plural-only names ("pants", "scissors") are unchanged."""
    if noun in _PLURAL_ONLY and noun.endswith("s") and noun[:-1] not in _PLURAL_ONLY:
        return noun
    forms = lemmas(noun, "NOUN")
    return forms[-1] if noun == "leaves" else forms[0]


def is_a(tree: Tree, index: int, words: frozenset[str]) -> bool:
    return singular(tree.texts[index]) in words


def of_kind(tree: Tree, tokens: Iterable[int], words: frozenset[str]) -> list[int]:
    """Return those of the tokens that are one of the words, in the singular."""
    return [token for token in tokens if is_a(tree, token, words)]


def head_noun(tree: Tree, index: int) -> str:
    return singular(mention_word(tree, index))


def phrase(tree: Tree, index: int) -> str:
    """Return the name of a thing: its head noun and the words of its name ("fire hydrant")."""
    words = [mention_word(tree, index)]
    head = singular(words[0])
    left = index - 1
    while tree.is_noun(index) and left >= 0 and left < tree.heads[left] <= index:
        if not _belongs_to_name(tree, left, head):
            break
        words.insert(0, tree.texts[left])
        left -= 1
    return " ".join(words)


def _belongs_to_name(tree: Tree, index: int, head: str) -> bool:
    """Return whether a word before the noun `head` is part of its name, not an attribute."""
    word = tree.texts[index]
    if (word, head) in lexicon.NAMING_PAIRS:
        return True
    if word in ("left", "right") and head in lexicon.SIDED_PARTS:
        return True
    is_name = tree.is_noun(index) or word in lexicon.GERUND_MODIFIERS
    return is_name and singular(word) not in lexicon.ATTRIBUTE_NOUNS


def mention_word(tree: Tree, index: int) -> str:
    word = tree.texts[index]
    return (
        lexicon.PRONOUNS.get(word) or lexicon.HAVING_ADJECTIVES.get(word.rsplit("-", 1)[-1]) or word
    )


def is_entity(tree: Tree, index: int) -> bool:
    """Return whether a token is a noun, or a pronoun with a meaning ("she" is a woman)."""
    return (
        tree.is_noun(index)
        or tree.texts[index] in lexicon.PRONOUNS
        or content(tree, index) != index
    )


def coordinated(tree: Tree, index: int) -> list[int]:
    """Return a noun and those joined to it by "and", "or" or commas, each by its `content`."""
    members = []
    pending = [index]
    while pending:
        noun = pending.pop()
        members.append(content(tree, noun))
        joined = tree.dependents(noun, "conj", "appos")
        pending += [child for child in reversed(joined) if child > noun and is_entity(tree, child)]
    return members


def all_coordinated(tree: Tree, indices: list[int]) -> list[int]:
    """Return those of the tokens that are entities, each with what is coordinated with it."""
    members: list[int] = []
    for index in indices:
        if is_entity(tree, index):
            members += coordinated(tree, index)
    return members


def content(tree: Tree, index: int) -> int:
    """Return what a quantity measures, the pizza in "a piece of pizza"; another noun: itself."""
    while is_a(tree, index, lexicon.PARTITIVES):
        nouns = [noun for noun in tree.below(index, "prep", "pobj") if _is_after_of(tree, noun)]
        if not nouns:
            break
        index = nouns[0]
    return index


def _is_after_of(tree: Tree, index: int) -> bool:
    return tree.is_noun(index) and tree.texts[tree.heads[index]] == "of"
