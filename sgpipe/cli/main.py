"""The command line: every command, and what happens when one ends, fails or is interrupted.

A command imports what it needs when it runs: `sgpipe --help` is fast. `sgpipe.utils.console` lists
the exit codes.
"""

import atexit
import gc
import io
import os
import signal
import sys
import warnings
from types import FrameType, TracebackType
from typing import Annotated, Any, NoReturn

import typer

from sgpipe.cli import interrupt
from sgpipe.cli.certify import calibrate, certify
from sgpipe.cli.compact import compact
from sgpipe.cli.convert import convert
from sgpipe.cli.correct import correct
from sgpipe.cli.declare import USAGE_ERROR, command
from sgpipe.cli.doctor import doctor
from sgpipe.cli.evaluate import app as eval_app
from sgpipe.cli.export import export, push
from sgpipe.cli.generate import generate, plan
from sgpipe.cli.imports import app as import_app
from sgpipe.cli.label import label
from sgpipe.cli.merge import merge
from sgpipe.cli.miniworld import miniworld
from sgpipe.cli.parse import parse
from sgpipe.cli.predict import predict
from sgpipe.cli.repeated import CommandOfSingleValues, GroupOfSingleValues
from sgpipe.cli.reproduce import reproduce
from sgpipe.cli.score import score
from sgpipe.cli.stats import stats
from sgpipe.cli.train import train
from sgpipe.cli.verify import fetch, verify
from sgpipe.cli.view import view
from sgpipe.errors import (
    CodeError,
    DivergedError,
    EngineError,
    StoreError,
    UserError,
    format_os_error,
)
from sgpipe.utils import __version__, console
from sgpipe.utils.console import EXIT_BAD_INPUT, EXIT_FAILED, EXIT_INTERRUPTED

_RESUME = "Committed work is kept; run the same command again to resume."
_START_AGAIN = "Run the same command again to start from the beginning."
_RESUMABLE = (
    "generate",
    "import",
    "score",
    "correct",
    "merge",
    "compact",
    "push",
    "train",
    "reproduce",
)
_STOPPED_IN_ORDER = ("generate", "plan", "train", "reproduce")
_COMMANDS = {
    "Label images": (label, generate, plan, miniworld),
    "Inspect runs": (view, correct, stats, calibrate, certify, score, verify),
    "Import and export": (merge, compact, export, push, fetch),
    "Train and evaluate": (train, predict, reproduce),
    "Tools": (doctor, convert, parse),
}
# imported modules are not garbage, and looking for it takes a fifth of the start
_COLLECT_SELDOM = (20_000, 20, 20)


class _Group(GroupOfSingleValues):
    """The commands. Each error that a user is meant to see becomes one line and an exit code."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Refuse an empty value, such as an unset variable of the shell, which as a path would be
        ".".
        """
        if any(not word or (word.startswith("--") and word.endswith("=")) for word in args):
            _fail("error: a value is empty; is a variable of the shell unset?", EXIT_BAD_INPUT)
        try:
            return super().parse_args(ctx, args)
        except USAGE_ERROR as error:
            _fail_usage(error)

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        """Return the commands in the order of their headings; typer begins with groups."""
        commands = dict[str, Any](self.commands)
        headings = [*_COMMANDS]
        return sorted(
            super().list_commands(ctx),
            key=lambda name: headings.index(commands[name].rich_help_panel),
        )

    def invoke(self, ctx: typer.Context) -> Any:  # type: ignore[override]
        try:
            return super().invoke(ctx)
        except USAGE_ERROR as error:
            _fail_usage(error)
        except UserError as error:
            if isinstance(error, CodeError) and ctx.params["verbose"]:
                sys.stderr.write(error.trace)
            _fail(f"error: {error}", EXIT_BAD_INPUT)
        except EngineError as error:
            advice = "" if isinstance(error, DivergedError) else f"\n{_advice(ctx)}"
            _fail(f"error: {error}{advice}", EXIT_FAILED)
        except KeyboardInterrupt:
            _fail(f"interrupted. {_advice(ctx)}", EXIT_INTERRUPTED)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(EXIT_FAILED)
        except OSError as error:
            advice = (
                f"\n{_RESUME}"
                if isinstance(error, StoreError) and ctx.invoked_subcommand in _RESUMABLE
                else ""
            )
            _fail(f"error: {format_os_error(error)}{advice}", EXIT_FAILED)


