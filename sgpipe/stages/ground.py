"""The ground stage: words of captions that no box of the image carries become boxes, by a detector
that reads text.

Words meet boxes as in the pair stage. The category of a grounded box is the class that its word
names, or else the head of the word in the singular: a free noun, which need not be a class of the
dataset.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from dataclasses import replace
from hashlib import blake2b
from itertools import compress
from typing import NamedTuple

import torch
from torchvision.ops import batched_nms, box_iou, nms

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import Recipe
from sgpipe.records import Box, Record
from sgpipe.sources.vocabulary import category_names, loose_words
from sgpipe.stages.base import ImageStage
from sgpipe.stages.detect import Prepared, check_prompted, load_prompted
from sgpipe.stages.matching import HeadMatcher, locate_head, split_words
from sgpipe.stages.pair import synonyms_of
from sgpipe.stages.parse.grammar import lexicon
from sgpipe.stages.parse.rules import analyse, load_model, nouns
from sgpipe.utils.boxes import clip_box

_NON_THINGS = lexicon.NON_THINGS | lexicon.SCENERY | lexicon.EVENT_NOUNS | lexicon.DEPICTIONS
_FREE_IDS = 1 << 30  # from here on, beyond the ids of any dataset


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
        self, recipe: Recipe, roots: Mapping[str, ImagePlace], classes: Mapping[str, int], data: str
    ) -> None:
        """`classes`: the id of every class of the dataset. `data`: whose synonym table is used, see
        `PairStage`.
        """
        super().__init__(recipe.ground, roots)
        self.pair = recipe.pair
        self.parse = recipe.parse
        self.classes = classes
        self.dataset = data

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
        asked = {
            id(record): words for record in records if record.ok and (words := self.words(record))
        }
        named = (record for record in records if id(record) in asked)
        for record, prepared in self.opened(
            named, lambda image, file: self.detector.prepare(image)
        ):
            found = self._find(prepared, asked[id(record)], record)
            names = [
                box.category for box in found
            ]  # they take turns: what is everywhere leaves room for others
            turns = sorted(range(len(found)), key=lambda at: (names[:at].count(names[at]), at))[
                : self.config.max_boxes
            ]
            record.left_out["grounded"] = len(found) - len(turns)
            record.objects += [found[at] for at in sorted(turns)]
        return records

    def words(self, record: Record) -> dict[str, Word]:
        """Return what to look for in an image, by the text that the detector reads; first what most
        captions say.

        What is beyond `max_words`, or too long for the detector, is left out and counted.
        """
        present = {box.category for box in record.objects}
        words: dict[str, Word] = {}
        said: dict[str, set[int]] = {}
        named = [
            (triplet.caption, *name)
            for triplet in record.triplets
            for name in (
                (triplet.subject, triplet.subject_head),
                (triplet.object, triplet.object_head),
            )
        ]
        if self.language is not None:
            analysed = analyse(self.language, (caption.text for caption in record.captions), 256)
            named += [
                (number, *name) for number, (tree, _) in enumerate(analysed) for name in nouns(tree)
            ]
        for caption, phrase, head in named:
            classes = self.matcher.classes(phrase, head)
            is_thing = classes or (head not in _NON_THINGS and sum(map(str.isalpha, head)) > 1)
            if not is_thing or not present.isdisjoint(self.carried.classes(phrase, head)):
                continue
            text = known = next(
                (name for name in classes if name in self.classes), classes[0] if classes else head
            )
            if not classes or self.config.ask == "words":
                parts, at = locate_head(split_words(phrase), split_words(head))
                parts[at : at + 1] = split_words(head)[-1:] or parts[at : at + 1]
                text = " ".join(parts)
            words.setdefault(text, Word({}, known, frozenset(classes))).phrases[phrase] = None
            said.setdefault(text, set()).add(caption)
        readable = sorted(filter(self.detector.reads, words), key=lambda text: -len(said[text]))
        kept = readable[: self.config.max_words]
        record.left_out["words"] = len(words) - len(kept)
        return {text: words[text] for text in kept}

    def _find(self, image: Prepared, words: Mapping[str, Word], record: Record) -> list[Box]:
        """Boxes of words, highest score first, without repetitions and those that the image has."""
        detector = copy(self.detector)
        detector.ask(list(words))
        corners, scores, labels = detector.detect(image, self.config.threshold)
        corners = corners.double()
        asked = list(words.values())
        categories = list(dict.fromkeys(word.category for word in asked))
        meant = torch.tensor([categories.index(word.category) for word in asked])[labels]
        kept = batched_nms(corners, scores.double(), meant, self.config.overlap)
        kept = kept[nms(corners[kept], scores[kept].double(), self.config.overlap_across)]
        given = [{box.category, *self.matcher.classes(box.category, "")} for box in record.objects]
        sides = torch.tensor([box.bbox for box in record.objects], dtype=torch.float64).view(-1, 4)
        sides[:, 2:] += sides[:, :2]
        boxes = []
        for index, close in zip(
            kept.tolist(), box_iou(corners[kept], sides) > self.config.overlap, strict=True
        ):
            word, (left, top, right, bottom) = asked[labels[index]], corners[index].tolist()
            if any(names & {word.category, *word.classes} for names in compress(given, close)):
                continue
            bbox = clip_box((left, top, right - left, bottom - top), record.width, record.height)
            if bbox is not None:
                digest = int.from_bytes(
                    blake2b(word.category.encode(), digest_size=4).digest(), "big"
                )
                number = self.ids.get(
                    word.category, _FREE_IDS + digest % _FREE_IDS
                )  # hardly two free nouns share one
                box = Box(word.category, number, bbox, origin="grounded")
                boxes.append(
                    replace(box, score=float(scores[index]), phrase=", ".join(word.phrases))
                )
        return boxes
