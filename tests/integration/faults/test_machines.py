"""Clusters of machines that have no path in common: their images, annotations, models and shards are in a store."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from moto.server import ThreadedMotoServer

from sgpipe.files.object_store import StorePath
from sgpipe.miniworld.dataset import IMAGES as IMAGE_FOLDER
from sgpipe.miniworld.dataset import INSTANCES, render_dataset
from sgpipe.recipe import packaged_model
from sgpipe.storage.mirror import fetch
from tests.endpoint_server import wait_until
from tests.integration.faults.machines import Machine, Network, why_impossible
from tests.integration.faults.runs import assert_whole, rows

IMAGES = 48
SEEDS = range(int(os.environ.get("SGPIPE_CLUSTER_SEEDS", "1")))
KEYS = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none", "AWS_DEFAULT_REGION": "us-east-1"}
QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_worker_niceness": "0", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
MODELS = ("captioner", "tagger")
# It takes over the lock of a driver that has not renewed it for 40 s instead of 150 s.
IMPATIENT = "from sgpipe.storage import lock; lock._STALE_SECONDS = 40.0; from sgpipe.cli.main import main; main()"
SETTINGS = ("caption.samples=2", "tag.short_side=96", "tag.long_side=144", "engine.unit_size=4")

pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(why_impossible() is not None, reason=f"no machines: {why_impossible()}"),
]


@pytest.fixture
def network() -> Iterator[Network]:
    with Network() as network:
        yield network


@pytest.fixture
def store(network: Network, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URI of a bucket on this machine, which all others reach."""
    server = ThreadedMotoServer(network.address, 0, verbose=False)
    server.start()
    url = "http://{}:{}".format(*server.get_host_and_port())
    for name, value in (KEYS | {"AWS_ENDPOINT_URL": url}).items():
        monkeypatch.setenv(name, value)
    for method, path in (("POST", "moto-api/reset"), ("PUT", "data")):  # moto's servers of one process share buckets
        urllib.request.urlopen(urllib.request.Request(f"{url}/{path}", method=method))
    yield "s3://data"
    server.stop()


def start_cluster(head: Machine, *workers: Machine, home: Path, environment: Mapping[str, str] | None = None) -> None:
    """As docs/scale.md says, with a token that is copied from the head to the workers. `environment`: of these."""
    mode = QUIET | {"RAY_AUTH_MODE": "token"}
    head.run(["ray", "get-auth-token", "--generate"], mode)
    ray = ["ray", "start", "--num-cpus", "1", "--node-ip-address"]
    head.run([*ray, head.address, "--head", "--temp-dir", str(home / "ray")], mode)
    for worker in workers:
        shutil.copytree(head.folder / ".ray", worker.folder / ".ray", dirs_exist_ok=True)
        worker.run([*ray, worker.address, "--address", f"{head.address}:6379"], mode | dict(environment or {}))


class Labelling:
    """`sgpipe generate` of the images in a store, on any machine."""

    def __init__(self, store: str, seed: int, folder: Path) -> None:
        self.store, self.labels = store, f"{store}/labels"
        render_dataset(folder, IMAGES, seed)
        place = StorePath(f"{store}/set")
        for path in folder.rglob("*"):
            if path.is_file():
                place.put(path.relative_to(folder).as_posix(), path)
        for model in MODELS:
            for path in packaged_model(model).iterdir():
                place.put(f"{model}/{path.name}", path)
        split = f"source.splits={{val: {{annotations: {INSTANCES}, images: {IMAGE_FOLDER}}}}}"
        self._local, self._remote = (["--root", str(root), "--set", split] for root in (folder, place.uri))
        for model in MODELS:
            self._local += [f"--{model}", "MINIWORLD"]
            self._remote += [f"--{model}", f"{place.uri}/{model}"]

    def command(self, out: str | Path, *more: str, local: bool = False) -> list[str]:
        settings = [option for setting in SETTINGS for option in ("--set", setting)]
        data = self._local if local else self._remote
        return ["sgpipe", "generate", "coco", *data, "--out", str(out), *settings, *more]

    def start(self, machine: Machine, number: int, *program: str) -> tuple[subprocess.Popen[bytes], Path]:
        """On a cluster; the process, and the file of what it says. `program`: in the place of `sgpipe`."""
        log = machine.folder / f"run-{number}.log"
        name, *arguments = self.command(f"run-{number}", "--store", self.labels, "--ray-address", "auto")
        return machine.start([*(program or (name,)), *arguments], log, QUIET), log

    def run_once_unlocked(self, machine: Machine) -> tuple[int, str]:
        """Run on a cluster, again for as long as it says how long the lock of the lost driver holds."""
        for _ in range(5):
            run, log = self.start(machine, 2, sys.executable, "-c", IMPATIENT)
            code, said = run.wait(600), log.read_text()
            left = re.search(r"if it died, for (\d+) s\s*$", said)
            if code != 2 or left is None:
                break
            time.sleep(int(left[1]) + 1)
        return code, said

    def committed(self) -> int:
        """The shards in the store, some of which its manifest may not have yet."""
        return len(StorePath(self.labels).sizes("data"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_survives_a_lost_worker_and_then_its_head(
    network: Network, store: str, tmp_path: Path, seed: int
) -> None:
    labelling = Labelling(store, seed, tmp_path / "drawn")
    head, worker, third = (network.machine() for _ in range(3))
    start_cluster(head, worker, third, home=network.here)
    run, log = labelling.start(head, 1)
    wait_until(lambda: labelling.committed() >= 2 or run.poll() is not None, 300, every=0.5)
    assert run.poll() is None, log.read_text()
    worker.kill()
    before = labelling.committed()
    wait_until(lambda: labelling.committed() >= before + 2 or run.poll() is not None, 300, every=0.5)
    assert run.poll() is None, log.read_text()
    head.kill()
    run.wait()
    assert labelling.committed() < IMAGES / 4, "killed too late to be a test"

    third.run(["ray", "stop", "--force"], QUIET)
    start_cluster(third, home=network.here)
    code, said = labelling.run_once_unlocked(third)
    assert code == 0, said
    alone = network.machine()
    alone.run(labelling.command("alone", local=True), QUIET)
    fetch(StorePath(labelling.labels), tmp_path / "fetched", lambda images, counts: None)
    assert_whole(tmp_path / "fetched", rows(alone.folder / "alone"))
