"""How the captioner and the judge of the miniworld are optimised: Muon and AdamW, warm-up, cosine
decay.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Protocol

import torch
from torch import nn

from sgpipe.errors import UserError

_LARGEST_NORM = 1.0  # of all gradients together


class OptimisationConfig(Protocol):
    """The settings of a training: `learning_rate` is AdamW's, the other two are Muon's; `warmup` is
    in steps.
    """

    @property
    def learning_rate(self) -> float: ...

    @property
    def matrix_learning_rate(self) -> float: ...

    @property
    def weight_decay(self) -> float: ...

    @property
    def warmup(self) -> int: ...

    @property
    def steps(self) -> int: ...


class Optimisation:
    """Muon (Jordan, 2024) for the matrices of the layers, AdamW for all other weights."""

    def __init__(
        self,
        layers: Iterable[nn.Module],
        weights: Sequence[nn.Parameter],
        config: OptimisationConfig,
    ) -> None:
        """
        Args:
            layers: whose matrices are Muon's.
            weights: all, those of the layers included.

        Raises UserError: this version of PyTorch has no Muon.
        """
        if not hasattr(torch.optim, "Muon"):
            raise UserError(f"this training needs torch 2.9 or newer; this is {torch.__version__}")
        self._weights = weights
        self._config = config
        matrices = [
            weight for layer in layers for weight in layer.parameters() if weight.dim() == 2
        ]
        matrix_ids = {id(weight) for weight in matrices}
        remaining = [weight for weight in weights if id(weight) not in matrix_ids]
        self._optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                matrices, lr=config.matrix_learning_rate, weight_decay=config.weight_decay
            ),
            torch.optim.AdamW(
                remaining, lr=config.learning_rate, betas=(0.9, 0.98), weight_decay=0.0
            ),
        ]
        self._schedules = [
            torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
            for optimizer in self._optimizers
        ]

    def minimise(self, loss: torch.Tensor) -> None:
        """Take one step down the gradient of a loss."""
        for weight in self._weights:
            weight.grad = None
        loss.backward()
        nn.utils.clip_grad_norm_(self._weights, _LARGEST_NORM)
        for optimizer, schedule in zip(self._optimizers, self._schedules, strict=True):
            optimizer.step()
            schedule.step()

    def _rate(self, step: int) -> float:
        """Linear warm-up, then cosine decay to zero."""
        warmup = self._config.warmup
        if step < warmup:
            return (step + 1) / warmup
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(self._config.steps - warmup, 1)))
