"""The pair stage: from triplets and boxes to the candidate pairs that the tagger scores.

A candidate is an ordered pair of boxes whose classes have predicates, from the captions of the
image or from a prior: the predicates that relate two classes in Visual Genome.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from itertools import chain, compress, groupby, product
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.recipe import PairConfig, StagePlan
from sgpipe.records import Attribute, Box, Mention, Pair, Record, Triplet
from sgpipe.sources import vocabulary
from sgpipe.sources.vocabulary import category_names, implied_things, load_equivalents, loose_words
from sgpipe.stages.base import Stage
from sgpipe.stages.context import StageContext, TripletCount
from sgpipe.stages.matching import (
    HeadMatcher,
    Matcher,
    SubstringMatcher,
    normalise_predicate,
    split_words,
)
from sgpipe.stages.parse.grammar.lexicon import NUMBERS
from sgpipe.utils.lemmas import verb_lemma

Predicates: TypeAlias = Mapping[tuple[str, str], Sequence[str]]
Prior: TypeAlias = dict[tuple[str, str], list[str]]


def candidate_pairs(
    objects: Sequence[Box],
    predicates: Predicates,
    *,
    require_overlap: bool = False,
    limit: int | None = None,
) -> tuple[list[Pair], int]:
    """Return all ordered pairs of distinct boxes whose (subject class, object class) has
    predicates; without crowds.

    Boxes are visited by `Box.rank`, the largest first, each adding its pairs with the boxes visited
    before it.

    Args:
        objects: The boxes of an image.
        predicates: The predicates of each (subject class, object class).
        require_overlap: Keep only pairs of boxes that share some area.
        limit: The number of pairs to return.

    Returns:
        Pairs of indices, sorted, each with its own copy of the predicates; and the number of pairs
        beyond the limit, among which those of boxes that were not visited count as overlapping.
    """
    present = {box.category for box in objects}
    related = _related_classes(predicates, present)
    usable = _usable_boxes(objects, related)
    names = [objects[index].category for index in usable]
    boxes = np.array([objects[index].bbox for index in usable], np.float64)
    beyond = _count_pairs(names, related)
    chosen: list[tuple[int, int]] = []
    for pairs in _pairs_by_box(names, related):
        beyond -= len(pairs)
        if require_overlap and pairs:
            pairs = list(compress(pairs, overlapping(boxes, np.array(pairs))))
        if limit is not None and len(chosen) + len(pairs) >= limit:
            pairs.sort(key=lambda pair: (min(pair), pair))
            beyond += len(chosen) + len(pairs) - limit
            chosen += pairs[: limit - len(chosen)]
            break
        chosen += pairs
    candidates = []
    for first, second in chosen:
        subject = usable[first]
        object_ = usable[second]
        texts = predicates[objects[subject].category, objects[object_].category]
        candidates.append(Pair(subject, object_, list(texts)))
    return sorted(candidates, key=lambda pair: (pair.subject, pair.object)), beyond


def _related_classes(predicates: Predicates, present: set[str]) -> list[tuple[str, str]]:
    """Return the pairs of classes that are present and have predicates."""
    return [
        classes for classes, texts in predicates.items() if texts and present.issuperset(classes)
    ]


def _usable_boxes(objects: Sequence[Box], related: Iterable[tuple[str, str]]) -> list[int]:
    """Return the indices of the boxes of related classes by rank; without crowds."""
    classes = set(chain.from_iterable(related))
    usable = []
    for index, box in enumerate(objects):
        if box.category in classes and not (box.iscrowd or box.is_nothing):
            usable.append(index)
    return sorted(usable, key=lambda index: objects[index].rank)


def _count_pairs(names: Iterable[str], related: Iterable[tuple[str, str]]) -> int:
    """Return the number of ordered pairs of distinct boxes, with these classes, that are
    related.
    """
    boxes = Counter(names)
    return sum(boxes[s] * (boxes[o] - (s == o)) for s, o in related)


def _pairs_by_box(
    names: Sequence[str], related: Iterable[tuple[str, str]]
) -> Iterator[list[tuple[int, int]]]:
    """Yield for each box its pairs with the boxes before it, first those that it is the object
    of.
    """
    subjects = defaultdict[str, list[str]](list)
    partners = defaultdict[str, list[str]](list)
    for subject, object_ in related:
        subjects[object_].append(subject)
        partners[subject].append(object_)
    visited = defaultdict[str, list[int]](list)
    for late, name in enumerate(names):
        pairs: list[tuple[int, int]] = []
        for subject in subjects[name]:
            pairs += [(early, late) for early in visited[subject]]
        for object_ in partners[name]:
            pairs += [(late, early) for early in visited[object_]]
        yield pairs
        visited[name].append(late)


def overlapping(
    boxes: npt.NDArray[np.float64], pairs: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Return which pairs [n, 2] of the pixel xywh boxes [m, 4] share some area; boxes that only
    touch do not.
    """
    first = boxes[pairs[:, 0]]
    second = boxes[pairs[:, 1]]
    centres = first[:, :2] + first[:, 2:] / 2 - second[:, :2] - second[:, 2:] / 2
    return np.logical_and.reduce(np.abs(centres) < (first[:, 2:] + second[:, 2:]) / 2, axis=1)


