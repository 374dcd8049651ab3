"""Functions that are compiled for shapes that recur. Without a GPU, by PyTorch's backends that make no kernels."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import pytest
import torch
from torch import Tensor

from rlip_model.config import RTaggerConfig
from rlip_model.model import RTagger
from rlip_model.presets import tiny_sizes
from rlip_model.text import LabelFeatures, pad_labels
from sgpipe.utils import gpu
from sgpipe.utils.gpu import Compiled, compile_forward


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


@dataclass
class Backend:
    """Counts what it is asked to compile, which takes a minute of its clock."""

    compiled: int = 0
    error: Exception | None = None

    def clock(self) -> float:
        return 60.0 * self.compiled

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1
        if self.error is not None:
            raise self.error
        return graph.forward


@dataclass
class Position:
    number: int = 0


CALLS = 8


def scaled(values: Tensor, position: Position) -> Tensor:
    return values * 2 + position.number


def call(function: Callable[..., Tensor], rows: int, times: int = 1) -> None:
    for number in range(times):
        torch.testing.assert_close(function(torch.ones(rows), Position(number)), torch.full((rows,), 2.0 + number))


def test_a_shape_is_compiled_when_it_recurs() -> None:
    backend = Backend()
    function = Compiled(scaled, warm_up_calls=CALLS, dynamic=False, backend=backend)
    for rows in range(1, 20):
        call(function, rows)
    call(function, 3, CALLS - 1)
    assert backend.compiled == 0
    call(function, 3)
    assert backend.compiled == 1
    assert function.failure == ""


def test_only_a_few_shapes_are_compiled() -> None:
    backend = Backend()
    function = Compiled(scaled, warm_up_calls=CALLS, dynamic=False, backend=backend)
    for rows in range(3, 12):
        for _ in range(CALLS + 4):
            function(torch.ones(rows), Position())
    assert backend.compiled == gpu._MOST_SHAPES


@pytest.mark.parametrize("reason", ["no compiler\nand a page of advice", ""])
def test_without_a_compiler_everything_runs_as_it_is(reason: str) -> None:
    backend = Backend(error=RuntimeError(reason))
    function = Compiled(scaled, backend=backend)
    call(function, 2, 20)
    assert backend.compiled == 1
    assert "no compiler" in function.failure or not reason
    assert function.failure
    assert "\n" not in function.failure


def test_threads_compute_without_it_while_one_compiles() -> None:
    compiles, go_on = Event(), Event()

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        compiles.set()
        assert go_on.wait(60)
        return graph.forward

    function = Compiled(scaled, backend=backend)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(function, torch.ones(2), Position(1))
        assert compiles.wait(60)
        call(function, 2)  # would wait for ever
        call(function, 3)
        go_on.set()
        torch.testing.assert_close(first.result(), torch.full((2,), 3.0))
    assert function.failure == ""


def test_errors_of_the_function_are_not_taken_for_those_of_the_compiler() -> None:
    def full(values: Tensor) -> Tensor:
        raise torch.cuda.OutOfMemoryError("CUDA out of memory")

    function = Compiled(full, backend="eager")
    for _ in range(3):
        with pytest.raises(torch.cuda.OutOfMemoryError):
            function(torch.ones(2))


@pytest.mark.slow
def test_layers_of_the_encoder_are_compiled_once_for_each_shape_whatever_the_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(gpu, "_WARM_UP_CALLS", 1)
    torch.manual_seed(0)
    tagger = RTagger(RTaggerConfig(**tiny_sizes(30))).eval()
    width = tagger.config.text_config.hidden_size
    images = [torch.randn(2, 3, 64, 96), torch.randn(2, 3, 96, 64), torch.randn(1, 3, 64, 96)]
    texts = [LabelFeatures(torch.randn(1, count, width), 3) for count in (4, 9)]
    padded = pad_labels([texts[0], texts[1]])
    with torch.no_grad():
        encoded = [tagger.encode_image(each) for each in images]
        cases = [(image, labels) for image in encoded for labels in texts] + [(encoded[0], padded)]
        expected = [tagger.fuse(*case) for case in cases]
        backend = Backend()
        compiled = compile_forward(*tagger.encoder.layers, backend=backend)
        for _ in range(2):
            found = [tagger.fuse(*case) for case in cases]
    assert (compiled.failure, backend.compiled) == ("", len(images))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(vars(one), vars(other), atol=1e-5, rtol=1e-4)
