"""Extract relations from a repaired dependency tree: the verb or preposition that connects two noun
phrases.
"""

from typing import NamedTuple

from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.things import (
    all_coordinated,
    content,
    coordinated,
    head_noun,
    is_entity,
    of_kind,
    phrase,
    singular,
)
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import gerund, verb_lemma

_ANIMATE = lexicon.PEOPLE | lexicon.ANIMALS

SUBJECT_LABELS = ("nsubj", "nsubjpass", "csubj")
_PASSIVE_LABELS = frozenset({"acl", "advcl", "conj", "ROOT", "relcl", "ccomp"})
# The tree of a malformed sentence can be as deep as the sentence is long.
_MAX_DEPTH = 12

# Whom a pronoun can refer to.
_PEOPLE_MEANT = {
    "he": lexicon.PEOPLE - lexicon.FEMALE_NAMES,
    "him": lexicon.PEOPLE - lexicon.FEMALE_NAMES,
    "she": lexicon.PEOPLE - lexicon.MALE_NAMES,
    "they": lexicon.PEOPLE,
    "them": lexicon.PEOPLE,
}
_THINGS_MEANT = frozenset({"it", "them"})


def subjects(tree: Tree, verb: int, depth: int = 0) -> list[int]:
    """Return the subjects of a verb, in a passive the grammatical ones.

    Args:
        tree: A repaired tree.
        verb: The index of the verb.
        depth: How many verbs up the tree this one was reached from.

    Returns:
        Indices of nouns; empty if the caption names no subject.
    """
    if depth > _MAX_DEPTH:
        return []
    labelled = tree.dependents(verb, *SUBJECT_LABELS)
    if labelled:
        return _meant_by_subject(tree, verb, labelled[0])
    if tree.dependents(verb, "expl"):  # "there is a dog"
        return all_coordinated(tree, tree.dependents(verb, "attr", "dobj"))
    return _inherited_subjects(tree, verb, depth)


def _meant_by_subject(tree: Tree, verb: int, subject: int) -> list[int]:
    """Return the nouns that the grammatical subject of a verb means."""
    if _is_relative(tree, subject):
        return antecedents(tree, verb)
    if tree.texts[subject] in lexicon.SOME_OF:  # "another" of the people or animals before it
        return of_kind(tree, tree.nouns_before(subject), _ANIMATE)[:1]
    return all_coordinated(tree, [subject])


def _inherited_subjects(tree: Tree, verb: int, depth: int) -> list[int]:
    """Return the nearest noun above and before a verb, or the subjects of the nearest verb."""
    for node in tree.ancestors(verb):
        if is_entity(tree, node) and node < verb:
            return modified(tree, node, verb)
        if tree.texts[node] in ("for", "like") and tree.heads[verb] == node:
            return []
        if tree.is_verb(node) or tree.dependents(node, *SUBJECT_LABELS):
            return subjects(tree, node, depth + 1)
    return []


def antecedents(tree: Tree, verb: int) -> list[int]:
    """Return the nouns that "that", "which" or "who" refers to in the relative clause of a verb."""
    head = tree.heads[verb]
    if tree.deps[verb] == "relcl" and is_entity(tree, head):
        return modified(tree, head, verb)
    return []


def modified(tree: Tree, noun: int, modifier: int) -> list[int]:
    """Return the nouns that a following phrase modifies: all of a coordination, as in "knives and
    forks on it".

    Only the last if an earlier one has its own phrase: "a mat on a floor and a shelf with books".
    """
    root = noun
    while tree.deps[root] == "conj" and is_entity(tree, tree.heads[root]):
        root = tree.heads[root]
    phrases = tree.dependents(root, "prep", "acl", "relcl")
    root_has_phrase = any(root < child < noun for child in phrases)
    start = noun if root_has_phrase else root
    return [member for member in coordinated(tree, start) if member < modifier]


def objects(tree: Tree, verb: int) -> list[int]:
    """Return the direct objects of a verb, including the noun that a relative clause modifies."""
    direct: list[int] = []
    for child in tree.dependents(verb, "dobj", "dative"):
        direct += _meant_by_object(tree, verb, child)
    if not direct and verb_lemma(tree.texts[verb]) in lexicon.PERCEPTION:
        direct = all_coordinated(tree, tree.below(verb, "ccomp", "nsubj"))
    return direct or _object_before_clause(tree, verb)