def read_prior(path: Location, matcher: Matcher, *, verbatim: bool = False) -> Prior:
    """As `collect_prior`.

    Raises:
        UserError: the file cannot be read, is not in a VG layout, or relates no classes.
    """
    try:
        prior = collect_prior((item for _, item in JsonStream(path)), matcher, verbatim=verbatim)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise UserError(f"prior {path} is not a Visual Genome scene graph file: {error}") from None
    if not prior:
        raise UserError(f"prior {path}: no relationship is between classes of the dataset")
    return prior


def collect_prior(graphs: Iterable[Any], matcher: Matcher, *, verbatim: bool = False) -> Prior:
    """For each (subject class, object class) the distinct predicates of the graphs, in order of
    appearance.

    All of VG's layouts are accepted: `scene_graphs.json` and RLIP's preprocessed files
    (relationships with `subject_id` and `object_id`), or `relationships.json` (with subject and
    object). If a name matches several classes, its relationships count for all of them. Unless
    `verbatim`, predicates are lower-cased with single spaces, none is empty.
    """
    predicates: dict[tuple[str, str], dict[str, None]] = {}
    for graph in graphs:
        things = {item["object_id"]: item for item in graph.get("objects", ())}
        for relation in graph["relationships"]:
            subjects = matcher.classes(_name_in_graph(relation, "subject", things))
            objects = matcher.classes(_name_in_graph(relation, "object", things))
            text = str(relation["predicate"])
            if not verbatim:
                text = normalise_predicate(text)
            if text or verbatim:
                for pair in product(subjects, objects):
                    predicates.setdefault(pair, {})[text] = None
    return {pair: list(texts) for pair, texts in predicates.items()}


def _name_in_graph(relation: Any, role: str, things: Mapping[Any, Any]) -> str:
    """Return the name of a relation's subject or object: a string in RLIP's files, else a list."""
    item = relation[role] if role in relation else things[relation[f"{role}_id"]]
    names = item["names"] if "names" in item else item["name"]
    return str(names if isinstance(names, str) else next(iter(names), ""))


def check_pair(config: PairConfig) -> None:
    """Raise UserError if the recipe uses a prior or a model but names none, or one that is not
    there.
    """
    if config.candidates == "prior" and config.prior is None:
        raise UserError("pair.candidates is 'prior': set pair.prior to a Visual Genome JSON file")
    if config.marks and config.model is None:
        raise UserError(
            f"pair.candidates is {config.candidates!r}: set pair.model to a vision-language model"
        )
    if not config.marks and config.endpoint is not None:
        raise UserError(f"pair.candidates is {config.candidates!r}: pair.endpoint is for marks")
    if not config.marks and config.has_engine:
        raise UserError(f"pair.candidates is {config.candidates!r}: pair.engine is for marks")


def synonyms_of(config: PairConfig, dataset: str) -> Mapping[str, tuple[str, ...]]:
    """Return the recipe's synonym table, or the packaged one of a dataset.

    Raises:
        UserError: as `load_synonyms`.
    """
    if config.synonyms:
        return vocabulary.load_synonyms(config.synonyms)
    return vocabulary.packaged_synonyms(dataset)


