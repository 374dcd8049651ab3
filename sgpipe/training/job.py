"""The work of one training process: train from the latest checkpoint until all epochs, or all
steps, are done.

A benchmark of a validation is that of `sgpipe eval … --model` for the same network and shards:
unlike in the batches of a validation, images are not padded, and those without relations count too.
"""

from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from rlip_model.distributed import gather
from rlip_model.evaluation.hico import HicoSettings, evaluate_hico
from rlip_model.evaluation.hico_classes import possible_interactions
from rlip_model.evaluation.inputs import EvaluationError, EvaluationImage, ImageGroundTruth
from rlip_model.evaluation.open_images import OpenImagesSettings, evaluate_open_images
from rlip_model.heads import LayerOutput
from rlip_model.losses import DetectionCriterion, TaggerCriterion
from rlip_model.model import RLIPModel, RTagger
from rlip_model.pretrained import CheckpointError
from rlip_model.settings import ComputePrecision
from rlip_model.text import TokenizerError
from rlip_model.training.compiling import CompiledLayers
from rlip_model.training.divergence import DivergenceError
from rlip_model.training.loop import Trainer
from rlip_model.training.objective import Objective, checkpoint_activations
from rlip_model.training.optimisation import freeze
from rlip_model.training.state import Checkpoints, read_numerics, read_position
from rlip_model.training.validation import PERSON
from sgpipe.errors import DivergedError, EngineError, UserError
from sgpipe.evaluation.inputs import no_pairs, read_annotations, shard_annotations
from sgpipe.inference.predictions import PredictConfig, RowGroup, Task, list_row_groups
from sgpipe.inference.predictor import Predictor
from sgpipe.sources.annotated import DatasetClasses
from sgpipe.sources.hoi import HICO
from sgpipe.training.data.scan import TrainingSet
from sgpipe.training.data.stream import ShardFeed, StepStream
from sgpipe.training.initial_model import CLASSES
from sgpipe.training.metrics import Row, metrics_log
from sgpipe.training.recipe import BENCHMARKS, DataConfig, TrainRecipe
from sgpipe.utils.atomic import fault_point
from sgpipe.utils.devices import pick_device, pick_dtype
from sgpipe.utils.gpu import enough_memory, one_line, refusals
from sgpipe.utils.numerics import numerics, numerics_changes
from sgpipe.utils.prefetch import prefetch_generator

PRIVATE = ".training"

# Trained with loss.only_boxes.
_BOX_PARTS = ("image_encoder", "text_encoder", "label_resizer", "dense_head")
_REMEDY = (
    "lower optimisation.batch (--batch), set optimisation.activation_checkpointing, raise"
    " workers.count (--workers)"
)


def check_benchmark(recipe: TrainRecipe, validation: TrainingSet | None) -> None:
    """Check that the benchmark in `output.best` can be computed during the training.

    Raises:
        UserError: `output.best` is a benchmark that the validation data or the network cannot be
            scored by.
    """
    name = recipe.output.best
    if name not in BENCHMARKS or validation is None:
        return
    labels = validation.closed_labels
    is_detector = recipe.model.kind != "tagger" and not recipe.loss.only_boxes
    if not is_detector or labels is None or (name == "hico" and PERSON not in labels.objects):
        classes = (
            f"closed class lists{f' with {PERSON!r}' if name == 'hico' else ''} (data.labels: full)"
        )
        needs = (
            f"a training of relations that a detector finds, and validation shards with {classes}"
        )
        raise UserError(f"output.best: {name} needs {needs}; use output.best: ap, recall or loss")
    limited = next((part.shards for part in recipe.data.val if part.limit), None)
    if limited:
        raise UserError(
            f"output.best: {name} scores all images of {limited}, so data.val takes no limit"
            " with it"
        )


class _LivePredictor(Predictor):
    """Predicts with the network of a training. Sharded parameters serve equally many passes of all
    processes.
    """

    def __init__(self, config: PredictConfig, objective: Objective) -> None:
        self.config = config
        self._objective = objective
        self._device = next(objective.parameters()).device
        self._dtype = pick_dtype("auto", self._device)
        self._sides = config.sides or (0, 0)

    def _output(self, pixels: Tensor) -> LayerOutput:
        gather(True)
        return self._objective.detect(pixels, *self._texts())

    def wait(self) -> None:
        """Compute as long as other processes do."""
        while any(gather(False)):
            self._objective.detect(torch.zeros((1, 3, 64, 64), device=self._device), *self._texts())


