"""Kills at random moments: of the driver, an actor, the raylet, or of whoever comes by a step of a commit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections import Counter
from contextlib import suppress

from sgpipe.utils.atomic import FAULT_VARIABLE
from tests.integration.faults.runs import Run

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
