"""The GPU benchmark runs from end to end, on whatever this machine has."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.mark.soak
def test_the_command_prints_a_page_and_without_a_gpu_writes_none() -> None:
    if torch.cuda.is_available():
        pytest.skip(
            "with a GPU the command takes minutes and writes its page; run `make gpu-check`"
        )
    page = ROOT / "benchmarks" / "results" / "gpu.md"
    before = page.exists()
    command = [sys.executable, "-m", "benchmarks.gpu", "--images", "8"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    assert "No GPU: miniatures on the CPU, and a simulated device." in done.stdout
    assert " skipped in " in done.stdout
    rows = [line.split("|")[1:3] for line in done.stdout.splitlines() if line.startswith("| ")]
    figures = {name.strip(): figure.strip() for name, figure in rows}
    assert "differ from those of the CPU by at most 0e+00" in done.stdout
    for name in (
        "tagging, images/s",
        "training step of sgpipe, s",
        "training step of sgpipe with workers.compile, s",
    ):
        assert float(figures[name]) > 0
    assert page.exists() == before
