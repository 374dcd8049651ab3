"""Extract relations from a repaired dependency tree: the verb or preposition that connects two noun
phrases.
"""

from functools import lru_cache
from typing import NamedTuple

from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import gerund, lemmas, verb_lemma

_PLURAL_ONLY = lexicon.CLOTHES | {"scissors", "binoculars", "stairs"}


SUBJECT_LABELS = ("nsubj", "nsubjpass", "csubj")
_PASSIVE_LABELS = frozenset({"acl", "advcl", "conj", "ROOT", "relcl", "ccomp"})
# The tree of a malformed sentence can be as deep as the sentence is long.
_MAX_DEPTH = 12


_OF_THE_OTHER_SEX = {
    "he": lexicon.FEMALE_NAMES,
    "him": lexicon.FEMALE_NAMES,
    "she": lexicon.MALE_NAMES,
}


@lru_cache(maxsize=1 << 16)
def singular(noun: str) -> str:
    """Return the singular of a noun; plural-only names ("pants", "scissors") are unchanged."""
    if noun in _PLURAL_ONLY and noun.endswith("s") and noun[:-1] not in _PLURAL_ONLY:
        return noun
    forms = lemmas(noun, "NOUN")
    return forms[-1] if noun == "leaves" else forms[0]


def is_a(tree: Tree, index: int, words: frozenset[str]) -> bool:
    return singular(tree.texts[index]) in words


def head_noun(tree: Tree, index: int) -> str:
    return singular(mention_word(tree, index))


def phrase(tree: Tree, index: int) -> str:
    """Return the name of the thing: its head noun with the words that belong to the name ("fire
    hydrant").
    """
    words = [mention_word(tree, index)]
    head = singular(words[0])
    left = index - 1
    while tree.is_noun(index) and left >= 0 and left < tree.heads[left] <= index:
        word = tree.texts[left]
        fixed = (word, head) in lexicon.NAMING_PAIRS or (
            word in ("left", "right") and head in lexicon.SIDED_PARTS
        )
        noun = tree.is_noun(left) or word in lexicon.GERUND_MODIFIERS
        if not (
            fixed or (noun and singular(word) not in lexicon.ATTRIBUTE_NOUNS)
        ):  # an attribute of the thing
            break
        words.insert(0, word)
        left -= 1
    return " ".join(words)


def mention_word(tree: Tree, index: int) -> str:
    word = tree.texts[index]
    return (
        lexicon.PRONOUNS.get(word) or lexicon.HAVING_ADJECTIVES.get(word.rsplit("-", 1)[-1]) or word
    )


def is_entity(tree: Tree, index: int) -> bool:
    """Return whether a token is a noun, or a personal pronoun with a meaning of its own ("she" is a
    woman).
    """
    return (
        tree.is_noun(index)
        or tree.texts[index] in lexicon.PRONOUNS
        or content(tree, index) != index
    )


def coordinated(tree: Tree, index: int) -> list[int]:
    """Return a noun and those coordinated with it by "and", "or" or commas, each by its
    `content`.
    """
    members = []
    pending = [index]
    while pending:
        noun = pending.pop()
        members.append(content(tree, noun))
        joined = tree.dependents(noun, "conj", "appos")
        pending += [child for child in reversed(joined) if child > noun and is_entity(tree, child)]
    return members


def content(tree: Tree, index: int) -> int:
    """Return the thing that a quantity measures, the pizza in "a piece of pizza"; any other noun is
    returned itself.
    """
    while is_a(tree, index, lexicon.PARTITIVES):
        things = tree.below(index, "prep", "pobj")
        nouns = [
            thing
            for thing in things
            if tree.is_noun(thing) and tree.texts[tree.heads[thing]] == "of"
        ]
        if not nouns:
            break
        index = nouns[0]
    return index


def subjects(tree: Tree, verb: int, depth: int = 0) -> list[int]:
    """Return the subjects of a verb (in a passive: the grammatical ones); empty if the caption
    names none.
    """
    if depth > _MAX_DEPTH:
        return []
    for child in tree.dependents(verb, *SUBJECT_LABELS):
        if _is_relative(tree, child):
            return antecedents(tree, verb)
        if (
            tree.texts[child] in lexicon.SOME_OF
        ):  # "another": of the nearest people or animals before it
            before = (noun for noun in range(child - 1, -1, -1) if tree.is_noun(noun))
            return next(
                ([noun] for noun in before if is_a(tree, noun, lexicon.PEOPLE | lexicon.ANIMALS)),
                [],
            )
        return coordinated(tree, child) if is_entity(tree, child) else []
    if tree.dependents(verb, "expl"):
        things = tree.dependents(verb, "attr", "dobj")
        return [
            noun for thing in things if is_entity(tree, thing) for noun in coordinated(tree, thing)
        ]
    for node in tree.ancestors(
        verb
    ):  # the nearest noun before the verb, or the subjects of the nearest verb
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
    return (
        modified(tree, head, verb) if tree.deps[verb] == "relcl" and is_entity(tree, head) else []
    )


