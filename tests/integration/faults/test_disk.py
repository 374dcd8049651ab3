"""Disks that are full or cannot be written: one line, nothing half-written, and the same command goes on afterwards."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.sgpipe.stats.runs import make_shards, scene

IMAGES = 80
FULL = "error: No space left on device: "


class Disk:
    """A disk of its own size, in memory."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def mount(self, options: str) -> None:
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", self.place], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")

    def remount(self, options: str) -> None:
        subprocess.run(["mount", "-o", f"remount,{options}", self.place], check=True)

    def unmount(self) -> None:
        subprocess.run(["umount", "--lazy", self.place], check=True)

    def fill(self, but: int) -> None:
        """Leave `but` blocks of 4 KiB."""
        free = os.statvfs(self.place).f_bavail
        (self.place / "filling").write_bytes(bytes((free - but) * 4096))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    disk = Disk(place)
    disk.mount("size=4m")
    yield disk
    disk.unmount()


def failed(run: Run, code: int = 1) -> str:
    """The line that says why, after which there is at most the one that says how to go on."""
    run.start()
    assert run.wait() == code, run.said
    assert "Traceback" not in run.said
    at, *others = [n for n, line in enumerate(run.said.splitlines()) if line.startswith("error: ")]
    assert not others
    lines = run.said.splitlines()[at:]
    assert lines[1:] == ["Committed work is kept; run the same command again to resume."] * (len(lines) - 1)
    return lines[0]


@pytest.mark.slow
def test_a_run_goes_on_when_there_is_space_again(disk: Disk, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", IMAGES)
    whole = Run(dataset, tmp_path / "whole")
    whole.start()
    assert whole.wait() == 0, whole.said
    run = Run(dataset, disk.place / "out")
    run.log = tmp_path / "log"
    disk.remount("size=400k")
    assert failed(run).startswith(FULL)
    assert 0 < run.committed < IMAGES
    disk.remount("size=4m")
    run.start()
    assert run.wait() == 0, run.said
    assert_whole(run.out, rows(whole.out))


def test_a_run_on_a_full_disk_is_not_indexed_and_says_why(disk: Disk, tmp_path: Path) -> None:
    make_shards(disk.place / "run", [scene(str(n), [(0, "on", 1, 0.5)]) for n in range(9)])
    disk.fill(but=0)
    done = CliRunner().invoke(app, ["stats", str(disk.place / "run")])
    assert done.exit_code == 2, done.exception
    assert "No space left on device" in done.stderr.replace("\n", " ")
