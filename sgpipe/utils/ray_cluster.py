"""Start or join Ray, which reads its environment when it is imported: here, only by the functions
that need it.

A cluster may require a token. Ray presents one only with RAY_AUTH_MODE=token, to which an open
cluster cannot answer.
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sgpipe.errors import EngineError, first_line
from sgpipe.utils.console import QUIET, count

if TYPE_CHECKING:
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

_MODE = "RAY_AUTH_MODE"
_TOKEN = "RAY_AUTH_TOKEN"
_TOKEN_PATH = "RAY_AUTH_TOKEN_PATH"
_TOKEN_FILE = "~/.ray/auth_token"
_STDERR = 2
_LEVEL_LINE = b"Set ray log level from environment variable"
_CONNECT_SECONDS = 5
_PROBE_SECONDS = 60
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
# Ray Data makes every driver report an error that is none.
os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")


def prepare_ray(address: str | None = None) -> None:
    """Choose how Ray authenticates at `address` (None: on this machine alone). Call it before Ray
    is imported.

    A local Ray gets a token in memory: the file that Ray would write would also lock clusters that
    start here later.

    Raises:
        EngineError: nothing answers at the address, or no cluster that this machine may join.
    """
    if "ray" in sys.modules or _MODE in os.environ:
        return
    has_token = _has_token()
    if address is not None:
        os.environ[_MODE] = _mode_of(address, has_token)
        return
    os.environ[_MODE] = "token"
    if not has_token:
        os.environ[_TOKEN] = secrets.token_hex(32)


def _has_token() -> bool:
    """Return whether this machine has a token for clusters."""
    if os.environ.get(_TOKEN) or os.environ.get(_TOKEN_PATH):
        return True
    file = Path(_TOKEN_FILE).expanduser()
    return file.is_file() and file.stat().st_size > 0


def _mode_of(address: str, has_token: bool) -> str:
    """Return how a cluster authenticates.

    Raises:
        EngineError: as `prepare_ray`.
    """
    try:
        _check_port(address.removeprefix("ray://"))
    except OSError as error:
        raise EngineError(
            f"the Ray cluster at {address} cannot be joined: {error.strerror or error}"
        ) from None
    modes = ["disabled", "token"] if has_token else ["disabled"]
    if address.startswith("ray://"):
        return modes[-1]
    for mode in modes:
        if _answers(address, mode):
            return mode
    token = f"it requires a token ({_TOKEN_FILE})"
    if has_token:
        token = "the token of this machine is not its own"
    raise EngineError(
        f"the Ray cluster at {address} cannot be joined: it does not answer, or {token}"
    )


def _answers(address: str, mode: str) -> bool:
    command = [sys.executable, "-m", "ray.scripts.scripts", "status"]
    if address != "auto":
        command += ["--address", address]
    environment = {
        **os.environ,
        _MODE: mode,
        "RAY_gcs_rpc_server_connect_timeout_s": str(_CONNECT_SECONDS),
    }
    try:  # only a process of its own can find out
        return not subprocess.run(
            command, env=environment, capture_output=True, timeout=_PROBE_SECONDS
        ).returncode
    except subprocess.TimeoutExpired:
        return False


def start_ray(
    address: str | None = None,
    cpus: int | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> None:
    """Join a cluster, or start one on this machine, unless this process has.

    Args:
        address: of the cluster; None: start one.
        cpus: of one that starts; None: all.
        say: gets a line on what is done.

    Raises:
        EngineError: Ray does not start, or the cluster cannot be joined.
    """
    import ray

    if ray.is_initialized():
        return
    say(f"joining Ray at {address}" if address else "starting Ray")
    on_terminate = signal.getsignal(signal.SIGTERM)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if not address:
        quiet |= {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": "127.0.0.1"}
    try:
        if address:
            _check_port(address.removeprefix("ray://"))
        with _without_level_line() if QUIET in os.environ else nullcontext():
            ray.init(address or "local", **quiet)
    except Exception as error:  # noqa: BLE001 - Ray raises a plain Exception on a machine that is too slow for it
        failure = "Ray did not start here"
        if address:
            failure = f"the Ray cluster at {address} cannot be joined"
        raise EngineError(f"{failure}: {_reason(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray installs its own handler


def _reason(error: Exception) -> str:
    """Return in one line why Ray did not start."""
    reason: str = getattr(error, "strerror", None) or first_line(error)
    if reason.endswith(":"):  # it announces the other lines, as that of unequal versions
        return " ".join(str(error).split())
    return reason


@contextmanager
def _without_level_line() -> Iterator[None]:
    """Leave out what Ray's C++ part says of its log level, which no setting prevents; other lines
    follow at the end.
    """
    stream = sys.__stderr__
    if stream is None:
        yield
        return
    stream.flush()
    original = os.dup(_STDERR)
    with tempfile.TemporaryFile() as lines:
        os.dup2(lines.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(original, _STDERR)
            os.close(original)
            lines.seek(0)
            for line in lines:
                if _LEVEL_LINE not in line:
                    os.write(_STDERR, line)


def tell_losses(say: Callable[[str], None]) -> Iterator[None]:
    """Say at each step what the cluster has lost since the last one: machines, or its head, without
    which Ray ends.
    """
    import ray

    def lost() -> int:
        return sum(not node["Alive"] for node in ray.nodes())

    # a client at ray:// does not know it
    head = getattr(ray.get_runtime_context(), "gcs_address", "")
    before = lost()
    answered = True
    while True:
        yield
        try:
            _check_port(head)
        except OSError:
            if answered:
                say(
                    "NOTE: the head of Ray does not answer; unless it returns soon, this command"
                    " ends with exit code 1"
                )
                say(
                    "Committed work is kept; run the same command again to resume, also on another"
                    " cluster."
                )
            answered = False
            continue
        answered = True
        now = lost()
        if now > before:
            say(
                f"NOTE: Ray has lost {count(now - before, 'machine')}; others take over the units"
                " in progress there"
            )
        before = now


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Schedule an actor on the driver's machine, so that it is lost only together with the
    driver.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def worker_failure(error: BaseException) -> str:
    """Return the innermost message of what Ray raised, in one line."""
    for line in str(error).splitlines():
        is_error = re.match(r"[\w.]+([Ee]rror|Exception)(: |$)", line)
        if is_error and not line.startswith(("ray.", "UserCodeException")):
            return f"a worker failed: {line}"
    return f"a worker failed: {first_line(error)}"


def _check_port(address: str) -> None:
    """Ray itself would try for a minute, and then end the process.

    Raises:
        OSError: nothing answers at HOST:PORT.
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()
