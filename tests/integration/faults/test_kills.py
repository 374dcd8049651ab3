"""Nothing lost, nothing twice, nothing else, whenever whichever process of a run is killed."""

import os
import random
from collections import Counter
from itertools import count
from pathlib import Path

import pytest

from sgpipe.files.object_store import StorePath
from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST
from sgpipe.storage.mirror import fetch
from tests.integration.faults.kills import POINTS, VICTIMS, Killer
from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.integration.faults.stage import SECONDS
from tests.integration.faults.stub import COPIES

IMAGES, KILLS, RUNS = 80, 200, 20
ENGINES = ("local", "ray")


def killed(
    folder: Path, dataset: list[str], expected: list[Record], engine: str, seed: int, times: int
) -> Counter[str]:
    """Kill a run so often, let it go on to its end, and compare."""
    run = Run(dataset, folder / f"run{seed}", options(engine), environment={SECONDS: "0.1"})
    killer = Killer(run, random.Random(seed), VICTIMS[engine])
    killer.kill(times)
    if not (run.out / MANIFEST).exists() or len(rows(run.out)) < IMAGES:
        run.start()
        assert run.wait() == 0, run.said
    assert "Traceback" not in run.said
    assert_whole(run.out, expected)
    return killer.kills


def options(engine: str) -> tuple[str, ...]:
    return ("--set", "engine.unit_size=1", "--set", "engine.cpus=2", "--set", f"engine.kind={engine}")


def uninterrupted(folder: Path) -> tuple[list[str], list[Record]]:
    dataset = make_dataset(folder / "data", IMAGES)
    whole = Run(dataset, folder / "whole", options("local"))
    whole.start()
    assert whole.wait() == 0, whole.said
    return dataset, rows(whole.out)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_run_killed_twice_gives_the_same_rows(tmp_path: Path, engine: str) -> None:
    kills = killed(tmp_path, *uninterrupted(tmp_path), engine, seed=0, times=2)
    assert kills.total() == 2


@pytest.mark.soak
@pytest.mark.parametrize("engine", ENGINES)
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
    for seed in count():
        rng, place = random.Random(seed), f"{store.uri}/{seed}"
        stored = (*options("local"), "--store", place)
        run = Run(dataset, tmp_path / f"run{seed}", stored, {SECONDS: "0.1", COPIES: "0.1", **keys})
        killer = Killer(run, rng, VICTIMS["local"])
        killer.kill(10)
        kills += killer.kills
        if seed % 2:
            run.out = tmp_path / f"again{seed}"
        run.environment = {SECONDS: "0", **keys}
        run.start()
        assert run.wait() == 0, run.said
        assert "Traceback" not in run.said
        fetch(StorePath(place), tmp_path / f"fetched{seed}", lambda images, counts: None)
        assert_whole(tmp_path / f"fetched{seed}", expected)
        print(seed + 1, "runs", kills.total(), "kills", dict(kills), flush=True)
        if kills.total() >= 50:
            return
