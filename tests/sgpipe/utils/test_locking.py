import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from sgpipe.errors import UserError
from sgpipe.utils.locking import only_process

HOLD = """
import sys, time
from pathlib import Path
from sgpipe.utils.locking import only_process
with only_process(Path(sys.argv[1]), Path("out")):
    print("held", flush=True)
    time.sleep(60)
"""


def test_the_second_is_told_who_the_first_is(tmp_path: Path) -> None:
    with (
        only_process(tmp_path / "lock", Path("out")),
        pytest.raises(UserError, match=rf"another run \(process {os.getpid()}\) is writing into out; wait for it"),
        only_process(tmp_path / "lock", Path("out")),
    ):
        pytest.fail("two at once")
    with only_process(tmp_path / "lock", Path("out")):
        assert (tmp_path / "lock").read_text() == str(os.getpid())


def test_an_error_lets_go(tmp_path: Path) -> None:
    with pytest.raises(KeyError), only_process(tmp_path / "lock", Path("out")):
        raise KeyError
    with only_process(tmp_path / "lock", Path("out")):
        pass


def test_a_killed_process_lets_go(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(lock)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=rf"process {process.pid}"), only_process(lock, Path("out")):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with only_process(lock, Path("out")):
        pass
