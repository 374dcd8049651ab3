"""Train a network on shards (`sgpipe train`), with one process or several, or plan a training.

An interrupted training resumes.

OUT/recipe.yaml     all settings
OUT/metrics.jsonl   one line every few steps and per validation; OUT/tensorboard/ has the same
OUT/checkpoints/    checkpoints, as folders for `from_pretrained`; OUT/last and OUT/best link to two
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from rlip_model.pretrained import CheckpointError
from rlip_model.training.state import BEST, LAST, Position, read_position
from sgpipe.errors import UserError
from sgpipe.files.locations import text_sha256
from sgpipe.files.model_cache import pin_model
from sgpipe.storage.datasets import load_manifest
from sgpipe.storage.run_folder import settings_changed
from sgpipe.training.data.order import shuffled_epoch
from sgpipe.training.data.scan import TrainingSet, scan_training, scan_validation
from sgpipe.training.data.stream import StepStream, check_batch
from sgpipe.training.initial_model import make_initial_model
from sgpipe.training.job import PRIVATE, TrainingJob, check_benchmark, run_job
from sgpipe.training.metrics import Row, TrainSummary, read_metrics, training_display
from sgpipe.training.recipe import TrainRecipe
from sgpipe.training.restarts import run_with_restarts
from sgpipe.utils import __version__
from sgpipe.utils.atomic import only_process, write_text
from sgpipe.utils.config_file import changed, dump_yaml
from sgpipe.utils.console import Progress, count, duration, print_rows
from sgpipe.utils.devices import check_devices, pick_device, usable_gpus
from sgpipe.utils.gpu import MemoryFullError
from sgpipe.utils.hashing import fingerprint
from sgpipe.utils.ray_cluster import prepare_ray

# Split, image id, and the fields of a `JudgedRelation`.
_JudgedRow: TypeAlias = tuple[str, str, int, int, str, bool, float]
_RUN = "run.json"
_RECIPE = "recipe.yaml"
# steps after the first one, and seconds after which fewer are enough
STEPS = 4
PATIENCE = 60.0
_USABLE = 0.9  # share of the memory
_STATE = 4  # float32 values per parameter: itself, its gradient, and two moments of AdamW


def train(recipe: TrainRecipe, out: str | Path, progress: Progress | None = None) -> TrainSummary:
    """Train a recipe's network into a folder, or resume an earlier training of the same recipe.

    Raises:
        UserError: the recipe, the shards, the network or the folder is invalid
        EngineError: workers were lost, or files or stores failed, more often than
            `workers.restarts`; or (DivergedError) a loss is not finite
        OSError: a checkpoint could not be written, as the disk is full
    """
    progress = progress or Progress()
    out = Path(out)
    disable_progress_bar()
    workers = recipe.workers
    check_devices(workers.device, workers.gpus, workers.count, ("workers.device", "workers.gpus"))
    if out.is_dir() and not (out / PRIVATE).is_dir() and any(out.iterdir()):
        raise UserError(
            f"--out {out} contains something that is not an sgpipe training; name an empty or new"
            " folder"
        )
    (out / PRIVATE).mkdir(parents=True, exist_ok=True)
    with only_process(out / PRIVATE / "lock", out):
        job = prepare(recipe, out.resolve(), progress)
        options = recipe.optimisation
        position = _position(job)
        if options.is_done(position.step, position.epoch):
            trained = count(position.epoch, "epoch")
            if options.steps is not None:
                trained = count(position.step, "step")
            progress.say(f"nothing left to do: {job.out} has trained {trained}")
        else:
            if position.step:
                progress.say(f"resuming at step {position.step:,}")
            _run(job, progress)
        return _summary(job)


def _run(job: TrainingJob, progress: Progress) -> None:
    """Train in this process, or in several on Ray."""
    workers = job.recipe.workers
    with training_display(progress) as show:
        if workers.count > 1:
            prepare_ray(workers.address)
            from sgpipe.training.workers import run_workers

            run_workers(job, show, progress)
        else:
            run = partial(run_job, job, show, progress.say)
            run_with_restarts(run, workers.restarts, workers.restart_seconds, progress)


def _summary(job: TrainingJob) -> TrainSummary:
    position = _position(job)
    last = {row["event"]: row for row in read_metrics(job.out)}
    return TrainSummary(
        job.out,
        job.recipe.model.kind,
        position.epoch,
        position.step,
        job.training_set.rows,
        last=last.get("step", {}),
        validation=last.get("validation", {}),
        best=position.best,
        # of a finished training, the measure that chose
        best_by=position.best_by or job.recipe.output.best,
        network=job.out / (BEST if (job.out / BEST).exists() else LAST),
    )


def prepare(recipe: TrainRecipe, out: Path, progress: Progress) -> TrainingJob:
    """Read the shards and create the network.

    Raises:
        UserError: as `train`, or the folder has a training of other settings
    """
    _check_judged(recipe)
    header = out / PRIVATE / _RUN
    before = header.read_text(encoding="utf-8") if header.exists() else ""
    model = recipe.model
    if model.init and "://" not in model.init:
        recipe = changed(recipe, model=changed(model, init=pin_model(model.init, before)))
    progress.say("reading the shards")
    training = scan_training(recipe.data)
    validation = scan_validation(recipe.data, training)
    check_benchmark(recipe, validation)
    for note in training.notes:
        progress.say(f"NOTE: {note}")
    fitted = fit_batch(recipe, training)
    if fitted is not recipe:
        progress.say(
            f"NOTE: optimisation.batch is lowered from {recipe.optimisation.batch} to"
            f" {fitted.optimisation.batch}, as an epoch has no more images"
        )
    job = TrainingJob(fitted, out, training, validation)
    now = json.dumps(_identity(job))
    if before:
        _discard_outdated(job, before, now)
    write_text(header, now)
    write_text(job.out / _RECIPE, dump_yaml(fitted.model_dump(mode="json")))
    if not (job.initial_model / "config.json").exists():
        progress.say("creating the network")
        _make_network(job)
    return job


def _check_judged(recipe: TrainRecipe) -> None:
    """Check that the network can learn from judged shards.

    Raises:
        UserError: judged shards are to be learned by something else than an R-Tagger.
    """
    parts = list(recipe.data.val)
    if recipe.model.kind != "tagger":
        parts += recipe.data.train
    if any(part.judged for part in parts):
        raise UserError(
            "judged shards (--judgements) teach the R-Tagger only: set model.kind=tagger, and none"
            " in data.val"
        )


def _discard_outdated(job: TrainingJob, before: str, now: str) -> None:
    """Delete the initial network of other settings.

    Raises:
        UserError: a network of other settings has been trained
    """
    if json.loads(before) == json.loads(now):
        return
    if job.checkpoints.latest():
        raise settings_changed(job.out, json.loads(before), json.loads(now))
    for folder in job.private.glob(f"{job.initial_model.name}*"):
        shutil.rmtree(folder)


def _make_network(job: TrainingJob) -> None:
    data = job.recipe.data
    closed = job.training_set.closed_labels
    if closed is not None:
        texts = [*closed.objects, *closed.relations]
    else:
        texts = [*job.training_set.objects.names, *job.training_set.relations.names]
    for wordings in data.wordings.values():
        texts += wordings
    sides = (data.short_side, data.long_side)
    make_initial_model(job.recipe.model, texts, job.recipe.seed, job.initial_model, sides)


def fit_batch(recipe: TrainRecipe, training_set: TrainingSet) -> TrainRecipe:
    """Return the recipe, with a lower batch if an epoch has fewer images.

    The parts of a step do not become larger.

    Raises:
        UserError: the batch cannot be divided evenly between the workers
    """
    options = recipe.optimisation
    workers = recipe.workers.count
    check_batch(options.batch, workers, options.accumulate)
    images = len(shuffled_epoch(training_set, recipe.data.shuffle, recipe.seed, epoch=0))
    if images >= options.batch or images < workers:  # `StepStream` refuses the latter
        return recipe
    part = min(options.batch // (workers * options.accumulate), images // workers)
    accumulate = images // (workers * part)
    return changed(
        recipe,
        optimisation=changed(options, batch=workers * part * accumulate, accumulate=accumulate),
    )


def _position(job: TrainingJob) -> Position:
    """Return the position of the latest checkpoint, or the start.

    Raises:
        UserError: the checkpoint is damaged
    """
    latest = job.checkpoints.latest()
    try:
        return read_position(latest) if latest else Position()
    except CheckpointError as error:
        raise UserError(str(error)) from None


def _identity(job: TrainingJob) -> dict[str, Any]:
    """Return every setting that decides the weights, but not outputs and workers."""
    settings = job.recipe.model_dump(mode="json", exclude={"name", "output", "workers"})
    data = settings["data"]
    for name in ("threads", "prefetch"):
        del data[name]
    for part in (*data["train"], *data["val"]):
        del part["images"]
        shards = load_manifest(part["shards"]).shards
        part["shards"] = fingerprint({shard.file: shard.sha256 for shard in shards})
    judged = _judged_rows(job.training_set)
    if judged:
        data["judgements"] = fingerprint({"judged": judged})
    if job.recipe.data.calibration is not None:
        data["calibration"] = text_sha256(job.recipe.data.calibration)
    options = settings["optimisation"]
    # A step schedule can be extended; the length of a cosine is that of its decay.
    if options["schedule"] == "step":
        del options["epochs"], options["steps"]
    elif options["steps"]:
        del options["epochs"]
    validation = job.validation_set
    images = {"training": job.training_set.rows, "validation": validation.rows if validation else 0}
    return {"sgpipe": __version__, **settings, "images": images}


def _judged_rows(training_set: TrainingSet) -> list[list[_JudgedRow]]:
    """Return the judged relations of each folder that has any, with split and image id."""
    folders = []
    for folder in training_set.folders:
        if folder.judged is not None:
            rows: list[_JudgedRow] = []
            for image, relations in folder.judged.items():
                rows += [(*image, *relation) for relation in relations]
            folders.append(sorted(rows))
    return folders


@dataclass(frozen=True)
class TrainingPlan:
    """What a training takes.

    Attributes:
        images: per epoch, of all workers
        accumulate: parts in which each worker computes its share of a batch
        part: images of a part
        step_seconds: mean time of a step of a worker's share
        waited: the share of it that waited for images
        memory: bytes at their peak, on the GPU or else of the process
        device_memory: bytes that there are
        fitting: the fewest parts per worker that are estimated to fit
        seconds: of all steps alone
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
    """Raised when enough steps have been measured."""


