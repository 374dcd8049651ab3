"""The pair stage: from triplets and boxes to the candidate pairs that the tagger scores."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from sgpipe.errors import UserError
from sgpipe.recipe import PairConfig
from sgpipe.records import Record, Triplet
from sgpipe.sources.vocabulary import category_names, load_synonyms, packaged_synonyms
from sgpipe.stages.pair.candidates import Predicates, Prior, candidate_pairs, read_prior
from sgpipe.stages.pair.matching import HeadMatcher, Matcher, SubstringMatcher, normalise_predicate


class PairStage:
    """Matches the nouns of triplets to classes, and lists the ordered box pairs that may be related.

    The predicates of a pair are those that the captions state for its two classes, without repetition and in order
    of appearance (`candidates: captions`), those that they state for whatever classes (`candidates: image`), or those
    between the two classes in Visual Genome (`candidates: prior`).
    """

    name = "pair"
    fills: tuple[str, ...] = ("triplets", "pairs")

    def __init__(self, config: PairConfig, dataset: str, categories: Iterable[str]) -> None:
        """
        Args:
            dataset: selects the synonym table unless the recipe names one: "coco", "objects365", or any other
                dataset, whose classes are then known by their names only.
            categories: every class name of the dataset, including classes that an image lacks, so that a noun
                phrase matches the same classes in every image.

        Raises:
            UserError: the recipe uses a prior but names no file.
        """
        if config.candidates == "prior" and config.prior is None:
            raise UserError("pair.candidates is 'prior': set pair.prior to a Visual Genome JSON file")
        self.config = config
        self.resources = config.resources
        self._names = tuple(dict.fromkeys((*categories, *category_names(dataset).values())))
        self._dataset = dataset

    def setup(self) -> None:
        """Read the synonym table and the prior.

        Raises:
            UserError: a file is missing or has the wrong format.
        """
        path = self.config.synonyms
        synonyms = load_synonyms(path) if path else packaged_synonyms(self._dataset)
        matcher = HeadMatcher if self.config.match == "head" else SubstringMatcher
        self._matcher: Matcher = matcher(synonyms, self._names)
        self._prior: Prior = {}
        if self.config.candidates == "prior" and self.config.prior:
            self._prior = read_prior(self.config.prior, self._matcher, verbatim=self._verbatim)

    def __call__(self, records: list[Record]) -> list[Record]:
        for record in records:
            if record.ok:
                self._fill(record)
        return records

    @property
    def _verbatim(self) -> bool:
        """Whether predicates keep the spelling of the parser or of VG, as in RLIPv2."""
        return self.config.match == "substring"

    def _text(self, triplet: Triplet) -> str:
        return triplet.predicate if self._verbatim else normalise_predicate(triplet.predicate)

    def _fill(self, record: Record) -> None:
        present = dict.fromkeys(box.category for box in record.objects)
        assign_categories(self._matcher, record.triplets, present)
        if self.config.candidates == "prior":
            predicates: Predicates = {(s, o): self._prior.get((s, o), []) for s in present for o in present}
        elif self.config.candidates == "image":
            texts = list(dict.fromkeys(self._text(triplet) for triplet in record.triplets))
            predicates = {(s, o): texts for s in present for o in present}
        else:
            predicates = stated_predicates(record.triplets, verbatim=self._verbatim)
        record.pairs = candidate_pairs(
            record.objects,
            predicates,
            require_overlap=self.config.require_overlap,
            limit=self.config.max_pairs,
        )


def assign_categories(matcher: Matcher, triplets: Iterable[Triplet], present: dict[str, None]) -> None:
    """Set the categories of the triplets' subjects and objects; None if the image has no such class.

    Args:
        present: the class names of the image's boxes, including crowds, in order of first appearance.
    """
    for triplet in triplets:
        triplet.subject_category = matcher.choose(triplet.subject, triplet.subject_head, present)
        triplet.object_category = matcher.choose(triplet.object, triplet.object_head, present)


def stated_predicates(triplets: Sequence[Triplet], *, verbatim: bool = False, repeats: bool = False) -> Predicates:
    """The predicates that the triplets state for each pair of classes, in order, without repetition.

    Args:
        verbatim: keep case and spacing of predicates.
        repeats: list a predicate as often as it is stated.
    """
    stated: dict[tuple[str, str], list[str]] = {}
    for triplet in triplets:
        subject, object_ = triplet.subject_category, triplet.object_category
        if subject is None or object_ is None:
            continue
        text = triplet.predicate if verbatim else normalise_predicate(triplet.predicate)
        texts = stated.setdefault((subject, object_), [])
        if repeats or text not in texts:
            texts.append(text)
    return stated
