import errno
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import EngineError, UserError
from sgpipe.utils import locking
from sgpipe.utils.atomic import delete_leftovers
from sgpipe.utils.locking import LockOwner, is_locked, only_process, temporary_folder

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
        owner = LockOwner.read((tmp_path / "lock").read_text())
        assert owner is not None
        assert (owner.process, owner.is_on_this_machine, owner.has_ended()) == (os.getpid(), True, False)
    assert (tmp_path / "lock").read_text() == ""


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


ME = LockOwner.this_process()
ELSEWHERE = replace(ME, boot="another machine")  # with this host name and process id, as in another container
NEXT_DOOR = replace(ME, namespace="another container")
ENDED = subprocess.Popen(["true"])
ENDED.wait()


def no_flock(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locking.fcntl, "flock", refused)


def left(folder: Path, owner: LockOwner, seconds: float = 0) -> Path:
    """A lock file as a killed process leaves it, with its last heartbeat `seconds` ago."""
    lock = folder / "lock"
    lock.write_text(owner.record())
    os.utime(lock, (time.time() - seconds,) * 2)
    return lock


def take(lock: Path) -> None:
    with only_process(lock, Path("out")):
        assert LockOwner.read(lock.read_text())


@pytest.mark.parametrize(
    ("flock", "owner", "seconds", "free"),
    [
        # Of this machine, the system's lock knows: also of other containers, whatever the heartbeat says.
        (True, ME, 0, True),
        (True, NEXT_DOOR, 0, True),
        (True, ELSEWHERE, 20, False),
        (True, ELSEWHERE, 1000, True),
        # Without it: what /proc says of processes that can be seen, the heartbeat of all others.
        (False, ME, 20, False),
        (False, replace(ME, process=ENDED.pid), 0, True),
        (False, replace(ME, started="1"), 0, True),  # the process id was used again
        (False, NEXT_DOOR, 20, False),
        (False, replace(NEXT_DOOR, process=ENDED.pid), 20, False),
        (False, replace(NEXT_DOOR, process=ENDED.pid), 1000, True),
        (False, ELSEWHERE, 20, False),
        (False, replace(ELSEWHERE, process=ENDED.pid), 20, False),
        (False, ELSEWHERE, 1000, True),
        (False, LockOwner(os.getpid(), ME.host), 20, False),  # a record of version 0.1
        (False, LockOwner(os.getpid(), ME.host), 1000, True),
    ],
)
def test_no_live_lock_is_stolen_and_no_dead_one_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flock: bool, owner: LockOwner, seconds: float, free: bool
) -> None:
    if not flock:
        no_flock(monkeypatch)
    lock = left(tmp_path, owner, seconds)
    assert is_locked(lock) is not free
    if free:
        take(lock)
    else:
        with pytest.raises(UserError, match=r"another run \(process \d+.*wait for it, or, if it died, for 1[23]\d s$"):
            take(lock)
        assert lock.read_text() == owner.record()
    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


@pytest.mark.parametrize(
    "record", ["", "7", "{", "[]", "7.5", '{"process": -1, "host": "a"}', '{"process": "x"}', "\0"]
)
def test_records_that_name_nobody_are_no_locks(tmp_path: Path, record: str) -> None:
    (tmp_path / "lock").write_text(record)
    take(tmp_path / "lock")


def test_without_the_systems_lock_one_of_many_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_flock(monkeypatch)
    for race in range(5):
        lock, done = tmp_path / str(race), threading.Event()
        won: list[int] = []
        start = threading.Barrier(8)

        def run(lock: Path = lock, done: Any = done, won: list[int] = won, start: Any = start) -> None:
            start.wait()
            try:
                with only_process(lock, tmp_path):
                    won.append(1)
                    done.wait(20)
            except UserError:
                won.append(0)

        threads = [threading.Thread(target=run) for _ in range(8)]
        for thread in threads:
            thread.start()
        while len(won) < 8:
            time.sleep(0.01)
        done.set()
        for thread in threads:
            thread.join()
        assert sum(won) == 1


def test_a_suspended_process_learns_that_it_lost_its_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    no_flock(monkeypatch)
    with only_process(tmp_path / "lock", Path("out")) as held:
        held.check()
        left(tmp_path, ELSEWHERE)
        with pytest.raises(EngineError, match="out: another run took over"):
            held.check()
    assert is_locked(tmp_path / "lock")  # theirs


def test_a_held_lock_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "RENEW_SECONDS", 0.01)
    lock = tmp_path / "lock"
    with only_process(lock, Path("out")):
        os.utime(lock, (0, 0))
        while lock.stat().st_mtime == 0:
            time.sleep(0.01)


def test_a_lock_whose_file_was_removed_is_not_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused run removes its folder with the lock in it, perhaps while another process opens that lock."""
    flock = locking.fcntl.flock
    files: list[Any] = []

    def removed_meanwhile(file: Any, kind: int) -> None:
        if not files:
            (tmp_path / "lock").unlink()
        files.append(file)
        flock(file, kind)

    monkeypatch.setattr(locking.fcntl, "flock", removed_meanwhile)
    with only_process(tmp_path / "lock", Path("out")):
        assert is_locked(tmp_path / "lock")
    assert len(files) == 3


def test_a_dead_process_that_nobody_has_waited_for_has_ended() -> None:
    process = subprocess.Popen(["true"])
    while (locking._state_and_start(process.pid) or "R")[0] != "Z":
        time.sleep(0.01)
    assert replace(ME, process=process.pid).has_ended()
    process.wait()


def test_the_temporary_folder_of_a_killed_process_is_deleted_by_the_next(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, pathlib, sys; from sgpipe.utils.locking import temporary_folder\n"
        "with temporary_folder() as folder:\n    (folder / 'spilled').write_text('x' * 1000)\n"
        "    print(folder, flush=True); sys.stdin.read(); os.kill(os.getpid(), 9)\n"
    )
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    other = subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    left, somebody_elses = Path(other.stdout.readline().strip()), tmp_path / "sgpipe-new"
    somebody_elses.mkdir()
    with temporary_folder() as folder:
        assert folder.parent == left.parent
        assert (left / "spilled").exists()  # its process is at work
    assert not folder.exists()
    other.communicate()
    with temporary_folder():
        assert not left.exists()
    assert somebody_elses.exists()


def test_files_of_killed_writers_are_deleted_after_a_day(tmp_path):
    out = tmp_path / "out[1].json"
    old, young, other = (tmp_path / f".{out.name}.{name}.tmp" for name in ("a" * 32, "b" * 32, "mine"))
    for file in (old, young, other):
        file.touch()
    for file in (old, other):
        os.utime(file, (0, 0))
    delete_leftovers(out)
    assert {path.name for path in tmp_path.iterdir()} == {young.name, other.name}
