"""Nothing lost, nothing twice, nothing else, whichever process is killed; runs that are stopped;
full disks.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.files.stores import StorePath
from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.mirror import fetch
from sgpipe.utils.atomic import FAULT_VARIABLE
from tests.endpoint_server import wait_until
from tests.integration.faults.runs import (
    FIFTY,
    Run,
    assert_whole,
    finished,
    make_dataset,
    rows,
    title_of,
)
from tests.integration.faults.stage import SECONDS
from tests.integration.faults.stub import COPIES
from tests.sgpipe.stats.runs import make_shards, scene
from tests.values import values_of

IMAGES = 80
BROKEN = range(5, IMAGES, 11)  # on which the stage raises, in each way once or twice
KILLS = 200
RUNS = 20
ON_THE_WORKER = ("before write", "mid write", "before rename", "after rename")
ON_THE_DRIVER = ("before manifest entry", "after manifest entry")
POINTS = (*ON_THE_WORKER, *ON_THE_DRIVER)
TITLES = {"actor": "MapWorker", "raylet": "raylet", "worker": "generation.local_engine"}
VICTIMS = {
    "ray": ("driver", "raylet", *["actor", "point"] * 3),
    "local": ("driver", "worker", "point"),
}
GO_ON = "Committed work is kept; run the same command again to resume."
STARTING = 12.0  # seconds in which Ray and its workers come up


class Killer:
    """Starts a run again and again and kills it; `kills` counts what was killed."""

    def __init__(self, run: Run, rng: random.Random, victims: tuple[str, ...]) -> None:
        self.run = run
        self.rng = rng
        self.victims = victims
        self.kills: Counter[str] = Counter()
        self.charge = run.out.with_suffix(".charge")

    def kill(self, times: int) -> None:
        """Kill so often, or until the run has ended by itself."""
        while self.kills.total() < times:
            self.charge.unlink(missing_ok=True)
            point = self.rng.choice(POINTS)
            self.run.environment = {
                **self.run.environment,
                FAULT_VARIABLE: f"{point}:{self.charge}",
            }
            self.run.start()
            if self.rng.random() < 0.25:
                self.run.wait_for(lambda: False, self.rng.uniform(0, STARTING))
                self._kill(point)
            while self.kills.total() < times and self._next_shard():
                self._kill(point)
            if self.run.wait() == 0:
                return

    def _next_shard(self) -> bool:
        """Wait for one, and somewhat longer; whether the run is still alive then."""
        before = self.run.committed
        self.run.wait_for(lambda: self.run.committed > before)
        return (
            not self.run.wait_for(lambda: False, self.rng.uniform(0, 0.5))
            and self.run.process.is_alive()
        )

    def _kill(self, point: str) -> None:
        victim = self.rng.choice(self.victims)
        if victim == "point":
            self.charge.touch()
            if self.run.wait_for(lambda: not self.charge.exists(), 10) or not self.charge.exists():
                self.kills[point] += 1
                self._settle(point in ON_THE_DRIVER)
            return
        pids = [self.run.process.pid] if victim == "driver" else self.run.processes(TITLES[victim])
        if pids:
            workers = self.run.processes("generation.local_engine")
            with suppress(ProcessLookupError):
                os.kill(self.rng.choice(pids), signal.SIGKILL)
                self.kills[victim] += 1
                self._settle(victim not in ("actor", "worker"))
            if victim == "driver":  # with which its workers end
                wait_until(
                    lambda: not any("generation.local_engine" in title_of(pid) for pid in workers)
                )

    def _settle(self, ends: bool) -> None:
        """After what ends the run, its end; the process that died is still listed for a moment
        otherwise.
        """
        if ends:
            self.run.wait()
        else:
            time.sleep(0.05)


def killed(
    folder: Path, dataset: list[str], expected: list[Record], engine: str, seed: int, times: int
) -> Counter[str]:
    """Kill a run so often, let it go on to its end, and compare, error rows too."""
    run = Run(dataset, folder / f"run{seed}", options(engine), environment={SECONDS: "0.1"})
    killer = Killer(run, random.Random(seed), VICTIMS[engine])
    killer.kill(times)
    if not (run.out / MANIFEST).exists() or len(rows(run.out)) < IMAGES:
        finished(run)
    assert "Traceback" not in run.said
    assert_whole(run.out, expected)
    return killer.kills


def options(engine: str) -> tuple[str, ...]:
    return (
        "--set",
        "engine.unit_size=1",
        "--set",
        "engine.cpus=2",
        "--set",
        f"engine.kind={engine}",
    )


def uninterrupted(folder: Path) -> tuple[list[str], list[Record]]:
    """Return a dataset with images on which the stage raises, and the rows of a run."""
    dataset = make_dataset(folder / "data", IMAGES, broken=BROKEN)
    expected = rows(finished(Run(dataset, folder / "whole", options("local"))).out)
    assert [int(row.image_id) for row in expected if not row.ok] == list(BROKEN)
    return dataset, expected


@pytest.mark.parametrize(("engine", "times"), [("local", 4), ("ray", 2)])
def test_a_run_killed_a_few_times_gives_the_same_rows(
    tmp_path: Path, engine: str, times: int
) -> None:
    reference = uninterrupted(tmp_path)
    # a run may end before its last kill
    kills = (killed(tmp_path, *reference, engine, seed, times) for seed in range(5))
    assert any(kill.total() == times for kill in kills)


@pytest.mark.soak
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_two_hundred_kills_over_twenty_runs(tmp_path: Path, engine: str) -> None:
    dataset, expected = uninterrupted(tmp_path)
    kills: Counter[str] = Counter()
    runs = 0
    while runs < RUNS or kills.total() < KILLS:
        kills += killed(tmp_path, dataset, expected, engine, seed=runs, times=10)
        runs += 1
        print(runs, "runs", kills.total(), "kills", dict(kills), flush=True)
    assert set(kills) == {*POINTS, *VICTIMS[engine]} - {"point"}


@pytest.mark.soak
def test_fifty_kills_over_a_store(store: StorePath, tmp_path: Path) -> None:
    """Every second run resumes in a new folder, from the store alone."""
    dataset, expected = uninterrupted(tmp_path)
    keys = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    kills: Counter[str] = Counter()
    runs = 0
    while kills.total() < FIFTY:
        place = StorePath(f"{store.uri}/{runs}")
        stored = ("--store", f"{store.uri}/{runs}")
        environment = {SECONDS: "0.1", COPIES: "0.1", **keys}
        run = Run(dataset, tmp_path / f"run{runs}", (*options("local"), *stored), environment)
        killer = Killer(run, random.Random(runs), VICTIMS["local"])
        killer.kill(min(10, FIFTY - kills.total()))
        kills += killer.kills
        run.environment = {SECONDS: "0", **keys}
        if runs % 2:
            run.out = tmp_path / f"again{runs}"
        assert "Traceback" not in finished(run).said
        fetch(place, tmp_path / f"fetched{runs}", lambda images, counts: None)
        assert_whole(tmp_path / f"fetched{runs}", expected)
        runs += 1
        print(runs, "runs", kills.total(), "kills", dict(kills), flush=True)


def stop(run: Run, *signals: signal.Signals) -> None:
    """Send them to the run half a second apart, and wait for its end."""
    for number in signals:
        with suppress(ProcessLookupError):  # the first has ended it
            os.kill(run.process.pid or 0, number)
        run.wait_for(lambda: False, 0.5)
    assert run.wait() == 130, run.said


@pytest.mark.slow
@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT)])
def test_a_stopped_run_says_how_to_go_on_and_goes_on(
    tmp_path: Path, signals: tuple[signal.Signals, ...]
) -> None:
    run = Run(
        make_dataset(tmp_path / "data", IMAGES), tmp_path / "out", environment={SECONDS: "0.5"}
    )
    run.start()
    assert run.wait_for(lambda: run.committed > 1)
    second = Run(run.dataset, run.out)
    second.log = tmp_path / "second.log"
    second.start()
    assert second.wait() == 2
    assert second.said.startswith(f"error: {run.out} is in use by process {run.process.pid} on ")
    stop(run, *signals)
    endings = ("interrupted.", "stopped at once.")[: len(signals)]
    assert run.said.splitlines()[-1] in [f"{ending} {GO_ON}" for ending in endings]
    assert "Traceback" not in run.said
    assert not set(values_of(rows(run.out), "image_id")) - set(map(str, range(IMAGES)))
    assert 0 < len(Manifest.load(run.out).shards) < IMAGES
    run.environment = {}
    assert_whole(finished(run).out, rows(finished(Run(run.dataset, tmp_path / "whole")).out))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_nobody_waits_for_a_unit_that_takes_long(tmp_path: Path, times: int) -> None:
    run = Run(
        make_dataset(tmp_path / "data", IMAGES), tmp_path / "out", environment={SECONDS: "900"}
    )
    run.start()
    assert run.wait_for(lambda: run.processes("generation.local_engine"))
    workers = run.processes("generation.local_engine")
    stop(run, *[signal.SIGINT] * times)
    # some seconds, until they notice
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MB, in memory."""
    place = tmp_path / "disk"
    place.mkdir()
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
    reference = finished(Run(dataset, tmp_path / "whole"))
    run = Run(dataset, disk / "out")
    run.log = tmp_path / "log"
    resize(disk, "400k")
    run.start()
    assert run.wait() == 1, run.said
    assert "Traceback" not in run.said
    *before, error, hint = run.said.splitlines()
    assert error.startswith("error: No space left on device: ")
    assert hint == GO_ON
    assert not [line for line in before if line.startswith("error: ")]
    assert 0 < run.committed < IMAGES
    resize(disk, "4m")
    assert_whole(finished(run).out, rows(reference.out))


def test_a_run_on_a_full_disk_is_not_indexed_and_says_why(disk: Path) -> None:
    make_shards(disk / "run", [scene(str(n), [(0, "on", 1, 0.5)]) for n in range(9)])
    (disk / "filling").write_bytes(bytes(os.statvfs(disk).f_bavail * 4096))
    done = CliRunner().invoke(app, ["stats", str(disk / "run")])
    assert done.exit_code == 2, done.exception
    assert "No space left on device" in done.stderr.replace("\n", " ")
