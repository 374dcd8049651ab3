"""The lock of an object store: of several runs one holds it, and stops before another may."""

import json
import os
import subprocess
import sys
import threading
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sgpipe.errors import StoreError, UserError
from sgpipe.files.object_store import ConditionsError, StorePath
from sgpipe.storage import lock as store_lock
from sgpipe.storage.lock import LOCK, StoreLock
from sgpipe.storage.manifest import MANIFEST, Manifest
from sgpipe.storage.mirror import ManifestMirror
from sgpipe.storage.run_folder import RunFolder
from sgpipe.utils.locking import LockOwner
from tests.endpoint_server import wait_until


def owner(process: int, host: str, **more: str) -> bytes:
    return json.dumps({"process": process, "host": host, "token": "another", **more}).encode()


def test_one_run_at_a_time_writes_into_a_store(store: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    with StoreLock(store).held(), pytest.raises(UserError, match=f"process {os.getpid()}.* wait for it, or, if it"):
        StoreLock(store).held().__enter__()
    assert store.read(LOCK) is None
    dead = subprocess.Popen(["true"])
    dead.wait()
    store.put(LOCK, replace(LockOwner.this_process(), process=dead.pid, token="another").record().encode())
    with StoreLock(store).held():
        pass
    store.put(LOCK, owner(1, "another-machine"))
    with pytest.raises(UserError, match="process 1 on another-machine"):
        StoreLock(store).held().__enter__()
    monkeypatch.setattr(store_lock, "_STALE_SECONDS", -5)
    with StoreLock(store).held():
        pass
    assert store.sizes(".sgpipe") == {}


def race(store: StorePath, runs: int) -> int:
    """How many of some runs that start at once hold the lock of a store at the same time; none waits for another."""
    start, end, held = threading.Barrier(runs), threading.Barrier(runs), []

    def run() -> None:
        lock = StoreLock(store)
        start.wait()
        try:
            with lock.held():
                held.append(lock)
                end.wait()
        except UserError:
            end.wait()

    threads = [threading.Thread(target=run) for _ in range(runs)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(held)


@pytest.mark.parametrize("stale", [False, True], ids=["no lock", "the lock of a dead run"])
def test_of_runs_that_start_at_once_exactly_one_gets_the_lock(
    store: StorePath, monkeypatch: pytest.MonkeyPatch, stale: bool
) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    record = replace(LockOwner.this_process(), process=dead.pid, token="another").record().encode()
    for number in range(50):
        if stale:
            store.put(LOCK, record)
        assert race(store, 2 + number % 3) == 1
        assert store.read(LOCK) is None


def test_processes_that_start_at_once_share_no_lock(store: StorePath, tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from sgpipe.storage.lock import StoreLock\n"
        "from sgpipe.files.object_store import StorePath; from sgpipe.errors import UserError\n"
        "lock = StoreLock(StorePath(sys.argv[1])); print('ready', flush=True)\n"
        "def wait_for(name):\n    while not Path(sys.argv[2], name).exists(): time.sleep(0.001)\n"
        "wait_for('start')\n"
        "try:\n    with lock.held(): print('held'); wait_for('end')\nexcept UserError: print('refused')\n"
    )
    command = [sys.executable, "-c", code, store.uri, str(tmp_path)]
    runs = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert [run.stdout.readline() for run in runs] == ["ready\n"] * 3
    (tmp_path / "start").touch()
    wait_until(lambda: sum(run.poll() is not None for run in runs) >= 2)
    (tmp_path / "end").touch()
    assert sorted(run.communicate()[0] for run in runs) == ["held\n", "refused\n", "refused\n"]


def test_clocks_of_machines_do_not_matter(store: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store's clock decides what is stale, however wrong this machine's is."""
    store.put(LOCK, owner(1, "another-machine"))
    for wrong in (-1e6, 1e6):
        monkeypatch.setattr(time, "time", lambda wrong=wrong: 1.8e9 + wrong)
        with pytest.raises(UserError, match=r"if it died, for 1[45]\d s"):
            StoreLock(store).held().__enter__()


def test_the_lock_of_a_run_at_work_is_renewed(store: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store_lock, "_RENEW_SECONDS", 0.01)
    lock = StoreLock(store)
    with lock.held():
        versions, end = {str(store.get(LOCK))}, time.monotonic() + 120
        while len(versions) < 3 and time.monotonic() < end:
            time.sleep(0.05)
            versions.add(str(store.get(LOCK)))
            lock.check()
        assert len(versions) == 3
    assert store.read(LOCK) is None


def test_an_answer_that_is_lost_loses_no_lock(store: StorePath, monkeypatch: pytest.MonkeyPatch) -> None:
    """The store carries requests out, but its answers do not arrive: what it has then is this run's own."""
    original, lost = StorePath.put_if, [True]

    def put_if(self: StorePath, name: str, data: bytes, version: Any) -> Any:
        written = original(self, name, data, version)
        if lost:
            if lost.pop():
                return None  # the request was repeated, and refused
            raise StoreError("no answer")
        return written

    monkeypatch.setattr(StorePath, "put_if", put_if)
    lock = StoreLock(store)
    with lock.held():
        assert not lost
        for answer in (True, False):
            lost.append(answer)
            with suppress(StoreError):
                lock._renew()
            lock._renew()
            lock.check()


def test_a_run_that_cannot_renew_its_lock_stops_before_another_may_take_it(
    store: StorePath, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert store_lock._SAFE_SECONDS + store_lock._RETRY_SECONDS + 3 * 10 < store_lock._STALE_SECONDS
    for name, seconds in (("_RENEW_SECONDS", 0.01), ("_RETRY_SECONDS", 0.01), ("_SAFE_SECONDS", 0.5)):
        monkeypatch.setattr(store_lock, name, seconds)

    def unreachable(*_: object) -> None:
        raise StoreError("unreachable")

    def run() -> None:
        with StoreLock(store).held():
            monkeypatch.setattr(StorePath, "put_if", unreachable)
            threading.Event().wait(60)
            pytest.fail("the run was not stopped")

    with pytest.raises(StoreError, match="could not be renewed for 0 s; soon another run may take it"):
        run()


@pytest.mark.parametrize("refuses", [False, True], ids=["ignores conditions", "refuses conditions"])
def test_a_store_without_conditional_writes_is_told_in_one_line(
    store: StorePath, monkeypatch: pytest.MonkeyPatch, refuses: bool
) -> None:
    def put_if(self: StorePath, name: str, data: bytes, version: Any) -> Any:
        if refuses:
            raise ConditionsError
        self.put(name, data)
        return self.get(name)[1]

    monkeypatch.setattr(StorePath, "put_if", put_if)
    lock = StoreLock(store)
    held = lock.held()
    with pytest.warns(UserWarning, match=r"^s3://.* has no conditional writes: of two runs") as told:
        held.__enter__()
    assert len(told) == 1
    assert "\n" not in str(told[0].message)
    with pytest.raises(UserError, match="another run"):
        StoreLock(store).held().__enter__()
    lock._renew()
    lock.check()
    store.put(LOCK, owner(1, "another-machine"))
    lock._renew()
    with pytest.raises(StoreError, match="another run took over"):
        lock.check()
    held.__exit__(None, None, None)
    assert store.read(LOCK) == owner(1, "another-machine")


def test_a_lock_that_was_taken_over_is_left_alone(
    store: StorePath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store_lock, "_RENEW_SECONDS", 0.5)
    folder, other = RunFolder(tmp_path / "out", store), owner(1, "another-machine")
    with pytest.raises(StoreError, match="another run took over"), folder.lock():  # noqa: PT012
        manifest = Manifest.create(folder.root, {})
        store.put("data/val-000000000-000000002.parquet", b"the other run's")
        store.put(LOCK, other)
        with pytest.raises(KeyboardInterrupt):
            threading.Event().wait(60)
        for forbidden in (lambda: folder.sweep(manifest), ManifestMirror(folder).copy):
            with pytest.raises(StoreError, match="another run took over"):
                forbidden()
        raise KeyboardInterrupt
    assert store.read(LOCK) == other
    assert store.sizes("data") == {"val-000000000-000000002.parquet": 15}
    assert store.read(MANIFEST) is None