def _meant_by_object(tree: Tree, verb: int, child: int) -> list[int]:
    """Return the nouns that the grammatical object `child` of a verb means."""
    if _is_relative(tree, child):
        return antecedents(tree, verb)
    if tree.texts[child] == "it" and tree.deps[verb] == "conj":
        return _thing_before(tree, verb)
    return all_coordinated(tree, [child])


def _thing_before(tree: Tree, verb: int) -> list[int]:
    """Return what "it" is in "picks up a ball and throws it": the nearest thing that was acted on."""
    nouns = tree.nouns_before(verb)
    people = of_kind(tree, nouns, lexicon.PEOPLE)
    things = [noun for noun in nouns if noun not in people]
    return [thing for thing in things if tree.deps[thing] in ("dobj", "pobj")][:1]


def _object_before_clause(tree: Tree, verb: int) -> list[int]:
    """Return the hat in "the hat the man is wearing": what a clause without "that" modifies."""
    if tree.deps[verb] != "relcl" or tree.dependents(verb, "prep", "dobj", "auxpass"):
        return []
    doers = tree.dependents(verb, "nsubj")
    head = tree.heads[verb]
    if doers and not _is_relative(tree, doers[0]) and is_entity(tree, head):
        return [content(tree, head)]
    return []


def governor(tree: Tree, preposition: int) -> tuple[list[str], int]:
    """Return the words of the predicate, and the noun or verb that governs it.

    Adverbs and adjectives in between are skipped ("high up in the sky"); prepositions and particles
    before one of direction are kept ("leading up to the house").
    """
    words = [tree.texts[preposition]]
    node = preposition
    while tree.heads[node] != node:
        joined = tree.deps[node] == "conj"
        node = tree.heads[node]
        if is_entity(tree, node) or tree.tags[node].startswith("VB"):
            return words, node
        directional = words[0] in lexicon.PARTICLE_PREPOSITIONS or tree.tags[node] == "IN"
        if tree.tags[node] in ("IN", "TO", "RP", "RB") and directional and not joined:
            words.insert(0, tree.texts[node])
    return words, node


def _is_relative(tree: Tree, index: int) -> bool:
    return tree.tags[index] in ("WDT", "WP") or tree.texts[index] == "that"


def person_meant(tree: Tree, noun: int, subject: int | None = None) -> int:
    """Return the nearest person before a personal pronoun that it may refer to.

    Args:
        tree: A repaired tree.
        noun: The index of the pronoun; any other noun is returned itself.
        subject: A person that the pronoun does not refer to.

    Returns:
        The index of the person, or of the pronoun itself: read as a man, a woman or people.
    """
    pronoun = tree.texts[noun]
    if pronoun not in _PEOPLE_MEANT:
        return noun
    is_plural = lexicon.PRONOUNS[pronoun] == "people"
    for person in of_kind(tree, tree.nouns_before(noun), _PEOPLE_MEANT[pronoun]):
        fits = not is_plural or _is_plural(tree, person)
        if fits and person != subject:
            return person
    return noun


def _is_plural(tree: Tree, noun: int) -> bool:
    return tree.tags[noun].endswith("S") or singular(tree.texts[noun]) == "people"


def referents(tree: Tree, preposition: int, pronoun: int) -> list[int]:
    """Return what "it" or "them" is after a preposition: the nearest nouns above it, but for the
    preposition's subject.
    """
    plural = tree.texts[pronoun] == "them"
    related = _related_by(tree, preposition)
    for noun in nouns_above(tree, preposition):
        fits = not plural or tree.tags[content(tree, noun)].endswith("S")
        if fits and noun < pronoun and noun not in related:
            return [member for member in coordinated(tree, noun) if member < pronoun]
    return []


def _related_by(tree: Tree, preposition: int) -> list[int]:
    """Return the nouns that a preposition relates to the noun after it."""
    _, head = governor(tree, preposition)
    if tree.tags[head].startswith("VB"):
        return objects(tree, head) or subjects(tree, head)
    return modified(tree, head, preposition)