def _advice(ctx: typer.Context) -> str:
    return _RESUME if ctx.invoked_subcommand in _RESUMABLE else _START_AGAIN


app = typer.Typer(
    cls=_Group, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode="rich"
)
for _title, _functions in _COMMANDS.items():
    for _function in _functions:
        _register = app.command(cls=CommandOfSingleValues, rich_help_panel=_title)
        _register(command(_function, writes_beside=_function is label))
app.add_typer(import_app, name="import", rich_help_panel="Import and export")
app.add_typer(eval_app, name="eval", rich_help_panel="Train and evaluate")


@app.callback(invoke_without_command=True)
def root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print only results: no progress, no notes.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Print tracebacks of your code and of bugs.")
    ] = False,
) -> None:
    """Turn any object-detection dataset into a scene-graph dataset.

    Results go to standard output, everything else to standard error. NO_COLOR=1
    turns colours off. Exit codes: 0 success, 1 not finished or a check failed,
    2 bad input, 3 every image failed, 130 interrupted.
    """
    os.environ.pop(console.QUIET, None)
    if quiet:
        os.environ[console.QUIET] = "1"
    if verbose:
        sys.excepthook = sys.__excepthook__
    if version:
        print(__version__)
        raise typer.Exit()
    if ctx.invoked_subcommand in _STOPPED_IN_ORDER:
        for number in (signal.SIGINT, signal.SIGTERM):  # schedulers send the latter
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _interrupt_in_order)


def _interrupt_in_order(number: int, frame: FrameType | None) -> None:
    """Stop in order; stop at once on the second signal."""
    for stop in (signal.SIGINT, signal.SIGTERM):
        signal.signal(stop, _exit_at_once)
    interrupt(number, frame)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    """End like a killed process, which every step of a commit survives. The local Ray ends with
    this process.
    """
    os.write(2, f"stopped at once. {_RESUME}\n".encode())
    os._exit(EXIT_INTERRUPTED)


def _fail(message: str, code: int) -> NoReturn:
    console.errors().print(message, soft_wrap=True)
    sys.exit(code)


def _fail_usage(error: Any) -> NoReturn:
    """Print what is wrong with a command line. Raises what shows the help, which typer has
    printed.
    """
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    _fail(f"error: {console.single_line(error.format_message())}", EXIT_BAD_INPUT)


def _report_bug(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print one line instead of a traceback, and how to get the traceback."""
    if isinstance(error, MemoryError):
        message = "error: not enough memory"
    else:
        advice = (
            "This is a bug in sgpipe. Run `sgpipe --verbose …` for a traceback, and please"
            " report it."
        )
        message = f"internal error: {kind.__name__}: {error}\n{advice}"
    console.errors().print(message, soft_wrap=True)


def main() -> None:
    """Entry point of the `sgpipe` command."""
    gc.set_threshold(*_COLLECT_SELDOM)
    # Otherwise Python looks for garbage among all modules several times before it ends.
    atexit.register(gc.freeze)
    sys.excepthook = _report_bug
    # they also appear for files that are already there
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # hides the output of Ray's workers; their errors reach us
    os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
    # Without the line of code that it comes from.
    warnings.showwarning = lambda message, *_: console.errors().print(
        f"warning: {message}", soft_wrap=True
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that is not UTF-8 shows escapes
            stream.reconfigure(errors="backslashreplace")
    try:
        # `app()` would install typer's own excepthook
        typer.main.get_command(app)(prog_name="sgpipe")
    except OSError as error:  # the help cannot be written
        _fail(f"error: {format_os_error(error)}", EXIT_FAILED)
