"""The command line."""

import os
import signal
import sys
import time
from types import FrameType

STARTED = time.monotonic()  # before the imports of a command, which take seconds
_WHILE_IMPORTING = b"interrupted. Run the same command again.\n"


def interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt; in an import, where it would surface as any error or be swallowed,
    end the process.
    """
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            os.write(2, _WHILE_IMPORTING)
            os._exit(130)  # sgpipe.utils.console.EXIT_INTERRUPTED
        frame = frame.f_back
    raise KeyboardInterrupt


# Of the command `sgpipe` only: whoever imports this package handles signals as they like.
if (
    os.path.basename(sys.argv[0]) == "sgpipe"
    and signal.getsignal(signal.SIGINT) is signal.default_int_handler
):
    signal.signal(signal.SIGINT, interrupt)
