"""Devices, their memory, functions that are compiled for shapes that recur, and Ray clusters to
join.
"""

import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from sgpipe.errors import UserError
from sgpipe.utils import gpu, ray_cluster
from sgpipe.utils.devices import (
    check_devices,
    check_workers,
    configure_torch,
    hide_gpus,
    pick_device,
    pick_dtype,
)
from sgpipe.utils.gpu import Compiled, GpuMemory, enough_memory
from sgpipe.utils.ray_cluster import tell_losses, worker_failure

FULL = (
    torch.cuda.OutOfMemoryError("CUDA out of memory"),
    torch.AcceleratorError("CUDA error: out of memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
)

NAMES = ("the.device", "the.gpus")
SIZES = ({"CPU": 2, "GPU": 1}, {"CPU": 3, "GPU": 1}, {"CPU": 3})
CALLS = 8


def test_numbered_gpus_and_other_words(monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    assert pick_device("cuda") == torch.device("cuda")
    with pytest.raises(UserError, match="'cuda:2': PyTorch sees 2 GPUs"):
        pick_device("cuda:2")
    for name in (
        "gpu",
        "",
        "cpu:0",
        "cuda:",
        "cuda:x",
        "cuda:-1",
        "cuda:²",
        "cuda:٣",
        "CUDA",
        "mps",
        "meta",
    ):
        with pytest.raises(UserError, match="expected auto, cpu, cuda or cuda:N"):
            pick_device(name)


def test_gpus_that_were_not_asked_for_are_hidden(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    hide_gpus()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(os.environ["CUDA_VISIBLE_DEVICES"]))
    with pytest.raises(UserError, match="'cuda': PyTorch sees 0 GPUs"):
        pick_device("cuda")


@pytest.mark.parametrize("full", FULL, ids=lambda error: type(error).__name__)
def test_a_batch_that_does_not_fit_is_computed_alone_then_in_halves(monkeypatch, full):
    emptied = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: emptied.append(1))
    memory = GpuMemory(torch.device("cpu"), "lower it", 2, batch_size=8)
    tried = []
    room = [4]

    def double(items):
        tried.append(len(items))
        if len(items) > room[0]:
            raise full
        room[0] = 8  # there was only the other thread's batch in the way
        return [2 * item for item in items]

    assert memory.compute(double, range(8)) == [*range(0, 16, 2)]
    assert (tried, memory.batch_size) == ([8, 8, 4, 4], 4)
    tried.clear()
    assert memory.compute(double, range(8)) == [*range(0, 16, 2)]
    assert (tried, memory.batch_size, len(emptied)) == ([8], 4, 2)  # only where one did not fit
    room[0] = 0
    with pytest.raises(UserError, match="lower it"):
        memory.compute(double, range(3))
    with pytest.raises(RuntimeError, match="a bug"), enough_memory(torch.device("cpu"), "lower it"):
        raise RuntimeError("a bug")


def test_dtypes(monkeypatch):
    assert pick_dtype("bfloat16", torch.device("cpu")) == torch.bfloat16
    assert pick_dtype("auto", torch.device("cpu")) == torch.float32
    for able in (False, True):
        monkeypatch.setattr(
            torch.cuda,
            "get_device_capability",
            lambda device, able=able: (8, 0) if able else (7, 5),
        )
        assert pick_dtype("auto", torch.device("cuda")) == (
            torch.bfloat16 if able else torch.float32
        )
        assert pick_dtype("float32", torch.device("cuda")) == torch.float32


@pytest.mark.parametrize(
    ("gpu_count", "device", "gpus", "workers", "message"),
    [
        (0, "auto", 1, 1, r"but PyTorch sees 0 GPUs here: set the\.device to cpu"),
        (0, "cuda", 0, 1, "the.device 'cuda': PyTorch sees 0 GPUs here"),
        (2, "cuda:7", 0, 1, "the.device 'cuda:7': PyTorch sees 2 GPUs here"),
        (0, "mps", 0, 3, "expected auto, cpu, cuda or cuda:N"),
        (2, "cuda:1", 1, 3, r"Ray chooses the GPU of each worker: set the\.gpus to 1 instead"),
        (2, "cuda", 0, 3, r"'cuda': Ray chooses the GPU of each worker: set the\.gpus to 1"),
        (0, "auto", 0, 1, ""),
        (0, "cpu", 1, 1, ""),
        (1, "auto", 1, 1, ""),
        (2, "cuda:1", 1, 1, ""),
        (0, "auto", 1, 8, ""),
        (0, "cuda", 1, 8, ""),  # on other machines
    ],
)
def test_gpus_that_would_be_ignored_are_refused(
    monkeypatch: pytest.MonkeyPatch,
    gpu_count: int,
    device: str,
    gpus: float,
    workers: int,
    message: str,
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpu_count)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu_count > 0)
    if not message:
        check_devices(device, gpus, workers, NAMES)
        return
    with pytest.raises(UserError, match=message) as caught:
        check_devices(device, gpus, workers, NAMES)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("workers", "cpus", "gpus", "message"),
    [
        (4, 1, 0, None),
        (2, 2, 1, None),
        (4, 1, 0.5, None),
        (
            4,
            2,
            0,
            (
                r"^Ray has no room for 4 workers: each needs CPU 2, GPU 0, .* CPU 3, GPU 0; lower"
                r" --workers, "
            ),
        ),
        (3, 1, 1, r"^Ray has no room for 3 workers: each needs CPU 1, GPU 1, .* lower --workers, "),
        (5, 0.5, 0.5, "^Ray has no room for 5 workers"),
    ],
)
def test_workers_need_room_on_single_machines(
    workers: int, cpus: float, gpus: float, message: str | None
) -> None:
    machines = [{"Alive": True, "Resources": resources} for resources in SIZES]
    machines.append({"Alive": False, "Resources": {"CPU": 99, "GPU": 99}})
    if message is None:
        note = check_workers(machines, workers, cpus, gpus)
        assert (note is None) if gpus else "Ray has GPUs (2), but the workers use none" in str(note)
        return
    with pytest.raises(UserError, match=message):
        check_workers(machines, workers, cpus, gpus)


