"""Starting or joining Ray, the token that a cluster may require, and what Ray's errors come down to.

From 2.52 on, Ray can require a token of everyone who joins; from 2.59 on, `ray start --head` does so by itself as soon
as its machine has a token. Ray looks for it in RAY_AUTH_TOKEN, in the file that RAY_AUTH_TOKEN_PATH names, and in
~/.ray/auth_token, but presents it to a cluster at HOST:PORT only if RAY_AUTH_MODE=token is set.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import secrets
import signal
import socket
import tempfile
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray
from ray._private import services
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sgpipe.errors import EngineError, UserError
from sgpipe.utils.installation import installation, missing_there
from sgpipe.utils.locking import temporary_folder

_core: Any = ray._raylet  # has no types
_CONNECT_SECONDS = 5
_ANSWER_SECONDS = 120  # of a machine that starts a process and imports sgpipe
_MODE, _TOKEN, _TOKEN_PATH, _TOKEN_FILE = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "~/.ray/auth_token"
# Ray's own names for how long it waits for an answer, by version.
_WAITS = ("RAY_py_gcs_connect_timeout_s", "RAY_gcs_rpc_server_connect_timeout_s")
_LOOPBACK = "127.0.0.1"


def start_ray(address: str | None = None, cpus: int | None = None) -> None:
    """Join the cluster at `address`, or start one on this machine with `cpus` CPUs (None: all). Raises EngineError."""
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            _join(address)
        else:
            _start_here(cpus)
    except EngineError:
        raise
    except Exception as error:  # noqa: BLE001 - Ray raises a plain Exception on a machine that is too slow for it
        what = f"the Ray cluster at {address} cannot be joined" if address else "Ray did not start here"
        raise EngineError(f"{what}: {getattr(error, 'strerror', None) or _first_line(error)}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)  # Ray installs its own handler


def check_machines() -> list[str]:
    """Whether every machine of the cluster runs the sgpipe of this process; returns what else is worth a note.

    Raises:
        UserError: a machine has no sgpipe, or another one.
    """
    own, here = installation(), ray.get_runtime_context().get_node_id()
    others = {node["NodeID"]: node for node in ray.nodes() if node["Alive"] and node["NodeID"] != here}
    asked = {name: _describe(name) for name in others}
    notes = []
    for name, answer in asked.items():
        try:
            found = ray.get(answer, timeout=_ANSWER_SECONDS)
        except RayError:  # lost, or too busy to start a process; its actors say what it has
            continue
        if isinstance(found, str):
            raise UserError(missing_there(others[name]["NodeManagerHostname"], found))
        if misfit := own.misfit(found):
            raise UserError(misfit)
        if note := own.other_libraries(found):
            notes.append(note)
    return notes


def _describe(node: str) -> ray.ObjectRef[Any]:
    """The installation of a machine, or why it has none."""

    def describe() -> Any:  # travels by its code: the other sgpipe may not have it
        try:
            from sgpipe.utils.installation import installation

            return installation()
        except ImportError as error:
            return str(error)

    strategy = NodeAffinitySchedulingStrategy(node, soft=False)
    return ray.remote(describe).options(num_cpus=0, scheduling_strategy=strategy).remote()


def on_driver_node() -> NodeAffinitySchedulingStrategy:
    """Schedule an actor on the driver's machine, so that it is lost only together with the driver."""
    return NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)


def worker_failure(error: BaseException) -> str:
    """The innermost message of what Ray raised, in one line."""
    named = [line for line in str(error).splitlines() if re.match(r"[\w.]+([Ee]rror|Exception)(: |$)", line)]
    inner = [line for line in named if not line.startswith(("ray.", "UserCodeException"))]
    return f"a worker failed: {(inner or [_first_line(error)])[0]}"


@dataclass(frozen=True)
class RayToken:
    """The token that Ray finds on this machine (empty: none), and the file or variable that it is in."""

    value: str
    origin: str


def ray_token() -> RayToken:
    """Look for a token where Ray does, in its order."""
    if value := os.environ.get(_TOKEN, "").strip():
        return RayToken(value, _TOKEN)
    if named := os.environ.get(_TOKEN_PATH):
        return RayToken(_read(Path(named)), f"{named} ({_TOKEN_PATH})")
    return RayToken(_read(Path(_TOKEN_FILE).expanduser()), _TOKEN_FILE)


