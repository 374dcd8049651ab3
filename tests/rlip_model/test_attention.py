"""Deformable attention: sampled values and gradients wherever the points lie, by any way, and the
layer around it.
"""

import re
import sys
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import (
    MultiScaleDeformableAttention,
)

from rlip_model import attention, embedding_bag_sampling
from rlip_model.attention import (
    DeformableAttention,
    Operator,
    gpu_sampling,
    sample,
    sample_by_grid,
    sample_by_operator,
)
from rlip_model.embedding_bag_sampling import Shapes, sample_by_embedding_bags
from rlip_model.position import at_least_float32

SHAPES = [(7, 9), (4, 5), (2, 2)]
Case = tuple[Tensor, Tensor, Tensor]


def random_case(
    shapes: Shapes, batch: int = 2, queries: int = 11, heads: int = 4
) -> tuple[Tensor, Tensor, Tensor]:
    """Values, places of which some lie outside of the maps, weights."""
    tokens = sum(height * width for height, width in shapes)
    layout = (heads, len(shapes), 3)
    exact: dict[str, Any] = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
    value = torch.randn(batch, tokens, heads, 8, **exact)
    shares = 1.8 * torch.rand(batch, queries, 2, *layout, **exact) - 0.4
    sizes = torch.tensor(shapes, dtype=torch.float64).T.flip(0)[:, None, :, None]
    weights = torch.rand(batch, queries, *layout, **exact)
    return value, shares * sizes - 0.5, weights


def as_deformops(
    value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
) -> Tensor:
    """transformers' implementation, with the arguments of deformops' `msda`, which may differ in
    precision.
    """
    weights = weights.unflatten(-1, locations.shape[3:5])
    shapes = list(map(tuple, sizes.tolist()))
    assert starts.tolist() == [
        sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))
    ]
    sampled: Tensor = MultiScaleDeformableAttention()(
        at_least_float32(value), sizes, shapes, starts, locations, at_least_float32(weights), 64
    )
    return sampled.to(value.dtype)


@pytest.fixture
def deformops(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(msda=as_deformops)
    monkeypatch.setitem(sys.modules, "deformops", SimpleNamespace(registry=module))
    monkeypatch.setitem(sys.modules, "deformops.registry", module)
    monkeypatch.setattr(attention, "_SAMPLINGS", {})
    return module


class TritonError(Exception):
    """As Triton's, which is not a RuntimeError."""


def test_an_operator_is_tested_before_it_is_used(deformops: SimpleNamespace) -> None:
    assert gpu_sampling(torch.device("cpu")).operator is as_deformops


def failing(error: Exception) -> Operator:
    return Mock(side_effect=error)


def half_wrong(value: Tensor, *case: Tensor) -> Tensor:
    """Right but in bfloat16."""
    return as_deformops(value, *case) * (1.1 if value.dtype == torch.bfloat16 else 1)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda *case: 1.01 * as_deformops(*case), "it differs from grid_sample by 0.0"),
        (
            lambda value, *case: as_deformops(value.detach(), *case) + 0 * value.sum(),
            "it differs from grid_sample by",
        ),
        (
            failing(RuntimeError("no kernel image is available")),
            "cannot be used on cpu: no kernel image is available",
        ),
        (half_wrong, "it differs from grid_sample by"),
        (failing(OSError()), "cannot be used on cpu: OSError"),
        (failing(TritonError("ptxas")), "cannot be used on cpu: ptxas"),
    ],
)
def test_an_operator_that_is_wrong_or_fails_is_not_used(
    deformops: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, wrong: Operator, reason: str
) -> None:
    deformops.msda = wrong
    monkeypatch.setitem(sys.modules, "triton.errors", SimpleNamespace(TritonError=TritonError))
    with pytest.warns(UserWarning, match=reason):
        sampling = gpu_sampling(torch.device("cpu"))
    assert sampling.operator is None
    assert re.match(rf"grid_sample \(deformops .*{reason}", str(sampling))


