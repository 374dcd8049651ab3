"""Captions of a scene: true sentences, each with the facts that it states."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from numpy.random import Generator

from sgpipe.miniworld.actors import Actor
from sgpipe.miniworld.figures import PersonLook
from sgpipe.miniworld.relations import PREDICATES
from sgpipe.miniworld.scene import Fact, Scene


class Wording(NamedTuple):
    """A predicate after a noun ("riding"), as a main verb ("rides"), and in the passive ("ridden by")."""

    participle: str
    finite: str
    passive: str | None = None

    @property
    def is_verb(self) -> bool:
        return not self.finite.startswith("is ")


# Verbs in their finite forms and passives; other predicates follow "is".
_VERBS = {
    "riding": "rides, ridden by", "holding": "holds, held by", "sitting on": "sits on", "standing on": "stands on",
    "lying on": "lies on", "kicking": "kicks, kicked by", "throwing": "throws, thrown by",
    "chasing": "chases, chased by", "walking": "walks, walked by", "flying": "flies, flown by",
    "looking at": "looks at", "pushing": "pushes, pushed by", "jumping over": "jumps over",
    "petting": "pets, petted by", "flying over": "flies over",
}  # fmt: skip
WORDINGS = {name: Wording(name, *_VERBS.get(name, f"is {name}").split(", ")) for name in PREDICATES}

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
_MOST = 5  # captions

_PLAIN = "{0} {1.participle} {2}"
_TEMPLATES = [_PLAIN, _PLAIN, _PLAIN, "{0} {1.finite} {2}", "{0} is {1.participle} {2}", f"there is {_PLAIN}"]


@dataclass(frozen=True)
class SceneCaption:
    """A sentence and the facts it states, in word order."""

    text: str
    facts: tuple[Fact, ...]


def scene_captions(scene: Scene, rng: Generator) -> list[SceneCaption]:
    """Up to five distinct captions in varied wordings; of composed facts, the first five are stated."""
    composed = [fact for fact in scene.facts if not fact.implied]
    implied = [fact for fact in scene.facts if fact.implied]
    captions: dict[str, SceneCaption] = {}
    for number in range(4 * _MOST):
        if len(captions) == _MOST:
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
    if rng.random() < 0.3:
        compound = _compound(scene, fact, rng)
        if compound is not None:
            return compound
    wording = WORDINGS[fact.predicate]
    templates = [*_TEMPLATES, "{2} {1.passive} {0}"] if wording.passive else _TEMPLATES
    template = templates[rng.integers(len(templates))]
    subject, object_ = _pair(scene, fact, rng)
    return SceneCaption(template.format(subject, wording, object_), (fact,))


def _compound(scene: Scene, fact: Fact, rng: Generator) -> SceneCaption | None:
    """Return a sentence of two facts that starts with `fact`; None if no other fact can be combined with it."""
    others = [other for other in scene.facts if _can_combine(fact, other)]
    if not others:
        return None
    other = others[rng.integers(len(others))]
    first, second = WORDINGS[fact.predicate], WORDINGS[other.predicate]
    subject, object_ = _pair(scene, fact, rng)
    if other.subject == fact.subject:
        third = _noun_phrase(scene.things[other.object], rng)
        joint = " " if fact.predicate == "with" else " and "
        return SceneCaption(f"{subject} {first.participle} {object_}{joint}{second.participle} {third}", (fact, other))
    other_subject, other_object = _pair(scene, other, rng)
    return SceneCaption(
        f"{subject} {first.participle} {object_} while {other_subject} {second.finite} {other_object}", (fact, other)
    )


def _can_combine(fact: Fact, other: Fact) -> bool:
    """Return whether a sentence can state both facts without ambiguity."""
    if {fact.subject, fact.object} == {other.subject, other.object}:
        return False
    if fact.predicate == "with":
        # "a man with a cat on a table" is ambiguous: who is on the table?
        return other.subject == fact.subject and other.predicate in ("next to", "behind", "in front of")
    if other.implied or not (WORDINGS[fact.predicate].is_verb and WORDINGS[other.predicate].is_verb):
        return False
    apart = not {fact.subject, fact.object} & {other.subject, other.object}
    return apart or other.subject == fact.subject


def _pair(scene: Scene, fact: Fact, rng: Generator) -> tuple[str, str]:
    """Subject and object; "another dog" if both have the same name."""
    subject, object_ = (_noun_phrase(scene.things[thing], rng) for thing in (fact.subject, fact.object))
    return subject, f"another {object_.split(' ', 1)[1]}" if subject == object_ else object_


def _noun_phrase(thing: Actor, rng: Generator) -> str:
    """Return a name of the thing with its article, sometimes with its colour."""
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
