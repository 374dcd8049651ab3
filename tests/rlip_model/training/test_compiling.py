"""Layers that are compiled with gradients. Without a GPU, by PyTorch's backends that make no
kernels.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from rlip_model.backbone import FoldedBottleneck
from rlip_model.swin import FeedForward
from rlip_model.training.batches import TrainingBatch, collate
from rlip_model.training.compiling import CompiledLayers
from rlip_model.training.objective import Objective, checkpoint_activations
from tests.rlip_model.training.worlds import TEXTS, example, objective


@pytest.fixture(autouse=True)
def _nothing_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    config = torch._dynamo.config
    with config.patch(cache_size_limit=config.cache_size_limit, optimize_ddp=config.optimize_ddp):
        yield


class Backend:
    """Counts what it compiles, or fails."""

    def __init__(self, error: Exception | None = None) -> None:
        self.graphs = 0
        self.error = error

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        if self.error is not None:
            raise self.error
        return graph.forward


@pytest.mark.parametrize("kind", ["Swin", "ResNet"])
def test_layers_of_one_width_are_compiled_once_for_all_sizes(kind: str) -> None:
    swin = kind == "Swin"
    two = [
        FeedForward(6, 12) if swin else FoldedBottleneck(16, 4, norm_layer=FrozenBatchNorm2d)
        for _ in range(2)
    ]
    layers = nn.Sequential(*two)
    sizes = [(2, 5, 9), (3, 4, 3), (2, 8, 7)]
    shapes = [(batch, *size, 6) if swin else (batch, 16, *size) for batch, *size in sizes]
    inputs = [torch.randn(shape, requires_grad=True) for shape in shapes]
    expected = list(map(layers, inputs))
    backend = Backend()
    compiled = CompiledLayers(layers, backend)
    with torch.no_grad():
        layers(inputs[0])
    assert backend.graphs == 0  # as in validations
    for images, one in zip(inputs, expected, strict=True):
        torch.testing.assert_close(layers(images), one)
    assert backend.graphs == 1
    assert compiled.failure is None


def test_after_a_failure_layers_compute_as_they_are() -> None:
    target = objective("parseda")
    backend = Backend(RuntimeError("no compiler\nand a page of advice"))
    compiled = CompiledLayers(target.network, backend)
    compiled.compile(target, images=4)
    assert backend.graphs == 1
    assert "no compiler" in str(compiled.failure)
    assert all(parameter.grad is None for parameter in target.parameters())
    torch.testing.assert_close(
        gradients(target, batch(64)), gradients(objective("parseda"), batch(64))
    )
    assert backend.graphs == 1


@pytest.mark.slow
@pytest.mark.parametrize(("checkpointed", "precision"), [(True, "float32"), (False, "bfloat16")])
def test_losses_and_gradients_are_the_same_compiled(checkpointed: bool, precision: str) -> None:
    plain = objective("parseda")
    target = objective("parseda")
    plain.precision = target.precision = precision
    compiled = CompiledLayers(target.network, "aot_eager")
    if checkpointed:
        checkpoint_activations(target.network)
    compiled.compile(target, images=2)
    for width in (64, 100, 77):
        torch.testing.assert_close(gradients(target, batch(width)), gradients(plain, batch(width)))
    assert compiled.failure is None


def batch(width: int) -> TrainingBatch:
    """Two images, the second of which is padded to this width."""
    collated = collate([example(0), example(1)], TEXTS)
    pixels = nn.functional.pad(collated.pixel_values, (0, width - collated.pixel_values.shape[-1]))
    padding = nn.functional.pad(
        collated.padding, (0, width - collated.padding.shape[-1]), value=True
    )
    return TrainingBatch(**{**vars(collated), "pixel_values": pixels, "padding": padding})


def gradients(target: Objective, training_batch: TrainingBatch) -> dict[str, Tensor]:
    """Those of all parameters that have one, and the loss."""
    torch.manual_seed(0)
    target.train().zero_grad()
    loss = target(training_batch)["loss"]
    loss.backward()
    named = {
        name: parameter.grad
        for name, parameter in target.named_parameters()
        if parameter.grad is not None
    }
    return {"loss": loss.detach(), **named}
