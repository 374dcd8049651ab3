"""Training noise on the boxes and labels given to the R-Tagger (denoising queries, DN-DETR)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Noise(Protocol):
    """A source of random numbers."""

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        """Random numbers in [0, 1)."""
        ...

    def integers(self, high: int, count: int, device: torch.device) -> Tensor:
        """Random integers `[count]` in [0, high)."""
        ...


class TorchNoise:
    """Random numbers from torch's global generator or from a given one."""

    def __init__(self, generator: torch.Generator | None = None) -> None:
        self.generator = generator

    def uniform(self, shape: Sequence[int], device: torch.device) -> Tensor:
        return torch.rand(tuple(shape), generator=self.generator, device=device)

    def integers(self, high: int, count: int, device: torch.device) -> Tensor:
        return torch.randint(0, high, (count,), generator=self.generator, device=device)


def perturb_boxes(boxes: Tensor, scale: float, noise: Noise) -> Tensor:
    """Shift centres by up to `scale / 2` of the sides, change sides by up to `scale`, and clamp to [0, 1].

    `boxes` `[boxes, 4]`, normalised cxcywh.
    """
    if scale <= 0:
        return boxes
    sides = boxes[:, 2:]
    reach = torch.cat((sides / 2, sides), dim=1) * scale
    return (boxes + (2 * noise.uniform(boxes.shape, boxes.device) - 1) * reach).clamp(0, 1)


def perturb_labels(labels: Tensor, probability: float, high: int, noise: Noise) -> Tensor:
    """Replace each of `labels` `[boxes]`, with the given probability, by a random label below `high`."""
    if probability <= 0:
        return labels
    chosen = noise.uniform(labels.shape, labels.device) < probability
    replaced = labels.clone()
    replaced[chosen] = noise.integers(high, int(chosen.sum()), labels.device)
    return replaced
