"""Multi-scale deformable attention (Deformable DETR, section 4.1) in portable PyTorch.

There are three sampling methods, which agree up to rounding: embedding bags
(`rlip_model.embedding_bag_sampling`), many times faster on a CPU; the kernels of deformops for
GPUs, if it is installed and passes a test; and `grid_sample`, for other GPUs and for degenerate
sizes.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlip_model.embedding_bag_sampling import Shapes, sample_by_embedding_bags
from rlip_model.gpu_memory import is_out_of_memory, send
from rlip_model.position import at_least_float32

Operator: TypeAlias = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]

_SAMPLINGS: dict[torch.device, GpuSampling] = {}  # no lru_cache, which torch.compile ignores
# Of the samples, three gradients, and samples in bfloat16.
_LARGEST_DIFFERENCES = (1e-3, 1e-3, 1e-3, 1e-3, 2e-2)


def sample(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """Return the weighted sum of bilinearly sampled values; outside the maps, values are zero.

    Args:
        value: `[batch, tokens, heads, dim]`, all levels concatenated.
        shapes: (height, width) of each level.
        locations: `[batch, queries, 2, heads, levels, points]`, x and y in pixels of the level;
            integers are pixel centres.
        weights: `[batch, queries, heads, levels, points]`.

    Returns:
        `[batch, queries, heads * dim]` in the dtype of `value`; computed in at least float32,
        except by deformops.
    """
    dtype = value.dtype
    operator = gpu_sampling(value.device).operator if value.is_cuda else None
    if operator is not None:
        return sample_by_operator(operator, value, shapes, locations, weights)
    value = at_least_float32(value)
    locations = locations.to(value.dtype)
    weights = weights.to(value.dtype)
    if _fits_embedding_bags(value, shapes, locations):
        sampled = sample_by_embedding_bags(value, shapes, locations, weights)
    else:
        sampled = sample_by_grid(value, shapes, locations, weights)
    return sampled.to(dtype)


def _fits_embedding_bags(value: Tensor, shapes: Shapes, locations: Tensor) -> bool:
    # A compiled graph does not branch on values.
    if value.device.type != "cpu" or torch.compiler.is_compiling():
        return False
    return min(min(shape) for shape in shapes) >= 2 and bool(locations.detach().sum().isfinite())


def sample_by_grid(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    """`sample` with one `grid_sample` per level, for any device and any size."""
    batch, _, heads, dim = value.shape
    queries = locations.shape[1]
    points = locations.shape[5]
    sides = _levels(shapes, value.device)[2].to(locations.dtype).T[:, None, :, None]
    grids = ((2 * locations + 1) / sides - 1).permute(4, 0, 3, 1, 5, 2).flatten(1, 2)
    maps = (
        value.permute(0, 2, 3, 1)
        .flatten(0, 1)
        .split([height * width for height, width in shapes], dim=2)
    )
    sampled = [
        F.grid_sample(of_level.unflatten(2, shape), grid, padding_mode="zeros", align_corners=False)
        for of_level, shape, grid in zip(maps, shapes, grids.unbind(), strict=True)
    ]
    stacked = torch.stack(sampled, dim=-2).flatten(-2)
    folded = weights.transpose(1, 2).reshape(batch * heads, 1, queries, len(shapes) * points)
    return (stacked * folded).sum(-1).view(batch, heads * dim, queries).transpose(1, 2)


def sample_by_operator(
    operator: Operator, value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """`sample` with an operator as in Deformable DETR.

    Args:
        operator: from value, the (height, width) of each level, the first token of each level,
            normalised locations `[batch, queries, heads, levels, points, 2]` and weights `[batch,
            queries, heads, levels * points]`.
    """
    sizes, starts, sides = _levels(shapes, value.device)
    pixels = at_least_float32(locations).permute(0, 1, 3, 4, 5, 2)
    normalised = (pixels + 0.5) / sides.unsqueeze(1)
    dtype = value.dtype
    if value.requires_grad:  # gradients of a token are sums of thousands of terms
        value = at_least_float32(value)
    return operator(value, sizes, starts, normalised, weights.to(value.dtype).flatten(-2)).to(dtype)


@torch.compiler.assume_constant_result
def _levels(shapes: Shapes, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Sizes `[levels, 2]`, (height, width), and the first token `[levels]` of each level, on the
    device.

    Then the sizes as (width, height), float32.
    """
    return _kept_levels(tuple(map(tuple, shapes)), device)


