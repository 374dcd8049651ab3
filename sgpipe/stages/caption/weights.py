"""The weights of a checkpoint, as far as their headers tell: whether they are whole, and whether they fit in memory."""

from __future__ import annotations

import json
import math
import os
import re
import struct
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import try_to_load_from_cache

from sgpipe.errors import UserError

_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_OTHERS = ("pytorch_model.bin", "pytorch_model.bin.index.json")
_LARGEST_HEADER = 100_000_000  # of the format
_GIB = 2**30
_MEMINFO, _CGROUP = Path("/proc/meminfo"), Path("/sys/fs/cgroup")


def check_weights(source: str) -> int | None:
    """The number of parameters; None if they are not on this machine yet, or in another format than safetensors.

    Raises UserError: the folder has no weights, or a file is missing, damaged or truncated.
    """
    index = _local(source, _INDEX)
    if index is not None:
        names = _shards(source, index)
    elif _local(source, _WHOLE) is not None:
        names = [_WHOLE]
    elif Path(source).is_dir() and not any(_local(source, name) for name in _OTHERS):
        raise UserError(f"captioner {source!r}: cannot load its weights: the folder has no {_WHOLE}")
    else:
        return None
    parameters = 0
    for name in names:
        file = _local(source, name)
        if file is None and Path(source).is_dir():
            raise UserError(f"captioner {source!r}: cannot load its weights: {name} is missing, which {_INDEX} names")
        if file is None:
            return None
        parameters += _count(source, file)
    return parameters


def check_memory(source: str, parameters: int, dtype: torch.dtype, device: torch.device) -> None:
    """Raises UserError: this many parameters do not fit in the free memory of the device."""
    needed, free = parameters * dtype.itemsize, free_memory(device)
    if needed <= free:
        return
    halve = f"set caption.dtype to bfloat16 ({needed / 2 / _GIB:.1f} GiB), " if dtype == torch.float32 else ""
    where = "the GPU" if device.type == "cuda" else "this machine"
    raise UserError(
        f"captioner {source!r} has {parameters / 1e9:.1f} billion parameters, {needed / _GIB:.1f} GiB in "
        f"{str(dtype).removeprefix('torch.')}, but {where} has {free / _GIB:.1f} GiB of free memory: {halve}"
        "choose a smaller captioner, or lower caption.resources.actors"
    )


def free_memory(device: torch.device) -> int:
    """Bytes of free memory of a GPU, or of the machine (a container may have less)."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if _MEMINFO.is_file():
        free = int(re.findall(r"MemAvailable:\s+(\d+) kB", _MEMINFO.read_text())[0]) * 1024
    if (most := _cgroup("memory.max", r"^(\d+)$")) is not None:
        used = (_cgroup("memory.current", r"^(\d+)$") or 0) - (_cgroup("memory.stat", r"^inactive_file (\d+)$") or 0)
        free = min(free, most - used)
    return free


def _cgroup(name: str, pattern: str) -> int | None:
    file = _CGROUP / name
    found = re.search(pattern, file.read_text(), re.MULTILINE) if file.is_file() else None
    return int(found[1]) if found else None


def _local(source: str, name: str) -> Path | None:
    """A file of the checkpoint, if it is on this machine."""
    if Path(source).is_dir():
        return file if (file := Path(source) / name).is_file() else None
    found = try_to_load_from_cache(source, name)
    return Path(found) if isinstance(found, str) else None


def _shards(source: str, index: Path) -> list[str]:
    try:
        return sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, OSError):
        raise UserError(f"captioner {source!r}: cannot load its weights: {index.name} is damaged") from None


def _count(source: str, file: Path) -> int:
    """The parameters in a safetensors file, by its header."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        try:
            if not 0 < length <= min(_LARGEST_HEADER, size):
                raise ValueError
            header: dict[str, Any] = json.loads(stream.read(length))
            tensors = [tensor for name, tensor in header.items() if name != "__metadata__"]
            expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
            parameters = sum(math.prod(tensor["shape"]) for tensor in tensors)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise UserError(f"captioner {source!r}: cannot load its weights: {file.name} is damaged") from None
    if size < expected:
        raise UserError(
            f"captioner {source!r}: cannot load its weights: {file.name} is truncated ({size:,} of {expected:,} bytes)"
        )
    return parameters
