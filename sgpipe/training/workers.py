"""Several workers that train together, by Ray Train; those that are lost are replaced."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from rlip_model.training.divergence import DivergenceError
from rlip_model.training.objective import HEAVY, Objective
from sgpipe.errors import EngineError, UserError
from sgpipe.training.display import Display
from sgpipe.training.job import Job, work
from sgpipe.training.metrics import METRICS
from sgpipe.training.recipe import WorkersConfig
from sgpipe.utils.console import Progress
from sgpipe.utils.ray_cluster import start_ray, worker_failure

_REFUSAL = "refusal.json"
_SECONDS_BETWEEN_LOOKS = 0.5


def run_workers(job: Job, display: Display, progress: Progress) -> None:
    """Run the job in `workers.count` processes.

    Raises:
        UserError: a worker refused its input, or Ray has no room for the workers.
        EngineError: workers were lost more often than they are replaced, or a loss is no number.
    """
    config = job.recipe.workers
    refusal = job.private / _REFUSAL
    refusal.unlink(missing_ok=True)
    progress.say("starting Ray")
    start_ray(config.address)
    _check_room(config)
    progress.say(f"{config.count} workers, {config.parallel}")
    try:
        with _followed(job.out / METRICS, display.show):
            _fit(_trainer(job, config), refusal)
    except (RayError, RuntimeError, ray.train.TrainingFailedError) as error:
        if not refusal.exists():
            raise EngineError(worker_failure(error)) from None
    if refused := _read(refusal):
        kind, message = refused
        raise (UserError if kind == UserError.__name__ else EngineError)(message)


def _fit(trainer: TorchTrainer, refusal: Path) -> None:
    """Wait for the end, or for what cuts it short: Ctrl-C, and a refusal, which Ray would only try again.

    In the main thread Ray Train would answer Ctrl-C itself, and leave as if all were done.
    """
    outcome: Future[Any] = Future()

    def run() -> None:
        try:
            outcome.set_result(trainer.fit())
        # Not caught but handed over: it is raised where the outcome is asked for.
        except BaseException as error:  # noqa: BLE001
            outcome.set_exception(error)

    threading.Thread(target=run, name="trainer", daemon=True).start()
    try:
        while not outcome.done() and not refusal.exists():
            wait([outcome], timeout=_SECONDS_BETWEEN_LOOKS)
        if outcome.done():
            outcome.result()
    finally:
        if not outcome.done():
            ray.shutdown()  # takes the workers along


def _trainer(job: Job, config: WorkersConfig) -> TorchTrainer:
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    gpu = config.gpus > 0
    return TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpu else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.count,
            use_gpu=gpu,
            resources_per_worker={"CPU": config.cpus, **({"GPU": config.gpus} if gpu else {})},
        ),
        run_config=RunConfig(
            name="workers",
            storage_path=str(job.private / "ray"),
            failure_config=FailureConfig(max_failures=config.restarts),
        ),
    )


def _worker(config: dict[str, Any]) -> None:
    """The body of a worker. What it refuses travels by a file, because Ray wraps errors in pages of its own frames."""
    job: Job = config["job"]
    workers, context = job.recipe.workers, ray.train.get_context()
    refusal = job.private / _REFUSAL
    if refusal.exists():
        raise EngineError("refused before; trying again would change nothing")
    torch.set_num_threads(max(1, int(workers.cpus)))
    share = context.get_world_rank(), context.get_world_size()
    try:
        work(job, device=get_device(), share=share, wrap=fsdp if workers.parallel == "fsdp" else ddp)
    except (UserError, DivergenceError, EngineError, OSError) as error:
        temporary = refusal.with_name(f".refusal-{share[0]}.tmp")
        temporary.write_text(json.dumps([type(error).__name__, str(error)]), encoding="utf-8")
        os.replace(temporary, refusal)
        raise


def ddp(objective: Objective) -> nn.Module:
    """Every process has all parameters; some of them, such as the relation decoder's box heads, get no gradient."""
    return DistributedDataParallel(objective, find_unused_parameters=True)


def fsdp(objective: Objective) -> nn.Module:
    """Parameters and the optimizer's state are spread over the processes."""
    for module in objective.network.modules():
        if isinstance(module, HEAVY):
            fully_shard(module)
    fully_shard(objective, reshard_after_forward=True)  # after validations, too, which no backward pass follows
    register_fsdp_forward_method(objective, "judge")
    return objective


def _check_room(config: WorkersConfig) -> None:
    there = ray.cluster_resources()
    for name, each in (("CPU", config.cpus), ("GPU", config.gpus)):
        if each * config.count > there.get(name, 0) + 1e-6:
            raise UserError(
                f"{config.count} workers need {each * config.count:g} {name}s, Ray has {there.get(name, 0):g}; "
                f"lower --workers or workers.{name.lower()}s"
            )


@contextmanager
def _followed(path: Path, show: Callable[[dict[str, Any]], None]) -> Iterator[None]:
    """Within it, lines that are added to a file are shown."""
    stop, seen = threading.Event(), 0

    def look() -> None:
        nonlocal seen
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        rows = [json.loads(line) for line in lines if line.endswith("}\n")]
        for row in rows[seen:]:
            show(row)
        seen = len(rows)  # fewer than before if lost steps are done again

    def follow() -> None:
        while not stop.wait(_SECONDS_BETWEEN_LOOKS):
            look()

    look_from = threading.Thread(target=follow, name="metrics", daemon=True)
    look_from.start()
    try:
        yield
    finally:
        stop.set()
        look_from.join()
        look()


def _read(refusal: Path) -> tuple[str, str] | None:
    if not refusal.exists():
        return None
    kind, message = json.loads(refusal.read_text(encoding="utf-8"))
    return kind, message