def plan_training(recipe: TrainRecipe, progress: Progress, steps: int = STEPS) -> TrainingPlan:
    """Make some steps of a worker's share, in twice as many parts until they fit on the GPU.

    Raises:
        UserError, EngineError, OSError: as `train`
    """
    options = recipe.optimisation
    workers = recipe.workers.count
    check_batch(options.batch, workers)
    share = options.batch // workers
    accumulate = options.accumulate
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


class _Measurement:
    """The metrics of the first steps, and when they came."""

    def __init__(self, steps: int) -> None:
        self.rows: list[Row] = []
        self._times: list[float] = []
        self._steps = steps

    def add(self, row: Row) -> None:
        """Raises _EnoughError: no further step is needed."""
        self.rows.append(row)
        self._times.append(time.monotonic())
        is_slow = len(self.rows) > 1 and self._times[-1] - self._times[0] > PATIENCE
        if len(self.rows) > self._steps or is_slow:
            raise _EnoughError

    def step_seconds(self, images: int) -> float:
        """Return the mean time of a step of this many images."""
        if len(self.rows) > 1:
            return (self._times[-1] - self._times[0]) / (len(self.rows) - 1)
        return images / float(self.rows[0]["images_per_second"])


def _measure(
    alone: TrainRecipe, recipe: TrainRecipe, steps: int, progress: Progress
) -> TrainingPlan:
    """Plan a training by some steps of `alone`, the share of a worker.

    Raises:
        UserError, EngineError, OSError: as `train`
    """
    options = recipe.optimisation
    workers = recipe.workers.count
    measurement = _Measurement(steps)
    with tempfile.TemporaryDirectory(prefix="sgpipe-plan-") as folder, suppress(_EnoughError):
        (Path(folder) / PRIVATE).mkdir()
        job = prepare(alone, Path(folder).resolve(), progress)
        fitted = fit_batch(recipe, job.training_set)
        if fitted is not recipe:
            return plan_training(fitted, progress, steps)
        # Refuses what a training with all workers refuses.
        StepStream(job.training_set, recipe.data, options.batch, recipe.seed, 1, world_size=workers)
        state = _STATE * (job.initial_model / "model.safetensors").stat().st_size
        progress.say(f"measuring {count(steps + 1, 'step')}")
        run_job(job, measurement.add)
    share = alone.optimisation.batch
    accumulate = alone.optimisation.accumulate
    rows = measurement.rows
    measured = rows[1:] or rows  # the first one also allocates and warms up
    step_seconds = measurement.step_seconds(share)
    device, device_memory = _device_memory(alone)
    part = -(-share // accumulate)
    measure = "gpu_memory" if "gpu_memory" in rows[0] else "memory"
    memory = int(max(row[measure] for row in rows))
    image_memory = max(memory - state, 0) / part
    all_steps = options.steps
    if not all_steps:
        all_steps = rows[0]["steps"] // (options.epochs * workers) * options.epochs
    return TrainingPlan(
        device=device,
        epochs=None if options.steps else options.epochs,
        steps=all_steps,
        images=job.training_set.rows,
        batch=options.batch,
        workers=workers,
        accumulate=accumulate,
        part=part,
        measured_steps=len(measured),
        step_seconds=step_seconds,
        waited=sum(row["waited"] for row in measured) / len(measured),
        memory=memory,
        device_memory=device_memory,
        fitting=_fewest_parts(share, image_memory, _USABLE * device_memory - state),
        gpus=usable_gpus(),
        seconds=all_steps * step_seconds,
    )


def _device_memory(recipe: TrainRecipe) -> tuple[str, int]:
    """Return the name of the device of a worker, and its memory in bytes."""
    device = pick_device(recipe.workers.device, recipe.workers.gpus)
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return torch.cuda.get_device_name(device), properties.total_memory
    return "CPU", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _fewest_parts(share: int, image_memory: float, memory: float) -> int:
    """Return into how few equal parts a share of a batch can be cut so that a part fits."""
    for part in range(share, 1, -1):
        if share % part == 0 and part * image_memory <= memory:
            return share // part
    return share


def print_training_plan(plan: TrainingPlan, console: Console) -> None:
    parts = f"{count(plan.accumulate, 'part')} of {count(plan.part, 'image')}"
    rate = f"{plan.batch / plan.step_seconds:.3g} images/s, waiting for images {plan.waited:.0%}"
    schedule = count(plan.steps, "step")
    if plan.epochs:
        schedule += f", {count(plan.epochs, 'epoch')}"
    days = plan.seconds / 86400
    rows = {
        "device": plan.device,
        "schedule": schedule,
        "images": f"{plan.images:,}",
        "step": f"{plan.step_seconds:.3g} s, {rate}",
        "batch": f"{plan.batch}: {count(plan.workers, 'worker')} × {parts}",
        "memory": f"{plan.memory / 1e9:.1f} of {plan.device_memory / 1e9:.1f} GB",
        "time": f"{duration(plan.seconds)} ({days:.2g} days), without validations",
        "parts that fit": f"optimisation.accumulate={plan.fitting} (estimated)",
    }
    if plan.gpus > plan.workers and plan.batch % plan.gpus == 0:
        rows["all GPUs"] = f"--workers {plan.gpus} --gpus 1"
    print_rows(f"plan, from {count(plan.measured_steps, 'step')}", rows, console)
