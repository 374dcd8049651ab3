"""The score of a benchmark in validation: that of `sgpipe eval … --model` for the same network and shards.

Unlike the batches of a validation, images are not padded, and those without relations count too.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlip_model.distributed import gather
from rlip_model.evaluation.hico import HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import possible_interactions
from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage, ImageGroundTruth
from rlip_model.evaluation.open_images import OpenImagesSettings, evaluate_open_images
from rlip_model.heads import LayerOutput
from rlip_model.training.objective import Objective
from rlip_model.training.validation import PERSON
from sgpipe.errors import UserError
from sgpipe.evaluation.inputs import no_pairs, read_annotations, shard_annotations
from sgpipe.inference.predictions import PredictConfig, RowGroup, Task, list_row_groups
from sgpipe.inference.predictor import Predictor
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.hoi import HICO
from sgpipe.training.data.scan import TrainingSet
from sgpipe.training.recipe import BENCHMARKS, DataConfig, TrainRecipe
from sgpipe.utils.devices import pick_dtype
from sgpipe.utils.prefetch import prefetch_generator

_BLANK = (1, 3, 64, 64)


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
    if limited := next((part.shards for part in recipe.data.val if part.limit), None):
        raise UserError(f"output.best: {name} scores all images of {limited}, so data.val takes no limit with it")


class _LivePredictor(Predictor):
    """Predicts with the network of a training. Sharded parameters serve equally many passes of all processes."""

    def __init__(self, config: PredictConfig, objective: Objective) -> None:
        self.config, self._objective = config, objective
        self._device = next(objective.parameters()).device
        self._dtype = pick_dtype("auto", self._device)
        self._sides = config.sides or (0, 0)

    def _output(self, pixels: Tensor) -> LayerOutput:
        gather(True)
        return self._objective.detect(pixels, *self._texts())

    def wait(self) -> None:
        """Compute as long as other processes do."""
        while any(gather(False)):
            self._objective.detect(torch.zeros(_BLANK, device=self._device), *self._texts())


@dataclass(frozen=True)
class Benchmark:
    """Scores a network by one of `BENCHMARKS` on all images of the validation shards, shared by the processes.

    `batch`: images per process that are read together. Raises UserError: the network does not classify subjects.
    """

    name: str
    objective: Objective
    data: DataConfig
    labels: DatasetClasses
    batch: int
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.name == "openimages" and not self.objective.network.config.subject_class:
            raise UserError("output.best: openimages needs a network that classifies subjects; use output.best: ap")

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
        task: Task = "hoi" if self.name == "hico" else "scene graph"
        sides = self.data.short_side, self.data.long_side
        how: dict[str, Any] = {"batch": self.batch, "sides": sides, "threads": self.data.threads}
        predictor = _LivePredictor(PredictConfig(Path("the network"), self.labels, task, **how), self.objective)
        with prefetch_generator(self._row_groups()) as groups:
            for group, targets in groups:
                for found in predictor(group):
                    name, pairs = found.row.image_id, found.pairs
                    if found.row.error is None:
                        yield EvaluationImage(name, targets[name], no_pairs(self.labels) if pairs is None else pairs)
        predictor.wait()

    def _row_groups(self) -> Generator[tuple[RowGroup, dict[str, ImageGroundTruth]], None, None]:
        """Yield this process's row groups of the validation shards, with the ground truth of their images by id."""
        places: list[tuple[Any, RowGroup]] = []
        for config in self.data.val:
            root: Any = config.shards  # also in a store
            for split in config.splits or (None,):
                places += [(root, group) for group in list_row_groups(root, split, config.images)]
        rank, world_size = self.share
        for root, group in places[len(places) * rank // world_size : len(places) * (rank + 1) // world_size]:
            source = shard_annotations(root, self.labels, persons_only=self.name == "hico", group=group)
            yield group, read_annotations(source, "image_id", may_be_empty=True)
