"""What decides the last digits of results besides models and inputs: versions of libraries, the GPU
and its driver, and number formats.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

UNKNOWN = "unknown"
PACKAGES = ("torch", "transformers", "tokenizers")
_DRIVER = Path("/sys/module/nvidia/version")
# With their names in messages; other facts of a GPU, such as the memory in use, change nothing.
_NAMES = {
    "torch": "torch",
    "transformers": "transformers",
    "tokenizers": "tokenizers",
    "gpu": "GPU",
    "cuda": "CUDA",
    "driver": "driver",
    "tf32": "TF32",
    "dtype": "dtype",
}


def package_versions() -> dict[str, str]:
    """Return the versions of libraries that compute, without importing them."""
    from importlib.metadata import PackageNotFoundError, version

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = UNKNOWN
    return versions


def gpu_numerics(device: torch.device) -> dict[str, str]:
    """Return what a GPU computes with, by name; nothing of a CPU."""
    import torch

    if device.type != "cuda":
        return {}
    has_tf32 = torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32
    return {
        "gpu": torch.cuda.get_device_name(device),
        "cuda": str(torch.version.cuda or torch.version.hip),
        "driver": _driver_version(),
        "tf32": "on" if has_tf32 else "off",
    }


def numerics(device: torch.device, dtype: str) -> dict[str, str]:
    """Return all that this module is about, for computing on a device in a number format."""
    return {**package_versions(), **gpu_numerics(device), "dtype": dtype}


def numerics_changes(before: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return in a line what differs, such as "torch 2.12.0 then, 2.13.0 now"; empty: nothing.

    What only one of the two has, such as the driver of a GPU, is left out, but for the GPU itself.
    """
    before = {"gpu": "none", **before}
    now = {"gpu": "none", **now}
    changes = []
    for key, name in _NAMES.items():
        if key in before and key in now and before[key] != now[key]:
            changes.append(f"{name} {before[key]} then, {now[key]} now")
    return "; ".join(changes)


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, where the system tells it."""
    try:
        return _DRIVER.read_text(encoding="ascii").strip()
    except OSError:
        return UNKNOWN
