"""Deformable attention: sampled values wherever the points lie, and the layer around it."""

import re
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor
from transformers.models.deformable_detr.modeling_deformable_detr import MultiScaleDeformableAttention

from rlip_model import attention
from rlip_model.attention import (
    DeformableAttention,
    GpuSampling,
    Operator,
    gpu_sampling,
    sample,
    sample_by_grid,
    sample_by_operator,
)
from rlip_model.embedding_bag_sampling import Shapes
from rlip_model.position import at_least_float32

SHAPES = [(7, 9), (4, 5), (2, 2)]


def random_case(
    shapes: Shapes, batch: int = 2, queries: int = 11, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = sum(height * width for height, width in shapes)
    value = torch.randn(batch, tokens, 4, 8, generator=generator, dtype=dtype)
    shares = 1.8 * torch.rand(batch, queries, 2, 4, len(shapes), 3, generator=generator, dtype=dtype) - 0.4
    sizes = torch.tensor(shapes, dtype=dtype).T.flip(0)[:, None, :, None]
    weights = torch.rand(batch, queries, 4, len(shapes), 3, generator=generator, dtype=dtype)
    return value, shares * sizes - 0.5, weights


def as_deformops(value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
    """transformers' implementation, with the arguments of deformops' `msda`, which may differ in precision."""
    weights = weights.unflatten(-1, locations.shape[3:5])
    shapes = [tuple(size) for size in sizes.tolist()]
    assert starts.tolist() == [sum(h * w for h, w in shapes[:level]) for level in range(len(shapes))]
    sampled: Tensor = MultiScaleDeformableAttention()(
        *(at_least_float32(value), sizes, shapes, starts, locations, at_least_float32(weights), 64)
    )
    return sampled.to(value.dtype)


def test_an_operator_for_gpus_samples_the_same() -> None:
    case = random_case(SHAPES)
    sampled, expected = [], []
    for results, way in ((sampled, partial(sample_by_operator, as_deformops)), (expected, sample_by_grid)):
        value, places, weights = (each.clone().requires_grad_() for each in case)
        results.append(way(value, SHAPES, places, weights))
        results += torch.autograd.grad(results[0].square().sum(), (value, places, weights))
    torch.testing.assert_close(sampled, expected)


@pytest.fixture
def deformops(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    module = SimpleNamespace(msda=as_deformops)
    monkeypatch.setitem(sys.modules, "deformops", SimpleNamespace(registry=module))
    monkeypatch.setitem(sys.modules, "deformops.registry", module)
    monkeypatch.setattr(attention, "_SAMPLINGS", {})
    return module


class TritonError(Exception):
    """As Triton's, which is not a RuntimeError."""


def failing(error: Exception) -> Operator:
    def operator(*case: Tensor) -> Tensor:
        raise error

    return operator


def half_wrong(value: Tensor, *case: Tensor) -> Tensor:
    """Right but in bfloat16."""
    return as_deformops(value, *case) * (1.1 if value.dtype == torch.bfloat16 else 1)


def test_an_operator_is_tested_before_it_is_used(deformops: SimpleNamespace) -> None:
    assert gpu_sampling(torch.device("cpu")).operator is as_deformops


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        (lambda *case: 1.01 * as_deformops(*case), "it differs from grid_sample by 0.0"),
        (lambda value, *case: as_deformops(value.detach(), *case) + 0 * value.sum(), "it differs from grid_sample by"),
        (failing(RuntimeError("no kernel image is available")), "cannot be used on cpu: no kernel image is available"),
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

    def operator(value: Tensor, sizes: Tensor, starts: Tensor, locations: Tensor, weights: Tensor) -> Tensor:
        return (locations * sizes).sum((3, 4, 5)) + (weights * starts.max()).sum(-1) + value.mean()

    def sampled(value: Tensor, shapes: Shapes) -> Tensor:
        found = gpu_sampling(value.device).operator
        assert found is not None
        return sample_by_operator(found, value, shapes, places, weights)

    monkeypatch.setattr(attention, "_SAMPLINGS", {device: GpuSampling(operator)})
    compiled = torch.compile(sampled, fullgraph=True, dynamic=False, backend="eager")
    for shapes in (SHAPES, SHAPES[::-1]):
        assert torch.equal(compiled(value, shapes), sampled(value, shapes))


def test_far_and_broken_places() -> None:
    value, places, weights = random_case(SHAPES)
    places[0, 0] = 1e30
    assert sample(value, SHAPES, places, weights)[0, 0].eq(0).all()
    places[0, 1] = float("nan")
    assert sample(value, SHAPES, places, weights)[1].isfinite().all()


def layer_and_inputs(batch: int, memories: int) -> tuple[DeformableAttention, Tensor, Tensor, Tensor, Tensor]:
    torch.manual_seed(0)
    layer = DeformableAttention(32, heads=4, levels=3, points=2)
    torch.nn.init.normal_(layer.sampling_offsets.weight)
    torch.nn.init.normal_(layer.attention_weights.weight)
    tokens = sum(height * width for height, width in SHAPES)
    padding = torch.rand(memories, tokens) < 0.3
    memory = torch.randn(memories, tokens, 32)
    return layer, torch.randn(batch, 5, 32), torch.rand(batch, 5, 3, 4), memory, padding


def test_shared_memory_equals_copies_of_it() -> None:
    layer, query, references, memory, padding = layer_and_inputs(batch=3, memories=1)
    shared = layer(query, references, memory, padding, SHAPES)
    copied = layer(query, references, memory.expand(3, -1, -1), padding.expand(3, -1), SHAPES)
    torch.testing.assert_close(shared, copied)
    one = layer(query, references[:1], memory, padding, SHAPES)
    assert torch.equal(one[0], shared[0])


def test_padding_is_not_looked_at() -> None:
    layer, query, references, memory, padding = layer_and_inputs(batch=2, memories=2)
    before = layer(query, references, memory, padding, SHAPES)
    changed = torch.where(padding.unsqueeze(-1), 1e6, memory)
    assert torch.equal(layer(query, references, changed, padding, SHAPES), before)
    assert not torch.equal(layer(query, references, changed, None, SHAPES), before)


def test_points_start_on_a_ring_around_the_reference() -> None:
    layer = DeformableAttention(32, heads=4, levels=3, points=2)
    offsets = layer.sampling_offsets.bias.view(4, 3, 2, 2)
    expected = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    torch.testing.assert_close(offsets[:, 0, 0], expected)
    torch.testing.assert_close(offsets[:, 2, 1], 2 * expected)