def modified(tree: Tree, noun: int, modifier: int) -> list[int]:
    """Return the nouns that a following phrase modifies: all of a coordination, as in "knives and
    forks on it".

    Only the last if an earlier one has its own phrase: "a mat on a floor and a shelf with books".
    """
    root = noun
    while tree.deps[root] == "conj" and is_entity(tree, tree.heads[root]):
        root = tree.heads[root]
    own_phrases = any(
        root < child < noun for child in tree.dependents(root, "prep", "acl", "relcl")
    )
    start = noun if own_phrases else root
    return [member for member in coordinated(tree, start) if member < modifier]


def objects(tree: Tree, verb: int) -> list[int]:
    """Direct objects, including the noun that a relative clause modifies."""
    direct: list[int] = []
    for child in tree.dependents(verb, "dobj", "dative"):
        if _is_relative(tree, child):
            direct += antecedents(tree, verb)
        elif (
            tree.texts[child] == "it" and tree.deps[verb] == "conj"
        ):  # "picks up a ball and throws it"
            before = (noun for noun in range(verb - 1, -1, -1) if tree.is_noun(noun))
            things = (noun for noun in before if tree.deps[noun] in ("dobj", "pobj"))
            direct += next(([noun] for noun in things if not is_a(tree, noun, lexicon.PEOPLE)), [])
        elif is_entity(tree, child):
            direct += coordinated(tree, child)
    if not direct and verb_lemma(tree.texts[verb]) in lexicon.PERCEPTION:
        seen = tree.below(verb, "ccomp", "nsubj")
        direct = [
            member for noun in seen if is_entity(tree, noun) for member in coordinated(tree, noun)
        ]
    if direct or tree.deps[verb] != "relcl" or tree.dependents(verb, "prep", "dobj", "auxpass"):
        return direct
    # "the hat the man is wearing"
    own = tree.dependents(verb, "nsubj")
    head = tree.heads[verb]
    return (
        [content(tree, head)]
        if own and not _is_relative(tree, own[0]) and is_entity(tree, head)
        else []
    )


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
    """Return the nearest preceding person that a personal pronoun may refer to, other than the
    subject.

    The token itself if there is none: it is read as a man, a woman or people.
    """
    pronoun = tree.texts[noun]
    if pronoun not in lexicon.PRONOUNS:
        return noun
    excluded = _OF_THE_OTHER_SEX.get(pronoun, frozenset())
    for before in range(noun - 1, -1, -1):
        name = singular(tree.texts[before])
        if (
            not tree.is_noun(before)
            or before == subject
            or name not in lexicon.PEOPLE
            or name in excluded
        ):
            continue
        if pronoun not in ("they", "them") or tree.tags[before].endswith("S") or name == "people":
            return before
    return noun


def referents(tree: Tree, preposition: int, pronoun: int) -> list[int]:
    """Return what "it" or "them" is after a preposition: the nearest nouns above it, except its own
    subject.
    """
    _, head = governor(tree, preposition)
    is_verb = tree.tags[head].startswith("VB")
    own = (
        (objects(tree, head) or subjects(tree, head))
        if is_verb
        else modified(tree, head, preposition)
    )
    plural = tree.texts[pronoun] == "them"
    for noun in nouns_above(tree, preposition):
        thing = content(tree, noun)
        if noun not in own and noun < pronoun and (not plural or tree.tags[thing].endswith("S")):
            return [member for member in coordinated(tree, noun) if member < pronoun]
    return []


def nouns_above(tree: Tree, index: int) -> list[int]:
    """Return the nouns among the ancestors of a token, and the subjects of the verbs among them,
    nearest first.
    """
    nouns: dict[int, None] = {}
    for node in tree.ancestors(index):
        if is_entity(tree, node):
            nouns[node] = None
        elif tree.tags[node].startswith("VB"):
            nouns.update(dict.fromkeys(subjects(tree, node)))
    return list(nouns)


