"""Exponential moving average (EMA) of the parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Exponential moving averages of the trainable parameters of a network, by name.

    Args:
        decay: weight of the old average in an update. Early updates use a smaller decay, so that
            the initial parameters lose their influence quickly.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self.updates = 0
        self._parameters: dict[str, nn.Parameter] = {}
        self.values: dict[str, Tensor] = {}
        for name, parameter in network.named_parameters():
            if parameter.requires_grad:
                self._parameters[name] = parameter
                self.values[name] = parameter.detach().clone()

    @torch.no_grad()
    def update(self) -> None:
        """Update the averages with the current parameters."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(
            list(self.values.values()),
            [parameter.detach() for parameter in self._parameters.values()],
            1 - decay,
        )

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Restore stored averages."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the parameters of the network and their averages; a second call restores
        them.
        """
        for name, parameter in self._parameters.items():
            now = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(now)
