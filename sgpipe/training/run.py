"""Train a network on shards (`sgpipe train`), with one process or several; an interrupted training
resumes. Or plan it.

OUT/recipe.yaml     all settings
OUT/metrics.jsonl   one line every few steps and per validation; OUT/tensorboard/ has the same for
TensorBoard OUT/checkpoints/    checkpoints, as folders for `from_pretrained`; OUT/last and OUT/best
link to two of them
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers.utils.logging import disable_progress_bar

from rlip_model.pretrained import CheckpointError
from rlip_model.training.state import BEST, LAST, Position, read_position
from sgpipe.errors import UserError
from sgpipe.files.locations import text_sha256
from sgpipe.files.model_cache import pin_model
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_folder import settings_changed
from sgpipe.training.data.scan import TrainingSet, scan_training, scan_validation
from sgpipe.training.data.stream import StepStream, check_batch, shuffled_epoch
from sgpipe.training.initial_model import make_initial_model
from sgpipe.training.job import PRIVATE, TrainingJob, check_benchmark, run_job
from sgpipe.training.metrics import TrainSummary, read_metrics, training_display
from sgpipe.training.recipe import TrainRecipe
from sgpipe.utils import __version__
from sgpipe.utils.atomic import only_process, write_text
from sgpipe.utils.config_file import changed, dump_yaml
from sgpipe.utils.console import Progress, count, duration, print_rows
from sgpipe.utils.devices import check_devices, pick_device, usable_gpus
from sgpipe.utils.gpu import MemoryFullError
from sgpipe.utils.hashing import fingerprint
from sgpipe.utils.ray_cluster import prepare_ray

_RUN = "run.json"
_RECIPE = "recipe.yaml"
# steps after the first one, and seconds after which fewer are enough
STEPS = 4
PATIENCE = 60.0
_USABLE = 0.9  # share of the memory
_STATE = 4  # float32 values per parameter: itself, its gradient, and two moments of AdamW


def train(recipe: TrainRecipe, out: str | Path, progress: Progress | None = None) -> TrainSummary:
    """Train a recipe's network into the folder `out`; an earlier training of the same recipe in
    `out` is resumed.

    Raises UserError: the recipe, the shards, the network or the folder is invalid; EngineError:
    workers were lost and could not be replaced, or (DivergedError) a loss is not finite; OSError: a
    checkpoint could not be written.
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
            trained = (
                count(position.epoch, "epoch")
                if options.steps is None
                else count(position.step, "step")
            )
            progress.say(f"nothing left to do: {job.out} has trained {trained}")
        else:
            if position.step:
                progress.say(f"resuming at step {position.step:,}")
            with training_display(progress) as show:
                if workers.count > 1:
                    prepare_ray(workers.address)
                    from sgpipe.training.workers import run_workers

                    run_workers(job, show, progress)
                else:
                    run_job(job, show)
        rows = read_metrics(job.out)
        position = _position(job)
        last = {row["event"]: row for row in rows}
        return TrainSummary(
            *(job.out, recipe.model.kind, position.epoch, position.step, job.training_set.rows),
            last=last.get("step", {}),
            validation=last.get("validation", {}),
            best=position.best,
            best_by=position.best_by
            or recipe.output.best,  # of a finished training, the measure that chose
            network=job.out / (BEST if (job.out / BEST).exists() else LAST),
        )


def prepare(recipe: TrainRecipe, out: Path, progress: Progress) -> TrainingJob:
    """Read the shards and create the network. Raises UserError, also if the folder has a training
    of other settings.
    """
    unjudged = (
        recipe.data.val if recipe.model.kind == "tagger" else (*recipe.data.val, *recipe.data.train)
    )
    if any(part.judged for part in unjudged):
        why = "judged shards (--judgements) teach the R-Tagger only"
        raise UserError(f"{why}: set model.kind=tagger, and none in data.val")
    before = (
        (out / PRIVATE / _RUN).read_text(encoding="utf-8")
        if (out / PRIVATE / _RUN).exists()
        else ""
    )
    init = recipe.model.init
    if init and "://" not in init:
        pinned = pin_model(init, before)
        recipe = changed(recipe, model=changed(recipe.model, init=pinned))
    progress.say("reading the shards")
    training = scan_training(recipe.data)
    validation = scan_validation(recipe.data, training)
    check_benchmark(recipe, validation)
    for note in training.notes:
        progress.say(f"NOTE: {note}")
    fitted = fit_batch(recipe, training)
    if fitted is not recipe:
        before_and_now = f"from {recipe.optimisation.batch} to {fitted.optimisation.batch}"
        progress.say(
            f"NOTE: optimisation.batch is lowered {before_and_now}, as an epoch has no more images"
        )
        recipe = fitted
    job = TrainingJob(recipe, out, training, validation)
    now = json.dumps(_identity(job))
    if before and json.loads(before) != json.loads(now):
        if job.checkpoints.latest():
            raise settings_changed(job.out, json.loads(before), json.loads(now))
        for folder in job.private.glob(
            f"{job.initial_model.name}*"
        ):  # nothing has been trained: create it again
            shutil.rmtree(folder)
    write_text(job.private / _RUN, now)
    write_text(job.out / _RECIPE, dump_yaml(recipe.model_dump(mode="json")))
    if not (job.initial_model / "config.json").exists():
        progress.say("creating the network")
        sides = recipe.data.short_side, recipe.data.long_side
        known = training.closed_labels
        names = (
            (known.objects, known.relations)
            if known
            else (training.objects.names, training.relations.names)
        )
        texts = [text for each in (*names, *recipe.data.wordings.values()) for text in each]
        make_initial_model(recipe.model, texts, recipe.seed, job.initial_model, sides)
    return job


