"""What a caption names without stating that it is so: denied, supposed, likened or only depicted.

"A man without a helmet", "a dog not on the sofa", "as if riding a wave", "a statue of a man on a
horse": the tokens of such a phrase are a scope, and a relation that needs one of them is not
stated. All parsers ask `unstated`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.grammar.relations import (
    SUBJECT_LABELS,
    ParsedRelation,
    relations_of,
    subjects,
)
from sgpipe.stages.parse.grammar.things import coordinated, is_a, of_kind, singular
from sgpipe.stages.parse.grammar.tree import Tree
from sgpipe.utils.lemmas import verb_lemma

_SUBJECTS = (*SUBJECT_LABELS, "expl")
_MODIFIERS = ("compound", "nmod", "amod", "npadvmod", "poss")
_ANIMATE = lexicon.PEOPLE | lexicon.ANIMALS
# "instead of"
_MEANING_WITHOUT = {text for text, (word, _) in lexicon.EXPRESSIONS.items() if word == "without"}
_SIGN_REACH = 6  # tokens after "no" or "not" in which "sign" makes it a name: "a do not enter sign"


@dataclass(slots=True)
class Unstated:
    """The tokens of a caption that state nothing.

    tokens: those in a scope.
    definite: things that a denied phrase takes for granted, "the bench" in "nobody sits on the
    bench under the tree".
    shown: a depiction and what it shows, whose relation to each other is stated: "a screen showing
    a man".
    adjectives: participles that are not verbs: "sliced bread".
    """

    tokens: set[int] = field(default_factory=set)
    definite: set[int] = field(default_factory=set)
    shown: set[tuple[int, int]] = field(default_factory=set)
    adjectives: set[int] = field(default_factory=set)

    def deny(self, tree: Tree, head: int, trigger: int) -> None:
        """Add the tokens of a phrase that its denial, or supposition, leaves unstated; `trigger`:
        the denying word.
        """
        pending = [head]
        while pending:
            node = pending.pop()
            self.tokens.add(node)
            for child in tree.children[node]:
                if child == trigger:
                    continue
                if not _is_stated_anyway(tree, child, trigger):
                    pending.append(child)
                elif _is_definite(tree, child):
                    self.definite.add(child)

    def show(self, tree: Tree, depictions: Iterable[int], things: Iterable[int]) -> None:
        """State the relations of depictions with the things that they show."""
        for depiction in depictions:
            for thing in things:
                self.shown.update((depiction, noun) for noun in coordinated(tree, thing))

    def covers(self, tree: Tree, subject: int, thing: int, word: int | None) -> bool:
        """Return whether a relation is not stated; `word`: the token of its verb or preposition, if
        it has one.
        """
        if not (self.tokens or self.adjectives):
            return False
        if word in self.adjectives:
            return True
        if (subject, thing) in self.shown or (thing, subject) in self.shown:
            return False
        linking = _linking(tree, subject, thing, word)
        if {subject, thing} <= self.definite and _is_place(tree, linking):
            return False
        return not self.tokens.isdisjoint((subject, thing, *linking))


def _linking(tree: Tree, subject: int, thing: int, word: int | None) -> list[int]:
    """Return the tokens that relate two things: a predicate's, and those up to the first verb above
    them.
    """
    linking = [] if word is None else [word]
    linking += _up_to_verb(tree, thing, subject)
    if thing in tree.ancestors(subject):  # "the bench a man is not sitting on"
        linking += _up_to_verb(tree, subject, thing)
    return linking


def _up_to_verb(tree: Tree, start: int, end: int) -> list[int]:
    """Return the tokens above `start`, below `end`, and up to the first verb; not what `start` is
    coordinated with.
    """
    tokens = []
    below = start
    for node in tree.ancestors(start):
        if node == end:
            break
        if tree.deps[below] != "conj":
            tokens.append(node)
        if tree.is_verb(node):
            break
        below = node
    return tokens


def _is_place(tree: Tree, linking: list[int]) -> bool:
    """Return whether two things are related by a place that no verb gives them: not "puts the ball
    in the box".
    """
    if lexicon.STATIC_PREPOSITIONS.isdisjoint(tree.words(linking)):
        return False
    verbs = [verb_lemma(tree.texts[word]) for word in linking if tree.is_verb(word)]
    return lexicon.HOLDING_VERBS.isdisjoint(verbs)


def unstated(tree: Tree) -> Unstated:
    """Return what a repaired tree does not state."""
    hidden = Unstated()
    for index, text in enumerate(tree.texts):
        rule = _RULES.get(text)
        if rule is not None:
            rule(tree, index, hidden)
    return hidden


def stated_relations(tree: Tree, hidden: Unstated) -> list[ParsedRelation]:
    """Return the distinct relations of a repaired tree, but for those that it does not state."""
    stated: dict[ParsedRelation, None] = {}
    for index in range(len(tree)):
        for relation in relations_of(tree, index):
            if not hidden.covers(tree, relation.subject, relation.object, index):
                stated[relation] = None
    return list(stated)


# Negation.


def _negator(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "not on a sofa", "no dog", "neither sitting nor standing": what follows is denied."""
    following = index + 1
    if (
        following == len(tree)
        or tree.texts[following] in lexicon.NEGATION_ENDS
        or _names_a_sign(tree, index)
    ):
        return
    head = _top(tree, index, following)
    if verb_lemma(tree.texts[head]) not in lexicon.UNSTOPPABLE and not _is_excepted(tree, head):
        hidden.deny(tree, head, index)


