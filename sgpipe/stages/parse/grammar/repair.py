"""Correct the parser's common mistakes on captions in the tree, before the rules read it.

The parser was trained on news, but captions are noun phrases with participles, and it attaches by
syntax alone; who can act, what is worn and what is a body part resolves most of what is ambiguous
to it but not to a reader.
"""

from collections.abc import Iterable

from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.relations import is_a, singular
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import verb_lemma

_ANIMATE = lexicon.PEOPLE | lexicon.ANIMALS
_NOMINAL = frozenset({"nsubj", "nsubjpass", "dobj", "pobj", "attr", "appos"})
_MISTAKEN_FOR_NOUN = frozenset(
    {"JJ", "JJR", "JJS", "RB", "RBR", "UH", "VB", "VBP", "VBD", "XX", "FW"}
)
_PREMODIFIERS = frozenset(
    {"amod", "compound", "nmod", "det", "nummod", "poss", "advmod", "npadvmod"}
)
_COMPLEMENTS = ("dobj", "attr", "acomp", "ccomp", "agent")
_SUBJECTS = ("nsubj", "nsubjpass", "csubj", "expl")
_MISTAKEN_FOR_SUBJECT = frozenset({"compound", "npadvmod", "nmod", "dep"})


def repair(tree: Tree) -> None:
    """Correct a tree in place: first its tags, then its clauses, then its attachments."""
    for index in range(len(tree)):
        _retag_unknown_noun(tree, index)
        _retag_initial_noun(tree, index)
        _restore_preposition(tree, index)
    for index in range(len(tree)):
        _free_participle(tree, index)
        _free_final_participle(tree, index)
        _free_relative_clause(tree, index)
        _adopt_subject(tree, index)
    for index in range(len(tree)):
        if tree.deps[index] == "conj":
            _join_modifier(tree, index)
            _join_object(tree, index)
            _join_inside(tree, index)
    for index in range(len(tree)):
        if tree.deps[index] in ("acl", "relcl"):
            _move_to_actor(tree, index)
            _move_from_absent(tree, index)
        elif tree.deps[index] == "pcomp":
            _free_from_absent(tree, index)
        elif tree.deps[index] == "prep":
            _move_to_part(tree, index)
            _move_to_owner(tree, index)
            _move_from_absent(tree, index)
            _move_to_depiction(tree, index)
            _move_to_sign(tree, index)


def _retag_unknown_noun(tree: Tree, index: int) -> None:
    """An adjective or adverb in the position of a noun, other than a colour, is a noun unknown to
    the parser.
    """
    tag = tree.tags[index]
    misplaced = tree.deps[index] in _NOMINAL and tag in _MISTAKEN_FOR_NOUN
    is_root = tree.heads[index] == index
    if not misplaced and not (tag == "JJ" and is_root and tree.dependents(index, "det")):
        return
    is_colour = tree.texts[index] in lexicon.COLOURS
    if not is_colour and not tree.dependents(index, *_SUBJECTS, "dobj"):
        tree.tags[index] = "NN"


def _retag_initial_noun(tree: Tree, index: int) -> None:
    """Captions contain no commands: an initial bare verb without subject or object is a noun."""
    bare = tree.heads[index] == index and tree.tags[index] in ("VB", "VBP", "VBZ", "UH")
    if not bare or tree.dependents(index, *_SUBJECTS, "dobj", "aux", "auxpass", "attr", "acomp"):
        return
    if all(tree.deps[before] in _PREMODIFIERS for before in range(index)):
        tree.tags[index] = "NNS" if tree.tags[index] == "VBZ" else "NN"


