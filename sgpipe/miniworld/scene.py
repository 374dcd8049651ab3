"""Random scenes: related and single things next to each other, and captions of them.

Each scene has its own random generator, seeded by the run's seed, the split and its number. Groups
are composed so that no relation holds except the intended ones and those they imply. Captions are
true sentences with the facts they state.
"""

import copy
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.random import Generator, SeedSequence

from sgpipe.miniworld.actors import KINDS, Actor, Fact, SceneGroup, random_actor
from sgpipe.miniworld.figures import PersonLook
from sgpipe.miniworld.relations import (
    PREDICATES,
    RULES,
    CompositionRule,
    Statement,
    implied,
    statements_of,
)

SIZES = ((320, 240), (320, 240), (288, 224), (352, 240), (300, 260), (256, 256), (340, 220))
# World units between groups: several times the gap between neighbours, so that nothing is near by
# accident.
GROUP_GAP = 0.7
_MARGIN = 0.14
# pixels per world unit
_SMALLEST = 50.0
_LARGEST = 86.0

# Minimum world units between unrelated things of a group; neighbours are at most 0.12 apart.
APART = 0.3
_THIRD_THING_PROBABILITY = 0.5
_THIRD_THING_ATTEMPTS = 4
Options: TypeAlias = "dict[str, list[Option]]"  # by predicate

# Verbs in their finite forms and passives; other predicates follow "is".
_VERBS = {
    "riding": "rides, ridden by", "holding": "holds, held by", "sitting on": "sits on", "standing on": "stands on",
    "lying on": "lies on", "kicking": "kicks, kicked by", "throwing": "throws, thrown by",
    "chasing": "chases, chased by", "walking": "walks, walked by", "flying": "flies, flown by",
    "looking at": "looks at", "pushing": "pushes, pushed by", "jumping over": "jumps over",
    "petting": "pets, petted by", "flying over": "flies over",
}  # fmt: skip

# The first name is canonical; a name that is listed more often is used more often.
NOUNS: dict[str, tuple[str, ...]] = {
    "man": ("man", "man", "man", "guy", "person"),
    "woman": ("woman", "woman", "woman", "lady", "person"),
    "boy": ("boy", "boy", "child", "kid"),
    "girl": ("girl", "girl", "child", "kid"),
    "dog": ("dog", "dog", "dog", "puppy"),
    "cat": ("cat", "cat", "cat", "kitten"),
    "bicycle": ("bicycle", "bike"),
    "dining table": ("table", "table", "table", "dining table"),
    "cup": ("cup", "cup", "mug"),
    "sports ball": ("ball",),
}
_BALLS = {0: "soccer ball", 2: "beach ball"}
_MAX_CAPTIONS = 5

_PLAIN = "{0} {1.participle} {2}"
_TEMPLATES = [
    _PLAIN,
    _PLAIN,
    _PLAIN,
    "{0} {1.finite} {2}",
    "{0} is {1.participle} {2}",
    f"there is {_PLAIN}",
]


@dataclass(frozen=True)
class PlacedGroup:
    """A group in the image.

    Attributes:
        at: the position of the group's origin in pixels
        scale: pixels per world unit
    """

    group: SceneGroup
    at: tuple[float, float]
    scale: float
    mirrored: bool


@dataclass(frozen=True)
class Scene:
    """Everything about an image except its pixels. Things and facts are numbered across groups."""

    split: str
    number: int
    width: int
    height: int
    horizon: float
    indoors: bool
    background_seed: int
    placed: tuple[PlacedGroup, ...]
    things: tuple[Actor, ...]
    facts: tuple[Fact, ...]

    def statement(self, fact: Fact) -> Statement:
        return self.things[fact.subject].kind, fact.predicate, self.things[fact.object].kind


def scene_generator(seed: int, split: str, number: int, purpose: int = 0) -> Generator:
    """Return the random generator of one scene; each `purpose` has its own."""
    return np.random.default_rng(SeedSequence((seed, zlib.crc32(split.encode()), number, purpose)))


