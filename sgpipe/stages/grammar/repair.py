"""Corrections of the parser's habitual mistakes on captions, made on the tree before the rules read it.

The parser was trained on news and web sentences; captions are noun phrases with participles. Hence nouns taken
for verbs at the start ("shadow on the carpet"), participles taken for nouns ("a dog sleep on the bed", "white
shirt playing tennis" as one name), and adverbs or adjectives where an unknown noun stands.
"""

from __future__ import annotations

from sgpipe.stages.grammar.lexicon import GERUND_NOUNS, COLOURS, POSTURES
from sgpipe.stages.grammar.tree import NOUN_TAGS, VERB_TAGS, Tree

_NOMINAL = frozenset({"nsubj", "nsubjpass", "dobj", "pobj", "attr", "conj", "appos"})
_MODIFIERS = frozenset({"amod", "compound", "nmod", "det", "nummod", "poss", "advmod", "npadvmod"})
_SUBJECTS = ("nsubj", "nsubjpass", "csubj", "expl")
_PRENOMINAL_SUBJECTS = frozenset({"compound", "npadvmod", "nmod", "dep", "amod"})


def repair(tree: Tree) -> None:
    """Correct a tree in place."""
    for index in range(len(tree)):
        _retag_unknown_noun(tree, index)
        _retag_initial_noun(tree, index)
    for index in range(len(tree)):
        _free_participle(tree, index)
        _free_head_participle(tree, index)
        _adopt_subject(tree, index)


def _retag_unknown_noun(tree: Tree, index: int) -> None:
    """An adjective or adverb in a noun's place, other than a colour, is a noun the parser does not know."""
    if tree.deps[index] in _NOMINAL - {"conj"} and tree.tags[index] in ("JJ", "JJR", "RB", "RBR", "UH", "VB", "VBP", "XX", "FW", "JJS"):
        if tree.texts[index] not in COLOURS and not tree.dependents(index, *_SUBJECTS, "dobj"):
            tree.tags[index] = "NN"


def _retag_initial_noun(tree: Tree, index: int) -> None:
    """Captions hold no commands: a bare verb that begins one, without a subject, is a noun."""
    if tree.tags[index] not in ("VB", "VBP", "VBZ", "UH") or tree.heads[index] != index:
        return
    before = tree.children[index]
    if any(child < index and tree.deps[child] not in _MODIFIERS for child in before):
        return
    if tree.dependents(index, *_SUBJECTS, "dobj", "aux", "auxpass", "attr", "acomp"):
        return
    if index == 0 or all(tree.deps[i] in _MODIFIERS for i in range(index)):
        tree.tags[index] = "NNS" if tree.tags[index] == "VBZ" else "NN"


def _free_participle(tree: Tree, index: int) -> None:
    """"[a white shirt] [playing] [tennis]" as one name: the participle joins two phrases."""
    word, head = tree.texts[index], tree.heads[index]
    if not word.endswith("ing") or word in GERUND_NOUNS or tree.deps[index] not in ("compound", "amod", "nmod"):
        return
    if head < index or not tree.is_noun(head):
        return
    noun = index - 1
    if noun < 0 or not tree.is_noun(noun) or tree.deps[noun] not in _PRENOMINAL_SUBJECTS:
        return
    if tree.heads[noun] not in (index, head):
        return
    tree.replace(head, noun)
    tree.tags[index] = "VBG"
    tree.attach(index, noun, "acl")
    tree.attach(head, index, "dobj")
    for child in list(tree.children[head]):
        if child < noun:
            tree.attach(child, noun, tree.deps[child])
        elif child > head and tree.deps[child] in ("prep", "acl", "cc", "conj"):
            pass


def _free_head_participle(tree: Tree, index: int) -> None:
    """"giraffe standing between bushes" as a name: the participle modifies the noun before it."""
    word = tree.texts[index]
    participle = word.endswith("ing") and len(word) > 4 and word not in GERUND_NOUNS
    if not (participle or word in POSTURES) or tree.tags[index] not in NOUN_TAGS:
        return
    noun = index - 1
    if noun < 0 or not tree.is_noun(noun) or tree.heads[noun] != index or tree.deps[noun] != "compound":
        return
    tree.replace(index, noun)
    tree.tags[index] = "VBG" if participle else "VBP"
    tree.attach(index, noun, "acl")
    for child in list(tree.children[index]):
        if child < noun:
            tree.attach(child, noun, tree.deps[child])


def _adopt_subject(tree: Tree, index: int) -> None:
    """A noun in front of a verb that has no subject is its subject, whatever the label."""
    if tree.tags[index] not in VERB_TAGS or tree.deps[index] in ("aux", "auxpass", "amod", "compound"):
        return
    if tree.dependents(index, *_SUBJECTS):
        return
    for child in tree.children[index]:
        if child < index and tree.is_noun(child) and tree.deps[child] in ("compound", "npadvmod", "nmod", "dep"):
            tree.deps[child] = "nsubj"
