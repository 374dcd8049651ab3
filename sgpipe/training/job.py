"""The work of one training process: train from the latest checkpoint until all epochs, or all steps, are done."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlip_model.losses import DetectionCriterion, TaggerCriterion
from rlip_model.model import RLIPModel, RTagger
from rlip_model.pretrained import CheckpointError
from rlip_model.text import TokenizerError
from rlip_model.training.compiling import CompiledLayers
from rlip_model.training.divergence import DivergenceError
from rlip_model.training.loop import Trainer
from rlip_model.training.objective import Objective, checkpoint_activations
from rlip_model.training.optimisation import freeze
from rlip_model.training.state import Checkpoints, read_position
from sgpipe.errors import DivergedError, EngineError, UserError
from sgpipe.training.benchmark import Benchmark
from sgpipe.training.data.scan import TrainingSet
from sgpipe.training.data.stream import ShardFeed, StepStream
from sgpipe.training.initial_model import CLASSES
from sgpipe.training.metrics import metrics_log
from sgpipe.training.recipe import BENCHMARKS, TrainRecipe
from sgpipe.utils.devices import pick_device
from sgpipe.utils.gpu import enough_memory, one_line, refusals

PRIVATE = ".training"
_BOX_PARTS = ("image_encoder", "text_encoder", "label_resizer", "dense_head")  # trained with loss.only_boxes
_REMEDY = (
    "lower optimisation.batch (--batch), set optimisation.activation_checkpointing, raise workers.count (--workers)"
)


@dataclass(frozen=True)
class TrainingJob:
    """Everything a worker needs; it is sent to the workers."""

    recipe: TrainRecipe
    out: Path
    training_set: TrainingSet
    validation_set: TrainingSet | None

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.out, self.recipe.output.keep)

    @property
    def private(self) -> Path:
        return self.out / PRIVATE

    @property
    def initial_model(self) -> Path:
        return self.private / "start"


def run_job(
    job: TrainingJob,
    show: Callable[[dict[str, Any]], None] = lambda row: None,
    *,
    device: torch.device | None = None,
    share: tuple[int, int] = (0, 1),
    wrap: Callable[[Objective], nn.Module] | None = None,
) -> None:
    """Train from the latest checkpoint, or from the initial model, until all epochs, or all steps, are done.

    `show` gets every line of metrics, in the first worker; `share`: index of this worker, and number of workers.
    Raises as `train`.
    """
    recipe, checkpoints = job.recipe, job.checkpoints
    latest = checkpoints.latest()
    try:
        network = CLASSES[recipe.model.kind].from_pretrained(latest or job.initial_model)
        device = device or pick_device(recipe.workers.device, recipe.workers.gpus)
        compiled = CompiledLayers(network) if recipe.workers.compile and device.type == "cuda" else None
        objective = make_objective(network, recipe)
        nn.Module.to(objective, device)
        step = read_position(latest).step if latest else 0
        log = metrics_log(job.out, step, recipe.output.tensorboard) if share[0] == 0 else nullcontext(lambda row: None)
        with log as write:

            def report(row: dict[str, Any]) -> None:
                write(row)
                show(row)

            def compilation() -> dict[str, float | str]:
                if compiled is None:
                    return {}
                error = {} if compiled.failure is None else {"compile_error": one_line(compiled.failure)}
                return {"compilation": compiled.seconds, **error}

            options, output, validation = recipe.optimisation, recipe.output, job.validation_set
            batch = options.batch // share[1] // options.accumulate
            benchmark = None
            if output.best in BENCHMARKS and validation is not None and validation.closed_labels is not None:
                labels = validation.closed_labels
                benchmark = Benchmark(output.best, objective, recipe.data, labels, max(batch, 1), share)
            with enough_memory(device, _REMEDY):
                if compiled is not None:
                    compiled.compile(objective, batch)
                trainer = Trainer(
                    *(objective, options, checkpoints),
                    seed=recipe.seed,
                    wrap=wrap,
                    report=report,
                    extra_metrics=compilation,
                    benchmark=benchmark,
                    best_by=output.best,
                    log_every=output.log_every,
                    checkpoint_every=output.checkpoint_every,
                    validate_every=output.validate_every,
                    validate_every_steps=output.validate_every_steps,
                )
                if latest:
                    trainer.restore(latest)
                trainer.fit(make_feed(job, network, *share, pinned=device.type == "cuda"))
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None
    except DivergenceError as error:
        raise DivergedError(str(error)) from None
    except refusals() as error:  # in a backward pass, of what `CompiledLayers.compile` did not meet
        remedy = "with workers.compile=false the same command resumes the training"
        raise EngineError(f"PyTorch could not compile within a step ({one_line(error)}); {remedy}") from None


def make_objective(network: RLIPModel, recipe: TrainRecipe) -> Objective:
    """Return the network with its criterion, and parts frozen as configured. Raises UserError: no such part."""
    loss, options = recipe.loss, recipe.optimisation
    if loss.only_boxes and not network.config.dense_head:
        raise UserError("loss.only_boxes needs a detector with a dense head; set model.config.dense_head: true")
    network.requires_grad_(not loss.only_boxes)
    if loss.only_boxes:
        for part in _BOX_PARTS:
            network.get_submodule(part).requires_grad_(True)
    if recipe.model.frozen_norms:
        network.freeze()
    try:
        freeze(network, options.frozen)
    except ValueError as reason:
        raise UserError(f"optimisation.frozen: {reason}") from None
    if options.activation_checkpointing:
        checkpoint_activations(network)
    criterion: DetectionCriterion | TaggerCriterion | None = None
    if isinstance(network, RTagger):
        criterion = TaggerCriterion(loss.weights, loss.no_object_weight)
    elif not loss.only_boxes:
        labels = loss.quality_labels, loss.pseudo_labels, loss.pseudo_label_gradient
        criterion = DetectionCriterion(loss.costs, loss.weights, *labels, loss.no_object_weight)
    return Objective(network, criterion, options.precision, loss.mask_by_sum, loss.dense)


def make_feed(job: TrainingJob, network: RLIPModel, rank: int, world_size: int, *, pinned: bool = False) -> ShardFeed:
    """Return a worker's batches. As published, the R-Tagger learns from as many relations as it has queries."""
    recipe, options, pairs = job.recipe, job.recipe.optimisation, network.config.num_pairs
    most, most_pairs = (network.config.num_queries, pairs) if isinstance(network, RTagger) else (pairs, None)
    of_step = recipe.data, options.batch, recipe.seed, most
    stream = StepStream(job.training_set, *of_step, rank, world_size, accumulate=options.accumulate)
    return ShardFeed(stream, job.validation_set, most_pairs, pinned)