def nouns_above(tree: Tree, index: int) -> list[int]:
    """Return the nouns above a token and the subjects of the verbs above it, nearest first."""
    nouns: dict[int, None] = {}
    for node in tree.ancestors(index):
        if is_entity(tree, node):
            nouns[node] = None
        elif tree.tags[node].startswith("VB"):
            nouns.update(dict.fromkeys(subjects(tree, node)))
    return list(nouns)


def points_back(tree: Tree, index: int) -> bool:
    """Return whether a phrase below refers back with a pronoun: "a plate with a knife on it"."""
    things: list[int] = []
    for owner in (index, *tree.dependents(index, "acl", "relcl")):
        things += tree.below(owner, "prep", "pobj")
    return not _THINGS_MEANT.isdisjoint(tree.words(things))


class ParsedRelation(NamedTuple):
    """A relation of two tokens: the predicate as the caption has it, and its lemma."""

    subject: int
    predicate: str
    object: int
    lemma: str


def relations(tree: Tree) -> list[ParsedRelation]:
    """Return all distinct relations of a repaired tree in word order, stated or not."""
    distinct: dict[ParsedRelation, None] = {}
    for index in range(len(tree)):
        distinct.update(dict.fromkeys(relations_of(tree, index)))
    return list(distinct)


def relations_of(tree: Tree, index: int) -> list[ParsedRelation]:
    """Return the relations whose predicate is a token."""
    return [*_of_word(tree, index), *_of_adjective(tree, index)]


def _of_word(tree: Tree, index: int) -> list[ParsedRelation]:
    """Relations of a verb, a preposition or a possessive."""
    dep = tree.deps[index]
    if tree.is_verb(index):
        return _of_verb(tree, index)
    if dep in ("prep", "agent", "dative") or (tree.tags[index] == "IN" and dep != "mark"):
        return _of_preposition(tree, index)
    if dep == "poss":
        return _of_possessive(tree, index)
    return []


def _of_adjective(tree: Tree, index: int) -> list[ParsedRelation]:
    """Relations in a noun's adjective: of "snow covered hills", of "a black haired boy"."""
    noun = tree.heads[index]
    if noun <= index:
        return []
    if _is_covered(tree, index):
        return _stated(tree, [index - 1], ["covering"], [noun])
    last_word = tree.texts[index].rsplit("-", 1)[-1]
    if last_word in lexicon.HAVING_ADJECTIVES and is_entity(tree, noun):
        return _stated(tree, [noun], ["has"], [index])
    return []


def _is_covered(tree: Tree, index: int) -> bool:
    """Return whether a token is the "covered" between two nouns: "snow covered hills"."""
    if index == 0 or tree.texts[index] != "covered":
        return False
    if tree.deps[index] not in ("amod", "compound", "nmod"):
        return False
    return tree.is_noun(index - 1) and tree.is_noun(tree.heads[index])


def _stated(
    tree: Tree, subjects: list[int], words: list[str], objects: list[int], *, verb: bool = True
) -> list[ParsedRelation]:
    """Return the relations of people that are meant and of things; `verb`: whether their predicate
    starts with one.
    """
    relations = []
    for subject in [person_meant(tree, noun) for noun in subjects]:
        for noun in objects:
            thing = person_meant(tree, noun, subject)
            if subject != thing:
                relations.append(_related(subject, words, thing, verb))
    return relations


def _related(subject: int, words: list[str], thing: int, verb: bool) -> ParsedRelation:
    lemma = " ".join([verb_lemma(words[0]), *words[1:]] if verb else words)
    return ParsedRelation(subject, " ".join(words), thing, lemma)


def _of_verb(tree: Tree, verb: int) -> list[ParsedRelation]:
    """Relations of a transitive verb."""
    word = tree.texts[verb]
    if word in lexicon.BE:
        return []
    things = objects(tree, verb)
    lemma = verb_lemma(word)
    if lemma in ("do", "perform"):
        things = [thing for thing in things if head_noun(tree, thing) not in lexicon.EVENT_NOUNS]
    if lemma == "have" and any(points_back(tree, index) for index in (verb, *things)):
        return []
    if things:
        return _stated(tree, subjects(tree, verb), [word, *_particles(tree, verb)], things)
    if _is_reciprocal(tree, verb, "dobj"):
        return _reciprocal(subjects(tree, verb), [word], verb=True)
    return []


