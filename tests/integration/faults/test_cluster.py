"""Several machines: raylets of their own on this one, with the output folder shared; and joining
them.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.version import Version
from ray.cluster_utils import Cluster

from tests.endpoint_server import wait_until
from tests.integration.faults.runs import (
    Run,
    assert_whole,
    descendants,
    finished,
    make_dataset,
    rows,
)
from tests.integration.faults.stage import MARKS, SECONDS

IMAGES = 60
Guarded = tuple[dict[str, str], str]  # the environment of a machine, and the address of a cluster
# `ray start --head` requires it if there is one
STARTS_WITH_TOKEN = Version(version("ray")) >= Version("2.59")
needs_tokens = pytest.mark.skipif(
    Version(version("ray")) < Version("2.52"), reason="this Ray has no tokens"
)


@pytest.fixture
def head(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """The machine of the driver, with one CPU unless a test says another number."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    cpus = getattr(request, "param", 1)
    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": cpus, "include_dashboard": False}
    )
    yield cluster
    cluster.shutdown()


@pytest.fixture
def cluster(head: Cluster) -> Cluster:
    """Three machines; the driver is on the first."""
    for _ in range(2):
        head.add_node(num_cpus=1)
    return head


def finish(run: Run) -> None:
    """To its end. Ray puts the driver on any machine of this address; one that is lost ends it as
    SIGTERM does.
    """
    if run.wait() == 130:
        finished(run)
    assert run.wait() == 0, run.said
    assert_whole(run.out, rows(finished(Run(run.dataset, run.out.with_name("whole"))).out))


