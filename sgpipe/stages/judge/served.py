"""A vision-language model behind an endpoint as a judge: the log-probabilities of the first token of its answers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from PIL import Image

from sgpipe.recipe import Requests
from sgpipe.records import Box, Relation
from sgpipe.stages.endpoint.cache import CacheFolder
from sgpipe.stages.endpoint.client import ChatEndpoint
from sgpipe.stages.endpoint.messages import Answer, ChatRequest, ChatSampling, Refusal, conversation, image_url
from sgpipe.stages.judge.judge import NO_AREA, Unjudged
from sgpipe.stages.judge.marks import marked_image, visible_boxes
from sgpipe.stages.judge.questions import LONGEST_SIDE, NEITHER, ask_about, mean_of_orders, share_of_yes

_SAMPLING = ChatSampling(max_tokens=1)
_ATTEMPTS_OF_CHECK = 2


class ServedJudge:
    """Asks a model whether a relation holds, in two requests of one token. The server must return log-probabilities."""

    def __init__(self, url: str, model: str, requests: Requests, cache: CacheFolder | None = None) -> None:
        """
        Args:
            cache: the folder in which answers are kept; None: nowhere.
        """
        self._url, self._model, self._requests, self._cache = url, model, requests, cache

    def check(self) -> None:
        """Raises UserError: the server does not answer, or not with log-probabilities, or not about images."""
        few = self._requests.model_copy(update={"retries": min(self._requests.retries, _ATTEMPTS_OF_CHECK)})
        objects = [Box("dog", 0, (4, 4, 40, 40)), Box("cat", 0, (40, 20, 20, 20))]
        [example, _] = self._ask(Image.new("RGB", (64, 64), "white"), objects, Relation(0, 1, "next to"))
        ChatEndpoint(self._url, self._model, few).check(example)

    def load(self) -> None:
        """Raises UserError: this is no URL, or the key cannot be sent."""
        self._endpoint = ChatEndpoint(self._url, self._model, self._requests, self._cache)

    def probabilities(
        self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]
    ) -> list[float | Unjudged]:
        """See `Judge`. Only as many requests are prepared as are under way."""
        visible = [visible_boxes(image, objects, relation) is not None for relation in relations]
        shown = [relation for relation, there in zip(relations, visible, strict=True) if there]
        requests = (request for relation in shown for request in self._ask(image, objects, relation))
        answers = (_share(answer) for answer in self._endpoint.ask_all(requests))
        judged = (mean_of_orders([first, second]) for first, second in zip(answers, answers, strict=True))
        return [next(judged) if there else NO_AREA for there in visible]

    def _ask(self, image: Image.Image, objects: Sequence[Box], relation: Relation) -> Iterator[ChatRequest]:
        marked = marked_image(image, objects, relation, LONGEST_SIDE)
        assert marked is not None
        url = image_url(marked)
        for question in ask_about(objects, relation):
            yield ChatRequest(conversation(question, url), _SAMPLING, logprobs=True)


def _share(answer: Answer | Refusal) -> float | Unjudged:
    if isinstance(answer, Refusal):
        return Unjudged(answer.reason)
    first = answer.logprobs[0] if answer.logprobs else ()
    return share_of_yes({token: math.exp(value) for token, value in first[0]}) if first else NEITHER
