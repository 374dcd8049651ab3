"""Scores by a vision-language model, of transformers or behind an endpoint: the probability that it answers "yes".

Each question is asked twice, with the answers named in both orders: models prefer the one that is named first, or last.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, compress
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.recipe import CaptionConfig, Requests, Resources
from sgpipe.records import Box, Relation
from sgpipe.stages import endpoint
from sgpipe.stages.endpoint import CacheFolder, ChatEndpoint, ChatRequest, ChatSampling, Choice, Refusal, conversation
from sgpipe.stages.score.scorer import NO_AREA, RelationScorer, Score, marked_image, visible_boxes

LONGEST_SIDE = 1024  # pixels of the image that is shown
NEITHER = Refusal('the model answers neither "yes" nor "no"')
_ORDERS = ("yes or no", "no or yes")
_VARIANTS = ("{}", " {}", "\n{}", '"{}', "**{}")
_RETRIES_OF_CHECK = 2
_SAMPLING = ChatSampling(max_tokens=1)


class VlmScorer(RelationScorer):
    """Asks a model whether a relation holds, one question at a time, so that no answer depends on another question."""

    def __init__(self, model: str, device: str = "auto", dtype: str = "auto", gpus: float = 0) -> None:
        """`model`: hub id or folder of an image-text-to-text model with a chat template; `gpus`: how many to use."""
        from sgpipe.stages.caption.vision_language import VisionLanguageCaptioner

        where = {"device": device, "dtype": dtype, "resources": Resources(gpus=gpus)}
        config = CaptionConfig(captioner=model, prompt="Is it grey?", min_tokens=1, max_tokens=1, **where)
        self._model = VisionLanguageCaptioner(config, role="scorer")

    def check(self) -> None:
        self._model.check()

    def load(self) -> None:
        self._model.setup()
        self._yes, self._no = _answer_tokens(self._model.prompt.tokenizer, self._model.name)

    def scores(self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]) -> list[Score]:
        prompt = self._model.prompt

        def read(relation: Relation) -> list[Any] | Refusal:
            if (marked := marked_image(image, objects, relation, LONGEST_SIDE)) is None:
                return NO_AREA
            return [prompt(marked, prompt.chat(conversation(each, ""))) for each in ask_about(objects, relation)]

        def score(questions: Sequence[Any]) -> Score:
            return mean_of_orders(*map(self._share_of_yes, questions))

        return list(self._model.answer_each(relations, read, score))

    @torch.inference_mode()
    def _share_of_yes(self, inputs: Any) -> float:
        model = self._model
        logits = model.model(**inputs.to(model.device, model.dtype)).logits[0, -1].double()
        yes, no = logits[self._yes].logsumexp(0), logits[self._no].logsumexp(0)
        share = float((yes - no).sigmoid())
        if share != share:
            raise UserError(f"{model.name} returns NaN: its weights are damaged")
        return share


def _answer_tokens(tokenizer: Any, model: str) -> tuple[Tensor, Tensor]:
    """Return the first tokens of "yes" and "no", in any spelling. Raises UserError: they cannot be told apart."""
    found: dict[str, set[int]] = {"yes": set(), "no": set()}
    for word, tokens in found.items():
        for spelling in (word, word.capitalize(), word.upper()):
            for variant in _VARIANTS:
                for token in tokenizer.encode(variant.format(spelling), add_special_tokens=False):
                    if said := tokenizer.decode([token]).strip().lower():  # not only white space
                        tokens |= {int(token)} if word.startswith(said) else set()
                        break
    yes, no = found["yes"] - found["no"], found["no"] - found["yes"]
    if not (yes and no):
        raise UserError(f"{model}: its tokenizer does not tell the answers yes and no apart")
    return torch.tensor(sorted(yes)), torch.tensor(sorted(no))


class ServedScorer(RelationScorer):
    """Asks a model whether a relation holds, in two requests of one token. The server must return log-probabilities."""

    def __init__(self, url: str, model: str, requests: Requests, cache: CacheFolder | None = None) -> None:
        self._url, self._model, self._requests, self._cache = url, model, requests, cache

    def check(self) -> None:
        """Raises UserError: the server does not answer, or not with log-probabilities, or not about images."""
        few = self._requests.model_copy(update={"retries": min(self._requests.retries, _RETRIES_OF_CHECK)})
        objects = [Box("dog", 0, (4, 4, 40, 40)), Box("cat", 0, (40, 20, 20, 20))]
        [example, _] = self._ask(Image.new("RGB", (64, 64), "white"), objects, Relation(0, 1, "next to"))
        ChatEndpoint(self._url, self._model, few).check(example)

    def load(self) -> None:
        self._endpoint = ChatEndpoint(self._url, self._model, self._requests, self._cache)

    def scores(self, image: Image.Image, objects: Sequence[Box], relations: Sequence[Relation]) -> list[Score]:
        visible = [visible_boxes(image, objects, relation) is not None for relation in relations]
        requests = chain.from_iterable(self._ask(image, objects, each) for each in compress(relations, visible))
        answers = (_share(answer) for answer in self._endpoint.ask_all(requests))
        scores = (mean_of_orders(first, second) for first, second in zip(answers, answers, strict=True))
        return [next(scores) if there else NO_AREA for there in visible]

    def _ask(self, image: Image.Image, objects: Sequence[Box], relation: Relation) -> Iterator[ChatRequest]:
        marked = marked_image(image, objects, relation, LONGEST_SIDE)
        assert marked is not None
        url = endpoint.image_url(marked)
        for question in ask_about(objects, relation):
            yield ChatRequest(conversation(question, url), _SAMPLING, logprobs=True)


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
