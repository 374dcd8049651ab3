"""An option that takes one value and is given twice is refused; otherwise the last value would win
in silence.
"""

import re
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from sgpipe.cli.declare import USAGE_ERROR
from sgpipe.utils.console import listed, single_line

# the parser's actions that keep the last value only
_ALL_VALUES = {"store": "append", "store_const": "append_const"}
_SECRET = re.compile(r"://.*@")  # keys in the URI of a store, or a password in an address


class CommandOfSingleValues(TyperCommand):
    """A command that refuses repeated options."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


class GroupOfSingleValues(TyperGroup):
    """A group of commands whose own options must not be repeated."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        refuse_repeated(self, ctx, args)
        return super().parse_args(ctx, args)


def refuse_repeated(command: Any, ctx: typer.Context, args: Sequence[str]) -> None:
    """Check how often the words of a command line give each option, by any of its names.

    Values from the environment do not count. An option that ends the command, such as --help, comes
    first.

    Raises:
        USAGE_ERROR: an option that takes one value is given several times.
    """
    if ctx.resilient_parsing:  # a shell completes what is being typed
        return
    parser = command.make_parser(ctx)
    for option in (*parser._long_opt.values(), *parser._short_opt.values()):
        option.action = _ALL_VALUES.get(option.action, option.action)
    values, _, _ = parser.parse_args(list(args))
    options = [
        parameter for parameter in command.get_params(ctx) if parameter.param_type_name == "option"
    ]
    if any(option.is_eager and option.name in values for option in options):
        return
    for option in options:
        repeated = values.get(option.name, ())
        if not option.multiple and len(repeated) > 1:
            raise USAGE_ERROR(_message(option, repeated))


def _message(option: TyperOption, values: Sequence[object]) -> str:
    name = max(option.opts, key=len)
    times = "twice" if len(values) == 2 else f"{len(values)} times"
    shown = [_shown(option, value) for value in values]
    if set(shown) == {name}:  # a flag without an opposite
        return f"{name} is given {times}: pass it once"
    return f"{name} is given {times}, as {listed(shown)}: pass it once"


def _shown(option: TyperOption, value: object) -> str:
    """Return a value as it was given; that of a flag is the flag's name, or its opposite's."""
    if option.is_flag:
        names = option.opts if value else option.secondary_opts or option.opts
        return str(max(names, key=len))
    return _SECRET.sub("://…@", single_line(str(value)))