@pytest.fixture(autouse=True)
def _nothing_compiled() -> None:
    torch._dynamo.reset()


@dataclass
class Backend:
    """Counts what it is asked to compile."""

    compiled: int = 0
    error: Exception | None = None

    def __call__(self, graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        self.compiled += 1
        if self.error is not None:
            raise self.error
        return graph.forward


@dataclass
class Position:
    number: int = 0


def scaled(values: Tensor, position: Position) -> Tensor:
    return values * 2 + position.number


def call(function: Callable[..., Tensor], rows: int, times: int = 1) -> None:
    for number in range(times):
        torch.testing.assert_close(
            function(torch.ones(rows), Position(number)), torch.full((rows,), 2.0 + number)
        )


def test_a_shape_is_compiled_when_it_recurs() -> None:
    backend = Backend()
    function = Compiled(scaled, CALLS, backend)
    for rows in range(1, 20):
        call(function, rows)
    call(function, 3, CALLS - 1)
    assert backend.compiled == 0
    call(function, 3)
    assert (backend.compiled, function.failure) == (1, "")
    for rows in range(3, 12):
        for _ in range(CALLS + 4):
            function(torch.ones(rows), Position())
    assert backend.compiled == gpu._MOST_SHAPES  # only a few


@pytest.mark.parametrize("reason", ["no compiler\nand a page of advice", ""])
def test_without_a_compiler_everything_runs_as_it_is(reason: str) -> None:
    backend = Backend(error=RuntimeError(reason))
    function = Compiled(scaled, backend=backend)
    call(function, 2, 20)
    assert (backend.compiled, function.failure.count("\n")) == (1, 0)
    assert function.failure
    assert "no compiler" in function.failure or not reason


def test_threads_compute_without_it_while_one_compiles() -> None:
    compiles = Event()
    go_on = Event()

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


def test_what_a_cluster_loses_is_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list[str]()
    alive = [True, True, False]
    head = [True]

    def check_port(address: str) -> None:
        assert address == "head:6379"
        if not head[0]:
            raise OSError

    nodes = lambda: [{"Alive": is_alive} for is_alive in alive]  # noqa: E731
    context = SimpleNamespace(gcs_address="head:6379")
    monkeypatch.setitem(
        sys.modules, "ray", SimpleNamespace(nodes=nodes, get_runtime_context=lambda: context)
    )
    monkeypatch.setattr(ray_cluster, "_check_port", check_port)
    losses = tell_losses(lines.append)
    for alive[0], head[0] in (
        (True, True),
        (True, True),
        (False, True),
        (False, True),
        (False, False),
        (False, False),
    ):
        next(losses)
    next(losses)
    assert lines[:1] == [
        "NOTE: Ray has lost 1 machine; others take over the units in progress there"
    ]
    assert [line.partition(";")[0] for line in lines[1:]] == [
        "NOTE: the head of Ray does not answer",
        "Committed work is kept",
    ]


def test_the_innermost_error_is_told():
    for text, expected in (
        (
            "ray.exceptions.UserCodeException: UDF failed\n  File\nstruct.error: 4 bytes\n\nAnd",
            "struct.error: 4 bytes",
        ),
        ("something\nelse", "something"),
        ("ValueError: bad", "ValueError: bad"),
    ):
        assert worker_failure(RuntimeError(text)) == f"a worker failed: {expected}"


@pytest.mark.parametrize(
    ("address", "has_token", "is_open", "mode", "own_token"),
    [
        (None, False, None, "token", True), (None, True, None, "token", False),
        ("head:6379", False, True, "disabled", False), ("head:6379", True, True, "disabled", False),
        ("head:6379", True, False, "token", False),
    ],
)  # fmt: skip
def test_a_token_is_presented_only_where_one_is_needed(
    address, has_token, is_open, mode, own_token, tmp_path, monkeypatch
):
    """A local Ray has its own in memory; one of this machine must not keep it out of an open
    cluster.
    """
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.setenv(name, "")  # so that what is set here is undone
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    monkeypatch.setattr(ray_cluster, "_check_port", lambda address: None)
    monkeypatch.setattr(
        ray_cluster, "_answers", lambda address, mode: (mode == "disabled") == is_open
    )
    if has_token:
        (tmp_path / ".ray").mkdir()
        (tmp_path / ".ray" / "auth_token").write_text("a" * 64)
    ray_cluster.prepare_ray(address)
    assert os.environ.get("RAY_AUTH_MODE") == mode
    assert len(os.environ.get("RAY_AUTH_TOKEN", "")) == 64 * own_token


@pytest.fixture
def tf32() -> Iterator[None]:
    """TF32 is on, as somebody may have set it."""
    matmul = torch.backends.cuda.matmul
    before = matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    yield
    matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def test_every_process_that_computes_has_the_same_settings(
    monkeypatch: pytest.MonkeyPatch, tf32: None
) -> None:
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF")
    threads = torch.get_num_threads()
    configure_torch(torch.device("cpu"))
    assert torch.get_num_threads() == threads
    assert torch.backends.cuda.matmul.allow_tf32
    configure_torch(torch.device("cuda"), cpus=2.5)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(threads)
    assert not torch.backends.cuda.matmul.allow_tf32
    assert not torch.backends.cudnn.allow_tf32
    assert os.environ["PYTORCH_ALLOC_CONF"] == "expandable_segments:True"