def fit_batch(recipe: TrainRecipe, training_set: TrainingSet) -> TrainRecipe:
    """Return the recipe, with a lower batch if an epoch has fewer images; the parts of a step do
    not become larger.

    Raises UserError: the batch cannot be divided evenly between the workers.
    """
    options = recipe.optimisation
    workers = recipe.workers.count
    check_batch(options.batch, workers, options.accumulate)
    images = len(shuffled_epoch(training_set, recipe.data.shuffle, recipe.seed, epoch=0))
    if (
        images >= options.batch or images < workers
    ):  # `StepStream` refuses what gives a worker nothing
        return recipe
    part = min(options.batch // (workers * options.accumulate), images // workers)
    accumulate = images // (workers * part)
    return changed(
        recipe,
        optimisation=changed(options, batch=workers * part * accumulate, accumulate=accumulate),
    )


def _position(job: TrainingJob) -> Position:
    """Return the position of the latest checkpoint, or the start. Raises UserError: the checkpoint
    is damaged.
    """
    latest = job.checkpoints.latest()
    try:
        return read_position(latest) if latest else Position()
    except CheckpointError as error:
        raise UserError(str(error)) from None


def _identity(job: TrainingJob) -> dict[str, Any]:
    """Return every setting that decides the weights; what is written, and which workers compute,
    does not.
    """
    recipe = job.recipe.model_dump(mode="json", exclude={"name", "output", "workers"})
    for name in ("threads", "prefetch"):
        del recipe["data"][name]
    for part in (*recipe["data"]["train"], *recipe["data"]["val"]):
        del part["images"]
        part["shards"] = fingerprint(
            {shard.file: shard.sha256 for shard in Manifest.load(part["shards"]).shards}
        )
    found = [folder.judged for folder in job.training_set.folders if folder.judged is not None]
    judged = [
        sorted((*key, *each) for key, image in images.items() for each in image) for images in found
    ]
    if judged:
        recipe["data"]["judgements"] = fingerprint({"judged": judged})
    if job.recipe.data.calibration is not None:
        recipe["data"]["calibration"] = text_sha256(job.recipe.data.calibration)
    sets = {"training": job.training_set, "validation": job.validation_set}
    rows = {name: each.rows if each else 0 for name, each in sets.items()}
    options = recipe[
        "optimisation"
    ]  # a step schedule can be extended; the length of a cosine is that of its decay
    unused = (
        ("epochs", "steps")
        if options["schedule"] == "step"
        else ("epochs",)
        if options["steps"]
        else ()
    )
    for name in unused:
        del options[name]
    return {"sgpipe": __version__, **recipe, "images": rows}


@dataclass(frozen=True)
class TrainingPlan:
    """What a training takes.

    images: per epoch, of all workers. accumulate, part: each worker computed its share of a batch
    in `accumulate` parts of `part` images. step_seconds, waited: mean time of a step of a worker's
    share, and the part of it that waited for images. memory, device_memory: bytes at their peak, on
    the GPU or else of the process, and those that there are.
    fitting: the fewest parts per worker that are estimated to fit. seconds: of all steps alone.
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
    """Make some steps of a worker's share, in twice as many parts until they fit on the GPU. Raises
    as `train`.
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


def _measure(
    alone: TrainRecipe, recipe: TrainRecipe, steps: int, progress: Progress
) -> TrainingPlan:
    rows: list[dict[str, Any]] = []
    times: list[float] = []

    def show(row: dict[str, Any]) -> None:
        rows.append(row)
        times.append(time.monotonic())
        if len(rows) > steps or (len(rows) > 1 and times[-1] - times[0] > PATIENCE):
            raise _EnoughError

    options = recipe.optimisation
    workers = recipe.workers.count
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
        run_job(job, show)
    share = alone.optimisation.batch
    accumulate = alone.optimisation.accumulate
    measured = rows[1:] or rows  # the first one also allocates and warms up
    seconds = (
        (times[-1] - times[0]) / (len(rows) - 1)
        if len(rows) > 1
        else share / rows[0]["images_per_second"]
    )
    device = pick_device(alone.workers.device, alone.workers.gpus)
    name = "CPU"
    total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        total = torch.cuda.get_device_properties(device).total_memory
    part = -(-share // accumulate)
    memory = int(max(row.get("gpu_memory", row["memory"]) for row in rows))
    per_image = max(memory - state, 0) / part
    sizes = [size for size in range(1, share + 1) if share % size == 0]
    whole = options.steps or rows[0]["steps"] // (options.epochs * workers) * options.epochs
    fitting = share // max(
        (size for size in sizes if state + size * per_image <= _USABLE * total), default=1
    )
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
        "schedule": (
            f"{count(plan.steps, 'step')}"
            + (f", {count(plan.epochs, 'epoch')}" if plan.epochs else "")
        ),
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
