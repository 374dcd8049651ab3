"""The settings of losses, matching, augmentation and optimisation: plain data, without PyTorch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

ComputePrecision = Literal["float32", "bfloat16"]
Precision = Literal["auto", "float32", "bfloat16"]
Schedule = Literal["step", "cosine"]
Strategy = Literal["frequency", "uniform"]


class _Weights:
    """Numbers that are not negative. Raises ValueError: one is."""

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, expected a non-negative number")


@dataclass(frozen=True)
class LossWeights(_Weights):
    """Weights of the parts of a loss. Defaults: as published."""

    entity: float = 1.0
    relation: float = 1.0
    box: float = 2.5
    giou: float = 1.0


@dataclass(frozen=True)
class MatchingCosts(_Weights):
    """Weights of the parts of the matching cost. Defaults: as published."""

    label: float = 1.0
    relation: float = 1.0
    box: float = 2.5
    giou: float = 1.0


@dataclass(frozen=True)
class Augmentation:
    """Augmentation settings. Defaults: as in RLIPv2, which are DETR's plus colour jitter.

    Args:
        flip: probability of a horizontal flip.
        jitter: brightness, contrast and saturation are multiplied by a factor of up to 1 plus or
            minus this; 0 for none.
        short_sides: lengths of the shorter side of the result, in pixels; one is drawn.
        long_side: maximum length of the longer side of the result, in pixels.
        crop_probability: probability of a random crop.
        crop_short_sides: lengths of the shorter side to which the image is resized before cropping,
            in pixels.
        crop_range: minimum and maximum width and height of the crop, in pixels of the resized
            image.

    Raises:
        ValueError: a value is out of range.
    """

    __pydantic_config__: ClassVar[Mapping[str, str]] = {"extra": "forbid"}

    flip: float = 0.5
    jitter: float = 0.4
    short_sides: tuple[int, ...] = tuple(range(480, 801, 32))
    long_side: int = 1333
    crop_probability: float = 0.5
    crop_short_sides: tuple[int, ...] = (400, 500, 600)
    crop_range: tuple[int, int] = (384, 600)

    def __post_init__(self) -> None:
        for name in ("flip", "jitter", "crop_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a number between 0 and 1"
                )
        for name in ("short_sides", "crop_short_sides"):
            if min(getattr(self, name), default=0) < 1:
                raise ValueError(
                    f"{name} is {list(getattr(self, name))}, expected lengths of at least 1 pixel"
                )
        if self.long_side < max(self.short_sides):
            raise ValueError(
                f"long_side {self.long_side} is less than {max(self.short_sides)}, one of"
                " short_sides"
            )
        if not 1 <= self.crop_range[0] <= self.crop_range[1]:
            raise ValueError(
                f"crop_range is {list(self.crop_range)}, expected a minimum and a maximum length in"
                " pixels"
            )


@dataclass(frozen=True)
class Optimisation:
    """Optimiser settings. Defaults: the pre-training of RLIPv2.

    Args:
        batch: images per step, over all workers.
        accumulate: parts into which a worker splits its share of a step, to save memory.
        epochs: passes over the data.
        steps: optimiser steps after which the training ends, whatever `epochs` says; None: after
            `epochs`.
        lr, lr_backbone, lr_text: learning rates of all other parameters, of the backbone, and of
        the text encoder.
        schedule: `step` divides the rates by 10 after every `lr_drop` epochs; `cosine` decays them
            to zero at the end.
        warmup: steps in which the rates grow linearly from zero.
        clip_norm: maximum norm of the gradient; 0 for no clipping.
        precision: of the forward pass; parameters and losses stay in float32. auto: bfloat16 on
            GPUs that support it, otherwise float32.
        activation_checkpointing: recompute layers in the backward pass instead of storing their
            activations.
        ema: decay of an exponential moving average of the parameters; checkpoints then contain the
            average. 0 for none.
        frozen: names of parts that are not trained, such as `text_encoder` or
            `image_encoder.backbone`.

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
    precision: Precision = "auto"
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
        """Return whether a training that has made `step` steps and completed `epoch` epochs is
        over.
        """
        return epoch >= self.epochs if self.steps is None else step >= self.steps

    def factor(self, step: int, epoch: int, share: float) -> float:
        """Return the factor for the learning rates in a step.

        As in the published training, which sets the rates after each step, the first step of an
        epoch still uses the rate of the epoch before.

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
