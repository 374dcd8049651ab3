"""Why a relation is there: its confidence among its pair's candidates, and the triplets that state it.

Which triplet led to which relation is not stored; it follows from the rules of the pair stage.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeAlias

from sgpipe.records import Record, Relation, Triplet, deduplicate
from sgpipe.stages.pair import normalise_predicate, split_words, told_triplets
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

Values: TypeAlias = dict[str, Any]
Match: TypeAlias = Literal["none", "same name", "other form", "head noun", "synonym", "substring"]


@dataclass(frozen=True)
class PairSettings:
    """Settings of the pair stage, as far as the run says; the format of `imported` files; and the `threshold` that the
    tagger's relations are above, if nothing removed relations since."""

    candidates: str | None = None
    match: str | None = None
    restrict: str | None = None
    threshold: float | None = None
    imported: str | None = None
    known: int | None = None
    loose: bool = False

    @classmethod
    def of(cls, run: Mapping[str, Any]) -> PairSettings:
        """Read the header of a run's manifest. A run made from others has the settings of the last that says."""
        found = cls()
        for identity in Manifest.identities(run):
            pair, tag = (_settings(identity, name) for name in ("pair", "tag"))
            if pair or tag:
                kept = None if tag.get("calibration") else tag.get("threshold")  # with one, it is a probability
                names = ("candidates", "match", "restrict", "known")
                settings: dict[str, Any] = {name: pair.get(name) for name in names}
                found = cls(**settings, threshold=kept, loose=pair.get("loose") is True)
            elif isinstance(identity, Mapping) and "import" in identity:
                found = cls(imported=str(identity["import"]))
            elif isinstance(identity, Mapping) and "scored" not in identity:
                found = replace(found, threshold=None)
        return found


def _settings(identity: Any, name: str) -> Mapping[str, Any]:
    """Return the settings of a stage; none where others have changed the header, as in a dataset from the hub."""
    part = identity.get(name) if isinstance(identity, Mapping) else None
    return part if isinstance(part, Mapping) else {}


class Provenance:
    """Where the relations of one image come from, as plain values.

    Attributes:
        statements: one for each triplet of the record, and for what captions imply: the number of the `caption`,
            `subject` and `object` (the phrase, its head noun, and how it met the class of a box), and `predicate`.
        candidates: the predicates of each pair, by descending confidence, then as in the shard; `own`: it is the
            pair's, and not what an annotation or another pair brought in.
    """

    def __init__(self, record: Record, run: Mapping[str, Any]) -> None:
        """run: the header of the run's manifest."""
        self.settings = PairSettings.of(run)
        substring = self.settings.match == "substring"
        triplets = told_triplets(record, self.settings.match, self.settings.loose)
        self.statements = [_statement(triplet, substring) for triplet in triplets]
        self.candidates = _candidates(record)
        self._categories = [box.category for box in record.objects]
        self._captions = len(record.captions)
        self._stated: dict[str, list[int]] = defaultdict(list)  # the numbers of statements, by predicate
        for number, triplet in enumerate(triplets):
            self._stated[triplet.predicate if substring else normalise_predicate(triplet.predicate)].append(number)

    def stating(self, relation: Relation) -> tuple[list[int], list[int]]:
        """Return the statements with a relation's predicate: about its two classes, and about others."""
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
        """Return how many captions make these statements, as the beginning of a sentence."""
        stating = len({self.statements[number]["caption"] for number in statements})
        return f"{stating} of {count(self._captions, 'caption')} {'states' if stating == 1 else 'state'}"


def _statement(triplet: Triplet, substring: bool) -> Values:
    def end(phrase: str, head: str, category: str | None) -> Values:
        how = how_matched(phrase, head, category, substring)
        return {"phrase": phrase, "head": head, "category": category, "match": how}

    return {
        "caption": triplet.caption,
        "subject": end(triplet.subject, triplet.subject_head, triplet.subject_category),
        "predicate": triplet.predicate,
        "lemma": triplet.predicate_lemma,
        "object": end(triplet.object, triplet.object_head, triplet.object_category),
    }


def _candidates(record: Record) -> dict[tuple[int, int], list[Values]]:
    own = {(pair.subject, pair.object): dict.fromkeys(pair.predicates) for pair in record.pairs}
    scores: dict[tuple[int, int], dict[str, float | None]] = {}
    for relation in deduplicate(record.relations):
        scores.setdefault((relation.subject, relation.object), {})[relation.predicate] = relation.confidence
    found = {}
    for pair in dict.fromkeys((*own, *scores)):
        texts, related = own.get(pair, {}), scores.get(pair, {})
        ordered = sorted(related, key=lambda text: 1.0 if (score := related[text]) is None else -score)
        ranks = {text: rank for rank, text in enumerate(ordered, 1) if related[text] is not None}
        found[pair] = [
            {"predicate": text, "confidence": related.get(text), "rank": ranks.get(text)}
            | {"relation": text in related, "own": text in texts}
            for text in dict.fromkeys((*ordered, *texts))
        ]
    return found


def how_matched(phrase: str, head: str, category: str | None, substring: bool = False) -> Match:
    """Return how a noun phrase with a (singular) head met a class; `substring`: by `pair.match: substring`."""
    if category is None:
        return "none"
    words, name, noun = split_words(phrase), split_words(category), split_words(head)
    if words == name:
        return "same name"
    if substring:
        return "substring" if category.lower() in phrase.lower() else "synonym"
    both = (words, [*words[:-1], *noun[-1:]])
    if any(_is_form("".join(each), "".join(name)) for each in both):
        return "other form"
    if any(_is_form("".join(each[-len(name) :]), "".join(name)) for each in both):
        return "head noun"
    return "synonym"


def _is_form(word: str, noun: str) -> bool:
    """Return whether one word is the other, or its regular plural."""
    short, long = sorted((word, noun), key=len)
    return long in (short, f"{short}s", f"{short}es")