@dataclass(frozen=True)
class Benchmark:
    """Scores a network by one of `BENCHMARKS` on all images of the validation shards, shared by the
    processes, each of which reads `batch` at once. Raises UserError: the network does not classify
    subjects.
    """

    name: str
    objective: Objective
    data: DataConfig
    labels: DatasetClasses
    batch: int
    share: tuple[int, int] = (0, 1)

    def __post_init__(self) -> None:
        if self.name == "openimages" and not self.objective.network.config.subject_class:
            raise UserError(
                "output.best: openimages needs a network that classifies subjects; use"
                " output.best: ap"
            )

    @torch.no_grad()
    def __call__(self) -> dict[str, float]:
        """Return the score by the name of the benchmark, the same in every process; nothing without
        any ground truth.

        Raises:
            UserError: an annotation is not of a listed class, or a prediction is not finite.
        """
        training = self.objective.training
        sizes = (len(self.labels.relations), len(self.labels.objects))
        self.objective.eval()
        try:
            if self.name == "openimages":
                score = evaluate_open_images(
                    self._images(), OpenImagesSettings(*sizes[::-1])
                ).weighted_score()
            else:
                possible = (
                    possible_interactions() if self.labels == HICO.classes else np.ones(sizes)
                )
                score = evaluate_hico(self._images(), HicoSettings(possible)).per_class.mean()
        except EvaluationError as error:
            raise UserError(f"output.best: {self.name} cannot be computed: {error}") from None
        finally:
            self.objective.train(training)
        return {self.name: score} if np.isfinite(score) else {}

    def _images(self) -> Iterator[EvaluationImage]:
        task: Task = "hoi" if self.name == "hico" else "scene graph"
        sides = self.data.short_side, self.data.long_side
        config = PredictConfig(
            Path("the network"),
            self.labels,
            task,
            batch=self.batch,
            sides=sides,
            threads=self.data.threads,
        )
        predictor = _LivePredictor(config, self.objective)
        with prefetch_generator(self._row_groups()) as groups:
            for group, targets in groups:
                for prediction in predictor(group):
                    name = prediction.row.image_id
                    pairs = prediction.pairs
                    if pairs is None:
                        pairs = no_pairs(self.labels)
                    if prediction.row.error is None:
                        yield EvaluationImage(name, targets[name], pairs)
        predictor.wait()

    def _row_groups(self) -> Generator[tuple[RowGroup, dict[str, ImageGroundTruth]], None, None]:
        places: list[tuple[Any, RowGroup]] = []
        for config in self.data.val:
            root: Any = config.shards  # also in a store
            for split in config.splits or (None,):
                places += [(root, group) for group in list_row_groups(root, split, config.images)]
        rank, world_size = self.share
        start = len(places) * rank // world_size
        end = len(places) * (rank + 1) // world_size
        for root, group in places[start:end]:
            source = shard_annotations(
                root, self.labels, persons_only=self.name == "hico", group=group
            )
            yield group, read_annotations(source, "image_id", may_be_empty=True)


@dataclass(frozen=True)
class TrainingJob:
    """Everything a worker needs; it is sent to the workers."""

    recipe: TrainRecipe
    out: Path
    training_set: TrainingSet
    validation_set: TrainingSet | None

    @property
    def checkpoints(self) -> Checkpoints:
        return Checkpoints(self.out, self.recipe.output.keep, fault_point)

    @property
    def private(self) -> Path:
        return self.out / PRIVATE

    @property
    def initial_model(self) -> Path:
        return self.private / "start"


def run_job(
    job: TrainingJob,
    show: Callable[[Row], None] = lambda row: None,
    say: Callable[[str], None] = lambda line: None,
    *,
    device: torch.device | None = None,
    share: tuple[int, int] = (0, 1),
    wrap: Callable[[Objective], nn.Module] | None = None,
) -> None:
    """Do this process's work.

    Args:
        show: gets every line of metrics, in the first worker.
        say: gets notes, in the first worker.
        share: index of this worker, and number of workers.
        wrap: makes the module that is trained, such as a distributed one.

    Raises:
        UserError, EngineError, DivergedError: as `train`.
    """
    try:
        _train(job, show, say, device, share, wrap)
    except (CheckpointError, TokenizerError) as error:
        raise UserError(str(error)) from None
    except DivergenceError as error:
        raise DivergedError(str(error)) from None
    except refusals() as error:  # in a backward pass, of what `CompiledLayers.compile` did not meet
        remedy = "with workers.compile=false the same command resumes the training"
        raise EngineError(
            f"PyTorch could not compile within a step ({one_line(error)}); {remedy}"
        ) from None


