"""Compute results of items in processes of this machine, in their order."""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from sgpipe.errors import UserError
from sgpipe.utils.prefetch import start_early

Item = TypeVar("Item")
Result = TypeVar("Result")

_WAITING = 2  # items of a process that are computed or wait


def usable_cpus() -> int:
    """Return the number of CPUs that this process may use, also in a container."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cpus = min(cpus, max(1, int(quota) // int(period)))
    return cpus


@contextmanager
def in_processes(
    function: Callable[[Item], Result], items: Iterable[Item], processes: int
) -> Iterator[Iterator[Result]]:
    """Yield the results of each item; `items` are read in this process, a few ahead.

    Args:
        function: can be pickled, as items and results can.
        processes: their number; with one, results are computed here when they are requested.

    Raises:
        UserError: a process was killed.
    """
    if processes <= 1:
        yield map(function, items)
        return
    # a fork would copy the threads of DuckDB and Arrow in an unknown state
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, context, _end_with_parent)
    try:
        futures = start_early(lambda item: pool.submit(function, item), items, _WAITING * processes)
        yield (future.result() for future in futures)
    except BrokenProcessPool:
        raise UserError(
            "a worker process was killed, probably as the memory was full: use fewer --workers"
        ) from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _end_with_parent() -> None:
    """Let this process end when its parent is killed; Ctrl-C is for the parent alone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
    os._exit(1)
