"""Where commands print: results on standard output, what happens meanwhile on standard error."""

from __future__ import annotations

import os

from rich.console import Console

QUIET = "SGPIPE_QUIET"  # in the environment, so that workers know it, too


def output() -> Console:
    """For results."""
    return Console(markup=False, highlight=False)


def errors() -> Console:
    """For what must be seen, even with --quiet."""
    return Console(markup=False, highlight=False, stderr=True)


def progress() -> Console:
    """For progress, notes and hints: silent with `sgpipe --quiet …`."""
    return Console(markup=False, highlight=False, stderr=True, quiet=QUIET in os.environ)
