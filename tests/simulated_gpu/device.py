"""A simulated GPU: tensors on "cuda:0" that compute on the CPU, and a count of what the host does
for a real one.

Mixing devices raises. An operation that is no view counts as one launch of a kernel, also fused
attention and one over a list of tensors. The host waits where it reads a number or a shape that
depends on numbers, and where it copies, unless from pinned memory with `non_blocking`. There are no
kernels and memory, and one stream; `torch.compile` compiles nothing. PyTorch goes other ways for
these tensors, as in the gradient of `prod`, in which the host waits for a GPU.

A CUDA graph records operations with their arguments and results, and computes nothing meanwhile:
what they would have changed is restored, what they made is filled with NaN or 0. To wait, to pin
memory or to compute in another thread then raises. A replay, one launch, computes each operation
again, into the same memory; an input must still be there.
"""

from __future__ import annotations

import ctypes
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from threading import get_ident, local
from types import FrameType
from typing import Any
from unittest import mock
from weakref import WeakValueDictionary, ref

LIBRARY = Path(__file__).with_name("build") / "guard.so"
assert "torch" not in sys.modules, "PyTorch asks for devices when it is imported"
ctypes.CDLL(str(LIBRARY), mode=ctypes.RTLD_GLOBAL)

import torch  # noqa: E402
import torch.nn.functional as F  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import (  # noqa: E402
    TorchDispatchMode,
    return_and_correct_aliasing,
)
from torch.utils._pytree import tree_leaves, tree_map  # noqa: E402

_ALLOCATE = {
    "empty",
    "empty_like",
    "new_empty",
    "empty_strided",
    "new_empty_strided",
    "_unsafe_view",
    "resize_",
}
_SHAPE_DEPENDS_ON_NUMBERS = {"nms"}  # operators outside PyTorch have no tags
_INDEXING = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "_unsafe_index_put",
}
_ROOTS = ("/sgpipe/", "/rlip_model/")
_thread = local()  # `is_fused`: within an operation that is one kernel
_pinned: WeakValueDictionary[int, Any] = WeakValueDictionary()  # storages by address
_submit = ThreadPoolExecutor.submit


@dataclass
class Counts:
    """launches: of kernels, by operation; waits: of the host for the GPU, by what it waits for and
    the line.
    """

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)

    def clear(self) -> None:
        self.launches.clear()
        self.waits.clear()

    def wait(self, why: str) -> None:
        _forbid_while_recording(why)
        self.waits[f"{why} at {_line()}"] += 1


def _line() -> str:
    """Where the project is."""
    frame: FrameType | None = sys._getframe()
    while frame and (
        not any(root in frame.f_code.co_filename for root in _ROOTS)
        or "site-packages" in str(frame)
    ):
        frame = frame.f_back
    return f"{frame.f_code.co_filename.rpartition('/')[2]}:{frame.f_lineno}" if frame else "a test"


counts = Counts()


class GpuTensor(Tensor):
    """A tensor that says "cuda:0"; `values` is on the CPU."""

    values: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, values: Tensor) -> GpuTensor:
        wrapper_subclass = Tensor._make_wrapper_subclass(
            cls, values.shape, strides=values.stride(), storage_offset=values.storage_offset(), dtype=values.dtype,
            layout=values.layout, device="cuda:0",
        )  # fmt: skip
        wrapper_subclass.values = values
        return wrapper_subclass

    def __repr__(self) -> str:
        return f"GpuTensor({self.values!r})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


