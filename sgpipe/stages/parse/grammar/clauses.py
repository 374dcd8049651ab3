"""Noun phrases of a tree, the subjects and objects of its verbs, and the nouns that pronouns refer to."""

from __future__ import annotations

from functools import lru_cache

from sgpipe.stages.parse.grammar.lexicon import (
    ATTRIBUTE_NOUNS,
    BE,
    CLOTHES,
    FEMALE_NAMES,
    GERUND_MODIFIERS,
    HAVING_ADJECTIVES,
    MALE_NAMES,
    NAMING_PAIRS,
    PARTICLE_PREPOSITIONS,
    PARTITIVES,
    PEOPLE,
    PERCEPTION,
    PRONOUNS,
    SIDED_PARTS,
)
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import lemmas, verb_lemma

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


SUBJECT_LABELS = ("nsubj", "nsubjpass", "csubj")
_CLAUSE_LABELS = frozenset({"conj", "xcomp", "ccomp", "advcl"})
_PASSIVE_LABELS = frozenset({"acl", "advcl", "conj", "ROOT", "relcl", "ccomp"})
# The tree of a malformed sentence can be as deep as the sentence is long.
_MAX_DEPTH = 12


def subjects(tree: Tree, verb: int, depth: int = 0) -> list[int]:
    """The subjects of a verb (in a passive: the grammatical ones); empty if the caption names none."""
    if depth > _MAX_DEPTH:
        return []
    for child in tree.dependents(verb, *SUBJECT_LABELS):
        if _is_relative(tree, child):
            return antecedents(tree, verb)
        return coordinated(tree, child) if is_entity(tree, child) else []
    if tree.dependents(verb, "expl"):
        things = tree.dependents(verb, "attr", "dobj")
        return [noun for thing in things if is_entity(tree, thing) for noun in coordinated(tree, thing)]
    return [] if tree.heads[verb] == verb else _subjects_above(tree, verb, depth)


def _subjects_above(tree: Tree, verb: int, depth: int) -> list[int]:
    """The nearest noun above and before the verb, or the subjects of the nearest verb above."""
    for node in tree.ancestors(verb):
        if is_entity(tree, node) and node < verb:
            return modified(tree, node, verb)
        if tree.texts[node] in ("for", "like") and tree.heads[verb] == node:
            return []
        if tree.is_verb(node) or tree.dependents(node, *SUBJECT_LABELS):
            return subjects(tree, node, depth + 1)
    return []


def antecedents(tree: Tree, verb: int) -> list[int]:
    """The nouns that "that", "which" or "who" refers to in the relative clause of a verb."""
    while tree.deps[verb] in _CLAUSE_LABELS and tree.heads[verb] != verb:
        verb = tree.heads[verb]
    head = tree.heads[verb]
    if tree.deps[verb] == "relcl" and is_entity(tree, head):
        return modified(tree, head, verb)
    return []


def modified(tree: Tree, noun: int, modifier: int) -> list[int]:
    """The nouns that a following phrase modifies: all of a coordination, as in "knives and forks on it".

    Only the last noun if an earlier one has its own phrase: "a mat on a floor and a shelf with books".
    """
    root = coordination_root(tree, noun)
    own_phrases = any(root < child < noun for child in tree.dependents(root, "prep", "acl", "relcl"))
    start = noun if own_phrases else root
    return [member for member in coordinated(tree, start) if member < modifier]


def objects(tree: Tree, verb: int) -> list[int]:
    """Direct objects, including the noun that a relative clause modifies."""
    direct: list[int] = []
    for child in tree.dependents(verb, "dobj", "dative"):
        if _is_relative(tree, child):
            direct += antecedents(tree, verb)
        elif is_entity(tree, child):
            direct += coordinated(tree, child)
    if not direct and verb_lemma(tree.texts[verb]) in PERCEPTION:
        seen = [noun for clause in tree.dependents(verb, "ccomp") for noun in tree.dependents(clause, "nsubj")]
        direct = [member for noun in seen if is_entity(tree, noun) for member in coordinated(tree, noun)]
    return direct or relative_object(tree, verb)


def relative_object(tree: Tree, verb: int) -> list[int]:
    """The hat in "the hat the man is wearing"; empty if the clause has its own object or preposition."""
    if tree.deps[verb] != "relcl" or tree.dependents(verb, "prep", "dobj", "auxpass"):
        return []
    own = tree.dependents(verb, "nsubj")
    if not own or _is_relative(tree, own[0]) or not is_entity(tree, tree.heads[verb]):
        return []
    return [content(tree, tree.heads[verb])]


