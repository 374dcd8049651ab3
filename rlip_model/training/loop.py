"""The training loop: batches in, checkpoints and metrics out. It is independent of data files and
clusters.

A step is a function of the parameters, its batches and its number: random numbers are seeded per
step. On a CPU with one process and the same number of threads, a run that was killed therefore
repeats the lost steps exactly. Otherwise it repeats them except for rounding: a GPU adds gradients
in the order in which its threads finish, and other numbers of threads or processes add in another
order.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.nn.parallel import DistributedDataParallel

from rlip_model.distributed import gather, rank
from rlip_model.matcher import NonFiniteError
from rlip_model.noise import torch_seed
from rlip_model.settings import Optimisation
from rlip_model.targets import TargetCounts, total_counts
from rlip_model.training.batches import TrainingBatch
from rlip_model.training.divergence import DivergenceError, explain
from rlip_model.training.ema import EMA
from rlip_model.training.gpu_utilization import GpuUtilization
from rlip_model.training.meter import Metrics, StepMeter
from rlip_model.training.objective import Objective, sum_parts
from rlip_model.training.optimisation import make_optimizer, set_rates
from rlip_model.training.state import (
    Checkpoints,
    CheckpointWriter,
    Position,
    TrainingState,
    flatten,
    read_state,
    unflatten,
)
from rlip_model.training.validation import validate

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # on the first process only
_EVERYWHERE = StateDictOptions(full_state_dict=True)
_PARAMETER = "parameter."


class Feed(Protocol):
    """A reproducible source of batches: the same arguments give the same batches."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of optimiser steps in one epoch."""
        ...

    def read(
        self, epoch: int, step: int
    ) -> AbstractContextManager[Iterator[Sequence[TrainingBatch]]]:
        """Return an endless iterator over steps, from a step of an epoch on.

        Each item holds the parts of one step for this process, computed one after another; each has
        texts of its own. All processes have equally many parts, some of which may be empty.
        """
        ...

    def validation(self) -> AbstractContextManager[Iterator[TrainingBatch]] | None:
        """Return the validation images of this process, in batches; None if there is no validation
        data.
        """
        ...