class _Simulation(TorchDispatchMode):
    """Sees operations whose tensors are all on the CPU, such as copies to the GPU, and those that
    make tensors.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(func, args, kwargs or {})


def _compute(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    name: str = func.overloadpacket.__name__
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    on_gpu = any(isinstance(tensor, GpuTensor) for tensor in tensors)
    target = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    if not on_gpu and target != "cuda":
        return func(*args, **kwargs)
    if on_gpu and name not in ("copy_", "_to_copy"):
        _check_devices(name, tensors)
    _count(func, name, args, kwargs, target)
    on_cpu = {**tree_map(_values, kwargs), **({"device": torch.device("cpu")} if target else {})}
    on_cpu.pop("pin_memory", None)
    if name == "_fused_sdp_choice":
        return 0  # the plain computation, as the choice of fused ones needs a GPU
    on_cpu_args = tree_map(_values, args)
    graph = _recording(name)
    if graph is not None:
        graph.before(func, on_cpu_args)
    result = func(*on_cpu_args, **on_cpu)
    if graph is not None:
        graph.after(
            func,
            on_cpu_args,
            on_cpu,
            result,
            [tensor for tensor in tensors if isinstance(tensor, GpuTensor)],
        )
    if name == "copy_" and not isinstance(args[0], GpuTensor):
        return args[0]
    if target == "cpu" or name == "_local_scalar_dense":
        return result
    result = tree_map(lambda item: GpuTensor(item) if isinstance(item, Tensor) else item, result)
    return return_and_correct_aliasing(func, args, kwargs, result) if on_gpu else result


def _values(leaf: Any) -> Any:
    return leaf.values if isinstance(leaf, GpuTensor) else leaf


def _check_devices(name: str, tensors: list[Tensor]) -> None:
    """A GPU takes numbers, and indices, from the CPU; the host waits for the copy of the latter."""
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, GpuTensor) and tensor.dim()]
    if on_cpu and name not in _INDEXING:
        raise RuntimeError(
            f"{name}: tensors on cuda:0 and cpu, {[tuple(other.shape) for other in on_cpu]}"
        )
    if on_cpu:
        counts.wait("a copy of indices")


def _count(
    func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], target: str | None
) -> None:
    source = args[1 if name == "copy_" else 0] if args else None
    crosses = (
        name == "_to_copy"
        and target is not None
        and isinstance(source, GpuTensor) != (target == "cuda")
    )
    crosses |= name == "copy_" and isinstance(args[0], GpuTensor) != isinstance(source, GpuTensor)
    if crosses:
        host = source if not isinstance(source, GpuTensor) else args[0] if name == "copy_" else None
        is_asynchronous = kwargs.get("non_blocking") or (
            name == "copy_" and len(args) > 2 and args[2]
        )
        if not (is_asynchronous and is_pinned(host)):
            counts.wait(f"a copy {'from' if isinstance(source, GpuTensor) else 'to'} the GPU")
    elif torch.Tag.data_dependent_output in func.tags:
        counts.wait(f"the value of {name}")
    elif (
        torch.Tag.dynamic_output_shape in func.tags or name in _INDEXING | _SHAPE_DEPENDS_ON_NUMBERS
    ):
        masks = [
            leaf
            for leaf in tree_leaves(args[1:2])
            if isinstance(leaf, Tensor) and leaf.dtype == torch.bool
        ]
        if (name not in _INDEXING or masks) and kwargs.get("output_size") is None:
            counts.wait(f"the shape of {name}")
    if not (
        func.is_view
        or name in _ALLOCATE
        or name == "_local_scalar_dense"
        or getattr(_thread, "is_fused", False)
    ):
        counts.launches["copy" if crosses else name] += 1


def is_pinned(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.untyped_storage().data_ptr() in _pinned


def _pin(tensor: Tensor) -> Tensor:
    _forbid_while_recording("pinned memory")
    copy = tensor.clone()
    _pinned[copy.untyped_storage().data_ptr()] = copy.untyped_storage()
    return copy


def _fused(function: Callable[..., Any]) -> Callable[..., Any]:
    """One kernel."""

    def run(query: Tensor, *args: object, **kwargs: Any) -> Any:
        if not isinstance(query, GpuTensor) or getattr(_thread, "is_fused", False):
            return function(query, *args, **kwargs)
        counts.launches[function.__name__] += 1
        _thread.is_fused = True
        try:
            return function(query, *args, **kwargs)
        finally:
            _thread.is_fused = False

    return run


class Stream:
    """`torch.cuda.Stream`; all are one."""

    def __init__(self, device: torch.device | None = None) -> None:
        pass

    def wait_stream(self, other: Stream) -> None:
        pass


class Graph:
    """`torch.cuda.CUDAGraph`."""

    def __init__(self) -> None:
        self._operations: list[tuple[Any, Any, Any, list[tuple[int, Tensor]]]] = []
        self._inputs: dict[int, list[ref[GpuTensor]]] = {}
        # storages that graphs made which are replayed before it, and it, by address
        self.pool: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def before(self, func: Any, args: Any) -> None:
        """Keep what an operation is about to overwrite."""
        for argument, argument_value in zip(func._schema.arguments, args, strict=False):
            if (
                argument.alias_info is not None
                and argument.alias_info.is_write
                and isinstance(argument_value, Tensor)
            ):
                storage = argument_value.untyped_storage()
                self._before.setdefault(storage.data_ptr(), (storage, storage.clone()))

    def after(
        self, func: Any, args: Any, kwargs: Any, result: Any, inputs: list[GpuTensor]
    ) -> None:
        """Record an operation; its results that are no views are computed again."""
        known = {_address(leaf) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        for value in inputs:
            address = _address(value.values)
            if address not in self.pool:
                self._inputs.setdefault(address, []).append(ref(value))
        outputs = [
            (at, leaf) for at, leaf in enumerate(tree_leaves(result)) if isinstance(leaf, Tensor)
        ]
        outputs = [(at, value) for at, value in outputs if _address(value) not in known]
        self.pool |= {_address(value) for _, value in outputs}
        self._operations.append((func, args, kwargs, outputs))

    def end(self) -> None:
        """Let it be as if nothing had been computed."""
        for storage, saved in self._before.values():
            storage.copy_(saved)
        self._before.clear()
        for *_, outputs in self._operations:
            for _, leaf in outputs:
                leaf.fill_(torch.nan if leaf.is_floating_point() else 0)

    def replay(self) -> None:
        counts.launches["graph"] += 1
        if not all(
            any(leaf() is not None for leaf in of_storage) for of_storage in self._inputs.values()
        ):
            raise RuntimeError("an input of the graph is gone")
        for func, args, kwargs, outputs in self._operations:
            results = tree_leaves(func(*args, **kwargs))
            for at, leaf in outputs:
                leaf.copy_(results[at])


_capture: list[tuple[Graph, int]] = []  # that is underway, and its thread


@contextmanager
def record(graph: Graph, pool: set[int] | None = None, **_: object) -> Iterator[None]:
    """`torch.cuda.graph`."""
    graph.pool = graph.pool if pool is None else pool
    if _capture:
        raise RuntimeError("two captures at once")
    _capture.append((graph, get_ident()))
    try:
        yield
    finally:
        _capture.clear()
        graph.end()


def _recording(name: str) -> Graph | None:
    if _capture and _capture[0][1] != get_ident():
        raise RuntimeError(f"{name} while another thread captures")
    return _capture[0][0] if _capture else None


def _forbid_while_recording(operation: str) -> None:
    if _capture and _capture[0][1] == get_ident():
        raise RuntimeError(
            f"operation not permitted when stream is capturing: {operation} at {_line()}"
        )


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _submit_simulated(
    pool: ThreadPoolExecutor, function: Callable[..., Any], /, *args: object, **kwargs: Any
) -> Any:
    def run() -> Any:
        torch._C._set_only_lift_cpu_tensors(True)
        with _Simulation():
            return function(*args, **kwargs)

    return _submit(pool, run)


def _read_numbers(values: Any) -> Any:
    """As `torch.tensor` of a list with tensors of a GPU: the host waits for each of these."""
    if isinstance(values, GpuTensor) and not values.dim():
        return values.item()
    return list(map(_read_numbers, values)) if isinstance(values, list | tuple) else values


def _no_grad(mode: bool = True) -> torch.no_grad:
    return torch.no_grad()


@contextmanager
def simulated() -> Iterator[Counts]:
    """Simulate one GPU in this thread and in those of pools that get work meanwhile."""
    future = torch.__future__
    tolist = Tensor.tolist
    tensor_of = torch.tensor
    device: dict[str, Any] = {
        "is_available": True, "is_initialized": True, "device_count": 1, "current_device": 0, "utilization": 0,
        "get_device_capability": (9, 0), "get_device_name": "simulated", "is_bf16_supported": True,
        "max_memory_reserved": 0, "max_memory_allocated": 0, "mem_get_info": (10**11, 10**11),
        **dict.fromkeys(("synchronize", "empty_cache", "_lazy_init", "manual_seed_all")),
        "current_stream": Stream(), "stream": nullcontext(),
    }  # fmt: skip
    patches = [
        *(mock.patch.object(torch.cuda, name, lambda *_, value=value, **__: value) for name, value in device.items()),
        mock.patch.object(Tensor, "pin_memory", _pin), mock.patch.object(Tensor, "is_pinned", is_pinned),
        mock.patch.object(torch, "tensor", lambda values, **options: tensor_of(_read_numbers(values), **options)),
        mock.patch.object(Tensor, "tolist", lambda tensor: tolist(tensor.cpu())),
        mock.patch.object(F, "scaled_dot_product_attention", _fused(F.scaled_dot_product_attention)),
        mock.patch.object(ThreadPoolExecutor, "submit", _submit_simulated),
        mock.patch.object(torch, "inference_mode", _no_grad),  # whose tensors cannot be wrapped
        mock.patch.object(torch, "compile", lambda function, **_: function),
        mock.patch.object(torch.cuda, "Stream", Stream), mock.patch.object(torch.cuda, "graph_pool_handle", set),
        mock.patch.object(torch.cuda, "CUDAGraph", Graph), mock.patch.object(torch.cuda, "graph", record),
    ]  # fmt: skip
    overwrites = future.get_overwrite_module_params_on_conversion()
    with ExitStack() as stack:
        for patch in patches:
            stack.enter_context(patch)
        stack.callback(future.set_overwrite_module_params_on_conversion, overwrites)
        future.set_overwrite_module_params_on_conversion(True)
        stack.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        stack.enter_context(_Simulation())
        yield counts