def governor(tree: Tree, preposition: int) -> tuple[list[str], int]:
    """The words of the predicate, and the noun or verb that governs it.

    Adverbs and adjectives in between are skipped ("high up in the sky"). Prepositions and particles before a
    preposition of direction are part of the predicate ("leading up to the house").
    """
    words = [tree.texts[preposition]]
    node = preposition
    while tree.heads[node] != node:
        joined = tree.deps[node] == "conj"
        node = tree.heads[node]
        if is_entity(tree, node) or tree.tags[node].startswith("VB"):
            return words, node
        directional = words[0] in PARTICLE_PREPOSITIONS or tree.tags[node] == "IN"
        if tree.tags[node] in ("IN", "TO", "RP", "RB") and directional and not joined:
            words.insert(0, tree.texts[node])
    return words, node


def is_passive(tree: Tree, verb: int) -> bool:
    if tree.dependents(verb, "auxpass", "nsubjpass"):
        return True
    participle = tree.tags[verb] in ("VBN", "VBD") and tree.deps[verb] in _PASSIVE_LABELS
    return participle and not tree.dependents(verb, "dobj", "aux")


def is_copula(tree: Tree, verb: int) -> bool:
    return tree.texts[verb] in BE


def _is_relative(tree: Tree, index: int) -> bool:
    return tree.tags[index] in ("WDT", "WP") or tree.texts[index] == "that"


_OF_THE_OTHER_SEX = {"he": FEMALE_NAMES, "him": FEMALE_NAMES, "she": MALE_NAMES}


def person_meant(tree: Tree, noun: int, subject: int | None = None) -> int:
    """The noun that a personal pronoun refers to, other than the subject; the token itself if there is none.

    This is the nearest preceding person. A pronoun without one is read as a man, a woman or people.
    """
    pronoun = tree.texts[noun]
    if pronoun not in PRONOUNS:
        return noun
    excluded = _OF_THE_OTHER_SEX.get(pronoun, frozenset())
    for before in range(noun - 1, -1, -1):
        name = singular(tree.texts[before])
        if not tree.is_noun(before) or before == subject or name not in PEOPLE or name in excluded:
            continue
        if pronoun not in ("they", "them") or tree.tags[before].endswith("S") or name == "people":
            return before
    return noun


def referents(tree: Tree, preposition: int, pronoun: int) -> list[int]:
    """The nouns that "it" or "them" refers to after a preposition: the nearest above it, except its own subject."""
    own = _own_subjects(tree, preposition)
    nouns = nouns_above(tree, preposition)
    plural = tree.texts[pronoun] == "them"
    for noun in nouns:
        thing = content(tree, noun)
        if noun not in own and noun < pronoun and (not plural or tree.tags[thing].endswith("S")):
            return [member for member in coordinated(tree, noun) if member < pronoun]
    return []


def owner(tree: Tree, thing: int) -> list[int]:
    """The owner in "his", "her" or "its" before a noun: the first noun that governs it, at most one."""
    return sorted(noun for noun in nouns_above(tree, thing) if noun < thing)[:1]


def nouns_above(tree: Tree, index: int) -> list[int]:
    """The nouns among the ancestors of a token, and the subjects of the verbs among them, nearest first."""
    nouns: dict[int, None] = {}
    for node in tree.ancestors(index):
        if is_entity(tree, node):
            nouns[node] = None
        elif tree.tags[node].startswith("VB"):
            nouns.update(dict.fromkeys(subjects(tree, node)))
    return list(nouns)


def points_back(tree: Tree, index: int) -> bool:
    """Whether a phrase below refers back with a pronoun: "a plate with a knife on it"."""
    below = tree.dependents(index, "prep")
    for verb in tree.dependents(index, "acl", "relcl"):
        below += tree.dependents(verb, "prep")
    things = (child for preposition in below for child in tree.dependents(preposition, "pobj"))
    return any(tree.texts[thing] in ("it", "them") for thing in things)


def _own_subjects(tree: Tree, preposition: int) -> set[int]:
    _, head = governor(tree, preposition)
    if tree.tags[head].startswith("VB"):
        return set(objects(tree, head) or subjects(tree, head))
    return set(modified(tree, head, preposition))