def pair_settings(plan: StagePlan) -> PairConfig:
    """Return the settings of the pair stage.

    Where all candidates become relations, only those of captions are candidates.
    """
    return plan.pair if plan.tag.scores else plan.pair.model_copy(update={"known": 0})


class PairStage(Stage):
    """Matches the nouns of triplets to classes, and lists the ordered box pairs that may be
    related.

    The predicates of a pair are those that the captions state for its two classes (`candidates:
    captions`) or for whatever classes (`image`), or those between the two classes in Visual Genome
    (`prior`). `MarksStage` adds others.
    """

    name = "pair"

    def __init__(
        self,
        config: PairConfig,
        dataset: str,
        categories: Iterable[str],
        known: Iterable[TripletCount] | None = None,
    ) -> None:
        """`dataset`: has the synonyms unless the recipe names a table; others than "coco" and
        "objects365" have none.

        `categories`: every class name of the dataset. `known`: of the run that is extended, see
        `ExtendedRun`, or None.
        """
        self.config = config
        self.resources = config.resources
        self._names = sorted({*categories, *category_names(dataset).values()})
        self._dataset = dataset
        self._known = known
        # Predicates as the parser or VG spells them, as in RLIPv2.
        self._verbatim = config.match == "substring"

    @classmethod
    def of(cls, context: StageContext) -> Self:
        return cls(pair_settings(context.plan), context.synonyms, context.classes, context.known)

    def setup(self) -> None:
        synonyms = synonyms_of(self.config, self._dataset)
        if self._verbatim:
            self._matcher: Matcher = SubstringMatcher(synonyms, self._names)
        else:
            self._matcher = HeadMatcher(
                synonyms, self._names, loose_words() if self.config.loose else None
            )
        self._extended: ExtendedRun | None = None
        if self._known is not None:
            kinds = HeadMatcher(synonyms, category_names(self._dataset).values())
            self._extended = ExtendedRun(self._known, self._names, kinds, self.config)
        self._prior: Prior = {}
        if self.config.candidates == "prior" and self.config.prior:
            self._prior = read_prior(self.config.prior, self._matcher, verbatim=self._verbatim)

    def with_classes(self, classes: Mapping[str, int]) -> PairStage:
        other = copy(self)
        other._names = sorted({*classes, *category_names(self._dataset).values()})
        PairStage.setup(other)
        return other

    def fill(self, record: Record) -> None:
        present = dict.fromkeys(box.category for box in record.objects)
        grounded = {box.category for box in record.objects if box.origin == "grounded"}
        free = grounded.difference(self._names)
        assign_categories(self._matcher, record.triplets, present, free)
        if self._extended is not None:
            self._extended.assign_kinds(record.triplets, present)
        assign_attributes(self._matcher, record)
        predicates = self._predicates(record, present)
        if self._extended is not None:
            predicates = self._extended.predicates(predicates, present)
        record.left_out["pairs"] = self._list_pairs(record, record.objects, predicates)

    def _predicates(self, record: Record, present: Iterable[str]) -> Predicates:
        """Return the candidates of each pair of classes, by `pair.candidates`."""
        if self.config.candidates in ("marks", "layout"):
            return {}
        pairs = list(product(present, present))
        if self.config.candidates == "prior":
            return {pair: self._prior.get(pair, []) for pair in pairs}
        triplets = told_triplets(record, self.config.match, self.config.loose)
        if self.config.candidates != "image":  # captions, alone or beside others
            return stated_predicates(triplets, verbatim=self._verbatim)
        texts = dict.fromkeys(_predicate_text(triplet, self._verbatim) for triplet in triplets)
        distinct = list(texts)
        return dict.fromkeys(pairs, distinct)

    def _list_pairs(self, record: Record, objects: Sequence[Box], predicates: Predicates) -> int:
        """Set the pairs by the classes of these objects, without known relations; returns how many
        are left out.
        """
        overlap = self.config.require_overlap
        limit = self.config.max_pairs
        record.pairs, beyond = candidate_pairs(
            objects, predicates, require_overlap=overlap, limit=limit
        )
        if self._extended is not None:
            record.pairs = self._extended.equivalents.without_known(record.pairs, record.relations)
        return beyond


