"""Whether what captions say of a drawn scene is true: they are read by the pipeline's own parser and matcher."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sgpipe.miniworld.actors import KINDS
from sgpipe.miniworld.relations import PREDICATES, Statement
from sgpipe.miniworld.scene import Scene
from sgpipe.stages.grammar.clauses import verb_lemma
from sgpipe.stages.matching import HeadMatcher
from sgpipe.stages.parse import CaptionParser
from sgpipe.vocabulary import packaged_synonyms


@dataclass(frozen=True)
class Truth:
    """The relations of a scene between classes: all that are true, and those that were composed."""

    everything: frozenset[Statement]
    composed: frozenset[Statement]


def truth_of(scene: Scene) -> Truth:
    return Truth(
        frozenset(scene.statement(fact) for fact in scene.facts),
        frozenset(scene.statement(fact) for fact in scene.facts if not fact.implied),
    )


class CaptionJudge:
    """Reads captions as statements about classes of the world."""

    def __init__(self) -> None:
        self._parser = CaptionParser()
        self._matcher = HeadMatcher(packaged_synonyms("coco"))
        self._predicates = {_lemma(predicate): predicate for predicate in PREDICATES}

    def statements(self, captions: Sequence[str]) -> list[tuple[Statement, ...]]:
        """What each caption states, in its order; nouns or predicates the world lacks stay as they are written."""
        return [
            tuple(
                (
                    self._kind(triplet.subject, triplet.subject_head),
                    self._predicates.get(triplet.predicate_lemma, triplet.predicate),
                    self._kind(triplet.object, triplet.object_head),
                )
                for triplet in triplets
            )
            for triplets in self._parser.parse(captions)
        ]

    def _kind(self, phrase: str, head: str) -> str:
        return self._matcher.choose(phrase, head, dict.fromkeys(KINDS)) or phrase


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    hits: int
    total: int

    @property
    def value(self) -> float:
        """Between 0 and 1; 0 of 0 is 0."""
        return self.hits / self.total if self.total else 0.0


def is_true(stated: Sequence[Statement], truth: Truth) -> bool:
    """A caption is true if it states a relation and all that it states holds."""
    return bool(stated) and truth.everything.issuperset(stated)


def true_share(captions: Iterable[Sequence[Sequence[Statement]]], truths: Sequence[Truth]) -> Share:
    """How many captions are true, of all captions of all pictures."""
    verdicts = [is_true(stated, truth) for own, truth in zip(captions, truths, strict=True) for stated in own]
    return Share(sum(verdicts), len(verdicts))


def covered_share(captions: Iterable[Sequence[Sequence[Statement]]], wanted: Sequence[frozenset[Statement]]) -> Share:
    """How many of the `wanted` statements of all pictures are in the captions of their picture."""
    pairs = list(zip(captions, wanted, strict=True))
    hits = sum(len(statements.intersection(*[{s for stated in own for s in stated}])) for own, statements in pairs)
    return Share(hits, sum(map(len, wanted)))


def by_predicate(
    captions: Iterable[Sequence[Sequence[Statement]]], truths: Sequence[Truth]
) -> dict[str, tuple[Share, Share]]:
    """Per predicate: how many of the times it is stated it is true, and how many of its composed facts are stated."""
    stated, right, wanted, found = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    for own, truth in zip(captions, truths, strict=True):
        said = [statement for each in own for statement in each]
        stated.update(predicate for _, predicate, _ in said)
        right.update(s[1] for s in said if s in truth.everything)
        wanted.update(predicate for _, predicate, _ in truth.composed)
        found.update(predicate for _, predicate, _ in truth.composed.intersection(said))
    return {
        predicate: (Share(right[predicate], stated[predicate]), Share(found[predicate], wanted[predicate]))
        for predicate in PREDICATES
        if stated[predicate] or wanted[predicate]
    }


def _lemma(predicate: str) -> str:
    """As the parser writes it: "sit on"."""
    verb, *rest = predicate.split()
    return " ".join([verb_lemma(verb), *rest]) if verb.endswith("ing") else predicate
