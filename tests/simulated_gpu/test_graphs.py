"""The simulated GPU itself; its CUDA graphs, and captions with and without these."""

from __future__ import annotations

import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any
from weakref import WeakSet

import pytest
import torch
from torch import Tensor

if "tests.simulated_gpu.device" not in sys.modules:
    pytest.skip("only with its plugin: make test-simulated-gpu", allow_module_level=True)

from sgpipe.recipe import CaptionConfig
from sgpipe.stages.caption import blip
from sgpipe.stages.caption.blip_decoder import RecordedCaptions
from sgpipe.stages.caption.stage import CaptionStage
from tests.factories import make_blip
from tests.simulated_gpu.device import counts
from tests.simulated_gpu.test_budgets import IMAGES, images, record, refuse
from tests.values import values_of

GROUP = 3
Captions = list[list[str]]


def on_gpu(*values: float) -> Tensor:
    return torch.tensor(values).to("cuda")


def test_it_computes_what_a_cpu_does_and_counts_launches_and_waits() -> None:
    values = torch.randn(3, 4)
    weights = torch.randn(5, 4)
    pinned = values.pin_memory().to("cuda", non_blocking=True)
    moved = weights.to("cuda").requires_grad_()  # a wait: not from pinned memory
    product = torch.nn.functional.linear(pinned[1:], moved)
    product.square().sum().backward()
    assert moved.grad is not None
    assert (product.device.type, moved.grad.device.type) == ("cuda", "cuda")
    assert counts.waits.total() == 1
    before = counts.launches.total()
    assert pinned[1:].T.shape == (4, 2)
    assert counts.launches.total() == before  # views
    # a wait
    assert torch.equal(product.detach().cpu(), torch.nn.functional.linear(values[1:], weights))
    gradient = 2 * (values[1:] @ weights.T).T.mm(values[1:])
    assert float(moved.grad.sum()) == pytest.approx(float(gradient.sum()), rel=1e-4)
    # a wait for its shape, and before it for a number
    rows = moved.detach()[moved.detach()[:, 0] > 0]
    assert len(rows) == int((weights[:, 0] > 0).sum())
    assert [why.partition(" at ")[0] for why in counts.waits.elements()] == [
        "a copy to the GPU", "a copy from the GPU", "the value of _local_scalar_dense", "the shape of index",
    ]  # fmt: skip


def test_devices_are_not_mixed_and_autocast_is_that_of_a_gpu() -> None:
    with pytest.raises(RuntimeError, match="tensors on cuda:0 and cpu"):
        torch.zeros(3, device="cuda") + torch.zeros(3)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        assert (
            torch.zeros(2, 3, device="cuda").mm(torch.zeros(3, 2, device="cuda")).dtype
            == torch.bfloat16
        )
        assert torch.zeros(2, 3).mm(torch.zeros(3, 2)).dtype == torch.float32


def test_a_graph_computes_nothing_until_it_is_replayed_on_what_is_then_in_its_memory() -> None:
    values = on_gpu(1.0, 2.0)
    total = on_gpu(0.0, 0.0)
    graphs = [torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()]
    pool = torch.cuda.graph_pool_handle()
    with torch.cuda.graph(graphs[0], pool=pool):
        total += values
        doubled = (2 * values)[:1]
    with torch.cuda.graph(graphs[1], pool=pool):
        seen = doubled + 1
    assert total.tolist() == [0, 0]
    assert doubled.isnan().all()
    for number in (1, 2):
        values.copy_(number * on_gpu(10, 20))
        before = counts.launches.total()
        for graph in graphs:
            graph.replay()
        assert counts.launches.total() == before + 2
        assert (doubled.tolist(), seen.tolist()) == ([20 * number], [20 * number + 1])
    assert total.tolist() == [30, 60]


@pytest.mark.parametrize("forbidden", [
    lambda values: values.tolist(), lambda values: bool(values.any()), lambda values: on_gpu(3),
    lambda values: torch.ones(1).pin_memory(), lambda values: ThreadPoolExecutor(1).submit(lambda: values + 1).result(),
], ids=["copy", "value", "host data", "pinned memory", "thread"])  # fmt: skip
def test_what_a_gpu_cannot_record_raises(forbidden: Callable[[Tensor], object]) -> None:
    values = on_gpu(1, 2)
    message = r"not permitted when stream is capturing|another thread captures"
    with pytest.raises(RuntimeError, match=message), torch.cuda.graph(torch.cuda.CUDAGraph()):
        forbidden(values)


def test_an_input_must_be_kept() -> None:
    graph = torch.cuda.CUDAGraph()
    values = on_gpu(1, 2)
    with torch.cuda.graph(graph):
        _ = values + 1
    graph.replay()
    del values
    with pytest.raises(RuntimeError, match="an input of the graph is gone"):
        graph.replay()


def spy(patch: pytest.MonkeyPatch, owner: Any, name: str, see: Callable[..., Any]) -> list[Any]:
    """Return what `see` returns for the arguments of each call of a method, before it."""
    seen = []
    method = getattr(owner, name)

    def call(*arguments: object, **named: Any) -> Any:
        seen.append(see(*arguments))
        return method(*arguments, **named)

    patch.setattr(owner, name, call)
    return seen


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = images(tmp_path_factory.mktemp("captions"))
    make_blip(root / "blip", seed=3)
    return root


