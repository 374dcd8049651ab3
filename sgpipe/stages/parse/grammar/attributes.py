"""Things that a caption names, and what it says of them besides relations: adjectives, states, materials, numbers."""

from __future__ import annotations

from sgpipe.records import Mention
from sgpipe.stages.parse.grammar.lexicon import (
    ATTRIBUTE_NOUNS,
    BE,
    COLOURS,
    HAVING_ADJECTIVES,
    NUMBERS,
    QUANTIFIERS,
    SHADES,
    WHOLES,
)
from sgpipe.stages.parse.grammar.relations import content, head_noun, phrase, singular, subjects
from sgpipe.stages.parse.grammar.tree import NOUN_TAGS, Tree

_MODIFIERS = ("amod", "nummod", "compound", "nmod")
_PLACES = ("in", "on", "with")
_LOOKS = ATTRIBUTE_NOUNS - WHOLES
_DESCRIBING = frozenset({"JJ", "JJR", "JJS", "VBN", "VBG", "VBD"})


def mentions(tree: Tree) -> list[Mention]:
    """Return the things that a repaired tree names, in word order, with `caption` 0. Pronouns and quantities are left
    out.
    """
    said = _said_with_be(tree)
    found = []
    for index, (tag, dep) in enumerate(zip(tree.tags, tree.deps, strict=True)):
        if tag not in NOUN_TAGS or dep in ("compound", "nmod") or content(tree, index) != index:
            continue
        words = [each for each in tree.dependents(index, *_MODIFIERS) if each < index]
        for word in words:
            words += [each for each in tree.dependents(word, "conj", "amod") if each < index]
        name, names = phrase(tree, index), dict[str, None]()
        for word in sorted({*words, *said.get(index, ())}):
            if attribute := _attribute(tree, word, name):
                names[attribute] = None
        found.append(Mention(name, head_noun(tree, index), tuple(names), 0))
    return found


def _said_with_be(tree: Tree) -> dict[int, list[int]]:
    """Return the adjectives of "the dog is brown and wet" by noun; not of "is ready to go" or "is full of water"."""
    said: dict[int, list[int]] = {}
    for verb, text in enumerate(tree.texts):
        adjectives = tree.dependents(verb, "acomp") if text in BE else []
        if adjectives and not tree.dependents(verb, "neg"):
            for word in adjectives:
                adjectives += tree.dependents(word, "conj")
            words = [word for word in adjectives if not _has_complement(tree, word)]
            for noun in subjects(tree, verb):
                said.setdefault(noun, []).extend(words)
    return said


def _has_complement(tree: Tree, adjective: int) -> bool:
    prepositions = (tree.texts[each] for each in tree.dependents(adjective, "prep"))
    return bool(tree.dependents(adjective, "xcomp", "ccomp")) or any(each not in _PLACES for each in prepositions)


def _attribute(tree: Tree, index: int, name: str) -> str:
    """Return the attribute that a word is, in lower case; empty if it is none or belongs to the name."""
    word, tag = tree.texts[index], tree.tags[index]
    if tag == "CD" or word in NUMBERS:
        return NUMBERS[int(word)] if word.isdecimal() and int(word) < len(NUMBERS) else word
    before, after = tree.texts[index - 1], tree.texts[index + 1] if index + 1 < len(tree) else ""
    if word in QUANTIFIERS or word in name.split() or (word in SHADES and after in COLOURS):
        return ""
    if {word.rsplit("-", 1)[-1], after.rsplit("-", 1)[-1]} & HAVING_ADJECTIVES.keys():  # "a black haired boy"
        return ""
    if tag not in _DESCRIBING and not (tag in NOUN_TAGS and singular(word) in _LOOKS):
        return ""
    return f"{before} {word}" if word in COLOURS and before in SHADES else word