@pytest.mark.slow
def test_a_run_outlives_one_of_three_machines(cluster: Cluster, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", IMAGES)
    run = Run(
        dataset, tmp_path / "out", ("--set", "engine.unit_size=1", "--ray-address", cluster.address)
    )
    run.environment = {SECONDS: "0.5"}
    run.start()
    assert run.wait_for(lambda: run.committed > 5), run.said
    lost = next(iter(cluster.worker_nodes))
    cluster.remove_node(lost, allow_graceful=False)
    finish(run)
    assert "3 actors: stub" in run.said
    assert "NOTE: Ray has lost 1 machine" in run.said


@pytest.mark.slow
def test_a_run_grows_with_machines_that_come_later(head: Cluster, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 2 * IMAGES)
    run = Run(
        dataset, tmp_path / "out", ("--set", "engine.unit_size=1", "--ray-address", head.address)
    )
    run.environment = {SECONDS: "1"}
    run.start()
    assert run.wait_for(lambda: run.committed > 0), run.said
    head.add_node(num_cpus=2)
    finish(run)
    assert "machines have come: the run continues on more actors\n3 actors: stub" in run.said
    assert "NOTE" not in run.said


@pytest.mark.slow
@pytest.mark.parametrize("head", [0], indirect=True)
def test_a_run_waits_for_its_first_machine(head: Cluster, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", 8)
    more = ("--set", "engine.machines_timeout=2", "--ray-address", head.address)
    run = Run(dataset, tmp_path / "out", more)
    run.start()
    assert run.wait() == 2, run.said
    refusal = "the actors do not fit on the machines of Ray: 1 × 1 CPU (stub) on nothing"
    assert f"error: {refusal}" in run.said

    run.more = ("--set", "engine.machines_timeout=600", "--ray-address", head.address)
    run.start()
    waits = f"waiting up to 10 min for machines: {refusal}"
    assert run.wait_for(lambda: waits in run.said), run.said
    head.add_node(num_cpus=1)
    finish(run)


@pytest.mark.soak
def test_units_between_stages_may_be_lost_with_their_machine(
    cluster: Cluster, tmp_path: Path
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    dataset = make_dataset(tmp_path / "data", IMAGES)
    cluster.add_node(num_cpus=2)
    run = Run(
        dataset, tmp_path / "out", ("--set", "engine.unit_size=1", "--ray-address", cluster.address)
    )
    run.environment = {SECONDS: "0.5", MARKS: str(marks)}
    run.start()
    assert run.wait_for(lambda: run.committed > 5), run.said
    for lost in list(cluster.worker_nodes)[:2]:
        cluster.remove_node(lost, allow_graceful=False)
    finish(run)
    assert {mark.read_text() for mark in marks.iterdir()} == {""}, (
        "they see GPUs that they have not asked for"
    )


@pytest.mark.slow
def test_a_machine_with_another_library_is_refused_or_noted(
    cluster: Cluster, tmp_path: Path
) -> None:
    """Its workers find the metadata of another version first."""
    metadata = tmp_path / "other" / "tokenizers-0.1.2.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: tokenizers\nVersion: 0.1.2\n")
    search_path = os.pathsep.join([str(tmp_path / "other"), os.environ["PYTHONPATH"]])
    cluster.add_node(num_cpus=1, env_vars={"PYTHONPATH": search_path})
    dataset = make_dataset(tmp_path / "data", IMAGES)
    more = ("--set", "engine.unit_size=1", "--ray-address", cluster.address)
    run = Run(dataset, tmp_path / "out", more)
    run.environment = {SECONDS: "0.2"}  # so that every machine gets a unit
    run.start()
    assert run.wait() == 2, run.said
    unequal = f"has tokenizers 0.1.2 (others {version('tokenizers')})"
    assert f"{unequal}: install the same on all, or add --set engine.allow_skew=true" in run.said

    run.more = (*more, "--set", "engine.allow_skew=true")
    run.start()
    finish(run)
    assert run.said.count(f"{unequal}: the last digits of scores may differ") == 1


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    run = Run(
        make_dataset(tmp_path / "data", 1), tmp_path / "out", ("--ray-address", "127.0.0.1:1")
    )
    run.start()
    assert run.wait() == 1
    assert run.said.splitlines()[-2:] == [
        "error: the Ray cluster at 127.0.0.1:1 cannot be joined: Connection refused",
        "Committed work is kept; run the same command again to resume.",
    ]


def machine(folder: Path, token: str = "") -> dict[str, str]:
    """The environment of a machine of its own as far as Ray can tell: a home, and a folder for
    sessions.
    """
    file = folder / "home" / ".ray" / "auth_token"
    file.parent.mkdir(parents=True)
    if token:
        file.write_text(token)
    return {"HOME": str(folder / "home"), "RAY_TMPDIR": str(folder), "RAY_worker_niceness": "0"}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Guarded]:
    """A machine with a token, and the address of a cluster that `ray start --head` begins there."""
    folder = Path(tempfile.mkdtemp(prefix="sg"))  # a short path
    settings = machine(folder, "a" * 64) | ({} if STARTS_WITH_TOKEN else {"RAY_AUTH_MODE": "token"})
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    environment = {
        name: value for name, value in os.environ.items() if not name.startswith("RAY_AUTH_")
    }
    environment |= {
        "PYTHONPATH": str(Path(__file__).parents[3]),
        "OMP_NUM_THREADS": "1",
        **settings,
    }
    command = [
        str(Path(sys.executable).with_name("ray")),
        "start",
        "--head",
        f"--port={port}",
        "--num-cpus=1",
    ]
    command += ["--include-dashboard=false", "--block"]
    log = folder / "ray.log"
    with log.open("wb") as file:
        head = subprocess.Popen(command, env=environment, stdout=file, stderr=file)
    wait_until(lambda: "will now block" in log.read_text() or head.poll() is not None, 600)
    assert head.poll() is None, log.read_text()
    yield settings, f"127.0.0.1:{port}"
    for pid in [head.pid, *descendants(head.pid)]:  # and nothing else of Ray's
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    head.wait()
    shutil.rmtree(folder, ignore_errors=True)


def join(environment: dict[str, str], address: str, tmp_path: Path) -> Run:
    """A run that joins a cluster, and has ended."""
    run = Run(
        make_dataset(tmp_path / "data", 4),
        tmp_path / "out",
        ("--ray-address", address),
        environment,
    )
    run.start()
    run.wait()
    return run


@needs_tokens
@pytest.mark.slow
@pytest.mark.parametrize("auto", [False, pytest.param(True, marks=pytest.mark.soak)])
def test_the_token_of_the_machine_opens_a_cluster(
    guarded: Guarded, tmp_path: Path, auto: bool
) -> None:
    settings, address = guarded
    run = join(settings, "auto" if auto else address, tmp_path)
    assert run.process.exitcode == 0, run.said
    assert len(rows(run.out)) == 4


@needs_tokens
@pytest.mark.soak
@pytest.mark.parametrize("token", ["", "b" * 64])
def test_without_the_token_of_a_cluster_a_run_ends_in_one_line(
    guarded: Guarded, tmp_path: Path, token: str
) -> None:
    settings, address = guarded
    other = machine(tmp_path / "other", token) | {"RAY_TMPDIR": settings["RAY_TMPDIR"]}
    run = join({**settings, **other}, address, tmp_path)
    assert run.process.exitcode == 1, run.said
    assert run.said.splitlines()[-2].startswith(
        f"error: the Ray cluster at {address} cannot be joined: "
    ), run.said
