"""The parent process of a server: it ends the server, and all that has started, when the run ends.

`python watcher.py LIFELINE COMMAND…`, where LIFELINE is a file descriptor that is closed when the
run's process ends, however that ends. Should the watcher itself be killed, as Ray kills what an
actor has started, its guardian kills the rest. It imports nothing of sgpipe, to be small.
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
    _start_guardian(lifeline)
    try:
        server = subprocess.Popen(command)
    except OSError as error:
        print(f"{command[0]}: {error.strerror}")
        return _NOT_FOUND
    threading.Thread(target=_end_with_run, args=(lifeline, server), daemon=True).start()
    exit_code = server.wait()
    return exit_code if exit_code >= 0 else _SIGNALLED - exit_code


def _start_guardian(lifeline: int) -> None:
    """Start a process that kills this session as soon as the watcher has ended."""
    watched, watcher = os.pipe()
    if os.fork():
        os.close(watched)
        return
    os.close(lifeline)
    os.close(watcher)
    os.read(watched, 1)  # returns when the watcher has ended, which has the other end
    os.killpg(0, signal.SIGKILL)


def _end_with_run(lifeline: int, server: "subprocess.Popen[bytes]") -> None:
    os.read(lifeline, 1)  # returns when the other end is closed
    server.terminate()
    with suppress(subprocess.TimeoutExpired):
        server.wait(_GRACE)
    server.kill()


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