class ExtendedRun:
    """A run that is extended: its predicates are candidates beside others, its relations are not.

    Its classes may be free names. Those that name the same class of the dataset ("lady", "young
    man") are of one kind: a noun that is none of an image's classes matches one of its kind, and
    candidates are by kinds.
    """

    def __init__(
        self,
        known: Iterable[TripletCount],
        names: Iterable[str],
        kinds: HeadMatcher,
        config: PairConfig,
    ) -> None:
        """`known`: its triplets. names: its classes. kinds: matches them with the classes of the
        dataset.
        """
        self.equivalents = load_equivalents(config.equivalents)
        self._matcher = kinds
        self._kinds = {name: next(iter(kinds.classes(name, "")), name) for name in names}
        counts = defaultdict[tuple[str, str], Counter[str]](Counter)
        for subject, predicate, object_, times in known:
            counts[self._kinds[subject], self._kinds[object_]][predicate] += times
        self._frequent: dict[tuple[str, str], list[str]] = {}
        for pair, times_of in counts.items():
            by_frequency = sorted(times_of, key=lambda text: (-times_of[text], text))
            self._frequent[pair] = by_frequency[: config.known]

    def assign_kinds(self, triplets: Iterable[Triplet], present: Iterable[str]) -> None:
        """Set the categories that `assign_categories` left empty to the first class of the image of
        their kind.
        """
        classes = {self._kinds.get(name, name): name for name in reversed(list(present))}

        def of_kind(phrase: str, head: str) -> str | None:
            kinds = self._matcher.classes(phrase, head)
            return next((classes[kind] for kind in kinds if kind in classes), None)

        for triplet in triplets:
            triplet.subject_category = triplet.subject_category or of_kind(
                triplet.subject, triplet.subject_head
            )
            triplet.object_category = triplet.object_category or of_kind(
                triplet.object, triplet.object_head
            )

    def predicates(self, stated: Predicates, present: Iterable[str]) -> Predicates:
        """Return the predicates of pairs of classes: those of the run, and those stated that say
        something else.
        """
        # A free noun is of its own kind.
        kinds_of = {name: self._kinds.get(name, name) for name in present}
        pairs = {(s, o): (kinds_of[s], kinds_of[o]) for s, o in product(kinds_of, repeat=2)}
        texts = {kinds: list(self._frequent.get(kinds, ())) for kinds in pairs.values()}
        for pair, stated_texts in stated.items():
            texts[pairs[pair]] += stated_texts
        distinct = {kinds: self._distinct(texts[kinds]) for kinds in texts}
        return {pair: distinct[kinds] for pair, kinds in pairs.items()}

    def _distinct(self, texts: Iterable[str]) -> list[str]:
        """Return the first of the predicates that say the same."""
        by_meaning: dict[tuple[str, int, int], str] = {}
        for text in texts:
            by_meaning.setdefault(self.equivalents.key(0, text, 1), text)
        return list(by_meaning.values())


def assign_categories(
    matcher: Matcher,
    triplets: Iterable[Triplet],
    present: dict[str, None],
    free: Collection[str] = (),
) -> None:
    """Set the categories of the triplets' subjects and objects; None if the image has no such
    class, or a loose word would relate a class to itself ("a pizza with a crust").

    Args:
        matcher: Matches the nouns with classes.
        triplets: The triplets to change.
        present: The class names of the image's boxes, including crowds, in order of first
            appearance.
        free: Those that are heads of nouns, unknown to the matcher; they precede classes that a
            noun may loosely stand for.
    """

    def category(phrase: str, head: str) -> str | None:
        name = matcher.choose(phrase, head, present)
        is_loose = not matcher.loose.isdisjoint((phrase, head))
        return head if head in free and (name is None or is_loose) else name

    for triplet in triplets:
        subject = category(triplet.subject, triplet.subject_head)
        object_ = category(triplet.object, triplet.object_head)
        words = (triplet.object, triplet.object_head)
        is_loose = object_ not in free and not matcher.loose.isdisjoint(words)
        triplet.subject_category = subject
        triplet.object_category = None if is_loose and subject == object_ else object_


def told_triplets(record: Record, match: str | None, loose: bool | None) -> list[Triplet]:
    """Return the triplets of a record, then those that its captions imply; `match`, `loose`: of the
    pair stage.
    """
    if not loose or match == "substring":
        return list(record.triplets)
    return [*record.triplets, *implied_triplets(record)]