def _restore_preposition(tree: Tree, index: int) -> None:
    """ "traveling down train tracks", "pulled up to terminal": a particle or "to" before a noun is
    a preposition.
    """
    if tree.deps[index] in ("prt", "advmod") and tree.dependents(index, "pobj"):
        tree.deps[index] = "prep"
        tree.tags[index] = "IN"
    noun = tree.heads[index]
    infinitive = tree.texts[index] == "to" and tree.deps[index] == "aux"
    if infinitive and tree.is_noun(noun) and noun != tree.heads[noun]:
        tree.attach(index, tree.heads[noun], "prep")
        tree.attach(noun, index, "pobj")


def _free_participle(tree: Tree, index: int) -> None:
    """ "[a white shirt] [playing] [tennis]" parsed as one name: the participle connects two
    phrases.
    """
    word = tree.texts[index]
    if not word.endswith("ing") or word in lexicon.GERUND_NOUNS or word in lexicon.GERUND_MODIFIERS:
        return
    head = tree.heads[index]
    in_name = tree.deps[index] in ("compound", "amod", "nmod") and head >= index
    noun = index - 1
    if not in_name or not tree.is_noun(head) or noun < 0 or not tree.is_noun(noun):
        return
    is_modifier = tree.deps[noun] in _MISTAKEN_FOR_SUBJECT or tree.deps[noun] == "amod"
    if not is_modifier or tree.heads[noun] not in (index, head):
        return
    tree.replace(head, noun)
    tree.tags[index] = "VBG"
    tree.attach(index, noun, "acl")
    tree.attach(head, index, "dobj")
    _hand_over_premodifiers(tree, head, noun)


def _free_final_participle(tree: Tree, index: int) -> None:
    """ "giraffe standing between bushes", "a dog sleep on a bed": a verb mistaken for the head
    noun.
    """
    if not tree.is_noun(index) or tree.deps[index] == "compound":
        return
    is_participle = _is_participle(tree.texts[index])
    if not is_participle and tree.texts[index] not in lexicon.POSTURES:
        return
    noun = index - 1
    if noun < 0 or tree.heads[noun] != index:
        return
    is_person = tree.deps[noun] == "amod" and tree.texts[noun] in lexicon.PEOPLE
    is_compound = tree.is_noun(noun) and tree.deps[noun] == "compound"
    if is_participle and is_person:  # "a female holding a bag"
        tree.tags[noun] = "NN"
    elif not is_compound:
        return
    tree.replace(index, noun)
    tree.tags[index] = "VBG" if is_participle else "VBP"
    tree.attach(index, noun, "acl")
    _hand_over_premodifiers(tree, index, noun)


def _is_participle(word: str) -> bool:
    return word.endswith("ing") and len(word) > len("ring") and word not in lexicon.GERUND_NOUNS


def _free_relative_clause(tree: Tree, index: int) -> None:
    """ "silver helmet man is wearing", "the bench a man is sitting on": the object precedes the
    subject.
    """
    is_main_verb = tree.heads[index] == index and tree.is_verb(index)
    if not is_main_verb or tree.dependents(index, *_COMPLEMENTS):
        return
    after = [child for child in tree.children[index] if child > index]
    if any(tree.children[child] for child in after):
        return
    noun = _object_before_subject(tree, index)
    if noun is None:
        return
    stranded = [child for child in after if tree.texts[child] in lexicon.STRANDED_PREPOSITIONS]
    if not stranded and verb_lemma(tree.texts[index]) not in lexicon.TRANSITIVE_VERBS:
        return
    _label_prepositions(tree, stranded)
    tree.replace(index, noun)
    tree.attach(index, noun, "relcl")


def _label_prepositions(tree: Tree, tokens: Iterable[int]) -> None:
    for token in tokens:
        tree.deps[token] = "prep"
        tree.tags[token] = "IN"


