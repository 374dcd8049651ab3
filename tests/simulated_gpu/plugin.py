"""A pytest plugin, for `make test-simulated-gpu`: tests run with the simulated GPU, and are skipped
without g++.
"""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
REASON = "" if shutil.which("g++") else "the simulated GPU needs g++"


def build() -> None:
    """Compile guard.cpp with the headers of the installed PyTorch, unless that was done for this
    version.
    """
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    torch = Path(spec.origin).parent
    library = FOLDER / "build" / "guard.so"
    version = FOLDER / "build" / "version"
    wanted = (torch / "version.py").read_text() + (FOLDER / "guard.cpp").read_text()
    if library.exists() and version.exists() and version.read_text() == wanted:
        return
    library.parent.mkdir(exist_ok=True)
    options = [
        "-O0",
        "-shared",
        "-fPIC",
        "-std=c++20",
        f"-I{torch / 'include'}",
        f"-L{torch / 'lib'}",
    ]
    linked = ["-lc10", "-ltorch_cpu", f"-Wl,-rpath,{torch / 'lib'}"]
    subprocess.run(
        ["g++", *options, str(FOLDER / "guard.cpp"), "-o", str(library), *linked], check=True
    )
    version.write_text(wanted)


if not REASON:
    build()
    from tests.simulated_gpu.device import simulated

    _simulation = simulated()
    # before modules are imported that decorate functions with torch.inference_mode
    _simulation.__enter__()


@pytest.fixture(autouse=True)
def _needs_a_compiler() -> None:
    if REASON:
        pytest.skip(REASON)
    from tests.simulated_gpu.device import counts

    counts.clear()
