"""Disks that are full or cannot be written: one line, nothing half-written, and the same command goes on afterwards."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from tests.integration.faults.runs import Run, assert_whole, finished, make_dataset, rows
from tests.sgpipe.stats.runs import make_shards, scene

IMAGES = 80


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB, in memory."""
    (place := tmp_path / "disk").mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", place], check=True)


def resize(disk: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", disk], check=True)


@pytest.mark.slow
def test_a_run_goes_on_when_there_is_space_again(disk: Path, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", IMAGES)
    whole = finished(Run(dataset, tmp_path / "whole"))
    run = Run(dataset, disk / "out")
    run.log = tmp_path / "log"
    resize(disk, "400k")
    run.start()
    assert run.wait() == 1, run.said
    assert "Traceback" not in run.said
    *before, error, hint = run.said.splitlines()
    assert error.startswith("error: No space left on device: ")
    assert hint == "Committed work is kept; run the same command again to resume."
    assert not [line for line in before if line.startswith("error: ")]
    assert 0 < run.committed < IMAGES
    resize(disk, "4m")
    assert_whole(finished(run).out, rows(whole.out))


def test_a_run_on_a_full_disk_is_not_indexed_and_says_why(disk: Path) -> None:
    make_shards(disk / "run", [scene(str(n), [(0, "on", 1, 0.5)]) for n in range(9)])
    (disk / "filling").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))
    done = CliRunner().invoke(app, ["stats", str(disk / "run")])
    assert done.exit_code == 2, done.exception
    assert "No space left on device" in done.stderr.replace("\n", " ")
