"""The word tables of the grammar: classes of words whose meaning decides a rule, and tables of the tokeniser.

The lists of the rules (lexicon.toml, which says what each is for) are deliberately small: each makes a distinction that
syntax does not show, with its common members in captions. The tokeniser has tables of multi-word expressions, of
alternative spellings, and of stand-ins for words that the parser mistags.
"""

from __future__ import annotations

import tomllib
from pathlib import Path

_TEXTS: dict[str, str] = tomllib.loads(Path(__file__).with_name("lexicon.toml").read_text(encoding="utf-8"))


def _words(name: str) -> frozenset[str]:
    return frozenset(_TEXTS[name].split())


def _pairs(text: str) -> list[tuple[str, str]]:
    return [(key, value) for key, _, value in (pair.partition(": ") for pair in " ".join(text.split()).split(", "))]


def _table(name: str) -> dict[str, str]:
    return dict(_pairs(_TEXTS[name]))


PEOPLE = _words("people")
MALE_NAMES = _words("male_names")
FEMALE_NAMES = _words("female_names")
# Pronouns of one or some of those named before: "two men, one holding a dog".
SOME_OF = frozenset({"one", "another", "others"})
PRONOUNS = {"he": "man", "him": "man", "she": "woman", "they": "people", "them": "people"}
ANIMALS = _words("animals")
CLOTHES = _words("clothes")
BODY_PARTS = _words("body_parts")
SIDED_PARTS = _words("sided_parts")
PLACES = _words("places")
SCENERY = _words("scenery")
CONTAINERS_IN = _words("containers_in")
CONTAINERS_ON = _words("containers_on")
DEPICTIONS = _words("depictions")
DISHES = _words("dishes")
PARTITIVES = _words("partitives")
ATTRIBUTE_NOUNS = _words("attribute_nouns")
WHOLES = _words("wholes")
QUANTIFIERS = _words("quantifiers")
NUMBERS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve"),
)
NAMING_PAIRS = frozenset(_pairs(_TEXTS["naming_pairs"]))
GERUND_MODIFIERS = _words("gerund_modifiers")
GERUND_NOUNS = _words("gerund_nouns")
HAVING_ADJECTIVES = _table("having_adjectives")
COLOURS = _words("colours")
SHADES = frozenset({"bright", "dark", "light", "pale"})
BE = _words("be")
ANIMATE_VERBS = _words("animate_verbs")
PASSIVE_STATES = _words("passive_states")
POSTURE_VERBS = _words("posture_verbs")
POSTURES = _words("postures")
HOLDING_VERBS = _words("holding_verbs")
LOCATIVE_BY = _words("locative_by")
PERCEPTION = _words("perception")
TRANSITIVE_VERBS = _words("transitive_verbs")
EVENT_NOUNS = _words("event_nouns")
NON_THINGS = SCENERY | EVENT_NOUNS | DEPICTIONS | _words("non_things")
STATIC_PREPOSITIONS = _words("static_prepositions")
PARTICLE_PREPOSITIONS = _words("particle_prepositions")
STRANDED_PREPOSITIONS = _words("stranded_prepositions")
QUANTITIES = _words("quantities")
DETERMINERS = _words("determiners")
CANS = _words("cans")
_EXPRESSIONS = _table("expressions")
_EXPRESSIONS |= {
    f"{verb} {bite} {of}": f"{read} = {read}"
    for verb, read in _pairs("take: bite, takes: bites, taking: biting, took: bit")
    for bite in ("a bite", "a big bite", "bites")
    for of in ("of", "from", "out of", "off of")
}
EXPRESSIONS = {
    text: (seen, read or text) for text, (seen, _, read) in ((k, v.partition(" = ")) for k, v in _EXPRESSIONS.items())
}
SPELLINGS = _table("spellings")
STAND_INS = _table("stand_ins")
