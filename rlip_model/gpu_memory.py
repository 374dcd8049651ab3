"""The memory of a GPU: copies to it, and telling a full one from other errors."""

from __future__ import annotations

from collections.abc import Sequence

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
    if all(tensor.device.type != "cuda" for tensor in tensors) and device.type != "cuda":
        return [tensor.to(device) for tensor in tensors]
    sent: dict[int, Tensor] = {}
    for dtype in {tensor.dtype for tensor in tensors}:
        numbers = [number for number, tensor in enumerate(tensors) if tensor.dtype == dtype]
        flat = send(torch.cat([tensors[number].flatten() for number in numbers]), device)
        parts = flat.split([tensors[number].numel() for number in numbers])
        sent |= {
            number: part.view_as(tensors[number])
            for number, part in zip(numbers, parts, strict=True)
        }
    return [sent[number] for number in range(len(tensors))]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether the memory of a GPU is full.

    PyTorch's allocator has an error of its own; CUDA, cuBLAS and cuDNN allocate memory beside it.
    """
    return isinstance(error, torch.cuda.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in str(error) for words in _OTHER_WORDS)
    )
