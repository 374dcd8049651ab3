"""Where tests end a run: points before, in and after every step of a commit."""

from __future__ import annotations

import os
import signal
from contextlib import suppress

VARIABLE = "SGPIPE_FAULT"


def fault_point(name: str) -> None:
    """End this process as a power cut would, if `SGPIPE_FAULT` is "NAME:FILE" and FILE is there.

    The file goes first: of all processes that come by, restarted ones too, one dies.
    """
    point, _, charge = os.environ.get(VARIABLE, "").partition(":")
    if point == name:
        with suppress(FileNotFoundError):
            os.unlink(charge)
            os.kill(os.getpid(), signal.SIGKILL)
