"""The memory of a GPU: copies to it, and telling a full one from other errors."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_OTHER_WORDS = (
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor to a device. The host does not wait for a GPU, which copies from pinned memory
    when it is free.
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def send_all(tensors: Sequence[Tensor], device: torch.device | str) -> list[Tensor]:
    """Copy many tensors to a GPU, or all from one to the CPU, those of one type together; see
    `send`.
    """
    device = torch.device(device)
    if device.type != "cuda" and not any(tensor.is_cuda for tensor in tensors):
        return [tensor.to(device) for tensor in tensors]
    by_dtype: defaultdict[torch.dtype, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        by_dtype[tensor.dtype].append(tensor)
    copies = {dtype: _send_together(group, device) for dtype, group in by_dtype.items()}
    return [next(copies[tensor.dtype]) for tensor in tensors]


def _send_together(tensors: Sequence[Tensor], device: torch.device) -> Iterator[Tensor]:
    """Copy tensors of one type in one piece."""
    copy = send(torch.cat([tensor.flatten() for tensor in tensors]), device)
    parts = copy.split([tensor.numel() for tensor in tensors])
    return map(Tensor.view_as, parts, tensors)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of a GPU is full.

    PyTorch's allocator has an error of its own; CUDA, cuBLAS and cuDNN allocate memory beside it.
    """
    if isinstance(error, torch.cuda.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in _OTHER_WORDS)
