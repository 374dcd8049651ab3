"""The command line."""

import os
import signal
import sys
import time
from types import FrameType

STARTED = time.monotonic()  # before the imports of a command, which take seconds
_WHILE_IMPORTING = b"interrupted. Run the same command again.\n"


def stop_while_importing(number: int, frame: FrameType | None) -> None:
    """End the process: an exception within an import surfaces as any error, and imported libraries may swallow it."""
    os.write(2, _WHILE_IMPORTING)
    os._exit(130)  # sgpipe.utils.console.EXIT_INTERRUPTED


def is_importing(frame: FrameType | None) -> bool:
    while frame is not None and not frame.f_code.co_filename.startswith("<frozen importlib"):
        frame = frame.f_back
    return frame is not None


# Of the command `sgpipe` only: whoever imports this package handles signals as they like. `sgpipe.cli.main` takes over.
if os.path.basename(sys.argv[0]) == "sgpipe" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, stop_while_importing)
