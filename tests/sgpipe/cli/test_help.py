"""What all commands have in common: help, headings, --json, --quiet, a fast start."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from sgpipe import __version__
from sgpipe.cli.help import EXAMPLES, SECTIONS
from sgpipe.cli.main import app
from sgpipe.export.run import export_run
from tests.sgpipe.export.runs import records
from tests.sgpipe.stats.runs import make_shards

WITH_JSON = ("label", "generate", "stats", "score", "verify", "export", "train", "doctor", "import vg", "import hf")


def command(path: str):
    found = typer.main.get_command(app)
    for name in path.split():
        found = found.commands[name]
    return found


def paths(group=None, prefix: str = "") -> list[str]:
    group = group or typer.main.get_command(app)
    found = []
    for name, member in group.commands.items():
        found += [f"{prefix}{name}", *(paths(member, f"{name} ") if hasattr(member, "commands") else [])]
    return found


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "sgpipe"
    return subprocess.run([program, *arguments], capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("path", paths())
def test_every_command_has_valid_examples(path):
    shown = CliRunner().invoke(app, [*path.split(), "--help"]).stdout
    assert EXAMPLES[path]
    for example in EXAMPLES[path]:
        assert f"  sgpipe {example}" in shown
        words = shlex.split(example.partition(" <")[0])
        name = next(known for known in sorted(EXAMPLES, key=len, reverse=True) if example.startswith(known))
        if not hasattr(command(name), "commands"):
            command(name).make_context(name, words[len(name.split()) :])


def test_every_command_is_under_a_heading():
    assert {name for names in SECTIONS.values() for name in names} == {path for path in paths() if " " not in path}
    shown = CliRunner().invoke(app, ["--help"]).stdout
    assert all(f"\n{title}:" in shown for title in SECTIONS)


@pytest.mark.parametrize("path", WITH_JSON)
def test_commands_that_print_a_report_can_print_json(path):
    assert "--json" in [option for param in command(path).params for option in param.opts]


@pytest.mark.parametrize("path", ["", "import", "eval"])
@pytest.mark.parametrize("width", [40, 60, 80])
def test_no_description_is_cut(path, width):
    shown = CliRunner().invoke(app, [*path.split(), "--help"], terminal_width=width).stdout
    listed = shown[shown.index("\nOptions:") :]  # the line of usage ends in dots of its own
    assert not any(line.endswith(("...", "…")) for line in listed.splitlines())
    joined = "".join(shown.split())
    for name in typer.main.get_command(app).commands if not path else command(path).commands:
        sentence = command(f"{path} {name}".strip()).get_short_help_str(1000)
        assert "".join(f"{name}{sentence}".split()) in joined


def test_every_import_takes_annotations():
    for name, member in command("import").commands.items():
        options = {option for param in member.params for option in param.opts if not getattr(param, "hidden", False)}
        assert {"--annotations", "--images", "--split", "--out"} <= options, name
        assert not [option for option in options if not option.startswith("-")], name


def test_options_of_large_commands_are_under_headings():
    shown = CliRunner().invoke(app, ["generate", "--help"]).stdout
    assert shown.index("\nData:") < shown.index("--annotations") < shown.index("\nModels:") < shown.index("--tagger")
    assert set(EXAMPLES) == set(paths())


def test_the_version_is_printed():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"{__version__}\n"


def test_quiet_prints_only_results(tmp_path):
    shards = make_shards(tmp_path / "run", records(8))
    exported = export_run(shards, "hf", tmp_path / "hub").root
    words = ["import", "hf", str(exported), "--split", "val", "--json", "--out", str(tmp_path / "in")]
    loud, quiet, again = (CliRunner().invoke(app, [*options, *words]) for options in ([], ["--quiet"], []))
    assert quiet.stdout == loud.stdout != ""
    assert loud.stderr
    assert again.stderr.startswith(loud.stderr)  # --quiet does not outlive its command
    assert not quiet.stderr
    wrong = CliRunner().invoke(app, ["--quiet", "verify", str(tmp_path)])
    assert wrong.stderr.startswith("error: ")


def test_shells_complete_command_names():
    done = run(_SGPIPE_COMPLETE="complete_bash", COMP_WORDS="sgpipe ex", COMP_CWORD="1")
    assert done.stdout.split() == ["export"]


def test_the_command_line_starts_without_large_libraries():
    script = "import sys, sgpipe.cli.main; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert "sgpipe.cli.predict" in loaded
    assert not {"torch", "ray", "numpy", "pyarrow", "PIL", "pydantic", "transformers", "rich"} & set(loaded)


@pytest.mark.slow
def test_no_color_turns_colours_off():
    with_colour, without = (run("doctor", FORCE_COLOR="1", **env) for env in ({}, {"NO_COLOR": "1"}))
    assert "\x1b[32m" in with_colour.stdout
    assert "\x1b[3" not in without.stdout
