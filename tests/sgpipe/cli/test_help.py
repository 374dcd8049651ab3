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
from sgpipe.cli.main import app
from sgpipe.export.run import export_run
from tests.sgpipe.export.runs import records
from tests.sgpipe.stats.runs import make_shards


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
    shown = CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "200"}).stdout
    examples = [line for each in shown.splitlines() if (line := each.strip()).startswith(f"sgpipe {path}")]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" <")[0])[1:]
        name = next(known for known in sorted(paths(), key=len, reverse=True) if " ".join(words).startswith(known))
        options = {option for param in command(name).params for option in param.opts}
        assert {word for word in words if word.startswith("--")} <= options


def test_commands_and_options_are_under_headings():
    shown = CliRunner().invoke(app, ["--help"]).stdout
    headings = ("Label images", "Inspect runs", "Import and export", "Train and evaluate", "Tools")
    assert sorted(shown.index(f"─ {heading} ─") for heading in headings) == [
        shown.index(f"─ {heading} ─") for heading in headings
    ]
    assert "─ Commands ─" not in shown
    shown = CliRunner().invoke(app, ["generate", "--help"]).stdout.partition("─ Data ─")[2]
    assert shown.index("--annotations") < shown.index("─ Models ─") < shown.index("--captioner")


def test_every_import_takes_annotations():
    for name, member in command("import").commands.items():
        options = {option for param in member.params for option in param.opts if not getattr(param, "hidden", False)}
        assert {"--annotations", "--images", "--split", "--out"} <= options, name
        assert not [option for option in options if not option.startswith("-")], name


def test_the_version_is_printed():
    assert CliRunner().invoke(app, ["--version"]).stdout == f"{__version__}\n"


def test_quiet_prints_only_results(tmp_path):
    shards = make_shards(tmp_path / "run", records(8))
    exported = export_run(shards, "hf", tmp_path / "hub").root
    words = ["import", "hf", "--annotations", str(exported), "--split", "val", "--json", "--out", str(tmp_path / "in")]
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
    assert "sgpipe.cli.train" in loaded
    assert not {"torch", "ray", "numpy", "pyarrow", "PIL", "pydantic", "transformers", "rich"} & set(loaded)
