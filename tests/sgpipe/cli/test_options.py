import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from sgpipe.cli.declare import local
from sgpipe.cli.main import app
from tests.integration.documents import commands

WRITES = re.compile(r"\b(Write [^N]|Draw |(New )?[Ff]older for |File for |File to write)")
GROUPS = {"": typer.main.get_command(app), **commands()}


def refused(*words: object) -> str:
    result = CliRunner().invoke(app, list(map(str, words)))
    assert (result.exit_code, result.stderr.count("\n")) == (2, 1), result.stderr
    return result.stderr


def test_what_typer_refuses_reaches_the_terminal_without_controls() -> None:
    assert refused("stats", "--no\u202e\u200bsuch") == "error: No such option: --nosuch\n"
    assert refused("--nosuch") == "error: No such option: --nosuch\n"


@pytest.mark.parametrize(
    "words", [["label", ""], ["stats", "run", "--html", ""], ["generate", "--out="]]
)
def test_an_empty_value_is_refused_and_not_the_current_folder(words: list[str]) -> None:
    assert "a value is empty" in refused(*words)
    assert "is not a name" in refused("view", ".", "--as", " \u200b")


def test_a_folder_with_colons_is_on_this_machine(tmp_path: Path) -> None:
    assert local(folder := tmp_path / "12:30:/x") == folder
    with pytest.raises(typer.BadParameter, match="s3://bucket/x is not on this machine"):
        local(Path("s3://bucket/x"))


def declared() -> Iterator[tuple[str, Any]]:
    """Each parameter of each command, and what is declared of it."""
    for words, command in commands().items():
        for parameter in (
            inspect.signature(command.callback).parameters.values() if command.callback else ()
        ):
            if hasattr(parameter.annotation, "__metadata__"):
                yield f"{words} {parameter.name}", parameter.annotation.__metadata__[0]


def test_every_output_is_declared_as_one() -> None:
    """Then it is refused if the command reads it, or a run has it."""
    written = [
        (name, option.callback is local)
        for name, option in declared()
        if WRITES.search(option.help or "")
    ]
    assert [name for name, is_output in written if not is_output] == []
    assert len(written) == sum(option.callback is local for _, option in declared()) > 30


@pytest.mark.parametrize(
    "words",
    [
        "stats DIR/run --html DIR/run/judgements.jsonl", "stats DIR/run --sheet DIR/run/data/val.parquet",
        "stats DIR/run --html DIR/new --sheet DIR/./new", "score DIR/run --out DIR/run/data",
        "calibrate DIR/run --image-data DIR/file.json --out DIR/link.json",
        "eval hico --predictions DIR/file.json --csv DIR/file.json",
        "predict DIR/file.json --data DIR/run --out DIR/link.json", "merge DIR/run DIR/run --out DIR/run",
        "export DIR/run --to hf --out DIR/run/data/new",
        "import vg --annotations DIR/file.json --images DIR/run --out DIR/run",
    ],
)  # fmt: skip
def test_no_command_writes_over_what_it_reads_or_what_a_run_has(words: str, tmp_path: Path) -> None:
    run = tmp_path / "run"
    file = tmp_path / "file.json"
    (run / "data").mkdir(parents=True)
    for path in (run / "manifest.jsonl", run / "data/val.parquet", run / "judgements.jsonl", file):
        path.write_text("valuable")
    (tmp_path / "link.json").symlink_to(file)
    error = refused(*words.replace("DIR", str(tmp_path)).split())
    assert any(
        reason in error
        for reason in ("belongs to the run", "is read by this command", "are the same file")
    )
    assert {path.read_text() for path in tmp_path.rglob("*.*") if path.is_file()} == {"valuable"}


def two_uses(option: Any) -> tuple[list[str], list[str]]:
    """Two ways to give an option, each as words; by different names if it has several."""
    names = [*option.opts, *option.secondary_opts]
    values = [] if option.is_flag else ["1"], [] if option.is_flag else ["2"]
    return [names[0], *values[0]], [names[-1], *values[1]]


def options_of(command: Any, *, multiple: bool) -> list[Any]:
    options = [parameter for parameter in command.params if parameter.param_type_name == "option"]
    return [option for option in options if option.multiple == multiple and not option.is_eager]


@pytest.mark.parametrize("path", GROUPS)
def test_every_single_valued_option_given_twice_is_refused(path: str) -> None:
    for option in options_of(GROUPS[path], multiple=False):
        first, second = two_uses(option)
        message = refused(*path.split(), *first, *second)
        assert f"{max(option.opts, key=len)} is given twice" in message
        if not option.is_flag:
            assert "as 1 and 2:" in message
        if option.secondary_opts:
            assert f"as {first[0]} and {second[0]}:" in message


def test_every_option_with_many_values_can_be_repeated() -> None:
    repeatable = [
        (path, option)
        for path, group in GROUPS.items()
        for option in options_of(group, multiple=True)
    ]
    assert len(repeatable) > 5
    for path, option in repeatable:
        first, second = two_uses(option)
        result = CliRunner().invoke(app, [*path.split(), *first, *second])
        assert "is given" not in result.stderr


def test_repeated_options_are_counted_by_any_name() -> None:
    assert "--quiet is given 3 times" in refused("-qq", "--quiet", "stats", "run")
    assert "--limit is given 3 times, as 1, 2 and 3:" in refused(
        "train", "--limit", 1, "--limit=2", "--limit", 3
    )
    assert "secret" not in refused(
        "generate", "--images", "s3://key:secret@b", "--images", "https://a:secret@c/d"
    )
    assert CliRunner().invoke(app, ["stats", "--json", "--json", "--help"]).exit_code == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--max-cost 0 --prompt-price 1 --completion-price 1", "--max-cost 0 pays for no request"),
        ("--max-cost nan --prompt-price 1 --completion-price 1", "--max-cost nan pays for no"),
        ("--max-cost 5", "--max-cost needs prices: pass --prompt-price and --completion-price"),
        ("--max-cost 5 --prompt-price 0 --completion-price 0", "at prices of 0 nothing costs"),
        ("--prompt-price 1", "pass both, 0 for what is free"),
        ("--cached-price 1", "pass both, 0 for what is free"),
        ("--prompt-price -1 --completion-price 1", "greater than or equal to 0"),
    ],
)
def test_prices_that_tell_no_cost_are_refused(options: str, message: str) -> None:
    assert message in refused("generate", *options.split())
