"""A trained network predicts pairs and their predicates for the images of shards, in this process
or on Ray.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache, partial
from itertools import chain, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlip_model.evaluation.inputs import PredictedPairs
from rlip_model.gpu_memory import send_all
from rlip_model.heads import LayerOutput
from rlip_model.image import to_pixel_values
from rlip_model.postprocess import (
    TripletDetections,
    hoi_detections,
    scene_graph_detections,
    zero_shot_hoi_detections,
)
from rlip_model.settings import ComputePrecision
from rlip_model.text import NO_OBJECTS
from rlip_model.training.objective import detect
from sgpipe.errors import EngineError, UserError
from sgpipe.files.image_roots import ImagePlace
from sgpipe.images import ImageError, open_row_image
from sgpipe.inference.predictions import PERSON, ImagePrediction, PredictConfig, RowGroup, iter_rows
from sgpipe.recipe import DEFAULT_SIDES, miniworld_notes, size_notes, trained_sides
from sgpipe.records import Record
from sgpipe.stages.detect import load_detector
from sgpipe.utils.console import Progress
from sgpipe.utils.devices import (
    check_devices,
    check_workers,
    configure_torch,
    hide_gpus,
    pick_device,
    pick_dtype,
)
from sgpipe.utils.gpu import enough_memory
from sgpipe.utils.prefetch import prefetch
from sgpipe.utils.ray_cluster import prepare_ray, start_ray, worker_failure

_CPUS = 1  # of a worker on Ray
_PREFETCH = 2  # batches


def predict(config: PredictConfig, row_groups: Sequence[RowGroup]) -> Iterator[ImagePrediction]:
    """Yield the prediction for every image, error rows included, in the order of the shards, with
    progress.

    Raises:
        UserError: the network or a shard is missing or invalid.
        EngineError: workers did not start, or were lost.
    """
    check_devices(config.device, config.gpus, config.workers, ("--device", "--gpus"))
    model = str(config.model)
    for note in miniworld_notes([model]) + (size_notes(model) if config.sides is None else []):
        Progress().say(f"NOTE: {note}")
    if config.workers > 1:
        predictions = _predict_on_ray(config, row_groups)
    else:
        predictions = chain.from_iterable(map(Predictor(config), row_groups))
    with Progress().images(sum(group.rows for group in row_groups), "predicting") as advance:
        for prediction in predictions:
            yield prediction
            advance(1, {"errors": int(prediction.pairs is None)})


class Predictor:
    """A loaded network."""

    def __init__(self, config: PredictConfig) -> None:
        """Load a network.

        Raises:
            UserError: the network is missing or invalid, or does not support the task or the
                classes.
        """
        self.config = config
        self._device = pick_device(config.device, config.gpus)
        self._dtype = pick_dtype(config.dtype, self._device)
        self._sides = config.sides or trained_sides(str(config.model)) or DEFAULT_SIDES
        self._network = load_detector(config.model)
        if config.task != "hoi" and not self._network.config.subject_class:
            raise UserError(
                f"{config.model} does not classify subjects, so it can predict only what persons do"
            )
        if config.task != "scene graph" and PERSON not in config.classes.objects:
            names = ", ".join(config.classes.objects[:8])
            raise UserError(f"there is no class {PERSON!r} among the object classes: {names} …")
        nn.Module.to(self._network, self._device)
        self._network.prepare_inference(self._dtype)

    def __call__(self, row_group: RowGroup) -> Iterator[ImagePrediction]:
        """Yield the predictions for a row group, in its order; boxes are not clipped, as in the
        official code.

        Raises:
            UserError: a number is not finite.
        """
        size = self.config.batch
        read = partial(self._read, row_group.images)
        with prefetch(read, iter_rows(row_group), self.config.threads, _PREFETCH * size) as images:
            for batch in iter(lambda: list(islice(images, size)), []):
                readable = [pixels for _, pixels in batch if isinstance(pixels, Tensor)]
                detections = iter(self._detect(readable))
                for row, pixels in batch:
                    if isinstance(pixels, Tensor):
                        yield ImagePrediction(row, self._in_pixels(row, next(detections)))
                    else:
                        yield ImagePrediction(row, None, pixels)

    def _in_pixels(self, row: Record, detections: TripletDetections) -> PredictedPairs:
        """Return detections of normalised boxes with boxes in pixels of the image."""
        pairs = PredictedPairs.from_detections(detections)
        parts = pairs.scores, pairs.subject_boxes, pairs.object_boxes
        if not all(np.isfinite(part).all() for part in parts):
            why = "its training has diverged, or it needs --dtype float32"
            raise UserError(f"{self.config.model} predicts NaN for image {row.image_id}: {why}")
        sides = np.array((row.width, row.height) * 2, dtype=np.float32)
        return replace(
            pairs,
            subject_boxes=pairs.subject_boxes * sides,
            object_boxes=pairs.object_boxes * sides,
        )

    def _read(
        self, images: ImagePlace | None, item: tuple[Record, bytes | None]
    ) -> tuple[Record, Tensor | str]:
        row, embedded = item
        if not row.ok:
            return row, str(row.error)
        try:
            image = open_row_image({} if images is None else {row.split: images}, row, embedded)
        except ImageError as error:
            return row, str(error)
        pixels = to_pixel_values(image, *self._sides)
        return row, pixels.pin_memory() if self._device.type == "cuda" else pixels

    def _detect(self, images: Sequence[Tensor]) -> list[TripletDetections]:
        """Boxes are normalised xyxy. A forward pass has images of one size only, because padding
        changes results.
        """
        by_size: dict[torch.Size, list[int]] = {}
        for index, pixels in enumerate(images):
            by_size.setdefault(pixels.shape, []).append(index)
        detections: dict[int, TripletDetections] = {}
        for indices in by_size.values():
            on_device = [images[index].to(self._device, non_blocking=True) for index in indices]
            with enough_memory(self._device, f"lower --batch {self.config.batch}"):
                output = self._output(torch.stack(on_device))
            detections.update(zip(indices, self._triplets(output), strict=True))
        return _fetched([detections[index] for index in range(len(images))])

    def _triplets(self, output: LayerOutput) -> list[TripletDetections]:
        sides = torch.ones(len(output.object_boxes), 2)
        if self.config.task == "scene graph":
            return scene_graph_detections(output, sides)
        person = self.config.classes.objects.index(PERSON)
        if self.config.task == "hoi":
            return hoi_detections(output, sides, person)
        return zero_shot_hoi_detections(output, sides, person)

    def _output(self, pixels: Tensor) -> LayerOutput:
        """pixels `[images, 3, height, width]`."""
        return detect(self._network, pixels, *self._texts())

    def _texts(self) -> tuple[Sequence[str], Sequence[str], ComputePrecision]:
        classes = self.config.classes
        is_half = self._dtype == torch.bfloat16
        return (
            (*classes.objects, NO_OBJECTS),
            classes.relations,
            "bfloat16" if is_half else "float32",
        )


def _fetched(detections: Sequence[TripletDetections]) -> list[TripletDetections]:
    """Copy detections to the CPU, all at once."""
    tensors = chain.from_iterable(vars(image).values() for image in detections)
    copies = iter(send_all([*tensors], "cpu"))
    return [TripletDetections(*islice(copies, len(vars(image)))) for image in detections]


class _Worker:
    """Loads the network with its first row group, so that an invalid network is the error of a
    task, with a cause.
    """

    def __init__(self, config: PredictConfig, gpus: float) -> None:
        if not gpus:
            hide_gpus()
        configure_torch(torch.device("cpu"), _CPUS)
        self._predictor = cache(partial(Predictor, config))

    def run(self, row_group: RowGroup) -> list[ImagePrediction]:
        return list(self._predictor()(row_group))


def _predict_on_ray(
    config: PredictConfig, row_groups: Sequence[RowGroup]
) -> Iterator[ImagePrediction]:
    prepare_ray()
    import ray  # takes a second to import, and only several workers need it
    from ray.exceptions import RayError, RayTaskError
    from ray.util import ActorPool

    progress = Progress()
    start_ray(say=progress.say)
    workers = min(config.workers, len(row_groups))
    gpus = 0 if config.device == "cpu" else config.gpus
    note = check_workers(ray.nodes(), workers, _CPUS, gpus)
    if note:
        progress.say(note)
    worker: Any = ray.remote(_Worker).options(
        num_cpus=_CPUS, num_gpus=gpus, max_restarts=2, max_task_retries=2
    )
    try:
        pool = ActorPool([worker.remote(config, gpus) for _ in range(workers)])
        for predictions in pool.map(
            lambda actor, row_group: actor.run.remote(row_group), list(row_groups)
        ):
            yield from predictions
    except RayError as error:
        if isinstance(error, RayTaskError) and isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise EngineError(worker_failure(error)) from None
