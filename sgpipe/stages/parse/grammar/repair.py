"""Correct the parser's common mistakes on captions in the tree, before the rules read it.

The parser was trained on news, but captions are noun phrases with participles, and it attaches by
syntax alone; who can act, what is worn and what is a body part resolves most of what is ambiguous
to it but not to a reader.
"""

from collections.abc import Callable

from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.things import is_a, of_kind, singular
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
_MISTAKEN_FOR_SUBJECT = ("compound", "npadvmod", "nmod", "dep")
_MODIFIERS = frozenset({*_MISTAKEN_FOR_SUBJECT, "amod"})
_NAME_LABELS = frozenset({"compound", "amod", "nmod"})
_NOUN_OF_BARE_VERB = {"VB": "NN", "VBP": "NN", "VBZ": "NNS", "UH": "NN"}
_GERUNDS_IN_NAMES = lexicon.GERUND_NOUNS | lexicon.GERUND_MODIFIERS

_Rule = Callable[[Tree, int], None]


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
    for rules_by_label in (_COORDINATION_RULES, _ATTACHMENT_RULES):
        for index in range(len(tree)):
            for rule in rules_by_label.get(tree.deps[index], ()):
                rule(tree, index)


def _retag_unknown_noun(tree: Tree, index: int) -> None:
    """An adjective or adverb in the position of a noun, other than a colour, is a noun unknown to
    the parser.
    """
    tag = tree.tags[index]
    is_mistaken = tree.deps[index] in _NOMINAL and tag in _MISTAKEN_FOR_NOUN
    if tag == "JJ" and tree.is_root(index):
        is_mistaken = bool(tree.dependents(index, "det"))
    if not is_mistaken or tree.texts[index] in lexicon.COLOURS:
        return
    if not tree.dependents(index, *_SUBJECTS, "dobj"):
        tree.tags[index] = "NN"


def _retag_initial_noun(tree: Tree, index: int) -> None:
    """Captions contain no commands: an initial bare verb without subject or object is a noun."""
    noun_tag = _NOUN_OF_BARE_VERB.get(tree.tags[index])
    if noun_tag is None or not tree.is_root(index):
        return
    if tree.dependents(index, *_SUBJECTS, "dobj", "aux", "auxpass", "attr", "acomp"):
        return
    if _PREMODIFIERS.issuperset(tree.deps[:index]):
        tree.tags[index] = noun_tag


def _restore_preposition(tree: Tree, index: int) -> None:
    """ "traveling down train tracks", "pulled up to terminal": a particle or "to" before a noun is
    a preposition.
    """
    if tree.deps[index] in ("prt", "advmod") and tree.dependents(index, "pobj"):
        tree.deps[index] = "prep"
        tree.tags[index] = "IN"
    noun = tree.heads[index]
    infinitive = tree.texts[index] == "to" and tree.deps[index] == "aux"
    if infinitive and tree.is_noun(noun) and not tree.is_root(noun):
        tree.attach(index, tree.heads[noun], "prep")
        tree.attach(noun, index, "pobj")


def _free_participle(tree: Tree, index: int) -> None:
    """ "[a white shirt] [playing] [tennis]" parsed as one name: the participle connects two
    phrases.
    """
    if not _is_gerund_in_name(tree, index):
        return
    noun = index - 1
    head = tree.heads[index]
    if not (tree.is_noun(noun) and tree.is_noun(head)):
        return
    is_in_name = tree.heads[noun] in (index, head)
    if not is_in_name or tree.deps[noun] not in _MODIFIERS:
        return
    tree.replace(head, noun)
    tree.tags[index] = "VBG"
    tree.attach(index, noun, "acl")
    tree.attach(head, index, "dobj")
    _hand_over_premodifiers(tree, head, noun)


def _is_gerund_in_name(tree: Tree, index: int) -> bool:
    """Return whether a token is the "playing" of a name that starts before it and ends after it."""
    word = tree.texts[index]
    if not word.endswith("ing") or word in _GERUNDS_IN_NAMES:
        return False
    return tree.deps[index] in _NAME_LABELS and 0 < index <= tree.heads[index]


