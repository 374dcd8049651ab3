"""What pronouns repeat: "it" and "them" after a preposition, "he" and "she", "his" and "its"."""

from __future__ import annotations

from sgpipe.stages.grammar.clauses import governor, modified, objects, subjects
from sgpipe.stages.grammar.entities import content, coordinated, is_entity, singular
from sgpipe.stages.grammar.lexicon import FEMALE_NAMES, MALE_NAMES, PEOPLE, PRONOUNS
from sgpipe.stages.grammar.tree import Tree

_OF_THE_OTHER_SEX = {"he": FEMALE_NAMES, "him": FEMALE_NAMES, "she": MALE_NAMES}


def person_meant(tree: Tree, noun: int, subject: int | None = None) -> int:
    """The noun a personal pronoun repeats, other than the subject; the token itself if there is none.

    The nearest person named before counts. Without one the pronoun stands for a man, a woman or people.
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
    """The things "it" or "them" repeats after a preposition: the nearest above it but what is said to be there."""
    own = _own_subjects(tree, preposition)
    nouns = nouns_above(tree, preposition)
    plural = tree.texts[pronoun] == "them"
    for noun in nouns:
        thing = content(tree, noun)
        if noun not in own and noun < pronoun and (not plural or tree.tags[thing].endswith("S")):
            return [member for member in coordinated(tree, noun) if member < pronoun]
    return []


def owner(tree: Tree, thing: int) -> list[int]:
    """Whose "his", "her" or "its" before a noun is: the first noun it hangs from; at most one."""
    return sorted(noun for noun in nouns_above(tree, thing) if noun < thing)[:1]


def nouns_above(tree: Tree, index: int) -> list[int]:
    """The nouns, and the subjects of the verbs, that a token hangs from, nearest first."""
    found: dict[int, None] = {}
    for node in tree.ancestors(index):
        if is_entity(tree, node):
            found[node] = None
        elif tree.tags[node].startswith("VB"):
            found.update(dict.fromkeys(subjects(tree, node)))
    return list(found)


def points_back(tree: Tree, index: int) -> bool:
    """Whether a phrase below says by a pronoun where the thing is: "a plate with a knife on it"."""
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
