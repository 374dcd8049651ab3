"""Several machines: raylets of their own on this one, with the output folder shared."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.cluster_utils import Cluster

from tests.integration.faults.runs import Run, assert_whole, make_dataset, rows
from tests.integration.faults.stage import GPUS, MARKS, SECONDS

IMAGES = 60


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """Three machines; the driver is on the first."""
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[3]))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def finish(run: Run) -> None:
    """To its end, where it is what an uninterrupted run is.

    Ray puts the driver on any machine of this address, perhaps on one that is lost; that ends it as SIGTERM does.
    """
    code = run.wait()
    if code == 130:
        run.start()
        code = run.wait()
    assert code == 0, run.said
    whole = Run(run.dataset, run.out.with_name("whole"))
    whole.start()
    assert whole.wait() == 0, whole.said
    assert_whole(run.out, rows(whole.out))


@pytest.mark.slow
def test_a_run_outlives_one_of_three_machines(cluster: Cluster, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "data", IMAGES)
    run = Run(dataset, tmp_path / "out", ("--set", "engine.unit_size=1", "--ray-address", cluster.address))
    run.environment = {SECONDS: "0.5"}
    run.start()
    assert run.wait_for(lambda: run.committed > 5), run.said
    lost = next(iter(cluster.worker_nodes))
    cluster.remove_node(lost, allow_graceful=False)
    finish(run)
    assert "3 actors: stub" in run.said


@pytest.mark.slow
def test_units_between_stages_may_be_lost_with_their_machine(cluster: Cluster, tmp_path: Path) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()
    dataset = make_dataset(tmp_path / "data", IMAGES)
    cluster.add_node(num_cpus=2)
    run = Run(dataset, tmp_path / "out", ("--set", "engine.unit_size=1", "--ray-address", cluster.address))
    run.environment = {SECONDS: "0.5", MARKS: str(marks)}
    run.start()
    assert run.wait_for(lambda: run.committed > 5), run.said
    for lost in list(cluster.worker_nodes)[:2]:
        cluster.remove_node(lost, allow_graceful=False)
    finish(run)


@pytest.mark.slow
def test_stages_run_where_their_resources_are(cluster: Cluster, tmp_path: Path) -> None:
    cluster.add_node(num_cpus=2, num_gpus=2)
    marks = tmp_path / "marks"
    marks.mkdir()
    dataset = make_dataset(tmp_path / "data", IMAGES)
    run = Run(dataset, tmp_path / "out", ("--set", "engine.unit_size=2", "--ray-address", cluster.address))
    run.environment = {MARKS: str(marks), GPUS: "1"}
    run.start()
    assert run.wait() == 0, run.said
    assert "2 actors: stub" in run.said, run.said
    assert {mark.read_text() for mark in marks.iterdir()} <= {"0", "1"}
    assert len(list(marks.iterdir())) == len(rows(run.out)) == IMAGES


def test_a_cluster_that_is_not_there_is_told_at_once(tmp_path: Path) -> None:
    run = Run(make_dataset(tmp_path / "data", 1), tmp_path / "out", ("--ray-address", "127.0.0.1:1"))
    run.start()
    assert run.wait() == 1
    assert run.said.splitlines()[-2:] == [
        "error: the Ray cluster at 127.0.0.1:1 cannot be joined: Connection refused",
        "Committed work is kept; run the same command again to resume.",
    ]