def points_back(tree: Tree, index: int) -> bool:
    """Return whether a phrase below refers back with a pronoun: "a plate with a knife on it"."""
    owners = [index, *tree.dependents(index, "acl", "relcl")]
    return any(
        tree.texts[thing] in ("it", "them")
        for owner in owners
        for thing in tree.below(owner, "prep", "pobj")
    )


class ParsedRelation(NamedTuple):
    """Token indices of subject and object, the predicate as written in the caption, and its
    lemma.
    """

    subject: int
    predicate: str
    object: int
    lemma: str


def relations(tree: Tree) -> list[ParsedRelation]:
    """Return all distinct relations of a repaired tree, in the order of the words that name them,
    stated or not.
    """
    found: dict[ParsedRelation, None] = {}
    for index in range(len(tree)):
        found.update(dict.fromkeys(relations_of(tree, index)))
    return list(found)


def relations_of(tree: Tree, index: int) -> list[ParsedRelation]:
    """Return the relations whose predicate is a token."""
    found: list[ParsedRelation] = []
    word = tree.texts[index]
    dep = tree.deps[index]
    if tree.is_verb(index):
        found += _of_verb(tree, index)
    elif dep in ("prep", "agent", "dative") or (tree.tags[index] == "IN" and dep != "mark"):
        found += _of_preposition(tree, index)
    elif dep == "poss":
        found += _of_possessive(tree, index)
    noun = tree.heads[index]
    if word == "covered" and dep in ("amod", "compound", "nmod") and noun > index > 0:
        if tree.is_noun(index - 1) and tree.is_noun(noun):  # "snow covered hills"
            found += _stated(tree, [index - 1], ["covering"], [noun])
    elif (
        word.rsplit("-", 1)[-1] in lexicon.HAVING_ADJECTIVES
        and is_entity(tree, noun)
        and noun > index
    ):
        found += _stated(tree, [noun], ["has"], [index])  # "a black haired boy" has hair
    return found


def _stated(
    tree: Tree, subjects: list[int], words: list[str], objects: list[int], *, verb: bool = True
) -> list[ParsedRelation]:
    """Return the relations of people that are meant and of things; `verb`: whether their predicate
    starts with one.
    """
    people = [person_meant(tree, noun) for noun in subjects]
    pairs = [(subject, person_meant(tree, noun, subject)) for subject in people for noun in objects]
    return [_related(subject, words, thing, verb) for subject, thing in pairs if subject != thing]


def _related(subject: int, words: list[str], thing: int, verb: bool) -> ParsedRelation:
    lemma = " ".join([verb_lemma(words[0]), *words[1:]] if verb else words)
    return ParsedRelation(subject, " ".join(words), thing, lemma)


def _of_verb(tree: Tree, verb: int) -> list[ParsedRelation]:
    """Relations of a transitive verb."""
    if tree.texts[verb] in lexicon.BE:
        return []
    things = objects(tree, verb)
    lemma = verb_lemma(tree.texts[verb])
    if lemma in ("do", "perform"):
        things = [thing for thing in things if head_noun(tree, thing) not in lexicon.EVENT_NOUNS]
    if lemma == "have" and any(points_back(tree, each) for each in (verb, *things)):
        return []
    if things:
        return _stated(
            tree, subjects(tree, verb), [tree.texts[verb], *_particles(tree, verb)], things
        )
    if any(tree.texts[child] == "each other" for child in tree.dependents(verb, "dobj")):
        return _reciprocal(subjects(tree, verb), [tree.texts[verb]], verb=True)
    return []


def _of_preposition(tree: Tree, preposition: int) -> list[ParsedRelation]:
    """Relations of a preposition with the noun, verb, adjective or preposition that governs it."""
    words, head = governor(tree, preposition)
    if head == preposition or (
        words == ["of"] and tree.texts[tree.heads[preposition]] in lexicon.SOME_OF
    ):
        return []
    of_verb = tree.tags[head].startswith("VB")
    if any(tree.texts[child] == "each other" for child in tree.dependents(preposition, "pobj")):
        if is_entity(tree, head):
            return _reciprocal(modified(tree, head, len(tree)), words, verb=False)
        copula = tree.texts[head] in lexicon.BE
        stated = words if copula else [tree.texts[head], *words]
        return _reciprocal(subjects(tree, head), stated, verb=not copula) if of_verb else []
    things: list[int] = []
    for child in tree.dependents(preposition, "pobj", "pcomp"):
        if tree.texts[child] in ("it", "them"):
            things += referents(tree, preposition, child)
        elif is_entity(tree, child):
            things += coordinated(tree, child)
    stranded = not tree.children[preposition] and tree.deps[head] == "relcl"
    if stranded and is_entity(tree, tree.heads[head]):
        things = [tree.heads[head]]
    if things and of_verb:
        return _after_verb(tree, head, words, things)
    if things and is_entity(tree, head):
        return _after_noun(tree, head, preposition, words, things)
    return (
        _place(tree, subjects(tree, head), words, things)
        if things and tree.dependents(head, "nsubj")
        else []
    )


