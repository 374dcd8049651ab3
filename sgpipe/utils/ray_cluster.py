"""Starting or joining Ray, and what its errors come down to."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sgpipe.errors import EngineError, UserError
from sgpipe.utils.console import count

_CONNECT_SECONDS = 5


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join the cluster at `address`, or start one on this machine with `cpus` CPUs (None: all). Raises EngineError."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    local: dict[str, Any] = {} if address else {"num_cpus": cpus, "include_dashboard": False}
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _connect(address)
        with _quiet_stderr():
            ray.init(address=address or "local", log_to_driver=False, logging_level=logging.ERROR, **local)
    except Exception as error:  # noqa: BLE001 - Ray raises a plain Exception on a machine that is too slow for it
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray did not start here"
        raise EngineError(f"{what}: {getattr(error, 'strerror', None) or _first_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray installs its own handler


def check_workers(workers: int, cpus: float, gpus: float, lower: Mapping[str, str]) -> str | None:
    """Refuse workers that would wait for ever; return a note if Ray has GPUs that they do not use.

    Args:
        cpus, gpus: of each worker.
        lower: by "CPU" and "GPU", the settings to lower or raise.

    Raises UserError: Ray has too few CPUs or GPUs.
    """
    resources = ray.cluster_resources()
    for name, each in (("CPU", cpus), ("GPU", gpus)):
        available = resources.get(name, 0)
        if each * workers > available + 1e-6:
            needed = f"{each * workers:g} {name}{'' if each * workers == 1 else 's'}"
            raise UserError(
                f"{count(workers, 'worker')} need{'s' if workers == 1 else ''} {needed}, but Ray has {available:g}; "
                f"lower {lower[name]}"
            )
    if gpus or not (unused := resources.get("GPU", 0)):
        return None
    return f"NOTE: Ray has {unused:g} {'GPU' if unused == 1 else 'GPUs'}, but the workers use none: give --gpus 1"


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Schedule an actor on the driver's machine, so that it is lost only together with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def worker_failure(error: BaseException) -> str:
    """The innermost message of what Ray raised, in one line."""
    named = [line for line in str(error).splitlines() if re.match(r"[\w.]+([Ee]rror|Exception)(: |$)", line)]
    inner = [line for line in named if not line.startswith(("ray.", "UserCodeException"))]
    return f"a worker failed: {(inner or [_first_line(error)])[0]}"


def _connect(address: str | None) -> None:
    """Raises OSError: nothing answers at HOST:PORT. Ray itself would try for a minute, and then end the process."""
    host, colon, port = (address or "").removeprefix("ray://").rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host, int(port)), timeout=_CONNECT_SECONDS).close()


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Ray's core prints its log level to the process's stderr, whatever that level is."""
    saved = os.dup(2)
    with open(os.devnull, "w") as devnull:
        os.dup2(devnull.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(saved, 2)
        os.close(saved)


def _first_line(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
