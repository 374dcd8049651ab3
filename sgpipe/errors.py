"""The errors a user is meant to see."""

from __future__ import annotations


class UserError(Exception):
    """Something the user can mend. The message is one line: what, where, and what to do.

    The command line prints it without a traceback and exits with code 2.
    """


class EngineError(Exception):
    """The work could not be finished; what is committed stays."""


class WorkersLostError(EngineError):
    """Ray lost workers or machines; what they worked on can be done again."""
