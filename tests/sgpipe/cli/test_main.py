"""What all commands have in common: help, headings, --json, --quiet, a fast start, Ctrl-C; and `sgpipe doctor`."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sgpipe import __version__
from sgpipe.cli import doctor
from sgpipe.cli.main import app
from sgpipe.export.run import export_run
from tests.integration.documents import commands
from tests.sgpipe.export.runs import records
from tests.sgpipe.stats.runs import make_shards

COMMANDS = commands()


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    program = Path(sys.executable).parent / "sgpipe"
    return subprocess.run([program, *arguments], capture_output=True, text=True, env={**os.environ, **environment})


@pytest.mark.parametrize("path", COMMANDS)
def test_every_command_has_valid_examples(path):
    shown = CliRunner().invoke(app, [*path.split(), "--help"], env={"COLUMNS": "200"}).stdout
    examples = [line for each in shown.splitlines() if (line := each.strip()).startswith(f"sgpipe {path}")]
    assert examples
    for example in examples:
        words = shlex.split(example.partition(" <")[0])[1:]
        name = next(known for known in sorted(COMMANDS, key=len, reverse=True) if " ".join(words).startswith(known))
        options = {option for param in COMMANDS[name].params for option in param.opts}
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
    for name, member in COMMANDS["import"].commands.items():
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


def invoke(*arguments: object, stdin: str | None = None):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], input=stdin)


def test_parse_prints_one_json_line_for_each_line():
    result = invoke("parse", stdin="a man riding a horse\n\ntwo dogs\n")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [line["caption"] for line in lines] == ["a man riding a horse", "", "two dogs"]
    triplets = [[(t["subject"], t["predicate"], t["object"]) for t in line["triplets"]] for line in lines]
    assert triplets == [[("man", "riding", "horse")], [], []]


@pytest.mark.parametrize(
    ("command", "code", "said"),
    [
        ("parse <&-", 2, "error: standard input is closed; `parse` reads one caption per line from it\n"),
        ("--help > /dev/full", 1, "error: No space left on device: standard output"),
    ],
)
def test_streams_that_cannot_be_used_are_named(command, code, said):
    script = f"{sys.executable} -c 'from sgpipe.cli.main import main; main()' {command}"
    result = subprocess.run(script, shell=True, capture_output=True, text=True)
    assert (result.returncode, result.stderr[: len(said)]) == (code, said), result.stderr


STARTED = """
import os, signal, sys
sys.argv[0] = {program!r}
import sgpipe.cli
{then}
os.kill(os.getpid(), signal.SIGINT)
"""
RUN = "from sgpipe.cli.main import app; from typer.testing import CliRunner; CliRunner().invoke(app, ['parse', '--x'])"


@pytest.mark.parametrize(
    ("program", "then", "code", "said"),
    [
        ("/usr/bin/sgpipe", "", 130, "interrupted. Run the same command again.\n"),
        ("/usr/bin/sgpipe", RUN, -signal.SIGINT, "KeyboardInterrupt\n"),  # from here on, `_Group` handles it
        ("another.py", "", -signal.SIGINT, "KeyboardInterrupt\n"),
    ],
)
def test_ctrl_c_while_the_command_is_imported_is_one_line(program, then, code, said):
    script = STARTED.format(program=program, then=then)
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert process.returncode == code
    assert process.stderr.endswith(said)
    assert code < 0 or process.stderr == said


def test_ctrl_c_in_an_import_of_a_command_is_one_line(tmp_path):
    """A library that is imported may turn what Ctrl-C raises into another error."""
    (tmp_path / "torch.py").write_text(
        "import os, signal\ntry:\n    os.kill(os.getpid(), signal.SIGINT)\n    list(range(9))\n"
        "except BaseException:\n    raise ImportError('broken') from None\n"
    )
    script = "import sys; sys.argv[0] = 'sgpipe'; from sgpipe.cli.main import main; main()"
    places = os.pathsep.join([str(tmp_path), *sys.path])
    (tmp_path / "image.png").touch()
    for command in (["label", "image.png"], ["train", "tagger", "--data", ".", "--out", "out"]):
        process = subprocess.run(
            [sys.executable, "-c", script, *command],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": places},
        )
        assert (process.returncode, process.stderr) == (130, "interrupted. Run the same command again.\n")


Usage = namedtuple("Usage", "total used free")


def test_this_machine_has_what_sgpipe_needs(tmp_path):
    result = CliRunner().invoke(app, ["doctor", str(tmp_path), "--json"])
    assert result.exit_code == 0, result.stdout
    found = json.loads(result.stdout)
    names = ["packages", "gpu", "parser", "models", "captions", "disk", "ray", "hub"]
    assert [item["name"] for item in found] == names
    assert "Qwen2-VL 4.1" in found[4]["detail"]
    assert all(item["fix"] for item in found if item["state"] == "bad")
    lines = CliRunner().invoke(app, ["doctor", str(tmp_path)]).stdout.splitlines()
    assert len(lines) == len(found)


def test_missing_and_old_packages_are_named(monkeypatch):
    monkeypatch.setattr(
        "importlib.metadata.requires", lambda name: ["torch>=99", "nowhere-to-be-found>=1", "x; extra == 'dev'"]
    )
    found = doctor._packages()
    assert CliRunner().invoke(app, ["doctor"]).exit_code == 1
    assert found.state == "bad"
    assert "torch is " in found.detail
    assert "nowhere-to-be-found is missing" in found.detail


def test_missing_models_and_families_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr("sgpipe.recipe.packaged_model", lambda name: tmp_path / name)
    monkeypatch.setitem(doctor._CAPTIONERS, "new", "New 1.0")
    result = CliRunner().invoke(app, ["doctor"])
    assert result.exit_code == 1
    assert "lacks captioner, tagger, parseda → pip install --force-reinstall sgpipe" in result.stdout
    assert "lacks New 1.0 → pip install --upgrade transformers" in result.stdout


@pytest.mark.parametrize(("free", "state"), [(1 << 30, "note"), (100 << 30, "ok")])
def test_little_disk_space_is_noted(monkeypatch, tmp_path, free, state):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(0, 0, free))
    found = doctor._disk(tmp_path / "not" / "yet")
    assert (found.state, str(tmp_path) in found.detail) == (state, True)
