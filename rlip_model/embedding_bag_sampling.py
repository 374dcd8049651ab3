"""Deformable sampling with weighted embedding bags, forward and backward: the fast method on a CPU.

A row of the table is one head of one token. In the forward pass, a bag holds the rows that one head
of one query reads: four pixels around each of its points. In the backward pass, a bag holds the
query heads that read one row.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Shapes = Sequence[tuple[int, int]]
POINTS_PER_CHUNK = 32_768
BYTES_PER_PICK = 2**21
CORNERS = 4


def sample_by_embedding_bags(
    value: Tensor, shapes: Shapes, locations: Tensor, weights: Tensor
) -> Tensor:
    """`attention.sample` for levels with sides of at least 2 and finite locations.

    Gradients equal those of `grid_sample`, also at pixel borders, and cannot be differentiated
    again. Only the arguments are saved for the backward pass.
    """
    sampled: Tensor = _Bags.apply(value, locations, weights, tuple(shapes))
    return sampled


class _Bags(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, value: Tensor, locations: Tensor, weights: Tensor, shapes: Shapes
    ) -> Tensor:
        ctx.save_for_backward(value, locations, weights)
        ctx.shapes = shapes
        batch, queries, heads, levels, points = weights.shape
        table = value.reshape(-1, value.shape[-1])
        pixels = _Pixels(shapes, weights)
        sampled = value.new_empty(batch, queries, heads * value.shape[-1])
        for chunk in _chunks(batch, queries, heads * levels * points):
            location = pixels(locations[:, chunk])
            weight = location.corner_weights(weights[:, chunk])
            sampled[:, chunk] = _bags(pixels.rows(location), weight, table).view(
                batch, -1, sampled.shape[-1]
            )
        return sampled

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, gradient: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        value, locations, weights = ctx.saved_tensors
        batch, queries, heads, levels, points = weights.shape
        gradient = gradient.reshape(batch, queries, heads, value.shape[-1])
        pixels = _Pixels(ctx.shapes, weights)
        of_points = None
        if any(ctx.needs_input_grad[1:3]):
            of_points = _PointGradients(value, locations, weights)
        of_value = None
        if ctx.needs_input_grad[0]:
            of_value = _ValueGradient(value, ctx.shapes, weights)
        with torch.autocast(gradient.device.type, enabled=False):
            for chunk in _chunks(batch, queries, heads * levels * points):
                location = pixels(locations[:, chunk])
                rows = pixels.rows(location)
                if of_points:
                    of_points.add(chunk, location, rows, gradient[:, chunk])
                if of_value:
                    of_value.add(chunk, location, rows)
            of_table = of_value.sum(gradient) if of_value else None
        if of_points is None:
            return of_table, None, None, None
        return of_table, of_points.locations, of_points.weights, None


class _Location(NamedTuple):
    """Locations of points: first dimension x, y; then `[batch, queries, heads, levels * points]`.

    base: the upper left of the four pixels that a point is interpolated from, clamped to the map;
    beyond: distance of the point from it, in pixels; near, far: weights of the base pixel and of
    the next one. Both are triangle functions, so points outside the map get the right weights, down
    to zero, without masking.
    """

    base: Tensor
    beyond: Tensor
    near: Tensor
    far: Tensor

    def corner_weights(self, weights: Tensor) -> Tensor:
        """`[batch, queries, heads, 4, levels * points]`: upper left, upper right, lower left, lower
        right.
        """
        left = self.near[0]
        right = self.far[0]
        weights = weights.flatten(3)
        top = self.near[1] * weights
        bottom = self.far[1] * weights
        return torch.stack((top * left, top * right, bottom * left, bottom * right), dim=-2)

    def slopes(self) -> tuple[Tensor, Tensor]:
        """Derivatives of `near` and `far` with respect to the location, per pixel; right-sided at
        kinks.
        """
        cell = self.beyond.floor()
        inside = _triangle(cell)
        return _triangle(cell + 1) - inside, inside - _triangle(cell - 1)


class _Pixels:
    """Computes the pixels around points on all levels, and their rows in the table."""

    def __init__(self, shapes: Shapes, weights: Tensor) -> None:
        batch, _, self.heads, _, points = weights.shape
        areas = [height * width for height, width in shapes]
        first = [self.heads * start for start in accumulate(areas, initial=0)]

        def per_point(numbers: Sequence[int], dtype: torch.dtype) -> Tensor:
            return torch.tensor(numbers, dtype=dtype).repeat_interleave(points)

        last_columns = per_point([width - 2 for _, width in shapes], weights.dtype)
        last_lines = per_point([height - 2 for height, _ in shapes], weights.dtype)
        self.last = torch.stack((last_columns, last_lines)).view(2, 1, 1, 1, -1)
        self.row_step = per_point([width * self.heads for _, width in shapes], torch.int32)
        image = torch.arange(batch, dtype=torch.int32).view(-1, 1, 1, 1) * first.pop()
        head = torch.arange(self.heads, dtype=torch.int32).view(-1, 1)
        self.first_row = per_point(first, torch.int32) + head + image

    def __call__(self, locations: Tensor) -> _Location:
        locations = locations.flatten(4).movedim(2, 0)
        base = locations.floor().clamp_(min=0)
        base = torch.minimum(base, self.last, out=base)
        beyond = locations - base
        return _Location(base, beyond, _triangle(beyond), _triangle(beyond - 1))

    def rows(self, location: _Location) -> Tensor:
        """`[batch, queries, heads, 4, levels * points]`, in the order of `corner_weights`."""
        column, line = location.base.int()
        upper = line.mul_(self.row_step).add_(column.mul_(self.heads)).add_(self.first_row)
        lower = upper + self.row_step
        return torch.stack((upper, upper + self.heads, lower, lower + self.heads), dim=-2)


def _triangle(distance: Tensor) -> Tensor:
    return distance.abs().neg_().add_(1).relu_()


def _chunks(batch: int, queries: int, points: int) -> Iterator[slice]:
    if not batch:
        return
    step = max(1, POINTS_PER_CHUNK // max(1, batch * points))
    for start in range(0, queries, step):
        yield slice(start, min(start + step, queries))


def _bags(rows: Tensor, weight: Tensor, table: Tensor) -> Tensor:
    """`[bags, dim]`: weighted sums of rows of the table, over the last two dimensions of `rows`."""
    size = rows.shape[-2:].numel()
    starts = torch.arange(0, rows.numel(), size, dtype=torch.int32)
    return F.embedding_bag(
        rows.flatten(), table, starts, mode="sum", per_sample_weights=weight.flatten()
    )


class _PointGradients:
    """Gradients of locations and weights, chunk by chunk: each pixel is multiplied by the gradient
    of its query.
    """

    def __init__(self, value: Tensor, locations: Tensor, weights: Tensor) -> None:
        self.locations = torch.empty_like(locations)
        self.weights = torch.empty_like(weights)
        self.point_weights = weights
        self.table = value.reshape(-1, value.shape[-1])
        rows = CORNERS * weights.shape[3:].numel()
        self.step = max(
            1, BYTES_PER_PICK // (rows * self.table.shape[-1] * self.table.element_size())
        )
        self.picked = self.table.new_empty(self.step, rows, self.table.shape[-1])

    def add(self, chunk: slice, location: _Location, rows: Tensor, gradient: Tensor) -> None:
        """`rows` `[batch, queries, heads, 4, levels * points]`, `gradient` `[batch, queries, heads,
        dim]`.
        """
        product = self._products(rows, gradient)
        left, top = location.near
        right, bottom = location.far
        (left_slope, top_slope), (right_slope, bottom_slope) = location.slopes()
        upper = left * product[0] + right * product[1]
        lower = left * product[2] + right * product[3]
        along_x = left_slope * (top * product[0] + bottom * product[2])
        along_x += right_slope * (top * product[1] + bottom * product[3])
        along_y = top_slope * upper + bottom_slope * lower
        weights = self.point_weights[:, chunk]
        moved = torch.stack((along_x, along_y), dim=2).mul_(weights.flatten(3).unsqueeze(2))
        self.locations[:, chunk] = moved.unflatten(-1, weights.shape[3:])
        self.weights[:, chunk] = (top * upper + bottom * lower).view(weights.shape)

    def _products(self, rows: Tensor, gradient: Tensor) -> Tensor:
        """`[4, batch, queries, heads, levels * points]`; rows are gathered into one reused buffer,
        part by part.
        """
        products = gradient.new_empty(rows.shape)
        arrays = (
            rows.flatten(0, 2).flatten(1),
            gradient.flatten(0, 2),
            products.flatten(0, 2).flatten(1),
        )
        for picks, vectors, results in zip(
            *(array.split(self.step) for array in arrays), strict=True
        ):
            picked = self.picked[: len(picks)]
            torch.index_select(self.table, 0, picks.flatten(), out=picked.flatten(0, 1))
            torch.bmm(vectors.unsqueeze(1), picked.transpose(1, 2), out=results.unsqueeze(1))
        return products.movedim(3, 0).contiguous()


class _ValueGradient:
    """The gradient of a row is a bag of the gradients of the queries that read it.

    Points are sorted only once, by their base pixel; the sums of the other corners belong to the
    neighbouring rows.
    """

    def __init__(self, value: Tensor, shapes: Shapes, weights: Tensor) -> None:
        self.shapes = shapes
        self.like = value
        self.point_weights = weights
        self.rows = torch.empty(*weights.shape[:3], weights.shape[3:].numel(), dtype=torch.int32)
        self.corners = weights.new_empty(CORNERS, *self.rows.shape)

    def add(self, chunk: slice, location: _Location, rows: Tensor) -> None:
        self.rows[:, chunk] = rows[:, :, :, 0]
        self.corners[:, :, chunk] = location.corner_weights(self.point_weights[:, chunk]).movedim(
            -2, 0
        )

    def sum(self, gradient: Tensor) -> Tensor:
        """`[batch, tokens, heads, dim]`, from `[batch, queries, heads, dim]`."""
        sizes = torch.bincount(self.rows.flatten(), minlength=self.like.shape[:3].numel())
        if self.rows.numel() < len(sizes):
            return self._spread(gradient, sizes)
        heads = gradient.shape[2]
        upper, upper_right, lower, lower_right = self._corners(gradient, sizes)
        upper[heads:] += upper_right[:-heads]
        lower[heads:] += lower_right[:-heads]
        upper = upper.view(self.like.shape)
        lower = lower.view(self.like.shape)
        start = 0
        for height, width in self.shapes:
            end = start + height * width
            upper[:, start + width : end] += lower[:, start : end - width]
            start = end
        return upper

    def _spread(self, gradient: Tensor, sizes: Tensor) -> Tensor:
        """As `sum`, for few points, which read little of the table: writes only the rows that they
        read.
        """
        read = sizes.nonzero().squeeze(1)
        tokens, heads = self.like.shape[1:3]
        ends = torch.tensor(list(accumulate(height * width for height, width in self.shapes)))
        widths = torch.tensor([width for _, width in self.shapes])
        below = read + heads * widths[torch.bucketize(read // heads % tokens, ends, right=True)]
        total = torch.zeros_like(self.like, memory_format=torch.contiguous_format)
        table = total.view(-1, total.shape[-1])
        corners = self._corners(gradient, sizes[read])
        for location, corner in zip(
            (read, read + heads, below, below + heads), corners, strict=True
        ):
            table.index_copy_(0, location, corner.add_(table.index_select(0, location)))
        return total

    def _corners(self, gradient: Tensor, sizes: Tensor) -> Iterator[Tensor]:
        """Per corner, `[rows, dim]`: the sums over the points whose base is that row; `sizes`
        counts the points.
        """
        starts = (sizes.cumsum(0) - sizes).int()
        order = self.rows.flatten().sort().indices.int()
        queries = order.div(self.rows.shape[-1], rounding_mode="floor")
        table = gradient.reshape(-1, gradient.shape[-1])
        for corner in self.corners:
            weight = corner.flatten().index_select(0, order)
            yield F.embedding_bag(queries, table, starts, mode="sum", per_sample_weights=weight)
