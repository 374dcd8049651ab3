"""Corrections of the parser's habitual mistakes on captions, made on the tree before the rules read it.

The parser was trained on news and web sentences; captions are noun phrases with participles. Hence nouns taken
for verbs at the start ("shadow on the carpet"), participles taken for nouns ("a dog sleep on the bed", "white
shirt playing tennis" as one name), and adverbs or adjectives where an unknown noun stands.
"""

from __future__ import annotations

from sgpipe.stages.grammar.clauses import verb_lemma
from sgpipe.stages.grammar.entities import singular
from sgpipe.stages.grammar.lexicon import (
    ANIMALS,
    ANIMATE_VERBS,
    BODY_PARTS,
    CLOTHES,
    COLOURS,
    GERUND_MODIFIERS,
    GERUND_NOUNS,
    PASSIVE_STATES,
    PEOPLE,
    POSTURES,
    SCENERY,
)
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
        _restore_preposition(tree, index)
        _join_coordinated_modifier(tree, index)
        _move_conjunct_into_with(tree, index)
    for index in range(len(tree)):
        _free_participle(tree, index)
        _free_head_participle(tree, index)
        _adopt_subject(tree, index)
    for index in range(len(tree)):
        _move_to_actor(tree, index)
        _move_to_part(tree, index)


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


def _restore_preposition(tree: Tree, index: int) -> None:
    """"pulled up to terminal": a "to" that the parser takes for an infinitive's, before a noun."""
    noun = tree.heads[index]
    if tree.texts[index] != "to" or tree.deps[index] != "aux" or not tree.is_noun(noun) or noun == tree.heads[noun]:
        return
    tree.attach(index, tree.heads[noun], "prep")
    tree.attach(noun, index, "pobj")


def _join_coordinated_modifier(tree: Tree, index: int) -> None:
    """"a sandwich and french fries" with the sandwich as a modifier of the fries: both are things."""
    head = tree.heads[index]
    if tree.deps[index] not in ("nmod", "compound") or not tree.is_noun(index) or head < index:
        return
    if not tree.is_noun(head) or not tree.dependents(index, "cc"):
        return
    conjuncts = tree.dependents(index, "conj")
    if not conjuncts or tree.is_noun(conjuncts[0]):
        return
    tree.replace(head, index)
    tree.attach(head, index, "conj")
    for conjunct in conjuncts:
        tree.attach(conjunct, head, "amod")
    for child in [child for child in tree.children[head] if child < index]:
        tree.attach(child, index, tree.deps[child])


def _move_conjunct_into_with(tree: Tree, index: int) -> None:
    """"a bathroom with a toilet and a sink": the sink is with the toilet, unless both are people or animals."""
    head = tree.heads[index]
    if tree.deps[index] != "conj" or not tree.is_noun(index) or not tree.is_noun(head):
        return
    animate = PEOPLE | ANIMALS
    if singular(tree.texts[index]) in animate and singular(tree.texts[head]) in animate:
        return
    inner = [
        thing
        for preposition in tree.dependents(head, "prep")
        if preposition < index and tree.texts[preposition] == "with"
        for thing in tree.dependents(preposition, "pobj")
    ]
    if inner and tree.is_noun(inner[-1]):
        tree.attach(index, inner[-1], "conj")


def _free_participle(tree: Tree, index: int) -> None:
    """"[a white shirt] [playing] [tennis]" as one name: the participle joins two phrases."""
    word, head = tree.texts[index], tree.heads[index]
    if not word.endswith("ing") or word in GERUND_NOUNS | GERUND_MODIFIERS or tree.deps[index] not in ("compound", "amod", "nmod"):
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
    adverb = tree.tags[index] in ("RP", "RB", "IN", "JJ") and tree.heads[index] == index
    verb = tree.tags[index] in VERB_TAGS and tree.deps[index] not in ("aux", "auxpass", "amod", "compound")
    if not adverb and not verb:
        return
    if tree.dependents(index, *_SUBJECTS):
        return
    for child in tree.children[index]:
        if child < index and tree.is_noun(child) and tree.deps[child] in ("compound", "npadvmod", "nmod", "dep"):
            tree.deps[child] = "nsubj"


def _move_to_actor(tree: Tree, index: int) -> None:
    """"a man in a shirt standing", "a girl on a skateboard jumping": people act, what they wear or ride does not."""
    noun = tree.heads[index]
    if tree.deps[index] not in ("acl", "relcl") or not tree.is_noun(noun) or tree.tags[index] != "VBG":
        return
    while tree.deps[noun] == "conj" and tree.is_noun(tree.heads[noun]):
        noun = tree.heads[noun]
    link = tree.heads[noun]
    actor = tree.heads[link]
    if tree.deps[noun] == "pobj" and tree.texts[link] != "of" and (tree.is_noun(actor) or tree.is_verb(actor)):
        if not _can_act(tree, tree.heads[index], index, actor):
            tree.attach(index, actor, "acl" if tree.is_noun(actor) else "advcl")
    elif tree.deps[noun] == "dobj" and tree.texts[link] in ("wearing", "wears"):
        if not _can_act(tree, tree.heads[index], index, link):
            tree.attach(index, link, "advcl")


def _can_act(tree: Tree, noun: int, verb: int, actor: int) -> bool:
    """Whether the noun may do what the verb says, or else the noun or verb `actor` is not known to be better."""
    name, lemma = singular(tree.texts[noun]), verb_lemma(tree.texts[verb])
    if name in CLOTHES or name == "hair":
        return lemma in PASSIVE_STATES
    if name in SCENERY:
        return False
    if name in PEOPLE or name in ANIMALS or lemma not in ANIMATE_VERBS:
        return True
    return tree.is_noun(actor) and singular(tree.texts[actor]) not in PEOPLE | ANIMALS


def _move_to_part(tree: Tree, index: int) -> None:
    """"a man with a hat on his head": the place on the body is that of the hat."""
    if tree.deps[index] != "prep" or tree.texts[index] in ("of", "with"):
        return
    places = tree.dependents(index, "pobj")
    before = [
        thing
        for sibling in tree.dependents(tree.heads[index], "prep")
        if sibling < index and tree.texts[sibling] == "with"
        for thing in tree.dependents(sibling, "pobj")
    ]
    if not places or not before:
        return
    words = {singular(tree.texts[before[-1]]), singular(tree.texts[places[0]])}
    if words & BODY_PARTS:
        tree.attach(index, before[-1], "prep")
