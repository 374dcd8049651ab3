"""A group of commands to which code of others adds one each."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from sgpipe.cli.repeated import CommandOfSingleValues
from sgpipe.errors import UserError
from sgpipe.plugins import installed, own_reference
from sgpipe.registry import Kind


class OpenGroup(TyperGroup):
    """A command may be named like `package.module:ATTRIBUTE`, or by an installed package.

    Attributes:
        kind: of what such a command names.
    """

    kind: ClassVar[Kind]

    @staticmethod
    def function_of(
        reference: str, options: Sequence[inspect.Parameter] = ()
    ) -> Callable[..., None]:
        """Return the command, which imports the code when it runs, with options of the code."""
        raise NotImplementedError

    @staticmethod
    def options_of(reference: str) -> Sequence[inspect.Parameter]:
        """Import the code, and return its options. Raises UserError: as `plugins.load`."""
        raise NotImplementedError

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*super().list_commands(ctx), *installed(self.kind)]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        """Return a command; one of others without its options, for lists of commands."""
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        reference = own_reference(self.kind, cmd_name)
        return None if reference is None else _command(cmd_name, self.function_of(reference))

    def resolve_command(self, ctx: typer.Context, args: list[str]) -> Any:  # type: ignore[override]
        name = args[0]
        reference = None if name in self.commands else own_reference(self.kind, name)
        if reference is not None:
            function = self.function_of(reference, self.options_of(reference))
            return name, _command(name, function), args[1:]
        if re.search("[./:]", name):
            raise UserError(f"{name}: name code of your own as package.module:NAME")
        return super().resolve_command(ctx, args)


def _command(name: str, function: Callable[..., None]) -> Any:
    single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    single.command(name=name, cls=CommandOfSingleValues)(function)
    return typer.main.get_command(single)
