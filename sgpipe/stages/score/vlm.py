"""Scores by a vision-language model, of transformers or behind an endpoint: the probability that it answers "yes".

Each question is asked twice, with the answers named in both orders: models prefer the one that is named first, or last.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import compress
from typing import Any

from PIL import Image

from sgpipe.recipe import CaptionConfig, TagConfig
from sgpipe.records import Box, Relation
from sgpipe.stages.caption.stage import load_captioner
from sgpipe.stages.endpoint import CacheFolder, ChatRequest, ChatSampling, Choice, Refusal, image_url
from sgpipe.stages.score.scorer import NO_AREA, RelationScorer, Score, marked_images, visible_boxes

LONGEST_SIDE = 1024  # pixels of the image that is shown
NEITHER = Refusal('the model answers neither "yes" nor "no"')
_ORDERS = ("yes or no", "no or yes")
_SAMPLING = ChatSampling(max_tokens=1)


class VlmScorer(RelationScorer):
    """Asks a model, here or behind an endpoint, whether a relation holds, in two requests of one token.

    No answer depends on another question. A server must return log-probabilities.
    """

    def __init__(self, config: TagConfig, cache: CacheFolder | None = None) -> None:
        """Raises UserError: there is no such model."""
        same = ("endpoint", "requests", "device", "dtype", "resources")
        given = {name: getattr(config, name) for name in same}
        asked = CaptionConfig(captioner=config.tagger, prompt="Is it grey?", min_tokens=1, max_tokens=1, **given)
        self._model: Any = load_captioner(asked, cache, role="scorer")
        self._served = config.endpoint is not None

    def check(self) -> None:
        """Raises UserError: the model cannot be asked, or the server does not answer, or not as asked."""
        objects = [Box("dog", 0, (4, 4, 40, 40)), Box("cat", 0, (40, 20, 20, 20))]
        [example, _] = self._ask(Image.new("RGB", (64, 64), "white"), objects, [Relation(0, 1, "next to")])
        self._model.check(example)

    def load(self) -> None:
        self._model.setup()

    def scores(self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]) -> list[Score]:
        visible = [visible_boxes(image, objects, relation) is not None for relation in relations]
        answers = map(_share, self._model.ask_all(self._ask(image, objects, [*compress(relations, visible)])))
        scores = (mean_of_orders(first, second) for first, second in zip(answers, answers, strict=True))
        return [next(scores) if there else NO_AREA for there in visible]

    def _ask(self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]) -> Iterator[ChatRequest]:
        """Yield both questions about each relation."""
        for relation, marked in zip(relations, marked_images(image, objects, relations, LONGEST_SIDE), strict=True):
            shown = image_url(marked) if self._served else marked
            for question in ask_about(objects, relation):
                yield ChatRequest(question, _SAMPLING, shown, logprobs=True)


def _share(answer: list[Choice] | Refusal) -> Score:
    if isinstance(answer, Refusal):
        return answer
    return share_of_yes({token: math.exp(min(value, 0)) for token, value in (answer[0].logprobs or {}).items()})


def ask_about(objects: Sequence[Box], relation: Relation) -> tuple[str, ...]:
    """Return the question with the answers in both orders."""
    subject, object_ = objects[relation.subject], objects[relation.object]
    last = "" if object_.is_nothing else f" the {object_.category} (blue box)"
    question = f"Is the {subject.category} (red box) {relation.predicate}{last}?"
    return tuple(f"{question} Answer with one word: {order}." for order in _ORDERS)


def mean_of_orders(first: Score, second: Score) -> Score:
    """Return the mean of the probabilities of both orders, or the first reason why there is none."""
    if isinstance(first, Refusal) or isinstance(second, Refusal):
        return first if isinstance(first, Refusal) else second
    return (first + second) / 2


def share_of_yes(tokens: Mapping[str, float]) -> Score:
    """Return the probability of "yes" among "yes" and "no", by the probabilities of the likeliest first tokens."""
    words = [(token.strip(' \n\t"*.,!▁Ġ').lower(), probability) for token, probability in tokens.items()]
    yes, no = (sum(probability for word, probability in words if word == answer) for answer in ("yes", "no"))
    return yes / (yes + no) if yes + no > 0 else NEITHER  # a server may send NaN
