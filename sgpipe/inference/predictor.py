"""What a trained network finds in the images of shards: batch by batch, by one process or several.

Several processes that predict together, by Ray.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import ray
import torch
from ray.exceptions import RayError, RayTaskError
from ray.util import ActorPool
from torch import Tensor, nn

from rlip_model.evaluation.inputs import PredictedPairs
from rlip_model.heads import LayerOutput
from rlip_model.image import to_pixel_values
from rlip_model.postprocess import TripletDetections, hoi_detections, scene_graph_detections, zero_shot_hoi_detections
from rlip_model.text import NO_OBJECTS
from rlip_model.training.objective import autocast
from sgpipe.errors import EngineError, UserError
from sgpipe.images import ImageError
from sgpipe.inference.rows import ImageRow, Unit, iter_rows
from sgpipe.sources.annotated import ClassLists
from sgpipe.stages.detect.trained_networks import load_detector, trained_sides
from sgpipe.utils.devices import enough_memory, pick_device, pick_dtype
from sgpipe.utils.ray_cluster import start_ray, worker_failure

PERSON = "person"
Task = Literal["hoi", "zero-shot hoi", "scene graph"]

_PREFETCH = 2  # batches


@dataclass(frozen=True, kw_only=True)
class Computing:
    """How a network computes.

    sides: shorter and longer one of images, in pixels; None: as the network was trained. threads: that read images.
    workers: processes; gpus: of each.
    """

    batch: int = 4
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    device: str = "auto"
    sides: tuple[int, int] | None = None
    threads: int = 2
    workers: int = 1
    gpus: float = 0


@dataclass(frozen=True)
class PredictConfig(Computing):
    """How to predict.

    classes: the texts that the network is asked for. task: subjects are persons; or pairs whose subject looks like
    something else are left out, too; or subjects of any class.
    """

    model: Path
    classes: ClassLists
    task: Task


@dataclass(frozen=True)
class Predicted:
    """What was found in one image; labels and predicates count the classes. error: why nothing could be."""

    row: ImageRow
    pairs: PredictedPairs | None = None
    error: str | None = None


def predict(config: PredictConfig, units: Sequence[Unit]) -> Iterator[Predicted]:
    """Every image of the shards, in their order, however many workers there are. Error rows are among them.

    Raises:
        UserError: the network or a shard is missing or wrong.
        EngineError: workers could not be started, or were lost.
    """
    if config.workers > 1:
        from sgpipe.inference.predictor import predict_by_workers

        yield from predict_by_workers(config, units)
        return
    predictor = Predictor(config)
    for unit in units:
        yield from predictor(unit)


class Predictor:
    """A loaded network."""

    def __init__(self, config: PredictConfig) -> None:
        """Raises UserError: as `predict`."""
        self.config = config
        self._device = pick_device(config.device)
        self._dtype = pick_dtype(config.dtype, self._device)
        self._sides = config.sides or trained_sides(config.model)
        self._network = load_detector(config.model)
        if config.task != "hoi" and not self._network.config.subject_class:
            raise UserError(f"{config.model} does not classify subjects: it can only be asked for what persons do")
        if config.task != "scene graph" and PERSON not in config.classes.objects:
            raise UserError(
                f"there is no class {PERSON!r} among the objects: {', '.join(config.classes.objects[:8])} …"
            )
        nn.Module.to(self._network, self._device)

    def __call__(self, unit: Unit) -> Iterator[Predicted]:
        """The images of a unit in their order."""
        for batch in self._batches(iter_rows(unit)):
            found = iter(self._detect([pixels for _, pixels, error in batch if not error]))
            for row, _, error in batch:
                yield (
                    Predicted(row, error=error) if error is not None else Predicted(row, self._pairs(next(found), row))
                )

    def _batches(self, rows: Iterable[ImageRow]) -> Iterator[list[tuple[ImageRow, Tensor, str | None]]]:
        """Images are read by threads, a few batches ahead."""
        pending: deque[Future[tuple[ImageRow, Tensor, str | None]]] = deque()
        size = self.config.batch
        with ThreadPoolExecutor(self.config.threads, thread_name_prefix="images") as pool:
            for row in rows:
                pending.append(pool.submit(self._read, row))
                if len(pending) > _PREFETCH * size:
                    yield [pending.popleft().result() for _ in range(size)]
            while pending:
                yield [pending.popleft().result() for _ in range(min(size, len(pending)))]

    def _read(self, row: ImageRow) -> tuple[ImageRow, Tensor, str | None]:
        if row.error is not None:
            return row, torch.zeros(0), row.error
        try:
            return replace(row, embedded=None), to_pixel_values(row.open(), *self._sides), None
        except ImageError as error:
            return row, torch.zeros(0), str(error)

    def _detect(self, tensors: Sequence[Tensor]) -> list[TripletDetections]:
        """Boxes normalised xyxy. Only tensors of one size go through together: padding changes what is found."""
        by_size: dict[torch.Size, list[int]] = {}
        for place, tensor in enumerate(tensors):
            by_size.setdefault(tensor.shape, []).append(place)
        found: dict[int, TripletDetections] = {}
        for places in by_size.values():
            together = torch.stack([tensors[place] for place in places])
            found.update(zip(places, self._detect_together(together), strict=True))
        return [found[place] for place in range(len(tensors))]

    @torch.no_grad()
    def _detect_together(self, pixels: Tensor) -> list[TripletDetections]:
        """pixels `[images, 3, height, width]`."""
        classes = self.config.classes
        precision: Literal["float32", "bfloat16"] = "bfloat16" if self._dtype == torch.bfloat16 else "float32"
        with enough_memory(self._device, f"lower --batch {self.config.batch}"), autocast(self._device, precision):
            pixels = pixels.to(self._device)
            labels = self._network.encode_labels([*classes.objects, NO_OBJECTS], classes.relations)
            output = self._network(pixels, torch.zeros_like(pixels[:, 0], dtype=torch.bool), labels).final
        return self._postprocess(_float32(output), torch.ones(len(pixels), 2))

    def _postprocess(self, output: LayerOutput, sizes: Tensor) -> list[TripletDetections]:
        if self.config.task == "scene graph":
            return scene_graph_detections(output, sizes)
        person = self.config.classes.objects.index(PERSON)
        detections = hoi_detections if self.config.task == "hoi" else zero_shot_hoi_detections
        return detections(output, sizes, person)

    def _pairs(self, found: TripletDetections, row: ImageRow) -> PredictedPairs:
        """With boxes in pixels of the image; as officially, they may reach out of it.

        Raises UserError: numbers that are not finite.
        """
        pairs = PredictedPairs.from_detections(found)
        if not all(np.isfinite(part).all() for part in (pairs.scores, pairs.subject_boxes, pairs.object_boxes)):
            raise UserError(
                f"{self.config.model} finds NaN in image {row.image_id}: its training has diverged, or "
                "--dtype float32 is needed"
            )
        sides = np.array((row.width, row.height) * 2, dtype=np.float32)
        boxes = (pairs.subject_boxes * sides, pairs.object_boxes * sides)
        return PredictedPairs(*boxes, pairs.subject_labels, pairs.object_labels, pairs.scores)


def _float32(output: LayerOutput) -> LayerOutput:
    """Equal scores of half precision stay equal, but products of them are told apart."""
    return LayerOutput(
        None if output.subject_logits is None else output.subject_logits.float(),
        output.object_logits.float(),
        output.relation_logits.float(),
        output.subject_boxes.float(),
        output.object_boxes.float(),
    )


class _Worker:
    """Loads the network with its first unit: what is wrong with it is then an error of a task, with its cause."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config
        self._predictor: Predictor | None = None

    def run(self, unit: Unit) -> list[Predicted]:
        self._predictor = self._predictor or Predictor(self._config)
        return list(self._predictor(unit))


def predict_by_workers(config: PredictConfig, units: Sequence[Unit]) -> Iterator[Predicted]:
    """As `predict`, in the order of the units."""
    start_ray()
    worker: Any = ray.remote(_Worker).options(num_cpus=1, num_gpus=config.gpus, max_restarts=2, max_task_retries=2)
    try:
        pool = ActorPool([worker.remote(config) for _ in range(min(config.workers, len(units)))])
        for found in pool.map(lambda actor, unit: actor.run.remote(unit), list(units)):
            yield from found
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise EngineError(worker_failure(error)) from None
    except RayError as error:
        raise EngineError(worker_failure(error)) from None