@pytest.fixture(autouse=True)
def _groups_of_three(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blip, "GPU_GROUP", GROUP)


def captions(
    folder: Path,
    dtype: str = "auto",
    prepare: Callable[[Any], None] = lambda captioner: None,
    count: int = 22,
) -> tuple[Captions, Any]:
    """Of two calls for four groups, the last not full, of other images; by the captioner after
    `prepare`, with it.
    """
    config = CaptionConfig(
        captioner=str(folder / "blip"), device="cuda", dtype=dtype, samples=4, max_tokens=18
    )
    stage = CaptionStage(config, {"val": folder}, 0)
    stage.setup()
    prepare(stage.captioner)
    images = [replace(record(at % IMAGES), image_id=str(at)) for at in range(count)]
    processed = [*stage(images[:11]), *stage(images[11:])]
    return [values_of(captioned.captions, "text") for captioned in processed], stage


@pytest.fixture(scope="module")
def ordinary(folder: Path) -> dict[str, Captions]:
    """Captions without graphs, by dtype."""
    counts.clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(blip, "GPU_GROUP", GROUP)
        patch.setattr(torch.cuda, "graph", refuse)
        by_dtype = {dtype: captions(folder, dtype) for dtype in ("float32", "bfloat16")}
    for _, stage in by_dtype.values():
        assert stage.gpu_use()["graph_error"] == "operation not permitted when stream is capturing"
    assert counts.launches["graph"] == 0
    return {dtype: of_dtype for dtype, (of_dtype, _) in by_dtype.items()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captions_with_and_without_graphs_are_equal(
    folder: Path, dtype: str, ordinary: dict[str, Captions]
) -> None:
    counts.clear()
    captioned, stage = captions(folder, dtype)
    assert captioned == ordinary[dtype]
    assert len({text for texts in captioned for text in texts}) > 60
    assert counts.launches["graph"] > 8
    assert "graph_error" not in stage.gpu_use()


@pytest.mark.parametrize(("count", "encoded"), [(1, [1]), (3, [3]), (8, [3, 3, 3, 2])])
def test_the_second_full_group_is_recorded(folder: Path, count: int, encoded: list[int]) -> None:
    """Fewer images cost what they cost without graphs."""
    with pytest.MonkeyPatch.context() as patch:
        sizes = spy(patch, blip.BlipCaptioner, "encode", lambda _, pixels: len(pixels))
        _, stage = captions(folder, count=count)
    assert sizes == encoded
    assert (stage.captioner.recorded is not None) == (count > GROUP)


def test_a_nucleus_wider_than_its_graphs_records_others(
    folder: Path, ordinary: dict[str, Captions]
) -> None:
    def narrow(captioner: Any) -> None:
        captioner.decoder.width = 2
        captioner.full_groups[GROUP, 2] = 1

    with pytest.MonkeyPatch.context() as patch:
        recordings = spy(patch, RecordedCaptions, "__init__", lambda _, decoder, *__: decoder.width)
        streams = spy(patch, torch.cuda.Stream, "__init__", lambda *_: None)
        captioned, stage = captions(folder, prepare=narrow)
    assert captioned == ordinary["bfloat16"]
    assert recordings[0] == 2
    assert recordings[1:] == [stage.captioner.decoder.width]
    assert len(streams) == 1


def full(*_: object, **__: object) -> None:
    raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_a_recording_that_does_not_fit_is_tried_once(
    folder: Path, ordinary: dict[str, Captions]
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        recordings = spy(patch, RecordedCaptions, "__init__", lambda *_: None)
        patch.setattr(torch.cuda, "graph", full)
        captioned, stage = captions(folder)
    assert captioned == ordinary["bfloat16"]
    assert (len(recordings), stage.captioner.recorded) == (1, None)
    assert stage.captioner.uses_graphs
    assert "graph_error" not in stage.gpu_use()


def test_graphs_of_groups_that_do_not_fit_are_of_smaller_ones(folder: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        spy(patch, blip.BlipCaptioner, "encode", lambda _, pixels: len(pixels) < GROUP or full())
        captioned, stage = captions(folder)
    assert len(captioned) == 22
    assert stage.captioner.recorded.of == (1, stage.captioner.decoder.width)


def test_graphs_make_room_for_a_group_that_does_not_fit(
    folder: Path, ordinary: dict[str, Captions]
) -> None:
    replayed: WeakSet[RecordedCaptions] = WeakSet()
    with pytest.MonkeyPatch.context() as patch:
        spy(patch, RecordedCaptions, "replay", lambda recorded, *_: replayed.add(recorded))
        spy(patch, blip.BlipCaptioner, "encode", lambda *_: full() if replayed else None)
        captioned, stage = captions(folder)
    assert captioned == ordinary["bfloat16"]
    assert (stage.captioner.recorded, stage.captioner.memory.batch_size) == (None, GROUP)


def test_what_keeps_the_tensors_of_graphs_is_closed_last(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When Python has cleared its modules."""
    _, stage = captions(folder)
    monkeypatch.setattr("torch.autograd.grad_mode.torch", None)
    stage.captioner.recorded._generator.close()
