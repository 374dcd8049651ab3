"""A stand-in for the engines that serve models: a scripted server as a command of the user's."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from tests import endpoint_server
from tests.processes import descendants

MODEL = "tiny-vlm"


def stand_in(*options: str) -> str:
    """Return the command line of an engine with these options of `endpoint_server.main`."""
    program = shlex.join([sys.executable, endpoint_server.__file__, *options])
    return f"{program} --model {{model}} --host {{host}} --port {{port}}"


def servers_of(process: int) -> list[int]:
    """Return the stand-ins that a process has started, without their watchers."""
    program = endpoint_server.__file__.encode()
    running = []
    for pid in descendants(process):
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:  # it has just ended
            continue
        if words[1:2] == [program]:
            running.append(pid)
    return running
