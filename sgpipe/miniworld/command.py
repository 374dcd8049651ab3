"""Running a function of a module as a command: `python -m sgpipe.miniworld.NAME`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from sgpipe.errors import EngineError, UserError

_UNFINISHED, _BAD_INPUT, _INTERRUPTED = 1, 2, 130


def run_command(function: Callable[..., None]) -> None:
    """Run it with the options of the command line; an error that a user is meant to see becomes one line."""
    try:
        typer.run(function)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_BAD_INPUT)
    except (EngineError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(_UNFINISHED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(_INTERRUPTED)
