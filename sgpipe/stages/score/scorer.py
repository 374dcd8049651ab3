"""What scorers show and ask (an image and relations in, a probability of each out), and
vision-language models.

A scorer sees the subject in a red and the object in a blue outline, or all boxes of an image with
numbers. A model of transformers or behind an endpoint tells how probable "yes" is. It is asked
twice, with the answers named in both orders: models prefer the first, or the last.
"""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any, NamedTuple

from PIL import Image, ImageDraw

from sgpipe.recipe import CaptionConfig, TagConfig
from sgpipe.records import Box, Relation
from sgpipe.stages.caption.stage import load_captioner
from sgpipe.stages.score.numbered import NumberedImage, draw_numbers, numbered_images
from sgpipe.stages.served.answers import CacheFolder
from sgpipe.stages.served.chat import ChatRequest, Choice, Refusal
from sgpipe.stages.served.images import image_url

Score = float | Refusal  # a probability, or why there is none
NO_AREA = Refusal("a box has no area in the image")

# Predicates that hold in both directions: a text with swapped roles says the same.
SYMMETRIC = frozenset(
    {
        "next to",
        "beside",
        "near",
        "by",
        "close to",
        "adjacent to",
        "alongside",
        "with",
        "touching",
        "facing",
        "hugging",
    }
)

SUBJECT_COLOUR = (230, 30, 30)
OBJECT_COLOUR = (30, 80, 255)
# the mean colour of ImageNet, where a square reaches beyond the image
_SURROUNDING = (124, 116, 104)
_MARGIN = 0.08  # around both boxes, as a share of the longer side

Corners = tuple[float, float, float, float]  # pixel xyxy
LONGEST_SIDE = 1024  # pixels of the image that is shown
NEITHER = Refusal('the model answers neither "yes" nor "no"')
_ORDERS = ("yes or no", "no or yes")


def relation_text(subject: Box, predicate: str, object_: Box) -> str:
    """Return the text "a SUBJECT PREDICATE an OBJECT"; without the object if there is none."""
    last = "" if object_.is_nothing else f" {with_article(object_.category)}"
    return f"{with_article(subject.category)} {predicate}{last}"


def with_article(name: str) -> str:
    return f"{'an' if name[:1].lower() in 'aeiou' else 'a'} {name}"


def is_directed(subject: Box, object_: Box) -> bool:
    """Return whether swapping subject and object changes the text."""
    return not object_.is_nothing and subject.category != object_.category


def contrast_texts(objects: Sequence[Box], relation: Relation) -> list[str]:
    """Return what else the two boxes may show: both things, unrelated, and the relation with
    swapped roles.
    """
    subject = objects[relation.subject]
    object_ = objects[relation.object]
    if object_.is_nothing:
        return [with_article(subject.category)]
    texts = [f"{with_article(subject.category)} and {with_article(object_.category)}"]
    if is_directed(subject, object_) and relation.predicate.strip().lower() not in SYMMETRIC:
        texts.append(relation_text(object_, relation.predicate, subject))
    return texts


