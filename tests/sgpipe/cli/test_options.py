import inspect
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.models import ArgumentInfo
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.cli.options import command


@dataclass(frozen=True, kw_only=True)
class Size:
    width: Annotated[int, typer.Option()]
    height: Annotated[int, typer.Option("--high", min=1)] = 5


def test_a_group_of_options_reaches_the_command_as_one_value() -> None:
    drawing, received = typer.Typer(), []

    @drawing.command()
    @command
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


def test_what_typer_refuses_reaches_the_terminal_without_controls() -> None:
    assert refused("stats", "--no\u202e\u200bsuch") == "error: No such option: --nosuch\n"


@pytest.mark.parametrize("words", [["label", ""], ["stats", "run", "--html", ""], ["generate", "--out="]])
def test_an_empty_value_is_refused_and_not_the_current_folder(words: list[str]) -> None:
    assert "a value is empty" in refused(*words)


WRITES = re.compile(r"\b(Write [^N]|Draw |(New )?[Ff]older for |File for |File to write)")


def commands(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], dict[str, Any]]]:
    """The words of each command, and what is declared of each of its parameters."""
    members: Any = group or typer.main.get_command(app)
    for name, each in members.commands.items():
        if hasattr(each, "commands"):
            yield from commands(each, (*words, name))
        else:
            parameters = inspect.signature(each.callback).parameters.values()
            yield (*words, name), {each.name: each for each in parameters if hasattr(each.annotation, "__metadata__")}


def info(parameter: inspect.Parameter) -> Any:
    return parameter.annotation.__metadata__[0]


def kind(parameter: inspect.Parameter) -> str:
    """Whether a parameter is an output, an input or no path."""
    declared, is_path = info(parameter), "Path" in str(parameter.annotation.__origin__)
    if is_path and not declared.exists and not declared.parser and parameter.name not in ("judgements", "folder"):
        return "file" if declared.file_okay else "folder"
    return "input" if is_path or declared.parser or declared.callback else ""


def words_of(parameter: inspect.Parameter, value: object) -> list[str]:
    if isinstance(info(parameter), ArgumentInfo):
        return [str(value)]
    declared = (info(parameter).default, *(info(parameter).param_decls or ()))  # typer moves the first one there
    named = [name for name in declared if str(name).startswith("--")]
    return [named[0] if named else f"--{parameter.name.replace('_', '-')}", str(value)]


_VALUES = {"to": "hf", "precision": "0.9"}


def required(parameters: dict[str, inspect.Parameter], run: Path, file: Path, *but: str) -> list[str]:
    """Words for what a command cannot do without."""
    found = []
    for name, each in parameters.items():
        if each.default is inspect.Parameter.empty and name not in but:
            found += words_of(each, _VALUES.get(name, run if info(each).dir_okay else file))
    return found


OUTPUTS = [
    (words, parameters, name)
    for words, parameters in commands()
    for name, each in parameters.items()
    if kind(each) in ("file", "folder")
]


def test_every_output_is_declared_as_one() -> None:
    named = {(words, name) for words, parameters in commands() for name in parameters}
    parameters = dict(commands())
    written = {(words, name) for words, name in named if WRITES.search(info(parameters[words][name]).help or "")}
    assert written == {(words, name) for words, _, name in OUTPUTS}
    assert len(written) > 30


@pytest.mark.parametrize(("words", "parameters", "name"), OUTPUTS, ids=[f"{' '.join(w)} {n}" for w, _, n in OUTPUTS])
def test_no_command_writes_over_what_it_reads_or_what_a_run_has(
    words: tuple[str, ...], parameters: dict[str, inspect.Parameter], name: str, tmp_path: Path
) -> None:
    run, file, link = tmp_path / "run", tmp_path / "file.json", tmp_path / "link.json"
    (run / "data").mkdir(parents=True)
    for path in (run / "manifest.jsonl", run / "data/val.parquet", run / "judgements.jsonl", file):
        path.write_text("valuable")
    link.symlink_to(file)
    output, is_file = parameters[name], kind(parameters[name]) == "file"
    for path in [run / "data/val.parquet", run / "judgements.jsonl"] if is_file else [run / "data", run / "data/new"]:
        said = refused(*words, *required(parameters, run, file, name), *words_of(output, path))
        assert "belongs to the run" in said
    place, wanted = (file, "file_okay") if is_file else (run, "dir_okay")
    for other in parameters.values():
        if kind(other) == "input" and words != ("label",) and getattr(info(other), wanted):
            given = [*required(parameters, run, file, name, other.name), *words_of(other, place)]
            said = refused(*words, *given, *words_of(output, link if is_file else place))
            assert "is read by this command" in said, other.name
    assert {path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()} == {"valuable"}
