"""Optimiser settings: parameter groups with their own learning rates, schedule, clipping."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from torch import nn
from torch.optim import AdamW

ComputePrecision = Literal["float32", "bfloat16"]
Schedule = Literal["step", "cosine"]


@dataclass(frozen=True)
class Optimisation:
    """Optimiser settings. Defaults: the pre-training of RLIPv2.

    Args:
        batch: images per step, over all workers.
        accumulate: parts into which a worker splits its share of a step, to save memory.
        epochs: passes over the data.
        steps: optimiser steps after which the training ends, whatever `epochs` says; None: after `epochs`.
        lr, lr_backbone, lr_text: learning rates of all other parameters, of the backbone, and of the text encoder.
        schedule: `step` divides the rates by 10 after every `lr_drop` epochs; `cosine` decays them to zero at the end.
        warmup: steps in which the rates grow linearly from zero.
        clip_norm: maximum norm of the gradient; 0 for no clipping.
        precision: of the forward pass; parameters and losses stay in float32.
        activation_checkpointing: recompute layers in the backward pass instead of storing their activations.
        ema: decay of an exponential moving average of the parameters; checkpoints then contain the average. 0 for none.
        frozen: names of parts that are not trained, such as `text_encoder` or `image_encoder.backbone`.

    Raises:
        ValueError: a value is out of range.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    batch: int = 32
    accumulate: int = 1
    epochs: int = 20
    steps: int | None = None
    lr: float = 1.41e-4
    lr_backbone: float = 1.41e-5
    lr_text: float = 1.41e-5
    schedule: Schedule = "step"
    lr_drop: int = 15
    warmup: int = 0
    weight_decay: float = 1e-4
    clip_norm: float = 0.1
    precision: ComputePrecision = "float32"
    activation_checkpointing: bool = False
    ema: float = 0.0
    frozen: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for name in ("batch", "accumulate", "epochs", "lr_drop"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.steps is not None and self.steps < 1:
            raise ValueError(f"steps is {self.steps}, expected at least 1, or null")
        for name in ("lr", "lr_backbone", "lr_text", "warmup", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a non-negative number")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected 0 (none) or a decay below 1")

    def total(self, steps_per_epoch: int) -> int:
        """Number of steps of the whole training."""
        return self.epochs * steps_per_epoch if self.steps is None else self.steps

    def is_done(self, step: int, epoch: int) -> bool:
        """Whether a training that has made `step` steps and completed `epoch` epochs is over."""
        return epoch >= self.epochs if self.steps is None else step >= self.steps

    def factor(self, step: int, epoch: int, share: float) -> float:
        """The factor for the learning rates in a step.

        As in the published training, which sets the rates after each step, the first step of an epoch still uses the
        rate of the epoch before.

        Args:
            step: number of the step in the run, from 0.
            epoch: number of its epoch, from 0.
            share: share of the epoch that is done before the step, from 0 to below 1.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "cosine":
            done, total = (epoch + share, self.epochs) if self.steps is None else (step, self.steps)
            return 0.5 * (1 + math.cos(math.pi * done / total))
        return 0.1 ** ((epoch if share else max(epoch - 1, 0)) // self.lr_drop)


def make_optimizer(model: nn.Module, options: Optimisation) -> AdamW:
    """AdamW over the trainable parameters, in the published groups: backbone, text encoder, and the rest.

    Each group stores its initial rate in `base_lr`. The label layers of the fusion belong to the rest.

    Raises:
        ValueError: every parameter is frozen.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("every parameter is frozen: there is nothing to train")
    rates = {"rest": options.lr, "backbone": options.lr_backbone, "text": options.lr_text}
    groups = [
        {"params": [p for name, p in named if group_of(name) == group], "lr": rate, "base_lr": rate, "name": group}
        for group, rate in rates.items()
    ]
    # All groups exist, even if empty, so that a stored state always fits.
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in named)
    return AdamW(groups, lr=options.lr, weight_decay=options.weight_decay, fused=fused or None)


def group_of(name: str) -> str:
    """The learning-rate group of a parameter, by its name."""
    parts = name.split(".")
    if "backbone" in parts:
        return "backbone"
    return "text" if "text_encoder" in parts else "rest"


def set_rates(optimizer: AdamW, factor: float) -> None:
    """Set the learning rate of each group to its initial rate times `factor`."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Freeze all parameters of the given parts, which are complete prefixes of parameter names.

    Raises:
        ValueError: the network has no such part.
    """
    for part in parts:
        chosen = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not chosen:
            known = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
            raise ValueError(f"the network has no part {part!r}; its parts are {', '.join(known)}")
        for parameter in chosen:
            parameter.requires_grad_(False)
