import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from sgpipe.cli.main import app
from sgpipe.cli.options import Command, _check_images, _check_stored_file, with_option_groups
from sgpipe.errors import (
    existing_file,
    existing_folder,
    existing_model,
    existing_path,
    existing_place,
    existing_run,
    writable_file,
    writable_folder,
)


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


# Options that are not of type Path and still take one, besides those with a callback of sgpipe.cli.options.
_NOT_PATHS = {"recipe", "store", "split"}  # a name or a file; a URI; a name
_KINDS = {
    existing_folder: ("folder", "file"),
    existing_file: ("file", "folder"),
    existing_path: ("file or folder", None),
    existing_place: ("file or folder", None),
    existing_model: ("folder", None),
    existing_run: ("folder", "file"),
    _check_images: ("folder", None),
    _check_stored_file: ("file", "folder"),
}


def commands(group: Any = None, words: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    for name, command in (group or typer.main.get_command(app)).commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*words, name))
        else:
            yield (*words, name), command


def check_of(param: Any) -> Any:
    """What `sgpipe.cli.options` checks of a parameter."""
    return getattr(param.callback, "check", None)


def path_params(*checks: Any) -> list[Any]:
    return [
        pytest.param(words, command, param, id=f"{' '.join(words)} {param.name}")
        for words, command in commands()
        for param in command.params
        if check_of(param) in checks
    ]


def test_every_path_says_what_it_is() -> None:
    """A new option that takes a path needs a `callback` of `sgpipe.cli.options`, so that a missing path is named."""
    for words, command in commands():
        assert isinstance(command, Command), words
        for param in command.params:
            kind = str(getattr(param, "type_descriptor", None) or param.type)  # as typer's versions keep it
            named = "str" in kind.lower() and re.search(r"\b[Ff](older|ile)\b", getattr(param, "help", None) or "")
            if ("Path" in kind or named) and param.name not in _NOT_PATHS:
                assert check_of(param), (words, param.name)


def arguments(command: Any, without: Any, folder: Path) -> list[str]:
    """Something for every required parameter, so that only the parameter `without` can be refused."""
    (folder / "file").touch()
    (folder / "folder").mkdir(exist_ok=True)
    fitting = {
        existing_folder: "folder",
        existing_file: "file",
        existing_path: "file",
        existing_place: "file",
        existing_model: "name",
        existing_run: "folder",
        _check_images: "folder",
        _check_stored_file: "file",
    }
    words: list[str] = []
    for param in command.params:
        if param.required and param is not without:
            value = str(folder / fitting.get(check_of(param), "new.json"))
            words += [value] if param.opts[0] == param.name else [param.opts[0], value]
    return words


@pytest.mark.parametrize(("words", "command", "param"), path_params(*_KINDS))
def test_a_missing_path_is_called_what_it_is(words: Any, command: Any, param: Any, tmp_path: Path) -> None:
    kind, other = _KINDS[check_of(param)]
    option = [] if param.opts[0] == param.name else [param.opts[0]]
    start = f"error: {option[0]}" if option else "error:"
    given = arguments(command, param, tmp_path)
    for value in (tmp_path / "nowhere", tmp_path / "file" / "nowhere"):
        result = CliRunner().invoke(app, [*words, *given, *option, str(value)])
        colon = ":" if option else ""
        assert (result.exit_code, result.stderr) == (2, f"{start}{colon} no such {kind}: {value}\n")
    if other:
        value = tmp_path / other
        result = CliRunner().invoke(app, [*words, *given, *option, str(value)])
        assert (result.exit_code, result.stderr) == (2, f"{start} {value} is a {other}, not a {kind}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


@pytest.mark.parametrize(("words", "command", "param"), path_params(existing_model))
def test_a_file_is_no_folder_of_a_model(words: Any, command: Any, param: Any, tmp_path: Path) -> None:
    given = arguments(command, param, tmp_path)
    result = CliRunner().invoke(app, [*words, *given, param.opts[0], str(tmp_path / "file")])
    assert (result.exit_code, result.stderr) == (
        2,
        f"error: {param.opts[0]} {tmp_path / 'file'} is a file, not a folder\n",
    )


@pytest.mark.parametrize("command", [("generate",), ("train", "--out", "new")])
@pytest.mark.parametrize(
    ("recipe", "reason"),
    [
        ("nowhere.yaml", "no such file: nowhere.yaml"),
        ("my/recipe", "no such file: my/recipe"),
        ("docs", "docs is a folder, not a file"),
        ("nowhere", "no recipe 'nowhere': it is neither a file nor one of the packaged recipes"),
    ],
)
def test_a_missing_recipe_is_called_what_it_is(
    command: tuple[str, ...], recipe: str, reason: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "docs").mkdir()
    result = CliRunner().invoke(app, [*command, recipe])
    assert (result.exit_code, reason in result.stderr) == (2, True), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["docs"]


@pytest.mark.parametrize(("words", "command", "param"), path_params(writable_folder, writable_file))
def test_a_path_that_cannot_be_written_is_refused_before_any_work(
    words: Any, command: Any, param: Any, tmp_path: Path
) -> None:
    option = [] if param.opts[0] == param.name else [param.opts[0]]
    given = arguments(command, param, tmp_path)
    kind, other = ("folder", "file") if check_of(param) is writable_folder else ("file", "folder")
    cases = {
        str(tmp_path / other): f"{tmp_path / other} is a {other}, not a {kind}",
        str(tmp_path / "file" / "new.json"): f"{tmp_path / 'file'} is a file, not a folder",
        "s3://bucket/x": f"s3://bucket/x is an object store, not a {kind}",
    }
    for value, reason in cases.items():
        result = CliRunner().invoke(app, [*words, *given, *option, value])
        assert (result.exit_code, reason in result.stderr) == (2, True), result.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_a_link_to_nowhere_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("/nowhere")
    result = CliRunner().invoke(app, ["generate", "--out", str(tmp_path / "out")])
    reason = f"error: --out {tmp_path / 'out'} is a link to /nowhere, which does not exist\n"
    assert (result.exit_code, result.stderr) == (2, reason)


def test_what_typer_refuses_reaches_the_terminal_without_controls() -> None:
    result = CliRunner().invoke(app, ["stats", "--no\u202e\u200bsuch"])
    assert (result.exit_code, "No such option: --nosuch" in result.stderr) == (2, True), result.stderr


@pytest.mark.parametrize(
    ("words", "named"),
    [(["label", ""], ""), (["stats", "run", "--html", ""], "--html: "), (["generate", "--out="], "--out: ")],
)
def test_an_empty_value_is_refused_and_not_the_current_folder(words: list[str], named: str) -> None:
    result = CliRunner().invoke(app, words)
    reason = f"error: {named}a value is empty; is a variable of the shell unset?\n"
    assert (result.exit_code, result.stderr) == (2, reason)
