"""Extract relations from a repaired dependency tree: the verb or preposition that connects two noun phrases."""

from __future__ import annotations

from typing import NamedTuple

from sgpipe.stages.parse.grammar.clauses import (
    coordinated,
    governor,
    head_noun,
    is_copula,
    is_entity,
    is_passive,
    modified,
    objects,
    person_meant,
    phrase,
    points_back,
    referents,
    subjects,
)
from sgpipe.stages.parse.grammar.clauses import owner as owner_of
from sgpipe.stages.parse.grammar.lexicon import (
    BODY_PARTS,
    CLOTHES,
    CONTAINERS_IN,
    CONTAINERS_ON,
    DEPICTIONS,
    DISHES,
    EVENT_NOUNS,
    HAVING_ADJECTIVES,
    HOLDING_VERBS,
    LOCATIVE_BY,
    PARTITIVES,
    PLACES,
    POSTURE_VERBS,
    STATIC_PREPOSITIONS,
)
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import gerund, verb_lemma


class ParsedRelation(NamedTuple):
    """Token indices of subject and object, the predicate as written in the caption, and its lemma."""

    subject: int
    predicate: str
    object: int
    lemma: str


def relations(tree: Tree) -> list[ParsedRelation]:
    """All distinct relations of a repaired tree, in the order of the words that state them."""
    finder = _Finder(tree)
    for index in range(len(tree)):
        word, dep = tree.texts[index], tree.deps[index]
        if tree.is_verb(index):
            finder.verb(index)
        elif dep in ("prep", "agent", "dative") or (tree.tags[index] == "IN" and dep != "mark"):
            finder.preposition(index)
        elif dep == "poss":
            finder.possessive(index)
        if word == "covered":
            finder.covered(index)
        elif word.rsplit("-", 1)[-1] in HAVING_ADJECTIVES:
            finder.having_adjective(index)
    return list(finder.relations)