def _of_preposition(tree: Tree, preposition: int) -> list[ParsedRelation]:
    """Relations of a preposition with the noun, verb, adjective or preposition that governs it."""
    words, head = governor(tree, preposition)
    if head == preposition:
        return []
    if words == ["of"] and tree.texts[tree.heads[preposition]] in lexicon.SOME_OF:
        return []
    if _is_reciprocal(tree, preposition, "pobj"):
        return _to_each_other(tree, head, words)
    things = _things_after(tree, preposition, head)
    if not things:
        return []
    if tree.tags[head].startswith("VB"):
        return _after_verb(tree, head, words, things)
    if is_entity(tree, head):
        return _after_noun(tree, head, preposition, words, things)
    if tree.dependents(head, "nsubj"):
        return _place(tree, subjects(tree, head), words, things)
    return []


def _things_after(tree: Tree, preposition: int, head: int) -> list[int]:
    """Return the nouns that a preposition relates to `head`, its governor."""
    things: list[int] = []
    for child in tree.dependents(preposition, "pobj", "pcomp"):
        if tree.texts[child] in _THINGS_MEANT:
            things += referents(tree, preposition, child)
        else:
            things += all_coordinated(tree, [child])
    stranded = not tree.children[preposition] and tree.deps[head] == "relcl"
    if stranded and is_entity(tree, tree.heads[head]):  # "the bench a man sits on"
        return [tree.heads[head]]
    return things


def _is_reciprocal(tree: Tree, index: int, dep: str) -> bool:
    return "each other" in tree.words(tree.dependents(index, dep))


def _to_each_other(tree: Tree, head: int, words: list[str]) -> list[ParsedRelation]:
    """Relations of a preposition before "each other"; `head` governs it."""
    if is_entity(tree, head):
        return _reciprocal(modified(tree, head, len(tree)), words, verb=False)
    if not tree.tags[head].startswith("VB"):
        return []
    if tree.texts[head] in lexicon.BE:
        return _reciprocal(subjects(tree, head), words, verb=False)
    return _reciprocal(subjects(tree, head), [tree.texts[head], *words], verb=True)


def _reciprocal(nouns: list[int], words: list[str], verb: bool) -> list[ParsedRelation]:
    """Relate two nouns to each other, or a plural to itself ("two dogs next to each other")."""
    if not nouns:
        return []
    partner = nouns[1] if len(nouns) > 1 else nouns[0]
    return [_related(nouns[0], words, partner, verb)]


def _after_verb(tree: Tree, verb: int, words: list[str], things: list[int]) -> list[ParsedRelation]:
    """Relations of a preposition that a verb governs."""
    doers = subjects(tree, verb)
    direct = objects(tree, verb)
    word = tree.texts[verb]
    if word in lexicon.BE:
        return _place(tree, doers, words, things)
    if direct and words == ["at"] and head_noun(tree, things[0]) not in lexicon.PLACES:
        return _stated(tree, doers, [word, "at"], things)
    if direct:
        located = _located(tree, verb, words, doers, direct, things)
        return _place(tree, located, words, things)
    passive = _passive(tree, verb, words, doers, things)
    if passive is not None:
        return passive
    if words == ["in"] and head_noun(tree, things[0]) in lexicon.CLOTHES:
        return _stated(tree, doers, ["wearing"], things)
    is_posture = verb_lemma(word) in lexicon.POSTURE_VERBS
    if is_posture and words[0] in lexicon.STATIC_PREPOSITIONS:
        return _stated(tree, doers, [word, *words], things)
    return _stated(tree, doers, [word, *_particles(tree, verb), *words], things)


def _passive(
    tree: Tree, verb: int, words: list[str], undergoers: list[int], things: list[int]
) -> list[ParsedRelation] | None:
    """Return a passive with an agent as active, "ridden by a man" as "man riding"; None if it is
    not a passive.
    """
    if not _is_passive(tree, verb):
        return None
    lemma = verb_lemma(tree.texts[verb])
    agent = words == ["by"] and lemma not in lexicon.LOCATIVE_BY
    if agent or (words in (["in"], ["with"]) and lemma in ("cover", "surround")):
        return _stated(tree, things, [gerund(tree.texts[verb])], undergoers)
    if lemma == "dress" and words == ["in"]:
        return _stated(tree, undergoers, ["wearing"], things)
    return None


