"""An experiment as a command: `python -m experiments.NAME`."""

from __future__ import annotations

import sys
from collections.abc import Callable

import typer

from sgpipe.errors import EngineError, UserError
from sgpipe.utils import console


def run_command(function: Callable[..., None]) -> None:
    """Run a function as a command (`python -m MODULE`): options from the command line, errors as
    one line.
    """
    try:
        typer.run(function)
    except UserError as error:
        console.errors().print(f"error: {error}", soft_wrap=True)
        sys.exit(console.EXIT_BAD_INPUT)
    except (EngineError, OSError) as error:
        console.errors().print(f"error: {error}", soft_wrap=True)
        sys.exit(console.EXIT_FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(console.EXIT_INTERRUPTED)
