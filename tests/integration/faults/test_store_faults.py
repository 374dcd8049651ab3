"""Runs whose images and labels are in a store where much goes wrong: nothing lost, nothing twice, no silent hang."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import pytest

from sgpipe.files.object_store import StorePath
from sgpipe.storage.mirror import fetch
from tests.integration.faults.conftest import Faults
from tests.integration.faults.runs import assert_whole, rows
from tests.integration.served_runs import make_images

IMAGES, RUNS, FAULTS = 60, 20, 1_000
LONGEST_SILENCE = 60.0  # seconds
KINDS = {"503 SlowDown": 40, "500 InternalError": 20, "cut": 20, "slow": 19, "400 ExpiredToken": 1}
COMMAND = [sys.executable, "-c", "from sgpipe.cli.main import main; main()", "generate", "coco"]
SETTINGS = ("--set", "caption.captioner=null", "--set", "tag.method=all", "--set", "engine.unit_size=2")


@dataclass
class RandomFaults:
    """One request in four goes wrong, until `most` have."""

    seed: int
    most: int
    found: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self._random, self._lock = random.Random(self.seed), Lock()

    def __call__(self, method: str, path: str) -> str | None:
        with self._lock:
            if self.found.total() >= self.most or self._random.random() > 0.25:
                return None
            [kind] = self._random.choices(list(KINDS), list(KINDS.values()))
            if kind == "cut" and method != "GET":  # only what is read can be cut
                return None
            self.found[kind] += 1
        if kind != "slow":
            return kind
        time.sleep(2.0)
        return None


def run(arguments: list[str], log: Path, ray: Path) -> int:
    """The exit code of the command, which says something at least once a minute and never shows a traceback."""
    environment = os.environ | {"RAY_TMPDIR": str(ray), "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1"}
    with log.open("ab") as file:
        process = subprocess.Popen([*COMMAND, *arguments], stdout=file, stderr=file, env=environment)
    size, since = 0, time.monotonic()
    while process.poll() is None:
        time.sleep(0.2)
        if log.stat().st_size > size:
            size, since = log.stat().st_size, time.monotonic()
        if time.monotonic() - since > LONGEST_SILENCE:
            process.kill()
            pytest.fail(f"silent for a minute:\n{log.read_text()}")
    assert "Traceback" not in log.read_text()
    return process.returncode


def write_captions(file: Path) -> Path:
    captions = [{"image_id": number, "caption": f"a dog sits next to {number} cats"} for number in range(IMAGES)]
    file.write_text(json.dumps({"annotations": captions}))
    return file


@pytest.mark.soak
def test_a_thousand_faults_over_twenty_runs(
    tmp_path: Path, store: StorePath, faults: Faults, tmp_path_factory: pytest.TempPathFactory
) -> None:
    options = [*make_images(tmp_path / "images", IMAGES), "--captions", str(write_captions(tmp_path / "captions.json"))]
    ray = tmp_path_factory.mktemp("r")
    assert run([*options, *SETTINGS, "--out", str(tmp_path / "whole")], tmp_path / "whole.log", ray) == 0
    expected = rows(tmp_path / "whole")
    assert all(row.ok and row.relations for row in expected)
    for path in (tmp_path / "images").iterdir():
        store.put(f"images/{path.name}", path.read_bytes())
    options[options.index("--images") + 1] = f"{store.uri}/images"
    kinds: Counter[str] = Counter()
    starts = 0
    for seed in range(RUNS):
        labels, log = f"{store.uri}/{seed}", tmp_path / f"{seed}.log"
        arguments = [*options, *SETTINGS, "--out", str(tmp_path / str(seed)), "--store", labels]
        faults.fault = wrong = RandomFaults(seed, FAULTS // RUNS)
        code = run(arguments, log, ray)
        while code:
            assert code == 1, log.read_text()  # an error that the same command goes on from
            starts += 1
            code = run(arguments, log, ray)
        faults.fault = lambda method, path: None
        fetch(StorePath(labels), tmp_path / f"fetched{seed}", lambda images, counts: None)
        if not all(row.ok for row in rows(tmp_path / f"fetched{seed}")):  # images that were cut three times
            assert run([*arguments, "--retry-failed"], log, ray) == 0, log.read_text()
        fetch(StorePath(labels), tmp_path / f"fetched{seed}", lambda images, counts: None)
        assert_whole(tmp_path / f"fetched{seed}", expected)
        kinds += wrong.found
        starts += 1
        print(seed + 1, "runs,", starts, "starts,", kinds.total(), "faults", dict(kinds), flush=True)
    assert kinds.total() >= FAULTS
    assert set(kinds) == set(KINDS)
