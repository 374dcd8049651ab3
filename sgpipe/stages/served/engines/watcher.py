"""The parent process of a server: it ends the server, and all that has started, when the run ends.

`python watcher.py LIFELINE COMMAND…`, where LIFELINE is a file descriptor that is closed when the
run's process ends, however that ends. It imports nothing of sgpipe, to be small.
"""

import os
import signal
import subprocess
import sys
import threading
from contextlib import suppress

_GRACE = 10.0  # seconds in which a server may end by itself
# Exit codes as those of a shell
_NOT_FOUND = 127
_SIGNALLED = 128  # and the number of the signal


def main(lifeline: int, command: list[str]) -> int:
    """Start the command, and return its exit code."""
    try:
        server = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}")
        return _NOT_FOUND
    run_ended = threading.Event()
    threading.Thread(target=_end_with_run, args=(lifeline, run_ended, server), daemon=True).start()
    exit_code = server.wait()
    if run_ended.is_set():
        _kill_session()
    return exit_code if exit_code >= 0 else _SIGNALLED - exit_code


def _end_with_run(
    lifeline: int, run_ended: threading.Event, server: "subprocess.Popen[bytes]"
) -> None:
    os.read(lifeline, 1)  # returns when the other end is closed
    run_ended.set()
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(_GRACE)
    _kill_session()


def _kill_session() -> None:
    """Kill what the server has started, too, and this process."""
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
