"""A group of commands to which code of others adds one each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import typer
from typer.core import TyperGroup

from sgpipe.cli.repeated import CommandOfSingleValues
from sgpipe.plugins import installed, own_reference
from sgpipe.registry import Kind


class OpenGroup(TyperGroup):
    """A command may be named like `package.module:ATTRIBUTE`, or by an installed package.

    Attributes:
        kind: of what such a command names.
    """

    kind: ClassVar[Kind]

    @staticmethod
    def function_of(reference: str) -> Callable[..., None]:
        """Return the command, which imports the code when it runs."""
        raise NotImplementedError

    def list_commands(self, ctx: typer.Context) -> list[str]:  # type: ignore[override]
        return [*super().list_commands(ctx), *installed(self.kind)]

    def get_command(self, ctx: typer.Context, cmd_name: str) -> Any:  # type: ignore[override]
        known = super().get_command(ctx, cmd_name)
        if known is not None:
            return known
        reference = own_reference(self.kind, cmd_name)
        if reference is None:
            return None
        single = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        single.command(name=cmd_name, cls=CommandOfSingleValues)(self.function_of(reference))
        return typer.main.get_command(single)
