"""What a worker says while it waits for servers: the driver shows it, where there is one."""

import sys
from collections.abc import Callable

_LISTENERS: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Have all lines of this process passed to `listener`."""
    _LISTENERS.append(listener)


def say(line: str) -> None:
    """Pass a line on; where nobody listens, print it."""
    if not _LISTENERS:
        print(f"NOTE: {line}", file=sys.stderr)
    for listener in _LISTENERS:
        listener(line)