def random_scene(seed: int, split: str, number: int) -> Scene:
    """Return the scene with a given number; its composed relations belong to the split.

    Raises:
        ValueError: there is no such split
    """
    allowed = statements_of(split)
    rng = scene_generator(seed, split, number)
    width, height = SIZES[rng.integers(len(SIZES))]
    groups = [random_group(allowed, rng) for _ in range(1 + rng.choice(3, p=[0.4, 0.45, 0.15]))]
    for _ in range(rng.choice(3, p=[0.45, 0.4, 0.15])):
        groups.append(SceneGroup([_single_actor(groups, rng)]))
    layout = _lay_out(groups, width, height, rng)
    while layout is None:
        groups.pop()
        layout = _lay_out(groups, width, height, rng)
    horizon, placed = layout
    things: list[Actor] = []
    for placed_group in placed:
        things += placed_group.group.actors
    return Scene(
        split=split,
        number=number,
        width=width,
        height=height,
        horizon=horizon,
        indoors=not any(map(_is_outdoors, things)) and bool(rng.random() < 0.45),
        background_seed=int(rng.integers(2**31)),
        placed=placed,
        things=tuple(things),
        facts=_facts(placed),
    )


def _single_actor(groups: list[SceneGroup], rng: Generator) -> Actor:
    """Return an actor without relations.

    It is often of a class that is already present, so that a caption is true of only one of them.
    """
    kinds = [kind for kind in KINDS if kind != "kite"]
    present: list[str] = []
    for group in groups:
        present += [actor.kind for actor in group.actors if actor.kind != "kite"]
    if present and rng.random() < 0.4:
        kinds = present
    actor = random_actor(kinds[rng.integers(len(kinds))], rng)
    if actor.kind in ("dog", "cat"):
        actor.posture = str(rng.choice(["standing", "sitting", "lying"]))
    elif actor.kind in ("person", "horse") and rng.random() < 0.3:
        actor.posture = "walking"
    return actor


def _is_outdoors(thing: Actor) -> bool:
    if thing.kind == "umbrella":
        return thing.posture == "standing"
    return thing.kind in ("car", "kite", "horse")


def _facts(placed: tuple[PlacedGroup, ...]) -> tuple[Fact, ...]:
    first = 0
    facts = dict[tuple[int, str, int], Fact]()
    for placed_group in placed:
        for subject, predicate, object_, is_implied in _group_facts(placed_group.group):
            fact = Fact(first + subject, predicate, first + object_, is_implied)
            facts.setdefault(fact[:3], fact)
        first += len(placed_group.group.actors)
    return tuple(facts.values())


def _group_facts(group: SceneGroup) -> list[Fact]:
    """Return the composed facts of a group, then those that they imply."""
    facts = [*group.bonds]
    for subject, predicate, object_, _ in group.bonds:
        kinds = (group.actors[subject].kind, group.actors[object_].kind)
        for implied_predicate, is_swapped in implied(kinds[0], predicate, kinds[1]):
            ends = (object_, subject) if is_swapped else (subject, object_)
            facts.append(Fact(ends[0], implied_predicate, ends[1], True))
    return facts


def _lay_out(
    groups: list[SceneGroup], width: int, height: int, rng: Generator
) -> tuple[float, tuple[PlacedGroup, ...]] | None:
    """Return the horizon in pixels from the top, and the groups from left to right.

    None: they do not fit.
    """
    extents = [group.extent() for group in groups]
    wide = (
        sum(extent.right - extent.left for extent in extents)
        + GROUP_GAP * (len(groups) - 1)
        + 2 * _MARGIN
    )
    high = max(extent.top for extent in extents) + 2 * _MARGIN
    largest = min(width / wide, height * 0.93 / high, _LARGEST)
    if largest < _SMALLEST and len(groups) > 1:
        return None
    scale = largest * float(rng.uniform(0.86, 1.0)) if largest > _SMALLEST else largest
    horizon = height * float(rng.uniform(0.42, 0.62))
    order = rng.permutation(len(groups))
    spare = width / scale - wide
    gaps = rng.dirichlet(np.ones(len(groups) + 1)) * max(spare, 0.0)
    placed = []
    x = _MARGIN
    for gap, index in zip(gaps, order, strict=False):
        extent = extents[index]
        # Below the horizon, and the whole group in the image.
        lowest = height - 4 + min(extent.bottom, 0.0) * scale
        highest = max(horizon + 0.09 * height, extent.top * scale + 4)
        ground = float(rng.uniform(min(highest, lowest), lowest))
        mirrored = bool(rng.random() < 0.5)
        left = -extent.right if mirrored else extent.left
        x += float(gap)
        placed.append(PlacedGroup(groups[index], ((x - left) * scale, ground), scale, mirrored))
        x += extent.right - extent.left + GROUP_GAP
    return horizon, tuple(placed)


class Option(NamedTuple):
    """A statement that can be composed, and its share among the statements of its predicate."""

    share: float
    rule: CompositionRule
    statement: Statement


