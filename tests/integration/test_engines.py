"""Runs that start the servers of their model themselves: servers that are killed, and runs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from ray._private.node import Node
from ray.cluster_utils import Cluster

from sgpipe.records import Record
from sgpipe.storage.manifest import Manifest
from sgpipe.storage.run_records import iter_records
from tests.detections import make_coco
from tests.endpoint_server import wait_until
from tests.engine_commands import MODEL, servers_of, stand_in
from tests.processes import descendants, is_gone, parent_of

IMAGES = 80
SAMPLES = 2
PROGRAM = (sys.executable, "-c", "from sgpipe.cli.main import main; main()")


class EngineRun:
    """`sgpipe generate` with two servers, as a process of its own."""

    def __init__(self, folder: Path, data: Sequence[str], kind: str, **replicas: object) -> None:
        self.out = folder / "run"
        self.log = folder / "run.log"
        settings = {
            "caption.engine": stand_in("--seconds", "0.1", "--child"),
            "caption.replicas.min": 2,
            "caption.samples": SAMPLES,
            "caption.requests.in_flight": 4,
            "caption.resources.actors": 1,
            "engine.kind": kind,
            "engine.unit_size": 8,
            "tag.method": "all",
            **replicas,
        }
        words = [*PROGRAM, "generate", "coco", *data, "--split", "val", "--out", str(self.out)]
        words += ["--captioner", MODEL]
        for name, value in settings.items():
            words += ["--set", f"{name}={value}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, stdout=log, stderr=log)

    def wait_for_shards(self, number: int) -> None:
        def are_there() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return self.shards() >= number

        wait_until(are_there, 300, every=0.05)

    def wait_for_servers(self, number: int) -> None:
        """Wait until so many have answered for the first time, as the log says."""
        wait_until(lambda: self.log.read_text().count(" answers\n") == number, 300)

    def shards(self) -> int:
        try:
            return len(Manifest.load(self.out).shards)
        except Exception:  # noqa: BLE001 - there is none yet
            return 0

    def rows(self) -> list[Record]:
        assert self.process.wait(300) == 0, self.log.read_text()
        return sorted(iter_records(self.out), key=lambda record: record.image_id)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return make_coco(tmp_path_factory.mktemp("coco"), IMAGES).options[:4]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, data: list[str]) -> list[Record]:
    run = EngineRun(tmp_path_factory.mktemp("undisturbed"), data, "local")
    rows = run.rows()
    assert all(len(row.captions) == SAMPLES for row in rows)
    assert len(rows) == IMAGES
    return rows


def test_a_killed_server_returns_and_changes_no_row(
    tmp_path: Path, data: list[str], undisturbed: list[Record]
) -> None:
    run = EngineRun(tmp_path, data, "local")
    run.wait_for_shards(2)
    family = descendants(run.process.pid)
    first, second = servers_of(run.process.pid)
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: len(set(servers_of(run.process.pid)) - {first, second}) == 1)
    assert run.rows() == undisturbed
    assert all(map(is_gone, family))
    text = run.log.read_text()
    assert "it ended with exit code 137" in text
    assert "Traceback" not in text


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_server_outlives_its_run(
    number: signal.Signals, tmp_path: Path, data: list[str], undisturbed: list[Record]
) -> None:
    run = EngineRun(tmp_path, data, "local")
    run.wait_for_shards(1)
    family = descendants(run.process.pid)
    assert len(servers_of(run.process.pid)) == 2
    run.process.send_signal(number)
    assert run.process.wait(60) != 0
    wait_until(lambda: all(map(is_gone, family)), 30)
    assert EngineRun(tmp_path, data, "local").rows() == undisturbed
    assert "Traceback" not in run.log.read_text()


def test_a_run_that_has_nothing_to_do_starts_no_server(tmp_path: Path, data: list[str]) -> None:
    assert len(EngineRun(tmp_path, data, "local", limit=8).rows()) == 8
    before = (tmp_path / "run.log").read_text().count("starting tiny-vlm")
    assert len(EngineRun(tmp_path, data, "local", limit=8).rows()) == 8
    assert (tmp_path / "run.log").read_text().count("starting tiny-vlm") == before == 1


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Three machines, two of them with a GPU; the driver is on the first."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("OMP_NUM_THREADS", "1")
        patch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        head = {"num_cpus": 1, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        for _ in range(2):
            cluster.add_node(num_cpus=1, num_gpus=1)
        yield cluster
        cluster.shutdown()


@pytest.mark.slow
def test_servers_of_a_cluster_outlive_their_actor_and_their_machine(
    cluster: Cluster, tmp_path: Path, data: list[str], undisturbed: list[Record]
) -> None:
    """Of two servers the actor of one is killed and the machine of the other lost, so that only
    those that have moved are left.
    """
    run = EngineRun(tmp_path, data, "ray", **on_cluster(cluster, tmp_path / "go"))
    run.wait_for_shards(1)
    first, second = servers_of(os.getpid())
    key = key_of(first)
    started = [first, second]
    os.kill(actor_of(first), signal.SIGKILL)
    run.wait_for_servers(3)
    started += servers_of(os.getpid())
    cluster.remove_node(machine_of(second, cluster), allow_graceful=False)
    cluster.add_node(num_cpus=1, num_gpus=1)
    run.wait_for_servers(4)
    started += servers_of(os.getpid())
    assert is_gone(first)
    assert is_gone(second)
    assert not [pid for pid in descendants(os.getpid()) if key in command_of(pid)]
    (tmp_path / "go").touch()
    assert run.rows() == undisturbed
    wait_until(lambda: all(map(is_gone, started)))
    text = run.log.read_text()
    assert "Traceback" not in text
    assert text.count("is lost with its process or machine; Ray places it anew") == 2
    for folder in (tmp_path, Path(cluster.head_node.get_session_dir_path())):
        files = [path for path in folder.rglob("*") if path.is_file()]
        assert not [path for path in files if key.encode() in path.read_bytes()]


@pytest.mark.slow
def test_no_server_of_a_cluster_outlives_its_run(
    cluster: Cluster, tmp_path: Path, data: list[str]
) -> None:
    run = EngineRun(tmp_path, data, "ray", **on_cluster(cluster, tmp_path / "go"))
    run.wait_for_shards(1)
    started = servers_of(os.getpid())
    assert len(started) == 2
    run.process.kill()
    run.process.wait()
    wait_until(lambda: all(map(is_gone, started)))


def on_cluster(cluster: Cluster, go: Path) -> dict[str, object]:
    """Return the settings of a run with a server on each GPU, which answers a few requests before
    the file is there.
    """
    engine = stand_in("--seconds", "0.1", "--child", "--go", str(go))
    return {
        "caption.engine": engine,
        "engine.address": cluster.address,
        "caption.replicas.gpus": 1,
    }


def key_of(server: int) -> str:
    """Return the key that a server requires."""
    variables = Path(f"/proc/{server}/environ").read_text().split("\0")
    [key] = [words.partition("=")[2] for words in variables if words.startswith("VLLM_API_KEY=")]
    assert len(key) > 20
    return key


def actor_of(server: int) -> int:
    """Return the process of the actor that has started the watcher of a server."""
    return parent_of(parent_of(server))


def machine_of(server: int, cluster: Cluster) -> Node:
    """Return the machine of a cluster that has started the actor of a server."""
    raylet = parent_of(actor_of(server))
    for machine in cluster.worker_nodes:
        if machine.all_processes["raylet"][0].process.pid == raylet:
            return machine
    raise LookupError


def command_of(process: int) -> str:
    """Return the command line of a process; "": it has ended."""
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_text()
    return ""
