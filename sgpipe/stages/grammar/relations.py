"""From a dependency tree to relations: which verb or preposition joins which two noun phrases."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

from lemminflect import getInflection, getLemma

from sgpipe.stages.grammar import entities
from sgpipe.stages.grammar.lexicon import (
    BE,
    BODY_PARTS,
    CLOTHES,
    CONTAINERS_IN,
    CONTAINERS_ON,
    COVERING,
    LOCATIVE_BY,
    PARTITIVES,
    PICTURES,
    PLACES,
)
from sgpipe.stages.grammar.tree import Tree


class Relation(NamedTuple):
    """Token indices of subject and object, and the predicate: its words, the first of which may be a verb."""

    subject: int
    predicate: str
    object: int
    lemma: str


@lru_cache(maxsize=65536)
def verb_lemma(verb: str) -> str:
    return getLemma(verb, "VERB", lemmatize_oov=True)[0]


@lru_cache(maxsize=65536)
def gerund(verb: str) -> str:
    found = getInflection(verb_lemma(verb), "VBG")
    return found[0] if found else verb


def relations(tree: Tree) -> list[Relation]:
    return _Finder(tree).run()


class _Finder:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.found: dict[Relation, None] = {}

    def run(self) -> list[Relation]:
        for index in range(len(self.tree)):
            dep = self.tree.deps[index]
            if self.tree.is_verb(index):
                self.verb(index)
            elif dep in ("prep", "agent", "dative") or (self.tree.tags[index] == "IN" and dep != "mark"):
                self.preposition(index)
            elif dep == "poss":
                self.possessive(index)
        return list(self.found)

    def add(self, subjects: list[int], words: list[str], objects: list[int], verb: bool = False) -> None:
        text = " ".join(words)
        lemma = " ".join([verb_lemma(words[0]), *words[1:]]) if verb else text
        for s in subjects:
            for o in objects:
                if s != o:
                    self.found[Relation(s, text, o, lemma)] = None

    # subjects and objects of verbs
    def subjects(self, verb: int, depth: int = 0) -> list[int]:
        t = self.tree
        if depth > 10:
            return []
        for child in t.dependents(verb, "nsubj", "nsubjpass", "csubj"):
            if t.tags[child] in ("WDT", "WP") or t.texts[child] == "that":
                return self.antecedent(verb)
            if entities.is_entity(t, child):
                return entities.coordinated(t, child)
            return []
        if t.dependents(verb, "expl"):
            return [n for a in t.dependents(verb, "attr", "nsubj", "dobj") if entities.is_entity(t, a) for n in entities.coordinated(t, a)]
        head, dep = t.heads[verb], t.deps[verb]
        if head == verb:
            return []
        if dep in ("acl", "relcl") and entities.is_entity(t, head):
            return self.modified(head, verb)
        return self.climb(head, depth, verb)

    def modified(self, noun: int, modifier: int) -> list[int]:
        """The nouns a modifier after a coordination applies to."""
        return entities.coordinated(self.tree, noun) if self.tree.deps[noun] != "conj" else self.whole(noun, modifier)

    def whole(self, noun: int, modifier: int) -> list[int]:
        t = self.tree
        root = noun
        while t.deps[root] == "conj" and entities.is_entity(t, t.heads[root]):
            root = t.heads[root]
        return [n for n in entities.coordinated(t, root) if n < modifier]

    def antecedent(self, verb: int) -> list[int]:
        t = self.tree
        node = verb
        while t.deps[node] in ("conj", "xcomp", "ccomp", "advcl", "aux") and t.heads[node] != node:
            node = t.heads[node]
        head = t.heads[node]
        if t.deps[node] == "relcl" and entities.is_entity(t, head):
            return self.modified(head, node)
        return []

    def climb(self, node: int, depth: int, verb: int) -> list[int]:
        """Who does what is said below `node`: the subject of the verb, or the noun, above it."""
        t = self.tree
        while True:
            if entities.is_entity(t, node) and node < verb:
                return self.modified(node, verb)
            if t.tags[node].startswith("VB"):
                return self.subjects(node, depth + 1)
            if t.heads[node] == node:
                return []
            node = t.heads[node]

    def objects(self, verb: int) -> list[int]:
        t = self.tree
        found: list[int] = []
        for child in t.dependents(verb, "dobj", "dative"):
            if t.tags[child] in ("WDT", "WP") or t.texts[child] == "that":
                found += self.antecedent(verb)
            elif entities.is_entity(t, child):
                found += entities.coordinated(t, child)
        if not found and t.deps[verb] == "relcl" and t.dependents(verb, "nsubj") and not t.dependents(verb, "prep", "dobj"):
            subject = t.dependents(verb, "nsubj")[0]
            if t.tags[subject] not in ("WDT", "WP") and t.texts[subject] != "that":
                found = [entities.content(t, t.heads[verb])]
        return found

    def passive(self, verb: int) -> bool:
        t = self.tree
        return bool(t.dependents(verb, "auxpass", "nsubjpass")) or (
            t.tags[verb] in ("VBN", "VBD") and t.deps[verb] in ("acl", "advcl", "conj", "ROOT", "amod") and not t.dependents(verb, "dobj", "aux")
        )

    def verb(self, verb: int) -> None:
        t = self.tree
        if t.texts[verb] in BE:
            return
        objects = self.objects(verb)
        if not objects:
            return
        subjects = self.subjects(verb)
        objects = [o for o in objects if not self.located_at_subject(o, verb)]
        self.add(subjects, [t.texts[verb], *self.particles(verb)], objects, verb=True)

    def located_at_subject(self, noun: int, verb: int) -> bool:
        """"has a knife on it": the only relation is that of the inner preposition."""
        t = self.tree
        if verb_lemma(t.texts[verb]) != "have":
            return False
        return any(t.texts[k] == "it" for p in t.dependents(noun, "prep") for k in t.dependents(p, "pobj")) or any(
            t.texts[k] == "it" for p in t.dependents(verb, "prep") for k in t.dependents(p, "pobj")
        )

    def particles(self, verb: int) -> list[str]:
        return [self.tree.texts[k] for k in self.tree.dependents(verb, "prt")]

    # prepositions
    def preposition(self, prep: int) -> None:
        t = self.tree
        objects: list[int] = []
        for child in t.dependents(prep, "pobj", "pcomp"):
            if entities.is_entity(t, child) and t.texts[child] not in ("them", "they"):
                objects += entities.coordinated(t, child)
            elif t.texts[child] == "it":
                objects += self.it(prep)
            elif t.texts[child] == "each other":
                return self.each_other(prep)
        if not objects and t.deps[t.heads[prep]] == "relcl" and t.is_verb(t.heads[prep]) and not t.children[prep]:
            verb = t.heads[prep]
            if entities.is_entity(t, t.heads[verb]) and t.dependents(verb, "nsubj", "nsubjpass"):
                objects = [t.heads[verb]]
        if not objects:
            return
        words = [t.texts[prep]]
        node = t.heads[prep]
        while node != t.heads[node] and t.tags[node] in ("IN", "TO", "RB", "RP", "JJ", "CC") and not entities.is_entity(t, node):
            if t.tags[node] in ("IN", "TO", "RP") and t.deps[prep] != "conj":
                words.insert(0, t.texts[node])
            node = t.heads[node]
        if node == prep:
            return
        if t.tags[node].startswith("VB"):
            self.verb_preposition(node, prep, words, objects)
        elif entities.is_entity(t, node):
            self.noun_preposition(node, prep, words, objects)

    def it(self, prep: int) -> list[int]:
        """The thing "it" repeats: the topmost noun before the phrase."""
        t = self.tree
        found = [n for n in t.ancestors(prep) if entities.is_entity(t, n)]
        if len(found) > 1:
            return [entities.content(t, found[-1])]
        verbs = [n for n in t.ancestors(prep) if t.tags[n].startswith("VB")]
        for verb in verbs:
            subjects = self.subjects(verb)
            if subjects:
                return subjects[:1]
        return []

    def each_other(self, prep: int) -> None:
        t = self.tree
        node = t.heads[prep]
        if t.tags[node].startswith("VB"):
            subjects = self.subjects(node)
            words = [t.texts[prep]] if t.texts[node] in BE else [t.texts[node], t.texts[prep]]
        elif entities.is_entity(t, node):
            subjects, words = self.modified(node, prep), [t.texts[prep]]
        else:
            return
        verb = len(words) > 1
        text = " ".join(words)
        lemma = " ".join([verb_lemma(words[0]), *words[1:]]) if verb else text
        if len(subjects) == 1:
            self.found[Relation(subjects[0], text, subjects[0], lemma)] = None
        elif subjects:
            self.found[Relation(subjects[0], text, subjects[1], lemma)] = None

    def verb_preposition(self, verb: int, prep: int, words: list[str], objects: list[int]) -> None:
        t = self.tree
        subjects = self.subjects(verb)
        lemma = verb_lemma(t.texts[verb])
        if t.texts[verb] in BE:
            return self.noun_like(subjects, prep, words, objects)
        if t.texts[prep] == "by" and self.passive(verb) and lemma not in LOCATIVE_BY:
            return self.add(objects, [gerund(t.texts[verb])], subjects, verb=True)
        if lemma == "cover" and t.texts[prep] in ("in", "with") and self.passive(verb):
            return self.add(objects, [gerund(t.texts[verb])], subjects, verb=True)
        if lemma == "surround" and t.texts[prep] in ("with",):
            return self.add(objects, [gerund(t.texts[verb])], subjects, verb=True)
        if lemma == "dress" and t.texts[prep] == "in":
            return self.add(subjects, ["wearing"], objects, verb=True)
        direct = self.objects(verb)
        if direct:
            location = entities.head_noun(t, objects[0])
            if lemma == "have" or location in BODY_PARTS:
                subjects = direct
            elif t.texts[prep] in ("with", "of") and location not in PLACES:
                subjects = subjects
            return self.noun_like(subjects, prep, words, objects)
        if t.texts[prep] == "in" and entities.head_noun(t, objects[0]) in CLOTHES:
            return self.add(subjects, ["wearing"], objects, verb=True)
        self.add(subjects, [t.texts[verb], *self.particles(verb), *words], objects, verb=True)

    def noun_like(self, subjects: list[int], prep: int, words: list[str], objects: list[int]) -> None:
        worn = [o for o in objects if entities.head_noun(self.tree, o) in CLOTHES]
        if words == ["in"] and worn:
            self.add(subjects, ["wearing"], worn, verb=True)
            return
        self.add(subjects, words, objects)

    def noun_preposition(self, noun: int, prep: int, words: list[str], objects: list[int]) -> None:
        t = self.tree
        if words == ["of"]:
            return self.of(noun, objects)
        subjects = self.modified(noun, prep)
        if t.texts[prep] == "with" and any(
            t.texts[k] == "it" for o in objects for p in self.inner(o) for k in t.dependents(p, "pobj")
        ):
            return
        self.noun_like(subjects, prep, words, objects)

    def inner(self, noun: int) -> list[int]:
        t = self.tree
        found = t.dependents(noun, "prep")
        for verb in t.dependents(noun, "acl", "relcl"):
            found += t.dependents(verb, "prep")
        return found

    def of(self, noun: int, objects: list[int]) -> None:
        t = self.tree
        head = entities.head_noun(t, noun)
        if head in PARTITIVES:
            return
        if head in CONTAINERS_IN:
            self.add(objects, ["in"], [noun])
        elif head in CONTAINERS_ON:
            self.add(objects, ["on"], [noun])
        elif head in PICTURES:
            self.add(objects, ["in"], [noun])
        else:
            self.add(objects, ["has"], entities.coordinated(t, noun), verb=True)

    def possessive(self, owner: int) -> None:
        t = self.tree
        thing = t.heads[owner]
        if t.is_noun(owner) and entities.is_entity(t, thing):
            self.add(entities.coordinated(t, owner), ["has"], [thing], verb=True)
