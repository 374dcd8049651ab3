"""Machines on this one, each with an address, processes, a host name and a folder of its own; they share a network."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from types import TracebackType

from tests.integration.faults.runs import descendants

_NETWORK = "10.77.{}.{}"
_BIN = Path(sys.executable).parent
_INIT = "import signal, time; signal.signal(signal.SIGCHLD, signal.SIG_IGN); print(flush=True); time.sleep(1e6)"
_SPACES = ("--net", "--mount", "--pid", "--uts", "--ipc")


@lru_cache(maxsize=1)
def why_impossible() -> str | None:
    """Why machines cannot be made here; None: they can."""
    if missing := [name for name in ("ip", "unshare", "nsenter") if shutil.which(name) is None]:
        return f"not installed: {', '.join(missing)}"
    tried = subprocess.run(["unshare", *_SPACES, "--fork", "true"], capture_output=True, text=True)
    return f"namespaces cannot be made: {tried.stderr.strip()}" if tried.returncode else None


class Network:
    """A network with this machine at `address`, and machines that are made in it. They end with the `with` statement.

    All machines see a folder of their own at `here`, which is also the home of their user.
    """

    def __init__(self) -> None:
        self._number = next(n for n in range(1, 250) if not Path(f"/sys/class/net/sg{n}").exists())
        self.bridge, self.address = f"sg{self._number}", _NETWORK.format(self._number, 1)
        self._folder = Path(tempfile.mkdtemp(prefix="sg"))  # short: paths of sockets have at most 107 characters
        self.here = self._folder / "m"
        self._machines: list[Machine] = []

    def __enter__(self) -> Network:
        self.here.mkdir()
        # With an address of its own: otherwise it has that of one of its machines, and when this one is killed, the
        # others send to the wrong address for up to a minute.
        _ip("link", "add", self.bridge, "address", f"02:00:0a:4d:{self._number:02x}:01", "type", "bridge")
        _ip("address", "add", f"{self.address}/24", "dev", self.bridge)
        _ip("link", "set", self.bridge, "up")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for machine in self._machines:
            machine.kill()
        _ip("link", "delete", self.bridge)
        shutil.rmtree(self._folder, ignore_errors=True)

    def machine(self) -> Machine:
        """Another machine."""
        number = len(self._machines) + 2
        folder = self._folder / str(number)
        folder.mkdir()
        made = Machine(f"machine-{number}", _NETWORK.format(self._number, number), folder, self)
        self._machines.append(made)
        _ip("link", "add", f"{self.bridge}-{number}", "type", "veth", "peer", "name", "eth0", "netns", str(made.init))
        _ip("link", "set", f"{self.bridge}-{number}", "master", self.bridge, "up")
        for command in ("link set lo up", f"address add {made.address}/24 dev eth0", "link set eth0 up"):
            made.run(["ip", *command.split()])
        return made


class Machine:
    """A machine of a network, which runs until it is killed.

    Attributes:
        folder: what the machine sees at the network's `here`.
        init: the first of its processes; if that ends, all do.
    """

    def __init__(self, name: str, address: str, folder: Path, network: Network) -> None:
        self.name, self.address, self.folder, self._here = name, address, folder, network.here
        mounts = f'mount --bind {folder} {network.here} && mount -t tmpfs shm /dev/shm && hostname {name} && exec "$@"'
        first = ["sh", "-c", mounts, "sh", sys.executable, "-c", _INIT]
        made = ["unshare", *_SPACES, "--fork", "--kill-child", "--mount-proc", *first]
        self._holder = subprocess.Popen(made, stdout=subprocess.PIPE)
        assert self._holder.stdout is not None
        self._holder.stdout.readline()
        (self.init,) = descendants(self._holder.pid)

    def start(
        self, command: list[str], log: Path, environment: Mapping[str, str] | None = None
    ) -> subprocess.Popen[bytes]:
        """Start a command in the folder of the machine's user."""
        if not Path(command[0]).is_absolute() and (_BIN / command[0]).exists():
            command = [str(_BIN / command[0]), *command[1:]]
        own = {"HOME": str(self._here), "TMPDIR": str(self._here), "PYTHONPATH": str(Path(__file__).parents[3])}
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("RAY_", "XDG_"))}
        inside = ["nsenter", "--target", str(self.init), *_SPACES, f"--wdns={self._here}", "--", *command]
        with log.open("ab") as file:
            return subprocess.Popen(
                inside, stdout=file, stderr=file, stdin=subprocess.DEVNULL, env=kept | own | dict(environment or {})
            )

    def run(self, command: list[str], environment: Mapping[str, str] | None = None, seconds: float = 300) -> str:
        """What a command prints. Raises AssertionError: it fails."""
        log = self.folder / "command.log"
        log.unlink(missing_ok=True)
        code = self.start(command, log, environment).wait(seconds)
        assert code == 0, f"{self.name}: {' '.join(command)}: {log.read_text()}"
        return log.read_text()

    def kill(self) -> None:
        """All processes at once, and the network: as when the power fails."""
        with suppress(ProcessLookupError):
            os.kill(self.init, signal.SIGKILL)
        self._holder.wait()
        while Path(f"/proc/{self.init}").exists():
            time.sleep(0.01)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)