def _free_final_participle(tree: Tree, index: int) -> None:
    """ "giraffe standing between bushes", "a dog sleep on a bed": a verb mistaken for the head
    noun.
    """
    if not tree.is_noun(index) or tree.deps[index] == "compound":
        return
    tag = _verb_tag(tree.texts[index])
    noun = index - 1
    if tag is None or noun < 0 or tree.heads[noun] != index:
        return
    if tree.deps[noun] == "amod" and tree.texts[noun] in lexicon.PEOPLE and tag == "VBG":
        tree.tags[noun] = "NN"  # "a female holding a bag"
    elif tree.deps[noun] != "compound" or not tree.is_noun(noun):
        return
    tree.replace(index, noun)
    tree.tags[index] = tag
    tree.attach(index, noun, "acl")
    _hand_over_premodifiers(tree, index, noun)


def _verb_tag(word: str) -> str | None:
    """Return the tag of a participle, or of a verb that is mistaken for a noun."""
    if word.endswith("ing") and len(word) > len("ring") and word not in lexicon.GERUND_NOUNS:
        return "VBG"
    return "VBP" if word in lexicon.POSTURES else None


def _free_relative_clause(tree: Tree, index: int) -> None:
    """ "silver helmet man is wearing", "the bench a man is sitting on": the object precedes the
    subject.
    """
    is_main_verb = tree.is_root(index) and tree.is_verb(index)
    if not is_main_verb or tree.dependents(index, *_COMPLEMENTS):
        return
    noun = _object_before_subject(tree, index)
    stranded = _stranded_prepositions(tree, index)
    if noun is None or stranded is None:
        return
    if not stranded and verb_lemma(tree.texts[index]) not in lexicon.TRANSITIVE_VERBS:
        return
    for token in stranded:
        tree.deps[token] = "prep"
        tree.tags[token] = "IN"
    tree.replace(index, noun)
    tree.attach(index, noun, "relcl")


def _stranded_prepositions(tree: Tree, verb: int) -> list[int] | None:
    """Return the prepositions after a verb; None: a phrase follows the verb."""
    prepositions = []
    for child in tree.children[verb]:
        if child > verb and tree.children[child]:
            return None
        if child > verb and tree.texts[child] in lexicon.STRANDED_PREPOSITIONS:
            prepositions.append(child)
    return prepositions


def _object_before_subject(tree: Tree, verb: int) -> int | None:
    """Return the helmet of "silver helmet man is wearing": the first of two subjects, or a part of
    the subject's name.
    """
    nouns = tree.nouns(tree.dependents(verb, "nsubj", "nsubjpass"))
    if len(nouns) > 1:
        return nouns[0]
    for person in of_kind(tree, nouns, lexicon.PEOPLE):
        thing = person - 1
        is_compound = thing in tree.dependents(person, "compound")
        if is_compound and not is_a(tree, thing, lexicon.PEOPLE):
            return thing
    return None


def _adopt_subject(tree: Tree, index: int) -> None:
    """A noun before a verb (or a root adverb) without a subject is its subject."""
    is_adverb = tree.tags[index] in ("RP", "RB", "IN", "JJ") and tree.is_root(index)
    is_verb = tree.is_verb(index) and tree.deps[index] not in ("amod", "compound")
    has_subject = bool(tree.dependents(index, *_SUBJECTS))
    if has_subject or not (is_adverb or is_verb):
        return
    for noun in tree.nouns(tree.dependents(index, *_MISTAKEN_FOR_SUBJECT)):
        if noun < index:
            tree.deps[noun] = "nsubj"


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
    if tree.deps[first] not in ("nmod", "compound") or head < conjunct:
        return
    if tree.nouns((first, head, conjunct)) != [first, head]:
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
    things = tree.nouns(tree.dependents(verb, "dobj") + tree.below(verb, "prep", "pobj"))
    before = [thing for thing in things if thing < conjunct]
    if before:
        tree.attach(conjunct, max(before), "conj")


def _join_inside(tree: Tree, conjunct: int) -> None:
    """ "a bathroom with a toilet and a sink": the sink is coordinated with the toilet, not with the
    bathroom.

    Likewise the fork in "a man holding a knife and a fork". Not if both nouns are people or
    animals.
    """
    head = tree.heads[conjunct]
    both = (conjunct, head)
    if tree.deps[conjunct] != "conj" or len(tree.nouns(both)) < len(both):
        return
    if len(of_kind(tree, both, _ANIMATE)) == len(both):
        return
    if is_a(tree, conjunct, lexicon.PEOPLE) and is_a(tree, head, lexicon.CLOTHES):
        people = of_kind(tree, tree.nouns(tree.ancestors(head)), lexicon.PEOPLE)
        tree.attach(conjunct, [*people, head][0], "conj")  # "men in hats and women"
        return
    inside = _things_with(tree, head, conjunct) or _things_held(tree, head, conjunct)
    if inside:
        tree.attach(conjunct, inside[-1], "conj")


