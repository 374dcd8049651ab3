"""Why a pair of an image has a predicate: what captions state, and where candidates come from."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sgpipe.records import Record, Relation, deduplicate
from sgpipe.stages.matching import normalise_predicate
from sgpipe.stages.pair import told_triplets
from sgpipe.stats.samples import Values
from sgpipe.storage.header import RunHeader
from sgpipe.storage.manifest import Manifest
from sgpipe.utils.console import count

# Where a candidate comes from that no caption states, by the setting `pair.candidates`.
_SOURCES = {
    "prior": "The prior dataset relates these two classes like this (pair.candidates: prior).",
    "marks": "A vision-language model states it of these boxes (pair.candidates: marks).",
    "captions+marks": (
        "A vision-language model states it of these boxes (pair.candidates: captions+marks)."
    ),
    "layout": "The layout model finds it probable of these boxes (pair.candidates: layout).",
    "captions+layout": (
        "The layout model finds it probable of these boxes (pair.candidates: captions+layout)."
    ),
    "image": (
        "Captions state it of other things, and every pair may carry it (pair.candidates: image)."
    ),
}
_UNEXPLAINED = "The run does not say where this predicate comes from."


def _pair_settings(run: RunHeader) -> Mapping[str, Any]:
    """Return the last settings of a pair stage in the header of a manifest."""
    for identity in reversed(Manifest.identities(run)):
        settings = identity.get("pair") if isinstance(identity, Mapping) else None
        if isinstance(settings, Mapping):
            return settings
    return {}


class Provenance:
    """Where the relations of one image come from, as plain values.

    Attributes:
        statements: the triplets of the record, and those that captions imply (`implied`).
        candidates: the predicates of each pair, by descending confidence, then as in the shard;
            `own`: it is the pair's, and not what an annotation or another pair brought in.
    """

    def __init__(self, record: Record, run: RunHeader) -> None:
        """`run`: the header of the run's manifest."""
        self._settings = _pair_settings(run)
        match = self._settings.get("match")
        triplets = told_triplets(record, match, self._settings.get("loose") is True)
        in_record = len(record.triplets)
        self.statements = [
            asdict(triplet) | {"implied": number >= in_record}
            for number, triplet in enumerate(triplets)
        ]
        self.candidates = _candidates(record)
        self._categories = [box.category for box in record.objects]
        self._captions = len(record.captions)
        # the numbers of statements, by predicate
        self._stated: dict[str, list[int]] = defaultdict(list)
        for number, triplet in enumerate(triplets):
            predicate = triplet.predicate
            if match != "substring":
                predicate = normalise_predicate(predicate)
            self._stated[predicate].append(number)

    def stating(self, relation: Relation) -> list[int]:
        """Return the statements with a relation's predicate.

        They are about its two classes, or, without any of these, about others.
        """
        return self._about(relation) or self._stated.get(relation.predicate, [])

    def _about(self, relation: Relation) -> list[int]:
        """Return the statements with a relation's predicate about its two classes."""
        classes = {
            "subject_category": self._categories[relation.subject],
            "object_category": self._categories[relation.object],
        }
        return [
            number
            for number in self._stated.get(relation.predicate, ())
            if classes.items() <= self.statements[number].items()
        ]

    def explain(self, relation: Relation) -> str:
        """One sentence: why the pair has this predicate."""
        if relation.origin == "person":
            return "It was confirmed, changed or added by a person (sgpipe correct)."
        if relation.confidence is None:
            return "It is annotated: it has no confidence."
        source = str(self._settings.get("candidates"))
        if source not in ("prior", "marks", "layout"):
            statements = [self.statements[number] for number in self._about(relation)]
            if statements:
                return self._explain_statements(statements)
        if not self._is_candidate(relation):
            if self._settings.get("restrict") == "group":
                return (
                    "It is a candidate of another pair, and was scored for the whole group"
                    " (pair.restrict: group)."
                )
            return _UNEXPLAINED
        is_from_source = source != "image" or relation.predicate in self._stated
        if source in _SOURCES and is_from_source:
            return _SOURCES[source]
        if self._settings.get("known"):
            return "The run that was extended often has it of these two classes (pair.known)."
        return _UNEXPLAINED

    def _explain_statements(self, statements: Sequence[Values]) -> str:
        stating = len({statement["caption"] for statement in statements})
        are_implied = all(statement["implied"] for statement in statements)
        verb = "Implied" if are_implied else "Stated"
        captions = count(self._captions, "caption")
        return f"{verb} by {stating} of {captions} for these two classes."

    def _is_candidate(self, relation: Relation) -> bool:
        """Return whether the predicate is a candidate of the pair itself."""
        candidates = self.candidates[relation.subject, relation.object]
        return any(
            candidate["own"] and candidate["predicate"] == relation.predicate
            for candidate in candidates
        )


def _candidates(record: Record) -> dict[tuple[int, int], list[Values]]:
    """Return the predicates of each pair, as `Provenance.candidates`."""
    predicates = {
        (pair.subject, pair.object): dict.fromkeys(pair.predicates) for pair in record.pairs
    }
    scores: dict[tuple[int, int], dict[str, float | None]] = {}
    for relation in deduplicate(record.relations):
        of_pair = scores.setdefault((relation.subject, relation.object), {})
        of_pair[relation.predicate] = relation.confidence
    return {
        pair: _rank_candidates(scores.get(pair, {}), predicates.get(pair, {}))
        for pair in dict.fromkeys((*predicates, *scores))
    }


def _rank_candidates(
    scores: Mapping[str, float | None], predicates: Mapping[str, None]
) -> list[Values]:
    """Return the predicates of a pair, those of the highest scores first.

    Args:
        scores: of its relations, by predicate; None: annotated.
        predicates: its candidates.
    """

    def order(predicate: str) -> float:
        score = scores[predicate]
        return 1.0 if score is None else -score

    ordered = sorted(scores, key=order)
    values = []
    for rank, predicate in enumerate(dict.fromkeys((*ordered, *predicates)), 1):
        score = scores.get(predicate)
        values.append(
            {
                "predicate": predicate,
                "confidence": score,
                "rank": None if score is None else rank,
                "relation": predicate in scores,
                "own": predicate in predicates,
            }
        )
    return values
