"""The score of a benchmark in validation: that of `sgpipe eval … --model` for the same network and shards.

Unlike the batches of a validation, images are not padded, and those without relations count too.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlip_model.distributed import gather
from rlip_model.evaluation.hico import HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import possible_interactions
from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage, ImageGroundTruth, PredictedPairs
from rlip_model.evaluation.open_images import OpenImagesSettings, evaluate_open_images
from rlip_model.image import to_pixel_values
from rlip_model.postprocess import TripletDetections, hoi_detections, scene_graph_detections
from rlip_model.settings import ComputePrecision
from rlip_model.text import NO_OBJECTS
from rlip_model.training.objective import Objective
from rlip_model.training.validation import PERSON
from sgpipe.errors import UserError
from sgpipe.files.locations import location
from sgpipe.images import ImageError, open_row_image
from sgpipe.records import Record
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.hoi import HICO
from sgpipe.storage.shards import IMAGE_COLUMN, read_row_group
from sgpipe.training.data.scan import COLUMNS, TrainingSet
from sgpipe.training.data.stream import TrainingRow
from sgpipe.training.recipe import BENCHMARKS, DataConfig, TrainRecipe
from sgpipe.utils.devices import pick_dtype
from sgpipe.utils.prefetch import prefetch_generator

_BLANK = (3, 64, 64)
_Image = tuple[Mapping[str, Any], Tensor | None]  # a row, and its pixel values unless it cannot be read


def check_benchmark(recipe: TrainRecipe, validation: TrainingSet | None) -> None:
    """Raises UserError: `output.best` is a benchmark that the validation data or the network cannot be scored by."""
    name = recipe.output.best
    if name not in BENCHMARKS or validation is None:
        return
    labels = validation.closed_labels
    is_detector = recipe.model.kind != "tagger" and not recipe.loss.only_boxes
    if not is_detector or labels is None or (name == "hico" and PERSON not in labels.objects):
        classes = f"closed class lists{f' with {PERSON!r}' if name == 'hico' else ''} (data.labels: full)"
        needs = f"a training of relations that a detector finds, and validation shards with {classes}"
        raise UserError(f"output.best: {name} needs {needs}; use output.best: ap, recall or loss")


@dataclass(frozen=True)
class Benchmark:
    """Scores a network by one of `BENCHMARKS` on all images of the validation shards, shared by the processes.

    `batch`: images per process that are read together. Raises UserError: the network does not classify subjects.
    """

    name: str
    objective: Objective
    data: DataConfig
    validation: TrainingSet
    batch: int
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.name == "openimages" and not self.objective.network.config.subject_class:
            raise UserError("output.best: openimages needs a network that classifies subjects; use output.best: ap")

    @property
    def labels(self) -> DatasetClasses:
        assert self.validation.closed_labels is not None
        return self.validation.closed_labels

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Return the score by the name of the benchmark, the same in every process; nothing without any ground truth.

        Raises UserError: an annotation is not of a listed class, or a prediction is not finite.
        """
        training = self.objective.training
        self.objective.eval()
        try:
            score = self._score()
        except EvaluationError as error:
            raise UserError(f"output.best: {self.name} cannot be computed: {error}") from None
        finally:
            self.objective.train(training)
        return {self.name: score} if np.isfinite(score) else {}

    def _score(self) -> float:
        objects, relations = self.labels.objects, self.labels.relations
        if self.name == "openimages":
            sizes = OpenImagesSettings(len(objects), len(relations))
            return evaluate_open_images(self._images(), sizes).weighted_score()
        official = self.labels == HICO.classes
        possible = possible_interactions() if official else np.ones((len(relations), len(objects)))
        return evaluate_hico(self._images(), HicoSettings(possible)).per_class.mean()

    def _images(self) -> Iterator[EvaluationImage]:
        nothing = ImageGroundTruth.from_lists([], [], [])
        scores = np.zeros((0, len(self.labels.relations)), dtype=np.float32)
        empty = PredictedPairs(nothing.boxes, nothing.boxes, nothing.labels, nothing.labels, scores)
        with prefetch_generator(self._batches()) as batches:
            for batch in batches:
                found = self._detect(batch)
                for index, (values, _) in enumerate(batch):
                    yield EvaluationImage(values["image_id"], self._targets(values), found.get(index, empty))
        while any(gather(False)):  # other processes compute: sharded parameters serve equally many passes
            self._forward(torch.zeros(1, *_BLANK), torch.tensor([_BLANK[1:]]))

    def _batches(self) -> Generator[list[_Image], None, None]:
        rank, world_size = self.share
        groups = self.validation.row_groups
        own = groups[len(groups) * rank // world_size : len(groups) * (rank + 1) // world_size]
        with ThreadPoolExecutor(self.data.threads, thread_name_prefix="images") as pool:
            for group in own:
                table = read_row_group(location(group.file), group.group, COLUMNS, (IMAGE_COLUMN,))
                is_limited = self.data.val[group.folder].limit is not None
                kept = group.usable_rows(len(table)) if is_limited else range(len(table))
                rows = [TrainingRow(table, index, group.folder) for index in kept]
                for start in range(0, len(rows), self.batch):
                    yield [image for image in pool.map(self._read, rows[start : start + self.batch]) if image]

    def _read(self, row: TrainingRow) -> _Image | None:
        """None: an error row."""
        values, pixels = row.values(), None
        if values["status"] != "ok":
            return None
        record = Record(*(values[name] for name in ("image_id", "dataset", "split", "file_name", "width", "height")))
        with suppress(ImageError):
            image = open_row_image(self.validation.folders[row.folder].images, record, row.embedded())
            pixels = to_pixel_values(image, self.data.short_side, self.data.long_side)
        return values, pixels

    def _detect(self, batch: Sequence[_Image]) -> dict[int, PredictedPairs]:
        """Return the pairs in each image that can be read, in pixels. A forward pass has images of one size only."""
        by_size: dict[torch.Size, dict[int, Tensor]] = {}
        for index, (_, pixels) in enumerate(batch):
            if pixels is not None:
                by_size.setdefault(pixels.shape, {})[index] = pixels
        found: dict[int, PredictedPairs] = {}
        for images in by_size.values():
            sizes = torch.tensor([[batch[index][0]["height"], batch[index][0]["width"]] for index in images])
            gather(True)
            detections = self._forward(torch.stack([*images.values()]), sizes)
            found.update(zip(images, map(PredictedPairs.from_detections, detections), strict=True))
        return found

    def _forward(self, images: Tensor, sizes: Tensor) -> list[TripletDetections]:
        device = next(self.objective.parameters()).device
        objects, relations = (*self.labels.objects, NO_OBJECTS), self.labels.relations
        precision: ComputePrecision = "bfloat16" if pick_dtype("auto", device) == torch.bfloat16 else "float32"
        output = self.objective.detect(images.to(device), objects, relations, precision)
        if self.name == "openimages":
            return scene_graph_detections(output, sizes.float())
        return hoi_detections(output, sizes.float(), self.labels.objects.index(PERSON))

    def _targets(self, values: Mapping[str, Any]) -> ImageGroundTruth:
        """Return all boxes and relations, in pixels; for HICO-DET, only relations of persons."""
        objects, relations = self.labels.objects, self.labels.relations
        names = [item["category"] for item in values["objects"] or ()]
        corners = [(x, y, x + w, y + h) for x, y, w, h in (item["bbox"] for item in values["objects"] or ())]
        kept = [item for item in values["relations"] or () if self.name != "hico" or names[item["subject"]] == PERSON]
        for name, known in [*((name, objects) for name in names), *((item["predicate"], relations) for item in kept)]:
            if name not in known:
                raise UserError(f"output.best: {self.name}: image {values['image_id']}: {name!r} is not a listed class")
        triplets = [(item["subject"], item["object"], relations.index(item["predicate"])) for item in kept]
        return ImageGroundTruth.from_lists(corners, [objects.index(name) for name in names], triplets)