def marked_crop(
    image: Image.Image, objects: Sequence[Box], relation: Relation, side: int
) -> Image.Image | None:
    """Return a square of `side` pixels around both boxes, outlined; None if a box has no area in
    the image.
    """
    boxes = visible_boxes(image, objects, relation)
    if boxes is None:
        return None
    lefts, tops, rights, bottoms = zip(*boxes, strict=True)
    left = min(lefts)
    top = min(tops)
    right = max(rights)
    bottom = max(bottoms)
    length = max(right - left, bottom - top, 1.0) * (1 + 2 * _MARGIN)
    x = (left + right - length) / 2
    y = (top + bottom - length) / 2
    scale = side / length
    square = Image.new("RGB", (side, side), _SURROUNDING)
    shown = (max(x, 0.0), max(y, 0.0), min(x + length, image.width), min(y + length, image.height))
    place = [
        round((value - start) * scale) for value, start in zip(shown, (x, y, x, y), strict=True)
    ]
    size = (max(place[2] - place[0], 1), max(place[3] - place[1], 1))
    square.paste(
        image.resize(size, Image.Resampling.BICUBIC, shown, reducing_gap=3), (place[0], place[1])
    )
    _outline(square, boxes, (x, y), scale, max(side // 48, 1))
    return square


def marked_images(
    image: Image.Image, objects: Sequence[Box], relations: Iterable[Relation], longest: int
) -> Iterator[Image.Image]:
    """Yield the whole image, reduced to at most `longest` pixels, with both outlines of each
    relation.
    """
    scale = min(longest / max(image.size), 1.0)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    reduced = image.resize(size, Image.Resampling.BICUBIC, reducing_gap=3)
    for relation in relations:
        copy = reduced.copy()
        _outline(
            copy,
            visible_boxes(image, objects, relation) or [],
            (0, 0),
            scale,
            max(max(size) // 200, 2),
        )
        yield copy


def visible_boxes(
    image: Image.Image, objects: Sequence[Box], relation: Relation
) -> list[Corners] | None:
    """Return the subject's box and the object's, if there is one, within the image; None if one has
    no area there.
    """
    boxes: list[Corners] = []
    for box in (objects[relation.subject], objects[relation.object]):
        if not box.is_nothing:
            x, y, width, height = box.bbox
            right = min(x + width, float(image.width))
            bottom = min(y + height, float(image.height))
            boxes.append((max(x, 0.0), max(y, 0.0), right, bottom))
    have_area = all(right > left and bottom > top for left, top, right, bottom in boxes)
    return boxes if boxes and have_area else None


def _outline(
    image: Image.Image,
    boxes: Sequence[Corners],
    origin: tuple[float, float],
    scale: float,
    width: int,
) -> None:
    """Draw the object's outline first: where they meet, the subject's is seen."""
    pen, (x, y) = ImageDraw.Draw(image), origin
    for box, colour in reversed(list(zip(boxes, (SUBJECT_COLOUR, OBJECT_COLOUR), strict=False))):
        left, top, right, bottom = (
            (side - start) * scale for side, start in zip(box, (x, y, x, y), strict=True)
        )
        pen.rectangle(
            (left, top, max(right - 1, left), max(bottom - 1, top)), outline=colour, width=width
        )


class ScorerInput(NamedTuple):
    """An RGB image, and relations between its objects that are asked about."""

    image: Image.Image
    objects: Sequence[Box]
    relations: Sequence[Relation]


@dataclass
class _OpenScores:
    """The scores of an image; `missing`: how many are not known yet."""

    scores: list[Score]
    missing: int

    def add(self, relations: Iterable[int], answers: Iterable[list[Choice] | Refusal]) -> None:
        """Add the scores of relations, by their indices, from the answers in both orders."""
        shares = map(_share, answers)
        for index, score in zip(relations, map(mean_of_orders, shares, shares), strict=True):
            self.scores[index] = score
            self.missing -= 1


_Group = tuple[_OpenScores, list[int]]  # of an image, and the indices of relations asked about


class VlmScorer:
    """Asks a model, local or served, whether a relation is correct, in two requests of one token
    each.

    With `tag.questions: each` an image shows the boxes of one relation, and no answer depends on
    another question; with `shared` it shows numbered boxes, and all questions about it begin alike.
    A server must return log-probabilities.
    """

    def __init__(self, config: TagConfig, cache: CacheFolder | None = None) -> None:
        """Choose the model, here or behind an endpoint.

        Raises:
            UserError: the model does not exist.
        """
        asked = CaptionConfig(
            captioner=config.tagger,
            endpoint=config.endpoint,
            requests=config.requests,
            prompt="Is it grey?",
            min_tokens=1,
            max_tokens=1,
            device=config.device,
            dtype=config.dtype,
            resources=config.resources,
        )
        self._model: Any = load_captioner(asked, cache, role="scorer")
        self._served = config.endpoint is not None
        self._is_shared = config.questions == "shared"

    def check(self) -> None:
        """Ask the model an example.

        Raises:
            UserError: the model cannot be used, or the server does not answer, or ignores a
                setting.
        """
        self._model.check(self._example()[0])

    def _example(self) -> list[ChatRequest]:
        image = Image.new("RGB", (64, 64), "white")
        objects = [Box("dog", 0, (4, 4, 40, 40)), Box("cat", 0, (40, 20, 20, 20))]
        relations = [Relation(0, 1, "next to"), Relation(1, 0, "sitting on the back of")]
        if self._is_shared:
            [numbered] = numbered_images(objects, relations)
            return self._ask_together(numbered, image, objects, relations)
        return list(self._ask(image, objects, relations))

    def load(self) -> None:
        self._model.setup()
        if self._is_shared and not self._served:
            self._model.check_together(self._example())

    def scores(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> list[Score]:
        """Return the probability that each relation of an RGB image is correct, or why there is
        none, in their order.

        Raises:
            UserError, EngineError: if the scorer fails on every image.
        """
        [scores] = self.score_images([ScorerInput(image, objects, relations)])
        return scores

    def score_images(self, images: Iterable[ScorerInput]) -> Iterator[list[Score]]:
        """Yield what `scores` returns for each image, in order; a server is asked about the next
        images meanwhile.
        """
        open_images: deque[_OpenScores] = deque()
        open_groups: deque[_Group] = deque()
        for answers in self._answers(self._groups(images, open_images, open_groups)):
            image, relations = open_groups.popleft()
            image.add(relations, answers)
            while open_images and not open_images[0].missing:
                yield open_images.popleft().scores
        for image in open_images:
            yield image.scores

    def _answers(
        self, groups: Iterable[Sequence[ChatRequest]]
    ) -> Iterator[list[list[Choice] | Refusal]]:
        """Yield the answers to each group of questions."""
        if self._is_shared:
            yield from self._model.ask_groups(groups)
            return
        sizes: deque[int] = deque()

        def requests() -> Iterator[ChatRequest]:
            for group in groups:
                sizes.append(len(group))
                yield from group

        answers = self._model.ask_all(requests())
        for first in answers:
            yield [first, *islice(answers, sizes.popleft() - 1)]

    def _groups(
        self,
        images: Iterable[ScorerInput],
        open_images: deque[_OpenScores],
        open_groups: deque[_Group],
    ) -> Iterator[list[ChatRequest]]:
        """Yield the questions about the relations of each image whose boxes have an area.

        Args:
            open_images: gets each image.
            open_groups: gets what each group of questions is about.
        """
        for image, objects, relations in images:
            visible = [
                index
                for index, relation in enumerate(relations)
                if visible_boxes(image, objects, relation) is not None
            ]
            scores = _OpenScores([NO_AREA] * len(relations), len(visible))
            open_images.append(scores)
            asked = [relations[index] for index in visible]
            for group, requests in self._questions(image, objects, asked):
                open_groups.append((scores, [visible[index] for index in group]))
                yield requests

    def _questions(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> Iterator[tuple[list[int], list[ChatRequest]]]:
        """Yield indices of relations, and the questions about them that begin alike."""
        if self._is_shared:
            for numbered in numbered_images(objects, relations):
                requests = self._ask_together(numbered, image, objects, relations)
                yield numbered.relations, requests
            return
        questions = self._ask(image, objects, relations)
        for index in range(len(relations)):
            yield [index], list(islice(questions, len(_ORDERS)))

    def _ask(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> Iterator[ChatRequest]:
        """Yield both questions about each relation."""
        for relation, marked in zip(
            relations, marked_images(image, objects, relations, LONGEST_SIDE), strict=True
        ):
            shown = image_url(marked) if self._served else marked
            for question in ask_about(objects, relation):
                yield ChatRequest(question, shown, max_tokens=1, logprobs=True)

    def _ask_together(
        self,
        numbered: NumberedImage,
        image: Image.Image,
        objects: Sequence[Box],
        relations: Sequence[Relation],
    ) -> list[ChatRequest]:
        """Return both questions about each relation of a numbered image; all begin with the same image
        and text.
        """
        marked = draw_numbers(image, [objects[index] for index in numbered.boxes])
        shown = image_url(marked) if self._served else marked
        prompt = numbered.prompt(objects)
        requests = []
        for index in numbered.relations:
            for question in in_both_orders(numbered.question(objects, relations[index])):
                text = f"{prompt}\n{question}"
                requests.append(ChatRequest(text, shown, max_tokens=1, logprobs=True))
        return requests


def _share(answer: list[Choice] | Refusal) -> Score:
    if isinstance(answer, Refusal):
        return answer
    return share_of_yes(
        {token: math.exp(min(value, 0)) for token, value in (answer[0].logprobs or {}).items()}
    )


def ask_about(objects: Sequence[Box], relation: Relation) -> tuple[str, ...]:
    """Return the question with the answers in both orders."""
    subject = objects[relation.subject]
    object_ = objects[relation.object]
    last = "" if object_.is_nothing else f" the {object_.category} (blue box)"
    return in_both_orders(f"Is the {subject.category} (red box) {relation.predicate}{last}?")


def in_both_orders(question: str) -> tuple[str, ...]:
    return tuple(f"{question} Answer with one word: {order}." for order in _ORDERS)


def mean_of_orders(first: Score, second: Score) -> Score:
    """Return the mean of the probabilities of both orders, or the first reason why there is
    none.
    """
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        return first if isinstance(first, Refusal) else second
    return (first + second) / 2


def share_of_yes(tokens: Mapping[str, float]) -> Score:
    """Return the probability of "yes" among "yes" and "no", by the probabilities of the likeliest
    first tokens.
    """
    words = [
        (token.strip(' \n\t"*.,!▁Ġ').lower(), probability) for token, probability in tokens.items()
    ]
    yes = sum(probability for word, probability in words if word == "yes")
    no = sum(probability for word, probability in words if word == "no")
    return yes / (yes + no) if yes + no > 0 else NEITHER  # a server may send NaN