def check_cluster(address: str) -> str:
    """How to join the cluster at HOST:PORT, as RAY_AUTH_MODE has it: "token" or "disabled".

    Raises:
        OSError: nothing answers there.
        EngineError: what answers is not Ray, or requires a token that is not on this machine.
    """
    _check_port(address)
    if _is_admitted(address, "disabled"):
        return "disabled"
    token, machine = ray_token(), f"this machine ({socket.gethostname()})"
    if os.environ.get(_MODE, "token").lower() != "token":
        raise EngineError(
            f"the Ray cluster at {address} requires a token, but {_MODE}={os.environ[_MODE]} on {machine} withholds "
            f"it: unset {_MODE}"
        )
    advice = f"{_TOKEN_FILE} of the cluster's head, or set {_TOKEN} to what `ray get-auth-token` prints there"
    if not token.value:
        raise EngineError(
            f"the Ray cluster at {address} requires a token, and {machine} has none: {token.origin} is missing or "
            f"empty; copy {advice}"
        )
    if not _is_admitted(address, "token"):
        raise EngineError(
            f"the Ray cluster at {address} does not accept the token of {machine} in {token.origin}; replace it by "
            f"{advice}"
        )
    return "token"


def running_cluster() -> str | None:
    """HOST:PORT of the cluster that `auto` stands for: that of RAY_ADDRESS, or the last that `ray start` began here."""
    logging.getLogger(services.__name__).setLevel(logging.ERROR)  # it warns of other clusters
    try:
        address: str | None = services.canonicalize_bootstrap_address("auto")
    except (ConnectionError, ValueError):
        return None
    return address


def _join(address: str) -> None:
    if address.startswith("ray://"):
        _check_port(address.removeprefix("ray://"))
        _init(address, os.environ.get(_MODE) or ("token" if ray_token().value else "disabled"))
        return
    found = running_cluster() if address == "auto" else address
    if found is None:
        raise EngineError(
            "no Ray cluster runs on this machine: start one with `ray start --head`, or name another as HOST:PORT"
        )
    _init(found, check_cluster(found))


def _start_here(cpus: int | None) -> None:
    """Ray listens on all interfaces, so whoever connects needs a token. One that is made for a single run stays in
    memory: in ~/.ray/auth_token, where Ray would write it, it would also lock the clusters that are started later.
    """
    mode, token = os.environ.get(_MODE, "token"), ray_token().value
    if mode.lower() == "token" and _MODE not in os.environ:
        token = token or secrets.token_hex(32)
    local = {"num_cpus": cpus, "include_dashboard": False, "_node_ip_address": _LOOPBACK}
    _init("local", mode, token, **local, **_spilling())


def _spilling() -> dict[str, str]:
    """Where Ray moves objects that do not fit into memory, perhaps gigabytes: after a kill Ray would leave them."""
    if any(name in os.environ for name in ("RAY_object_spilling_config", "RAY_object_spilling_directory")):
        return {}
    parent = Path(os.environ.get("RAY_TMPDIR") or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    until_exit = ExitStack()
    folder = until_exit.enter_context(temporary_folder(parent))
    atexit.register(until_exit.close)
    atexit.register(ray.shutdown)  # comes first: it would make the folder again
    return {"object_spilling_directory": str(folder)}


def _init(address: str, mode: str, token: str = "", **options: Any) -> None:
    with _environment(**{_MODE: mode} | ({_TOKEN: token} if token else {})), _quiet_stderr():
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **options)


def _check_port(address: str) -> None:
    """Raises OSError: nothing answers at HOST:PORT. Ray itself would try for a minute, and then end the process."""
    host, colon, port = address.rpartition(":")
    if colon and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _is_admitted(address: str, mode: str) -> bool:
    """Whether the cluster answers in this mode. Raises EngineError: it does not answer at all."""
    waits = {name: str(_CONNECT_SECONDS) for name in _WAITS}
    try:
        with _environment(**{_MODE: mode}, **waits), _quiet_stderr():
            _core.GcsClient(address=address)
    except Exception as error:  # noqa: BLE001 - the class for a refused token is not in every version of Ray
        if type(error).__name__ == "AuthenticationError":
            return False
        if "InvalidAuthToken" in str(error):
            raise EngineError(
                f"the Ray cluster at {address} requires a token, which Ray {ray.__version__} does not have: install "
                "the Ray version of the cluster"
            ) from None
        raise EngineError(f"the Ray cluster at {address} cannot be joined: {_first_line(error)}") from None
    return True


@contextmanager
def _environment(**variables: str) -> Iterator[None]:
    """Set environment variables for a while, and have Ray read them; it keeps what it read."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    _core.Config.initialize("")
    if loader := getattr(_core, "AuthenticationTokenLoader", None):
        loader.instance().reset_cache()
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


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


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""


def _first_line(error: BaseException) -> str:
    """The first line; all of them if it announces the others, as that of two versions which differ."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    return " ".join(lines) if lines[0].endswith(":") else lines[0]