def _object_before_subject(tree: Tree, verb: int) -> int | None:
    """Return the helmet of "silver helmet man is wearing": the first of two subjects, or a part of
    the subject's name.
    """
    labelled = tree.dependents(verb, "nsubj", "nsubjpass")
    nouns = [child for child in labelled if tree.is_noun(child)]
    if not nouns:
        return None
    person = nouns[0]
    if len(nouns) > 1:
        return person
    thing = person - 1
    if thing < 0 or tree.deps[thing] != "compound" or tree.heads[thing] != person:
        return None
    is_person = is_a(tree, person, lexicon.PEOPLE)
    return thing if is_person and not is_a(tree, thing, lexicon.PEOPLE) else None


def _adopt_subject(tree: Tree, index: int) -> None:
    """A noun before a verb (or a root adverb) without a subject is its subject."""
    adverb = tree.tags[index] in ("RP", "RB", "IN", "JJ") and tree.heads[index] == index
    verb = tree.is_verb(index) and tree.deps[index] not in ("amod", "compound")
    if not (adverb or verb) or tree.dependents(index, *_SUBJECTS):
        return
    for child in tree.children[index]:
        if child < index and tree.is_noun(child) and tree.deps[child] in _MISTAKEN_FOR_SUBJECT:
            tree.deps[child] = "nsubj"


def _hand_over_premodifiers(tree: Tree, old: int, new: int) -> None:
    """Attach the words before the noun `new` to it instead of to `old`, the former head of its
    phrase.
    """
    for child in [child for child in tree.children[old] if child < new]:
        tree.attach(child, new, tree.deps[child])


def _join_modifier(tree: Tree, conjunct: int) -> None:
    """ "a sandwich and french fries", parsed as one noun "[sandwich and french] fries": both are
    things.
    """
    first = tree.heads[conjunct]
    head = tree.heads[first]
    modifier = tree.is_noun(first) and tree.deps[first] in ("nmod", "compound") and head > conjunct
    if not modifier or not tree.is_noun(head) or tree.is_noun(conjunct):
        return
    tree.replace(head, first)
    tree.attach(head, first, "conj")
    tree.attach(conjunct, head, "amod")


def _join_object(tree: Tree, conjunct: int) -> None:
    """ "holding a drink and a large carrot": a noun is coordinated with a noun, not with the verb
    before it.
    """
    verb = tree.heads[conjunct]
    if not tree.is_noun(conjunct) or not tree.is_verb(verb):
        return
    if tree.dependents(conjunct, "nsubj", "aux"):
        return
    things = tree.dependents(verb, "dobj") + tree.below(verb, "prep", "pobj")
    before = [thing for thing in things if thing < conjunct and tree.is_noun(thing)]
    if before:
        tree.attach(conjunct, max(before), "conj")


def _join_inside(tree: Tree, conjunct: int) -> None:
    """ "a bathroom with a toilet and a sink": the sink is coordinated with the toilet, not with the
    bathroom.

    Likewise the fork in "a man holding a knife and a fork". Not if both nouns are people or
    animals.
    """
    head = tree.heads[conjunct]
    if tree.deps[conjunct] != "conj" or not tree.is_noun(conjunct) or not tree.is_noun(head):
        return
    if is_a(tree, conjunct, _ANIMATE) and is_a(tree, head, _ANIMATE):
        return
    if is_a(tree, conjunct, lexicon.PEOPLE) and is_a(tree, head, lexicon.CLOTHES):
        tree.attach(conjunct, _person_above(tree, head), "conj")  # "men in hats and women"
        return
    inside = _things_with(tree, head, conjunct) or _things_held(tree, head, conjunct)
    if inside:
        tree.attach(conjunct, inside[-1], "conj")


def _person_above(tree: Tree, noun: int) -> int:
    """Return the nearest person above a noun, or the noun itself."""
    for node in tree.ancestors(noun):
        if tree.is_noun(node) and is_a(tree, node, lexicon.PEOPLE):
            return node
    return noun


