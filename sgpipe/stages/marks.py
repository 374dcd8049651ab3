"""The pair stage that asks a vision-language model: it sees numbered boxes on the image, and
relates their numbers.
"""

import json
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

from PIL import Image

from sgpipe.files.image_roots import ImagePlace
from sgpipe.recipe import CaptionConfig, PairConfig
from sgpipe.records import Box, Record
from sgpipe.stages.base import ImageStage
from sgpipe.stages.caption.captioner import EXAMPLE
from sgpipe.stages.caption.stage import load_captioner, noise_key
from sgpipe.stages.context import StageContext, TripletCount
from sgpipe.stages.pair import PairStage, pair_settings
from sgpipe.stages.parse.rules import predicate_words
from sgpipe.stages.parse.stage import read_relations, relations_schema
from sgpipe.stages.served.chat import ChatRequest, Choice, Refusal, quote
from sgpipe.stages.served.images import image_url
from sgpipe.utils.console import single_line
from sgpipe.viz import draw_marks

PROMPT = (
    "Things in this image are outlined and numbered. Which of them are visibly related, and how? A"
    " relation has the numbers of a subject and an object, and a predicate between them: what the"
    " subject does to the object (such as riding, holding, looking at), or where it is (such as"
    " sitting on, behind, next to). State every relation that can be seen, and none that cannot."
)
_FORM = (
    'Answer with JSON alone: {"relations": [{"subject": 1, "predicate": "riding", "object": 2}]}'
    ' states that 1 is riding 2; {"relations": []}, that nothing is related.'
)
# the longer side of the image, in pixels
_SIDE = 1024
_MAX_TOKENS = 1024
_TOP_P = 0.9
# of an answer; characters
_MOST_RELATIONS = 500
_LONGEST_PREDICATE = 80

Stated = tuple[int, str, int]  # the numbers of subject and object, and the predicate between them


