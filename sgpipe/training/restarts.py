"""When a training restarts from its last checkpoint: after an error that may not come again.

A disk or a network that fails for now, or a store that does not answer, is such an error. What the
user has to change is a refusal: it ends the training at once.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable

from sgpipe.errors import EngineError, UnavailableError, UserError, format_os_error
from sgpipe.files.stores import AccessError
from sgpipe.utils.console import Progress, count

_REFUSALS = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENAMETOOLONG,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
)


def is_refusal(error: Exception) -> bool:
    """Return whether an error of sgpipe, or of the system, would come again after a restart."""
    if isinstance(error, UnavailableError):
        return False
    if isinstance(error, UserError | EngineError | AccessError):
        return True
    return isinstance(error, OSError) and error.errno in _REFUSALS


def reason_of(error: Exception) -> str:
    """Return the error in one line."""
    return format_os_error(error) if isinstance(error, OSError) else str(error)


def exhausted(reason: str, restarts: int) -> EngineError:
    """Return the error of a training whose last restart did not help either."""
    after = f", also after {count(restarts, 'restart')}" if restarts else ""
    return EngineError(f"{reason}{after}")


def restart_note(reason: str) -> str:
    return f"NOTE: {reason}; the training restarts from its last checkpoint"


def run_with_restarts(
    run: Callable[[], None], restarts: int, seconds: float, progress: Progress
) -> None:
    """Run a training, again if an error may not come again.

    Args:
        restarts: how often.
        seconds: before a restart.

    Raises:
        UserError, EngineError, OSError: a refusal, or (EngineError) all restarts are used.
    """
    for left in range(restarts, -1, -1):
        try:
            run()
            return
        except (UserError, OSError) as error:
            if is_refusal(error):
                raise
            reason = reason_of(error)
        # not above, where the error keeps what the training had in memory
        if left:
            progress.say(restart_note(reason))
            time.sleep(seconds)
    raise exhausted(reason, restarts)
