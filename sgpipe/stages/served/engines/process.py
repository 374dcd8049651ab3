"""One server process of a model, with its log, and whether it answers."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from sgpipe.stages.served.engines import watcher
from sgpipe.stages.served.server import MODELS

_ANSWER_SECONDS = 5.0
_CLOSING_SECONDS = 15.0  # a little more than the watcher gives it
_LONGEST_LINE = 300
_END_OF_LOG = 1 << 16  # bytes, in which the last error is
_IS_ERROR = re.compile(r"\b\w*(Error|Exception)\b")
_NO_LINE = "its log is empty"
# It asks this machine or the cluster's, not by a proxy.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ServerProcess:
    """A server and its watcher, in a session of their own: Ctrl-C is for the run."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        """Start it.

        Args:
            environment: in addition to that of this process.
            log: its output is appended to this file.
        """
        life, lifeline = os.pipe()
        self._lifeline: int | None = lifeline
        self._log = log
        with log.open("ab") as output:
            self._start_of_log = output.tell()
            self._process = subprocess.Popen(
                [sys.executable, "-I", watcher.__file__, str(life), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={**os.environ, **environment},
                pass_fds=(life,),
                start_new_session=True,
            )
        os.close(life)

    @property
    def exit_code(self) -> int | None:
        """None: it runs."""
        return self._process.poll()

    def last_line(self) -> str:
        """Return the last line of its log that names an error, or else the last one."""
        with self._log.open("rb") as log:
            size = log.seek(0, os.SEEK_END)
            log.seek(max(self._start_of_log, size - _END_OF_LOG))
            text = log.read().decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if line.strip()]
        errors = [line for line in lines if _IS_ERROR.search(line)]
        last = (errors or lines or [_NO_LINE])[-1]
        return last if len(last) <= _LONGEST_LINE else f"{last[:_LONGEST_LINE]}…"

    def end(self, patience: float = _CLOSING_SECONDS) -> None:
        """End the server and all that it has started; kill them after `patience` seconds."""
        self.ask_to_end()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(patience)
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def ask_to_end(self) -> None:
        """Have the watcher end it, as it does when this process ends."""
        if self._lifeline is not None:
            os.close(self._lifeline)
            self._lifeline = None


def answers(url: str, key: str) -> bool:
    """Return whether a server lists models.

    Args:
        url: without the path of a request.
        key: sent with the request; "": none.
    """
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    request = urllib.request.Request(url + MODELS, headers=headers)
    try:
        with _OPENER.open(request, timeout=_ANSWER_SECONDS) as answer:
            answer.read()
    except (OSError, ValueError):  # also what is not HTTP
        return False
    return True


def free_port(host: str) -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.socket() as listener:
        listener.bind((host, 0))
        port: int = listener.getsockname()[1]
        return port
