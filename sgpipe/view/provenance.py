"""Why a relation is there: its confidence among its pair's candidates, the triplets that state it, and their words.

Shards keep captions, triplets and candidate pairs; which triplet led to which relation follows from the rules of the
pair stage. Where a triplet's words stand in its caption is not stored; `mark_words` finds them again.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from sgpipe.records import Record, Relation, Triplet
from sgpipe.stages.pair import normalise_predicate, split_words, told_triplets
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

Values: TypeAlias = dict[str, Any]
Match: TypeAlias = Literal["none", "same name", "other form", "head noun", "synonym", "substring"]

_WRONG_SIDE = 40  # characters of distance that a subject after its predicate counts as


@dataclass(frozen=True)
class PairSettings:
    """What decides where a run's candidates come from; None where the run does not say.

    Settings of the pair stage; the `threshold` that the tagger's relations are above, if nothing removed relations
    since; and the format of `imported` files.
    """

    candidates: str | None = None
    match: str | None = None
    restrict: str | None = None
    threshold: float | None = None
    imported: str | None = None
    known: int | None = None
    loose: bool = False

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> PairSettings:
        """By the header of a run's manifest. A run made from others has the settings of the last that says."""
        found = cls()
        for identity in Manifest.identities(run):
            pair, tag = (_settings(identity, name) for name in ("pair", "tag"))
            if pair or tag:
                kept = None if tag.get("calibration") else tag.get("threshold")  # with one, it is a probability
                settings: dict[str, Any] = {
                    name: pair.get(name) for name in ("candidates", "match", "restrict", "known")
                }
                found = cls(**settings, threshold=kept, loose=pair.get("loose") is True)
            elif isinstance(identity, Mapping) and "import" in identity:
                found = cls(imported=str(identity["import"]))
            elif isinstance(identity, Mapping) and "scored" not in identity:
                found = replace(found, threshold=None)
        return found


def _settings(identity: Any, name: str) -> Mapping[str, Any]:
    """The settings of a stage; none where others have changed the header, as in a dataset from the hub."""
    part = identity.get(name) if isinstance(identity, Mapping) else None
    return part if isinstance(part, Mapping) else {}


class Provenance:
    """Where the relations of one image come from, as plain values.

    Attributes:
        settings: of the run.
        statements: one for each triplet of the record as its caption states it, and for what captions imply: the number
            of the `caption`, `subject` and `object` (the phrase, its head noun, and how it met the class of a box),
            `predicate` and its lemma, and `marks`, which are missing where the words are not found.
        candidates: the predicates of each pair that has candidates or relations, by descending confidence, then as in
            the shard: `confidence` (None: unknown), `rank` by it, whether it is a `relation` of the run, and whether it
            is the pair's `own` candidate, and not what an annotation or another pair brought in.
    """

    def __init__(self, record: Record, run: Mapping[str, Any]) -> None:
        """run: the header of the run's manifest."""
        self.settings = PairSettings.of(run)
        substring = self.settings.match == "substring"
        triplets = told_triplets(record, self.settings.match, self.settings.loose)
        self.statements = [_statement(triplet, record, substring) for triplet in triplets]
        self.candidates = _candidates(record)
        self._categories = [box.category for box in record.objects]
        self._captions = len(record.captions)
        self._stated: dict[str, list[int]] = defaultdict(list)  # the numbers of statements, by predicate
        for number, triplet in enumerate(triplets):
            self._stated[triplet.predicate if substring else normalise_predicate(triplet.predicate)].append(number)

    def stating(self, relation: Relation) -> tuple[list[int], list[int]]:
        """The statements with the relation's predicate: those about its two classes, and those about others."""
        classes = [self._categories[index] for index in (relation.subject, relation.object)]
        found: tuple[list[int], list[int]] = ([], [])
        for number in self._stated.get(relation.predicate, ()):
            own = [self.statements[number][end]["category"] for end in ("subject", "object")] == classes
            found[not own].append(number)
        return found

    def explain(self, relation: Relation) -> str:
        """One sentence: why the pair has this predicate."""
        if relation.origin == "person":
            return "It was confirmed, changed or added by a person (sgpipe correct)."
        if relation.confidence is None:
            return "It is annotated: it has no confidence."
        own, others = self.stating(relation)
        candidates = self.candidates[relation.subject, relation.object]
        is_candidate = any(found["own"] and found["predicate"] == relation.predicate for found in candidates)
        if is_candidate and self.settings.candidates == "prior":
            return "The prior dataset relates these two classes like this (pair.candidates: prior)."
        if is_candidate and self.settings.candidates in ("marks", *([] if own else ["captions+marks"])):
            return f"A vision-language model states it of these boxes (pair.candidates: {self.settings.candidates})."
        if own:
            return f"{self._captions_of(own)} it of these two classes."
        if is_candidate and others and self.settings.candidates in (None, "image"):
            said = self._captions_of(others)
            return f"{said} it of other things, and every pair may carry it (pair.candidates: image)."
        if not is_candidate and self.settings.restrict == "group":
            return "It is a candidate of another pair, and was scored for the whole group (pair.restrict: group)."
        if is_candidate and self.settings.known:
            return "The run that was extended often has it of these two classes (pair.known)."
        if self.settings.imported:
            return "It was imported with its confidence; no caption led to it."
        return "The run does not say where this predicate comes from."

    def _captions_of(self, statements: list[int]) -> str:
        """How many captions make these statements, as the beginning of a sentence."""
        stating = len({self.statements[number]["caption"] for number in statements})
        return f"{stating} of {count(self._captions, 'caption')} {'states' if stating == 1 else 'state'}"