def _is_passive(tree: Tree, verb: int) -> bool:
    if tree.dependents(verb, "auxpass", "nsubjpass"):
        return True
    participle = tree.tags[verb] in ("VBN", "VBD") and tree.deps[verb] in _PASSIVE_LABELS
    return participle and not tree.dependents(verb, "dobj", "aux")


def _located(
    tree: Tree, verb: int, words: list[str], doers: list[int], direct: list[int], things: list[int]
) -> list[int]:
    """In "a man VERB a thing PREPOSITION a place": whether the man or the thing is at the place.

    Who plays or rides is there. What is held, worn or put is, unless the place is one of `PLACES`.
    """
    place = head_noun(tree, things[0])
    lemma = verb_lemma(tree.texts[verb])
    if not doers or place in lexicon.BODY_PARTS or things[0] in doers:
        return direct
    if lemma == "wear" and words == ["with"]:
        return direct
    if place in lexicon.PLACES or words in (["at"], ["with"]):
        return doers
    if words in (["under"], ["over"], ["around"], ["to"], ["into"], ["onto"], ["behind"]):
        return direct
    return direct if lemma in lexicon.HOLDING_VERBS else doers


def _after_noun(
    tree: Tree, noun: int, preposition: int, words: list[str], things: list[int]
) -> list[ParsedRelation]:
    if words == ["of"]:
        return _of_noun(tree, noun, things)
    if words == ["with"] and any(points_back(tree, thing) for thing in things):
        return []
    located = modified(tree, noun, preposition)
    verb = tree.heads[noun]
    is_object = tree.deps[noun] == "dobj" and tree.is_verb(verb) and words != ["with"]
    if is_object and verb_lemma(tree.texts[verb]) not in ("have", "wear"):
        located = _located(tree, verb, words, subjects(tree, verb), located, things)
    return _place(tree, located, words, things)


def _place(
    tree: Tree, located: list[int], words: list[str], things: list[int]
) -> list[ParsedRelation]:
    """Relate things to a place without a verb; "in" clothes is "wearing" them."""
    worn = words == ["in"] and head_noun(tree, things[0]) in lexicon.CLOTHES
    return _stated(tree, located, ["wearing"] if worn else words, things, verb=worn)


def _of_noun(tree: Tree, noun: int, things: list[int]) -> list[ParsedRelation]:
    """ "of" after a container or a depiction names its contents, else the owner of the noun."""
    head = head_noun(tree, noun)
    if head in lexicon.PARTITIVES:
        return []
    if head in lexicon.CONTAINERS_ON and " " not in phrase(tree, noun):
        return _stated(tree, things, ["on"], [noun], verb=False)
    if head in lexicon.CONTAINERS_IN or head in lexicon.DEPICTIONS:
        return _stated(tree, things, ["in"], [noun], verb=False)
    if head in lexicon.DISHES:
        return _stated(tree, [noun], ["has"], things)
    return _stated(tree, things, ["has"], coordinated(tree, noun))


def _of_possessive(tree: Tree, owner: int) -> list[ParsedRelation]:
    """ "the man's hat"; "his head" only after a preposition."""
    thing = tree.heads[owner]
    if not is_entity(tree, thing):
        return []
    if tree.is_noun(owner):
        return _stated(tree, coordinated(tree, owner), ["has"], [thing])
    if tree.tags[owner] == "PRP$":
        return _of_possessive_pronoun(tree, thing)
    return []


def _of_possessive_pronoun(tree: Tree, thing: int) -> list[ParsedRelation]:
    """Relations of a thing after "his", "her" or "its"."""
    if tree.deps[thing] == "pobj" and head_noun(tree, thing) in lexicon.BODY_PARTS:
        owners = sorted(noun for noun in nouns_above(tree, thing) if noun < thing)
        return _stated(tree, owners[:1], ["has"], [thing])
    companion = tree.heads[thing]
    if tree.deps[thing] == "conj" and tree.is_noun(companion):  # "a man and his dog"
        return _stated(tree, [companion], ["with"], [thing], verb=False)
    return []


def _particles(tree: Tree, verb: int) -> list[str]:
    return [tree.texts[child] for child in tree.dependents(verb, "prt")]
