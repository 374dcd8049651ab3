"""Starting or joining Ray. Import this module before Ray, which reads its environment once.

From 2.59 on, `ray start --head` requires a token of everyone who joins as soon as its machine has one, such as the one
that a local run writes to ~/.ray/auth_token; but Ray presents a token only if RAY_AUTH_MODE=token is set.
"""

from __future__ import annotations

import logging
import os
import platform
import re
import signal
import socket
import sys
import threading
from pathlib import Path
from typing import Any

_TOKENS = (os.environ.get("RAY_AUTH_TOKEN"), os.environ.get("RAY_AUTH_TOKEN_PATH"))
if "ray" not in sys.modules and (any(_TOKENS) or Path("~/.ray/auth_token").expanduser().exists()):
    os.environ.setdefault("RAY_AUTH_MODE", "token")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # Ray Data makes every driver report an error that is none

import ray  # noqa: E402
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # noqa: E402

from sgpipe.errors import EngineError  # noqa: E402
from sgpipe.utils import __version__  # noqa: E402

_CONNECT_SECONDS = 5


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join the cluster at `address`, or start one on this machine with `cpus` CPUs (None: all). Raises EngineError."""
    if ray.is_initialized():
        return
    on_terminate = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address:
            _check_port(address.removeprefix("ray://"))
            ray.init(address, **quiet)
        else:
            ray.init("local", num_cpus=cpus, include_dashboard=False, _node_ip_address="127.0.0.1", **quiet)
    except Exception as error:  # noqa: BLE001 - Ray raises a plain Exception on a machine that is too slow for it
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray did not start here"
        raise EngineError(f"{what}: {getattr(error, 'strerror', None) or _first_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray installs its own handler


def software() -> str:
    """Return what every machine of a cluster needs in the same version."""
    return f"sgpipe {__version__} on Python {platform.python_version().rpartition('.')[0]}"


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Schedule an actor on the driver's machine, so that it is lost only together with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def worker_failure(error: BaseException) -> str:
    """Return the innermost message of what Ray raised, in one line."""
    named = [line for line in str(error).splitlines() if re.match(r"[\w.]+([Ee]rror|Exception)(: |$)", line)]
    inner = [line for line in named if not line.startswith(("ray.", "UserCodeException"))]
    return f"a worker failed: {(inner or [_first_line(error)])[0]}"


def _check_port(address: str) -> None:
    """Raises OSError: nothing answers at HOST:PORT. Ray itself would try for a minute, and then end the process."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _first_line(error: BaseException) -> str:
    """Return the first line; all of them if it announces the others, as that of two versions which differ."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines) if lines[0].endswith(":") else lines[0]