def random_group(allowed: frozenset[Statement], rng: Generator) -> SceneGroup:
    """Return two related things, and often a third thing that is related to one of them."""
    group = SceneGroup()
    _, rule, statement = _choose(_options(allowed), rng)
    subject = random_actor(statement[0], rng)
    object_ = random_actor(statement[2], rng)
    first = str(rng.choice(["subject", "object"])) if rule.first == "either" else rule.first
    group.add(subject if first == "subject" else object_)
    relate(group, rule, subject, object_, rng)
    if rng.random() < _THIRD_THING_PROBABILITY:
        return _with_third_thing(group, allowed, rng)
    return group


def _with_third_thing(
    group: SceneGroup, allowed: frozenset[Statement], rng: Generator
) -> SceneGroup:
    """Return the group and a new thing that is related to one of it, or the group if none fits."""
    fitting: Options = {}
    for predicate, options in _options(allowed).items():
        possible = [option for option in options if any(_anchors(group, option))]
        if possible:
            fitting[predicate] = possible
    if not fitting:
        return group
    for _ in range(_THIRD_THING_ATTEMPTS):
        option = _choose(fitting, rng)
        larger = copy.deepcopy(group)
        anchors = list(_anchors(larger, option))
        anchor, is_subject = anchors[rng.integers(len(anchors))]
        if is_subject:
            relate(larger, option.rule, anchor, random_actor(option.statement[2], rng), rng)
        else:
            relate(larger, option.rule, random_actor(option.statement[0], rng), anchor, rng)
        if stays_apart(larger):
            return larger
    return group


def relate(
    group: SceneGroup, rule: CompositionRule, subject: Actor, object_: Actor, rng: Generator
) -> None:
    """Compose a relation of two actors, one of which is in the group, and use up their slots."""
    for actor, takes in ((subject, rule.subject_takes), (object_, rule.object_takes)):
        actor.free -= takes
        if takes >= {"fore", "aft"}:  # the actor leaves the ground or is enclosed
            actor.free -= {"below"}
    rule.compose(group, subject, object_, rng)
    group.bonds.append(Fact(group.add(subject), rule.predicate, group.add(object_)))


def stays_apart(group: SceneGroup) -> bool:
    """Return whether no two unrelated things are near, in front of or above each other."""
    related = {frozenset((bond.subject, bond.object)) for bond in group.bonds}
    for (i, first), (j, second) in combinations(enumerate(group.actors), 2):
        if frozenset((i, j)) not in related and not _is_apart(first, second):
            return False
    return True


def _is_apart(first: Actor, second: Actor) -> bool:
    a = first.extent()
    b = second.extent()
    horizontal_gap = max(a.left, b.left) - min(a.right, b.right)
    vertical_gap = max(a.bottom, b.bottom) - min(a.top, b.top)
    if vertical_gap < 0:
        return bool(horizontal_gap >= APART)
    upper = first if a.bottom > b.bottom else second
    is_overhead = upper.posture in ("flying", "jumping") or upper.kind == "umbrella"
    return bool(horizontal_gap >= 0) if is_overhead else True


def _anchors(group: SceneGroup, option: Option) -> Iterator[tuple[Actor, bool]]:
    """Yield the actors to which a new one can be related, each with whether it is the subject."""
    rule = option.rule
    subject, _, object_ = option.statement
    ends = [
        (True, "subject", subject, rule.subject_takes),
        (False, "object", object_, rule.object_takes),
    ]
    for is_subject, role, kind, takes in ends:
        if rule.first not in ("either", role):
            continue
        for actor in group.actors:
            has_room = rule.first != "either" or not actor.free.isdisjoint(("fore", "aft"))
            if actor.kind == kind and takes <= actor.free and has_room:
                yield actor, is_subject


@cache
def _options(allowed: frozenset[Statement]) -> Options:
    options: Options = {}
    for rule in RULES:
        fitting = [statement for statement in rule.statements if statement in allowed]
        if fitting:
            share = rule.weight / len(fitting)
            new = [Option(share, rule, statement) for statement in fitting]
            options.setdefault(rule.predicate, []).extend(new)
    return options


def _choose(options: Options, rng: Generator) -> Option:
    """Sample a predicate by the largest weight of its rules, then a statement by share."""
    weights = []
    for predicate_options in options.values():
        weights.append(max(option.rule.weight for option in predicate_options))
    predicate_shares = np.array(weights) / np.sum(weights)
    choices = list(options.values())[rng.choice(len(options), p=predicate_shares)]
    shares = np.array([option.share for option in choices])
    return choices[rng.choice(len(choices), p=shares / shares.sum())]