def _reciprocal(nouns: list[int], words: list[str], verb: bool) -> list[ParsedRelation]:
    """Relate two nouns to each other, or a plural to itself ("two dogs next to each other")."""
    return (
        [_related(nouns[0], words, nouns[1] if len(nouns) > 1 else nouns[0], verb)] if nouns else []
    )


def _after_verb(tree: Tree, verb: int, words: list[str], things: list[int]) -> list[ParsedRelation]:
    doers = subjects(tree, verb)
    direct = objects(tree, verb)
    if tree.texts[verb] in lexicon.BE:
        return _place(tree, doers, words, things)
    if not direct and (stated := _passive(tree, verb, words, doers, things)) is not None:
        return stated
    if direct and words == ["at"] and head_noun(tree, things[0]) not in lexicon.PLACES:
        return _stated(tree, doers, [tree.texts[verb], "at"], things)
    if direct:
        return _place(tree, _located(tree, verb, words, doers, direct, things), words, things)
    if words == ["in"] and head_noun(tree, things[0]) in lexicon.CLOTHES:
        return _stated(tree, doers, ["wearing"], things)
    particles = _particles(tree, verb)
    if (
        words[0] in lexicon.STATIC_PREPOSITIONS
        and verb_lemma(tree.texts[verb]) in lexicon.POSTURE_VERBS
    ):
        particles = []
    return _stated(tree, doers, [tree.texts[verb], *particles, *words], things)


def _passive(
    tree: Tree, verb: int, words: list[str], undergoers: list[int], things: list[int]
) -> list[ParsedRelation] | None:
    """Return a passive with an agent as active, "ridden by a man" as "man riding"; None if it is
    not a passive.
    """
    lemma = verb_lemma(tree.texts[verb])
    participle = tree.tags[verb] in ("VBN", "VBD") and tree.deps[verb] in _PASSIVE_LABELS
    active = not participle or tree.dependents(verb, "dobj", "aux")
    if active and not tree.dependents(verb, "auxpass", "nsubjpass"):
        return None
    agent = words == ["by"] and lemma not in lexicon.LOCATIVE_BY
    if agent or (words in (["in"], ["with"]) and lemma in ("cover", "surround")):
        return _stated(tree, things, [gerund(tree.texts[verb])], undergoers)
    return (
        _stated(tree, undergoers, ["wearing"], things)
        if lemma == "dress" and words == ["in"]
        else None
    )


def _located(
    tree: Tree, verb: int, words: list[str], doers: list[int], direct: list[int], things: list[int]
) -> list[int]:
    """In "a man VERB a thing PREPOSITION a place": whether the man or the thing is at the place.

    Who plays or rides is there. What is held, worn or put is, unless the place is one of `PLACES`.
    """
    place = head_noun(tree, things[0])
    lemma = verb_lemma(tree.texts[verb])
    if (
        not doers
        or place in lexicon.BODY_PARTS
        or things[0] in doers
        or (lemma == "wear" and words == ["with"])
    ):
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
    """ "of" after a container or a depiction names its contents, otherwise the owner of the
    noun.
    """
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
    pronoun = tree.tags[owner] == "PRP$"
    if not is_entity(tree, thing):
        return []
    if tree.is_noun(owner):
        return _stated(tree, coordinated(tree, owner), ["has"], [thing])
    if pronoun and head_noun(tree, thing) in lexicon.BODY_PARTS and tree.deps[thing] == "pobj":
        owners = sorted(noun for noun in nouns_above(tree, thing) if noun < thing)
        return _stated(tree, owners[:1], ["has"], [thing])
    if pronoun and tree.deps[thing] == "conj" and tree.is_noun(tree.heads[thing]):
        return _stated(tree, [tree.heads[thing]], ["with"], [thing], verb=False)
    return []


def _particles(tree: Tree, verb: int) -> list[str]:
    return [tree.texts[child] for child in tree.dependents(verb, "prt")]