class Trainer:
    """Trains the network of an objective.

    Args:
        objective: on its device; frozen parameters must not require gradients.
        checkpoints: where checkpoints are written.
        wrap: wraps the objective for distributed training (DDP, FSDP).
        benchmark: computes more validation measures, in every process; see `report`.
        report: called in every process, with metrics over all processes; see `StepMeter`.
        extra_metrics: see `StepMeter`.
        best_by: the validation metric that decides which checkpoint is best; `loss` is minimised,
            others are maximised. Of equal ones, the latest is best.
        log_every, checkpoint_every: interval in steps; checkpoints are also written after every
            epoch and validation.
        checkpoint_seconds: time between checkpoints, which is looked at every `log_every` steps.
        validate_every: interval in epochs, unless validate_every_steps is given: the same in steps.
            The end is always validated.
        numerics: what the training computes with, for its checkpoints.
    """

    def __init__(
        self,
        objective: Objective,
        options: Optimisation,
        checkpoints: Checkpoints,
        *,
        seed: int = 0,
        wrap: Callable[[Objective], nn.Module] | None = None,
        report: Callable[[Metrics], None] = lambda metrics: None,
        extra_metrics: Callable[[], Mapping[str, float | str]] = dict,
        benchmark: Callable[[], Mapping[str, float]] | None = None,
        best_by: str = "ap",
        log_every: int = 10,
        checkpoint_every: int | None = None,
        checkpoint_seconds: float | None = None,
        validate_every: int = 1,
        validate_every_steps: int | None = None,
        numerics: Mapping[str, str] | None = None,
    ) -> None:
        self.objective = objective
        self.options = options
        self.checkpoints = checkpoints
        self.seed = seed
        self.report = report
        self.best_by = best_by
        self.log_every = log_every
        self.benchmark = benchmark
        self.extra_metrics = extra_metrics
        self.checkpoint_every = checkpoint_every
        self.checkpoint_seconds = checkpoint_seconds
        self.validate_every = validate_every
        self.validate_every_steps = validate_every_steps
        self.numerics = numerics or {}
        self.device = next(objective.parameters()).device
        self.module = wrap(objective) if wrap else objective
        self.optimizer = make_optimizer(objective.network, options)
        self.ema = EMA(objective.network, options.ema) if options.ema else None
        self.position = Position(best_by=best_by)
        self._writer = CheckpointWriter(checkpoints)
        self._saved_at = time.monotonic()

    def restore(self, checkpoint: Path) -> None:
        """Resume from a checkpoint; the network must already have its parameters.

        Raises:
            CheckpointError: the checkpoint is damaged, or other parts of the network were trained.
        """
        self.position, tensors = read_state(checkpoint)
        if self.position.best_by != self.best_by:  # scores by another measure cannot be compared
            self.position = replace(self.position, best=None, best_by=self.best_by)
        network = self.objective.network
        moments = {}
        parameters = {}
        for name, tensor in tensors.items():
            if name.startswith(_PARAMETER):
                parameters[name.removeprefix(_PARAMETER)] = tensor
            else:
                moments[name] = tensor
        initial = get_optimizer_state_dict(network, self.optimizer, options=_EVERYWHERE)
        state = unflatten(moments, initial)
        set_optimizer_state_dict(network, self.optimizer, state, options=_EVERYWHERE)
        if self.ema is not None:
            self.ema.load(dict(network.named_parameters()), self.position.averaged)
            averages = get_model_state_dict(network, options=_EVERYWHERE)
            set_model_state_dict(network, {**averages, **parameters}, options=_EVERYWHERE)

    def fit(self, feed: Feed) -> None:
        """Train until all epochs, or all steps, are done.

        Raises:
            DivergenceError: a loss or gradient is not finite; the message names the images.
            OSError: a checkpoint cannot be written.
        """
        self.module.train()
        with (
            self._writer,
            feed.read(self.position.epoch, self.position.done) as batches,
            GpuUtilization(self.device) as gpu,
        ):
            meter = StepMeter(
                self.options.total(feed.steps_per_epoch), gpu.read, self.extra_metrics
            )
            while not self.options.is_done(self.position.step, self.position.epoch):
                self._advance(feed, batches, meter)
        gather(None)  # wait until the last checkpoint is written

    def _advance(
        self, feed: Feed, batches: Iterator[Sequence[TrainingBatch]], meter: StepMeter
    ) -> None:
        """Make a step, then report, validate and save what is due."""
        began = time.perf_counter()
        before = self.position
        parts = next(batches)
        meter.waited += time.perf_counter() - began
        losses, norm = self._step(parts, before.done / feed.steps_per_epoch)
        meter.add(parts, losses, norm)
        self.position = replace(before, step=before.step + 1, done=before.done + 1)
        if self.position.done == feed.steps_per_epoch:
            self.position = replace(self.position, epoch=before.epoch + 1, done=0)
        at_end = self.options.is_done(self.position.step, self.position.epoch)
        validate_now = at_end or self._is_validated()
        save_now = validate_now or not self.position.done
        if self._is_due(self.log_every) or save_now:
            self.report(meter.read(before.epoch, self.position.step, self.optimizer))
        with meter.paused():
            better = validate_now and self._validate(feed)
            if save_now or self._is_due(self.checkpoint_every) or self._is_overdue():
                self._save(better)
        self._writer.check()

    def _is_validated(self) -> bool:
        if self.validate_every_steps is not None:
            return self._is_due(self.validate_every_steps)
        return not self.position.done and self.position.epoch % self.validate_every == 0

    def _is_due(self, every: int | None) -> bool:
        return every is not None and self.position.step % every == 0

    def _is_overdue(self) -> bool:
        """Return whether the last checkpoint is too old by the clock of the first process."""
        if self.checkpoint_seconds is None or not self._is_due(self.log_every):
            return False
        age = gather(time.monotonic() - self._saved_at)[0]
        return age >= self.checkpoint_seconds

    def _step(
        self, parts: Sequence[TrainingBatch], share: float
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Make one optimiser step; return the losses of all its parts together, and the norm of the
        gradient.

        The gradient is that of one batch with all images of the step, each with the texts of its
        part.
        """
        set_rates(
            self.optimizer, self.options.factor(self.position.step, self.position.epoch, share)
        )
        self.optimizer.zero_grad()
        totals = self._totals(parts) if len(parts) > 1 else None
        all_losses: list[dict[str, Tensor]] = []
        for number, part in enumerate(parts):
            self._seed(number)
            batch = part.to(self.device)
            with self._synchronised(number == len(parts) - 1):
                losses = self._losses(batch, totals)
                losses["loss"].backward()
            all_losses.append({name: value.detach() for name, value in losses.items()})
        norm = self._clip()
        if not bool(norm.isfinite()):
            raise self._diverged(parts[-1].to(self.device), "the gradient is not finite")
        self.optimizer.step()
        if self.ema is not None:
            self.ema.update()
        return sum_parts(parts, all_losses), norm

    def _seed(self, part: int) -> None:
        """Seed the random numbers of one part of the current step."""
        torch.manual_seed(torch_seed(self.seed, self.position.step, rank(), part))

    def _totals(self, parts: Sequence[TrainingBatch]) -> TargetCounts:
        """Return what the losses of a step in several parts are divided by, before the first
        forward pass.
        """
        counts = []
        for number, part in enumerate(parts):
            self._seed(number)
            counts.append(self.objective.count(part.to(self.device)))
        return total_counts(counts)

    def _losses(self, batch: TrainingBatch, totals: TargetCounts | None) -> dict[str, Tensor]:
        try:
            losses: dict[str, Tensor] = self.module(batch, totals)
        except NonFiniteError as reason:
            raise self._diverged(batch, str(reason)) from None
        if not bool(losses["loss"].isfinite()):
            raise self._diverged(batch, "the loss is not finite")
        return losses

    def _diverged(self, batch: TrainingBatch, reason: str) -> DivergenceError:
        return explain(self.objective, batch, reason, self.position.step, self.checkpoints.root)

    def _synchronised(self, now: bool) -> AbstractContextManager[None]:
        """Processes exchange gradients only after the last part of a step."""
        if now or not isinstance(self.module, DistributedDataParallel):
            return nullcontext()
        return cast(AbstractContextManager[None], self.module.no_sync())

    def _clip(self) -> Tensor:
        groups = [group["params"] for group in self.optimizer.param_groups]
        parameters = list(chain.from_iterable(groups))
        norm = nn.utils.clip_grad_norm_(parameters, self.options.clip_norm or float("inf"))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def _validate(self, feed: Feed) -> bool:
        """Validate and report; return whether the network is the best so far."""
        share = feed.validation()
        if share is None:
            return False
        with self._averaged():
            with share as batches:
                measures = validate(self.objective, batches, self.device)
            if self.benchmark:
                measures |= self.benchmark()
        epoch = self.position.epoch + (self.position.done > 0)  # that of the last step, from 1
        self.report({"event": "validation", "epoch": epoch, "step": self.position.step, **measures})
        if self.best_by not in measures:
            return False
        score = -measures["loss"] if self.best_by == "loss" else measures[self.best_by]
        # Equal scores: the later network, which has learned more. A score that is not finite is no
        # reason to prefer it.
        if not math.isfinite(score) or (
            self.position.best is not None and score < self.position.best
        ):
            return False
        self.position = replace(self.position, best=score)
        return True

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The network has the averages of its parameters, if there are any."""
        if self.ema is None:
            yield
            return
        self.ema.swap()
        try:
            yield
        finally:
            self.ema.swap()

    def _save(self, best: bool = False) -> None:
        """Copy the state of all processes to the memory of the first one, which writes it to a
        checkpoint while the training goes on.
        """
        network = self.objective.network
        optimizer_state = get_optimizer_state_dict(network, self.optimizer, options=_WHOLE)
        tensors = self._copied(flatten(optimizer_state))
        if self.ema is not None:
            self.position = replace(self.position, averaged=self.ema.updates)
            for name, value in self._parameters().items():
                if name in self.ema.values:
                    tensors[f"{_PARAMETER}{name}"] = value
        with self._averaged():
            state = self._parameters()
        if rank() == 0:
            training_state = TrainingState(self.position, state, tensors, self.numerics)
            self._writer.start(network, training_state, best)
        self._saved_at = time.monotonic()

    def _parameters(self) -> dict[str, Tensor]:
        """Return a copy of all parameters, wherever they are, on the CPU of the first process."""
        state = get_model_state_dict(self.objective.network, options=_WHOLE)
        return self._copied(cast(dict[str, Tensor], state))

    def _copied(self, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return tensors on the CPU that later steps do not change: those of a GPU are copies."""
        if self.device.type != "cpu":
            return dict(state)
        return {name: value.clone() for name, value in state.items()}
