"""The page of the command line, from the typer app itself."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import typer

from sgpipe.cli.main import app

_HEAD = """# Commands

This page is generated from the program; `sgpipe COMMAND --help` prints the same.
"""


def command_page() -> str:
    """Every command with its arguments, options and examples, as Markdown."""
    root = typer.main.get_command(app)
    context = typer.Context(root, info_name="sgpipe")
    return "\n".join([_HEAD, *_described(root, context, 1)]) + "\n"


def _described(command: Any, context: Any, depth: int) -> Iterator[str]:
    """A command as Markdown, then the commands below it, one heading deeper."""
    if depth > 1:
        yield f"{'#' * depth} `{context.command_path}`\n"
    text, _, examples = (command.help or "").partition("Examples:")
    yield _text(text)
    yield from _options(command, context)
    yield from _examples(examples)
    for name in command.list_commands(context) if hasattr(command, "list_commands") else ():
        below = command.get_command(context, name)
        yield from _described(
            below, typer.Context(below, info_name=name, parent=context), depth + 1
        )


def _text(text: str) -> str:
    """A help text; lines of one paragraph become one."""
    return "\n\n".join(" ".join(part.split()) for part in text.strip().split("\n\n")) + "\n"


def _options(command: Any, context: Any) -> Iterator[str]:
    rows = [row for param in command.get_params(context) if (row := param.get_help_record(context))]
    rows = [(option, meaning) for option, meaning in rows if not option.startswith("--help")]
    if rows:
        yield "| option | meaning |\n|---|---|"
        yield from (
            f"| `{_cell(option)}` | {_cell(meaning, escape=True)} |" for option, meaning in rows
        )
        yield ""


def _cell(text: str, *, escape: bool = False) -> str:
    """Text that may stand in a cell of a table."""
    text = " ".join(text.split())
    if not escape:
        return text
    return re.sub(r"([*_|\[\]])", r"\\\1", text.replace("<", "&lt;").replace(">", "&gt;"))


def _examples(text: str) -> Iterator[str]:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if lines:
        yield "\n".join(["```sh", *lines, "```", ""])
