"""The pair stage: from triplets and boxes to the candidate pairs that the tagger scores.

A candidate is an ordered pair of boxes whose classes have predicates, from the captions of the
image or from a prior: the predicates that relate two classes in Visual Genome.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from copy import copy
from functools import lru_cache
from itertools import compress, groupby, product
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from sgpipe.errors import UserError
from sgpipe.files.json_stream import JsonStream
from sgpipe.files.locations import Location
from sgpipe.recipe import PairConfig
from sgpipe.records import Attribute, Box, Pair, Record, Triplet
from sgpipe.sources import vocabulary
from sgpipe.sources.vocabulary import category_names, implied_things, load_equivalents, loose_words
from sgpipe.stages.base import Stage
from sgpipe.stages.parse.grammar.lexicon import NUMBERS
from sgpipe.utils.lemmas import lemmas, verb_lemma

_POSSESSIVE = re.compile(r"\s*['’]s\b|['’]")
_WORD = re.compile(r"[^\W_]+")
_CACHED_PHRASES = 1 << 17


Predicates: TypeAlias = Mapping[tuple[str, str], Sequence[str]]


Prior: TypeAlias = dict[tuple[str, str], list[str]]
TripletCount: TypeAlias = tuple[
    str, str, str, int
]  # subject class, predicate, object class, how often


class HeadMatcher:
    """Matches the longest known phrase around the head noun to classes, which have names and
    synonyms.

    Whole words are compared, in singular, plural or possessive form, with or without spaces ("surf
    board"). The longest phrase decides even if its class is absent from the image: a hot dog is
    never a dog, a license plate ("!license plate" in the table) is not a plate. Of several classes
    the one with this name is first, then the table's order.
    """

    def __init__(
        self,
        synonyms: Mapping[str, Iterable[str]],
        names: Iterable[str] = (),
        loose: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        """`names`: more classes. `loose`: see `loose_words`; all other matches take precedence."""
        self._exact: dict[str, dict[str, int]] = {}
        self._inflected: dict[str, dict[str, int]] = {}
        self._longest = 1
        known = dict.fromkeys((*synonyms, *names))
        for name in known:
            self._learn(name, name, 0)
            for phrase in synonyms.get(name, ()):
                self._learn(name, phrase, 1)
        for word, classes in (loose or {}).items():
            for rank, name in enumerate(classes, 2):
                if name in known:
                    self._learn(name, word, rank)
        self.loose = frozenset(loose or ())
        self.classes = lru_cache(_CACHED_PHRASES)(self._classes)

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        """Return the best match among the classes of an image: the keys of `present`, in order of
        first appearance.
        """
        return next((name for name in self.classes(phrase, head) if name in present), None)

    def _learn(self, name: str, phrase: str, rank: int) -> None:
        words = split_words(phrase)
        self._longest = max(self._longest, len(words))
        if phrase.startswith("!"):
            self._exact.setdefault("".join(words), {})[name] = -1
        elif words:
            self._exact.setdefault("".join(words), {}).setdefault(name, rank)
            for lemma in noun_lemmas(words[-1]):
                self._inflected.setdefault("".join(words[:-1]) + lemma, {}).setdefault(name, rank)

    def _classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        words, at = locate_head(split_words(phrase), split_words(head))
        for length in range(min(self._longest, len(words)), 0, -1):
            for start in range(max(0, at - length + 1), min(at, len(words) - length) + 1):
                left = "".join(words[start:at])
                right = "".join(words[at + 1 : start + length])
                keys = [left + form + right for form in (words[at], *noun_lemmas(words[at]))]
                # What is written in the table takes precedence over other inflections.
                found = (
                    table[key]
                    for table in (self._exact, self._inflected)
                    for key in keys
                    if key in table
                )
                ranks = next(found, None)
                if ranks is not None:
                    return tuple(
                        sorted((name for name in ranks if ranks[name] >= 0), key=ranks.__getitem__)
                    )
        return ()


class SubstringMatcher:
    """RLIPv2's matching: a class matches if a synonym (or else its name) is a substring of the
    lower-cased phrase.

    So "chair" is a person, because it contains "hair". Of several classes the last one to appear is
    chosen.
    """

    def __init__(self, synonyms: Mapping[str, Iterable[str]], names: Iterable[str] = ()) -> None:
        self.loose = frozenset[str]()
        self._synonyms = {
            name: tuple(
                phrase for phrase in synonyms.get(name, (name,)) if not phrase.startswith("!")
            )
            for name in dict.fromkeys((*synonyms, *names))
        }
        self.classes = lru_cache(_CACHED_PHRASES)(self._classes)

    def choose(self, phrase: str, head: str, present: dict[str, None]) -> str | None:
        matching = self.classes(phrase)
        return next((name for name in reversed(present) if name in matching), None)

    def _classes(self, phrase: str, head: str = "") -> tuple[str, ...]:
        text = phrase.lower()
        return tuple(
            name
            for name, phrases in self._synonyms.items()
            if any(part in text for part in phrases)
        )


Matcher: TypeAlias = HeadMatcher | SubstringMatcher


def split_words(phrase: str) -> list[str]:
    """Return the lower-case words of a phrase, without punctuation or possessive endings."""
    return _WORD.findall(_POSSESSIVE.sub("", unicodedata.normalize("NFKC", phrase).casefold()))


def normalise_predicate(text: str) -> str:
    return " ".join(text.lower().split())


@lru_cache(1 << 16)
def noun_lemmas(word: str) -> tuple[str, ...]:
    """Other forms of a noun that a table may list: singulars, most likely first ("mens" → men,
    man).
    """
    forms: dict[str, None] = {}
    for form in (word, *lemmas(word, "NOUN")):
        forms |= dict.fromkeys((form, *lemmas(form, "NOUN")))
    forms.pop(word)
    return tuple(forms)


def locate_head(words: list[str], head: list[str]) -> tuple[list[str], int]:
    """Return the words and the index of the head noun, by default the last word."""
    if not head:
        return words, len(words) - 1
    noun = head[-1]
    forms = {noun, *noun_lemmas(noun)}
    same = [at for at, word in enumerate(words) if word == noun]
    similar = same or [
        at for at, word in enumerate(words) if not forms.isdisjoint((word, *noun_lemmas(word)))
    ]
    return (words, similar[-1]) if similar else (head, len(head) - 1)


def candidate_pairs(
    objects: Sequence[Box],
    predicates: Predicates,
    *,
    require_overlap: bool = False,
    limit: int | None = None,
) -> tuple[list[Pair], int]:
    """Return all ordered pairs of distinct boxes whose (subject class, object class) has
    predicates; without crowds.

    `require_overlap`: keep only pairs of boxes that share some area. `limit`: number of pairs.
    Boxes are visited by `Box.rank`, the largest first, each adding its pairs with the boxes visited
    before it.

    Returns pairs of indices, sorted, each with its own copy of the predicates; and the number of
    pairs beyond the limit, among which those of boxes that were not visited count as overlapping.
    """
    present = {box.category for box in objects}
    related = [
        (s, o) for (s, o), texts in predicates.items() if texts and s in present and o in present
    ]
    subjects = defaultdict[str, list[str]](list)
    partners = defaultdict[str, list[str]](list)
    for subject, object_ in related:
        subjects[object_].append(subject)
        partners[subject].append(object_)
    classes = {name for pair in related for name in pair}
    usable = [
        i
        for i, box in enumerate(objects)
        if box.category in classes and not (box.iscrowd or box.is_nothing)
    ]
    usable.sort(key=lambda index: objects[index].rank)
    boxes = np.array([objects[index].bbox for index in usable], np.float64)
    names = [objects[index].category for index in usable]
    number = Counter(names)
    beyond = sum(number[s] * (number[o] - (s == o)) for s, o in related)
    visited = defaultdict[str, list[int]](list)
    chosen: list[tuple[int, int]] = []
    for late, name in enumerate(names):
        pairs = [(early, late) for subject in subjects[name] for early in visited[subject]]
        pairs += [(late, early) for object_ in partners[name] for early in visited[object_]]
        beyond -= len(pairs)
        if require_overlap and pairs:
            pairs = list(compress(pairs, overlapping(boxes, np.array(pairs))))
        if limit is not None and len(chosen) + len(pairs) >= limit:
            pairs.sort(key=lambda pair: (min(pair), pair))
            beyond += len(chosen) + len(pairs) - limit
            chosen += pairs[: limit - len(chosen)]
            break
        chosen += pairs
        visited[name].append(late)
    pairs = sorted((usable[subject], usable[object_]) for subject, object_ in chosen)
    return [
        Pair(s, o, list(predicates[objects[s].category, objects[o].category])) for s, o in pairs
    ], beyond


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
    """As `collect_prior`. Raises UserError: the file cannot be read, is not in a VG layout, or
    relates no classes.
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
    object). If a name matches several classes, its relationships count for each. Unless `verbatim`,
    predicates are lower-cased with single spaces, none is empty.
    """
    predicates: dict[tuple[str, str], dict[str, None]] = {}
    for graph in graphs:
        things = {item["object_id"]: item for item in graph.get("objects", ())}
        for relation in graph["relationships"]:
            classes: dict[str, tuple[str, ...]] = {}
            for role in ("subject", "object"):
                item = relation[role] if role in relation else things[relation[f"{role}_id"]]
                names = (
                    item["names"] if "names" in item else item["name"]
                )  # a string in RLIP's files, else a list
                classes[role] = matcher.classes(
                    str(names if isinstance(names, str) else next(iter(names), ""))
                )
            text = (
                str(relation["predicate"])
                if verbatim
                else normalise_predicate(str(relation["predicate"]))
            )
            for pair in product(classes["subject"], classes["object"]) if text or verbatim else ():
                predicates.setdefault(pair, {})[text] = None
    return {pair: list(texts) for pair, texts in predicates.items()}


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


def synonyms_of(config: PairConfig, dataset: str) -> Mapping[str, tuple[str, ...]]:
    """Return the recipe's synonym table, or the packaged one of a dataset. Raises UserError: as
    `load_synonyms`.
    """
    return (
        vocabulary.load_synonyms(config.synonyms)
        if config.synonyms
        else vocabulary.packaged_synonyms(dataset)
    )


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
        self._verbatim = (
            config.match == "substring"
        )  # predicates as the parser or VG spells them, as in RLIPv2

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
        free = {box.category for box in record.objects if box.origin == "grounded"}.difference(
            self._names
        )
        assign_categories(self._matcher, record.triplets, present, free)
        if self._extended is not None:
            self._extended.assign_kinds(record.triplets, present)
        assign_attributes(self._matcher, record)
        triplets = told_triplets(record, self.config.match, self.config.loose)
        if self.config.candidates == "prior":
            predicates: Predicates = {
                (s, o): self._prior.get((s, o), []) for s in present for o in present
            }
        elif self.config.candidates in ("marks", "layout"):
            predicates = {}
        elif self.config.candidates == "image":
            texts = [
                each.predicate if self._verbatim else normalise_predicate(each.predicate)
                for each in triplets
            ]
            texts = list(dict.fromkeys(texts))
            predicates = {(s, o): texts for s in present for o in present}
        else:
            predicates = stated_predicates(triplets, verbatim=self._verbatim)
        if self._extended is not None:
            predicates = self._extended.predicates(predicates, present)
        record.left_out["pairs"] = self._list_pairs(record, record.objects, predicates)

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
        most = config.known
        texts = {pair: sorted(found) for pair, found in counts.items()}
        self._frequent = {
            pair: sorted(own, key=lambda text: -counts[pair][text])[:most]
            for pair, own in texts.items()
        }

    def assign_kinds(self, triplets: Iterable[Triplet], present: Iterable[str]) -> None:
        """Set the categories that `assign_categories` left empty to the first class of the image of
        their kind.
        """
        classes = {self._kinds.get(name, name): name for name in reversed(list(present))}

        def of_kind(phrase: str, head: str) -> str | None:
            return next(
                (classes[kind] for kind in self._matcher.classes(phrase, head) if kind in classes),
                None,
            )

        for each in triplets:
            each.subject_category = each.subject_category or of_kind(
                each.subject, each.subject_head
            )
            each.object_category = each.object_category or of_kind(each.object, each.object_head)

    def predicates(self, stated: Predicates, present: Iterable[str]) -> Predicates:
        """Return the predicates of pairs of classes: those of the run, and those stated that say
        something else.
        """
        kinds_of = {
            name: self._kinds.get(name, name) for name in present
        }  # a free noun is of its own kind
        pairs = {(s, o): (kinds_of[s], kinds_of[o]) for s, o in product(kinds_of, repeat=2)}
        meant: dict[tuple[str, str], dict[Any, str]] = {kinds: {} for kinds in pairs.values()}
        texts = [(each, text) for each in meant for text in self._frequent.get(each, ())]
        for kinds, text in (
            *texts,
            *((pairs[pair], text) for pair, own in stated.items() for text in own),
        ):
            meant[kinds].setdefault(self.equivalents.key(0, text, 1), text)
        return {pair: list(meant[kinds].values()) for pair, kinds in pairs.items()}


def assign_categories(
    matcher: Matcher,
    triplets: Iterable[Triplet],
    present: dict[str, None],
    free: Collection[str] = (),
) -> None:
    """Set the categories of the triplets' subjects and objects; None if the image has no such
    class, or a loose word would relate a class to itself ("a pizza with a crust").

    `present`: the class names of the image's boxes, including crowds, in order of first appearance.
    `free`: those that are heads of nouns, unknown to the matcher; they precede classes that a noun
    may loosely stand for.
    """

    def category(phrase: str, head: str) -> str | None:
        name = matcher.choose(phrase, head, present)
        return (
            head
            if head in free and (name is None or not matcher.loose.isdisjoint((phrase, head)))
            else name
        )

    for triplet in triplets:
        subject = category(triplet.subject, triplet.subject_head)
        object_ = category(triplet.object, triplet.object_head)
        is_loose = object_ not in free and not matcher.loose.isdisjoint(
            (triplet.object, triplet.object_head)
        )
        triplet.subject_category = subject
        triplet.object_category = None if is_loose and subject == object_ else object_


def told_triplets(record: Record, match: str | None, loose: bool | None) -> list[Triplet]:
    """Return the triplets of a record, then those that its captions imply; `match`, `loose`: of the
    pair stage.
    """
    return [*record.triplets, *(implied_triplets(record) if loose and match != "substring" else ())]


def assign_attributes(matcher: Matcher, record: Record) -> None:
    """Give objects the attributes of the mentions that mean them, in place of those that captions
    gave before.

    A mention means the boxes that its phrase was grounded by, or else those of its class, if they
    are as many as it says, or one if it says no number; and not if the caption names another thing
    of the class, or one by a loose word.
    """
    if record.mentions is None:
        return
    for box in record.objects:
        box.attributes = [each for each in box.attributes if each.caption is None]
    present = dict.fromkeys(box.category for box in record.objects)
    for number, own in groupby(record.mentions, lambda mention: mention.caption):
        named = [
            (mention, matcher.choose(mention.phrase, mention.head, present)) for mention in own
        ]
        often = Counter(category for _, category in named)
        boxes = [record.objects[index] for index in record.captions[number].boxes] or record.objects
        for mention, category in named:
            if not mention.attributes:
                continue
            meant = [
                box for box in boxes if box.phrase and mention.phrase in box.phrase.split(", ")
            ]
            if (
                not meant
                and often[category] == 1
                and matcher.loose.isdisjoint((mention.phrase, mention.head))
            ):
                meant = [box for box in boxes if box.category == category]
            counts = [NUMBERS.index(name) for name in mention.attributes if name in NUMBERS]
            if len(meant) == (counts[0] if counts else 1) and not any(box.iscrowd for box in meant):
                for box in meant:
                    box.attributes += [Attribute(name, number) for name in mention.attributes]
    record.mentions = None


def implied_triplets(record: Record) -> list[Triplet]:
    """Return what captions imply of persons and the classes of the image's boxes: a "skier" is
    skiing on skis.
    """
    present = {box.category for box in record.objects}
    pattern, rows = implied_things()
    found: dict[tuple[int, int], Triplet] = {}
    for number, caption in enumerate(record.captions if "person" in present else ()):
        for match in pattern.finditer(" ".join(split_words(caption.text))):
            predicate, classes = rows[(match.lastindex or 1) - 1]
            name = next((each for each in classes if each in present), None)
            if name:
                verb, *rest = predicate.split(" ")
                lemma = " ".join([verb_lemma(verb), *rest])
                triplet = Triplet(
                    "person", predicate, name, "person", name, lemma, number, "person", name
                )
                found[number, match.lastindex or 1] = triplet
    return list(found.values())


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
        text = triplet.predicate if verbatim else normalise_predicate(triplet.predicate)
        texts = stated.setdefault((subject, object_), [])
        if repeats or text not in texts:
            texts.append(text)
    return stated