class Wording(NamedTuple):
    """A predicate after a noun ("riding"), as a main verb ("rides"), and in the passive."""

    participle: str
    finite: str
    passive: str | None = None

    @property
    def is_verb(self) -> bool:
        return not self.finite.startswith("is ")


WORDINGS = {name: Wording(name, *_VERBS.get(name, f"is {name}").split(", ")) for name in PREDICATES}


@dataclass(frozen=True)
class SceneCaption:
    """A sentence and the facts it states, in word order."""

    text: str
    facts: tuple[Fact, ...]


def scene_captions(scene: Scene, rng: Generator) -> list[SceneCaption]:
    """Return up to five distinct captions in varied wordings.

    Of composed facts, the first five are stated.
    """
    composed = [fact for fact in scene.facts if not fact.implied]
    implied = [fact for fact in scene.facts if fact.implied]
    captions: dict[str, SceneCaption] = {}
    for number in range(4 * _MAX_CAPTIONS):
        if len(captions) == _MAX_CAPTIONS:
            break
        if number < len(composed):
            fact = composed[number]
        else:
            choices = implied if implied and rng.random() < 0.3 else composed
            fact = choices[rng.integers(len(choices))]
        caption = _phrase_fact(scene, fact, rng)
        captions.setdefault(caption.text, caption)
    return list(captions.values())


def _phrase_fact(scene: Scene, fact: Fact, rng: Generator) -> SceneCaption:
    """Return a caption of a fact, sometimes combined with a second one, in a random wording."""
    wording = WORDINGS[fact.predicate]
    combinable = []
    if rng.random() < 0.3:
        combinable = [other for other in scene.facts if _can_combine(fact, other)]
    if not combinable:
        templates = [*_TEMPLATES, "{2} {1.passive} {0}"] if wording.passive else _TEMPLATES
        template = templates[rng.integers(len(templates))]
        subject, object_ = _pair(scene, fact, rng)
        return SceneCaption(template.format(subject, wording, object_), (fact,))
    other = combinable[rng.integers(len(combinable))]
    second = WORDINGS[other.predicate]
    subject, object_ = _pair(scene, fact, rng)
    first = f"{subject} {wording.participle} {object_}"
    if other.subject == fact.subject:
        third = _noun_phrase(scene.things[other.object], rng)
        joint = "" if fact.predicate == "with" else " and"
        return SceneCaption(f"{first}{joint} {second.participle} {third}", (fact, other))
    subject, object_ = _pair(scene, other, rng)
    return SceneCaption(f"{first} while {subject} {second.finite} {object_}", (fact, other))


def _can_combine(fact: Fact, other: Fact) -> bool:
    """Return whether a sentence can state both facts without ambiguity."""
    if {fact.subject, fact.object} == {other.subject, other.object}:
        return False
    same_subject = other.subject == fact.subject
    if fact.predicate == "with":
        # "a man with a cat on a table" is ambiguous: who is on the table?
        return same_subject and other.predicate in ("next to", "behind", "in front of")
    are_verbs = WORDINGS[fact.predicate].is_verb and WORDINGS[other.predicate].is_verb
    if other.implied or not are_verbs:
        return False
    return same_subject or not {fact.subject, fact.object} & {other.subject, other.object}


def _pair(scene: Scene, fact: Fact, rng: Generator) -> tuple[str, str]:
    """Return subject and object; "another dog" if both have the same name."""
    subject = _noun_phrase(scene.things[fact.subject], rng)
    object_ = _noun_phrase(scene.things[fact.object], rng)
    if subject == object_:
        object_ = f"another {object_.split(' ', 1)[1]}"
    return subject, object_


def _noun_phrase(thing: Actor, rng: Generator) -> str:
    names = names_of(thing)
    phrase = names[rng.integers(len(names))]
    if not isinstance(thing.look, PersonLook) and rng.random() < 0.2:
        phrase = f"{thing.look.colour.name} {phrase}"
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def names_of(thing: Actor) -> tuple[str, ...]:
    """Return the nouns of a thing, the canonical one first."""
    look = thing.look
    if isinstance(look, PersonLook):
        return NOUNS[look.noun]
    if thing.kind == "sports ball" and look.style in _BALLS:
        return ("ball", "ball", _BALLS[look.style])
    return NOUNS.get(thing.kind, (thing.kind,))
