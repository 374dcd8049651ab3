"""True and predicted pairs of boxes in HOIA form (HICO-DET, Open Images), joined by their images' file names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlip_model.evaluation.inputs import EvaluationError, Image, Truth, check_range, table
from sgpipe.errors import UserError
from sgpipe.evaluation.prediction_table import Prediction, read_prediction_table
from sgpipe.sources.annotated import AnnotationSource
from sgpipe.sources.fields import FieldError, listed, word
from sgpipe.sources.hoi import Numbering
from sgpipe.sources.json_stream import JsonStream


@dataclass
class PairFiles:
    """An annotation file and one of predictions, read once.

    numbering: of the category_ids in the predictions; key: what their list of relations is called.
    notes: filled by reading.
    """

    source: AnnotationSource
    predictions: Path
    numbering: Numbering
    key: str
    notes: list[str] = field(default_factory=list)

    def images(self) -> Iterator[Image]:
        """Every annotated image, in the order of the annotations, with what was predicted for it.

        Raises:
            UserError: a file is missing or wrong, or predictions are of images that are not annotated.
        """
        truths = read_truths(self.source)
        found = self._read_predictions(truths)
        if missing := len(truths) - len(found):
            self.notes.append(f"{missing:,} of {len(truths):,} annotated images have no predictions: all missed")
        nothing = Prediction(np.zeros((0, 4)), np.zeros(0, dtype=int), np.zeros((0, 3), dtype=int), np.zeros(0))
        for name, truth in truths.items():
            yield Image(name, truth, found.get(name, nothing).pairs(len(self.numbering.relations)))

    def _read_predictions(self, truths: Mapping[str, Truth]) -> dict[str, Prediction]:
        found: dict[str, Prediction] = {}
        repeated = 0
        for name, prediction in self._predictions():
            if name not in truths:
                raise UserError(
                    f"{self.predictions}: image {name!r} is not in {self.source.files['annotations']}; "
                    "give the annotations of the predicted images"
                )
            repeated += name in found
            found.setdefault(name, prediction)
        if not found:
            raise UserError(f"{self.predictions} holds no predictions")
        if repeated:
            self.notes.append(f"{repeated:,} predictions are of images that had some: only the first of each counts")
        return found

    def _predictions(self) -> Iterator[tuple[str, Prediction]]:
        """Image by image, with its file name."""
        if self.predictions.suffix == ".parquet":
            yield from read_prediction_table(self.predictions, self.numbering.classes)
            return
        reader = _PredictionReader(self.predictions, self.numbering, self.key)
        for _, item in JsonStream(self.predictions):
            yield reader.read(item)


@dataclass(frozen=True)
class _PredictionReader:
    path: Path
    numbering: Numbering
    key: str

    def read(self, item: Any) -> tuple[str, Prediction]:
        """Raises UserError."""
        name = "?"
        try:
            name = word(item, "file_name")
            return name, self._prediction(name, listed(item, "predictions"), listed(item, self.key))
        except (FieldError, EvaluationError) as error:
            raise UserError(f"{self.path}: image {name!r}: {error}") from None
        except (KeyError, TypeError, OverflowError) as error:
            raise UserError(
                f"{self.path}: image {name!r}: expected boxes with 'bbox' and 'category_id' and relations with "
                f"'subject_id', 'object_id', 'category_id' and 'score', but {error!r}"
            ) from None

    def _prediction(self, name: str, boxes: Sequence[Any], relations: Sequence[Any]) -> Prediction:
        objects = {number: place for place, number in enumerate(self.numbering.objects)}
        predicates = {number: place for place, number in enumerate(self.numbering.relations)}
        labels = [_place(objects, box["category_id"], "an object") for box in boxes]
        triplets = [
            (item["subject_id"], item["object_id"], _place(predicates, item["category_id"], "a relation"))
            for item in relations
        ]
        ends = table(triplets, (-1, 3), int)
        check_range("its predictions", "a box of a relation", ends[:, :2], 0, len(boxes))
        scores = table([item["score"] for item in relations], (-1,), np.float32)
        if not np.isfinite(scores).all():
            raise FieldError("a 'score' is NaN or infinite; leave the relation out or mend the model's output")
        corners = table([box["bbox"] for box in boxes], (-1, 4), np.float32)
        return Prediction(corners, table(labels, (-1,), int), ends, scores)


def _place(places: Mapping[int, int], category: Any, what: str) -> int:
    if category not in places:
        raise FieldError(f"category_id {category!r} of {what} is none of the dataset's")
    return places[category]


def read_truths(source: AnnotationSource) -> dict[str, Truth]:
    """The annotations by the images' file names.

    Raises:
        UserError: an image cannot be used, is there twice, or there is none.
    """
    assert source.classes is not None
    objects = {name: place for place, name in enumerate(source.classes.objects)}
    predicates = {name: place for place, name in enumerate(source.classes.relations)}
    path, problems = source.files["annotations"], Counter[str]()
    truths: dict[str, Truth] = {}
    for record in source.read(problems):
        if not record.ok:
            raise UserError(f"{path}: image {record.file_name!r}: {record.error}")
        if record.file_name in truths:
            raise UserError(f"{path}: image {record.file_name!r} is there twice")
        corners = [(x, y, x + w, y + h) for x, y, w, h in (box.bbox for box in record.objects)]
        labels = [objects[box.category] for box in record.objects]
        triplets = [(item.subject, item.object, predicates[item.predicate]) for item in record.relations]
        truths[record.file_name] = Truth.from_lists(corners, labels, triplets)
    if problems:
        counts = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in problems.items())
        raise UserError(f"{path} cannot be used for evaluation: {counts}")
    if not truths:
        raise UserError(f"{path} holds no images")
    return truths
