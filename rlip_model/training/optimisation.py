"""How parameters move: groups with their own learning rates, the schedule, clipping."""

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
    """Defaults: RLIPv2's pre-training.

    Args:
        batch: pictures per step, of all workers together.
        accumulate: parts in which a worker computes its share of a step, one after another, to save memory.
        epochs: passes over the data.
        lr, lr_backbone, lr_text: learning rates of the backbone, the text encoder, and all the rest.
        schedule: `step`: a tenth after every `lr_drop` epochs; `cosine`: down to zero at the end.
        warmup: steps in which the rates grow from zero.
        clip_norm: largest norm of the gradient; 0: any.
        precision: of the forward pass; parameters and losses stay in float32.
        activation_checkpointing: compute layers twice instead of keeping what they computed.
        ema: decay of an exponential moving average of the parameters, which then is what is saved for use; 0: none.
        frozen: names of parts that are not trained, such as `text_encoder` or `image_encoder.backbone`.

    Raises:
        ValueError: a setting that cannot work.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    batch: int = 32
    accumulate: int = 1
    epochs: int = 20
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
        for name in ("lr", "lr_backbone", "lr_text", "warmup", "weight_decay", "clip_norm"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a number that is not negative")
        if not 0 <= self.ema < 1:
            raise ValueError(f"ema is {self.ema}, expected a decay from 0 (none) to below 1")

    def factor(self, step: int, epoch: int, share: float) -> float:
        """What the learning rates are multiplied by in a step.

        The published training sets the rate after each step, by its epoch: the first step of an epoch still goes at
        the rate of the epoch before. So does this.

        Args:
            step: number of the step in all, from 0.
            epoch: number of its epoch, from 0.
            share: of the epoch that is done before the step, from 0 to below 1.
        """
        if step < self.warmup:
            return (step + 1) / self.warmup
        if self.schedule == "cosine":
            return 0.5 * (1 + math.cos(math.pi * (epoch + share) / self.epochs))
        return 0.1 ** ((epoch if share else max(epoch - 1, 0)) // self.lr_drop)


def make_optimizer(model: nn.Module, options: Optimisation) -> AdamW:
    """AdamW over the trainable parameters, grouped as published: the rest, backbone, text encoder.

    Each group keeps its own rate in `base_lr`. The label layers of the fusion belong to the rest.

    Raises:
        ValueError: nothing is trainable.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    if not named:
        raise ValueError("every parameter is frozen: there is nothing to train")
    rates = {"rest": options.lr, "backbone": options.lr_backbone, "text": options.lr_text}
    groups = [
        {"params": [p for name, p in named if group_of(name) == group], "lr": rate, "base_lr": rate, "name": group}
        for group, rate in rates.items()
    ]
    # A fixed set of groups, empty or not: a stored state then always fits.
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in named)
    return AdamW(groups, lr=options.lr, weight_decay=options.weight_decay, fused=fused or None)


def group_of(name: str) -> str:
    """The learning rate group of a parameter by its name."""
    parts = name.split(".")
    if "backbone" in parts:
        return "backbone"
    return "text" if "text_encoder" in parts else "rest"


def set_rates(optimizer: AdamW, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


def freeze(model: nn.Module, parts: tuple[str, ...]) -> None:
    """Make every parameter whose name starts with one of `parts`, whole words, untrainable.

    Raises:
        ValueError: a part that the network does not have.
    """
    for part in parts:
        chosen = [p for name, p in model.named_parameters() if f"{name}.".startswith(f"{part}.")]
        if not chosen:
            known = sorted({name.split(".")[0] for name, _ in model.named_parameters()})
            raise ValueError(f"the network has no part {part!r}; its parts are {', '.join(known)}")
        for parameter in chosen:
            parameter.requires_grad_(False)