def _nobody(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "nobody is on the bench", "none of the zebras": what it is the subject of is denied."""
    if not _is_excepted(tree, index):
        hidden.tokens.add(index)
        hidden.deny(tree, _top(tree, index, index), index)


def _absence(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "without a hat", "instead of riding it", "missing a wheel", "with a slice missing"."""
    hidden.tokens.add(index)
    things = tree.dependents(index, "dobj")
    if not tree.is_verb(index) and tree.deps[index] not in ("amod", "acl"):
        hidden.tokens |= _all_below(tree, [index, _following(tree, index)])
    elif things:
        hidden.tokens |= _all_below(tree, things)
    elif tree.is_noun(tree.heads[index]):
        hidden.tokens.add(tree.heads[index])


def _names_a_sign(tree: Tree, index: int) -> bool:
    for following in range(index + 1, min(index + 1 + _SIGN_REACH, len(tree))):
        if tree.tags[following] in ("DT", "IN", "PRP$"):
            return False
        if following > index + 1 and is_a(tree, following, lexicon.SIGNS):
            return True
    return False


def _is_excepted(tree: Tree, head: int) -> bool:
    """Return whether an exception follows: "nothing but water"."""
    return head + 1 < len(tree) and tree.texts[head + 1] in lexicon.EXCEPTIONS


# Hypotheses.


def _modal(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "a bird that might land on it", but not "can be seen"."""
    verb = tree.heads[index]
    if tree.tags[index] != "MD" or not tree.is_verb(verb):
        return
    if verb_lemma(tree.texts[verb]) not in lexicon.UNSTOPPABLE | lexicon.SEEING:
        hidden.deny(tree, verb, index)


def _wish(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "trying to catch", "pretending to bite", "wants her dog to jump"."""
    verbs = []
    for verb in tree.dependents(index, "xcomp", "ccomp"):
        if "to" in tree.words(tree.dependents(verb, "aux")):
            verbs.append(verb)
    if index + 2 < len(tree) and tree.texts[index + 1] == "to":
        verbs.append(_top(tree, index + 1, index + 2))
    for verb in verbs:
        if tree.tags[verb].startswith("VB"):
            hidden.deny(tree, verb, index)


def _condition(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "as if riding a wave", "if the gate were open", "before eating it"."""
    supposed = index > 0 and tree.texts[index - 1] == "as"
    if tree.texts[index] == "though" and not supposed:
        return
    verbs = tree.dependents(index, "pcomp")
    if tree.deps[index] == "mark":
        verbs.append(tree.heads[index])
    elif supposed:
        verbs.append(_following(tree, index))
    for verb in verbs:
        hidden.deny(tree, verb, index)


def _likeness(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "looks like a bear", "like it is driving"; not the toy in "a donut like toy", nor "animals
    like zebras".
    """
    thing = tree.heads[index]
    if tree.deps[index] == "mark":
        hidden.deny(tree, thing, index)
    elif tree.tags[index] != "IN":
        return
    elif _is_donut_like(tree, index):
        hidden.tokens |= {thing, index}
    elif tree.tags[thing] != "NNS":
        hidden.tokens |= _all_below(tree, [index, _following(tree, index)])


def _is_donut_like(tree: Tree, index: int) -> bool:
    """Return whether "like" makes an adjective of the noun before it: "a donut like toy"."""
    noun = tree.heads[index]
    compared = tree.dependents(index, "pobj")
    follows_noun = noun == index - 1 and tree.is_noun(noun)
    return follows_noun and bool(compared) and not _has_article(tree, compared[0])


def _guise(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "dressed as a pirate", "resembling a boat"."""
    things = [child for child in tree.dependents(index, "prep") if tree.texts[child] == "as"]
    if tree.texts[index] not in ("dressed", "disguised"):
        things += tree.dependents(index, "dobj")
    hidden.tokens |= _all_below(tree, things)


# Depictions.


def _depiction(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "a poster of a man holding a guitar": what is shown has no relations but to the poster."""
    following = index + 1
    if following == len(tree) or tree.texts[following] != "of":
        return
    if not tree.is_noun(index) or is_the_image(tree, index):
        return
    things = tree.dependents(following, "pobj")
    if of_kind(tree, things, _ANIMATE):  # "a statue of a boy and a girl"
        things += of_kind(tree, tree.dependents(index, "conj"), _ANIMATE)
    hidden.tokens |= _all_below(tree, things)
    if singular(tree.texts[index]) in lexicon.DEPICTIONS | {"reflection"}:
        hidden.show(tree, [index], things)


def _showing(tree: Tree, verb: int, hidden: Unstated) -> None:
    """ "a television showing a man who eats": what is shown has no relations but to the
    television.
    """
    if not tree.is_verb(verb):
        return
    nouns = (*subjects(tree, verb), *tree.ancestors(verb))
    screens = of_kind(tree, nouns, lexicon.SCREENS)
    if not screens or any(is_the_image(tree, screen) for screen in screens):
        return
    things = [*tree.dependents(verb, "dobj"), *tree.below(verb, "ccomp", "nsubj")]
    hidden.tokens |= _all_below(tree, [*things, *tree.dependents(verb, "ccomp")])
    hidden.show(tree, screens, things)


def _print(tree: Tree, pronoun: int, hidden: Unstated) -> None:
    """ "a shirt with a bird on it": the bird is printed on the shirt."""
    preposition = tree.heads[pronoun]
    printed = tree.heads[preposition]
    holder = tree.heads[printed] - 1
    if tree.texts[preposition] != "on" or holder < 0 or tree.texts[holder + 1] != "with":
        return
    is_cloth = is_a(tree, holder, lexicon.CLOTHES | lexicon.PRINTED)
    if is_cloth and is_a(tree, printed, _ANIMATE):
        hidden.tokens |= _all_below(tree, [printed])


def is_the_image(tree: Tree, noun: int) -> bool:
    """Return whether a depiction is the image itself: "a photo of a man on a horse", "takes a
    picture of a dog".
    """
    verb = tree.heads[noun]
    if tree.deps[noun] == "dobj" and verb_lemma(tree.texts[verb]) in lexicon.PHOTOGRAPHING:
        return True
    if any(tree.deps[before] not in _MODIFIERS for before in tree.nouns_before(noun)):
        return False
    return is_a(tree, noun, lexicon.IMAGES) and not _hangs(tree, noun)


def _hangs(tree: Tree, depiction: int) -> bool:
    """Return whether a depiction is a thing in the image: "a framed picture", "a picture of a dog
    on the wall".
    """
    words = [tree.heads[depiction], *tree.dependents(depiction, "amod", "acl", "relcl")]
    if any(verb_lemma(tree.texts[word]) in lexicon.HANGING for word in words):
        return True
    return any(_is_on_hanger(tree, word) for word in (depiction, *words))


def _is_on_hanger(tree: Tree, index: int) -> bool:
    hangers = of_kind(tree, tree.below(index, "prep", "pobj"), lexicon.HANGERS)
    return "on" in tree.words(tree.heads[hanger] for hanger in hangers)


# Adjectives.


def _adjective(tree: Tree, index: int, hidden: Unstated) -> None:
    """ "sliced bread" beside "sliced the bread": a participle right before a noun without an
    article.
    """
    things = tree.dependents(index, "dobj")
    if not things or tree.dependents(index, *_SUBJECTS):
        return
    thing = things[0]
    first_word = min([thing, *tree.children[thing]])
    if index < first_word and not tree.dependents(thing, "det", "poss"):
        hidden.adjectives.add(index)


# Scopes.


def _top(tree: Tree, trigger: int, start: int) -> int:
    """Return the head of the phrase that starts at a token, among the tokens after `trigger`."""
    node = start
    while trigger < tree.heads[node] != node:
        if node == tree.heads[trigger] and (tree.is_noun(node) or tree.is_verb(node)):
            break  # "isn't playing, he eats"
        attributive = tree.deps[node] in ("amod", "nummod")
        if attributive and any(child < trigger for child in tree.children[tree.heads[node]]):
            break  # "a not very large dog" is a dog
        node = tree.heads[node]
    return node


def _following(tree: Tree, preposition: int) -> int:
    """Return the noun or verb after a preposition, whatever it is parsed as."""
    node = min(preposition + 1, len(tree) - 1)
    while preposition < tree.heads[node] != node:
        if tree.is_verb(node) or (tree.is_noun(node) and tree.deps[node] not in _MODIFIERS):
            break
        node = tree.heads[node]
    return node


def _is_stated_anyway(tree: Tree, child: int, trigger: int) -> bool:
    """Return whether a part of a denied phrase is not denied: its subject, "the bench", "while …",
    "but …".
    """
    label = tree.deps[child]
    if label in _SUBJECTS:
        return child < trigger
    if label == "conj":
        return _starts_anew(tree, child)
    return label == "advcl" or tree.texts[child] == "because" or _is_definite(tree, child)


def _is_definite(tree: Tree, noun: int) -> bool:
    words = tree.words(tree.children[noun])
    return tree.is_noun(noun) and not lexicon.DEFINITE.isdisjoint(words)


def _starts_anew(tree: Tree, conjunct: int) -> bool:
    """Return whether a conjunct is not in the scope of its head: "no hat but shoes", "not sitting
    and eating".
    """
    head = tree.heads[conjunct]
    joining = [word for word in range(head + 1, conjunct) if tree.deps[word] == "cc"]
    word = tree.texts[joining[-1]] if joining else ","
    if word in ("or", "nor"):
        return False
    if word == "but" or not tree.is_noun(conjunct):
        return True
    return _has_article(tree, conjunct) and not _has_article(tree, head)


def _has_article(tree: Tree, noun: int) -> bool:
    determiners = tree.words(tree.dependents(noun, "det", "poss", "nummod"))
    return not lexicon.NEGATORS.issuperset(determiners)


def _all_below(tree: Tree, heads: Iterable[int]) -> set[int]:
    tokens = set()
    pending = list(heads)
    while pending:
        node = pending.pop()
        tokens.add(node)
        pending += tree.children[node]
    return tokens


_Rule = Callable[[Tree, int, Unstated], None]
_RULES: dict[str, _Rule] = {
    word: rule
    for words, rule in (
        (lexicon.NEGATORS, _negator),
        (lexicon.NOBODIES, _nobody),
        (lexicon.ABSENCE | _MEANING_WITHOUT, _absence),
        (lexicon.MODALS, _modal),
        (lexicon.WISHES, _wish),
        (lexicon.CONDITIONS, _condition),
        (frozenset({"like"}), _likeness),
        (lexicon.GUISES, _guise),
        (lexicon.DEPICTION_WORDS, _depiction),
        (lexicon.SHOWING, _showing),
        (frozenset({"it"}), _print),
        (lexicon.STATES, _adjective),
    )
    for word in words
}
