"""Which stated predicates say which of the layout model's actions: captions say "riding", the model
knows "ride".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sgpipe.utils.lemmas import predicate_lemma

# Lemmas that state an action of V-COCO, besides itself. Left out is what does not imply it: "with"
# and "use" for hold, "on" and "ride" for sit on, "swing at" for hit, "swing" for hit with.
EQUIVALENTS: Mapping[str, Sequence[str]] = {
    "carry": ("carry around", "haul", "lug", "tote"),
    "catch": (),
    "cut": ("carve", "chop", "cut into", "cut through", "cut up", "slice", "slice into"),
    "cut with": ("carve with", "chop with", "slice with"),
    "drink": ("drink from", "drink out of", "sip", "sip from", "sip on"),
    "eat": (
        "bite",
        "bite into",
        "chew",
        "chew on",
        "consume",
        "devour",
        "munch on",
        "take a bite of",
        "take bite of",
    ),
    "eat with": (),
    "hit": ("serve", "strike", "volley"),
    "hit with": ("strike with",),
    "hold": (
        "carry",
        "clutch",
        "grasp",
        "grip",
        "hold on to",
        "hold onto",
        "hold up",
        "swing",
        "wield",
    ),
    "jump on": ("jump", "jump up on", "jump with", "leap on"),
    "kick": ("boot", "kick around"),
    "lie on": (
        "lay in",
        "lay on",
        "lay down in",
        "lay down on",
        "lie in",
        "lie down in",
        "lie down on",
    ),
    "look at": (
        "admire",
        "examine",
        "eye",
        "gaze at",
        "gaze down at",
        "glance at",
        "inspect",
        "look down at",
        "look over",
        "look through",
        "look up at",
        "observe",
        "peer at",
        "read",
        "stare at",
        "stare down at",
        "view",
        "watch",
    ),
    "point at": ("point to",),
    "read": ("read from", "read through"),
    "ride": (
        "drive",
        "race",
        "ride atop",
        "ride in",
        "ride on",
        "ride on back of",
        "ride on top of",
    ),
    "sit on": (
        "perch on",
        "seat in",
        "seat on",
        "sit atop",
        "sit down in",
        "sit down on",
        "sit in",
        "sit on top of",
        "sit upon",
    ),
    "skateboard on": ("ride", "ride on", "skate on", "skateboard"),
    "ski on": ("ride", "ride on", "ski", "ski in", "ski with"),
    "snowboard on": ("ride", "ride on", "snowboard"),
    "surf on": ("ride", "ride on", "ride on top of", "surf", "surf with"),
    "talk on": ("chat on", "converse on", "speak into", "speak on", "talk into"),
    "throw": ("fling", "hurl", "lob", "pitch", "throw up", "toss", "toss up"),
    "work on": ("operate", "type on", "use", "work at", "work with"),
}


def says(lemmas: set[str], action: str) -> bool:
    """Return whether one of the lemmas of predicates is an action, or counts as it."""
    return not lemmas.isdisjoint((action, *EQUIVALENTS.get(action, ())))


def actions_of(predicate: str, actions: Sequence[str]) -> list[int]:
    """Return the positions of the actions that a predicate says, itself among them: "riding" says
    "ride", "ski on".
    """
    lemma = predicate_lemma(predicate)
    return [
        position
        for position, action in enumerate(actions)
        if says({lemma}, predicate_lemma(action))
    ]
