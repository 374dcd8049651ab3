"""Randomness in training: seeds, and the noise on boxes and labels given to the R-Tagger
(denoising, DN-DETR).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

_PRIME = 1_000_003
_LARGEST_SEED = 2**32 - 1  # torch's generator on a CPU ignores all higher bits


def torch_seed(seed: int, step: int = 0, rank: int = 0, part: int = 0) -> int:
    """Return the seed of torch's generator for a part of a step in one process, whatever the size
    of a run's seed.

    Where the plain formula of the first versions has room in 64 bits, it stays.
    """
    plain = (seed * _PRIME + step) * _PRIME + rank
    if part == 0 and plain < 2**64:
        return plain
    digest = hashlib.sha256(f"{seed} {step} {rank} {part}".encode()).digest()
    return int.from_bytes(digest[:8], "big")


def initial_seed(seed: int) -> int:
    """Return the seed of torch's generator for initial weights. Seeds are told apart beyond the
    bits that torch looks at.
    """
    return seed if seed <= _LARGEST_SEED else torch_seed(seed, part=1)


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
    """Shift centres by up to `scale / 2` of the sides, change sides by up to `scale`, and clamp to
    [0, 1].

    `boxes` `[boxes, 4]`, normalised cxcywh.
    """
    if scale <= 0:
        return boxes
    sides = boxes[:, 2:]
    reach = torch.cat((sides / 2, sides), dim=1) * scale
    return (boxes + (2 * noise.uniform(boxes.shape, boxes.device) - 1) * reach).clamp(0, 1)


def perturb_labels(labels: Tensor, probability: float, high: int, noise: Noise) -> Tensor:
    """Replace each of `labels` `[boxes]`, with the given probability, by a random label below
    `high`.
    """
    if probability <= 0:
        return labels
    chosen = noise.uniform(labels.shape, labels.device) < probability
    replaced = labels.clone()
    replaced[chosen] = noise.integers(high, int(chosen.sum()), labels.device)
    return replaced
