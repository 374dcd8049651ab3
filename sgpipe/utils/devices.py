"""The device and number format of a model, by their names in a recipe. PyTorch is imported only
when it is needed.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sgpipe.errors import UserError
from sgpipe.utils.console import count

if TYPE_CHECKING:
    import torch

_ROUNDING = 1e-6
ANY_NUMBER = 2  # of workers on Ray

_VISIBLE = "CUDA_VISIBLE_DEVICES"
_DRIVERS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # of NVIDIA, of WSL, of AMD
_NAME = re.compile(r"auto|cpu|cuda(?::([0-9]{1,4}))?")


def pick_device(name: str, gpus: float | None = 0, setting: str = "device") -> torch.device:
    """Return the device called "auto" (the first GPU, else the CPU), "cpu", "cuda" or "cuda:N"; of
    a GPU after `configure_torch`.

    Args:
        gpus: how many were requested; if any, "auto" is a GPU.
        setting: its name in messages.

    Raises:
        UserError: unknown name, or a GPU that this machine or process does not have.
    """
    import torch

    number = _gpu_number(name, setting)
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        if gpus and name == "auto":
            raise UserError(
                f"a GPU is requested, but {_visible_gpus()}: set {setting} to cpu to compute"
                " without one"
            )
        return torch.device("cpu")
    if name != "auto" and (number or 0) >= torch.cuda.device_count():
        raise UserError(f"{setting} {name!r}: {_visible_gpus()}")
    device = torch.device("cuda") if number is None else torch.device("cuda", number)
    configure_torch(device)
    return device


def configure_torch(device: torch.device, cpus: float | None = None) -> None:
    """Set how this process computes: number formats, memory and threads. Every process that loads a
    model calls it, mostly by `pick_device`, before the first tensor on a GPU.

    Args:
        cpus: of this process, each of which gets a thread; None: threads stay as they are, by
            default one for each core.
    """
    import torch

    if cpus is not None:
        torch.set_num_threads(max(1, int(cpus)))
    if device.type == "cuda":
        # float32 is float32, as on a CPU; who wants speed takes bfloat16
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        # blocks of memory grow instead of being cut up
        os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")


def hide_gpus() -> None:
    """Let this process, a worker that has asked for no GPU, see none. Not every version of Ray does
    so.
    """
    os.environ[_VISIBLE] = ""


def usable_gpus() -> int:
    """Return how many GPUs PyTorch can compute on; 0 if the driver does not fit."""
    if (
        "torch" not in sys.modules
        and sys.platform == "linux"
        and not any(map(os.path.exists, _DRIVERS))
    ):
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def check_devices(device: str, gpus: float, workers: int, names: tuple[str, str]) -> None:
    """Raise UserError for a device or number of GPUs that would be ignored; `workers`: several run
    on Ray.
    """
    device_name, gpus_name = names
    if workers == 1:
        if gpus or device != "auto":
            pick_device(device, gpus, device_name)
    elif _gpu_number(device, device_name) is not None or (device == "cuda" and not gpus):
        raise UserError(
            f"{device_name} {device!r}: Ray chooses the GPU of each worker: set {gpus_name} to 1"
            " instead"
        )


def check_workers(
    nodes: Sequence[Mapping[str, Any]], workers: int, cpus: float, gpus: float
) -> str | None:
    """Refuse workers that would wait for ever; return a note if there are GPUs that they do not
    use.

    Args:
        nodes: `ray.nodes()`; each worker needs `cpus` and `gpus` on one of them.

    Raises:
        UserError: they have too few.
    """
    machines = [node["Resources"] for node in nodes if node["Alive"]]
    if sum(room_for({"CPU": cpus, "GPU": gpus}, machine) for machine in machines) < workers:
        resources = "; ".join(
            f"CPU {machine.get('CPU', 0):g}, GPU {machine.get('GPU', 0):g}" for machine in machines
        )
        needs = f"each needs CPU {cpus:g}, GPU {gpus:g}, and its machines have {resources}"
        raise UserError(
            f"Ray has no room for {count(workers, 'worker')}: {needs}; lower --workers, or what"
            " each needs"
        )
    unused = 0 if gpus else sum(machine.get("GPU", 0) for machine in machines)
    if not unused:
        return None
    return f"NOTE: Ray has GPUs ({unused:g}), but the workers use none (--gpus)"


def room_for(needs: Mapping[str, float], machine: Mapping[str, float]) -> int:
    """Return how many workers fit on an idle machine, by Ray's names of resources."""
    room = [
        int(machine.get(name, 0) / amount + _ROUNDING) for name, amount in needs.items() if amount
    ]
    gpus = needs.get("GPU", 0)
    if 0 < gpus < 1:  # a part of one GPU, never of two
        room.append(int(machine.get("GPU", 0)) * int(1 / gpus + _ROUNDING))
    return min(room, default=sys.maxsize)


def _gpu_number(name: str, setting: str) -> int | None:
    """Return the N of "cuda:N".

    Raises:
        UserError: not the name of a device.
    """
    known = _NAME.fullmatch(name)
    if known is None:
        raise UserError(f"{setting} {name!r}: expected auto, cpu, cuda or cuda:N")
    return None if known[1] is None else int(known[1])


def _visible_gpus() -> str:
    import torch

    return f"PyTorch sees {count(torch.cuda.device_count(), 'GPU')} here"


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the dtype called "float32", "bfloat16" or "auto" (bfloat16 on GPUs that have it,
    float32 elsewhere).
    """
    import torch

    if name == "auto":
        # Older GPUs only emulate bfloat16, slowly, which `torch.cuda.is_bf16_supported` does not
        # tell.
        half = device.type == "cuda" and (
            torch.version.hip or torch.cuda.get_device_capability(device) >= (8, 0)
        )
        return torch.bfloat16 if half else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16}[name]
