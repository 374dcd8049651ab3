"""Versions and number formats, and what differs between two computations."""

import pytest
import torch

from sgpipe.utils import numerics
from sgpipe.utils.numerics import (
    gpu_numerics,
    machine_software,
    numerics_changes,
    package_versions,
    unequal_libraries,
    unequal_protocols,
)


def test_versions_are_those_of_the_libraries_that_are_imported() -> None:
    versions = package_versions()
    assert set(versions) == {"torch", "transformers", "tokenizers"}
    assert torch.__version__.startswith(versions["torch"].partition("+")[0])


def test_a_library_that_is_not_installed_has_no_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(numerics, "PACKAGES", ("no-such-library",))
    assert package_versions() == {"no-such-library": "unknown"}


def test_a_cpu_states_its_number_format_alone() -> None:
    cpu = torch.device("cpu")
    assert gpu_numerics(cpu) == {}
    assert numerics.numerics(cpu, "float32") == {**package_versions(), "dtype": "float32"}


def test_a_gpu_states_its_driver_and_number_formats(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "H100")
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(numerics, "_driver_version", lambda: "580.95")
    values = gpu_numerics(torch.device("cuda"))
    assert values["gpu"] == "H100"
    assert values["cuda"] == "13.0"
    assert values["driver"] == "580.95"
    assert values["tf32"] in ("on", "off")


@pytest.mark.parametrize(
    ("before", "now", "changes"),
    [
        ({"torch": "2.12"}, {"torch": "2.12", "cuda": "13.0"}, ""),
        ({"torch": "2.12"}, {"torch": "2.13"}, "torch 2.12 then, 2.13 now"),
        ({"gpu": "H100", "cuda": "13.0"}, {}, "GPU H100 then, none now"),
        (
            {"driver": "570", "tf32": "off", "memory": 5},
            {"driver": "580", "tf32": "on", "memory": 6},
            "driver 570 then, 580 now; TF32 off then, on now",
        ),
        ({}, {"torch": "2.13"}, ""),
    ],
)
def test_what_differs_is_named(before: dict[str, str], now: dict[str, str], changes: str) -> None:
    assert numerics_changes(before, now) == changes


def test_a_process_without_a_gpu_has_no_cuda_and_no_driver() -> None:
    software = machine_software(has_gpu=False)
    assert set(software) == {"sgpipe", "Python", "torch", "transformers", "tokenizers"}


def test_a_process_with_a_gpu_has_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(numerics, "_driver_version", lambda: "580.95.05")
    software = machine_software(has_gpu=True)
    assert (software["CUDA"], software["driver"]) == ("13.0", "580.95.05")


@pytest.mark.parametrize(
    ("software", "reference", "libraries", "protocols"),
    [
        ({"torch": "2.12.0"}, {"torch": "2.12.1+cu130"}, "", ""),
        ({"torch": "2.12.0"}, {"torch": "2.13.0"}, "torch 2.12.0 (others 2.13.0)", ""),
        ({"torch": "2.12.0"}, {"torch": "3.12.0"}, "torch 2.12.0 (others 3.12.0)", ""),
        ({"driver": "570.86.10", "CUDA": "12.8"}, {}, "", ""),
        (
            {"tokenizers": "0.22", "driver": "570.86.10"},
            {"tokenizers": "0.21", "driver": "580.95.05"},
            "tokenizers 0.22 (others 0.21), driver 570.86.10 (others 580.95.05)",
            "",
        ),
        ({"Python": "3.12.1"}, {"Python": "3.12.9"}, "", ""),
        ({"Python": "3.11.9"}, {"Python": "3.12.9"}, "", "Python 3.11.9 (others 3.12.9)"),
        ({"sgpipe": "0.2.0"}, {"sgpipe": "0.2.1"}, "", "sgpipe 0.2.0 (others 0.2.1)"),
    ],
)
def test_versions_that_machines_should_share_are_compared(
    software: dict[str, str], reference: dict[str, str], libraries: str, protocols: str
) -> None:
    assert unequal_libraries(software, reference) == libraries
    assert unequal_protocols(software, reference) == protocols
