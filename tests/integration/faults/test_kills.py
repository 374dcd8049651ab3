"""Nothing lost, nothing twice, nothing else, whenever whichever process of a run is killed."""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest

from sgpipe.files.object_store import StorePath
from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST
from sgpipe.storage.mirror import fetch
from sgpipe.utils.atomic import FAULT_VARIABLE
from tests.detections import make_coco
from tests.integration.faults.runs import FIFTY, Run, assert_whole, finished, make_dataset, rows
from tests.integration.faults.stage import SECONDS
from tests.integration.faults.stub import COPIES
from tests.vlm_checkpoints import make_vlm

IMAGES, KILLS, RUNS = 80, 200, 20
ON_THE_WORKER = ("before write", "mid write", "after write", "before rename", "after rename")
ON_THE_DRIVER = ("before manifest entry", "after manifest entry")
POINTS = (*ON_THE_WORKER, *ON_THE_DRIVER)
TITLES = {"actor": "MapWorker", "raylet": "raylet"}
VICTIMS = {"ray": ("driver", "raylet", *["actor", "point"] * 3), "local": ("driver", "point")}
STARTING = 12.0  # seconds in which Ray and its workers come up


class Killer:
    """Starts a run again and again and kills it; `kills` counts what was killed."""

    def __init__(self, run: Run, rng: random.Random, victims: tuple[str, ...]) -> None:
        self.run, self.rng, self.victims = run, rng, victims
        self.kills: Counter[str] = Counter()
        self.charge = run.out.with_suffix(".charge")

    def kill(self, times: int) -> None:
        """Kill so often, or until the run has ended by itself."""
        while self.kills.total() < times:
            self.charge.unlink(missing_ok=True)
            point = self.rng.choice(POINTS)
            self.run.environment = {**self.run.environment, FAULT_VARIABLE: f"{point}:{self.charge}"}
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
        return not self.run.wait_for(lambda: False, self.rng.uniform(0, 0.5)) and self.run.process.is_alive()

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
            with suppress(ProcessLookupError):
                os.kill(self.rng.choice(pids), signal.SIGKILL)
                self.kills[victim] += 1
                self._settle(victim != "actor")

    def _settle(self, ends: bool) -> None:
        """After what ends the run, its end; the process that died is still listed for a moment otherwise."""
        if ends:
            self.run.wait()
        else:
            time.sleep(0.05)


def killed(
    folder: Path, dataset: list[str], expected: list[Record], engine: str, seed: int, times: int
) -> Counter[str]:
    """Kill a run so often, let it go on to its end, and compare."""
    run = Run(dataset, folder / f"run{seed}", options(engine), environment={SECONDS: "0.1"})
    killer = Killer(run, random.Random(seed), VICTIMS[engine])
    killer.kill(times)
    if not (run.out / MANIFEST).exists() or len(rows(run.out)) < IMAGES:
        finished(run)
    assert "Traceback" not in run.said
    assert_whole(run.out, expected)
    return killer.kills


def options(engine: str) -> tuple[str, ...]:
    return ("--set", "engine.unit_size=1", "--set", "engine.cpus=2", "--set", f"engine.kind={engine}")


def uninterrupted(folder: Path) -> tuple[list[str], list[Record]]:
    dataset = make_dataset(folder / "data", IMAGES)
    return dataset, rows(finished(Run(dataset, folder / "whole", options("local"))).out)


def test_a_run_on_ray_killed_twice_gives_the_same_rows(tmp_path: Path) -> None:
    kills = killed(tmp_path, *uninterrupted(tmp_path), "ray", seed=0, times=2)
    assert kills.total() == 2


@pytest.mark.parametrize("family", ["florence2", "qwen3_vl"])
def test_a_captioner_killed_and_gone_on_with_another_batch_size_gives_the_same_rows(
    family: str, tmp_path: Path
) -> None:
    settings = ["caption.samples=2", "caption.max_tokens=12", "tag.method=all", "caption.resources.io_threads=1"]
    settings.append(f"caption.captioner={make_vlm(tmp_path / 'captioner', family)}")
    options = [*make_coco(tmp_path / "coco", images=8).options[:4], "--split", "val"]

    def start(out: Path, batch: int, unit: int) -> subprocess.Popen[bytes]:
        own = [*settings, f"caption.batch_size={batch}", f"engine.unit_size={unit}", "engine.cpus=1"]
        sets = [word for setting in own for word in ("--set", setting)]
        program = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", "generate", "coco", *options]
        with out.with_suffix(".log").open("ab") as log:
            return subprocess.Popen([*program, "--out", str(out), *sets], stderr=log)

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert start(whole, 8, 8).wait() == 0, whole.with_suffix(".log").read_text()
    expected = rows(whole)
    assert [len(row.captions) for row in expected] == [2] * 8
    assert len({caption.text for row in expected for caption in row.captions}) > 8
    process, manifest = start(killed, 1, 1), killed / MANIFEST
    while process.poll() is None and not (manifest.exists() and manifest.read_bytes().count(b"\n") > 2):
        time.sleep(0.02)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(rows(killed)) < 8
    assert start(killed, 3, 3).wait() == 0, killed.with_suffix(".log").read_text()
    assert_whole(killed, expected)


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
        place, stored = StorePath(f"{store.uri}/{runs}"), ("--store", f"{store.uri}/{runs}")
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