def _move_to_part(tree: Tree, preposition: int) -> None:
    """ "a man with a hat on his head": the place on the body belongs to the hat."""
    if tree.texts[preposition] in ("of", "with"):
        return
    places = tree.dependents(preposition, "pobj")
    things = _things_with(tree, tree.heads[preposition], preposition)
    if not places or not things:
        return
    if any(is_a(tree, noun, lexicon.BODY_PARTS) for noun in (things[-1], places[0])):
        tree.attach(preposition, things[-1], "prep")


def _move_to_owner(tree: Tree, preposition: int) -> None:
    """ "a man jumps over a fence with his skateboard": the man has the skateboard, not the
    fence.
    """
    noun = tree.heads[preposition]
    if tree.texts[preposition] != "with" or not tree.is_noun(noun) or is_a(tree, noun, _ANIMATE):
        return
    things = tree.dependents(preposition, "pobj")
    if not things:
        return
    if all(is_a(tree, index, lexicon.CLOTHES) for index in (noun, things[0])):
        tree.attach(things[0], noun, "conj")  # "in a suit with a red tie"
    elif any(_has_possessive_pronoun(tree, thing) for thing in things):
        tree.attach(preposition, _actor_above(tree, noun), "prep")


def _has_possessive_pronoun(tree: Tree, noun: int) -> bool:
    return any(tree.tags[owner] == "PRP$" for owner in tree.dependents(noun, "poss"))


def _actor_above(tree: Tree, noun: int) -> int:
    """Return the nearest verb, person or animal above a noun, or the noun itself."""
    for node in tree.ancestors(noun):
        if tree.is_verb(node) or is_a(tree, node, _ANIMATE):
            return node
    return noun


def _move_from_absent(tree: Tree, modifier: int) -> None:
    """ "a cake without candles on a table": what is absent is nowhere, so the cake is on the
    table.
    """
    owner = _owner_of_absent(tree, tree.heads[modifier])
    if owner is None or tree.texts[modifier] == "of":
        return
    if not any(tree.tags[thing] == "PRP" for thing in tree.dependents(modifier, "pobj")):
        tree.attach(modifier, owner, tree.deps[modifier] if tree.is_noun(owner) else "prep")


def _owner_of_absent(tree: Tree, noun: int) -> int | None:
    """Return what a thing is absent from: "without candles", "missing its wheel"."""
    governor = tree.heads[noun]
    if tree.deps[noun] == "pobj" and tree.texts[governor] == "without":
        return tree.heads[governor]
    if tree.deps[noun] == "dobj" and tree.texts[governor] in ("lacking", "missing"):
        owners = [*tree.dependents(governor, "nsubj"), tree.heads[governor]]
        return owners[0] if tree.is_noun(owners[0]) else None
    return None


def _free_from_absent(tree: Tree, verb: int) -> None:
    """ "a bike without [wheels leaning on a wall]": the bike leans on the wall."""
    without = tree.heads[verb]
    absent = tree.dependents(verb, "nsubj")
    if absent and tree.texts[without] == "without" and tree.is_noun(tree.heads[without]):
        tree.attach(absent[0], without, "pobj")
        tree.attach(verb, tree.heads[without], "acl")


def _move_to_depiction(tree: Tree, preposition: int) -> None:
    """ "a picture of a dog on the wall", "a statue of a man in a park": the picture is there, not
    the dog.
    """
    depiction = _depiction_above(tree, preposition)
    places = tree.dependents(preposition, "pobj")
    if depiction is None or not places:
        return
    if is_a(tree, places[0], _places_of(tree, depiction)):
        tree.attach(preposition, depiction, "prep")


def _places_of(tree: Tree, depiction: int) -> frozenset[str]:
    """Return where a depiction can be, but not what it shows."""
    if is_a(tree, depiction, lexicon.FIGURES):
        return lexicon.SQUARES
    if singular(tree.texts[depiction]) == "reflection":
        return lexicon.REFLECTORS
    shown = tree.below(depiction, "prep", "pobj")
    return lexicon.HANGERS if any(is_a(tree, thing, _ANIMATE) for thing in shown) else frozenset()


