"""Several processes that predict together, by Ray."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError
from ray.util import ActorPool

from sgpipe.engine import reason, start_ray
from sgpipe.errors import EngineError, UserError
from sgpipe.predict import PredictConfig, Predicted, Predictor
from sgpipe.predict_rows import Unit
from sgpipe.recipe import EngineConfig


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
    start_ray(EngineConfig())
    worker: Any = ray.remote(_Worker).options(num_cpus=1, num_gpus=config.gpus, max_restarts=2, max_task_retries=2)
    try:
        pool = ActorPool([worker.remote(config) for _ in range(min(config.workers, len(units)))])
        for found in pool.map(lambda actor, unit: actor.run.remote(unit), list(units)):
            yield from found
    except RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise EngineError(reason(error)) from None
    except RayError as error:
        raise EngineError(reason(error)) from None
