"""Versions and number formats, and what differs between two computations."""

import pytest
import torch

from sgpipe.utils import numerics
from sgpipe.utils.numerics import gpu_numerics, numerics_changes, package_versions


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