@lru_cache(maxsize=256)
def _kept_levels(
    shapes: tuple[tuple[int, int], ...], device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    starts = list(accumulate((height * width for height, width in shapes[:-1]), initial=0))
    with torch.inference_mode(False):  # they are kept, and may be needed by a backward pass
        sizes = send(torch.tensor(shapes), device)
        return sizes, send(torch.tensor(starts), device), sizes.flip(1).float()


@dataclass(frozen=True)
class GpuSampling:
    """How a GPU samples.

    operator: None: by `grid_sample`; why: if deformops is installed, the reason for that.
    """

    operator: Operator | None
    why: str = ""

    def __str__(self) -> str:
        if self.operator is not None:
            return "deformops"
        return f"grid_sample ({self.why})" if self.why else "grid_sample"


def gpu_sampling(device: torch.device) -> GpuSampling:
    """By deformops' operator, unless it is not installed, or, with a warning, fails a test on this
    device.

    What is compiled for a device needs an earlier call.

    Raises:
        torch.cuda.OutOfMemoryError: the memory of the device is full, which says nothing about the
        operator.
    """
    if device not in _SAMPLINGS:
        _SAMPLINGS[device] = _tested(device)
    return _SAMPLINGS[device]


def _tested(device: torch.device) -> GpuSampling:
    try:
        operator: Operator = importlib.import_module("deformops.registry").msda
    except ImportError:
        return GpuSampling(None)
    expected = _samples(_sample_in_float32, device)
    try:
        sampled = _samples(partial(sample_by_operator, operator), device)
    except _kernel_errors() as reason:
        if is_out_of_memory(reason):
            raise
        words = " ".join(str(reason).split())  # of a compiler there may be pages
        return _without(
            f"deformops cannot be used on {device}: {words[:200] or type(reason).__name__}"
        )
    for ours, theirs, largest in zip(sampled, expected, _LARGEST_DIFFERENCES, strict=False):
        difference = float((ours - theirs).abs().max())
        if not difference <= largest:
            return _without(
                f"deformops is not used on {device}: it differs from grid_sample by"
                f" {difference:.1g}"
            )
    return GpuSampling(operator)


def _without(why: str) -> GpuSampling:
    warnings.warn(why, stacklevel=4)
    return GpuSampling(None, why)


def _kernel_errors() -> tuple[type[Exception], ...]:
    """Return what is raised if a kernel cannot be compiled or launched; Triton's errors are not
    RuntimeErrors.
    """
    errors = (RuntimeError, OSError, ValueError, TypeError)
    try:
        return (*errors, importlib.import_module("triton.errors").TritonError)
    except ImportError:
        return errors


def _sample_in_float32(value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor) -> Tensor:
    return sample_by_grid(at_least_float32(value), shapes, locations, at_least_float32(weights))


def _samples(way: Callable[..., Tensor], device: torch.device) -> list[Tensor]:
    """Samples in and around some maps, the gradients of their squares, and samples in bfloat16 if
    the device has it.
    """
    shapes = ((12, 17), (6, 9), (3, 5), (2, 3))
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(2, tokens, 8, 32, generator=generator)
    locations = 20 * torch.rand(2, 50, 2, 8, len(shapes), 4, generator=generator) - 2
    weights = torch.rand(2, 50, 8, len(shapes), 4, generator=generator) / 16
    with torch.inference_mode(False), torch.enable_grad():
        value = value.to(device, copy=True).requires_grad_()
        locations = locations.to(device, copy=True).requires_grad_()
        weights = weights.to(device, copy=True).requires_grad_()
        sampled = way(value, shapes, locations, weights)
        gradients = torch.autograd.grad(sampled.square().sum(), (value, locations, weights))
    samples = [sampled.detach(), *gradients]
    if device.type == "cpu" or torch.cuda.get_device_capability(device) >= (8, 0):
        with torch.no_grad():
            half = way(value.bfloat16(), shapes, locations, weights.bfloat16())
        samples.append(half.float())
    return samples


@dataclass(frozen=True)
class Owners:
    """Which image of a batch each row of queries belongs to.

    images `[rows]`; places `[rows]`, how many earlier rows belong to the same image; max_rows: the
    largest number of rows of an image.
    """

    images: Tensor
    places: Tensor
    max_rows: int

    @classmethod
    def of(cls, images: Sequence[int], device: torch.device) -> Owners:
        """From the image of each row."""
        places = [images[:row].count(image) for row, image in enumerate(images)]
        numbers = send(torch.tensor([*zip(images, places, strict=True)]).T.contiguous(), device)
        return cls(numbers[0], numbers[1], max(places) + 1)


class DeformableAttention(nn.Module):
    """Every query attends to a few points around its reference on each feature level."""

    def __init__(self, dim: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads = heads
        self.levels = levels
        self.points = points
        self.sampling_offsets = nn.Linear(dim, heads * levels * points * 2)
        self.attention_weights = nn.Linear(dim, heads * levels * points)
        self.value_proj = nn.Linear(dim, dim)
        self.output_proj = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Start with head h looking in direction h, point p at distance p + 1, and equal
        weights.
        """
        nn.init.zeros_(self.sampling_offsets.weight)
        angles = torch.arange(self.heads, dtype=torch.float32) * (2 * math.pi / self.heads)
        directions = torch.stack((angles.cos(), angles.sin()), dim=-1)
        directions = directions / directions.abs().amax(-1, keepdim=True)
        distances = torch.arange(1, self.points + 1, dtype=torch.float32)
        ring = directions.view(-1, 1, 1, 2) * distances.view(1, 1, -1, 1)
        with torch.no_grad():
            self.sampling_offsets.bias.copy_(ring.expand(-1, self.levels, -1, -1).flatten())
        nn.init.zeros_(self.attention_weights.weight)
        nn.init.zeros_(self.attention_weights.bias)
        for projection in (self.value_proj, self.output_proj):
            nn.init.xavier_uniform_(projection.weight)
            nn.init.zeros_(projection.bias)

    def forward(
        self,
        query: Tensor,
        references: Tensor,
        memory: Tensor,
        padding: Tensor | None,
        shapes: Shapes,
        owners: Owners | None = None,
    ) -> Tensor:
        """Attend from every query to the image tokens.

        Args:
            query: `[batch, queries, dim]`.
            references: `[batch or 1, queries, levels, 2 or 4]`, xy or cxcywh, normalised to the
                padded level.
            memory: `[batch or 1, tokens, dim]`; with 1, the whole batch of queries shares one
                image.
            padding: `[batch or 1, tokens]`, True where the image is padding.
            owners: the image of each row of queries, if `memory` has one row per image instead.

        Returns:
            `[batch, queries, dim]`.
        """
        value = self.project(memory, padding)
        if owners is not None:
            return self._attend_owners(query, references, value, shapes, owners)
        if memory.shape[0] == 1 and query.shape[0] > 1:
            references = references.expand(query.shape[0], -1, -1, -1)
            folded = self.attend(
                query.flatten(0, 1)[None], references.flatten(0, 1)[None], value, shapes
            )
            return folded.view(query.shape)
        return self.attend(query, references, value, shapes)

    def _attend_owners(
        self, query: Tensor, references: Tensor, value: Tensor, shapes: Shapes, owners: Owners
    ) -> Tensor:
        """All rows of queries of an image attend to it as one row, so that no value is copied."""
        places = (owners.images, owners.places)

        def folded(rows: Tensor) -> Tensor:
            empty = rows.new_zeros(len(value), owners.max_rows, *rows.shape[1:])
            return empty.index_put(places, rows).flatten(1, 2)

        attended = self.attend(folded(query), folded(references), value, shapes)
        return attended.unflatten(1, (owners.max_rows, -1))[places]

    def project(self, memory: Tensor, padding: Tensor | None) -> Tensor:
        """Project the image tokens to attention values `[batch, tokens, heads, dim / heads]`, zero
        in the padding.
        """
        value = self.value_proj(memory)
        if padding is not None:
            value = value.masked_fill(padding.unsqueeze(-1), 0.0)
        return value.unflatten(-1, (self.heads, -1))

    def attend(self, query: Tensor, references: Tensor, value: Tensor, shapes: Shapes) -> Tensor:
        """As `forward`, with the output of `project` instead of the memory; `batch` is the same in
        all arguments.
        """
        layout = (self.heads, self.levels, self.points)
        locations = self._locations(references, self._offsets(query).to(references.dtype), shapes)
        weights = self.attention_weights(query).unflatten(-1, (self.heads, -1)).softmax(-1)
        sampled = sample(
            value, shapes, locations.unflatten(-1, layout[1:]), weights.unflatten(-1, layout[1:])
        )
        return self.output_proj(sampled)

    def _offsets(self, query: Tensor) -> Tensor:
        """`[batch, queries, 2, heads, levels * points]`: all x before all y, the order in which
        they are sampled.
        """
        linear = self.sampling_offsets
        weight = linear.weight.unflatten(0, (-1, 2)).transpose(0, 1).flatten(0, 1)
        bias = linear.bias.unflatten(0, (-1, 2)).T.flatten()
        return F.linear(query, weight, bias).unflatten(-1, (2, self.heads, -1))

    def _locations(self, references: Tensor, offsets: Tensor, shapes: Shapes) -> Tensor:
        """Sampling locations in pixels. Overwrites `offsets` to save memory."""
        sizes = _levels(shapes, references.device)[2].to(references.dtype)

        def of_points(of_levels: Tensor) -> Tensor:
            return of_levels.transpose(-1, -2).repeat_interleave(self.points, -1).unsqueeze(3)

        if references.shape[-1] == 4:
            offsets = offsets * of_points(references[..., 2:] * sizes * (0.5 / self.points))
        return offsets.add_(of_points(references[..., :2] * sizes - 0.5))