def _move_to_sign(tree: Tree, preposition: int) -> None:
    """ "a sign saying no parking on a pole": the sign is on the pole."""
    text = tree.heads[preposition]
    verb = tree.heads[text]
    if tree.deps[text] != "dobj" or tree.texts[verb] not in lexicon.SAYING:
        return
    places = tree.dependents(preposition, "pobj")
    if not places or not is_a(tree, places[0], lexicon.POSTS):
        return
    for sign in (*tree.dependents(verb, "nsubj"), tree.heads[verb]):
        if tree.is_noun(sign) and is_a(tree, sign, lexicon.SIGNS):
            tree.attach(preposition, sign, "prep")
            return


def _depiction_above(tree: Tree, preposition: int) -> int | None:
    """Return the depiction whose "of" a preposition is below."""
    for node in tree.ancestors(preposition):
        noun = tree.heads[node]
        is_of = tree.texts[node] == "of" and tree.deps[node] == "prep"
        if is_of and tree.texts[noun] in lexicon.DEPICTION_WORDS:
            return noun
    return None


def _things_with(tree: Tree, head: int, limit: int) -> list[int]:
    """Return the nouns attached to `head` by "with", before the token `limit`."""
    nouns = []
    for thing in tree.below(head, "prep", "pobj"):
        preposition = tree.heads[thing]
        is_before = thing < limit and preposition < limit
        if is_before and tree.texts[preposition] == "with" and tree.is_noun(thing):
            nouns.append(thing)
    return nouns


def _things_held(tree: Tree, head: int, limit: int) -> list[int]:
    """Return the objects of the participles of `head`, between it and the token `limit`."""
    things = tree.below(head, "acl", "dobj")
    return [thing for thing in things if head < thing < limit and tree.is_noun(thing)]


def _move_to_actor(tree: Tree, participle: int) -> None:
    """ "a man in a shirt standing", "a girl on a skateboard jumping": the owner acts, not the
    thing.
    """
    noun = tree.heads[participle]
    if tree.tags[participle] != "VBG" or not tree.is_noun(noun):
        return
    doers = tree.dependents(participle, "nsubj")
    if any(tree.tags[child] == "PRP" for child in doers):  # "the board he is riding"
        return
    actor = _owner_of(tree, noun)
    if actor is not None and _acts_better(tree, actor, participle):
        tree.attach(participle, actor, "acl" if tree.is_noun(actor) else "advcl")


def _owner_of(tree: Tree, noun: int) -> int | None:
    """Return the noun or verb that a thing belongs to: the man in "a man in a shirt"."""
    while tree.deps[noun] == "conj" and tree.is_noun(tree.heads[noun]):
        noun = tree.heads[noun]
    link = tree.heads[noun]
    if tree.deps[noun] == "dobj" and tree.texts[link] in ("wearing", "wears"):
        owner = link
    elif tree.deps[noun] == "pobj" and tree.texts[link] != "of":
        owner = tree.heads[link]
    else:
        return None
    return owner if tree.is_noun(owner) or tree.is_verb(owner) else None


def _acts_better(tree: Tree, actor: int, participle: int) -> bool:
    """Whether `actor` (a noun, or the verb of one) is a better subject of the participle than its
    current noun.
    """
    noun = singular(tree.texts[tree.heads[participle]])
    verb = verb_lemma(tree.texts[participle])
    if noun in lexicon.CLOTHES or noun == "hair":
        return verb not in lexicon.PASSIVE_STATES
    if noun in lexicon.PLACES and verb in lexicon.POSTURE_VERBS:
        return tree.is_noun(actor) and is_a(tree, actor, _ANIMATE)
    if noun in _ANIMATE or verb not in lexicon.ANIMATE_VERBS:
        return False
    return tree.is_verb(actor) or is_a(tree, actor, _ANIMATE)
