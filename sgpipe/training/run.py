"""`sgpipe train`: a recipe and shards become a network, resumably, by one process or several.

OUT/recipe.yaml          every setting
OUT/metrics.jsonl        one line per few steps and per validation; OUT/tensorboard/ the same for TensorBoard
OUT/checkpoints/         of steps; OUT/last and OUT/best link to two of them, folders for `from_pretrained`
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn
from transformers.utils.logging import disable_progress_bar

from rlip_model.losses import DetectionCriterion, TaggerCriterion
from rlip_model.model import RLIPModel, RTagger
from rlip_model.pretrained import CheckpointError
from rlip_model.text import TokenizerError
from rlip_model.training.divergence import DivergenceError
from rlip_model.training.loop import Trainer
from rlip_model.training.objective import Objective, checkpoint_activations
from rlip_model.training.optimisation import freeze
from rlip_model.training.state import BEST, LAST, Checkpoints, Position, read_position
from sgpipe import __version__
from sgpipe.errors import EngineError, UserError
from sgpipe.generation.identity import difference, fingerprint
from sgpipe.storage.manifest import Manifest
from sgpipe.training.data.contents import TrainSet, remarks
from sgpipe.training.data.feed import ShardFeed, Share
from sgpipe.training.data.scan import scan_training, scan_validation
from sgpipe.training.display import Display, MetricsLog, read_metrics
from sgpipe.training.initial_model import CLASSES, make_start
from sgpipe.training.recipe import TrainRecipe
from sgpipe.utils.console import Progress
from sgpipe.utils.devices import enough_memory, pick_device
from sgpipe.utils.locking import only_process

_PRIVATE, _RUN, _START = ".training", "run.json", "start"
_REMEDY = "lower --batch, set optimisation.activation_checkpointing=true, or take more --workers"


@dataclass(frozen=True)
class Job:
    """All that a worker needs; sent to it."""

    recipe: TrainRecipe
    out: Path
    training: TrainSet
    validating: TrainSet | None

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.out, self.recipe.output.keep)

    @property
    def private(self) -> Path:
        return self.out / _PRIVATE

    @property
    def start(self) -> Path:
        return self.private / _START


@dataclass(frozen=True)
class TrainSummary:
    """Where a training stands when it ends, and what it measured last."""

    out: Path
    kind: str
    epochs: int
    steps: int
    pictures: int
    last: dict[str, Any]
    validation: dict[str, Any]
    best: float | None
    best_by: str


def train(recipe: TrainRecipe, out: Path, progress: Progress) -> TrainSummary:
    """Train a recipe's network into `out`, going on where an earlier training of the same recipe stopped.

    Raises:
        UserError: something is wrong with the recipe, the shards, the network or the folder.
        EngineError: workers were lost and could not be replaced, or a loss is no number.
        OSError: a checkpoint could not be written; those before it stay.
    """
    disable_progress_bar()
    _make(out)
    with only_process(out / _PRIVATE / "lock", out):
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


def _position(checkpoint: Path) -> Position:
    """Raises UserError: the checkpoint is damaged."""
    try:
        return read_position(checkpoint)
    except CheckpointError as error:
        raise UserError(str(error)) from None


def work(
    job: Job,
    show: Callable[[dict[str, Any]], None] = lambda row: None,
    *,
    device: torch.device | None = None,
    share: tuple[int, int] = (0, 1),
    wrap: Callable[[Objective], nn.Module] | None = None,
) -> None:
    """What one worker does: go on from the latest checkpoint until all epochs are done.

    Args:
        show: called with every line of metrics, by the first worker.
        share: rank, and number of workers.
        wrap: see `Trainer`.

    Raises: as `train`, and DivergenceError.
    """
    recipe, checkpoints = job.recipe, job.checkpoints
    latest = checkpoints.latest()
    try:
        network = CLASSES[recipe.model.kind].from_pretrained(latest or job.start)
        objective = make_objective(network, recipe)
        device = device or pick_device(recipe.workers.device)
        nn.Module.to(objective, device)
        step = read_position(latest).step if latest else 0
        with MetricsLog(job.out, step, recipe.output.tensorboard, enabled=share[0] == 0) as log:

            def report(row: dict[str, Any]) -> None:
                if share[0] == 0:
                    log.write(row)
                    show(row)

            trainer = make_trainer(objective, job, report, wrap)
            if latest:
                trainer.restore(latest)
            with enough_memory(device, _REMEDY):
                trainer.fit(make_feed(job, network, *share))
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None


def make_objective(network: RLIPModel, recipe: TrainRecipe) -> Objective:
    """The network with its criterion, parts frozen as the recipe says. Raises UserError: no such part."""
    loss, options = recipe.loss, recipe.optimisation
    network.requires_grad_(True)
    if recipe.model.frozen_norms if recipe.model.frozen_norms is not None else recipe.model.init is not None:
        network.freeze()
    try:
        freeze(network, options.frozen)
    except ValueError as reason:
        raise UserError(f"optimisation.frozen: {reason}") from None
    if options.activation_checkpointing:
        checkpoint_activations(network)
    criterion: DetectionCriterion | TaggerCriterion = TaggerCriterion(loss.weights, loss.no_object_weight)
    if not isinstance(network, RTagger):
        criterion = DetectionCriterion(
            weights=loss.weights,
            quality_labels=loss.quality_labels,
            pseudo_labels=loss.pseudo_labels,
            pseudo_label_gradient=loss.pseudo_label_gradient,
            no_object_weight=loss.no_object_weight,
        )
    return Objective(network, criterion, options.precision, loss.mask_by_sum)


def make_trainer(
    objective: Objective,
    job: Job,
    report: Callable[[dict[str, Any]], None],
    wrap: Callable[[Objective], nn.Module] | None,
) -> Trainer:
    recipe, output = job.recipe, job.recipe.output
    return Trainer(
        objective,
        recipe.optimisation,
        job.checkpoints,
        seed=recipe.seed,
        wrap=wrap,
        report=report,
        best_by=output.best,
        log_every=output.log_every,
        checkpoint_every=output.checkpoint_every,
        validate_every=output.validate_every,
    )


def make_feed(job: Job, network: RLIPModel, rank: int, world: int) -> ShardFeed:
    """This worker's batches. The R-Tagger gets its pairs out of as many relations as it has queries, as published."""
    recipe, config = job.recipe, network.config
    is_tagger = isinstance(network, RTagger)
    return ShardFeed(
        job.training,
        job.validating,
        recipe.data,
        recipe.optimisation.batch,
        recipe.seed,
        config.num_queries if is_tagger else config.num_pairs,
        config.num_pairs if is_tagger else None,
        Share(rank, world, recipe.optimisation.accumulate),
    )


def _make(out: Path) -> None:
    """Raises UserError: the folder is none, holds something else, or cannot be written."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is a file; name a folder")
    if out.is_dir() and not (out / _PRIVATE).is_dir() and any(out.iterdir()):
        raise UserError(f"--out {out} holds something that is not an sgpipe training; name an empty or new folder")
    try:
        (out / _PRIVATE).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--out {out} cannot be written: {error.strerror}") from None


def _check_identity(job: Job) -> None:
    """Raises UserError: the folder belongs to another training."""
    now = json.loads(json.dumps(_identity(job)))
    path = job.out / _PRIVATE / _RUN
    if path.exists():
        before = json.loads(path.read_text(encoding="utf-8"))
        if before != now and job.checkpoints.latest():
            changes = "".join(f"\n  {line}" for line in difference(before, now))
            raise UserError(f"{job.out} is another training; choose another --out, or go back on:{changes}")
        if before != now:  # nothing was trained yet: the network is made anew
            for folder in job.private.glob(f"{_START}*"):
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