class _Finder:
    """Collects relations in a dictionary, which keeps their order and drops repetitions."""

    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.relations: dict[ParsedRelation, None] = {}

    def state(self, subjects: list[int], words: list[str], objects: list[int]) -> None:
        """Add relations whose predicate has no verb."""
        self._add(subjects, " ".join(words), objects, " ".join(words))

    def state_verb(self, subjects: list[int], words: list[str], objects: list[int]) -> None:
        """Add relations whose predicate starts with a verb."""
        self._add(subjects, " ".join(words), objects, " ".join([verb_lemma(words[0]), *words[1:]]))

    def _add(self, subjects: list[int], predicate: str, objects: list[int], lemma: str) -> None:
        tree = self.tree
        for subject in [person_meant(tree, noun) for noun in subjects]:
            for thing in [person_meant(tree, noun, subject) for noun in objects]:
                if subject != thing:
                    self.relations[ParsedRelation(subject, predicate, thing, lemma)] = None

    def verb(self, verb: int) -> None:
        """Relations of a transitive verb."""
        tree = self.tree
        if is_copula(tree, verb):
            return
        things = objects(tree, verb)
        lemma = verb_lemma(tree.texts[verb])
        if lemma in ("do", "perform"):
            things = [thing for thing in things if head_noun(tree, thing) not in EVENT_NOUNS]
        if lemma == "have" and (points_back(tree, verb) or any(points_back(tree, t) for t in things)):
            return
        particles = _particles(tree, verb)
        if things:
            self.state_verb(subjects(tree, verb), [tree.texts[verb], *particles], things)
        elif any(tree.texts[child] == "each other" for child in tree.dependents(verb, "dobj")):
            self._reciprocal(subjects(tree, verb), [tree.texts[verb]], verb=True)

    def preposition(self, preposition: int) -> None:
        """Relations of a preposition with the noun, verb, adjective or preposition that governs it."""
        tree = self.tree
        words, head = governor(tree, preposition)
        if head == preposition:
            return
        if any(tree.texts[child] == "each other" for child in tree.dependents(preposition, "pobj")):
            self._each_other(head, words)
            return
        things = self._prepositional_objects(preposition, head)
        if not things:
            return
        if tree.tags[head].startswith("VB"):
            self._after_verb(head, preposition, words, things)
        elif is_entity(tree, head):
            self._after_noun(head, preposition, words, things)
        elif tree.dependents(head, "nsubj"):
            self._place(subjects(tree, head), words, things)

    def _prepositional_objects(self, preposition: int, head: int) -> list[int]:
        tree = self.tree
        things: list[int] = []
        for child in tree.dependents(preposition, "pobj", "pcomp"):
            if tree.texts[child] in ("it", "them"):
                things += referents(tree, preposition, child)
            elif is_entity(tree, child):
                things += coordinated(tree, child)
        stranded = not tree.children[preposition] and tree.deps[head] == "relcl"
        if not things and stranded and is_entity(tree, tree.heads[head]):
            things = [tree.heads[head]]
        return things

    def _each_other(self, head: int, words: list[str]) -> None:
        tree = self.tree
        if is_entity(tree, head):
            self._reciprocal(modified(tree, head, len(tree)), words, verb=False)
        elif tree.tags[head].startswith("VB"):
            copula = is_copula(tree, head)
            stated = words if copula else [tree.texts[head], *words]
            self._reciprocal(subjects(tree, head), stated, verb=not copula)

    def _reciprocal(self, nouns: list[int], words: list[str], verb: bool) -> None:
        """Relate two nouns to each other, or a plural to itself ("two dogs next to each other")."""
        text = " ".join(words)
        lemma = " ".join([verb_lemma(words[0]), *words[1:]]) if verb else text
        if nouns:
            self.relations[ParsedRelation(nouns[0], text, nouns[1] if len(nouns) > 1 else nouns[0], lemma)] = None

    def _after_verb(self, verb: int, preposition: int, words: list[str], things: list[int]) -> None:
        tree = self.tree
        doers = subjects(tree, verb)
        direct = objects(tree, verb)
        if is_copula(tree, verb):
            self._place(doers, words, things)
        elif is_passive(tree, verb) and not direct and self._passive(verb, words, doers, things):
            return
        elif direct and words == ["at"] and head_noun(tree, things[0]) not in PLACES:
            self.state_verb(doers, [tree.texts[verb], "at"], things)
        elif direct:
            self._place(self._located(verb, words, doers, direct, things), words, things)
        elif words == ["in"] and head_noun(tree, things[0]) in CLOTHES:
            self.state_verb(doers, ["wearing"], things)
        else:
            particles = _particles(tree, verb)
            if words[0] in STATIC_PREPOSITIONS and verb_lemma(tree.texts[verb]) in POSTURE_VERBS:
                particles = []
            self.state_verb(doers, [tree.texts[verb], *particles, *words], things)

    def _passive(self, verb: int, words: list[str], undergoers: list[int], things: list[int]) -> bool:
        """State a passive clause as active if it names an agent: "ridden by a man" is "man riding".

        Returns whether a relation was stated.
        """
        lemma = verb_lemma(self.tree.texts[verb])
        agent = words == ["by"] and lemma not in LOCATIVE_BY
        material = words[0] in ("in", "with") and len(words) == 1 and lemma in ("cover", "surround")
        if agent or material:
            self.state_verb(things, [gerund(self.tree.texts[verb])], undergoers)
            return True
        if lemma == "dress" and words == ["in"]:
            self.state_verb(undergoers, ["wearing"], things)
            return True
        return False

    def _located(
        self, verb: int, words: list[str], doers: list[int], direct: list[int], things: list[int]
    ) -> list[int]:
        """In "a man VERB a thing PREPOSITION a place": whether the man or the thing is at the place.

        Someone who plays or rides is at the place. Something held, worn or put is at the place, unless the place is
        one of `PLACES`.
        """
        place = head_noun(self.tree, things[0])
        if not doers or place in BODY_PARTS or things[0] in doers:
            return direct
        lemma = verb_lemma(self.tree.texts[verb])
        if lemma == "wear" and words == ["with"]:
            return direct
        if place in PLACES or words in (["at"], ["with"]):
            return doers
        if words in (["under"], ["over"], ["around"], ["to"], ["into"], ["onto"], ["behind"]):
            return direct
        return direct if lemma in HOLDING_VERBS else doers

    def _after_noun(self, noun: int, preposition: int, words: list[str], things: list[int]) -> None:
        tree = self.tree
        if words == ["of"]:
            self._of(noun, things)
            return
        if words == ["with"] and any(points_back(tree, thing) for thing in things):
            return
        located = modified(tree, noun, preposition)
        if tree.deps[noun] == "dobj" and tree.is_verb(tree.heads[noun]) and words != ["with"]:
            verb = tree.heads[noun]
            doers = subjects(tree, verb)
            if verb_lemma(tree.texts[verb]) not in ("have", "wear"):
                located = self._located(verb, words, doers, located, things)
        self._place(located, words, things)

    def _place(self, located: list[int], words: list[str], things: list[int]) -> None:
        """Relate things to a place without a verb; "in" clothes is "wearing" them."""
        if words == ["in"] and head_noun(self.tree, things[0]) in CLOTHES:
            self.state_verb(located, ["wearing"], things)
        else:
            self.state(located, words, things)

    def _of(self, noun: int, things: list[int]) -> None:
        """ "of" after a container or a depiction names its contents, otherwise the owner of the noun."""
        head = head_noun(self.tree, noun)
        if head in PARTITIVES:
            return
        named = " " in phrase(self.tree, noun)
        if head in CONTAINERS_ON and not named:
            self.state(things, ["on"], [noun])
        elif head in CONTAINERS_IN or head in DEPICTIONS:
            self.state(things, ["in"], [noun])
        elif head in DISHES:
            self.state_verb([noun], ["has"], things)
        else:
            self.state_verb(things, ["has"], coordinated(self.tree, noun))

    def possessive(self, owner: int) -> None:
        """ "the man's hat"; "his head" only after a preposition."""
        tree = self.tree
        thing = tree.heads[owner]
        if not is_entity(tree, thing):
            return
        if tree.is_noun(owner):
            self.state_verb(coordinated(tree, owner), ["has"], [thing])
        elif tree.tags[owner] == "PRP$" and head_noun(tree, thing) in BODY_PARTS and tree.deps[thing] == "pobj":
            self.state_verb(owner_of(tree, thing), ["has"], [thing])

    def having_adjective(self, adjective: int) -> None:
        """ "a black haired boy" has hair."""
        noun = self.tree.heads[adjective]
        if is_entity(self.tree, noun) and noun > adjective:
            self.state_verb([noun], ["has"], [adjective])

    def covered(self, participle: int) -> None:
        """ "snow covered hills"."""
        tree = self.tree
        cover, noun = participle - 1, tree.heads[participle]
        modifier = tree.deps[participle] in ("amod", "compound", "nmod") and noun > participle
        if modifier and cover >= 0 and tree.is_noun(cover) and tree.is_noun(noun):
            self.state_verb([cover], ["covering"], [noun])


def _particles(tree: Tree, verb: int) -> list[str]:
    return [tree.texts[child] for child in tree.dependents(verb, "prt")]
