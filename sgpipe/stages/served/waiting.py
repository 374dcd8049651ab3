"""What a worker says while it waits for servers: the driver shows it, where there is one."""

from collections.abc import Callable

_LISTENERS: list[Callable[[str], None]] = []


def listen(listener: Callable[[str], None]) -> None:
    """Have all lines of this process passed to `listener`."""
    _LISTENERS.append(listener)


def say(line: str) -> None:
    for listener in _LISTENERS:
        listener(line)
