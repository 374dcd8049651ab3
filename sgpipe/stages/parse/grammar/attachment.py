"""Correct the attachment of participles, places and conjuncts, using the meaning of the nouns.

A small parser attaches by syntax alone. Knowing who can act, what is worn and what is a body part resolves most cases
that are ambiguous to the parser but not to a reader.
"""

from __future__ import annotations

from sgpipe.stages.parse.grammar.clauses import verb_lemma
from sgpipe.stages.parse.grammar.entities import singular
from sgpipe.stages.parse.grammar.lexicon import (
    ANIMALS,
    ANIMATE_VERBS,
    BODY_PARTS,
    CLOTHES,
    PASSIVE_STATES,
    PEOPLE,
    PLACES,
    POSTURE_VERBS,
    SCENERY,
)
from sgpipe.stages.parse.grammar.tree import Tree

_ANIMATE = PEOPLE | ANIMALS


def correct_attachments(tree: Tree) -> None:
    """Attach conjuncts, participles and prepositions, in place, to the nouns they belong to."""
    for index in range(len(tree)):
        if tree.deps[index] == "conj":
            _join_modifier(tree, index)
            _join_object(tree, index)
            _join_inside(tree, index)
    for index in range(len(tree)):
        if tree.deps[index] in ("acl", "relcl"):
            _move_to_actor(tree, index)
        elif tree.deps[index] == "prep":
            _move_to_part(tree, index)


def _join_modifier(tree: Tree, conjunct: int) -> None:
    """ "a sandwich and french fries", parsed as one noun "[sandwich and french] fries": both are things."""
    first = tree.heads[conjunct]
    head = tree.heads[first]
    modifier = tree.is_noun(first) and tree.deps[first] in ("nmod", "compound") and head > conjunct
    if not modifier or not tree.is_noun(head) or tree.is_noun(conjunct):
        return
    tree.replace(head, first)
    tree.attach(head, first, "conj")
    tree.attach(conjunct, head, "amod")
    for child in [child for child in tree.children[head] if child < first]:
        tree.attach(child, first, tree.deps[child])


def _join_object(tree: Tree, conjunct: int) -> None:
    """ "holding a drink and a large carrot": a noun is coordinated with a noun, not with the verb before it."""
    verb = tree.heads[conjunct]
    if not tree.is_noun(conjunct) or not tree.is_verb(verb) or tree.dependents(conjunct, "nsubj", "aux"):
        return
    things = tree.dependents(verb, "dobj")
    for preposition in tree.dependents(verb, "prep"):
        things += tree.dependents(preposition, "pobj")
    before = [thing for thing in things if thing < conjunct and tree.is_noun(thing)]
    if before:
        tree.attach(conjunct, max(before), "conj")


def _join_inside(tree: Tree, conjunct: int) -> None:
    """ "a bathroom with a toilet and a sink": the sink is coordinated with the toilet, not with the bathroom.

    Likewise the fork in "a man holding a knife and a fork". Not if both nouns are people or animals.
    """
    head = tree.heads[conjunct]
    if tree.deps[conjunct] != "conj" or not tree.is_noun(conjunct) or not tree.is_noun(head):
        return
    if singular(tree.texts[conjunct]) in _ANIMATE and singular(tree.texts[head]) in _ANIMATE:
        return
    held = [thing for verb in tree.dependents(head, "acl") for thing in tree.dependents(verb, "dobj")]
    inside = _things_with(tree, head, conjunct) or [
        thing for thing in held if head < thing < conjunct and tree.is_noun(thing)
    ]
    if inside:
        tree.attach(conjunct, inside[-1], "conj")


def _move_to_part(tree: Tree, preposition: int) -> None:
    """ "a man with a hat on his head": the place on the body belongs to the hat."""
    if tree.texts[preposition] in ("of", "with"):
        return
    places = tree.dependents(preposition, "pobj")
    things = _things_with(tree, tree.heads[preposition], preposition)
    if places and things:
        nouns = {singular(tree.texts[things[-1]]), singular(tree.texts[places[0]])}
        if nouns & BODY_PARTS:
            tree.attach(preposition, things[-1], "prep")


def _things_with(tree: Tree, head: int, limit: int) -> list[int]:
    """Nouns attached to `head` by "with", before the token `limit`."""
    return [
        thing
        for preposition in tree.dependents(head, "prep")
        if preposition < limit and tree.texts[preposition] == "with"
        for thing in tree.dependents(preposition, "pobj")
        if thing < limit and tree.is_noun(thing)
    ]


def _move_to_actor(tree: Tree, participle: int) -> None:
    """ "a man in a shirt standing", "a girl on a skateboard jumping": the owner acts, not the thing."""
    noun = tree.heads[participle]
    if tree.tags[participle] != "VBG" or not tree.is_noun(noun):
        return
    while tree.deps[noun] == "conj" and tree.is_noun(tree.heads[noun]):
        noun = tree.heads[noun]
    link = tree.heads[noun]
    if tree.deps[noun] == "dobj" and tree.texts[link] in ("wearing", "wears"):
        actor = link
    elif tree.deps[noun] == "pobj" and tree.texts[link] != "of":
        actor = tree.heads[link]
    else:
        return
    if (tree.is_noun(actor) or tree.is_verb(actor)) and _acts_better(tree, actor, participle):
        tree.attach(participle, actor, "acl" if tree.is_noun(actor) else "advcl")


def _acts_better(tree: Tree, actor: int, participle: int) -> bool:
    """Whether `actor` (a noun, or the verb of one) is a better subject of the participle than its current noun."""
    noun, verb = singular(tree.texts[tree.heads[participle]]), verb_lemma(tree.texts[participle])
    if noun in CLOTHES or noun == "hair":
        return verb not in PASSIVE_STATES
    if noun in SCENERY:
        return True
    if noun in PLACES and verb in POSTURE_VERBS:
        return tree.is_noun(actor) and singular(tree.texts[actor]) in _ANIMATE
    if noun in _ANIMATE or verb not in ANIMATE_VERBS:
        return False
    return tree.is_verb(actor) or singular(tree.texts[actor]) in _ANIMATE
