"""What decides the last digits of results besides models and inputs: versions of libraries, the GPU
and its driver, and number formats.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sgpipe.utils import __version__

if TYPE_CHECKING:
    import torch

UNKNOWN = "unknown"
PACKAGES = ("torch", "transformers", "tokenizers")
_DRIVER = Path("/sys/module/nvidia/version")
# What decodes what machines send each other; everything else that they have only rounds otherwise.
_PROTOCOL = ("sgpipe", "Python")
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


def machine_software(has_gpu: bool) -> dict[str, str]:
    """Return what machines of a cluster should have in common, by name, as far as it is known: the
    versions of sgpipe, Python and the libraries that compute.

    Args:
        has_gpu: whether this process computes on a GPU, so that CUDA and its driver belong to it.
    """
    software = {"sgpipe": __version__, "Python": platform.python_version(), **package_versions()}
    if has_gpu:
        import torch

        software["CUDA"] = str(torch.version.cuda or torch.version.hip)
        software["driver"] = _driver_version()
    return {name: version for name, version in software.items() if version != UNKNOWN}


def unequal_protocols(software: Mapping[str, str], reference: Mapping[str, str]) -> str:
    """Return in a line with what a machine cannot read the units of others, as
    `unequal_libraries`.

    sgpipe has to be of the same version, Python of the same major and minor version.
    """
    unequal = [name for name in _PROTOCOL if _is_unequal(name, software, reference)]
    return _with_versions(unequal, software, reference)


def unequal_libraries(software: Mapping[str, str], reference: Mapping[str, str]) -> str:
    """Return in a line which libraries, CUDA or driver of a machine have another major or minor
    version than those of the others, such as "torch 2.12.0 (others 2.13.1)"; empty: none.

    Args:
        software: as `machine_software` returns it.
        reference: the same of another machine. What only one of the two has is not compared.
    """
    unequal = [
        name
        for name in software
        if name not in _PROTOCOL and _is_unequal(name, software, reference)
    ]
    return _with_versions(unequal, software, reference)


def _is_unequal(name: str, software: Mapping[str, str], reference: Mapping[str, str]) -> bool:
    if name not in software or name not in reference:
        return False
    if name == "sgpipe":
        return software[name] != reference[name]
    return _major_and_minor(software[name]) != _major_and_minor(reference[name])


def _major_and_minor(version: str) -> list[str]:
    """Such as ["2", "13"] of "2.13.0+cu126"."""
    return version.partition("+")[0].split(".")[:2]


def _with_versions(
    names: Iterable[str], software: Mapping[str, str], reference: Mapping[str, str]
) -> str:
    return ", ".join(f"{name} {software[name]} (others {reference[name]})" for name in names)


def _driver_version() -> str:
    """Return the version of NVIDIA's driver, where the system tells it."""
    try:
        return _DRIVER.read_text(encoding="ascii").strip()
    except OSError:
        return UNKNOWN