class MarksStage(PairStage, ImageStage):
    """Adds what a model states of numbered boxes as candidates of exactly these pairs.

    The boxes are the largest by `Box.rank`, numbered from 1. An answer that breaks the schema is
    requested once more; of the second, valid relations count. Without a usable answer the row
    becomes an error row, but for `captions+marks`, where captions may have candidates.
    """

    def __init__(
        self,
        config: PairConfig,
        dataset: str,
        categories: Iterable[str],
        known: Iterable[TripletCount] | None,
        roots: Mapping[str, ImagePlace],
        seed: int,
    ) -> None:
        super().__init__(config, dataset, categories, known)
        self.roots = roots
        self.seed = seed
        self.streams = config.streams

    @classmethod
    def of(cls, context: StageContext) -> Self:
        plan = context.plan
        return cls(
            pair_settings(plan),
            context.synonyms,
            context.classes,
            context.known,
            context.roots,
            plan.seed,
        )

    def _load_model(self) -> Any:
        config = self.config
        asked = CaptionConfig(
            captioner=config.model,
            endpoint=config.endpoint,
            requests=config.requests,
            prompt=PROMPT,
            samples=config.samples,
            min_tokens=1,
            max_tokens=_MAX_TOKENS,
            temperature=config.temperature,
            top_p=_TOP_P,
            device=config.device,
            dtype=config.dtype,
            resources=config.resources,
        )
        return load_captioner(asked, self.cache_folder, role="pair.model")

    def check(self) -> None:
        example = [Box("dog", 0, (4, 4, 40, 40)), Box("cat", 0, (40, 20, 20, 20))]
        self._load_model().check(self._request(EXAMPLE, example, 0))

    def setup(self) -> None:
        super().setup()
        self.set_up_device(here=self.config.endpoint is None)
        self._model = self._load_model()
        self._model.setup()
        self._matching = threading.Lock()

    def __call__(self, records: list[Record]) -> list[Record]:
        with self._matching:
            super().__call__(records)
        open_: deque[tuple[Record, list[int]]] = deque()
        for answer in self._model.ask_all(self._requests(records, open_)):
            self._add(*open_.popleft(), answer)
        return records

    def _requests(
        self, records: Sequence[Record], open_: deque[tuple[Record, list[int]]]
    ) -> Iterator[ChatRequest]:
        """Yield a question about each image with several boxes, noted in `open_` with the indices
        of those numbered.
        """
        boxes = {id(record): self._choose_boxes(record) for record in records if record.ok}
        asked = [record for record in records if len(boxes.get(id(record), ())) > 1]
        for record, image in self.opened(asked):
            marked = boxes[id(record)]
            open_.append((record, marked))
            key = noise_key(self.seed, record, "marks", marked)
            yield self._request(image, [record.objects[index] for index in marked], key)

    def _choose_boxes(self, record: Record) -> list[int]:
        """Return the indices of the boxes that get a number, the largest first, and count others."""
        boxes = []
        for index, box in enumerate(record.objects):
            if not box.iscrowd and min(box.bbox[2:]) > 0:
                boxes.append(index)
        boxes.sort(key=lambda index: record.objects[index].rank)
        marked = boxes[: self.config.max_marks]
        record.left_out["marks"] = len(boxes) - len(marked)
        return marked

    def _request(self, image: Image.Image, objects: Sequence[Box], key: int) -> ChatRequest:
        config = self.config
        numbers = range(1, len(objects) + 1)
        names = [
            f"{number}: {single_line(box.category)}"
            for number, box in zip(numbers, objects, strict=True)
        ]
        marked = draw_marks(image, [box.bbox for box in objects], _SIDE)
        return ChatRequest(
            "\n".join([PROMPT, *names, _FORM]),
            marked if config.endpoint is None else image_url(marked),
            max_tokens=_MAX_TOKENS,
            temperature=config.temperature,
            top_p=_TOP_P,
            seed=key,
            n=config.samples,
            schema=relations_schema({"type": "integer", "enum": [*numbers]}, {"type": "string"}),
            check=lambda text: self._read(text, len(objects))[1],
        )

    def _read(self, text: str, boxes: int) -> tuple[list[Stated], str | None]:
        """Return the valid relations of an answer, without repetition, and what is wrong with it,
        if anything is.
        """
        stated = read_relations(text)
        if stated is None:
            return [], f"This is not JSON of that form. {_FORM}"
        relations = dict[Stated, None]()
        wrong = None
        for subject, words, object_ in stated:
            predicate = " ".join(predicate_words(words)) if isinstance(words, str) else ""
            is_word = predicate.isprintable() and 0 < len(predicate) <= _LONGEST_PREDICATE
            first = _number_of_box(subject, boxes)
            second = _number_of_box(object_, boxes)
            if is_word and 0 not in (first, second) and first != second:
                relations[first, predicate, second] = None
            else:
                wrong = (
                    f"{quote(json.dumps([subject, words, object_]))} does not relate two of the"
                    f" numbers. {_FORM}"
                )
        if len(relations) > _MOST_RELATIONS:
            wrong = f"These are more than {_MOST_RELATIONS} relations. {_FORM}"
        return list(relations)[:_MOST_RELATIONS], wrong

    def _add(self, record: Record, marked: Sequence[int], answer: list[Choice] | Refusal) -> None:
        """Add what the answers state to the pairs of a record.

        Args:
            marked: the indices of its numbered boxes.
        """
        reason = "the model's answers are unusable"
        choices: list[Choice] = []
        if isinstance(answer, Refusal):
            reason = answer.reason
        else:
            choices = answer
        stated: dict[Stated, None] = {}
        valid = 0
        for choice in choices:
            relations, wrong = self._read(choice.text, len(marked))
            stated |= dict.fromkeys(relations)
            valid += wrong is None
        record.left_out["answers"] = self.config.samples - valid
        if self.config.candidates == "marks" and not valid and not stated:
            record.fail(self.name, reason)
        else:
            self._add_stated(record, marked, stated)

    def _add_stated(
        self, record: Record, marked: Sequence[int], relations: Iterable[Stated]
    ) -> None:
        """Add relations of numbered boxes to the pairs of a record."""
        predicates: dict[tuple[str, str], list[str]] = {}
        # Each box is of a class of its own.
        names = [f"{box.category} {index}" for index, box in enumerate(record.objects)]
        boxes = [
            replace(box, category=name) for box, name in zip(record.objects, names, strict=True)
        ]
        for pair in record.pairs:
            predicates[names[pair.subject], names[pair.object]] = list(pair.predicates)
        for subject, predicate, object_ in relations:
            classes = (names[marked[subject - 1]], names[marked[object_ - 1]])
            predicates.setdefault(classes, []).append(predicate)
        distinct = {classes: list(dict.fromkeys(texts)) for classes, texts in predicates.items()}
        record.left_out["pairs"] += self._list_pairs(record, boxes, distinct)


def _number_of_box(end: object, boxes: int) -> int:
    """Return an end of a relation in an answer; 0: it is none of the numbers from 1 to `boxes`."""
    return end if type(end) is int and 1 <= end <= boxes else 0
