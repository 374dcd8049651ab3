"""Train with several workers on Ray Train; lost workers are replaced.

Workers tell the driver in files what it shall say, and why they end, because Ray wraps errors in
pages of its own frames: one of notes, one of a refusal, after which nothing restarts, and one of
the last error that a restart may mend.
"""

import json
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from functools import partial

import ray
import ray.train
import torch
from ray.exceptions import RayError
from ray.train import FailureConfig, Result, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from torch import nn
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.nn.parallel import DistributedDataParallel

from rlip_model.training.objective import HEAVY, Objective
from sgpipe.errors import DivergedError, EngineError, UserError
from sgpipe.training.job import TrainingJob, run_job
from sgpipe.training.metrics import Row, read_metrics
from sgpipe.training.recipe import WorkersConfig
from sgpipe.training.restarts import exhausted, is_refusal, reason_of, restart_note
from sgpipe.utils.atomic import write_text
from sgpipe.utils.console import Progress
from sgpipe.utils.devices import check_workers, configure_torch, pick_device
from sgpipe.utils.ray_cluster import start_ray, worker_failure

_REFUSAL = "refusal.json"
_FAILURE = "failure.txt"
_NOTES = "notes.txt"
_REFUSALS = {"UserError": UserError, "DivergedError": DivergedError}
_POLL_SECONDS = 0.5


def run_workers(job: TrainingJob, show: Callable[[Row], None], progress: Progress) -> None:
    """Run the job in `workers.count` processes. Raises as `train`."""
    config = job.recipe.workers
    refusal = job.private / _REFUSAL
    refusal.unlink(missing_ok=True)
    for name in (_FAILURE, _NOTES):
        (job.private / name).unlink(missing_ok=True)
    start_ray(config.address, say=progress.say)
    note = check_workers(ray.nodes(), config.count, config.cpus, _gpus(config))
    if note:
        progress.say(note)
    progress.say(f"{config.count} workers, {config.parallel}")
    for name in ("ray.train", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    gpus = {"GPU": _gpus(config)} if _gpus(config) else {}
    resources = {"CPU": config.cpus, **gpus}
    restarts = FailureConfig(max_failures=config.restarts)
    trainer = TorchTrainer(
        _worker,
        train_loop_config={"job": job},
        torch_config=TorchConfig(backend="nccl" if gpus else "gloo"),
        scaling_config=ScalingConfig(
            num_workers=config.count, use_gpu=bool(gpus), resources_per_worker=resources
        ),
        run_config=RunConfig(
            name="workers", storage_path=str(job.private / "ray"), failure_config=restarts
        ),
    )
    try:
        _fit(trainer, job, show, progress)
    except (RayError, RuntimeError, ray.train.TrainingFailedError) as error:
        if not refusal.exists():
            reason = _last_failure(job) or worker_failure(error)
            raise exhausted(reason, config.restarts) from None
    if refusal.exists():
        kind, message = json.loads(refusal.read_text(encoding="utf-8"))
        raise _REFUSALS.get(kind, EngineError)(message)


def _last_failure(job: TrainingJob) -> str:
    """Return why the last worker ended whose error a restart may mend; empty: none has."""
    path = job.private / _FAILURE
    return path.read_text(encoding="utf-8") if path.exists() else ""


def _add_note(job: TrainingJob, note: str) -> None:
    with (job.private / _NOTES).open("a", encoding="utf-8") as file:
        file.write(f"{note}\n")


def _read_notes(job: TrainingJob) -> list[str]:
    path = job.private / _NOTES
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


def _fit(
    trainer: TorchTrainer, job: TrainingJob, show: Callable[[Row], None], progress: Progress
) -> None:
    """Show new metrics and notes until the training ends, a worker refuses its input (Ray would
    only retry), or Ctrl-C.

    It runs in a thread, because in the main thread Ray Train would handle Ctrl-C itself and return
    as if it were done.
    """
    outcome: Future[Result] = Future()

    def run() -> None:
        try:
            outcome.set_result(trainer.fit())
        except BaseException as error:  # noqa: BLE001 - raised where the outcome is read
            outcome.set_exception(error)

    threading.Thread(target=run, name="trainer", daemon=True).start()
    shown = 0
    told = 0
    is_over = False
    try:
        while not is_over:
            wait([outcome], timeout=_POLL_SECONDS)
            is_over = outcome.done() or (job.private / _REFUSAL).exists()
            rows = read_metrics(job.out)
            for row in rows[shown:]:
                show(row)
            shown = len(rows)  # fewer than before if lost steps are repeated
            notes = _read_notes(job)
            for note in notes[told:]:
                progress.say(note)
            told = len(notes)
        if outcome.done():
            outcome.result()
    finally:
        if not outcome.done():
            ray.shutdown()  # ends the workers, too


def _worker(config: dict[str, TrainingJob]) -> None:
    """The body of a worker."""
    job = config["job"]
    workers = job.recipe.workers
    context = ray.train.get_context()
    refusal = job.private / _REFUSAL
    if refusal.exists():
        raise EngineError("the input was refused before; a retry would change nothing")
    device = worker_device(workers)
    configure_torch(device, workers.cpus)
    share = context.get_world_rank(), context.get_world_size()
    if context.get_world_rank() == 0:
        (job.private / _FAILURE).unlink(missing_ok=True)  # this is a restart after it
    wrap: Callable[[Objective], nn.Module] = wrap_fsdp
    # some parameters, such as the relation decoder's box heads, get no gradient
    if workers.parallel == "ddp":
        wrap = partial(DistributedDataParallel, find_unused_parameters=True)
    try:
        say = partial(_add_note, job)
        run_job(job, say=say, device=device, share=share, wrap=wrap)
    except (UserError, EngineError, OSError) as error:
        if is_refusal(error):
            kind = _kind_of(error)
            write_text(refusal, json.dumps([kind, reason_of(error)]))
        else:
            write_text(job.private / _FAILURE, reason_of(error))
            _add_note(job, restart_note(reason_of(error)))
            time.sleep(workers.restart_seconds)  # Ray restarts at once
        raise


def _kind_of(error: Exception) -> str:
    """Return by which of `_REFUSALS` the driver raises a refusal."""
    for kind, error_class in _REFUSALS.items():
        if isinstance(error, error_class):
            return kind
    return type(error).__name__


def worker_device(config: WorkersConfig) -> torch.device:
    """Return the GPU that Ray gave to this worker; without one the CPU, though Ray Train has chosen
    the first GPU.
    """
    if _gpus(config) and torch.cuda.is_available():
        return get_device()
    return pick_device(config.device if _gpus(config) else "cpu", _gpus(config))


def _gpus(config: WorkersConfig) -> float:
    return 0 if config.device == "cpu" else config.gpus


def wrap_fsdp(objective: Objective) -> nn.Module:
    """The parameters and the state of the optimizer are divided between the processes."""
    for module in objective.network.modules():
        if isinstance(module, HEAVY):
            fully_shard(module)
    # also after validations, which have no backward pass
    fully_shard(objective, reshard_after_forward=True)
    for method in (Objective.evaluate, Objective.count, Objective.detect):
        register_fsdp_forward_method(objective, method.__name__)
    return objective