def _train(
    job: TrainingJob,
    show: Callable[[Row], None],
    say: Callable[[str], None],
    device: torch.device | None,
    share: tuple[int, int],
    wrap: Callable[[Objective], nn.Module] | None,
) -> None:
    """Train from the latest checkpoint to the end; arguments as of `run_job`."""
    recipe = job.recipe
    output = recipe.output
    worker, workers = share
    latest = job.checkpoints.latest()
    network = CLASSES[recipe.model.kind].from_pretrained(latest or job.initial_model)
    device = device or pick_device(recipe.workers.device, recipe.workers.gpus)
    on_gpu = device.type == "cuda"
    compiled = CompiledLayers(network) if recipe.workers.compile and on_gpu else None
    nn.Module.to(network, device)
    objective = make_objective(network, recipe)
    nn.Module.to(objective, device)
    batch = recipe.optimisation.batch // workers // recipe.optimisation.accumulate
    current_numerics = numerics(device, objective.precision)
    if latest and worker == 0:
        _tell_changed_numerics(latest, current_numerics, say)
    with _metrics_log(job, latest, worker) as write:

        def report(row: Row) -> None:
            write(row)
            show(row)

        benchmark = _make_benchmark(job, objective, max(batch, 1), share)
        with enough_memory(device, _REMEDY):
            if compiled is not None:
                compiled.compile(objective, batch)
            trainer = Trainer(
                objective,
                recipe.optimisation,
                job.checkpoints,
                seed=recipe.seed,
                wrap=wrap,
                report=report,
                extra_metrics=lambda: _compilation_metrics(compiled),
                benchmark=benchmark,
                best_by=output.best,
                log_every=output.log_every,
                checkpoint_every=output.checkpoint_every,
                checkpoint_seconds=_seconds(output.checkpoint_minutes),
                validate_every=output.validate_every,
                validate_every_steps=output.validate_every_steps,
                numerics=current_numerics,
            )
            if latest:
                trainer.restore(latest)
            trainer.fit(make_feed(job, network, worker, workers, pinned=on_gpu))


def _tell_changed_numerics(
    checkpoint: Path, current_numerics: Mapping[str, str], say: Callable[[str], None]
) -> None:
    """Say if a checkpoint was computed with other versions, another GPU or in another format.

    Raises:
        CheckpointError: the checkpoint does not state it.
    """
    changes = numerics_changes(read_numerics(checkpoint), current_numerics)
    if changes:
        say(
            f"NOTE: the training continues with other software or hardware ({changes}): the last"
            " digits of losses may differ"
        )


def _seconds(minutes: float | None) -> float | None:
    return None if minutes is None else 60 * minutes


def _metrics_log(
    job: TrainingJob, latest: Path | None, worker: int
) -> AbstractContextManager[Callable[[Row], None]]:
    """Return what writes lines of metrics; only the first worker does."""
    if worker > 0:
        return nullcontext(lambda row: None)
    step = read_position(latest).step if latest else 0
    return metrics_log(job.out, step, job.recipe.output.tensorboard)


def _compilation_metrics(compiled: CompiledLayers | None) -> dict[str, float | str]:
    if compiled is None:
        return {}
    metrics: dict[str, float | str] = {"compilation": compiled.seconds}
    if compiled.failure is not None:
        metrics["compile_error"] = one_line(compiled.failure)
    return metrics


def _make_benchmark(
    job: TrainingJob, objective: Objective, batch: int, share: tuple[int, int]
) -> Benchmark | None:
    """Return the benchmark that chooses the best checkpoint, if one does."""
    best = job.recipe.output.best
    labels = job.validation_set.closed_labels if job.validation_set is not None else None
    if best not in BENCHMARKS or labels is None:
        return None
    return Benchmark(best, objective, job.recipe.data, labels, batch, share)


def make_objective(network: RLIPModel, recipe: TrainRecipe) -> Objective:
    """Return the network with its criterion, and parts frozen as configured. Its device decides the
    precision, unless the recipe does.

    Raises:
        UserError: there is no such part.
    """
    loss = recipe.loss
    options = recipe.optimisation
    if loss.only_boxes and not network.config.dense_head:
        raise UserError(
            "loss.only_boxes needs a detector with a dense head; set model.config.dense_head: true"
        )
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
    dtype = pick_dtype(options.precision, _device_of(network))
    precision: ComputePrecision = "bfloat16" if dtype == torch.bfloat16 else "float32"
    return Objective(network, criterion, precision, loss.mask_by_sum, loss.dense)


def _device_of(network: RLIPModel) -> torch.device:
    return next(network.parameters()).device


def make_feed(
    job: TrainingJob, network: RLIPModel, rank: int, world_size: int, *, pinned: bool = False
) -> ShardFeed:
    """Return a worker's batches.

    As published, the R-Tagger learns from as many relations as it has queries.
    """
    recipe = job.recipe
    max_relations = network.config.num_pairs
    max_pairs = None
    if isinstance(network, RTagger):
        max_relations = network.config.num_queries
        max_pairs = network.config.num_pairs
    stream = StepStream(
        job.training_set,
        recipe.data,
        recipe.optimisation.batch,
        recipe.seed,
        max_relations,
        rank,
        world_size,
        accumulate=recipe.optimisation.accumulate,
    )
    return ShardFeed(stream, job.validation_set, max_pairs, pinned)
