"""Ctrl-C and SIGTERM: once, twice, and in the middle of a unit that takes a quarter of an hour."""

import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from sgpipe.storage.manifest import Manifest
from tests.endpoint_server import wait_until
from tests.integration.faults.runs import Run, assert_whole, finished, make_dataset, rows
from tests.integration.faults.stage import SECONDS

IMAGES = 60
GO_ON = "Committed work is kept; run the same command again to resume."


def stop(run: Run, *signals: signal.Signals) -> None:
    """Send them to the run half a second apart, and wait for its end."""
    for number in signals:
        with suppress(ProcessLookupError):  # the first has ended it
            os.kill(run.process.pid or 0, number)
        run.wait_for(lambda: False, 0.5)
    assert run.wait() == 130, run.said


@pytest.mark.slow
@pytest.mark.parametrize("signals", [(signal.SIGINT,), (signal.SIGTERM, signal.SIGINT)])
def test_a_stopped_run_says_how_to_go_on_and_goes_on(tmp_path: Path, signals: tuple[signal.Signals, ...]) -> None:
    run = Run(make_dataset(tmp_path / "data", IMAGES), tmp_path / "out", environment={SECONDS: "0.5"})
    run.start()
    assert run.wait_for(lambda: run.committed > 1)
    second = Run(run.dataset, run.out)
    second.log = tmp_path / "second.log"
    second.start()
    assert second.wait() == 2
    assert second.said.startswith(f"error: {run.out} is in use by process {run.process.pid} on ")
    stop(run, *signals)
    endings = ("interrupted.", "stopped at once.")[: len(signals)]
    assert run.said.splitlines()[-1] in [f"{ending} {GO_ON}" for ending in endings]
    assert "Traceback" not in run.said
    assert not {record.image_id for record in rows(run.out)} - {str(number) for number in range(IMAGES)}
    assert 0 < len(Manifest.load(run.out).shards) < IMAGES
    run.environment = {}
    assert_whole(finished(run).out, rows(finished(Run(run.dataset, tmp_path / "whole")).out))


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, pytest.param(2, marks=pytest.mark.soak)])
def test_nobody_waits_for_a_unit_that_takes_long(tmp_path: Path, times: int) -> None:
    run = Run(make_dataset(tmp_path / "data", IMAGES), tmp_path / "out", environment={SECONDS: "900"})
    run.start()
    assert run.wait_for(lambda: run.processes("local_engine"))
    workers = run.processes("local_engine")
    stop(run, *[signal.SIGINT] * times)
    wait_until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))  # some seconds, until they notice
