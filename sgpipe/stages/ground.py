"""The ground stage: words of captions that no box of the image carries become boxes, by a detector
that reads text.

Words meet boxes as in the pair stage. The category of a grounded box is the class that its word
names, or else the head of the word in the singular: a free noun, which need not be a class of the
dataset.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from copy import copy
from hashlib import blake2b
from itertools import chain, compress
from typing import NamedTuple, Self

import torch
from torchvision.ops import batched_nms, box_iou, nms

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import StagePlan
from sgpipe.records import Box, Record
from sgpipe.sources.vocabulary import category_names, loose_words
from sgpipe.stages.base import ImageStage
from sgpipe.stages.context import StageContext
from sgpipe.stages.detect import Prepared, check_prompted, load_prompted
from sgpipe.stages.matching import HeadMatcher, locate_head, split_words
from sgpipe.stages.pair import synonyms_of
from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.rules import analyse, load_model, nouns
from sgpipe.utils.boxes import clip_box

_NON_THINGS = lexicon.NON_THINGS | lexicon.SCENERY | lexicon.EVENT_NOUNS | lexicon.DEPICTIONS
_FREE_IDS = 1 << 30  # from here on, beyond the ids of any dataset
_TOGETHER = 256  # captions that are analysed at a time


class Word(NamedTuple):
    """What is looked for: `phrases`, as captions say them, name a thing of `category`, and maybe of
    other `classes`.
    """

    phrases: dict[str, None]
    category: str
    classes: frozenset[str]


class GroundStage(ImageStage):
    """Adds boxes of words to `objects`, highest score first, one image at a time.

    `category_id` is that of the dataset; if it has no classes, that of COCO or Objects365; of free
    nouns a number of 2^30 or more that follows from the noun alone.
    """

    name = "ground"

    def __init__(
        self,
        plan: StagePlan,
        roots: Mapping[str, ImagePlace],
        classes: Mapping[str, int],
        dataset: str,
    ) -> None:
        """
        Args:
            classes: the id of every class of the dataset.
            dataset: whose synonym table is used, see `PairStage`.
        """
        super().__init__(plan.ground, roots)
        self.pair = plan.pair
        self.parse = plan.parse
        self.classes = classes
        self.dataset = dataset

    @classmethod
    def of(cls, context: StageContext) -> Self:
        return cls(context.plan, context.roots, context.classes, context.synonyms)

    def with_classes(self, classes: Mapping[str, int]) -> GroundStage:
        other = copy(self)
        other.classes = classes
        other._learn_names()
        return other

    def check(self) -> None:
        check_prompted(str(self.config.detector), "ground.detector")

    def setup(self) -> None:
        self.check()
        self.set_up_device()
        self.detector = load_prompted(str(self.config.detector), ["thing"], self.device)
        model = self.parse.model if self.parse.parser in ("rules", "learned") else None
        self.language = load_model(model) if self.config.words == "all" else None
        self._learn_names()

    def _learn_names(self) -> None:
        official = {name: number for number, name in category_names(self.dataset).items()}
        self.ids = self.classes or official
        known = synonyms_of(self.pair, self.dataset), sorted({*self.classes, *official})
        self.matcher = HeadMatcher(*known)
        self.carried = HeadMatcher(*known, loose_words()) if self.pair.loose else self.matcher

    def __call__(self, records: list[Record]) -> list[Record]:
        words = {id(record): self.words(record) for record in records if record.ok}
        searched = [record for record in records if words.get(id(record))]
        opened = self.opened(searched, lambda image, file: self.detector.prepare(image))
        for record, prepared in opened:
            boxes = self._find(prepared, words[id(record)], record)
            chosen = _take_turns(boxes, self.config.max_boxes)
            record.left_out["grounded"] = len(boxes) - len(chosen)
            record.objects += chosen
        return records

    def words(self, record: Record) -> dict[str, Word]:
        """Return what to look for in an image, by the text that the detector reads; first what most
        captions say.

        What is beyond `max_words`, or too long for the detector, is left out and counted.
        """
        present = {box.category for box in record.objects}
        words: dict[str, Word] = {}
        captions: defaultdict[str, set[int]] = defaultdict(set)
        for caption, phrase, head in self._nouns(record):
            classes = self.matcher.classes(phrase, head)
            is_thing = classes or _is_thing(head)
            if not is_thing or not present.isdisjoint(self.carried.classes(phrase, head)):
                continue
            category = self._category(classes, head)
            text = category
            if not classes or self.config.ask == "words":
                text = _as_read(phrase, head)
            word = words.setdefault(text, Word({}, category, frozenset(classes)))
            word.phrases[phrase] = None
            captions[text].add(caption)
        readable = filter(self.detector.reads, words)
        by_captions = sorted(readable, key=lambda text: -len(captions[text]))
        chosen = by_captions[: self.config.max_words]
        record.left_out["words"] = len(words) - len(chosen)
        return {text: words[text] for text in chosen}

    def _nouns(self, record: Record) -> list[tuple[int, str, str]]:
        """Return the number of the caption, phrase and head of the nouns to look for."""
        named: list[tuple[int, str, str]] = []
        for triplet in record.triplets:
            named.append((triplet.caption, triplet.subject, triplet.subject_head))
            named.append((triplet.caption, triplet.object, triplet.object_head))
        if self.language is not None:
            texts = (caption.text for caption in record.captions)
            for number, (tree, _) in enumerate(analyse(self.language, texts, _TOGETHER)):
                named += [(number, phrase, head) for phrase, head in nouns(tree)]
        return named

    def _category(self, classes: Sequence[str], head: str) -> str:
        """Return the first of the classes that the dataset has, or else the first, or the head."""
        for name in classes:
            if name in self.classes:
                return name
        return classes[0] if classes else head

    def _find(self, image: Prepared, words: Mapping[str, Word], record: Record) -> list[Box]:
        """Boxes of words, highest score first, without repetitions and those that the image has."""
        detector = copy(self.detector)
        detector.ask(list(words))
        corners, scores, labels = detector.detect(image, self.config.threshold)
        corners = corners.double()
        asked = list(words.values())
        categories = list(dict.fromkeys(word.category for word in asked))
        numbers = torch.tensor([categories.index(word.category) for word in asked])[labels]
        distinct = batched_nms(corners, scores.double(), numbers, self.config.overlap)
        across = nms(corners[distinct], scores[distinct].double(), self.config.overlap_across)
        distinct = distinct[across]
        carried = [
            {box.category, *self.matcher.classes(box.category, "")} for box in record.objects
        ]
        sides = torch.tensor([box.bbox for box in record.objects], dtype=torch.float64).view(-1, 4)
        sides[:, 2:] += sides[:, :2]
        are_close = box_iou(corners[distinct], sides) > self.config.overlap
        boxes = []
        for index, is_close in zip(distinct.tolist(), are_close, strict=True):
            word = asked[labels[index]]
            names = word.classes | {word.category}
            if not names.isdisjoint(chain.from_iterable(compress(carried, is_close))):
                continue
            left, top, right, bottom = corners[index].tolist()
            bbox = clip_box((left, top, right - left, bottom - top), record.width, record.height)
            if bbox is not None:
                box = Box(
                    word.category,
                    self.ids.get(word.category, _free_id(word.category)),
                    bbox,
                    origin="grounded",
                    score=float(scores[index]),
                    phrase=", ".join(word.phrases),
                )
                boxes.append(box)
        return boxes


def _take_turns(boxes: Sequence[Box], limit: int) -> list[Box]:
    """Return as many boxes as the limit: in turns one of each category, so that what is everywhere
    leaves room for others.
    """
    times = Counter[str]()
    turns = []
    for index, box in enumerate(boxes):
        turns.append((times[box.category], index))
        times[box.category] += 1
    chosen = {index for _, index in sorted(turns)[:limit]}
    return [box for index, box in enumerate(boxes) if index in chosen]


def _is_thing(head: str) -> bool:
    """Whether a noun names something that can be seen."""
    return head not in _NON_THINGS and sum(map(str.isalpha, head)) > 1


def _as_read(phrase: str, head: str) -> str:
    """Return a phrase whose head noun is in the singular."""
    words, position = locate_head(split_words(phrase), split_words(head))
    singular = split_words(head)[-1:]
    if singular:
        words[position] = singular[0]
    return " ".join(words)


def _free_id(noun: str) -> int:
    """Return the category id of a free noun; hardly two share one."""
    digest = blake2b(noun.encode(), digest_size=4).digest()
    return _FREE_IDS + int.from_bytes(digest, "big") % _FREE_IDS
