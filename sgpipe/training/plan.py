"""`sgpipe train --plan`: what a training takes, from a few of its steps; nothing is kept."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sgpipe.training.data.stream import StepStream, check_batch
from sgpipe.training.job import PRIVATE, run_job
from sgpipe.training.recipe import TrainRecipe
from sgpipe.training.run import prepare
from sgpipe.utils.config_file import changed
from sgpipe.utils.console import Progress, count, duration, print_rows
from sgpipe.utils.devices import pick_device, usable_gpus
from sgpipe.utils.gpu import MemoryFullError

STEPS, PATIENCE = 4, 60.0  # steps after the first one, and seconds after which fewer are enough
_USABLE = 0.9  # share of the memory
_STATE = 4  # float32 values per parameter: itself, its gradient, and two moments of AdamW


@dataclass(frozen=True)
class TrainingPlan:
    """What a training takes.

    Attributes:
        images: per epoch, of all workers.
        accumulate, part: each worker computed its share of a batch in `accumulate` parts of `part` images.
        step_seconds: mean time of a step of a worker's share. waited: share of it that waited for images.
        memory: bytes at their peak, on the GPU or else of the process. device_memory: bytes that there are.
        fitting: the fewest parts per worker that are estimated to fit, with the batch as it is.
        seconds: of all steps, without validations and checkpoints.
    """

    device: str
    epochs: int | None
    steps: int
    images: int
    batch: int
    workers: int
    accumulate: int
    part: int
    measured_steps: int
    step_seconds: float
    waited: float
    memory: int
    device_memory: int
    fitting: int
    gpus: int
    seconds: float


class _EnoughError(Exception):
    """Enough steps are measured."""


def plan_training(recipe: TrainRecipe, progress: Progress, steps: int = STEPS) -> TrainingPlan:
    """Make some steps of a worker's share, in twice as many parts until they fit on the GPU. Raises as `train`."""
    options, workers = recipe.optimisation, recipe.workers.count
    check_batch(options.batch, workers)
    share, accumulate = options.batch // workers, options.accumulate
    while True:
        alone = changed(
            recipe,
            optimisation=changed(options, batch=share, accumulate=accumulate),
            data=recipe.data.model_copy(update={"val": ()}),
            output=changed(recipe.output, log_every=1, tensorboard=False),
            workers=changed(recipe.workers, count=1),
        )
        try:
            return _measure(alone, recipe, steps, progress)
        except MemoryFullError:
            if accumulate * 2 > share or share % (accumulate * 2):
                raise
            accumulate *= 2
            progress.say(f"the memory is full: trying optimisation.accumulate={accumulate}")


def _measure(alone: TrainRecipe, recipe: TrainRecipe, steps: int, progress: Progress) -> TrainingPlan:
    rows: list[dict[str, Any]] = []
    times: list[float] = []

    def show(row: dict[str, Any]) -> None:
        rows.append(row)
        times.append(time.monotonic())
        if len(rows) > steps or (len(rows) > 1 and times[-1] - times[0] > PATIENCE):
            raise _EnoughError

    options, workers = recipe.optimisation, recipe.workers.count
    with tempfile.TemporaryDirectory(prefix="sgpipe-plan-") as folder, suppress(_EnoughError):
        (Path(folder) / PRIVATE).mkdir()
        job = prepare(alone, Path(folder).resolve(), progress)
        # Refuses what a training with all workers refuses.
        StepStream(job.training_set, recipe.data, options.batch, recipe.seed, 1, world_size=workers)
        state = _STATE * (job.initial_model / "model.safetensors").stat().st_size
        progress.say(f"measuring {count(steps + 1, 'step')}")
        run_job(job, show)
    share, accumulate = alone.optimisation.batch, alone.optimisation.accumulate
    measured = rows[1:] or rows  # the first one also allocates and warms up
    seconds = (times[-1] - times[0]) / (len(rows) - 1) if len(rows) > 1 else share / rows[0]["images_per_second"]
    device, name = pick_device(alone.workers.device, alone.workers.gpus), "CPU"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        name, total = torch.cuda.get_device_name(device), torch.cuda.get_device_properties(device).total_memory
    part, memory = -(-share // accumulate), int(max(row.get("gpu_memory", row["memory"]) for row in rows))
    per_image = max(memory - state, 0) / part
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    whole = options.steps or rows[0]["steps"] // (options.epochs * workers) * options.epochs
    fitting = share // max((size for size in sizes if state + size * per_image <= _USABLE * total), default=1)
    return TrainingPlan(
        device=name, epochs=None if options.steps else options.epochs, steps=whole, images=job.training_set.rows,
        batch=options.batch, workers=workers, accumulate=accumulate, part=part, measured_steps=len(measured),
        step_seconds=seconds, waited=sum(row["waited"] for row in measured) / len(measured), memory=memory,
        device_memory=total, fitting=fitting, gpus=usable_gpus(), seconds=whole * seconds,
    )  # fmt: skip


def print_training_plan(plan: TrainingPlan, console: Console) -> None:
    parts = f"{count(plan.accumulate, 'part')} of {count(plan.part, 'image')}"
    rate = f"{plan.batch / plan.step_seconds:.3g} images/s, waiting for images {plan.waited:.0%}"
    rows = {
        "device": plan.device,
        "schedule": f"{count(plan.steps, 'step')}" + (f", {count(plan.epochs, 'epoch')}" if plan.epochs else ""),
        "images": f"{plan.images:,}",
        "step": f"{plan.step_seconds:.3g} s, {rate}",
        "batch": f"{plan.batch}: {count(plan.workers, 'worker')} × {parts}",
        "memory": f"{plan.memory / 1e9:.1f} of {plan.device_memory / 1e9:.1f} GB",
        "time": f"{duration(plan.seconds)} ({plan.seconds / 86400:.2g} days), without validations",
        "parts that fit": f"optimisation.accumulate={plan.fitting} (estimated)",
    }
    if plan.gpus > plan.workers and plan.batch % plan.gpus == 0:
        rows["all GPUs"] = f"--workers {plan.gpus} --gpus 1"
    print_rows(f"plan, from {count(plan.measured_steps, 'step')}", rows, console)
