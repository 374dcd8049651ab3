from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.cli.options import with_option_groups


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option()]
    height: Annotated[int, typer.Option("--high", min=1)] = 5


def test_a_group_of_options_reaches_the_command_as_one_value() -> None:
    drawing, received = typer.Typer(), []

    @drawing.command()
    @with_option_groups
    def draw(name: Annotated[str, typer.Argument()], size: Size, colour: str = "red") -> None:
        received.append((name, size, colour))

    assert CliRunner().invoke(drawing, ["box", "--width", "7", "--colour", "blue"]).exit_code == 0
    assert CliRunner().invoke(drawing, ["box", "--width", "7", "--high", "2"]).exit_code == 0
    assert received == [("box", Size(width=7), "blue"), ("box", Size(width=7, height=2), "red")]
    for wrong in (["box"], ["box", "--width", "7", "--high", "0"], ["box", "--width", "7", "--size", "1"]):
        assert CliRunner().invoke(drawing, wrong).exit_code == 2


def refused(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    return result.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["stats", ".", "--html", "."], "--html"),
        (["stats", ".", "--html", "s3://bucket/x"], "s3://bucket/x is not on this machine"),
        (["generate", "--out", "s3://bucket/x"], "--out"),
        (["generate", "--truth", "nowhere"], "--truth"),
        (["eval", "hico", "--predictions", "."], "--predictions"),
        (["calibrate", ".", "--judgements", "nowhere"], "--judgements"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_option(
    words: list[str], named: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert named in refused(*words)
    assert not list(tmp_path.iterdir())


def test_what_typer_refuses_reaches_the_terminal_without_controls() -> None:
    assert refused("stats", "--no\u202e\u200bsuch") == "error: No such option: --nosuch\n"


@pytest.mark.parametrize("words", [["label", ""], ["stats", "run", "--html", ""], ["generate", "--out="]])
def test_an_empty_value_is_refused_and_not_the_current_folder(words: list[str]) -> None:
    assert "a value is empty" in refused(*words)
