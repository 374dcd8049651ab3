"""An exponential moving average of the parameters: a smoother network than the one being trained."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class EMA:
    """Averages of a network's trainable parameters, by name.

    Args:
        decay: share of the old average that stays in an update; early updates keep less, so that the first
            parameters are soon forgotten.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self._parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
        self.values: dict[str, Tensor] = {name: p.detach().clone() for name, p in self._parameters.items()}

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as they are now."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, parameter in self._parameters.items():
            self.values[name].lerp_(parameter.detach(), 1 - decay)

    @torch.no_grad()
    def load(self, values: Mapping[str, Tensor], updates: int) -> None:
        """Go on from a stored average."""
        self.updates = updates
        for name, value in self.values.items():
            value.copy_(values[name])

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange the network's parameters and their averages; a second time undoes it."""
        for name, parameter in self._parameters.items():
            now = parameter.detach().clone()
            parameter.copy_(self.values[name])
            self.values[name].copy_(now)
