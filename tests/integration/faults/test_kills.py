"""Nothing lost, nothing twice, nothing else, whenever whichever process of a run on Ray is killed."""

import random
from collections import Counter
from pathlib import Path

import pytest

from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST
from tests.integration.faults.kills import POINTS, Killer
from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.integration.faults.stage import SECONDS

IMAGES, KILLS, RUNS = 80, 200, 20
ON_RAY = ("--set", "engine.unit_size=1", "--set", "engine.cpus=2", "--set", "engine.kind=ray")


def killed(folder: Path, dataset: list[str], expected: list[Record], seed: int, times: int) -> Counter[str]:
    """Kill a run so often, let it go on to its end, and compare."""
    run = Run(dataset, folder / f"run{seed}", ON_RAY, environment={SECONDS: "0.1"})
    killer = Killer(run, random.Random(seed))
    killer.kill(times)
    if not (run.out / MANIFEST).exists() or len(rows(run.out)) < IMAGES:
        run.start()
        assert run.wait() == 0, run.said
    assert "Traceback" not in run.said
    assert_whole(run.out, expected)
    return killer.kills


def uninterrupted(folder: Path) -> tuple[list[str], list[Record]]:
    dataset = make_dataset(folder / "data", IMAGES)
    whole = Run(dataset, folder / "whole", ON_RAY)
    whole.start()
    assert whole.wait() == 0, whole.said
    return dataset, rows(whole.out)


def test_a_run_killed_twice_gives_the_same_rows(tmp_path: Path) -> None:
    kills = killed(tmp_path, *uninterrupted(tmp_path), seed=0, times=2)
    assert kills.total() == 2


@pytest.mark.soak
def test_two_hundred_kills_over_twenty_runs(tmp_path: Path) -> None:
    dataset, expected = uninterrupted(tmp_path)
    kills: Counter[str] = Counter()
    runs = 0
    while runs < RUNS or kills.total() < KILLS:
        kills += killed(tmp_path, dataset, expected, seed=runs, times=10)
        runs += 1
        print(runs, "runs", kills.total(), "kills", dict(kills), flush=True)
    assert set(kills) == {"driver", "actor", "raylet", *POINTS}
