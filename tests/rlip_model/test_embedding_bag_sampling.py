"""Sampling by embedding bags: values and all gradients are those of one `grid_sample` per level."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from rlip_model import embedding_bag_sampling
from rlip_model.attention import sample_by_grid
from rlip_model.embedding_bag_sampling import Shapes, sample_by_embedding_bags

SHAPES = ((7, 9), (4, 5), (2, 2))
Case = tuple[Tensor, Tensor, Tensor]


def random_case(
    shapes: Shapes = SHAPES,
    batch: int = 2,
    queries: int = 11,
    heads: int = 4,
    points: int = 3,
    dim: int = 8,
    dtype: torch.dtype = torch.float64,
) -> Case:
    """Values, places of which some lie outside of the maps, weights."""
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in shapes)
    layout = (heads, len(shapes), points)
    value = torch.randn(batch, tokens, heads, dim, generator=generator, dtype=dtype)
    shares = 1.8 * torch.rand(batch, queries, 2, *layout, generator=generator, dtype=dtype) - 0.4
    sizes = torch.tensor(shapes, dtype=dtype).T.flip(0)[:, None, :, None]
    weights = torch.rand(batch, queries, *layout, generator=generator, dtype=dtype)
    return value, shares * sizes - 0.5, weights


def with_gradients(way: Callable[..., Tensor], case: Case, shapes: Shapes = SHAPES) -> tuple[Tensor, ...]:
    inputs = [tensor.detach().requires_grad_() for tensor in case]
    sampled = way(inputs[0], shapes, *inputs[1:])
    pull = torch.randn(sampled.shape, generator=torch.Generator().manual_seed(1), dtype=sampled.dtype)
    return sampled.detach(), *torch.autograd.grad(sampled, inputs, pull)


def check_equal(case: Case, shapes: Shapes = SHAPES) -> None:
    pairs = zip(
        with_gradients(sample_by_embedding_bags, case, shapes),
        with_gradients(sample_by_grid, case, shapes),
        strict=True,
    )
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("queries", [0, 1, 11, 67])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_grid_sample(monkeypatch: pytest.MonkeyPatch, queries: int, batch: int) -> None:
    """Also where the last chunk and the last part of it are smaller than the others."""
    monkeypatch.setattr(embedding_bag_sampling, "POINTS_PER_CHUNK", 720)
    monkeypatch.setattr(embedding_bag_sampling, "BYTES_PER_PICK", 8 * 8 * 36 * 7)
    case = random_case(queries=queries, batch=batch)
    if queries:
        check_equal(case)
    else:
        gradients = with_gradients(sample_by_embedding_bags, case)
        assert [tuple(each.shape) for each in gradients] == [(batch, 0, 32), *(tuple(each.shape) for each in case)]
        assert gradients[1].eq(0).all()


def test_slopes_at_the_borders_of_pixels_and_maps() -> None:
    """There the derivative jumps; sizes of powers of 2 make the places exact."""
    shapes = ((4, 8), (2, 2))
    steps = torch.arange(-4, 22, dtype=torch.float64) / 2
    x, y = torch.meshgrid(steps, steps, indexing="xy")
    value, _, _ = random_case(shapes, batch=1, heads=1)
    places = torch.stack((x, y), dim=-1).view(1, -1, 2, 1, 1, 1).expand(-1, -1, -1, -1, 2, -1)
    weights = torch.rand(1, places.shape[1], 1, 2, 1, dtype=torch.float64)
    check_equal((value, places, weights), shapes)


def test_gradcheck() -> None:
    value, places, weights = random_case(((3, 4), (2, 2)), batch=2, queries=2, heads=2, points=2, dim=3)
    inputs = [tensor.requires_grad_() for tensor in (value, places, weights)]
    assert torch.autograd.gradcheck(lambda v, *others: sample_by_embedding_bags(v, ((3, 4), (2, 2)), *others), inputs)


def test_under_activation_checkpoints() -> None:
    case = random_case()

    def recomputed(value: Tensor, shapes: Shapes, places: Tensor, weights: Tensor) -> Tensor:
        return checkpoint(sample_by_embedding_bags, value, shapes, places, weights, use_reentrant=False)

    for found, expected in zip(
        with_gradients(recomputed, case), with_gradients(sample_by_embedding_bags, case), strict=True
    ):
        assert torch.equal(found, expected)
