"""Predict in this process, or in several worker processes on Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sgpipe.errors import EngineError, UserError
from sgpipe.inference.predictor import ImagePrediction, PredictConfig, Predictor
from sgpipe.inference.rows import RowGroup
from sgpipe.utils.console import Progress
from sgpipe.utils.devices import check_devices, check_workers
from sgpipe.utils.machines import machines_of


def predict(config: PredictConfig, row_groups: Sequence[RowGroup]) -> Iterator[ImagePrediction]:
    """The prediction for every image of the shards, error rows included, in the order of the shards, with progress.

    Raises:
        UserError: the network or a shard is missing or invalid.
        EngineError: workers could not be started, or were lost.
    """
    check_devices(config.device, config.gpus, config.workers, ("--device", "--gpus"))
    if config.workers > 1:
        predictions = _predict_on_ray(config, row_groups)
    else:
        predictor = Predictor(config)
        predictions = (prediction for row_group in row_groups for prediction in predictor(row_group))
    with Progress().images(sum(group.rows for group in row_groups), "predicting") as advance:
        for prediction in predictions:
            yield prediction
            advance(1, {"errors": int(prediction.pairs is None)})


class _Worker:
    """Loads the network with its first row group, so that an invalid network is the error of a task, with a cause."""

    def __init__(self, config: PredictConfig) -> None:
        self._config = config
        self._predictor: Predictor | None = None

    def run(self, row_group: RowGroup) -> list[ImagePrediction]:
        self._predictor = self._predictor or Predictor(self._config)
        return list(self._predictor(row_group))


def _predict_on_ray(config: PredictConfig, row_groups: Sequence[RowGroup]) -> Iterator[ImagePrediction]:
    import ray  # takes a second to import, and only several workers need it
    from ray.exceptions import RayError, RayTaskError
    from ray.util import ActorPool

    from sgpipe.utils.ray_cluster import start_ray, worker_failure

    progress = Progress()
    progress.say("starting Ray")
    start_ray()
    workers = min(config.workers, len(row_groups))
    gpus = 0 if config.device == "cpu" else config.gpus
    lower, machines = {"CPU": "--workers", "GPU": "--workers or --gpus"}, machines_of(ray.nodes())
    if note := check_workers(ray.cluster_resources(), workers, 1, gpus, lower, machines):
        progress.say(note)
    worker: Any = ray.remote(_Worker).options(num_cpus=1, num_gpus=gpus, max_restarts=2, max_task_retries=2)
    try:
        pool = ActorPool([worker.remote(config) for _ in range(workers)])
        for predictions in pool.map(lambda actor, row_group: actor.run.remote(row_group), list(row_groups)):
            yield from predictions
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise EngineError(worker_failure(error)) from None
    except RayError as error:
        raise EngineError(worker_failure(error)) from None