def test_an_operator_is_part_of_a_compiled_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    device, (value, places, weights) = torch.device("cpu"), random_case(SHAPES)

    def operator(
        value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor
    ) -> Tensor:
        return (locations * sizes).sum((3, 4, 5)) + (weights * starts.max()).sum(-1) + value.mean()

    def sampled(value: Tensor, shapes: Shapes) -> Tensor:
        operator = gpu_sampling(value.device).operator
        assert operator is not None
        return sample_by_operator(operator, value, shapes, places, weights)

    monkeypatch.setattr(attention, "_SAMPLINGS", {device: attention.GpuSampling(operator)})
    compiled = torch.compile(sampled, fullgraph=True, dynamic=False, backend="eager")
    for shapes in (SHAPES, SHAPES[::-1]):
        assert torch.equal(compiled(value, shapes), sampled(value, shapes))


def test_far_and_broken_places() -> None:
    value, places, weights = random_case(SHAPES)
    places[0, 0] = 1e30
    assert sample(value, SHAPES, places, weights)[0, 0].eq(0).all()
    places[0, 1] = float("nan")
    assert sample(value, SHAPES, places, weights)[1].isfinite().all()


def test_shared_memory_equals_copies_of_it_and_padding_is_not_looked_at() -> None:
    torch.manual_seed(0)
    layer = DeformableAttention(32, heads=4, levels=3, points=2)
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    torch.nn.init.normal_(layer.attention_weights.weight)
    tokens = sum(height * width for height, width in SHAPES)
    memory = torch.randn(1, tokens, 32)
    padding = torch.rand(1, tokens) < 0.3
    query = torch.randn(3, 5, 32)
    references = torch.rand(3, 5, 3, 4)
    shared = layer(query, references, memory, padding, SHAPES)
    copied = layer(query, references, memory.expand(3, -1, -1), padding.expand(3, -1), SHAPES)
    torch.testing.assert_close(shared, copied)
    assert torch.equal(layer(query, references[:1], memory, padding, SHAPES)[0], shared[0])
    changed = torch.where(padding.unsqueeze(-1), 1e6, memory)
    assert torch.equal(layer(query, references, changed, padding, SHAPES), shared)
    assert not torch.equal(layer(query, references, changed, None, SHAPES), shared)


def with_gradients(
    way: Callable[..., Tensor], case: Case, shapes: Shapes = SHAPES
) -> tuple[Tensor, ...]:
    inputs = [tensor.detach().requires_grad_() for tensor in case]
    sampled = way(inputs[0], shapes, *inputs[1:])
    pull = torch.randn(
        sampled.shape, generator=torch.Generator().manual_seed(1), dtype=sampled.dtype
    )
    return sampled.detach(), *torch.autograd.grad(sampled, inputs, pull)


def check_equal(
    case: Case, shapes: Shapes = SHAPES, way: Callable[..., Tensor] = sample_by_embedding_bags
) -> None:
    results, expected = (
        with_gradients(implementation, case, shapes) for implementation in (way, sample_by_grid)
    )
    torch.testing.assert_close(results, expected, rtol=1e-11, atol=1e-11)


def test_an_operator_for_gpus_samples_the_same() -> None:
    check_equal(random_case(SHAPES), way=partial(sample_by_operator, as_deformops))


@pytest.mark.parametrize("queries", [0, 1, 11, 67])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_grid_sample(monkeypatch: pytest.MonkeyPatch, queries: int, batch: int) -> None:
    """Also where the last chunk and the last part of it are smaller than the others."""
    monkeypatch.setattr(embedding_bag_sampling, "POINTS_PER_CHUNK", 720)
    monkeypatch.setattr(embedding_bag_sampling, "BYTES_PER_PICK", 8 * 8 * 36 * 7)
    case = random_case(SHAPES, batch, queries)
    if queries:
        check_equal(case)
    else:
        gradients = with_gradients(sample_by_embedding_bags, case)
        assert [tuple(gradient.shape) for gradient in gradients] == [
            (batch, 0, 32),
            *(tuple(tensor.shape) for tensor in case),
        ]
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
