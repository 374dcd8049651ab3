"""The device and number format of a model, by their names in a recipe."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from sgpipe.errors import UserError
from sgpipe.utils.console import count


def pick_device(name: str) -> torch.device:
    """The device called "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N".

    Raises UserError: unknown name, or a GPU that this machine or process does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind, _, number = name.partition(":")
    if name != "cpu" and (kind != "cuda" or (":" in name and not number.isdecimal())):
        raise UserError(f"device {name!r}: expected auto, cpu, cuda or cuda:N")
    if kind == "cuda" and int(number or 0) >= torch.cuda.device_count():
        raise UserError(f"device {name!r}: PyTorch sees {count(torch.cuda.device_count(), 'GPU')} here")
    return torch.device(name)


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype called "float32", "bfloat16" or "auto" (bfloat16 on GPUs that have it, float32 elsewhere)."""
    if name == "auto":
        half = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.bfloat16 if half else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]


@contextmanager
def enough_memory(device: torch.device, remedy: str) -> Iterator[None]:
    """Raises UserError, with the remedy, if the GPU's memory is full."""
    try:
        yield
    except torch.cuda.OutOfMemoryError:
        raise UserError(f"the memory of {device} is full; {remedy}") from None
