"""`sgpipe train`: a recipe and shards become a network, resumably, by one process or several.

OUT/recipe.yaml          every setting
OUT/metrics.jsonl        one line per few steps and per validation; OUT/tensorboard/ the same for TensorBoard
OUT/checkpoints/         of steps; OUT/last and OUT/best link to two of them, folders for `from_pretrained`
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import yaml
from transformers.utils.logging import disable_progress_bar

from rlip_model.pretrained import CheckpointError
from rlip_model.training.divergence import DivergenceError
from rlip_model.training.state import BEST, LAST, Position, read_position
from sgpipe.errors import EngineError, UserError
from sgpipe.storage.manifest import Manifest
from sgpipe.training.data.contents import remarks
from sgpipe.training.data.scan import scan_training, scan_validation
from sgpipe.training.display import Display, TrainSummary
from sgpipe.training.initial_model import make_start
from sgpipe.training.job import PRIVATE, Job, work
from sgpipe.training.metrics import read_metrics
from sgpipe.training.recipe import TrainRecipe
from sgpipe.utils import __version__
from sgpipe.utils.console import Progress
from sgpipe.utils.hashing import differences, fingerprint
from sgpipe.utils.locking import only_process

_RUN = "run.json"


def train(recipe: TrainRecipe, out: Path, progress: Progress) -> TrainSummary:
    """Train a recipe's network into `out`, going on where an earlier training of the same recipe stopped.

    Raises:
        UserError: something is wrong with the recipe, the shards, the network or the folder.
        EngineError: workers were lost and could not be replaced, or a loss is no number.
        OSError: a checkpoint could not be written; those before it stay.
    """
    disable_progress_bar()
    _make(out)
    with only_process(out / PRIVATE / "lock", out):
        progress.say("reading the shards")
        training = scan_training(recipe.data)
        validating = scan_validation(recipe.data, training)
        for remark in remarks(training, recipe.data):
            progress.say(f"NOTE: {remark}")
        job = Job(recipe, out.resolve(), training, validating)
        _check_identity(job)
        if not (job.start / "config.json").exists():
            progress.say("making the network")
            names = [*training.objects.names, *training.relations.names]
            labels = training.labels
            texts = [*labels.objects, *labels.relations] if labels else names
            texts += [way for ways in recipe.data.wordings.values() for way in ways]
            make_start(recipe.model, texts, recipe.seed, job.start)
        _run(job, progress)
        return _summarise(job)


def _position(checkpoint: Path) -> Position:
    """Raises UserError: the checkpoint is damaged."""
    try:
        return read_position(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from None


def _run(job: Job, progress: Progress) -> None:
    if _is_done(job):
        return
    with Display(progress.console, job.recipe.optimisation.epochs) as display:
        if job.recipe.workers.count > 1:
            from sgpipe.training.workers import run_workers

            run_workers(job, display, progress)
            return
        try:
            work(job, display.show)
        except DivergenceError as error:
            raise EngineError(str(error)) from None


def _is_done(job: Job) -> bool:
    latest = job.checkpoints.latest()
    return latest is not None and _position(latest).epoch >= job.recipe.optimisation.epochs


def _make(out: Path) -> None:
    """Raises UserError: the folder is none, holds something else, or cannot be written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and not (out / PRIVATE).is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} holds something that is not an sgpipe training; name an empty or new folder")
    try:
        (out / PRIVATE).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None


def _check_identity(job: Job) -> None:
    """Raises UserError: the folder belongs to another training."""
    now = json.loads(json.dumps(_identity(job)))
    path = job.out / PRIVATE / _RUN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != now and job.checkpoints.latest():
            changes = "".join(f"\n  {line}" for line in differences(before, now))
            raise UserError(f"{job.out} is another training; choose another --out, or go back on:{changes}")
        if before != now:  # nothing was trained yet: the network is made anew
            for folder in job.private.glob(f"{job.start.name}*"):
                shutil.rmtree(folder)
    _write(path, json.dumps(now))
    _write(job.out / "recipe.yaml", yaml.safe_dump(job.recipe.model_dump(mode="json"), sort_keys=False))


def _identity(job: Job) -> dict[str, Any]:
    """Everything that decides the weights; how often something is written and who computes it does not."""
    recipe = job.recipe.model_dump(mode="json", exclude={"name", "output", "workers"})
    for name in ("threads", "prefetch"):
        del recipe["data"][name]
    parts = (*recipe["data"]["train"], *recipe["data"]["val"])
    for part in parts:
        del part["images"]
        part["shards"] = _content(Path(part["shards"]))
    if recipe["optimisation"]["schedule"] == "step":
        del recipe["optimisation"]["epochs"]  # a training may go on for longer
    sets = {"training": job.training, "validation": job.validating}
    rows = {name: [chunk.rows for chunk in each.chunks] if each else None for name, each in sets.items()}
    # "pictures": as every training since 0.1 has it in its folder.
    return {"sgpipe": __version__, **recipe, "pictures": {name: sum(each or ()) for name, each in rows.items()}}


def _content(run: Path) -> str:
    """What a folder of shards holds, wherever it lies."""
    return fingerprint({shard.file: shard.sha256 for shard in Manifest.load(run).shards})


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def _summarise(job: Job) -> TrainSummary:
    rows = read_metrics(job.out)
    latest = job.checkpoints.latest()
    assert latest is not None
    position = _position(latest)
    steps = [row for row in rows if row["event"] == "step"]
    validations = [row for row in rows if row["event"] == "validation"]
    return TrainSummary(
        job.out,
        job.recipe.model.kind,
        position.epoch,
        position.step,
        job.training.rows,
        steps[-1] if steps else {},
        validations[-1] if validations else {},
        position.best,
        job.recipe.output.best,
    )


def trained(out: Path) -> Path:
    """The network of a training to use: the best one if there was a validation, else the last one."""
    return out / (BEST if (out / BEST).exists() else LAST)