def assign_attributes(matcher: Matcher, record: Record) -> None:
    """Give objects the attributes of the mentions that mean them, in place of those that captions
    gave before.

    A mention means the boxes that its phrase was grounded by, or else those of its class, if they
    are as many as it says, or one if it says no number; and not if the caption names another thing
    of the class, or one by a loose word. A caption of a region means the boxes of the region alone;
    no mention means a crowd.
    """
    if record.mentions is None:
        return
    for box in record.objects:
        box.attributes = [attribute for attribute in box.attributes if attribute.caption is None]
    classes = dict.fromkeys(box.category for box in record.objects)
    for caption, mentions in groupby(record.mentions, lambda mention: mention.caption):
        boxes_of_region = [record.objects[index] for index in record.captions[caption].boxes]
        _describe_boxes(matcher, list(mentions), boxes_of_region or record.objects, classes)
    record.mentions = None


def _describe_boxes(
    matcher: Matcher, mentions: Sequence[Mention], boxes: Sequence[Box], classes: dict[str, None]
) -> None:
    """Give boxes the attributes of the mentions of a caption.

    Args:
        classes: the classes of the image.
    """
    categories = [matcher.choose(item.phrase, item.head, classes) for item in mentions]
    for mention, category in zip(mentions, categories, strict=True):
        if mention.attributes:
            is_alone = categories.count(category) == 1
            meant = _boxes_meant(matcher, mention, category, boxes, is_alone)
            _add_attributes(meant, mention)


def _boxes_meant(
    matcher: Matcher,
    mention: Mention,
    category: str | None,
    boxes: Sequence[Box],
    is_alone: bool,
) -> list[Box]:
    """Return the boxes that a mention means; `is_alone`: the caption names its class once."""
    phrase = mention.phrase
    grounded = [box for box in boxes if box.phrase and phrase in box.phrase.split(", ")]
    if grounded or not is_alone or not matcher.loose.isdisjoint((phrase, mention.head)):
        return grounded
    return [box for box in boxes if box.category == category]


def _add_attributes(boxes: Sequence[Box], mention: Mention) -> None:
    """Add the attributes of a mention to the boxes that it means, if they are as many as it says."""
    numbers = [NUMBERS.index(name) for name in mention.attributes if name in NUMBERS]
    [number] = numbers[:1] or [1]
    if len(boxes) != number or any(box.iscrowd for box in boxes):
        return
    for box in boxes:
        box.attributes += [Attribute(name, mention.caption) for name in mention.attributes]


def implied_triplets(record: Record) -> list[Triplet]:
    """Return what captions imply of persons and the classes of the image's boxes: a "skier" is
    skiing on skis.
    """
    present = {box.category for box in record.objects}
    if "person" not in present:
        return []
    pattern, rows = implied_things()
    implied: dict[tuple[int, int], Triplet] = {}
    for number, caption in enumerate(record.captions):
        for match in pattern.finditer(" ".join(split_words(caption.text))):
            row = match.lastindex or 1
            predicate, classes = rows[row - 1]
            name = next((name for name in classes if name in present), None)
            if name:
                implied[number, row] = _of_person(predicate, name, number)
    return list(implied.values())


def _of_person(predicate: str, name: str, caption: int) -> Triplet:
    """Return the triplet of a person and a class of the dataset."""
    verb, *rest = predicate.split(" ")
    lemma = " ".join([verb_lemma(verb), *rest])
    return Triplet("person", predicate, name, "person", name, lemma, caption, "person", name)


def stated_predicates(
    triplets: Sequence[Triplet], *, verbatim: bool = False, repeats: bool = False
) -> Predicates:
    """Return the predicates that triplets state for each pair of classes; `repeats`: one as often
    as it is stated.
    """
    stated: dict[tuple[str, str], list[str]] = {}
    for triplet in triplets:
        subject = triplet.subject_category
        object_ = triplet.object_category
        if subject is None or object_ is None:
            continue
        texts = stated.setdefault((subject, object_), [])
        text = _predicate_text(triplet, verbatim)
        if repeats or text not in texts:
            texts.append(text)
    return stated


def _predicate_text(triplet: Triplet, verbatim: bool) -> str:
    return triplet.predicate if verbatim else normalise_predicate(triplet.predicate)