def _statement(triplet: Triplet, record: Record, substring: bool) -> Values:
    known = triplet.caption in range(len(record.captions))
    ends = (
        (triplet.subject, triplet.subject_head, triplet.subject_category),
        (triplet.object, triplet.object_head, triplet.object_category),
    )
    subject, object_ = (
        {"phrase": phrase, "head": head, "category": category, "match": how_matched(phrase, head, category, substring)}
        for phrase, head, category in ends
    )
    return {
        "caption": triplet.caption,
        "subject": subject,
        "predicate": triplet.predicate,
        "lemma": triplet.predicate_lemma,
        "object": object_,
        "marks": mark_words(record.captions[triplet.caption].text, triplet) if known else [],
    }


def _candidates(record: Record) -> dict[tuple[int, int], list[Values]]:
    own = {(pair.subject, pair.object): dict.fromkeys(pair.predicates) for pair in record.pairs}
    scores: dict[tuple[int, int], dict[str, float | None]] = {}
    for relation in record.relations:
        known = scores.setdefault((relation.subject, relation.object), {})
        known[relation.predicate] = max(
            known.get(relation.predicate), relation.confidence, key=lambda score: -1.0 if score is None else score
        )
    found = {}
    for pair in dict.fromkeys((*own, *scores)):
        texts, related = own.get(pair, {}), scores.get(pair, {})
        ordered = sorted(related, key=lambda text: 1.0 if (score := related[text]) is None else -score)
        ranks = {text: rank for rank, text in enumerate(ordered, 1) if related[text] is not None}
        found[pair] = [
            {
                "predicate": text,
                "confidence": related.get(text),
                "rank": ranks.get(text),
                "relation": text in related,
                "own": text in texts,
            }
            for text in dict.fromkeys((*ordered, *texts))
        ]
    return found


def how_matched(phrase: str, head: str, category: str | None, substring: bool = False) -> Match:
    """How a noun phrase met a class: by its name, another form of it, the name as its head noun, or else a synonym.

    Args:
        head: the head noun of the phrase, singular.
        substring: the run matched by substrings (`pair.match: substring`), where words do not count.
    """
    if category is None:
        return "none"
    words, name, noun = split_words(phrase), split_words(category), split_words(head)
    if words == name:
        return "same name"
    if substring:
        return "substring" if category.lower() in phrase.lower() else "synonym"
    singular = [*words[:-1], *noun[-1:]]
    if _is_form("".join(words), "".join(name)) or _is_form("".join(singular), "".join(name)):
        return "other form"
    last = len(name)
    if _is_form("".join(words[-last:]), "".join(name)) or _is_form("".join(singular[-last:]), "".join(name)):
        return "head noun"
    return "synonym"


def _is_form(word: str, noun: str) -> bool:
    """Whether one word is the other, or its regular plural."""
    short, long = sorted((word, noun), key=len)
    return long in (short, f"{short}s", f"{short}es")


def mark_words(text: str, triplet: Triplet) -> list[Values]:
    """Return where a caption has the words of a triplet, in order; a part that it lacks ("he" for "man") has no mark.

    Of several places, those count that are nearest to the predicate, on the side where they are expected.

    Returns:
        `role` (subject, predicate, object), and `start` and `stop` in UTF-16 units as JavaScript counts them.
    """
    subjects = _places(text, triplet.subject, triplet.subject_head)
    predicates = _places(text, triplet.predicate, triplet.predicate.partition(" ")[0])
    objects = _places(text, triplet.object, triplet.object_head)

    def far(place: _Place) -> int:
        before = [_distance(each, place) for each in subjects if each != place]
        after = [_distance(place, each) for each in objects if each != place]
        return sum(min(distances) for distances in (before, after) if distances)

    middle = min(predicates or subjects, key=far, default=(0, 0))
    marks = {middle: "predicate"} if predicates else {}
    for role, places, before in (("subject", subjects, True), ("object", objects, False)):
        free = [place for place in places if place not in marks]
        if free:
            near = min(free, key=lambda place: _distance(place, middle) if before else _distance(middle, place))
            marks[near] = role
    return [
        {"role": role, "start": _utf16(text, start), "stop": _utf16(text, stop)}
        for (start, stop), role in sorted(marks.items())
    ]


_Place: TypeAlias = tuple[int, int]  # characters


def _places(text: str, phrase: str, head: str) -> list[_Place]:
    """Where a text has a phrase, in any case, or else its head noun, also in the plural."""
    for words in (phrase, head):
        pattern = r"\W+".join(map(re.escape, words.split()))
        found = [match.span() for match in re.finditer(rf"(?<!\w){pattern}(?:e?s)?(?!\w)", text, re.IGNORECASE)]
        if pattern and found:
            return found
    return []


def _distance(first: _Place, second: _Place) -> int:
    """Characters between two places; more if they are in the other order."""
    return second[0] - first[1] if first <= second else 2 * (first[0] - second[1]) + _WRONG_SIDE


def _utf16(text: str, index: int) -> int:
    return len(text[:index].encode("utf-16-le", "surrogatepass")) // 2
