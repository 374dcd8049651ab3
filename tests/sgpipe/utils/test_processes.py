import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.utils.processes import in_processes

_NUMBERS = list(range(20))


def square(number: int) -> tuple[int, int]:
    return number * number, os.getpid()


def kill_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def wait_for_long(folder: Path) -> None:
    (folder / str(os.getpid())).touch()
    time.sleep(600)


def is_alive(process: int) -> bool:
    status = Path(f"/proc/{process}/stat")
    return status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.slow
@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_come_in_order(processes):
    with in_processes(square, _NUMBERS, processes) as results:
        squares, pids = zip(*results, strict=True)
    assert list(squares) == [number * number for number in _NUMBERS]
    assert (os.getpid() in pids) == (processes < 2)


@pytest.mark.slow
def test_a_killed_process_is_told():
    with (
        pytest.raises(UserError, match="use fewer --workers"),
        in_processes(kill_at_seven, _NUMBERS, 2) as results,
    ):
        list(results)


@pytest.mark.slow
def test_processes_end_with_a_killed_parent(tmp_path):
    body = (
        "from pathlib import Path; from sgpipe.utils.processes import in_processes;"
        "from tests.sgpipe.utils.test_processes import wait_for_long\n"
        "if __name__ == '__main__':\n"
        f"  with in_processes(wait_for_long, [Path({str(tmp_path)!r})] * 3, 2) as r: list(r)"
    )
    parent = subprocess.Popen([sys.executable, "-c", body])
    deadline = time.monotonic() + 60
    while len(list(tmp_path.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    parent.kill()
    parent.wait()
    workers = [int(file.name) for file in tmp_path.iterdir()]
    while any(map(is_alive, workers)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(workers) == 2
    assert not any(map(is_alive, workers))
