from dataclasses import dataclass
from typing import Annotated

import typer
from typer.testing import CliRunner

from sgpipe.cli.options import with_option_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option()]
    height: Annotated[int, typer.Option("--high", min=1)] = 5


def test_a_group_of_options_reaches_the_command_as_one_value() -> None:
    app, received = typer.Typer(), []

    @app.command()
    @with_option_groups
    def draw(name: Annotated[str, typer.Argument()], size: Size, colour: str = "red") -> None:
        received.append((name, size, colour))

    assert CliRunner().invoke(app, ["box", "--width", "7", "--colour", "blue"]).exit_code == 0
    assert CliRunner().invoke(app, ["box", "--width", "7", "--high", "2"]).exit_code == 0
    assert received == [("box", Size(width=7), "blue"), ("box", Size(width=7, height=2), "red")]
    for wrong in (["box"], ["box", "--width", "7", "--high", "0"], ["box", "--width", "7", "--size", "1"]):
        assert CliRunner().invoke(app, wrong).exit_code == 2