def _move_to_part(tree: Tree, preposition: int) -> None:
    """ "a man with a hat on his head": the place on the body belongs to the hat."""
    if tree.texts[preposition] in ("of", "with"):
        return
    places = tree.dependents(preposition, "pobj")[:1]
    things = _things_with(tree, tree.heads[preposition], preposition)[-1:]
    if places and things and of_kind(tree, places + things, lexicon.BODY_PARTS):
        tree.attach(preposition, things[0], "prep")


def _move_to_owner(tree: Tree, preposition: int) -> None:
    """ "a man jumps over a fence with his skateboard": the man has the skateboard, not the
    fence.
    """
    noun = tree.heads[preposition]
    if tree.texts[preposition] != "with" or not tree.is_noun(noun) or is_a(tree, noun, _ANIMATE):
        return
    things = tree.dependents(preposition, "pobj")
    if is_a(tree, noun, lexicon.CLOTHES) and of_kind(tree, things[:1], lexicon.CLOTHES):
        tree.attach(things[0], noun, "conj")  # "in a suit with a red tie"
        return
    owners = tree.below(preposition, "pobj", "poss")
    if any(tree.tags[owner] == "PRP$" for owner in owners):
        tree.attach(preposition, _actor_above(tree, noun), "prep")


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
    places = tree.dependents(preposition, "pobj")[:1]
    if depiction is not None and of_kind(tree, places, _places_of(tree, depiction)):
        tree.attach(preposition, depiction, "prep")


def _places_of(tree: Tree, depiction: int) -> frozenset[str]:
    """Return where a depiction can be, but not what it shows."""
    if is_a(tree, depiction, lexicon.FIGURES):
        return lexicon.SQUARES
    if singular(tree.texts[depiction]) == "reflection":
        return lexicon.REFLECTORS
    shown = tree.below(depiction, "prep", "pobj")
    return lexicon.HANGERS if of_kind(tree, shown, _ANIMATE) else frozenset()


def _move_to_sign(tree: Tree, preposition: int) -> None:
    """ "a sign saying no parking on a pole": the sign is on the pole."""
    text = tree.heads[preposition]
    verb = tree.heads[text]
    if tree.deps[text] != "dobj" or tree.texts[verb] not in lexicon.SAYING:
        return
    places = tree.dependents(preposition, "pobj")[:1]
    nouns = tree.nouns([*tree.dependents(verb, "nsubj"), tree.heads[verb]])
    signs = of_kind(tree, nouns, lexicon.SIGNS)
    if signs and of_kind(tree, places, lexicon.POSTS):
        tree.attach(preposition, signs[0], "prep")


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
    things = []
    for thing in tree.nouns(tree.below(head, "prep", "pobj")):
        preposition = tree.heads[thing]
        if max(thing, preposition) < limit and tree.texts[preposition] == "with":
            things.append(thing)
    return things


def _things_held(tree: Tree, head: int, limit: int) -> list[int]:
    """Return the objects of the participles of `head`, between it and the token `limit`."""
    things = tree.nouns(tree.below(head, "acl", "dobj"))
    return [thing for thing in things if head < thing < limit]


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
    owner = None
    if tree.deps[noun] == "dobj" and tree.texts[link] in ("wearing", "wears"):
        owner = link
    if tree.deps[noun] == "pobj" and tree.texts[link] != "of":
        owner = tree.heads[link]
    if owner is None or not (tree.is_noun(owner) or tree.is_verb(owner)):
        return None
    return owner


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


_CLAUSE_RULES: tuple[_Rule, ...] = (_move_to_actor, _move_from_absent)
_COORDINATION_RULES: dict[str, tuple[_Rule, ...]] = {
    "conj": (_join_modifier, _join_object, _join_inside)
}
_ATTACHMENT_RULES: dict[str, tuple[_Rule, ...]] = {
    "acl": _CLAUSE_RULES,
    "relcl": _CLAUSE_RULES,
    "pcomp": (_free_from_absent,),
    "prep": (
        _move_to_part,
        _move_to_owner,
        _move_from_absent,
        _move_to_depiction,
        _move_to_sign,
    ),
}
