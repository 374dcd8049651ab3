"""Nothing lost, nothing twice, nothing else, whenever whichever process is killed."""

import os
import random
import signal
from collections import Counter
from pathlib import Path

import pytest

from sgpipe.records import Record
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.run_folder import RunFolder
from sgpipe.storage.shards import shard_name, write_shard
from sgpipe.utils.atomic import FAULT_VARIABLE
from tests.integration.faults.kills import POINTS, Killer
from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.integration.faults.stage import SECONDS

IMAGES, KILLS, RUNS = 80, 200, 20


def commit(root: Path, number: int) -> None:
    records = [Record(str(number), "coco", "val", f"{number}.png", 8, 8)]
    manifest = Manifest.load(root)
    RunFolder(root).sweep(manifest)
    manifest.commit(write_shard(root, shard_name("val", number, number + 1), "val", number, records, {}))


@pytest.mark.parametrize("point", POINTS)
def test_a_commit_that_dies_at_any_step_is_done_or_not(tmp_path: Path, point: str) -> None:
    RunFolder(tmp_path)._make()
    Manifest.create(tmp_path, {})
    commit(tmp_path, 0)
    charge = tmp_path / ".sgpipe" / "charge"
    charge.touch()
    child = os.fork()
    if child == 0:
        os.environ[FAULT_VARIABLE] = f"{point}:{charge}"
        commit(tmp_path, 1)
        os._exit(0)
    assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
    assert not charge.exists()
    done = point == "after manifest entry"
    assert [row.image_id for row in rows(tmp_path)] == ["0", "1"][: 1 + done]
    commit(tmp_path, 2)
    if not done:
        commit(tmp_path, 1)
    assert_whole(tmp_path, [Record(str(number), "coco", "val", f"{number}.png", 8, 8) for number in range(3)])


def killed(folder: Path, dataset: list[str], expected: list[Record], seed: int, times: int) -> Counter[str]:
    """Kill a run so often, let it go on to its end, and compare."""
    run = Run(dataset, folder / f"run{seed}", environment={SECONDS: "0.1"})
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
    whole = Run(dataset, folder / "whole")
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
